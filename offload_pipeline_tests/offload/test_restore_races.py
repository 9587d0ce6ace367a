"""Restore beside an application that writes, a release, a verification, another restore, and its own death."""

import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from offload_pipeline.database.connection import transaction
from offload_pipeline.errors import TransientError
from offload_pipeline.offload.claims import BatchLimits
from offload_pipeline.offload.stored import read_payload
from offload_pipeline.offload.stored_rows import Page, StoredRow, StoredRows, drop_pointers, put_back
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import RUN, Installation, StoreAddress, installed
from offload_pipeline_tests.offload.stores import HookedStore
from offload_pipeline_tests.offload.test_interleavings import NEW, OLD, Application, hash_waits_for
from offload_pipeline_tests.offload.test_kill import (
    LONGEST_LIFE_SECONDS,
    ROWS,
    SECTIONS,
    WRITES,
    Writer,
    assert_invariant_in_a_snapshot,
    is_at_work,
    what_was_written,
)
from offload_pipeline_tests.offload.test_memory import LIMIT_MEGABYTES, TEN_MEGABYTES, insert_rows
from offload_pipeline_tests.offload.test_restore import logged
from offload_pipeline_tests.offload.waiting import advisory_locks, in_thread, open_transactions, wait_until_blocked
from offload_pipeline_tests.offload.worker import FOREVER, result_of, start_worker
from offload_pipeline_tests.servers import PostgresServer, wait_until

LIMITS = BatchLimits(100, 10**7)
KILLS = 8
MANY_KILLS = 150


@pytest.fixture
def application(notices: Installation) -> Iterator[Application]:
    """Its rows are in storage; to empty one of those is refused, so the row of that name is not touched."""
    found = Application(notices)
    notices.drain()
    emptied = next(key for key, row in found._rows.items() if row == "emptied")
    found._rows.pop(emptied)
    yield found
    found.connection.close()


def finish(notices: Installation) -> None:
    """Restores both tenants until nothing is in storage: every payload is in its row, and the application's."""
    notices.assert_invariant()
    for tenant in ("acme", "globex"):
        result = notices.restore(tenant)
        assert result.is_sound, result.failures
        assert result.rows_left == 0
    assert set(notices.statuses().values()) <= {"inline", "pending_move"}
    notices.assert_invariant()


def read_page(notices: Installation, connection: psycopg.Connection) -> Page:
    page = StoredRows(notices.partition(), LIMITS).next_page(connection)
    assert page is not None
    return page


def with_payloads(notices: Installation, rows: list[StoredRow]) -> list[tuple[StoredRow, bytes]]:
    return [(row, read_payload(notices.store, row.named)) for row in rows]


@pytest.mark.both_servers
@pytest.mark.parametrize("moment", ["before_get", "after_get"])
def test_rows_written_while_their_objects_are_read_keep_what_was_written(
    notices: Installation, application: Application, moment: str
) -> None:
    result = notices.with_store(HookedStore(notices.store, **{moment: application.act_on_row_of})).restore()
    assert application.has_acted()
    assert (result.rows_restored, result.rows_left, result.rows_failed) == (2, 6, 0), "kept, and the one not emptied"
    finish(notices)


@pytest.mark.both_servers
def test_rows_written_between_the_reading_and_the_update_keep_what_was_written(
    notices: Installation, application: Application
) -> None:
    with notices.pipeline.connect() as connection:
        payloads = with_payloads(notices, read_page(notices, connection).rows)
        application.act()
        with transaction(connection):
            restored = put_back(connection, notices.partition(), payloads, RUN)
    assert len(restored) == 2
    finish(notices)


def test_copies_written_between_the_reading_and_the_update_keep_what_was_written(notices: Installation) -> None:
    application = Application(notices)
    notices.copy()
    with notices.pipeline.connect() as connection:
        page = read_page(notices, connection)
        application.act()
        with transaction(connection):
            dropped = drop_pointers(connection, notices.partition(), page.rows, RUN)
    assert [row.key for row in dropped] == [("1",)], "kept"
    application.connection.close()
    finish(notices)


@pytest.mark.parametrize("status", ["copied", "in_storage"])
def test_a_row_that_the_application_holds_is_left_without_waiting_for_it(notices: Installation, status: str) -> None:
    keys = notices.insert([OLD] * 3)
    notices.copy()
    if status == "in_storage":
        notices.verify()
        notices.release()
    with psycopg.connect(notices.database_url) as other:
        notices.execute("SELECT FROM {table} WHERE id = %s FOR UPDATE", keys[1], connection=other)
        result = notices.restore()  # were it to wait, lock_timeout would end it
        assert (result.rows_left, result.rows_failed) == (1, 0)
    assert [key for key, found in notices.statuses().items() if found == status] == [keys[1]]
    finish(notices)


