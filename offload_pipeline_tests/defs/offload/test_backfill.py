"""What a launch may choose for one run: a dry run, what stays in the rows; and how a run waits for the database."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dagster import AssetKey, AssetObservation, DagsterLogManager, ExecuteInProcessResult

from offload_pipeline.database.back_pressure import Announce
from offload_pipeline.defs import io_managers
from offload_pipeline.defs.offload import assets
from offload_pipeline.defs.partition_keys import TENANT_PARTITIONS, key_of
from offload_pipeline.defs.resources import log_pauses
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import Project, metadata_of, opened_project
from offload_pipeline_tests.defs.test_io_managers import attempts, failure_of
from offload_pipeline_tests.factories import large_payload, make_table, stored_files
from offload_pipeline_tests.servers import PostgresServer, wait_until

PAYLOADS = [large_payload(5_000, seed=1), large_payload(700, seed=2), '{"exact": 1.10}']
FEW_FILES = {"max_replica_lag_bytes": None, "max_wal_files_waiting": 3, "pause_for_autovacuum": False}


def launch(project: Project, job: str = "offload_job", **chosen: Any) -> ExecuteInProcessResult:
    """As the launchpad would, with this configuration of the copy."""
    project.instance.add_dynamic_partitions(TENANT_PARTITIONS, ["acme"])
    return project.run_key(job, key_of("notices", "acme"), {"ops": {"payload_objects": {"config": chosen}}})


def observation_of(result: ExecuteInProcessResult) -> AssetObservation:
    (event,) = result.get_asset_observation_events()
    return event.asset_observation_data.asset_observation


def told_by(observed: AssetObservation) -> dict[str, Any]:
    return {name: value.value for name, value in observed.metadata.items()}


def steps_of(result: ExecuteInProcessResult, event: str) -> set[str]:
    return {str(e.step_key) for e in result.all_events if e.event_type_value == event}


def rows_of_log(project: Project) -> list[Any]:
    return project.connection.execute("SELECT * FROM payload_offload_log ORDER BY id").fetchall()


def test_a_dry_run_tells_what_would_be_copied_and_stores_nothing(project: Project, tmp_path: Path) -> None:
    project.insert(PAYLOADS)
    before = project.statuses()
    result = launch(project, dry_run=True)
    assert result.success
    observed = observation_of(result)
    assert (observed.asset_key, observed.partition) == (AssetKey("payload_objects"), "notices|acme")
    told = told_by(observed)
    assert (told["dry_run"], told["rows"]) == (True, 3)
    assert told["payload_bytes"] == sum(len(payload) for payload in PAYLOADS)
    assert 0 < told["forecast_object_bytes"] < told["payload_bytes"]
    assert project.statuses() == before
    assert stored_files(tmp_path / "objects") == []
    assert project.connection.execute("SELECT FROM payload_offload_state").rowcount == 0
    assert rows_of_log(project) == []


def test_after_a_dry_run_nothing_counts_as_materialized_checked_or_released(project: Project) -> None:
    project.insert(PAYLOADS)
    # Verified, and free to be released by any run but a dry one.
    assert launch(project, null_after_upload=False).success
    before, logged = project.statuses(), rows_of_log(project)
    project.insert(PAYLOADS)
    result = launch(project, dry_run=True)
    assert result.success
    assert steps_of(result, "STEP_SKIPPED") == {"payload_objects_objects_are_sound", "released_payloads"}
    assert [e.asset_key for e in result.get_asset_materialization_events()] == [AssetKey("pending_payloads")]
    assert {key: project.statuses()[key] for key in before} == before
    assert rows_of_log(project) == logged


def test_a_dry_run_of_the_queue_alone_leaves_the_older_rows_out(project: Project) -> None:
    project.connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
    project.insert(PAYLOADS, payload_storage_status=None)
    project.connection.execute("ALTER TABLE notices ENABLE TRIGGER USER")
    project.insert(PAYLOADS[:1])
    told = [told_by(observation_of(launch(project, dry_run=True, unseen=unseen))) for unseen in (True, False)]
    assert [one["rows"] for one in told] == [4, 1]


def test_a_dry_run_that_includes_restored_rows_counts_them_beside_the_others(project: Project) -> None:
    project.insert(PAYLOADS)
    for job in ("offload_job", "restore_job"):
        assert project.run(job).success
    assert "held_rows" not in told_by(observation_of(launch(project, dry_run=True)))
    told = told_by(observation_of(launch(project, dry_run=True, include_restored=True)))
    assert (told["rows"], told["held_rows"], told["held_bytes"]) == (0, 3, sum(map(len, PAYLOADS)))
    assert set(project.statuses().values()) == {"inline"}


@pytest.mark.parametrize(("after_copy", "wish", "status"), [("clear", False, "copied"), ("keep", True, "in_storage")])
def test_null_after_upload_holds_for_the_release_of_the_same_run(
    make_project: MakeProject, connection: psycopg.Connection, after_copy: str, wish: bool, status: str
) -> None:
    project = make_project([make_table(connection, threshold_bytes=0, after_copy=after_copy)])
    project.insert(PAYLOADS)
    before = project.hashes()
    result = launch(project, null_after_upload=wish)
    assert result.success
    assert set(project.statuses().values()) == {status}
    assert metadata_of(result, "released_payloads")["rows"] == (3 if wish else 0)
    project.assert_nothing_is_lost(before)


def test_null_after_upload_holds_for_that_run_only(project: Project) -> None:
    project.insert(PAYLOADS)
    assert launch(project, null_after_upload=False).success
    assert project.run("release_job").success
    assert set(project.statuses().values()) == {"in_storage"}


def test_a_payload_that_may_not_be_null_is_refused_before_anything_is_copied(
    make_project: MakeProject, connection: psycopg.Connection
) -> None:
    table = make_table(connection, threshold_bytes=0, after_copy="reference")
    connection.execute("ALTER TABLE notices ALTER raw_payload SET NOT NULL")
    project = make_project([table])
    project.insert(PAYLOADS)
    result = launch(project, null_after_upload=True)
    assert not result.success
    assert attempts(result) == 1
    assert "raw_payload is NOT NULL and cannot be cleared" in failure_of(result)
    assert set(project.statuses().values()) == {"pending_move"}


@pytest.fixture
def archiving() -> Iterator[PostgresServer]:
    """A server whose archive_command fails."""
    from offload_pipeline.database.embedded import BIN_DIR

    server = PostgresServer(BIN_DIR, {"archive_mode": "on", "archive_command": "/bin/false"})
    yield server
    server.close()


def let_wal_pile_up(connection: psycopg.Connection) -> None:
    connection.execute("ALTER SYSTEM SET archive_command = '/bin/false'")
    connection.execute("SELECT pg_reload_conf()")
    for _ in range(5):
        connection.execute("SELECT pg_logical_emit_message(FALSE, 'test', 'x')")
        connection.execute("SELECT pg_switch_wal()")
    waiting = "SELECT count(*) >= 5 FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
    assert wait_until(lambda: connection.execute(waiting).fetchone() == (True,))


def test_a_run_waits_for_the_archiver_in_each_of_its_steps_and_says_so_in_its_log(
    archiving: PostgresServer, local_store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(archiving.url(), autocommit=True) as connection:

        def relieved(log: DagsterLogManager) -> Announce:
            """As it is, and whoever reads the log then mends the archiver."""
            say = log_pauses(log)

            def announce(reason: str | None) -> None:
                say(reason)
                if reason is not None:
                    assert (
                        connection.execute("SELECT FROM notices WHERE payload_storage_status = 'in_storage'").rowcount
                        == 0
                    )
                    connection.execute("ALTER SYSTEM SET archive_command = '/bin/true'")
                    connection.execute("SELECT pg_reload_conf()")

            return announce

        for module in (io_managers, assets):
            monkeypatch.setattr(module, "log_pauses", relieved)
        store, tables = {"url": local_store_url}, [make_table(connection, threshold_bytes=0)]
        with opened_project(
            connection, tmp_path, monkeypatch, archiving.url(), store, tables, back_pressure=FEW_FILES
        ) as project:
            project.insert(PAYLOADS)
            let_wal_pile_up(connection)
            copied = launch(project, null_after_upload=False)
            let_wal_pile_up(connection)
            released = project.run("release_job")
            assert set(project.statuses().values()) == {"in_storage"}
            for result in (copied, released):
                said = [entry.user_message for entry in project.instance.all_logs(result.run_id)]
                (paused,) = [message for message in said if message.startswith("paused: ")]
                assert paused.endswith(" WAL files wait to be archived, max_wal_files_waiting is 3")
                assert said.count("goes on") == 1
