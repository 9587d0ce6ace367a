"""`restore_job`: one partition or one row back, and nothing that a materialization could set off by accident."""

from typing import Any

import pytest
from dagster import AssetKey, DagsterUnknownPartitionError, ExecuteInProcessResult, MultiPartitionsDefinition
from dagster._core.definitions.metadata import MetadataValue  # what output metadata holds

from offload_pipeline.definitions import build_definitions
from offload_pipeline.defs.partition_keys import TENANT_PARTITIONS, key_of
from offload_pipeline.offload.tenants import partition_key
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import Project
from offload_pipeline_tests.factories import large_payload

JOB = "restore_job"
STEP = "restore_payloads"
PAYLOADS = [large_payload(5_000, seed=1), large_payload(700, seed=2), '{"exact": 1.10}']


def offloaded(project: Project, **tenants: int) -> dict[str, list[Any]]:
    keys = {tenant: project.insert(PAYLOADS[:rows], tenant=tenant) for tenant, rows in tenants.items()}
    for tenant in tenants:
        assert project.run("offload_job", tenant).success
    assert set(project.statuses().values()) == {"in_storage"}
    return keys


def one_row(key: Any) -> dict[str, Any]:
    return {"ops": {STEP: {"config": {"primary_key": str(key)}}}}


def metadata_of(result: ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = [event for event in result.all_events if event.is_successful_output and event.step_key == STEP]
    found: dict[str, MetadataValue] = dict(event.step_output_data.metadata)
    return {name: value.value for name, value in found.items()}


def failure_of(result: ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    error = event.step_failure_data.error
    assert error is not None
    return error.to_string()


def test_the_job_restores_one_partition_and_leaves_the_others(project: Project) -> None:
    keys = offloaded(project, acme=3, globex=2)
    result = project.run(JOB, "acme")
    assert result.success
    found = project.statuses()
    assert {found[key] for key in keys["acme"]} == {"inline"}
    assert {found[key] for key in keys["globex"]} == {"in_storage"}
    told = metadata_of(result)
    assert (told["rows"], told["rows_failed"], told["payload_bytes"]) == (3, 0, sum(map(len, PAYLOADS)))


def test_payloads_come_back_as_they_were_and_the_offload_job_leaves_them_there(project: Project) -> None:
    project.insert(PAYLOADS)
    before = project.hashes()
    for job in ("offload_job", JOB, "offload_job", "release_job"):
        assert project.run(job).success
    assert set(project.statuses().values()) == {"inline"}
    assert project.hashes() == before


def test_a_launch_of_the_copy_may_move_restored_rows_again(project: Project) -> None:
    project.insert(PAYLOADS)
    for job in ("offload_job", JOB):
        project.run(job)
    chosen = {"ops": {"payload_objects": {"config": {"include_restored": True}}}}
    assert project.run_key("offload_job", key_of("notices", "acme"), chosen).success
    assert set(project.statuses().values()) == {"in_storage"}


def test_a_launch_may_restore_one_row(project: Project) -> None:
    keys = offloaded(project, acme=3)["acme"]
    result = project.run_key(JOB, key_of("notices", "acme"), one_row(keys[1]))
    assert result.success
    assert [key for key, status in project.statuses().items() if status == "inline"] == [keys[1]]


def test_a_row_of_another_partition_is_not_restored(project: Project) -> None:
    keys = offloaded(project, acme=1, globex=1)
    result = project.run_key(JOB, key_of("notices", "acme"), one_row(keys["globex"][0]))
    assert not result.success
    assert "is one of tenant 'globex'; launch that partition" in failure_of(result)
    assert set(project.statuses().values()) == {"in_storage"}


def test_a_damaged_object_is_told_and_does_not_fail_the_run(project: Project) -> None:
    keys = offloaded(project, acme=3)["acme"]
    project.damage(keys[0])
    result = project.run(JOB)
    assert result.success
    told = metadata_of(result)
    assert (told["rows"], told["rows_failed"]) == (2, 1)
    assert f"`{keys[0]}`" in told["problems"]
    assert project.statuses()[keys[0]] == "in_storage"


def test_objects_in_another_store_fail_the_run_without_another_attempt(project: Project) -> None:
    offloaded(project, acme=1)
    project.connection.execute("UPDATE payload_offload_state SET store_url = 's3://another-bucket'")
    result = project.run(JOB)
    assert not result.success
    assert "its objects are in s3://another-bucket" in failure_of(result)
    assert not [event for event in result.all_events if event.is_step_up_for_retry]


def test_a_bucket_of_tenants_is_restored_as_one(make_project: MakeProject) -> None:
    project = make_project(tenant_buckets=2)
    tenants = [f"tenant-{number}" for number in range(6)]
    for tenant in tenants:
        project.insert(PAYLOADS[:1], tenant=tenant)
    for bucket in ("bucket-0", "bucket-1"):
        project.run("offload_job", bucket)
    assert project.run(JOB, "bucket-0").success
    restored = project.connection.execute("SELECT tenant_id FROM notices WHERE payload_storage_status = 'inline'")
    assert {tenant for (tenant,) in restored} == {one for one in tenants if partition_key(one, 2) == "bucket-0"}


def test_the_job_has_the_partitions_of_the_assets_and_is_no_asset(project: Project) -> None:
    repository = build_definitions(project.pipeline.config).get_repository_def()
    job = repository.get_job(JOB)
    assert isinstance(job.partitions_def, MultiPartitionsDefinition)
    assert job.partitions_def == repository.asset_graph.get(AssetKey("payload_objects")).partitions_def
    assert job.description
    assert not list(job.asset_layer.executable_asset_keys)


def test_a_partition_that_dagster_does_not_know_is_refused(project: Project) -> None:
    offloaded(project, acme=1)
    project.instance.add_dynamic_partitions(TENANT_PARTITIONS, ["acme"])
    with pytest.raises(DagsterUnknownPartitionError):
        project.run_key(JOB, key_of("notices", "unknown"))
    assert project.run(JOB, "nobody").success, "a tenant without rows is a run without work"