@pytest.mark.parametrize("status", ["copied", "in_storage"])
def test_a_payload_that_the_application_has_written_and_not_yet_committed_stays(
    notices: Installation, status: str
) -> None:
    (key,) = notices.insert([OLD])
    notices.copy()
    if status == "in_storage":
        notices.verify()
        notices.release()
    with psycopg.connect(notices.database_url) as other:
        notices.execute("UPDATE {table} SET raw_payload = %s WHERE id = %s", NEW, key, connection=other)
        assert notices.restore().rows_left == 1
    notices.take_rows_as_expected([key])
    finish(notices)


@pytest.mark.both_servers
def test_copies_that_are_released_before_their_pointer_is_dropped_stay_in_storage_and_are_restored_from_there(
    notices: Installation,
) -> None:
    notices.insert([OLD] * 3)
    notices.copy()
    notices.verify()
    with notices.pipeline.connect() as connection:
        page = read_page(notices, connection)
        assert notices.release().rows_released == 3
        with transaction(connection):
            assert drop_pointers(connection, notices.partition(), page.rows, RUN) == []
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()
    assert notices.restore().rows_restored == 3
    notices.assert_invariant()


@pytest.mark.both_servers
def test_copies_whose_pointer_goes_while_release_hashes_them_are_not_freed(notices: Installation) -> None:
    notices.insert([OLD] * 3)
    notices.insert(['{"name": "the slow one"}'])
    notices.copy()
    notices.verify()
    hash_waits_for(notices.connection, "the slow one")
    notices.connection.execute("SELECT pg_advisory_lock(1)")
    with in_thread(notices.release) as release:
        wait_until_blocked(notices.connection)
        assert notices.restore().pointers_dropped == 4
        notices.connection.execute("SELECT pg_advisory_unlock(1)")
        released = release.result(timeout=30)
    assert (released.rows_released, released.rows_failed) == (0, 0)
    assert notices.one_status() == "inline"
    notices.assert_invariant()


def test_a_release_that_has_not_committed_yet_is_not_waited_for(notices: Installation) -> None:
    (key,) = notices.insert([OLD])
    notices.copy()
    with psycopg.connect(notices.database_url) as other:
        notices.execute(
            "UPDATE {table} SET raw_payload = NULL, payload_storage_status = 'in_storage'", connection=other
        )
        assert notices.restore().rows_left == 1
    assert notices.statuses() == {key: "in_storage"}
    finish(notices)


@pytest.mark.parametrize("moment", ["before_trailer", "after_trailer", "before_get", "after_get"])
@pytest.mark.parametrize("status", ["copied", "in_storage"])
def test_a_row_restored_during_verification_is_not_blamed_on_it(
    notices: Installation, moment: str, status: str
) -> None:
    notices.insert([large_payload(300, seed) for seed in range(4)])
    notices.copy()
    if status == "in_storage":
        notices.verify()
        notices.release()
    turn = threading.Lock()

    def restore(_object_key: str) -> None:
        with turn:
            notices.restore()

    verified = notices.with_store(HookedStore(notices.store, **{moment: restore})).verify(full=status == "in_storage")
    assert verified.passed
    notices.restore()
    assert notices.one_status() == "inline"
    notices.assert_invariant()


def test_a_copy_queued_again_by_verification_keeps_its_payload_and_is_not_held(notices: Installation) -> None:
    notices.insert([large_payload(300)])
    notices.copy()
    with notices.pipeline.connect() as connection:
        page = read_page(notices, connection)
        notices.store.put(str(page.rows[0].named.object_key), b"not the payload")
        assert notices.verify().damaged
        with transaction(connection):
            assert drop_pointers(connection, notices.partition(), page.rows, RUN) == []
    assert notices.one_status() == "pending_move"
    assert notices.drain().is_sound
    notices.assert_invariant()


@pytest.mark.both_servers
def test_of_two_restores_at_once_each_row_is_done_by_one(notices: Installation) -> None:
    notices.insert([large_payload(300, seed) for seed in range(20)])
    notices.drain()
    only_once = threading.Lock()
    first: list[int] = []

    def restore(_object_key: str) -> None:
        if only_once.acquire(blocking=False):
            first.append(notices.restore().rows_restored)

    second = notices.with_store(HookedStore(notices.store, after_get=restore)).restore()
    assert first == [20]
    assert (second.rows_restored, second.rows_left, second.rows_failed) == (0, 20, 0)
    assert logged(notices)[0] == 20
    notices.assert_invariant()


