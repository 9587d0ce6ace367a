"""`offload status`: the queue, the totals and the failures, of every table and tenant."""

from datetime import datetime, timedelta

import psycopg

from offload_pipeline.config import TableConfig
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table


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
