"""The report: right where it counts, labelled where it estimates, and cheap on a table of any size."""

from typing import Any

import psycopg
import pytest

from offload_pipeline.cli.report_lines import report_lines
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.failures import Failure, record_failures
from offload_pipeline.verification import report
from offload_pipeline.verification.report import TableReport, never_scanned, report_table
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import Installation, installed
from offload_pipeline_tests.verification.editing import past_the_trigger, payloads, state

MAX_ATTEMPTS = 3
LARGE = large_payload(2000)


def told(notices: Installation) -> TableReport:
    return report_table(notices.connection, notices.table, MAX_ATTEMPTS)


def forget(notices: Installation, *keys: int) -> None:
    """Makes rows older than the trigger."""
    with past_the_trigger(notices):
        notices.execute("UPDATE {table} SET payload_storage_status = NULL WHERE id = ANY(%s)", list(keys))


@pytest.mark.both_servers
def test_rows_are_counted_by_state_and_shares_are_of_rows_and_of_bytes(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, threshold_bytes=1000) as notices:
        notices.insert([LARGE] * 3)
        assert notices.drain().is_sound
        notices.insert([LARGE])
        notices.copy()
        notices.insert([LARGE] * 2)
        small = notices.insert(['{"n": 1}'] * 4)
        forget(notices, small[0])
        found = told(notices)
    assert (found.rows, found.rows_in_storage, found.rows_copied, found.rows_pending) == (10, 3, 1, 2)
    assert (found.rows_never_seen, found.rows_never_scanned) == (1, 1)
    assert found.estimated == ()
    assert (found.offloaded_share_of_rows, found.offloaded_share_of_bytes) == (0.3, 0.5)
    assert found.average_payload_bytes == len(LARGE)
    assert found.average_object_bytes is not None
    assert 0 < found.average_object_bytes < len(LARGE)


def test_an_empty_table_has_no_shares_and_no_averages(notices: Installation) -> None:
    found = told(notices)
    assert (found.rows, found.rows_in_storage, found.tenants) == (0, 0, 0)
    assert found.offloaded_share_of_rows is found.offloaded_share_of_bytes is found.average_payload_bytes is None
    assert found.verified_through_oldest is found.fully_verified_oldest is None
    assert found.estimated == ()


@pytest.mark.both_servers
def test_sizes_add_up_to_what_postgresql_says_of_the_whole(notices: Installation) -> None:
    notices.insert([large_payload(20_000, seed) for seed in range(20)])
    found = told(notices)
    (total, toast), *_ = notices.execute(
        "SELECT pg_total_relation_size(c.oid), pg_total_relation_size(c.reltoastrelid) FROM pg_class AS c"
        " WHERE c.oid = '{table}'::regclass"
    ).fetchall()
    assert found.heap_bytes + found.toast_bytes + found.index_bytes == total
    assert found.toast_bytes == toast > 200_000
    assert found.heap_bytes > 0
    assert found.index_bytes > 0


def test_the_oldest_gate_is_told_and_whoever_has_none(notices: Installation) -> None:
    for tenant in ("acme", "bolt"):
        notices.insert(payloads(1), tenant=tenant)
        notices.copy(tenant)
    notices.verify("acme", full=True)
    found = told(notices)
    assert (found.tenants, found.tenants_never_verified) == (2, 1)
    assert found.verified_through_oldest == state(notices, "verified_through", "acme")
    assert found.fully_verified_oldest is None, "bolt was never read whole"
    notices.verify("bolt", full=True)
    found = told(notices)
    assert found.verified_through_oldest == state(notices, "verified_through", "acme")
    assert found.fully_verified_oldest == state(notices, "fully_verified_at", "acme")


def test_open_failures_are_counted_by_stage_and_those_given_up_apart(notices: Installation) -> None:
    def fail(stage: Any, *keys: int, times: int = 1) -> None:
        failures = [Failure((str(key),), None, RuntimeError("no")) for key in keys]
        for _ in range(times):
            record_failures(notices.connection, Partition(notices.table, "acme"), stage, failures)

    fail("copy", 1, 2)
    fail("copy", 3, times=MAX_ATTEMPTS)
    fail("release", 1)
    notices.connection.execute("UPDATE payload_offload_failures SET resolved_at = now() WHERE primary_key = '2'")
    found = told(notices)
    assert found.open_failures == {"copy": 2, "release": 1}
    assert found.failures_given_up == 1