def test_many_restores_at_once_do_each_row_once(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, sections=SECTIONS) as notices:
        notices.insert([large_payload(300, seed) for seed in range(100)])
        notices.drain()
        results: list[Any] = []
        threads = [threading.Thread(target=lambda: results.append(notices.restore())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(result.rows_restored for result in results) == 100
        assert all(result.is_sound for result in results)
        assert logged(notices)[0] == 100
        assert notices.one_status() == "inline"
        notices.assert_invariant()


def test_while_objects_are_read_nothing_is_locked_and_no_transaction_is_open(
    database_url: str, local_store_url: str
) -> None:
    with installed(database_url, local_store_url, sections={"offload": {"batches_in_flight": 1}}) as notices:
        notices.insert([large_payload(300, seed) for seed in range(5)])
        notices.drain()
        seen: list[int] = []
        turn = threading.Lock()

        def look(_object_key: str) -> None:
            with turn:
                notices.execute("SELECT FROM {table} FOR UPDATE NOWAIT")
                seen.append(open_transactions(notices.connection))

        notices.with_store(HookedStore(notices.store, before_get=look)).restore()
        assert seen == [0] * 5


@pytest.mark.parametrize("moment", ["before_get", "after_get"])
def test_a_database_that_crashes_in_the_middle_loses_nothing_and_no_row_is_done_twice(
    database_url: str, local_store_url: str, postgres_server: PostgresServer, moment: str
) -> None:
    one_at_a_time = {"offload": {"batch_rows": 3, "batches_in_flight": 1}}
    with installed(database_url, local_store_url, sections=one_at_a_time) as before:
        keys = before.insert(large_payload(300, number) for number in range(10))
        before.drain()
        crash_at = before.object_key(keys[7])

        def crash(object_key: str) -> None:
            if object_key == crash_at:
                postgres_server.restart("immediate")

        one_line = r"^notices, tenant 'acme': the database failed \([^\n]*\); run it again$"
        with pytest.raises(TransientError, match=one_line):
            before.with_store(HookedStore(before.store, **{moment: crash})).restore()
        before.connection.close()
        with psycopg.connect(database_url, autocommit=True) as connection:
            notices = replace(before, connection=connection)
            notices.assert_invariant()
            assert list(notices.statuses().values()).count("inline") == 6, "the pages before"
            assert notices.restore().rows_restored == 4
            assert logged(notices)[0] == 10
            assert notices.failures() == {}
            notices.assert_invariant()


def kill_again_and_again(notices: Installation, folder: Path, kills: int) -> None:
    """Workers that move rows to storage and back, and an application that goes on writing."""
    notices.connection.execute("CREATE TABLE written (id bigint PRIMARY KEY, sha256 text)")
    for number in range(ROWS):
        notices.connection.execute(WRITES["insert"], {"payload": large_payload(1000, -number)})
    rng = random.Random(kills)  # noqa: S311 - moments, not secrets
    life = threading.Event()
    with Writer(notices.database_url, kills).writing() as writer:
        for _ in range(kills):
            worker = start_worker(notices.pipeline, folder, "return", passes=FOREVER)
            try:
                assert wait_until(lambda: is_at_work(notices)), "the worker did not come to work"
                life.wait(rng.uniform(0, 4 * LONGEST_LIFE_SECONDS))
            finally:
                worker.kill()
                worker.communicate()
            assert_invariant_in_a_snapshot(notices)
            assert wait_until(lambda: open_transactions(notices.connection) == 0), "a transaction outlived its worker"
            assert advisory_locks(notices.connection) == 0
    assert writer.writes > kills
    assert logged(notices)[0] > 0, "they lived long enough to restore something"

    notices.expected = what_was_written(notices.connection)
    notices.assert_invariant()
    assert notices.restore().is_sound
    assert set(notices.statuses().values()) <= {"inline", "pending_move"}
    notices.assert_invariant()


def test_workers_killed_between_storage_and_rows_lose_nothing(
    database_url: str, local_store_url: str, tmp_path: Path
) -> None:
    with installed(database_url, local_store_url, sections=SECTIONS) as notices:
        kill_again_and_again(notices, tmp_path, KILLS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_killed_very_often_between_storage_and_rows_lose_nothing(
    database_url: str, any_store: StoreAddress, tmp_path: Path
) -> None:
    with installed(database_url, any_store, sections=SECTIONS) as notices:
        kill_again_and_again(notices, tmp_path, MANY_KILLS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("payload_type", ["text", "jsonb"])
def test_memory_stays_bounded_with_many_rows_and_large_payloads_among_them(
    database_url: str, local_store_url: str, tmp_path: Path, payload_type: str
) -> None:
    with installed(database_url, local_store_url, payload_type=payload_type) as notices:
        insert_rows(notices, 3_000, "acme") if payload_type == "jsonb" else None
        notices.insert([large_payload(TEN_MEGABYTES, seed) for seed in range(6)])
        rows = len(notices.statuses())
        assert notices.drain().released.rows_released == rows
        result = result_of(start_worker(notices.pipeline, tmp_path, "restore"))
        assert result["rows_restored"] == rows
        assert result["peak_megabytes"] < LIMIT_MEGABYTES
