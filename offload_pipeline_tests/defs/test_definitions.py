"""Loading must touch nothing; what is loaded must have the shape that the UI, the sensor and backfills rely on."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import (
    AssetCheckKey,
    AssetKey,
    Backoff,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    Jitter,
    MultiPartitionsDefinition,
    OpDefinition,
)
from dagster._core.definitions.repository_definition import RepositoryDefinition  # get_repository_def's type

import offload_pipeline
from offload_pipeline.config import CONFIG_VARIABLE, DATABASE_VARIABLES, HOME_VARIABLE, Config
from offload_pipeline.definitions import build_definitions

ASSETS = ("pending_payloads", "payload_objects", "released_payloads")
# Looks at all tables at once, to compare them.
UNPARTITIONED = ("offload_plan", "verification_report", "orphaned_objects", "expired_payloads")
JOBS = (
    "offload_job", "release_job", "restore_job", "verification_job", "verification_report_job", "pending_job",
    "gc_job", "expiry_job",
)  # fmt: skip
SOURCE_TREE = Path(offload_pipeline.__file__).parents[1]
NOTICES = {"name": "notices", "relation": "public.notices", "tenant": {"column": "tenant_id"}, "payload": "raw_payload"}
LOAD = """
import socket
import psycopg

def refuse(*_arguments, **_options):
    raise AssertionError("loading the definitions connects somewhere")

socket.socket.connect = socket.socket.connect_ex = refuse
psycopg.connect = psycopg.Connection.connect = refuse
import offload_pipeline.definitions
print(*sorted(job.name for job in offload_pipeline.definitions.defs.jobs))
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where database and store are said to be; whoever calls is seen."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


@pytest.fixture
def environment(tmp_path: Path, listener: socket.socket) -> dict[str, str]:
    """A configuration whose database and store are both the listener."""
    port = listener.getsockname()[1]
    document = {
        "database": {"url": f"postgresql://user@127.0.0.1:{port}/database"},
        "object_store": {"url": "s3://bucket", "endpoint": f"http://127.0.0.1:{port}"},
        "tables": [NOTICES],
    }
    path = tmp_path / "offload.yaml"
    path.write_text(yaml.safe_dump(document))
    kept = {name: value for name, value in os.environ.items() if name not in (*DATABASE_VARIABLES, "DAGSTER_HOME")}
    return {**kept, CONFIG_VARIABLE: str(path), HOME_VARIABLE: str(tmp_path / "home")}


