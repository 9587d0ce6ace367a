"""The schedule asks for whatever waits, however young."""

from collections.abc import Iterator

import pytest
from dagster import build_schedule_context, instance_for_test
from dagster._core.definitions.schedule_definition import ScheduleExecutionData  # what a tick gives the daemon

from offload_pipeline.defs.partition_keys import TENANT_PARTITIONS
from offload_pipeline.defs.resources import PipelineResource
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import Project


@pytest.fixture
def project(make_project: MakeProject) -> Iterator[Project]:
    """At most two runs a tick; the instance is in files, since a schedule opens it by reference."""
    project = make_project(offload={"max_runs_per_tick": 2})
    with instance_for_test() as project.instance:
        yield project


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
    assert len(keys(data)) == 2
    assert set(keys(data)) == {f"notices|{key}" for key in project.instance.get_dynamic_partitions(TENANT_PARTITIONS)}
    for request in data.run_requests or []:
        assert project.run_request(request).success
    assert set(project.statuses().values()) == {"in_storage"}


def test_an_empty_queue_asks_for_nothing(project: Project) -> None:
    assert keys(evaluate(project)) == []


def test_no_more_is_asked_for_than_a_tick_may(project: Project) -> None:
    for number in range(3):
        project.insert(["{}"], tenant=f"tenant-{number}")
    assert len(keys(evaluate(project))) == 2
