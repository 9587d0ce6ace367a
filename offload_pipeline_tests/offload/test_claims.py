"""Workers on the same rows: no row twice, no lock left, batches bounded, in primary-key order."""

import random
import uuid
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.table import Key
from offload_pipeline.offload.claims import Batch, BatchLimits, PendingBatches, Piece
from offload_pipeline.offload.storing import store_payload
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed, rows_of
from offload_pipeline_tests.offload.stores import CountingStore, HookedStore
from offload_pipeline_tests.offload.waiting import advisory_locks, open_transactions
from offload_pipeline_tests.offload.worker import result_of, start_worker
from offload_pipeline_tests.servers import wait_until

SMALL_BATCHES = {"offload": {"batch_rows": 10, "batches_in_flight": 2, "store_threads": 4}}


def pending(notices: Installation, rows: int = 100, payload_bytes: int = 10**7, tenant: str = "acme") -> PendingBatches:
    limits = BatchLimits(rows, payload_bytes)
    return PendingBatches(notices.pipeline.database, notices.partition(tenant), limits, max_attempts=3)


def all_batches(batches: PendingBatches, connection: psycopg.Connection) -> list[list[Key]]:
    """Keys per batch, nothing recorded."""
    found: list[list[Key]] = []
    while True:
        with transaction(connection):
            batch = batches.claim(connection)
        if batch is None:
            return found
        found.append([row.key for row in rows_of(batch)])


def claim(batches: PendingBatches, connection: psycopg.Connection) -> Batch:
    batch = batches.claim(connection)
    assert batch is not None
    return batch


def assert_no_trace(notices: Installation) -> None:
    """A backend whose client is gone ends by itself, a moment later."""
    assert wait_until(lambda: advisory_locks(notices.connection) == open_transactions(notices.connection) == 0)


@pytest.mark.both_servers
def test_two_workers_in_threads_copy_no_row_twice(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, sections=SMALL_BATCHES) as notices:
        notices.insert(f'{{"n": {n}}}' for n in range(120))
        store = CountingStore(notices.store)
        counting = notices.with_store(store)
        with ThreadPoolExecutor(2) as threads:
            results = [future.result() for future in [threads.submit(counting.copy) for _ in range(2)]]
        assert sum(result.rows_copied for result in results) == 120
        assert not any(result.rows_left or result.rows_failed for result in results)
        assert len(store.puts) == 120
        assert set(store.puts.values()) == {1}
        assert_no_trace(notices)
        assert notices.one_status() == "copied"
        notices.assert_invariant()


def test_two_workers_in_processes_copy_no_row_twice(database_url: str, any_store: StoreAddress, tmp_path: Path) -> None:
    with installed(database_url, any_store, sections=SMALL_BATCHES) as notices:
        notices.insert(f'{{"n": {n}}}' for n in range(150))
        workers = [start_worker(notices.pipeline, tmp_path) for _ in range(2)]
        results = [result_of(worker) for worker in workers]
        assert sum(result["rows_copied"] for result in results) == 150
        puts = sum((Counter(result["puts"]) for result in results), Counter())
        assert len(puts) == 150
        assert set(puts.values()) == {1}
        assert_no_trace(notices)
        assert notices.drain().is_sound
        assert notices.one_status() == "in_storage"
        notices.assert_invariant()


def test_counters_and_audit_lines_add_up_to_the_rows(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, sections=SMALL_BATCHES) as notices:
        notices.insert(f'{{"n": "{n:04}"}}' for n in range(55))
        notices.drain()
        state = notices.connection.execute(
            "SELECT rows_copied, payload_bytes_copied, rows_verified, rows_released, payload_bytes_released"
            " FROM payload_offload_state WHERE tenant_id = 'acme' AND table_name = 'notices'"
        ).fetchone()
        assert state == (55, 55 * 13, 55, 55, 55 * 13)
        lines = notices.connection.execute(
            "SELECT action, sum(rows)::int, sum(bytes)::int FROM payload_offload_log GROUP BY action ORDER BY action"
        ).fetchall()
        assert lines == [("copy", 55, 55 * 13), ("release", 55, 55 * 13), ("verify", 55, 50 * 13)]


