"""The schedule asks for whatever waits, however young."""

from dagster import build_schedule_context
from dagster._core.definitions.schedule_definition import ScheduleExecutionData  # what a tick gives the daemon

from offload_pipeline.defs.partitions import TENANT_PARTITIONS
from offload_pipeline.defs.resources import PipelineResource
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import Project


def evaluate(project: Project) -> ScheduleExecutionData:
    repository = project.definitions.get_repository_def()
    resources = {"pipeline": PipelineResource()}
    with build_schedule_context(instance=project.instance, repository_def=repository, resources=resources) as context:
        return repository.get_schedule_def("every_five_minutes").evaluate_tick(context)


def keys(data: ScheduleExecutionData) -> list[str]:
    return [str(request.partition_key) for request in data.run_requests or []]


def test_everything_pending_is_asked_for_and_its_tenants_become_known(project: Project) -> None:
    project.insert(["{}"], tenant="acme")
    project.insert(["{}"], tenant="Zoë, Inc.")
    data = evaluate(project)
    assert sorted(keys(data)) == sorted(f"notices|{key}" for key in project.instance.get_dynamic_partitions(TENANT_PARTITIONS))
    assert len(keys(data)) == 2
    for key in keys(data):
        assert project.run("offload_job", key.partition("|")[2]).success
    assert set(project.statuses().values()) == {"in_storage"}


def test_an_empty_queue_asks_for_nothing(project: Project) -> None:
    assert keys(evaluate(project)) == []


def test_no_more_is_asked_for_than_a_tick_may(make_project: MakeProject) -> None:
    project = make_project(offload={"max_runs_per_tick": 2})
    for number in range(4):
        project.insert(["{}"], tenant=f"tenant-{number}")
    assert len(keys(evaluate(project))) == 2
