"""The one resource: offload.yaml, its database and its store, opened when a step or tick begins and not before."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dagster import ConfigurableResource, DagsterLogManager, InitResourceContext
from pydantic import PrivateAttr

from offload_pipeline.config import load_config
from offload_pipeline.database.back_pressure import Announce
from offload_pipeline.defs.partition_keys import split_key
from offload_pipeline.defs.retries import no_retry_of_permanent_errors
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.queue import PendingTenant
from offload_pipeline.pipeline import Pipeline, open_pipeline


def log_pauses(log: DagsterLogManager) -> Announce:
    """Says in the run's log why nothing moves, once for each pause."""
    return lambda reason: log.info(f"paused: {reason}" if reason else "goes on")


class PipelineResource(ConfigurableResource["PipelineResource"]):
    """`config_path` empty: `$OFFLOAD_CONFIG`, else ./offload.yaml, else the packaged demo configuration."""

    config_path: str = ""

    _pipeline: Pipeline = PrivateAttr()

    @contextlib.contextmanager
    def yield_for_execution(self, context: InitResourceContext) -> Iterator["PipelineResource"]:  # noqa: ARG002
        """Reads the configuration and starts the embedded database where none is named."""
        with no_retry_of_permanent_errors():
            self._pipeline = open_pipeline(load_config(Path(self.config_path)) if self.config_path else None)
        yield self

    @property
    def pipeline(self) -> Pipeline:
        """The opened installation."""
        return self._pipeline

    def partitions(self, partition_key: str) -> Sequence[Partition]:
        """What a Dagster partition stands for: the rows of one tenant in one table, or of a bucket of tenants."""
        table, tenant_key = split_key(partition_key)
        with no_retry_of_permanent_errors(), self._pipeline.connect() as connection:
            return self._pipeline.partitions_of_key(connection, table, tenant_key)

    def pending(self, partition_key: str) -> list[PendingTenant]:
        """What waits in a Dagster partition."""
        partitions = self.partitions(partition_key)
        with no_retry_of_permanent_errors(), self._pipeline.connect() as connection:
            return [
                pending
                for partition in partitions
                for pending in self._pipeline.pending(connection, partition.table, partition.tenant)
            ]
