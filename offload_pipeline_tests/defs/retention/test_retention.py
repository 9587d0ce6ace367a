"""Retention in Dagster: reports until switched on, deletes when it is, and fails its check where something is wrong."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from dagster import DefaultScheduleStatus, ExecuteInProcessResult

from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import QUIET, Project, closed_endpoint, evaluations, metadata_of, write_config
from offload_pipeline_tests.factories import large_payload, make_table, stored_files

CHECK = "orphan_share_is_small"
PAYLOADS = [large_payload(500, seed) for seed in range(10)]
ON = {"delete": True, "max_orphan_share": 0.2}


def run(project: Project, job: str) -> ExecuteInProcessResult:
    return project.definitions.resolve_job_def(job).execute_in_process(
        instance=project.instance, run_config=QUIET, raise_on_error=False
    )


def folder_of(project: Project) -> Path:
    folder = project.pipeline.store._folder
    assert folder is not None
    return folder


def with_orphans(project: Project, orphans: int) -> list[Any]:
    """Ten stored payloads of two tenants, some of which were rewritten; everything in the store is old."""
    keys = project.insert(PAYLOADS[:5]) + project.insert(PAYLOADS[5:], tenant="globex")
    for tenant in ("acme", "globex"):
        assert project.run("offload_job", tenant).success
    for key in keys[:orphans]:
        project.connection.execute("UPDATE notices SET raw_payload = '{}' WHERE id = %s", (key,))
    for path in stored_files(folder_of(project)):
        moment = time.time() - 60 * 86_400
        os.utime(folder_of(project) / path, (moment, moment))
    return keys


def lines(table: Any) -> list[dict[str, Any]]:
    return [record.data for record in table.records]


def test_orphans_are_reported_and_not_deleted_until_that_is_switched_on(project: Project) -> None:
    with_orphans(project, 1)
    result = run(project, "gc_job")
    assert result.success
    told = metadata_of(result, "orphaned_objects")
    assert (told["deletes"], told["objects"], told["orphans"], told["deleted"]) == (False, 10, 1, 0)
    assert told["orphan_bytes"] > 0
    assert [(line["table"], line["orphans"]) for line in lines(told["tables"])] == [("notices", 1)]
    assert len(stored_files(folder_of(project))) == 10


def test_orphans_are_deleted_where_that_is_switched_on(make_project: MakeProject) -> None:
    project = make_project(retention=ON)
    with_orphans(project, 2)
    before = project.hashes()
    result = run(project, "gc_job")
    assert result.success
    assert metadata_of(result, "orphaned_objects")["deleted"] == 2
    assert evaluations(result, CHECK)[0].passed
    assert len(stored_files(folder_of(project))) == 8
    assert project.hashes() == before
    runs = project.connection.execute("SELECT run_id, rows FROM payload_offload_log WHERE action = 'gc'").fetchall()
    assert runs == [(result.run_id, 2)]


def test_a_table_that_looks_wrong_fails_the_check_and_keeps_its_objects(make_project: MakeProject) -> None:
    project = make_project(retention=ON)
    with_orphans(project, 3)
    result = run(project, "gc_job")
    assert result.success, "the asset has done its part"
    (evaluation,) = evaluations(result, CHECK)
    assert not evaluation.passed
    assert "notices: 30.0% of its objects look orphaned, more than 20.0%" in str(evaluation.metadata["reasons"].value)
    assert len(stored_files(folder_of(project))) == 10


def test_the_share_is_judged_before_deletion_is_switched_on_too(project: Project) -> None:
    with_orphans(project, 3)
    assert not evaluations(run(project, "gc_job"), CHECK)[0].passed


def test_a_store_that_does_not_answer_fails_the_run(
    make_project: MakeProject, seaweedfs: SeaweedFS, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(object_store={"url": s3_url, "endpoint": seaweedfs.endpoint}, retention=ON)
    config = project.pipeline.config
    down = {"url": s3_url, "endpoint": closed_endpoint()}
    write_config(tmp_path, monkeypatch, str(config.database.url), down, config.tables, retention=ON)
    assert not run(project, "gc_job").success


def grow_old(project: Project, keys: list[Any]) -> None:
    project.connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
    project.connection.execute(
        "UPDATE notices SET payload_stored_at = payload_stored_at - interval '91 days' WHERE id = ANY(%s)", (keys,)
    )
    project.connection.execute("ALTER TABLE notices ENABLE TRIGGER USER")


@pytest.mark.parametrize("deletes", [False, True])
def test_payloads_past_their_retention_are_given_up_only_where_that_is_switched_on(
    make_project: MakeProject, connection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletes: bool
) -> None:
    project = make_project(retention={"delete": deletes})
    keys = with_orphans(project, 0)
    grow_old(project, keys[:7])
    text = (tmp_path / "offload.yaml").read_text()
    (tmp_path / "offload.yaml").write_text(text.replace("- created_at", "- object_retention: 90 days\n  created_at"))

    result = run(project, "expiry_job")

    assert result.success
    told = metadata_of(result, "expired_payloads")
    assert (told["rows_due"], told["rows_expired"], told["objects_deleted"]) == (7, 7 if deletes else 0, 0)
    (line,) = lines(told["tables"])
    assert (line["table"], line["tenants"], line["rows due"]) == ("notices", 2, 7)
    expired = {key for key, status in project.statuses().items() if status == "expired"}
    assert expired == (set(keys[:7]) if deletes else set())
    assert len(stored_files(folder_of(project))) == 10
    if deletes:
        project.connection.execute("UPDATE payload_offload_expired SET expired_at = expired_at - interval '31 days'")
        again = metadata_of(run(project, "expiry_job"), "expired_payloads")
        assert (again["rows_due"], again["objects_deleted"]) == (0, 7)
        assert len(stored_files(folder_of(project))) == 3


def test_a_table_that_is_not_installed_stops_neither(
    project: Project, connection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_orphans(project, 1)
    config, mails = project.pipeline.config, make_table(connection, name="mails", relation="public.mails")
    store = {"url": project.pipeline.store.url}
    write_config(tmp_path, monkeypatch, str(config.database.url), store, [*config.tables, mails])
    assert metadata_of(run(project, "gc_job"), "orphaned_objects")["orphans"] == 1
    assert run(project, "expiry_job").success


def test_the_schedules_run_daily_and_are_off_until_switched_on(project: Project) -> None:
    repository = project.definitions.get_repository_def()
    for name, job in (("daily_gc", "gc_job"), ("daily_expiry", "expiry_job")):
        schedule = repository.get_schedule_def(name)
        assert schedule.default_status == DefaultScheduleStatus.STOPPED
        assert schedule.job_name == job
        assert str(schedule.cron_schedule).endswith(" * * *")


def test_both_assets_stand_without_partitions(project: Project) -> None:
    repository = project.definitions.get_repository_def()
    for job in ("gc_job", "expiry_job"):
        assert repository.get_job(job).partitions_def is None
