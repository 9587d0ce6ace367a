"""`offload status`: the queue, the totals and the failures, of every table and tenant."""

import shlex
from datetime import datetime, timedelta

import psycopg
import pytest

from offload_pipeline.cli import output, status
from offload_pipeline.cli.output import format_bytes
from offload_pipeline.config import TableConfig
from offload_pipeline.errors import ObjectDamagedError, PermanentError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.failures import Failure, Stage, record_failures
from offload_pipeline.pipeline import open_pipeline
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


def test_copies_that_nobody_released_are_reported_with_the_command_that_does(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    payload = large_payload(1000)
    insert_payloads(connection, notices, [payload] * 3)
    pipeline = open_pipeline()
    (acme,) = pipeline.partitions(connection, "notices", "acme")
    pipeline.copy(acme, "test")
    said = "notices: 3 rows copied and not verified; run: offload drain --table notices"
    assert said in offload("status").lines

    pipeline.verify(acme, "test")
    totals = offload("status", "--json").document["tables"][0]["totals"]
    assert (totals["unreleased_rows"], totals["unreleased_bytes"]) == (3, 3 * len(payload))
    assert (totals["unverified_rows"], totals["releasable_rows"]) == (0, 3)
    said = "notices: 3 rows copied and verified, and not released; run: offload release --table notices"
    assert said in offload("status").lines

    assert offload(*said.rpartition("offload ")[2].split()).code == 0
    assert set(statuses(connection, notices).values()) == {"in_storage"}
    lines = offload("status").lines
    assert "notices: in storage now: 3 rows" in lines
    assert not any("not released;" in line for line in lines)


def test_copies_that_a_table_keeps_are_nothing_to_release(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=0, after_copy="keep")
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, [large_payload(1000)] * 2)
    offload("drain")
    totals = offload("status", "--json").document["tables"][0]["totals"]
    assert (totals["unreleased_rows"], totals["releasable_rows"]) == (2, 0)
    assert not any("run: offload release" in line for line in offload("status").lines)


def test_what_was_restored_is_no_longer_in_storage_though_it_was_copied_once(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, [large_payload(1000)] * 2)
    offload("drain")
    offload("restore", "--table", "notices")
    table = offload("status", "--json").document["tables"][0]
    assert (table["rows_in_storage"], table["is_estimate"], table["totals"]["rows_copied"]) == (0, False, 2)
    lines = offload("status").lines
    assert "notices: in storage now: 0 rows" in lines
    assert any("copied so far" in line and "released so far" in line for line in lines)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_on_a_narrow_terminal_no_number_is_cut(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(output, "WIDTH_WITHOUT_TERMINAL", width)
    payload = large_payload(1000)
    for tenant, rows in (("acme", 3), ("bolt", 1234)):
        insert_payloads(connection, notices, [payload] * rows, tenant=tenant)
    offload("drain", "--tenant", "acme")
    lines = offload("status").lines
    assert not any("…" in line for line in lines)
    assert lines[0].startswith("notices, tenant 'acme': verified through 20")
    assert lines[1:6] == [
        "  pending: 0 rows (0 B)",
        "  copied, not released: 0 rows (0 B)",
        "  never scanned: 0 rows",
        lines[4],
        f"  released so far: 3 rows ({format_bytes(3 * len(payload))})",
    ]
    assert lines[4].startswith(f"  copied so far: 3 rows ({format_bytes(3 * len(payload))}), stored as ")
    bolt = lines.index("notices, tenant 'bolt': verified through never")
    assert lines[bolt + 1].startswith(f"  pending: 1,234 rows ({format_bytes(1234 * len(payload))}), oldest ")
    assert "all:" in lines


def test_each_stage_says_what_tries_it_again(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    (acme,) = [Partition(table, "acme") for table in open_pipeline().tables(connection)]

    def fail(stage: Stage, error: Exception) -> None:
        record_failures(connection, acme, stage, [Failure(("1",), None, error)])

    fail("restore", ObjectDamagedError("damaged"))
    assert "open failures: 1, given up: 0; of restores: 1, tried again by: offload restore" in offload("status").lines
    fail("verify", ObjectDamagedError("damaged"))
    document = offload("status", "--json").document
    assert (document["failures_open"], document["failures_given_up"]) == (2, 0), "each pass looks at it again"
    fail("expire", PermanentError("no"))
    (line,) = [line for line in offload("status").lines if line.startswith("open failures")]
    assert "given up: 1; to have expiry tried again, run: offload drain --retry-failed, then offload expire" in line
    assert "have those" not in line
    fail("release", PermanentError("no"))
    assert any("have those tried again, run: offload drain --retry-failed" in line for line in offload("status").lines)
    offload("drain", "--retry-failed")
    assert not any("after 0 attempts" in line for line in offload("status").lines)


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
