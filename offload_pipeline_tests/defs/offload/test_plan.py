"""The asset `offload_plan`: a forecast of every table, with figures that plot and a picture."""

import base64
import re
import struct
from typing import Any

import psycopg
from dagster import AssetSelection, Definitions, ExecuteInProcessResult, TableMetadataValue, define_asset_job

from offload_pipeline.definitions import build_definitions
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import QUIET, Project
from offload_pipeline_tests.factories import large_payload, make_table

PLAN = define_asset_job("plan_alone", AssetSelection.assets("offload_plan"))


def materialize(project: Project) -> ExecuteInProcessResult:
    definitions = Definitions.merge(build_definitions(project.pipeline.config), Definitions(jobs=[PLAN]))
    job = definitions.resolve_job_def("plan_alone")
    return job.execute_in_process(instance=project.instance, run_config=QUIET, raise_on_error=False)


def told(result: ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.get_asset_materialization_events()
    return dict(event.materialization.metadata)


def test_all_tables_are_forecast_at_once_the_heaviest_first(
    make_project: MakeProject, connection: psycopg.Connection
) -> None:
    tables = [
        make_table(connection, threshold_bytes=0),
        make_table(connection, name="mails", relation="public.mails", threshold_bytes=0),
    ]
    project = make_project(tables)
    project.insert([large_payload(1000)])
    project.insert([large_payload(9000, seed) for seed in range(3)], table="mails")
    result = materialize(project)
    assert result.success
    metadata = told(result)
    payload_bytes = len(large_payload(1000)) + 3 * len(large_payload(9000))
    assert metadata["rows_to_move"].value == 4
    assert metadata["payload_bytes"].value == payload_bytes
    assert 0 < metadata["object_bytes"].value < payload_bytes
    assert metadata["database_bytes_freed"].value > 0
    lines = metadata["tables"]
    assert isinstance(lines, TableMetadataValue)
    assert [line.data["table"] for line in lines.records] == ["mails", "notices"]
    assert [line.data["rows to move"] for line in lines.records] == ["3", "1"]
    assert set(project.statuses().values()) == {"pending_move"}, "nothing was moved"


def test_the_picture_is_a_small_png(project: Project) -> None:
    project.insert([large_payload(5000)])
    markdown = told(materialize(project))["in_the_database"].value
    found = re.fullmatch(r"!\[[^]]*\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found is not None
    png = base64.b64decode(found[1])
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert 200 < width < 800
    assert 50 < height < 800
    assert len(png) < 30_000


def test_with_nothing_to_move_there_is_a_table_and_no_picture(project: Project) -> None:
    metadata = told(materialize(project))
    assert metadata["rows_to_move"].value == metadata["database_bytes_freed"].value == 0
    assert "in_the_database" not in metadata
    assert len(metadata["tables"].records) == 1


def test_a_table_that_is_gone_fails_the_run_at_once_with_the_mend(project: Project) -> None:
    project.connection.execute("DROP TABLE notices")
    result = materialize(project)
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert "no table public.notices" in str(failed.step_failure_data.user_failure_data)
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
