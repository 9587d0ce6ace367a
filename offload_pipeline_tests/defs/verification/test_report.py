"""The report: numbers over time for every table, an alarm where failures are open, and the application's own checks."""

from pathlib import Path
from typing import Any

import psycopg
import pytest
from dagster import (
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    DefaultScheduleStatus,
    ExecuteInProcessResult,
    TableMetadataValue,
)

from offload_pipeline.config import load_config
from offload_pipeline.definitions import build_definitions
from offload_pipeline.defs.partition_keys import key_of
from offload_pipeline.verification import copies
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import QUIET, Project, evaluations, metadata_of
from offload_pipeline_tests.factories import large_payload, make_table

REPORT = "verification_report"
JOB = "verification_report_job"
CHECK_OP = "payload_objects_objects_are_sound"
PAYLOADS = [large_payload(1000, seed) for seed in range(6)]
LARGE = large_payload(9000)


def report(project: Project) -> ExecuteInProcessResult:
    return project.definitions.resolve_job_def(JOB).execute_in_process(
        instance=project.instance, run_config=QUIET, raise_on_error=False
    )


def records(value: object) -> list[Any]:
    assert isinstance(value, TableMetadataValue)
    return [record.data for record in value.records]


def write_smoke(folder: Path, **queries: str) -> None:
    (folder / "sql" / "smoke").mkdir(parents=True, exist_ok=True)
    for name, query in queries.items():
        (folder / "sql" / "smoke" / f"{name}.sql").write_text(query)


def test_every_table_has_numbers_that_plot_and_a_line_in_the_table(
    make_project: MakeProject, connection: psycopg.Connection
) -> None:
    tables = [
        make_table(connection, threshold_bytes=0),
        make_table(connection, name="mails", relation="mails", threshold_bytes=0),
    ]
    project = make_project(tables)
    project.insert(PAYLOADS)
    assert project.run("offload_job").success
    project.insert(PAYLOADS[:2])
    result = report(project)
    assert result.success
    told = metadata_of(result, REPORT)
    assert (told["tables"], told["notices/rows"], told["notices/rows_in_storage"]) == (2, 8, 6)
    assert (told["notices/rows_pending"], told["notices/offloaded_share_of_rows"]) == (2, 0.75)
    assert (told["notices/failures_open"], told["mails/rows"]) == (0, 0)
    assert "mails/offloaded_share_of_rows" not in told, "nothing is known of it yet"
    assert all(isinstance(told[name], int | float) for name in told if "/" in name)
    notices, mails = records(told["report"])
    assert (notices["table"], notices["rows"], notices["verified_through_oldest"] is None) == ("notices", 8, False)
    assert (mails["table"], mails["average_payload_bytes"], mails["open_failures"]) == ("mails", None, "")


def test_a_table_that_is_not_installed_is_left_out_of_the_report(
    project: Project, connection: psycopg.Connection
) -> None:
    connection.execute("DROP TABLE notices")
    make_table(connection, threshold_bytes=0)
    result = report(project)
    assert result.success
    assert metadata_of(result, REPORT)["tables"] == 0
    assert evaluations(result, "no_open_failures")[0].passed


def test_an_open_failure_fails_the_check_with_what_and_where_until_it_is_mended(
    make_project: MakeProject, connection: psycopg.Connection
) -> None:
    project = make_project([make_table(connection, threshold_bytes=0, max_object_bytes=5000)])
    (key,) = project.insert([LARGE])
    assert evaluations(report(project), "no_open_failures")[0].passed
    project.run("offload_job")
    result = report(project)
    assert result.success, "the report is made; its check is the alarm"
    (alarm,) = evaluations(result, "no_open_failures")
    assert (alarm.passed, alarm.severity, alarm.partition) == (False, AssetCheckSeverity.ERROR, None)
    assert alarm.metadata["failures_open"].value == 1
    (newest,) = records(alarm.metadata["newest"])
    assert (newest["table"], newest["tenant"], newest["primary_key"]) == ("notices", "acme", str(key))
    assert (newest["stage"], newest["given_up"]) == ("copy", True)
    assert str(newest["error"]).startswith("PayloadTooLargeError: ")
    assert metadata_of(result, REPORT)["notices/failures_given_up"] == 1

    connection.execute("DELETE FROM notices")
    (calm,) = evaluations(report(project), "no_open_failures")
    assert calm.passed
    assert "newest" not in calm.metadata


