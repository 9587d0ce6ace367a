"""The gate: what is damaged between copy and release is not freed, in the run or outside it, and heals by itself."""

from collections.abc import Callable
from pathlib import Path

import pytest

from offload_pipeline.defs.partition_keys import key_of
from offload_pipeline.offload.tenants import partition_key
from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import (
    COPY_JOB,
    Project,
    closed_endpoint,
    evaluations,
    metadata_of,
    write_config,
)
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.stores import altered, truncated

CHECK = "objects_are_sound"
PAYLOADS = [large_payload(5_000, seed=1), large_payload(700, seed=2), '{"exact": 1.10}']


def remove(project: Project, key: int) -> None:
    project.pipeline.store.delete(project.object_key(key))


def change(project: Project, key: int, changed: Callable[[bytes], bytes]) -> None:
    store, object_key = project.pipeline.store, project.object_key(key)
    store.put(object_key, changed(store.get(object_key)))


def copied(project: Project, tenant: str = "acme") -> list[int]:
    """Rows whose copies nobody has looked at."""
    keys = project.insert(PAYLOADS, tenant=tenant)
    assert project.run(COPY_JOB, tenant).success
    return keys


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(remove, "no object acme/notices/1/", id="deleted"),
        pytest.param(lambda project, key: change(project, key, truncated), "holds", id="truncated"),
        pytest.param(lambda project, key: change(project, key, altered), "acme/notices/1/", id="one bit altered"),
        pytest.param(lambda project, key: change(project, key, lambda _: b""), "truncated", id="emptied"),
    ],
)
def test_a_damaged_object_fails_the_check_blocks_release_and_is_copied_again(
    project: Project, damage: Callable[[Project, int], None], said: str
) -> None:
    keys = copied(project)
    before = project.hashes()
    damage(project, keys[0])

    blocked = project.run("offload_job")
    assert not blocked.success
    (evaluation,) = evaluations(blocked, CHECK)
    assert not evaluation.passed
    assert evaluation.partition == "notices|acme"
    assert evaluation.metadata["rows_damaged"].value == 1
    assert said in str(evaluation.metadata["problems"].value)
    began = {event.step_key for event in blocked.all_events if event.event_type_value == "STEP_START"}
    assert "released_payloads" not in began
    assert project.hashes() == before, "a payload was freed past the gate"
    assert [project.statuses()[key] for key in keys] == ["pending_move", "copied", "copied"]

    healed = project.run("offload_job")
    assert healed.success
    assert metadata_of(healed, "payload_objects")["rows"] == 1
    assert metadata_of(healed, "released_payloads")["rows"] == 3
    assert evaluations(healed, CHECK)[0].passed
    assert set(project.statuses().values()) == {"in_storage"}
    project.assert_nothing_is_lost(before)


def test_a_passed_check_says_what_it_looked_at(project: Project) -> None:
    project.insert(PAYLOADS)
    (evaluation,) = evaluations(project.run("offload_job"), CHECK)
    told = {name: value.value for name, value in evaluation.metadata.items()}
    assert evaluation.passed
    assert evaluation.blocking
    assert (told["rows_checked"], told["rows_read_whole"], told["rows_damaged"], told["rows_unanswered"]) == (
        3,
        3,
        0,
        0,
    )
    assert told["payload_bytes_read"] == sum(len(payload) for payload in PAYLOADS)
    assert "problems" not in told


def test_release_launched_alone_frees_nothing_that_was_not_verified(project: Project) -> None:
    copied(project)
    before = project.hashes()
    result = project.run("release_job")
    assert result.success
    assert metadata_of(result, "released_payloads")["rows"] == 0
    assert project.hashes() == before


def test_release_launched_alone_frees_nothing_after_a_failed_check(project: Project) -> None:
    keys = copied(project)
    before = project.hashes()
    remove(project, keys[0])
    assert not project.run("verification_job").success
    assert metadata_of(project.run("release_job"), "released_payloads")["rows"] == 0
    assert project.hashes() == before


def test_verification_launched_alone_opens_the_gate_for_a_release_launched_alone(project: Project) -> None:
    copied(project)
    before = project.hashes()
    verified = project.run("verification_job")
    assert verified.success
    assert [found.partition for found in evaluations(verified, CHECK)] == ["notices|acme"]
    assert project.hashes() == before, "verification freed a payload"
    released = metadata_of(project.run("release_job"), "released_payloads")
    assert (released["rows"], released["rows_failed"]) == (3, 0)
    assert released["payload_bytes_freed"] == sum(len(payload) for payload in PAYLOADS)
    project.assert_nothing_is_lost(before)


def test_one_damaged_tenant_stops_its_bucket_but_not_the_other_tenants_gate(make_project: MakeProject) -> None:
    project = make_project(tenant_buckets=1)
    bucket = partition_key("acme", 1)
    damaged, sound = project.insert(PAYLOADS, tenant="acme"), project.insert(PAYLOADS, tenant="globex")
    assert project.run(COPY_JOB, bucket).success
    remove(project, damaged[0])
    assert not project.run("offload_job", bucket).success
    assert set(project.statuses().values()) == {"pending_move", "copied"}

    assert project.run("release_job", bucket).success
    found = project.statuses()
    assert {found[key] for key in sound} == {"in_storage"}
    assert {found[key] for key in damaged} == {"pending_move", "copied"}


def test_a_store_that_does_not_answer_fails_the_check_and_condemns_no_row(
    make_project: MakeProject, seaweedfs: SeaweedFS, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(object_store={"url": s3_url, "endpoint": seaweedfs.endpoint})
    project.insert(['{"a": 1}'])
    assert project.run(COPY_JOB).success
    config = project.pipeline.config
    down = {"url": s3_url, "endpoint": closed_endpoint()}
    write_config(tmp_path, monkeypatch, str(config.database.url), down, config.tables)
    result = project.run("verification_job")
    (evaluation,) = evaluations(result, CHECK)
    assert not evaluation.passed
    assert (evaluation.metadata["rows_damaged"].value, evaluation.metadata["rows_unanswered"].value) == (0, 1)
    assert set(project.statuses().values()) == {"copied"}


def test_an_unknown_tenant_verifies_nothing(project: Project) -> None:
    (evaluation,) = evaluations(project.run("verification_job", "nobody"), CHECK)
    assert evaluation.passed
    assert evaluation.partition == str(key_of("notices", "nobody"))
    assert evaluation.metadata["rows_checked"].value == 0
