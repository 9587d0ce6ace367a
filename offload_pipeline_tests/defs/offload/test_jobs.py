"""The jobs on a partition, on a bucket of tenants, and where there is nothing to do."""

import psycopg
import pytest
from dagster import AssetCheckSeverity, DagsterUnknownPartitionError

from offload_pipeline.defs.partition_keys import TENANT_PARTITIONS, key_of
from offload_pipeline.offload.tenants import partition_key
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import COPY_JOB, Project, evaluations, metadata_of
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table

JOBS = ("offload_job", "release_job", "verification_job", "pending_job")
PAYLOADS = [large_payload(5_000, seed=1), large_payload(700, seed=2), '{"exact": 1.10}']


def test_the_offload_job_moves_one_partition_and_leaves_the_others(project: Project) -> None:
    moved, left = project.insert(PAYLOADS, tenant="acme"), project.insert(PAYLOADS, tenant="globex")
    before = project.hashes()
    result = project.run("offload_job", "acme")
    assert result.success
    found = project.statuses()
    assert {found[key] for key in moved} == {"in_storage"}
    assert {found[key] for key in left} == {"pending_move"}
    assert metadata_of(result, "pending_payloads")["rows"] == 3
    assert metadata_of(result, "payload_objects")["rows"] == 3
    assert metadata_of(result, "released_payloads")["rows"] == 3
    project.assert_nothing_is_lost(before)


def test_the_offload_job_of_one_table_leaves_the_other_table(
    make_project: MakeProject, connection: psycopg.Connection
) -> None:
    tables = [
        make_table(connection, threshold_bytes=0),
        make_table(connection, name="mails", relation="public.mails", threshold_bytes=0),
    ]
    project = make_project(tables)
    for name in ("notices", "mails"):
        project.insert(PAYLOADS, table=name)
    assert project.run("offload_job", table="mails").success
    assert set(project.statuses("mails").values()) == {"in_storage"}
    assert set(project.statuses("notices").values()) == {"pending_move"}


def test_materializations_are_recorded_under_their_partition(project: Project) -> None:
    project.insert(PAYLOADS)
    result = project.run("offload_job")
    recorded = [
        (str(e.asset_key.to_user_string()), e.partition)
        for e in result.get_asset_materialization_events()
        if e.asset_key
    ]
    assert sorted(recorded) == [
        ("payload_objects", "notices|acme"), ("pending_payloads", "notices|acme"), ("released_payloads", "notices|acme")
    ]  # fmt: skip


def test_a_second_run_finds_nothing_to_do(project: Project) -> None:
    project.insert(PAYLOADS)
    assert project.run("offload_job").success
    before = project.statuses()
    again = project.run("offload_job")
    assert again.success
    assert metadata_of(again, "payload_objects")["rows"] == 0
    assert metadata_of(again, "released_payloads")["rows"] == 0
    assert project.statuses() == before


def test_the_pending_job_only_measures(project: Project) -> None:
    project.insert(PAYLOADS)
    project.insert(PAYLOADS, tenant="globex")
    told = metadata_of(project.run("pending_job"), "pending_payloads")
    assert told["rows"] == 3
    assert told["payload_bytes"] == sum(len(payload) for payload in PAYLOADS)
    assert 0 <= told["oldest_age_seconds"] < 600
    assert set(project.statuses().values()) == {"pending_move"}


@pytest.mark.parametrize(("rows", "passed"), [(2, True), (3, False)])
def test_a_long_queue_warns_and_does_not_fail_the_run(make_project: MakeProject, rows: int, passed: bool) -> None:
    project = make_project(offload={"warn_pending": 2})
    project.insert(PAYLOADS[:rows])
    result = project.run("offload_job")
    assert result.success
    (evaluation,) = evaluations(result, "queue_is_short")
    assert evaluation.passed is passed
    assert evaluation.severity == AssetCheckSeverity.WARN
    assert evaluation.partition == "notices|acme"
    assert evaluation.metadata["rows"].value == rows
    assert set(project.statuses().values()) == {"in_storage"}


def test_a_bucket_holds_several_tenants_and_no_others(make_project: MakeProject) -> None:
    project = make_project(tenant_buckets=2)
    tenants = [f"tenant-{number}" for number in range(6)]
    for tenant in tenants:
        project.insert(PAYLOADS[:1], tenant=tenant)
    before = project.hashes()
    inside = {tenant for tenant in tenants if partition_key(tenant, 2) == "bucket-0"}
    assert 1 < len(inside) < len(tenants), "choose other tenants"
    result = project.run("offload_job", "bucket-0")
    assert result.success
    assert metadata_of(result, "payload_objects")["rows"] == len(inside)
    moved = project.connection.execute("SELECT tenant_id FROM notices WHERE payload_storage_status = 'in_storage'")
    assert {tenant for (tenant,) in moved} == inside
    project.assert_nothing_is_lost(before)


def test_a_table_with_one_constant_tenant_is_one_partition(
    make_project: MakeProject, connection: psycopg.Connection
) -> None:
    table = make_table(connection, tenant_column=None, tenant={"value": "civant_default"}, threshold_bytes=0)
    project = make_project([table])
    project.insert(PAYLOADS)
    before = project.hashes()
    assert project.run("offload_job", "civant_default").success
    assert set(project.statuses().values()) == {"in_storage"}
    project.assert_nothing_is_lost(before)


@pytest.mark.parametrize("job", JOBS)
def test_a_tenant_without_rows_is_a_run_without_work(project: Project, job: str) -> None:
    project.insert(PAYLOADS)
    result = project.run(job, "nobody")
    assert result.success
    for event in result.get_asset_materialization_events():
        assert event.materialization.metadata["rows"].value == 0
    assert set(project.statuses().values()) == {"pending_move"}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(("table", "tenant"), [("notices", "unknown"), ("unknown", "acme")])
def test_a_partition_that_dagster_does_not_know_is_refused(project: Project, job: str, table: str, tenant: str) -> None:
    project.insert(PAYLOADS)
    project.instance.add_dynamic_partitions(TENANT_PARTITIONS, ["acme"])
    with pytest.raises(DagsterUnknownPartitionError, match=rf"{table}\|{tenant}"):
        project.run_key(job, key_of(table, tenant))
    assert set(project.statuses().values()) == {"pending_move"}


def older_than_the_trigger(project: Project) -> None:
    """Rows as they were before installation: without a status."""
    connection, table = project.connection, project.table()
    connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
    insert_payloads(connection, table, PAYLOADS, payload_storage_status=None)
    connection.execute("ALTER TABLE notices ENABLE TRIGGER USER")


def test_rows_older_than_the_trigger_are_moved_by_the_same_job(project: Project) -> None:
    older_than_the_trigger(project)
    before = project.hashes()
    result = project.run("offload_job")
    assert result.success
    assert metadata_of(result, "payload_objects")["rows"] == 3
    assert set(project.statuses().values()) == {"in_storage"}
    project.assert_nothing_is_lost(before)


def test_a_launch_may_leave_out_the_rows_older_than_the_trigger(project: Project) -> None:
    older_than_the_trigger(project)
    before = project.statuses()
    project.instance.add_dynamic_partitions(TENANT_PARTITIONS, ["acme"])
    chosen = {"ops": {"payload_objects": {"config": {"unseen": False}}}}
    result = project.run_key(COPY_JOB, key_of("notices", "acme"), chosen)
    assert metadata_of(result, "payload_objects")["rows"] == 0
    assert project.statuses() == before
