"""A tenant that no table has ever heard of is a mistake of the user's, in one line; an idle one is not."""

from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from offload_pipeline.config import TableConfig
from offload_pipeline.offload import unknown_tenant
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table

COMMANDS = (
    ("drain",), ("drain", "--retry-failed"), ("verify",), ("release",), ("restore",), ("expire",),
    ("backfill", "--table", "notices"),
)  # fmt: skip
PAYLOAD = large_payload(1000)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_tenant_that_nothing_is_known_of_is_refused_with_the_nearest(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, command: tuple[str, ...]
) -> None:
    for tenant in ("acme", "globex"):
        insert_payloads(connection, notices, [PAYLOAD], tenant=tenant)
    answer = offload(*command, "--tenant", "acmee")
    assert answer.code == 2
    assert answer.complaint == "offload: no tenant 'acmee' in notices; did you mean 'acme'?"
    assert connection.execute("SELECT count(*) FROM payload_offload_state").fetchone() == (0,)


@pytest.mark.parametrize(
    "command", [("gc", "--tenant"), ("gc", "--erase-tenant"), ("gc", "--delete", "--erase-tenant")]
)
def test_a_tenant_that_nothing_is_known_of_is_neither_collected_nor_erased(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, command: tuple[str, ...]
) -> None:
    insert_payloads(connection, notices, [PAYLOAD])
    offload("drain")
    answer = offload(*command, "acmee")
    assert (answer.code, answer.lines) == (2, [])
    assert answer.complaint == "offload: no tenant 'acmee' in notices; did you mean 'acme'?"
    assert offload(*command, "acme").code == 0


@pytest.mark.parametrize("is_remembered", [True, False])
def test_an_erasure_is_repeated_after_the_rows_and_even_the_bookkeeping_were_deleted(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, store_folder: Path, *, is_remembered: bool
) -> None:
    insert_payloads(connection, notices, [PAYLOAD])
    offload("drain")
    erase = ("gc", "--erase-tenant", "acme", "--delete")
    assert offload(*erase).code == 0
    connection.execute("DELETE FROM notices")
    if not is_remembered:
        connection.execute("DELETE FROM payload_offload_state")
    assert offload(*erase).code == 0


def test_strays_of_a_tenant_that_the_database_has_never_heard_of_are_erased(
    offload: Command, notices: TableConfig, store_folder: Path
) -> None:
    stray = store_folder / "gone" / "notices" / "1" / f"{'0' * 64}.json.gz"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"left")
    for flags in ((), ("--delete",), ("--delete",)):
        assert offload("gc", "--erase-tenant", "gone", *flags).code == 0
    assert not stray.exists()


def test_where_none_is_near_some_that_are_known_are_named(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    for number in range(7):
        insert_payloads(connection, notices, [PAYLOAD], tenant=f"tenant-{number}")
    complaint = offload("drain", "--tenant", "xyz").complaint
    assert "known are 'tenant-0', 'tenant-1', 'tenant-2', 'tenant-3', 'tenant-4', …" in complaint


def test_where_there_are_no_tenants_that_is_said(offload: Command, notices: TableConfig) -> None:
    assert "they have no tenants yet" in offload("drain", "--tenant", "acme").complaint


@pytest.mark.parametrize("once", ["its rows are small", "it was drained", "a row of it failed"])
def test_a_tenant_that_has_or_had_something_is_known(
    offload: Command, connection: psycopg.Connection, once: str
) -> None:
    table = make_table(connection, threshold_bytes=100, max_object_bytes=5000)
    offload.configure(table)
    offload("install")
    payload = {"its rows are small": "{}", "it was drained": PAYLOAD, "a row of it failed": large_payload(9000)}[once]
    insert_payloads(connection, table, [payload])
    if payload != "{}":
        offload("drain")
        connection.execute("DELETE FROM notices")
    assert offload("drain", "--tenant", "acme").code == 0


def test_a_tenant_of_any_of_the_tables_is_known(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    mails = make_table(connection, name="mails", relation="mails")
    offload.configure(notices, mails)
    offload("install")
    insert_payloads(connection, mails, ["{}"], tenant="acme")
    assert offload("drain", "--tenant", "acme").code == 0
    assert offload("drain", "--tenant", "acme", "--table", "notices").code == 2


def test_what_the_column_cannot_hold_is_no_tenant_and_another_spelling_is_none_either(
    offload: Command, connection: psycopg.Connection
) -> None:
    table = make_table(connection, tenant_type="integer", threshold_bytes=0)
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, ["{}"], tenant="7")
    for tenant in ("seven", "007", "7.0", "99999999999999999999"):
        assert offload("drain", "--tenant", tenant).code == 2, tenant
    assert offload("drain", "--tenant", "7").code == 0


def test_a_search_that_takes_too_long_gives_the_benefit_of_the_doubt(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_tenant, "SEARCH_LIMIT", timedelta(milliseconds=1))
    connection.execute(
        "INSERT INTO notices (tenant_id, raw_payload) SELECT 'acme', '{}' FROM generate_series(1, 200000)"
    )
    assert offload("drain", "--tenant", "nobody").lines == ["nothing to do"]