@pytest.mark.both_servers
def test_what_is_large_is_estimated_and_says_so(notices: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    notices.insert(payloads(300))
    assert notices.drain().is_sound
    notices.insert(payloads(100, first=300))
    monkeypatch.setattr(report, "COUNTED_BYTES", -1)
    notices.execute("VACUUM ANALYZE {table}")
    found = told(notices)
    assert set(found.estimated) == {"rows", "rows_pending", "rows_copied", "rows_in_storage", "rows_never_seen"}
    assert (found.rows, found.rows_in_storage, found.rows_pending) == (400, 300, 100)
    assert found.offloaded_share_of_rows == 0.75
    assert found.offloaded_share_of_bytes == pytest.approx(0.75)


def test_restored_payloads_that_are_held_in_their_rows_are_not_offloaded(notices: Installation) -> None:
    notices.insert([LARGE] * 4)
    assert notices.drain().is_sound
    notices.pipeline.restore(notices.partition(), "test", key=("1",))
    found = told(notices)
    assert (found.rows_in_storage, found.rows_held) == (3, 1)
    assert found.offloaded_share_of_bytes == 0.75
    assert "restored and held 1, never scanned 0 rows" in report_lines(found)[0]
    assert "offloaded 75.0 % of the rows, about 75.0 % of the measured bytes; " in report_lines(found)[1]


def test_where_held_rows_are_not_counted_it_is_said(notices: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "COUNTED_BYTES", -1)
    notices.insert(payloads(10))
    assert notices.drain().is_sound
    notices.execute("VACUUM ANALYZE {table}")
    found = told(notices)
    assert found.rows_held is None
    said = "  offloaded about 100.0 % of the rows, about 100.0 % of the measured bytes, restored ones not counted; "
    assert report_lines(found)[1].startswith(said)


def test_dead_rows_since_the_last_vacuum_do_not_count_as_rows(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "COUNTED_BYTES", -1)
    notices.insert(payloads(500))
    # Counters of the insert that arrive after the VACUUM would count the rows twice.
    notices.execute("SELECT pg_stat_force_next_flush()")
    notices.execute("VACUUM ANALYZE {table}")
    for _ in range(3):
        notices.execute("UPDATE {table} SET created_at = now()")
    notices.execute("SELECT pg_stat_force_next_flush()")
    assert told(notices).rows == 500


def test_what_was_never_analyzed_is_not_known(notices: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "COUNTED_BYTES", -1)
    notices.insert(payloads(10))
    found = told(notices)
    assert found.rows is None
    assert found.offloaded_share_of_rows is None
    assert "rows" in found.estimated


LARGE_TABLE = """
    INSERT INTO notices (tenant_id, payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256,
        payload_stored_at, note)
    SELECT 'acme', CASE WHEN n %% 10 > 0 THEN 'in_storage' END, 300, 'other', repeat('0', 64),
        now() - n * interval '1 second', repeat('x', 500)
    FROM generate_series(1, %s) AS n
"""
LARGE_ROWS = 30_000


def blocks_read(connection: psycopg.Connection) -> int:
    """Heap blocks of the table that this session has touched."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    row = connection.execute(
        "SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables WHERE relname = 'notices'"
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.both_servers
def test_a_large_table_is_not_read(database_url: str, local_store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with installed(database_url, local_store_url, extra_columns={"note": "text"}) as notices:
        monkeypatch.setattr(report, "COUNTED_BYTES", 400_000)
        with past_the_trigger(notices):
            notices.connection.execute(LARGE_TABLE, (LARGE_ROWS,))
        notices.execute("VACUUM ANALYZE {table}")
        before = blocks_read(notices.connection)
        found = told(notices)
        assert blocks_read(notices.connection) - before < 10
        assert set(found.estimated) == {"rows", "rows_in_storage"}
        assert found.rows == pytest.approx(LARGE_ROWS, rel=0.05)
        assert found.rows_in_storage == pytest.approx(LARGE_ROWS * 0.9, rel=0.05)
        assert (found.rows_never_seen, found.rows_never_scanned) == (LARGE_ROWS / 10, LARGE_ROWS / 10)


@pytest.mark.both_servers
@pytest.mark.parametrize(
    ("tenant_type", "acme", "bolt"),
    [
        ("text", "acme", "bolt"),
        ("varchar(20)", "acme", "bolt"),
        ("bigint", "7", "30"),
        ("uuid", "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"),
    ],
)
def test_rows_that_no_backfill_has_scanned_are_counted_by_tenant(
    database_url: str, local_store_url: str, tenant_type: str, acme: str, bolt: str
) -> None:
    with installed(database_url, local_store_url, tenant_type=tenant_type) as notices:
        forget(notices, *notices.insert(payloads(2), tenant=acme), *notices.insert(payloads(1), tenant=bolt))
        assert never_scanned(notices.connection, notices.table) == {acme: 2, bolt: 1}
        assert notices.pipeline.drain(notices.partition(acme), "test", unseen=True).is_sound
        assert never_scanned(notices.connection, notices.table) == {bolt: 1}


def test_small_rows_that_a_backfill_has_passed_over_were_scanned(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, threshold_bytes=1000) as notices:
        forget(notices, *notices.insert(['{"n": 1}'] * 3))
        assert told(notices).rows_never_scanned == 3
        notices.pipeline.drain(notices.partition(), "test", unseen=True)
        found = told(notices)
        assert (found.rows_never_seen, found.rows_never_scanned) == (3, 0)


def test_a_table_of_one_tenant_has_rows_to_be_scanned_too(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, tenant_column=None) as notices:
        forget(notices, *notices.insert(payloads(3)))
        assert never_scanned(notices.connection, notices.table) == {"acme": 3}
        notices.pipeline.drain(notices.partition(), "test", unseen=True)
        assert never_scanned(notices.connection, notices.table) == {}


def test_rows_to_be_scanned_are_counted_up_to_a_bound(notices: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_NEVER_SCANNED", 4)
    for tenant in ("acme", "bolt", "cargo"):
        forget(notices, *notices.insert(payloads(3), tenant=tenant))
    assert sum(never_scanned(notices.connection, notices.table).values()) == 5
