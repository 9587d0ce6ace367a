"""`offload doctor`: each thing that can be wrong is found, named and given its mend."""

from pathlib import Path

import psycopg
import pytest

from offload_pipeline.config import TableConfig
from offload_pipeline_tests.cli.command import Answer, Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table


def result(answer: Answer, name: str) -> tuple[str, str | None]:
    """Result and mend of one check."""
    (found,) = [check for check in answer.document["checks"] if check["name"] == name]
    return found["result"], found["mend"]


def test_a_sound_installation_has_only_ticks_and_warnings(offload: Command, notices: TableConfig) -> None:
    answer = offload("doctor")
    assert answer.code == 0
    assert all(line[0] in "✓!" for line in answer.lines)
    assert str(offload.config_path) in answer.lines[0]
    assert "version 18" in answer.lines[1]


def test_a_tenant_column_that_may_be_null_is_a_warning(offload: Command, notices: TableConfig) -> None:
    answer = offload("doctor", "--json")
    assert answer.document["sound"] is True
    assert result(answer, "table notices, tenant") == (
        "warning",
        'ALTER TABLE "public"."notices" ALTER COLUMN "tenant_id" SET NOT NULL',
    )


def test_what_is_not_installed_is_found(offload: Command, connection: psycopg.Connection) -> None:
    offload.configure(make_table(connection))
    answer = offload("doctor", "--json")
    assert answer.code == 1
    assert result(answer, "schema public") == ("failed", "run: offload install")
    assert result(answer, "table notices")[0] == "failed"
    assert result(answer, "object store")[0] == "passed"


def test_rows_that_cannot_be_told_apart_are_found_before_and_after_install(
    offload: Command, connection: psycopg.Connection
) -> None:
    offload.configure(make_table(connection))
    name = "table notices, primary key"
    assert result(offload("doctor", "--json"), name) == ("passed", None)
    offload("install")
    connection.execute("ALTER TABLE notices DROP CONSTRAINT notices_pkey")
    answer = offload("doctor", "--json")
    assert answer.code == 1
    assert result(answer, name)[0] == "failed"
    connection.execute("ALTER TABLE notices ADD PRIMARY KEY (tenant_id)")
    assert (
        '✗ table notices, primary key: notices: primary_key [id] is not unique in "public"."notices"; write [tenant_id]'
        in offload("doctor").lines
    )


def test_what_goes_by_our_names_and_is_not_ours_is_found(offload: Command, connection: psycopg.Connection) -> None:
    offload.configure(make_table(connection))
    connection.execute("CREATE TABLE archival_log (id bigint, what text)")
    answer = offload("doctor", "--json")
    assert result(answer, "schema public")[0] == "failed"
    (check,) = [check for check in answer.document["checks"] if check["name"] == "schema public"]
    refused = offload("install")
    assert refused.code == 2
    assert refused.complaint == f"offload: {check['detail']}"


def test_a_disabled_trigger_is_found_and_its_mend_works(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    connection.execute("ALTER TABLE notices DISABLE TRIGGER zz_payload_offload_insert")
    answer = offload("doctor", "--json")
    assert answer.code == 1
    outcome, mend = result(answer, "table notices, trigger")
    assert (outcome, mend) == ("failed", "run: offload install --table notices")
    assert offload("install", "--table", "notices").code == 0
    assert offload("doctor").code == 0


def test_a_missing_function_of_the_only_table_is_found(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    connection.execute("DROP FUNCTION move_payload_to_storage(bigint, text)")
    assert result(offload("doctor", "--json"), "table notices, installed") == (
        "failed", "run: offload install --table notices",
    )  # fmt: skip
    offload("install")
    assert offload("doctor").code == 0


def test_a_missing_trigger_and_a_missing_index_are_found(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    connection.execute("DROP TRIGGER zz_payload_offload_update ON notices")
    connection.execute("DROP INDEX notices_offload_copied")
    answer = offload("doctor", "--json")
    mend = "run: offload install --table notices"
    assert result(answer, "table notices, trigger") == ("failed", mend)
    assert result(answer, "table notices, indexes") == ("failed", mend)
    assert offload("install", "--table", "notices").code == 0
    assert offload("doctor").code == 0


def test_an_invalid_index_is_found(offload: Command, connection: psycopg.Connection, notices: TableConfig) -> None:
    connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'notices_offload_pending'::regclass")
    assert (
        "✗ table notices, indexes: pending is invalid; run: offload install --table notices" in offload("doctor").lines
    )


def test_a_threshold_changed_since_install_is_found(offload: Command, notices: TableConfig) -> None:
    offload.configure(notices.model_copy(update={"threshold_bytes": 4000}))
    answer = offload("doctor", "--json")
    assert answer.code == 1
    assert result(answer, "table notices, installed")[0] == "failed"


def test_policies_that_would_hide_rows_are_found(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    role = f"worker_{connection.info.dbname}"
    connection.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        connection.execute("ALTER TABLE notices ENABLE ROW LEVEL SECURITY")
        offload.configure(notices, database={"url": offload.database_url.replace("postgres@", f"{role}@")})
        answer = offload("doctor", "--json")
        assert answer.code == 1
        assert result(answer, "table notices, row security")[0] == "failed"
        assert result(answer, "table notices, installed")[0] == "warning"
    finally:
        connection.execute(f"DROP ROLE {role}".encode())


def test_an_unreachable_database_does_not_keep_the_store_from_being_checked(
    offload: Command, notices: TableConfig
) -> None:
    offload.configure(notices, database={"url": "postgresql://me:secret@127.0.0.1:1/app"})
    answer = offload("doctor", "--json")
    assert answer.code == 1
    assert result(answer, "database")[0] == "failed"
    assert result(answer, "object store")[0] == "passed"
    assert b"secret" not in answer.stdout


def test_an_unusable_store_is_found(offload: Command, notices: TableConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    offload.configure(notices, object_store={"url": (tmp_path / "file").as_uri()})
    answer = offload("doctor", "--json")
    assert answer.code == 1
    assert result(answer, "object store")[0] == "failed"


@pytest.mark.parametrize("text", ["tables: [", "tables: []", "nonsense: 1"])
def test_a_broken_configuration_is_exit_code_2(offload: Command, text: str) -> None:
    offload.config_path.write_text(text)
    answer = offload("doctor")
    assert answer.code == 2
    assert str(offload.config_path) in answer.complaint


def test_partitions_whose_objects_are_in_another_store_are_found(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, tmp_path: Path
) -> None:
    for tenant in ("acme", "bolt", "cargo"):
        insert_payloads(connection, notices, [large_payload(1000)], tenant=tenant)
    assert offload("drain").code == 0
    assert result(offload("doctor", "--json"), "table notices, store") == ("passed", None)
    elsewhere = (tmp_path / "elsewhere").as_uri()
    offload.configure(notices, object_store={"url": elsewhere})
    answer = offload("doctor", "--json")
    assert answer.code == 1
    (check,) = [check for check in answer.document["checks"] if check["name"] == "table notices, store"]
    assert check["result"] == "failed"
    assert check["detail"] == (
        f"not every partition's objects are in {elsewhere}: "
        f"those of tenant 'acme' and 2 others are in {offload.store_url}"
    )
    assert "correct the URL" in check["mend"]
    assert "public.payload_offload_state" in check["mend"]


def test_before_install_nothing_is_said_about_stores(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    connection.execute("DROP TABLE payload_offload_state")
    answer = offload("doctor", "--json")
    assert result(answer, "schema public")[0] == "failed"
    assert "table notices, store" not in [check["name"] for check in answer.document["checks"]]
