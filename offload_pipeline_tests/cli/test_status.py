"""`offload status`: the queue, the totals and the failures, of every table and tenant."""

import shlex
from datetime import datetime, timedelta

import psycopg
import pytest

from offload_pipeline.cli import status
from offload_pipeline.config import TableConfig
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table, statuses


def test_an_empty_queue_says_so(offload: Command, notices: TableConfig) -> None:
    answer = offload("status")
    assert (answer.code, answer.lines) == (0, ["nothing pending, nothing done yet"])


def test_a_table_that_is_not_installed_is_shown_with_the_mend(offload: Command, connection: psycopg.Connection) -> None:
    offload.configure(make_table(connection))
    answer = offload("status")
    assert answer.code == 0
    assert "notices: not installed; run: offload install --table notices" in answer.lines
    document = offload("status", "--json").document
    assert document["tables"][0]["installed"] is False


def test_pending_rows_are_counted_weighed_and_aged_per_tenant(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    payload = large_payload(1000)
    created_at = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
    insert_payloads(connection, notices, [payload, payload], tenant="acme", created_at=created_at)
    insert_payloads(connection, notices, [payload], tenant="bolt")
    acme, bolt = offload("status", "--json").document["tables"][0]["tenants"]
    assert (acme["tenant"], acme["pending_rows"], acme["pending_bytes"]) == ("acme", 2, 2 * len(payload))
    assert datetime.fromisoformat(acme["oldest_pending_at"]) == created_at
    assert acme["oldest_age_seconds"] > timedelta(days=1).total_seconds()
    assert (bolt["tenant"], bolt["pending_rows"], bolt["verified_through"]) == ("bolt", 1, None)
    assert any("'acme'" in line and "2.0 kB" in line for line in offload("status").lines)


def test_what_was_done_is_added_up(offload: Command, connection: psycopg.Connection, notices: TableConfig) -> None:
    payload = large_payload(1000)
    insert_payloads(connection, notices, [payload, payload])
    offload("drain")
    (acme,) = offload("status", "--json").document["tables"][0]["tenants"]
    assert (acme["pending_rows"], acme["rows_copied"], acme["rows_released"]) == (0, 2, 2)
    assert acme["payload_bytes_copied"] == acme["payload_bytes_released"] == 2 * len(payload)
    assert datetime.fromisoformat(acme["verified_through"]).tzinfo is not None


def test_rows_without_tenant_are_reported_with_the_mend(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, [large_payload(1000)], tenant_id=None)
    connection.execute("UPDATE notices SET tenant_id = NULL")
    table = offload("status", "--json").document["tables"][0]
    assert table["tenants"] == []
    assert table["without_tenant"]["pending_rows"] == 1
    answer = offload("status")
    assert answer.code == 0
    assert any("with tenant_id NULL belong to no partition" in line for line in answer.lines)


def test_open_failures_are_listed_and_those_given_up_are_marked(
    offload: Command, connection: psycopg.Connection
) -> None:
    table = make_table(connection, threshold_bytes=0, max_object_bytes=5000)
    offload.configure(table)
    offload("install")
    (key,) = insert_payloads(connection, table, [large_payload(9000)])
    assert offload("drain").code == 1
    (failure,) = offload("status", "--json").document["open_failures"]
    assert (failure["primary_key"], failure["stage"], failure["given_up"]) == (str(key), "copy", True)
    assert failure["error_class"] == "PayloadTooLargeError"
    answer = offload("status")
    assert answer.code == 0
    assert any(f"key {key}: copy given up after 1 attempt" in line for line in answer.lines)


def test_what_is_older_than_the_trigger_is_reported_with_the_backfill_that_scans_it(
    offload: Command, connection: psycopg.Connection
) -> None:
    table = make_table(connection, threshold_bytes=100)
    insert_payloads(connection, table, ['{"small": 1}'], tenant="acme corp")
    offload.configure(table)
    offload("install")
    answer = offload("status")
    line = (
        "notices: 1 row of tenant 'acme corp' never scanned; run: offload backfill --table notices --tenant 'acme corp'"
    )
    assert line in answer.lines
    (acme,) = offload("status", "--json").document["tables"][0]["tenants"]
    assert (acme["rows_never_scanned"], acme["pending_rows"]) == (1, 0)

    assert offload(*shlex.split(line.partition("offload ")[2])).code == 0
    document = offload("status", "--json").document
    assert document["tables"][0]["totals"]["rows_never_scanned"] == 0
    assert not any("never scanned;" in line for line in offload("status").lines)


def test_several_tenants_that_were_never_scanned_are_one_line(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=100)
    for tenant in ("acme", "bolt"):
        insert_payloads(connection, table, ['{"small": 1}'] * 3, tenant=tenant)
    offload.configure(table)
    offload("install")
    said = "notices: 6 rows of 2 tenants never scanned; run: offload backfill --table notices --tenant TENANT"
    assert said in offload("status").lines


def test_totals_are_over_tenants_and_tables(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    payload = large_payload(1000)
    for tenant in ("acme", "bolt"):
        insert_payloads(connection, notices, [payload] * 2, tenant=tenant)
    offload("drain", "--tenant", "acme")
    totals = offload("status", "--json").document["tables"][0]["totals"]
    assert (totals["pending_rows"], totals["rows_copied"], totals["rows_released"]) == (2, 2, 2)
    assert totals["pending_bytes"] == totals["payload_bytes_released"] == 2 * len(payload)
    (cells,) = [line.split() for line in offload("status").lines if line.split()[:1] == ["all"]]
    assert cells[1:4] == ["2", "2.0", "kB"]


def test_failures_are_counted_and_how_to_try_them_again_is_said(
    offload: Command, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "LISTED_FAILURES", 2)
    table = make_table(connection, threshold_bytes=0, max_object_bytes=5000)
    offload.configure(table)
    offload("install")
    keys = insert_payloads(connection, table, [large_payload(9000)] * 3)
    offload("drain")
    document = offload("status", "--json").document
    assert (document["failures_open"], document["failures_given_up"], len(document["open_failures"])) == (3, 3, 2)
    lines = offload("status").lines
    assert "open failures: 3, given up: 3; to have those tried again, run: offload drain --retry-failed" in lines
    assert "1 more; payload_offload_failures lists them all" in lines

    offload.configure(table.model_copy(update={"max_object_bytes": 10_000}))
    assert offload("status", "--json").document["failures_open"] == 3, "given up"
    answer = offload("drain", "--retry-failed")
    assert answer.code == 0
    assert answer.lines[0] == "failures to be tried again: 3"
    assert set(statuses(connection, table).values()) == {"in_storage"}
    assert set(statuses(connection, table)) == set(keys)
    assert offload("status", "--json").document["failures_open"] == 0


def test_failures_of_a_table_that_is_no_longer_configured_are_not_listed(
    offload: Command, connection: psycopg.Connection
) -> None:
    table = make_table(connection, threshold_bytes=0, max_object_bytes=5000)
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, [large_payload(9000)])
    offload("drain")
    offload.configure(make_table(connection, name="mails", relation="mails"))
    offload("install")
    document = offload("status", "--json").document
    assert (document["failures_open"], document["open_failures"]) == (0, [])
