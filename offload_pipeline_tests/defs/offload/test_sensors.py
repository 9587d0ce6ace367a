"""The sensor finds tenants and asks for runs: what is due, oldest first, at most once at a time."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from dagster import AssetKey, AssetSelection, DagsterRun, DagsterRunStatus, Definitions, RunRequest, define_asset_job
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.utils import make_new_run_id
from psycopg import sql

from offload_pipeline.database.statements import statement
from offload_pipeline.defs.offload.requests import ASK_AGAIN_SECONDS, look_at_queue, run_requests
from offload_pipeline.defs.partition_keys import TENANT_PARTITIONS, key_of
from offload_pipeline.errors import PermanentError, UserError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.failures import Failure, record_failures
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import QUIET, Project, closed_endpoint, write_config
from offload_pipeline_tests.factories import make_table

EVERYTHING_IS_DUE = {"max_age_minutes": 0}
NOTHING_IS_OLD = {"max_age_minutes": 60}
# Far from the edge of a window, whatever the hour.
IN_A_WINDOW = 1_000_000 * ASK_AGAIN_SECONDS + 60
STRANGE_TENANTS = ["../x", "a|b", "Zoë, Inc.", "", "ACME", "bucket-1", "x" * 300]


def insert(project: Project, tenant: str, *, minutes_old: float = 0, rows: int = 1, table: str = "notices") -> None:
    created_at = datetime.now(UTC) - timedelta(minutes=minutes_old)
    project.insert(
        [f'{{"row": {number}}}' for number in range(rows)], tenant=tenant, table=table, created_at=created_at
    )


def asked(project: Project) -> list[str]:
    return [str(request.partition_key) for request in project.tick().run_requests or []]


def requests_now(project: Project, now: float = IN_A_WINDOW) -> list[RunRequest]:
    return run_requests(project.instance, look_at_queue(project.pipeline).pending, 10, now)


def run_in_flight(project: Project, key: str, status: DagsterRunStatus) -> None:
    run = DagsterRun(
        job_name="offload_job",
        run_id=make_new_run_id(),
        status=status,
        tags={"dagster/partition": key},
        # Without one no run can be in the queue; nothing calls it.
        remote_job_origin=RemoteJobOrigin(
            RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin(host="localhost", port=1), "repository"), "offload_job"
        ),
    )
    project.instance.add_run(run)


def test_new_tenants_become_partitions_once(make_project: MakeProject) -> None:
    project = make_project(offload=NOTHING_IS_OLD)
    for tenant in ("globex", "acme"):
        insert(project, tenant)
    (request,) = project.tick().dynamic_partitions_requests or []
    assert (request.partitions_def_name, request.partition_keys) == (TENANT_PARTITIONS, ["acme", "globex"])
    assert not project.tick().dynamic_partitions_requests
    insert(project, "initech")
    (request,) = project.tick().dynamic_partitions_requests or []
    assert request.partition_keys == ["initech"]


def test_an_empty_queue_is_skipped_with_a_reason(project: Project) -> None:
    data = project.tick()
    assert not data.run_requests
    assert not data.dynamic_partitions_requests
    assert data.skip_message == "0 rows to copy, 0 to verify and release; no partition is due"
    assert data.cursor is None, "a cursor that grows with the tenants would grow for ever"


def test_rows_are_due_when_they_are_old_enough(make_project: MakeProject) -> None:
    project = make_project(offload={"max_age_minutes": 5})
    insert(project, "young", minutes_old=4)
    insert(project, "old", minutes_old=6)
    assert asked(project) == ["notices|old"]


def test_rows_are_due_when_there_are_enough(make_project: MakeProject) -> None:
    project = make_project(offload={**NOTHING_IS_OLD, "min_pending": 3})
    insert(project, "few", rows=2)
    insert(project, "many", rows=3)
    assert asked(project) == ["notices|many"]


def test_rows_of_a_table_without_ages_are_always_due(make_project: MakeProject, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=0, created_at=None)
    project = make_project([table], offload=NOTHING_IS_OLD)
    insert(project, "acme")
    assert asked(project) == ["notices|acme"]


def test_the_oldest_are_asked_for_first_and_no_more_than_a_tick_may(make_project: MakeProject) -> None:
    project = make_project(offload={**EVERYTHING_IS_DUE, "max_runs_per_tick": 2})
    for tenant, minutes in {"second": 20, "third": 10, "first": 30, "fourth": 5}.items():
        insert(project, tenant, minutes_old=minutes)
    assert asked(project) == ["notices|first", "notices|second"]


def test_each_table_is_asked_for_by_itself(make_project: MakeProject, connection: psycopg.Connection) -> None:
    tables = [
        make_table(connection, threshold_bytes=0),
        make_table(connection, name="mails", relation="public.mails", threshold_bytes=0),
    ]
    project = make_project(tables, offload=EVERYTHING_IS_DUE)
    insert(project, "acme", minutes_old=1)
    insert(project, "acme", minutes_old=2, table="mails")
    assert asked(project) == ["mails|acme", "notices|acme"]


@pytest.mark.parametrize(
    "status",
    [
        DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED,
        DagsterRunStatus.CANCELING,
    ],
)  # fmt: skip
def test_a_partition_in_flight_is_not_asked_for_again(make_project: MakeProject, status: DagsterRunStatus) -> None:
    project = make_project(offload={**EVERYTHING_IS_DUE, "max_runs_per_tick": 1})
    insert(project, "acme", minutes_old=9)
    insert(project, "globex", minutes_old=3)
    run_in_flight(project, "notices|acme", status)
    assert asked(project) == ["notices|globex"], "the cap must count free partitions alone"


@pytest.mark.parametrize("status", [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED])
def test_a_partition_whose_run_has_ended_is_asked_for_again(
    make_project: MakeProject, status: DagsterRunStatus
) -> None:
    project = make_project(offload=EVERYTHING_IS_DUE)
    insert(project, "acme")
    run_in_flight(project, "notices|acme", status)
    assert asked(project) == ["notices|acme"]


def test_a_tick_with_everything_in_flight_says_so(make_project: MakeProject) -> None:
    project = make_project(offload=EVERYTHING_IS_DUE)
    insert(project, "acme", rows=3)
    run_in_flight(project, "notices|acme", DagsterRunStatus.STARTED)
    data = project.tick()
    assert not data.run_requests
    assert data.skip_message == "3 rows to copy, 0 to verify and release; due: 1, a run is under way for each"


def test_the_same_queue_in_the_same_window_has_the_same_run_key(project: Project) -> None:
    insert(project, "acme")
    ((one,), (again,)) = requests_now(project), requests_now(project, IN_A_WINDOW + ASK_AGAIN_SECONDS - 120)
    assert one.run_key == again.run_key
    assert str(one.run_key).startswith("notices|acme|1@")


def test_a_queue_that_a_run_left_as_it_was_is_asked_for_again_in_the_next_window(project: Project) -> None:
    insert(project, "acme")
    ((one,), (later,)) = requests_now(project), requests_now(project, IN_A_WINDOW + ASK_AGAIN_SECONDS)
    assert one.run_key != later.run_key


def test_a_queue_that_has_changed_has_another_run_key(project: Project) -> None:
    insert(project, "acme", minutes_old=5)
    (before,) = requests_now(project)
    insert(project, "acme", minutes_old=1)
    (longer,) = requests_now(project)
    project.connection.execute("DELETE FROM notices WHERE id = 1")
    insert(project, "acme", minutes_old=1)
    (younger,) = requests_now(project)
    assert len({before.run_key, longer.run_key, younger.run_key}) == 3


def test_run_keys_of_tables_and_tenants_differ(make_project: MakeProject, connection: psycopg.Connection) -> None:
    tables = [
        make_table(connection, threshold_bytes=0),
        make_table(connection, name="mails", relation="public.mails", threshold_bytes=0),
    ]
    project = make_project(tables)
    created_at = datetime.now(UTC)
    for table in ("notices", "mails"):
        for tenant in ("acme", "globex"):
            project.insert(["{}"], tenant=tenant, table=table, created_at=created_at)
    assert len({request.run_key for request in requests_now(project)}) == 4


def test_any_tenant_id_gives_a_valid_key_whose_run_drains_exactly_its_rows(make_project: MakeProject) -> None:
    project = make_project(offload={**EVERYTHING_IS_DUE, "max_runs_per_tick": 100})
    for tenant in [*STRANGE_TENANTS, "acme", "x"]:
        insert(project, tenant)
    before = project.hashes()
    data = project.tick()
    requests = data.run_requests or []
    assert len(requests) == len(before)
    drained: set[str] = set()
    for request in requests:
        key = str(request.partition_key)
        assert re.fullmatch(r"notices\|[a-z0-9][a-z0-9_-]{0,62}", key)
        assert project.run_request(request).success
        rows = project.connection.execute("SELECT tenant_id FROM notices WHERE payload_storage_status = 'in_storage'")
        newly = {tenant for (tenant,) in rows} - drained
        assert len(newly) == 1, f"{key} drained the rows of {newly}"
        drained |= newly
    assert set(project.statuses().values()) == {"in_storage"}
    project.assert_nothing_is_lost(before)


def test_buckets_hold_all_tenants_and_no_tenant_becomes_a_partition(make_project: MakeProject) -> None:
    project = make_project(offload={**EVERYTHING_IS_DUE, "max_runs_per_tick": 100}, tenant_buckets=3)
    for number in range(12):
        insert(project, f"tenant {number}", minutes_old=number)
    requests = project.tick().run_requests or []
    assert sorted(str(request.partition_key) for request in requests) == [
        "notices|bucket-0",
        "notices|bucket-1",
        "notices|bucket-2",
    ]
    assert sorted(project.instance.get_dynamic_partitions(TENANT_PARTITIONS)) == ["bucket-0", "bucket-1", "bucket-2"]
    for request in requests:
        assert project.run_request(request).success
    assert set(project.statuses().values()) == {"in_storage"}


def test_a_bucket_is_as_due_as_its_oldest_tenant_and_all_its_rows(make_project: MakeProject) -> None:
    project = make_project(offload={"max_age_minutes": 5, "min_pending": 1000}, tenant_buckets=1)
    insert(project, "young", rows=2)
    assert asked(project) == []
    insert(project, "old", minutes_old=6)
    (request,) = project.tick().run_requests or []
    assert str(request.run_key).startswith("notices|bucket-0|3@")


def test_rows_without_a_tenant_wait_and_do_not_break_the_tick(make_project: MakeProject) -> None:
    project = make_project(offload=EVERYTHING_IS_DUE)
    project.connection.execute("INSERT INTO notices (tenant_id, raw_payload) VALUES (NULL, '{}'), ('acme', '{}')")
    assert asked(project) == ["notices|acme"]
    assert project.instance.get_dynamic_partitions(TENANT_PARTITIONS) == ["acme"]
    assert project.run("offload_job").success
    assert sorted(map(str, project.statuses().values())) == ["in_storage", "pending_move"]


def test_a_database_that_is_down_fails_the_tick_in_one_line_without_the_password(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = closed_endpoint().rpartition(":")[2]
    url = f"postgresql://user:secret@127.0.0.1:{port}/database"
    write_config(tmp_path, monkeypatch, url, {"url": project.pipeline.store.url}, project.pipeline.config.tables)
    with pytest.raises(
        UserError, match=r"^cannot connect to PostgreSQL at 127\.0\.0\.1, database database: "
    ) as failed:
        project.tick()
    assert "\n" not in str(failed.value)
    assert "secret" not in str(failed.value)


def test_a_table_that_is_not_installed_is_named_and_fails_no_tick(project: Project) -> None:
    project.connection.execute("ALTER TABLE notices RENAME payload_storage_status TO other")
    assert (project.tick().skip_message or "").endswith("not installed: notices (run: offload install)")


def copied_alone(project: Project, tenant: str = "acme") -> Partition:
    """What a launch of `payload_objects` and its check leaves behind: copies, verified, all payloads in their rows."""
    with project.pipeline.connect() as connection:
        (partition,) = project.pipeline.partitions(connection, "notices", tenant)
    project.pipeline.copy(partition, "no release")
    assert project.pipeline.verify(partition, "no release").passed
    return partition


def test_what_payload_objects_alone_has_copied_is_released_by_the_run_that_the_sensor_asks_for(
    make_project: MakeProject,
) -> None:
    project = make_project(offload={"max_age_minutes": 5})
    insert(project, "acme", rows=3)
    before = project.hashes()
    project.run("pending_job")
    selected = project.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        partition_key=key_of("notices", "acme"), instance=project.instance, run_config=QUIET,
        asset_selection=[AssetKey("payload_objects")],
    )  # fmt: skip
    assert selected.success
    assert set(project.statuses().values()) == {"copied"}
    assert project.tick().skip_message == "0 rows to copy, 3 to verify and release; no partition is due"

    project.connection.execute("UPDATE notices SET payload_stored_at = payload_stored_at - interval '10 minutes'")
    (request,) = project.tick().run_requests or []
    assert project.run_request(request).success
    assert set(project.statuses().values()) == {"in_storage"}
    assert asked(project) == []
    project.assert_nothing_is_lost(before)


def test_with_released_payloads_the_selection_copies_verifies_and_releases(project: Project) -> None:
    insert(project, "acme", rows=3)
    project.run("pending_job")
    before = project.hashes()
    both = define_asset_job("both", AssetSelection.assets("payload_objects", "released_payloads"))
    chosen = Definitions.merge(project.definitions, Definitions(jobs=[both]))
    assert replace(project, definitions=chosen).run("both").success
    assert set(project.statuses().values()) == {"in_storage"}
    project.assert_nothing_is_lost(before)


def test_the_schedule_asks_for_copies_to_be_released(project: Project) -> None:
    insert(project, "acme")
    copied_alone(project)
    assert [request.partition_key for request in requests_now(project)] == ["notices|acme"]


def test_copies_that_are_to_stay_in_their_rows_are_not_asked_for(
    make_project: MakeProject, connection: psycopg.Connection
) -> None:
    table = make_table(connection, threshold_bytes=0, after_copy="keep")
    project = make_project([table], offload=EVERYTHING_IS_DUE)
    insert(project, "acme")
    copied_alone(project)
    assert asked(project) == []


def test_a_copy_that_release_has_given_up_is_not_asked_for_and_does_not_hide_the_others(
    make_project: MakeProject,
) -> None:
    project = make_project(offload=EVERYTHING_IS_DUE)
    insert(project, "acme", rows=2)
    acme = copied_alone(project)
    refused = Failure(("1",), None, PermanentError("no"))
    with project.pipeline.connect() as connection:
        record_failures(connection, acme, "release", [refused])
    (request,) = project.tick().run_requests or []
    assert str(request.run_key).startswith("notices|acme|1@")
    project.connection.execute("DELETE FROM notices WHERE id = 2")
    assert asked(project) == []


def test_a_copy_that_a_run_could_not_free_is_asked_for_once_in_a_window(make_project: MakeProject) -> None:
    project = make_project(offload=EVERYTHING_IS_DUE)
    insert(project, "acme")
    copied_alone(project)
    assert asked(project) == ["notices|acme"]
    with psycopg.connect(project.pipeline.database.url) as application:
        application.execute("SELECT FROM notices FOR UPDATE")
        (request,) = requests_now(project)
        assert project.run_request(request).success
        assert set(project.statuses().values()) == {"copied"}, "the application holds it"
        assert [again.run_key for again in requests_now(project)] == [request.run_key], "which Dagster runs but once"
    (later,) = requests_now(project, IN_A_WINDOW + ASK_AGAIN_SECONDS)
    assert later.run_key != request.run_key
    assert project.run_request(later).success
    assert set(project.statuses().values()) == {"in_storage"}


def test_looking_for_copies_to_release_reads_the_index_alone(project: Project) -> None:
    insert(project, "acme", rows=2000)
    copied_alone(project)
    project.connection.execute("VACUUM (ANALYZE) notices")
    with project.pipeline.connect() as connection:
        table = project.pipeline.table(connection, "notices")
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(
            sql.SQL("EXPLAIN {}").format(statement("offload/queue", "unreleased_by_tenant", table.names())),
            {"table": "notices", "max_attempts": 8, "release_delay": timedelta(0)},
        ).fetchall()
    assert any("Index Only Scan using notices_offload_copied" in line for (line,) in plan), plan


def test_copies_that_a_killed_run_left_unreleased_are_asked_for(project: Project) -> None:
    insert(project, "acme")
    with project.pipeline.connect() as connection:
        (acme,) = project.pipeline.partitions(connection, "notices", "acme")
    project.pipeline.copy(acme, "killed before verification")
    assert asked(project) == []
    project.connection.execute("UPDATE notices SET payload_stored_at = now() - interval '10 minutes'")
    assert asked(project) == ["notices|acme"]