@pytest.mark.both_servers
def test_rows_that_another_worker_holds_are_passed_over_and_a_dead_workers_rows_are_free_at_once(
    notices: Installation,
) -> None:
    notices.insert(['{"n": 1}'] * 6)
    database = notices.pipeline.database
    with notices.pipeline.connect() as mine:
        theirs = database.connect()
        theirs.execute("BEGIN")
        assert [row.key for row in rows_of(claim(pending(notices, rows=2), theirs))] == [("1",), ("2",)]
        assert all_batches(pending(notices), mine) == [[("3",), ("4",), ("5",), ("6",)]]
        theirs.close()
        assert_no_trace(notices)
        assert all_batches(pending(notices), mine) == [[("1",), ("2",), ("3",), ("4",), ("5",), ("6",)]]


def test_a_row_that_another_worker_has_just_finished_is_seen_as_finished(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim was free again when we asked, but our page of the queue was older."""
    notices.insert(['{"n": 1}'] * 3)
    read = PendingBatches._read

    def finish_elsewhere(self: PendingBatches, connection: psycopg.Connection, keys: list[Key]) -> Piece:
        monkeypatch.undo()
        with notices.pipeline.connect() as other, transaction(other):
            (row,) = read(self, other, [("2",)]).rows
            stored = store_payload(notices.store, notices.partition(), row, "standard")
            assert notices.record(other, [stored])
        return read(self, connection, keys)

    monkeypatch.setattr(PendingBatches, "_read", finish_elsewhere)
    store = CountingStore(notices.store)
    result = notices.with_store(store).copy()
    assert (result.rows_copied, result.rows_left, store.puts.total()) == (2, 0, 2)
    assert notices.one_status() == "copied"
    notices.assert_invariant()


def test_a_batch_is_bounded_in_rows_and_costs_one_advisory_lock_a_row(notices: Installation) -> None:
    notices.insert(['{"n": 1}'] * 7)
    with notices.pipeline.connect() as connection:
        batches = pending(notices, rows=3)
        for rows in (3, 3, 1):
            with transaction(connection):
                assert len(rows_of(claim(batches, connection))) == rows
                assert advisory_locks(notices.connection) == rows
            assert advisory_locks(notices.connection) == 0


def test_a_pass_never_holds_more_claims_than_its_batches_in_flight(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, sections=SMALL_BATCHES) as notices:
        notices.insert(['{"n": 1}'] * 60)
        seen: list[int] = []

        def look(_key: str) -> None:
            with psycopg.connect(database_url) as connection:
                seen.append(advisory_locks(connection))

        notices.with_store(HookedStore(notices.store, before_put=look)).copy()
        assert len(seen) == 60
        assert 0 < max(seen) <= 2 * 10


def test_a_batch_ends_with_the_row_that_passes_the_byte_limit(notices: Installation) -> None:
    notices.insert([large_payload(size, seed) for seed, size in enumerate([400, 400, 400, 5000, 10, 400])])
    with notices.pipeline.connect() as connection:
        found = all_batches(pending(notices, payload_bytes=1000), connection)
    assert found == [[("1",), ("2",), ("3",)], [("4",)], [("5",), ("6",)]]


KEYS: Mapping[str, tuple[Mapping[str, str], list[Any]]] = {
    "text in a linguistic order": (
        {"id": "text COLLATE linguistic"},
        ["a", "B", "b", "A", "ä", "Z", "z", "a-b", "ab", "_", " ", "", "10", "9", "é", "%"],
    ),
    "uuid": ({"id": "uuid"}, [uuid.UUID(int=number * 7**40 % 2**128) for number in range(12)]),
    "timestamptz": (
        {"id": "timestamptz"},
        [datetime(2024, 10, 27, tzinfo=UTC) + timedelta(hours=7 * n, microseconds=n) for n in range(12)],
    ),
    "numeric": ({"id": "numeric"}, [10, 9, -1, 100, 2]),
    "char": ({"id": "char(4)"}, ["a", "b  ", "abcd", "B"]),
    "composite": (
        {"region": "text", "day": "date", "number": "int"},
        [(r, f"2024-0{m}-01", n) for r in ("b", "a,b", "a", "%2C", "") for m in (2, 1) for n in (10, 9)],
    ),
}


def create_linguistic_collation(database_url: str) -> None:
    """`linguistic`: another order than the database's own, where the server was built with ICU."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        found = connection.execute("SELECT FROM pg_collation WHERE collname = 'en-x-icu'").fetchone()
        connection.execute(f'CREATE COLLATION linguistic FROM "{"C" if found is None else "en-x-icu"}"')


@pytest.mark.both_servers
@pytest.mark.parametrize("kind", KEYS)
def test_every_kind_of_key_is_copied_once_and_in_primary_key_order(
    database_url: str, local_store_url: str, kind: str
) -> None:
    columns, keys = KEYS[kind]
    create_linguistic_collation(database_url)
    shuffled = random.Random(kind).sample(keys, len(keys))  # noqa: S311 - an order, not a secret
    with installed(database_url, local_store_url, key_columns=columns) as notices:
        for number, key in enumerate(shuffled):
            parts = key if isinstance(key, tuple) else (key,)
            notices.insert([f'{{"n": {number}}}'], **dict(zip(columns, map(str, parts), strict=True)))
        order = ", ".join(f"notices.{column}" for column in columns)
        with notices.pipeline.connect() as connection:
            texts = ", ".join(f"{column}::text" for column in columns)
            connection.execute("SET TimeZone = 'UTC'")
            wanted = connection.execute(f"SELECT {texts} FROM notices ORDER BY {order}").fetchall()  # noqa: S608 - names of the test's own
            found = all_batches(pending(notices, rows=3), connection)
        in_order = [sorted(batch, key=wanted.index) for batch in found]
        assert in_order == [wanted[start : start + 3] for start in range(0, len(wanted), 3)]
        assert notices.drain().is_sound
        assert notices.verify(full=True).rows_checked == len(keys)
        assert notices.one_status() == "in_storage"
        notices.assert_invariant()


def test_rows_without_tenant_and_rows_of_others_are_not_touched(notices: Installation) -> None:
    (mine,) = notices.insert(['{"n": 1}'], tenant="acme")
    (theirs,) = notices.insert(['{"n": 2}'], tenant="globex")
    notices.connection.execute("INSERT INTO notices (tenant_id, raw_payload) VALUES (NULL, '{}')")
    notices.take_rows_as_expected()
    with notices.pipeline.connect() as connection, transaction(connection):
        assert [row.key for row in rows_of(claim(pending(notices), connection))] == [(str(mine),)]
        assert advisory_locks(notices.connection) == 1
    notices.drain()
    (nobodys,) = notices.expected.keys() - {mine, theirs}
    assert notices.statuses() == {mine: "in_storage", theirs: "pending_move", nobodys: "pending_move"}
    notices.assert_invariant()


def test_a_table_with_one_constant_tenant_is_copied_whole(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, tenant_column=None) as notices:
        (key,) = notices.insert(['{"n": 1}'])
        assert notices.drain().is_sound
        assert notices.object_key(key).startswith("acme/notices/1/")
        notices.assert_invariant()


def test_tenants_that_only_their_type_takes_for_the_same_keep_to_their_own_rows(
    database_url: str, local_store_url: str
) -> None:
    with installed(database_url, local_store_url, tenant_column=None, tenant={"column": "account"},
                   extra_columns={"account": "numeric"}) as notices:  # fmt: skip
        notices.insert(['{"n": 1}'], tenant="1.0")
        notices.insert(['{"n": 2}'], tenant="1.00")
        assert notices.copy("1.0").rows_copied == 1
        assert notices.verify("1.0").passed
        assert notices.release("1.00").rows_released == 0
        assert notices.copy("1").rows_copied == 0
        assert notices.copy("1.00").rows_copied == 1
        assert notices.object_key(2).startswith("1.00/")