@pytest.fixture
def with_smoke(tmp_path: Path, make_project: MakeProject) -> Project:
    write_smoke(
        tmp_path,
        rows_are_there="-- All rows are still there.\n-- table: notices\nSELECT count(*) = 6 FROM notices",
        payloads_are_inline="SELECT bool_and(raw_payload IS NOT NULL) FROM notices",
        of_another_table="-- table: mails\nSELECT FALSE",
    )
    return make_project()


def test_every_query_beside_the_configuration_is_a_check_of_the_report(with_smoke: Project) -> None:
    with_smoke.insert(PAYLOADS)
    assert {found.check_name: found.passed for found in report(with_smoke).get_asset_check_evaluations()} == {
        "no_open_failures": True, "payloads_are_inline": True, "rows_are_there": True
    }  # fmt: skip
    assert with_smoke.run("offload_job").success
    result = report(with_smoke)
    (fails,) = evaluations(result, "payloads_are_inline")
    assert (fails.passed, fails.severity) == (False, AssetCheckSeverity.ERROR)
    assert fails.description == "its first value is False, not true"
    (still,) = evaluations(result, "rows_are_there")
    assert still.passed
    assert still.metadata["table"].value == "notices"


def test_checks_are_described_by_their_files(with_smoke: Project) -> None:
    graph = with_smoke.definitions.get_repository_def().asset_graph
    described = graph.get(AssetCheckKey(AssetKey(REPORT), "rows_are_there")).description
    assert described == "All rows are still there."
    assert graph.get(AssetCheckKey(AssetKey(REPORT), "payloads_are_inline")).description == "payloads_are_inline.sql"


def test_any_file_name_makes_definitions_that_load(tmp_path: Path, project: Project) -> None:
    write_smoke(tmp_path, **dict.fromkeys(("a-b", "a_b", "no_open_failures", "größer als 7", REPORT), "SELECT TRUE"))
    graph = build_definitions(load_config()).get_repository_def().asset_graph
    assert len([key for key in graph.asset_check_keys if key.asset_key == AssetKey(REPORT)]) == 6


def test_the_report_runs_by_itself_only_where_it_is_switched_on(project: Project) -> None:
    schedule = project.definitions.get_repository_def().get_schedule_def("every_hour")
    assert schedule.default_status == DefaultScheduleStatus.STOPPED
    assert schedule.job_name == JOB


def verify(project: Project, **config: object) -> ExecuteInProcessResult:
    run_config = {"ops": {CHECK_OP: {"config": config}}}
    return project.run_key("verification_job", key_of("notices", "acme"), run_config)


def test_a_launch_with_a_number_out_of_bounds_fails_in_one_line_and_is_not_tried_again(project: Project) -> None:
    assert project.run("pending_job").success, "the partition is known"
    result = verify(project, sample_rows=-1)
    assert not result.success
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    told = failed.step_failure_data.user_failure_data
    assert told is not None
    assert told.description == (
        "sample_rows: input should be greater than or equal to 0, not -1; launch it with another"
    )


def test_a_launch_may_choose_what_verification_reads(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PAGE_ROWS", 2)
    keys = project.insert(PAYLOADS)
    assert project.run("offload_job").success

    def read(result: ExecuteInProcessResult) -> object:
        return evaluations(result, "objects_are_sound")[0].metadata["rows_read_whole"].value

    assert read(verify(project, sample_rows=2)) == 2
    assert read(verify(project, full=True)) == 6
    kept = project.pipeline.store.get(project.object_key(keys[4]))
    project.damage(keys[4])
    assert not verify(project, full=True).success
    project.pipeline.store.put(project.object_key(keys[4]), kept)
    assert read(verify(project, full=True)) == 2, "it goes on where it was"
    assert read(verify(project, full=True)) == 6
