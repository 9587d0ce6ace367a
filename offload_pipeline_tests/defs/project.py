"""An installed project as Dagster sees it: definitions built from a written offload.yaml, and an instance."""

import contextlib
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from dagster import (
    AssetCheckEvaluation,
    AssetSelection,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
    MultiPartitionKey,
    RetryPolicy,
    RunRequest,
    build_sensor_context,
    define_asset_job,
)
from dagster._core.definitions.sensor_definition import SensorExecutionData  # what a tick gives the daemon
from dagster._core.instance.types import CachingDynamicPartitionsLoader  # what it checks its partition keys with

from offload_pipeline.config import CONFIG_VARIABLE, DATABASE_VARIABLES, HOME_VARIABLE, TableConfig, load_config
from offload_pipeline.definitions import build_definitions
from offload_pipeline.defs import retries
from offload_pipeline.defs.partition_keys import TENANT_PARTITIONS, key_of, split_key
from offload_pipeline.defs.resources import PipelineResource
from offload_pipeline.pipeline import Pipeline, open_pipeline
from offload_pipeline_tests.factories import insert_payloads, install, row_hashes, statuses
from offload_pipeline_tests.invariant import assert_invariant

# Events are in the instance; the console would only repeat them.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
COPY_JOB = "copy_job"


@dataclass
class Project:
    """`connection` is the application's own, in autocommit."""

    connection: psycopg.Connection
    pipeline: Pipeline
    definitions: Definitions
    instance: DagsterInstance

    def table(self, name: str = "notices") -> TableConfig:
        return self.pipeline.config.table(name)

    def insert(
        self, payloads: Iterable[str | None], tenant: str = "acme", table: str = "notices", **columns: Any
    ) -> list[Any]:
        return insert_payloads(self.connection, self.table(table), payloads, tenant=tenant, **columns)

    def tick(self) -> SensorExecutionData:
        """One evaluation of the sensor, and what the daemon then does with its new partitions."""
        repository = self.definitions.get_repository_def()
        resources = {"pipeline": PipelineResource()}
        with build_sensor_context(instance=self.instance, repository_def=repository, resources=resources) as context:
            # Lets the tick check the keys it asks for, as the daemon's does; alone it can on an instance in files only.
            context.__dict__["caching_dynamic_partitions_loader"] = CachingDynamicPartitionsLoader(self.instance)
            data = repository.get_sensor_def("pending_queue_sensor").evaluate_tick(context)
        for request in data.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys or []))
        return data

    def run(self, job: str, tenant_key: str = "acme", table: str = "notices") -> ExecuteInProcessResult:
        """The job on one partition, in this process; the tenant becomes known to Dagster."""
        self.instance.add_dynamic_partitions(TENANT_PARTITIONS, [tenant_key])
        return self.run_key(job, key_of(table, tenant_key))

    def run_request(self, request: RunRequest) -> ExecuteInProcessResult:
        """What the daemon makes of the sensor's or the schedule's request, with its run configuration."""
        table, tenant_key = split_key(str(request.partition_key))
        return self.run_key(str(request.job_name), key_of(table, tenant_key), request.run_config)

    def run_key(
        self, job: str, key: MultiPartitionKey, run_config: Mapping[str, Any] | None = None
    ) -> ExecuteInProcessResult:
        return self.definitions.resolve_job_def(job).execute_in_process(
            partition_key=key, instance=self.instance, run_config={**QUIET, **(run_config or {})}, raise_on_error=False
        )

    def statuses(self, table: str = "notices") -> dict[Any, str | None]:
        return statuses(self.connection, self.table(table))

    def hashes(self, table: str = "notices") -> dict[Any, str | None]:
        return row_hashes(self.connection, self.table(table))

    def object_key(self, key: Any) -> str:
        row = self.connection.execute("SELECT raw_object_key FROM notices WHERE id = %s", [key]).fetchone()
        assert row is not None
        return str(row[0])

    def damage(self, key: Any) -> None:
        """Removes the end of the row's object."""
        object_key = self.object_key(key)
        self.pipeline.store.put(object_key, self.pipeline.store.get(object_key)[:-9])

    def assert_nothing_is_lost(self, before: dict[Any, str | None], table: str = "notices") -> None:
        assert_invariant(self.connection, self.pipeline.store, self.table(table), before)


def copy_job_definitions() -> Definitions:
    """A job that copies and does not look at its copies."""
    selection = AssetSelection.assets("payload_objects").without_checks()
    return Definitions(jobs=[define_asset_job(COPY_JOB, selection)])


@contextlib.contextmanager
def opened_project(
    connection: psycopg.Connection, folder: Path, monkeypatch: pytest.MonkeyPatch, database_url: str,
    object_store: dict[str, Any], tables: Sequence[TableConfig], **sections: Any,
) -> Iterator[Project]:  # fmt: skip
    """Writes `folder/offload.yaml`, makes it this process's configuration, installs, and builds the definitions."""
    write_config(folder, monkeypatch, database_url, object_store, tables, **sections)
    # As configured, but for the minutes between attempts.
    monkeypatch.setattr(retries, "RETRY", RetryPolicy(max_retries=1, delay=0))
    config = load_config()
    pipeline = open_pipeline(config)
    install(pipeline)
    with DagsterInstance.ephemeral() as instance:
        definitions = Definitions.merge(build_definitions(config), copy_job_definitions())
        yield Project(connection, pipeline, definitions, instance)


def write_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch, database_url: str, object_store: dict[str, Any],
    tables: Sequence[TableConfig], **sections: Any,
) -> Path:  # fmt: skip
    """`folder/offload.yaml`, named by `$OFFLOAD_CONFIG`."""
    document = {
        "database": {"url": database_url},
        "object_store": object_store,
        "tables": [table.model_dump(mode="json", by_alias=True, exclude_unset=True) for table in tables],
        **sections,
    }
    path = folder / "offload.yaml"
    path.write_text(yaml.safe_dump(document))
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    monkeypatch.setenv(HOME_VARIABLE, str(folder / "home"))
    for name in DATABASE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return path


def closed_endpoint() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def evaluations(result: ExecuteInProcessResult, check: str) -> list[AssetCheckEvaluation]:
    return [found for found in result.get_asset_check_evaluations() if found.check_name == check]


def metadata_of(result: ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """The values of the one materialization of this asset."""
    (event,) = [
        e for e in result.get_asset_materialization_events() if e.asset_key is not None and e.asset_key.path == [asset]
    ]
    return {name: value.value for name, value in event.materialization.metadata.items()}
