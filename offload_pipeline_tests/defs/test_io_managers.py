"""The IO manager stores what was read back, tells what it did, and gives hash-checked bytes to assets downstream."""

import base64
import gzip
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
from dagster import (
    AssetExecutionContext,
    AssetSelection,
    Definitions,
    ExecuteInProcessResult,
    MaterializeResult,
    asset,
    define_asset_job,
)

from offload_pipeline.defs.partition_keys import table_tenant_partitions
from offload_pipeline.offload.stored import StoredPayloads
from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.defs.conftest import MakeProject
from offload_pipeline_tests.defs.project import COPY_JOB, QUIET, Project, closed_endpoint, metadata_of, write_config
from offload_pipeline_tests.factories import large_payload, make_table, stored_files

PAYLOADS = [
    large_payload(20_000, seed=1),
    large_payload(300, seed=2),
    '{"exact": 1.10, "large": 123456789012345678901234567890}',
]


def attempts(result: ExecuteInProcessResult, step: str = "payload_objects") -> int:
    began = {"STEP_START", "STEP_RESTARTED"}
    return sum(event.event_type_value in began and event.step_key == step for event in result.all_events)


def failure_of(result: ExecuteInProcessResult, step: str = "payload_objects") -> str:
    """What the UI shows of the failed step: its error and, where it was wrapped, the cause."""
    (event,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE" and e.step_key == step]
    data = event.step_failure_data
    if data.user_failure_data is not None:
        return str(data.user_failure_data.description)
    error = data.error
    assert error is not None
    return (error.cause or error).message


def test_every_pending_payload_is_stored_as_gzip_of_its_canonical_bytes(project: Project, tmp_path: Path) -> None:
    project.insert(PAYLOADS)
    before = project.hashes()
    assert project.run(COPY_JOB).success
    assert set(project.statuses().values()) == {"copied"}
    assert project.hashes() == before, "the copier took the payload out of a row"
    stored = {
        hashlib.sha256(gzip.decompress((tmp_path / "objects" / path).read_bytes())).hexdigest()
        for path in stored_files(tmp_path / "objects")
    }
    assert stored == set(before.values())


def test_the_copy_says_how_much_it_moved_and_draws_the_sizes(project: Project) -> None:
    project.insert(PAYLOADS)
    payload_bytes = project.connection.execute("SELECT sum(octet_length(raw_payload::text)) FROM notices").fetchone()
    told = metadata_of(project.run(COPY_JOB), "payload_objects")
    assert payload_bytes is not None
    assert (told["rows"], told["rows_failed"], told["rows_left_for_next_pass"]) == (3, 0, 0)
    assert told["payload_bytes"] == payload_bytes[0]
    assert told["compression_ratio"] == round(told["payload_bytes"] / told["object_bytes"], 2)
    assert told["compression_ratio"] > 1
    assert told["megabytes_per_second"] > 0
    picture = re.fullmatch(r"!\[payload sizes\]\(data:image/png;base64,(.+)\)", told["payload_sizes"])
    assert picture is not None
    png = base64.b64decode(picture[1], validate=True)
    assert png.startswith(b"\x89PNG")
    assert len(png) < 30_000, "every event of every run holds one"


def test_an_empty_queue_is_a_copy_of_nothing_without_a_picture(project: Project) -> None:
    result = project.run(COPY_JOB)
    assert result.success
    told = metadata_of(result, "payload_objects")
    assert (told["rows"], told["object_bytes"], told["compression_ratio"]) == (0, 0, 0.0)
    assert "payload_sizes" not in told


def test_a_row_that_cannot_be_stored_is_counted_and_does_not_fail_the_others(
    make_project: MakeProject, connection: psycopg.Connection
) -> None:
    project = make_project([make_table(connection, threshold_bytes=0, max_object_bytes=1000)])
    project.insert(PAYLOADS)
    before = project.hashes()
    result = project.run("offload_job")
    assert result.success
    told = metadata_of(result, "payload_objects")
    assert (told["rows"], told["rows_failed"]) == (2, 1)
    assert sorted(map(str, project.statuses().values())) == ["in_storage", "in_storage", "pending_move"]
    project.assert_nothing_is_lost(before)


def with_reader(project: Project, per: str) -> None:
    """Adds `payload_reader`, which hashes what it is given: of one partition, or of all at once."""
    partitions = table_tenant_partitions(project.pipeline.config) if per == "partition" else None

    @asset(partitions_def=partitions)
    def payload_reader(
        context: AssetExecutionContext, payload_objects: Sequence[StoredPayloads]
    ) -> MaterializeResult[None]:
        hashes = [hashlib.sha256(payload).hexdigest() for reader in payload_objects for _, payload in reader]
        return MaterializeResult(metadata={"hashes": sorted(hashes)})

    job = define_asset_job("reader_job", AssetSelection.assets("payload_reader"))
    project.definitions = Definitions.merge(project.definitions, Definitions(assets=[payload_reader], jobs=[job]))


def test_an_asset_downstream_reads_its_partitions_payloads(project: Project) -> None:
    with_reader(project, "partition")
    keys = project.insert(PAYLOADS, tenant="acme")
    project.insert([large_payload(500, seed=9)], tenant="globex")
    before = project.hashes()
    for tenant in ("acme", "globex"):
        assert project.run("offload_job", tenant).success
    assert set(project.hashes().values()) == {None}
    read = metadata_of(project.run("reader_job", "acme"), "payload_reader")
    assert read["hashes"] == sorted(str(before[key]) for key in keys)


def test_an_asset_without_partitions_reads_the_payloads_of_all(project: Project) -> None:
    with_reader(project, "all")
    for tenant in ("acme", "globex"):
        project.insert([large_payload(500, seed=len(tenant))], tenant=tenant)
    before = project.hashes()
    for tenant in ("acme", "globex"):
        assert project.run("offload_job", tenant).success
    result = project.definitions.resolve_job_def("reader_job").execute_in_process(
        instance=project.instance, run_config=QUIET
    )
    assert metadata_of(result, "payload_reader")["hashes"] == sorted(map(str, before.values()))


def test_an_asset_downstream_never_gets_damaged_bytes(project: Project) -> None:
    with_reader(project, "partition")
    (key,) = project.insert([large_payload(500)])
    assert project.run("offload_job").success
    project.damage(key)
    result = project.run("reader_job")
    assert not result.success
    assert "is no whole gzip member" in failure_of(result, "payload_reader")


def test_a_store_that_is_down_is_tried_again_and_loses_nothing(
    make_project: MakeProject, seaweedfs: SeaweedFS, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(object_store={"url": s3_url, "endpoint": closed_endpoint()})
    project.insert(PAYLOADS)
    before = project.hashes()
    down = project.run("offload_job")
    assert not down.success
    assert attempts(down) == 2
    assert set(project.statuses().values()) == {"pending_move"}
    assert project.hashes() == before

    back = {"url": s3_url, "endpoint": seaweedfs.endpoint}
    url = str(project.pipeline.config.database.url)
    write_config(tmp_path, monkeypatch, url, back, project.pipeline.config.tables)
    assert project.run("offload_job").success
    assert set(project.statuses().values()) == {"in_storage"}


def test_a_bucket_that_does_not_exist_is_not_tried_again_and_loses_nothing(
    make_project: MakeProject, seaweedfs: SeaweedFS, s3_url: str
) -> None:
    wrong = s3_url.replace(seaweedfs.bucket, "other-bucket")
    project = make_project(object_store={"url": wrong, "endpoint": seaweedfs.endpoint})
    project.insert(PAYLOADS)
    before = project.hashes()
    result = project.run("offload_job")
    assert not result.success
    assert attempts(result) == 1
    said = failure_of(result)
    assert "no such bucket" in said
    assert "check the bucket's name" in said
    assert "\n" not in said
    assert set(project.statuses().values()) == {"pending_move"}
    assert project.hashes() == before


def test_a_role_without_rights_is_told_the_grant_and_not_tried_again(
    project: Project,
    connection: psycopg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    local_store_url: str,
) -> None:
    project.insert(PAYLOADS)
    role = f"worker_{connection.info.dbname}"
    connection.execute(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}".encode())
    try:
        url = str(project.pipeline.config.database.url).replace("postgres@", f"{role}@")
        write_config(tmp_path, monkeypatch, url, {"url": local_store_url}, project.pipeline.config.tables)
        result = project.run("offload_job")
        assert not result.success
        assert attempts(result, "pending_payloads") == 1
        assert f"; GRANT UPDATE ON public.notices TO {role}" in failure_of(result, "pending_payloads")
    finally:
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_a_table_that_is_not_installed_says_how_to_install_and_is_not_tried_again(
    project: Project, connection: psycopg.Connection
) -> None:
    project.insert(PAYLOADS)
    connection.execute("ALTER TABLE notices RENAME payload_storage_status TO other")
    result = project.run("offload_job")
    assert not result.success
    assert attempts(result, "pending_payloads") == 1
    assert failure_of(result, "pending_payloads").endswith("run: offload install --table notices")


def test_a_database_that_is_down_fails_the_run_in_one_line_without_the_password(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = closed_endpoint().rpartition(":")[2]
    url = f"postgresql://user:secret@127.0.0.1:{port}/database"
    write_config(tmp_path, monkeypatch, url, {"url": project.pipeline.store.url}, project.pipeline.config.tables)
    result = project.run(COPY_JOB)
    assert not result.success
    said = failure_of(result)
    assert "cannot connect to PostgreSQL at 127.0.0.1, database database: " in said
    assert "\n" not in said.strip()
    assert "secret" not in said