def run_python(environment: dict[str, str], *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


def has_caller(listener: socket.socket) -> bool:
    with suppress(BlockingIOError):
        listener.accept()[0].close()
        return True
    return False


def config(**sections: Any) -> Config:
    return Config.model_validate({"tables": [NOTICES, {**NOTICES, "name": "mails", "relation": "mails"}], **sections})


@pytest.fixture
def repository() -> RepositoryDefinition:
    return build_definitions(config()).get_repository_def()


def test_the_definitions_load_without_database_network_or_warning(
    environment: dict[str, str], listener: socket.socket, tmp_path: Path
) -> None:
    done = run_python(environment, "-W", "error", "-c", LOAD, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(JOBS) <= set(done.stdout.split())
    assert not has_caller(listener)
    assert not (tmp_path / "home").exists(), "loading made a folder"


@pytest.mark.parametrize(
    ("folder", "target"),
    [
        pytest.param("", ("-m", "offload_pipeline.definitions"), id="anywhere"),
        pytest.param(SOURCE_TREE, ("-w", "workspace.yaml"), id="in the source tree"),
    ],
)
def test_dagster_finds_the_definitions_valid(
    environment: dict[str, str], tmp_path: Path, folder: str, target: tuple[str, str]
) -> None:
    done = run_python(environment, "-m", "dagster", "definitions", "validate", *target, cwd=tmp_path / folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All code locations passed validation" in done.stdout + done.stderr


def test_a_mistake_in_the_configuration_is_one_clear_line_after_the_traceback(
    environment: dict[str, str], tmp_path: Path
) -> None:
    path = Path(environment[CONFIG_VARIABLE])
    path.write_text(path.read_text().replace("tables:", "offload: {sensr: running}\ntables:"))
    done = run_python(environment, "-c", "import offload_pipeline.definitions", cwd=tmp_path)
    assert done.returncode == 1
    said = f"{path}:6: offload.sensr: unknown key; did you mean sensor?"
    assert done.stderr.splitlines()[-1] == f"offload_pipeline.errors.UserError: {said}"


def test_every_asset_is_partitioned_by_table_and_tenant_one_partition_a_run(repository: RepositoryDefinition) -> None:
    graph = repository.asset_graph
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {*ASSETS, *UNPARTITIONED}
    for name in ASSETS:
        node = graph.get(AssetKey(name))
        assert isinstance(node.partitions_def, MultiPartitionsDefinition)
        assert node.partitions_def.partition_dimension_names == ["table", "tenant"]
        tables = node.partitions_def.get_partitions_def_for_dimension("table")
        assert tables.get_partition_keys() == ["notices", "mails"]
        assert node.backfill_policy is None, "a policy, even of one partition, makes range runs (see demo/test_ui.py)"
        assert node.description, f"{name} says nothing in the UI"
        assert node.group_name == "offload"


def test_payloads_are_released_after_they_are_stored_after_the_queue_is_measured(
    repository: RepositoryDefinition,
) -> None:
    graph = repository.asset_graph
    parents = {name: {key.to_user_string() for key in graph.get(AssetKey(name)).parent_keys} for name in ASSETS}
    assert parents == {
        "pending_payloads": set(), "payload_objects": {"pending_payloads"}, "released_payloads": {"payload_objects"}
    }  # fmt: skip


def test_verification_blocks_and_the_queue_only_warns(repository: RepositoryDefinition) -> None:
    graph = repository.asset_graph
    sound = graph.get(AssetCheckKey(AssetKey("payload_objects"), "objects_are_sound"))
    short = graph.get(AssetCheckKey(AssetKey("pending_payloads"), "queue_is_short"))
    assert (sound.blocking, short.blocking) == (True, False)
    for check in (sound, short):
        assert check.partitions_def == graph.get(AssetKey("payload_objects")).partitions_def
        assert check.description


def test_a_copy_and_a_release_are_tried_again_ever_later(repository: RepositoryDefinition) -> None:
    for name in ("payload_objects", "released_payloads"):
        step = repository.get_job("offload_job").get_node_named(name).definition
        assert isinstance(step, OpDefinition)
        policy = step.retry_policy
        assert policy is not None
        assert policy.max_retries > 1
        assert (policy.backoff, policy.jitter) == (Backoff.EXPONENTIAL, Jitter.PLUS_MINUS)


def test_every_job_runs_its_steps_in_one_process(repository: RepositoryDefinition) -> None:
    names = {job.name for job in repository.get_all_jobs()}
    assert set(JOBS) <= names
    for name in names:
        assert repository.get_job(name).executor_def.name == "in_process", name


def test_jobs_say_what_they_do(repository: RepositoryDefinition) -> None:
    for name in JOBS:
        assert repository.get_job(name).description


def test_the_offload_job_verifies_between_copy_and_release(repository: RepositoryDefinition) -> None:
    steps = [node.name for node in repository.get_job("offload_job").nodes_in_topological_order]
    assert steps == ["pending_payloads", "payload_objects", "payload_objects_objects_are_sound", "released_payloads"]
    assert {node.name for node in repository.get_job("release_job").nodes} == {"released_payloads"}
    assert {node.name for node in repository.get_job("verification_job").nodes} == {
        "pending_payloads", "payload_objects_objects_are_sound"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "status"),
    [
        pytest.param({}, DefaultSensorStatus.STOPPED, id="not written"),
        pytest.param({"offload": {"sensor": "stopped"}}, DefaultSensorStatus.STOPPED, id="stopped"),
        pytest.param({"offload": {"sensor": "running"}}, DefaultSensorStatus.RUNNING, id="running"),
    ],
)
def test_the_sensor_runs_by_itself_only_where_the_configuration_says_so(
    written: dict[str, Any], status: DefaultSensorStatus
) -> None:
    sensor = build_definitions(config(**written)).get_repository_def().get_sensor_def("pending_queue_sensor")
    assert sensor.default_status == status


def test_the_schedule_is_off_until_it_is_switched_on(repository: RepositoryDefinition) -> None:
    schedule = repository.get_schedule_def("every_five_minutes")
    assert schedule.default_status == DefaultScheduleStatus.STOPPED
    assert schedule.cron_schedule == "*/5 * * * *"
    assert schedule.job_name == "offload_job"
