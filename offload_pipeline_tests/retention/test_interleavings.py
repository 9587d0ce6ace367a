"""Garbage is collected at every step of the protocol, of a payload that comes back under the key it had before.

A row is written A, then B, then A again: the object of A is an orphan until the last copy, and its key is then named
once more. Whatever the collection deletes in between, the payload is in its row or in its object.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import psycopg
import pytest

from offload_pipeline.errors import TransientError
from offload_pipeline.offload import copier
from offload_pipeline.retention import garbage
from offload_pipeline.retention.deletion import Deletion
from offload_pipeline.retention.garbage import _Collector
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline.verification.verifier import VerificationResult
from offload_pipeline_tests.offload.installation import Installation
from offload_pipeline_tests.offload.stores import HookedStore
from offload_pipeline_tests.offload.waiting import advisory_locks, blocked_sessions, in_thread, wait_until_blocked
from offload_pipeline_tests.retention.collecting import (
    MONTH,
    NO_GRACE,
    age,
    collect,
    keys_in,
    logged,
    rewrite,
)
from offload_pipeline_tests.servers import wait_until

A, B = '{"written": "A"}', '{"written": "B"}'


@pytest.fixture
def key(notices: Installation) -> int:
    """A row that was A, is B in storage, and has just been written A again; everything in the store is old."""
    notices.insert(['{"written": "beside it"}'])
    (key,) = notices.insert([A])
    notices.drain()
    rewrite(notices, key, B)
    notices.drain()
    age(notices.store, keys_in(notices.store))
    notices.write(key, A)
    return int(key)


def assert_nothing_is_lost(notices: Installation) -> None:
    """A copy whose payload is still in the row may have lost its object; a payload in storage may not."""
    copied = [key for key, status in notices.statuses().items() if status == "copied"]
    notices.assert_invariant(damaged=copied)


def finish(notices: Installation) -> None:
    """Until everything is in storage; what failed meanwhile is tried again."""
    for _ in range(3):
        assert_nothing_is_lost(notices)
        notices.let_time_pass()
        notices.drain()
    assert notices.one_status() == "in_storage"
    assert notices.verify(full=True).passed
    notices.assert_invariant()
    collect(notices)
    notices.assert_invariant()


GRACES = pytest.mark.parametrize("grace", [NO_GRACE, MONTH], ids=["without grace", "with grace"])


@GRACES
@pytest.mark.parametrize("moment", ["before_put", "after_put", "before_get", "after_get"])
def test_garbage_collected_while_the_payload_is_copied(
    notices: Installation, key: int, moment: str, grace: timedelta
) -> None:
    collected = []
    hooked = HookedStore(notices.store, **{moment: lambda _key: collected.append(collect(notices, grace=grace))})
    copied = notices.with_store(hooked).copy()
    assert len(collected) == 1
    assert collected[0].tables["notices"].deleted > 0
    if grace:
        assert (copied.rows_copied, copied.rows_failed) == (1, 0)
        notices.let_time_pass()
        assert notices.verify().passed, "what was just put is too young to be deleted"
    finish(notices)


@GRACES
def test_garbage_collected_between_recording_and_verification(
    notices: Installation, key: int, grace: timedelta
) -> None:
    notices.copy()
    assert notices.object_key(key) in keys_in(notices.store)
    collect(notices, grace=grace)
    assert notices.verify().passed, "a recorded row names its object"
    finish(notices)


@GRACES
@pytest.mark.parametrize("moment", ["before_trailer", "after_trailer", "before_get", "after_get"])
def test_garbage_collected_during_verification(notices: Installation, key: int, moment: str, grace: timedelta) -> None:
    notices.copy()
    collected = []
    hooked = HookedStore(notices.store, **{moment: lambda _key: collected.append(collect(notices, grace=grace))})
    assert notices.with_store(hooked).verify().passed
    assert collected
    finish(notices)


@GRACES
def test_garbage_collected_between_verification_and_release(notices: Installation, key: int, grace: timedelta) -> None:
    notices.copy()
    notices.verify()
    collect(notices, grace=grace)
    assert notices.release().rows_released == 1
    finish(notices)


@pytest.mark.parametrize("moment", ["before_get", "after_get"])
def test_garbage_collected_during_a_restore(notices: Installation, key: int, moment: str) -> None:
    finish(notices)
    collected = []
    hooked = HookedStore(notices.store, **{moment: lambda _key: collected.append(collect(notices))})
    restored = notices.with_store(hooked).restore()
    assert len(collected) == 2
    assert (restored.rows_restored, restored.rows_failed) == (2, 0)
    assert notices.one_status() == "inline"
    notices.assert_invariant()
    collect(notices)
    assert not keys_in(notices.store)
    notices.assert_invariant()


class DeletesWhenTold(ObjectStore):
    """Stops before each DELETE, after the last look at the object, until the test goes on."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self.reached, self.may_go_on = threading.Event(), threading.Event()

    def delete(self, key: str) -> None:
        self.reached.set()
        assert self.may_go_on.wait(30)
        super().delete(key)


@GRACES
def test_a_copy_does_not_name_an_object_that_is_being_deleted(
    notices: Installation, key: int, grace: timedelta
) -> None:
    """The copy comes between the last look and the DELETE."""
    store = DeletesWhenTold(notices.store)
    with in_thread(lambda: collect(notices.with_store(store), grace=grace)) as collection:
        assert store.reached.wait(30)
        copied = notices.copy()
        assert (copied.rows_copied, copied.rows_failed) == (0, 1)
        assert notices.statuses()[key] == "pending_move"
        notices.assert_invariant()
        store.may_go_on.set()
        assert collection.result(timeout=30).tables["notices"].deleted > 0
    notices.let_time_pass()
    assert notices.copy().rows_copied == 1, "the deletion has been answered"
    notices.assert_invariant()
    finish(notices)


def test_what_is_put_between_the_announcement_and_the_look_is_too_young(
    notices: Installation, key: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copier has asked for announced deletions right before this one was announced."""
    announce = Deletion._announce

    def copy_and_announce(self: Deletion, object_keys: list[str]) -> None:
        assert notices.copy().rows_copied == 1
        announce(self, object_keys)

    monkeypatch.setattr(Deletion, "_announce", copy_and_announce)
    collect(notices, grace=MONTH)
    notices.assert_invariant()
    finish(notices)


def test_a_mark_is_not_set_while_an_object_is_being_deleted(
    notices: Installation, key: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy comes between the last look and the DELETE; verification comes after it, and must see it missing.

    The copier has asked for announced deletions too early, which nothing but the objects' age makes up for.
    """
    monkeypatch.setattr(copier, "announced", lambda *_: set())
    store = DeletesWhenTold(notices.store)
    with in_thread(lambda: collect(notices.with_store(store), grace=MONTH)) as collection:
        assert store.reached.wait(30)
        assert notices.copy().rows_copied == 1
        assert notices.object_key(key) in keys_in(notices.store)
        with in_thread(notices.verify) as verification:
            wait_until_blocked(notices.connection)
            assert notices.release().rows_released == 0, "nothing is released by a mark that is not set"
            store.may_go_on.set()
            result: VerificationResult = verification.result(timeout=30)
        assert collection.result(timeout=30).tables["notices"].deleted > 0
    assert not result.passed
    assert [found.named.key for found in (*result.damaged, *result.unanswered)] == [(str(key),)]
    assert notices.release().rows_released == 0
    finish(notices)


def test_a_row_recorded_before_the_mark_is_seen_by_the_collection_that_comes_after_it(
    notices: Installation, key: int
) -> None:
    """The collection has judged; then the row is recorded and the mark is set; then comes the chunk."""
    judged = []

    def record_and_set_the_mark() -> None:
        notices.copy()
        hooked = HookedStore(notices.store, before_trailer=lambda _key: judged.append(notices.object_key(key)))
        assert notices.with_store(hooked).verify().passed

    with between_judging_and_deleting(record_and_set_the_mark):
        spared = collect(notices).tables["notices"].spared
    assert judged
    assert spared == 1
    assert notices.release().rows_released == 1
    finish(notices)


@contextlib.contextmanager
def between_judging_and_deleting(act: Callable[[], object]) -> Iterator[None]:
    """Acts when the orphans are known and none has been looked at again."""
    original = _Collector.stop_what_looks_wrong

    def then_act(collector: _Collector) -> None:
        original(collector)
        act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Collector, "stop_what_looks_wrong", then_act)
        yield


def orphan_of(notices: Installation, key: int) -> str:
    notices.copy()
    orphan = notices.object_key(key)
    notices.write(key, B)
    notices.drain()
    age(notices.store, keys_in(notices.store))
    return orphan


def test_an_orphan_that_is_put_again_before_it_is_deleted_is_too_young(notices: Installation, key: int) -> None:
    orphan = orphan_of(notices, key)
    with between_judging_and_deleting(lambda: notices.store.put(orphan, notices.store.get(orphan))):
        found = collect(notices, grace=MONTH).tables["notices"]
    assert found.spared == 1
    assert orphan in keys_in(notices.store)


def test_an_orphan_that_a_row_names_again_before_it_is_deleted_stays(notices: Installation, key: int) -> None:
    orphan = orphan_of(notices, key)

    def name_it() -> None:
        notices.connection.execute(
            "INSERT INTO notices (tenant_id, payload_bytes, raw_object_key, payload_hash_sha256)"
            " VALUES ('globex', 16, %s, repeat('a', 64))",
            (orphan,),
        )

    with between_judging_and_deleting(name_it):
        found = collect(notices).tables["notices"]
    assert found.spared == 1
    assert orphan in keys_in(notices.store)


def test_a_row_that_moves_to_another_table_in_mid_look_is_seen_in_one_of_them(notices: Installation, key: int) -> None:
    """Looked for in one table after the other, it would be in neither: not yet in the first, no more in the last."""
    finish(notices)
    before = keys_in(notices.store)
    # Not under the key that its object bears, so that every table is looked through.
    notices.execute("UPDATE {table} SET id = 1000 WHERE id = %s", key)
    for name in ("aaa_archive", "mmm_between"):
        notices.connection.execute(f"CREATE TABLE {name} (LIKE notices)")
    with psycopg.connect(notices.database_url) as application:
        application.execute("LOCK TABLE mmm_between IN ACCESS EXCLUSIVE MODE")
        with in_thread(lambda: collect(notices)) as collection:
            wait_until_blocked(notices.connection)
            notices.connection.execute(
                "WITH moved AS (DELETE FROM notices WHERE id = 1000 RETURNING *)"
                " INSERT INTO aaa_archive SELECT * FROM moved"
            )
            application.rollback()
            found = collection.result(timeout=30).tables["notices"]
    assert (found.named, found.orphans) == (2, 0)
    assert keys_in(notices.store) == before


def hold_object(connection: psycopg.Connection, object_key: str) -> None:
    """What a writer does before it puts the object."""
    connection.execute(
        "SELECT pg_advisory_xact_lock_shared(hashtextextended('offload_pipeline object ' || %s::text, 0))",
        (object_key,),
    )


def test_an_object_that_a_writer_holds_is_passed_over_without_waiting(notices: Installation, key: int) -> None:
    orphan = orphan_of(notices, key)
    with psycopg.connect(notices.database_url) as writer:
        hold_object(writer, orphan)
        held = collect(notices).tables["notices"]
        assert (held.deleted, held.spared) == (0, 1)
        assert orphan in keys_in(notices.store)
    assert collect(notices).tables["notices"].deleted == 1


def test_a_writer_waits_for_the_deletion_of_its_object_and_then_puts_it(notices: Installation, key: int) -> None:
    orphan = orphan_of(notices, key)
    data = notices.store.get(orphan)
    store = DeletesWhenTold(notices.store)

    def write() -> None:
        with psycopg.connect(notices.database_url, application_name="the writer") as writer:
            hold_object(writer, orphan)
            notices.store.put(orphan, data)

    with in_thread(lambda: collect(notices.with_store(store))):
        assert store.reached.wait(30)
        with in_thread(write) as writing:
            wait_until_blocked(notices.connection, "the writer")
            assert not writing.done()
            store.may_go_on.set()
    assert orphan in keys_in(notices.store)


def test_two_collections_at_once_delete_each_orphan_once(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "CHUNK_KEYS", 5)
    for number, key in enumerate(notices.insert([A] * 40)):
        notices.drain()
        rewrite(notices, key, f'{{"n": {number}}}')
    notices.drain()
    named = {notices.object_key(key) for key in notices.expected}
    with in_thread(lambda: collect(notices)) as one, in_thread(lambda: collect(notices)) as other:
        deleted = [found.result(timeout=60).tables["notices"].deleted for found in (one, other)]
    assert sum(deleted) == 40
    assert logged(notices.connection, "gc")[0] == 40
    assert keys_in(notices.store) == named
    notices.assert_invariant()


def test_a_connection_that_is_lost_in_mid_chunk_ends_the_collection_and_loses_nothing(
    notices: Installation, key: int
) -> None:
    store = DeletesWhenTold(notices.store)

    def collect_in_vain() -> None:
        with pytest.raises(TransientError, match="run it again"):
            collect(notices.with_store(store))

    with in_thread(collect_in_vain):
        assert store.reached.wait(30)
        notices.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'offload_pipeline'"
        )
        assert wait_until(lambda: advisory_locks(notices.connection) == 0)
        store.may_go_on.set()
    finish(notices)


def test_verification_and_collection_leave_no_lock_behind(notices: Installation, key: int) -> None:
    notices.drain()
    collect(notices)
    assert advisory_locks(notices.connection) == blocked_sessions(notices.connection) == 0


@pytest.fixture(autouse=True)
def no_session_is_left_waiting(notices: Installation) -> Iterator[None]:
    """Whatever a test did to the locks."""
    yield
    assert blocked_sessions(notices.connection) == 0


def test_the_collection_takes_no_longer_lock_on_the_tables_than_a_look(notices: Installation, key: int) -> None:
    """An ALTER TABLE of the application goes through while objects are being deleted."""
    store = DeletesWhenTold(notices.store)
    with in_thread(lambda: collect(notices.with_store(store))):
        assert store.reached.wait(30)
        with notices.connection.transaction():
            notices.connection.execute("SET LOCAL lock_timeout = '2s'")
            notices.execute("ALTER TABLE {table} ADD COLUMN added integer")
        store.may_go_on.set()


POINTER = "tenant_id, payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256"


@pytest.mark.parametrize("prepares", [False, True], ids=["open", "prepared"])
def test_a_pointer_that_an_older_transaction_holds_unseen_keeps_its_object(
    notices: Installation, prepares: bool
) -> None:
    """Rows put back from a dump, or copied, in a transaction that outlasts the row they came from."""
    (key,) = notices.insert([A])
    notices.drain()
    age(notices.store, keys_in(notices.store))
    with psycopg.connect(notices.database_url) as restoring:
        copied = f"INSERT INTO {{table}} (id, {POINTER}) SELECT 77, {POINTER} FROM {{table}} WHERE id = %s"  # noqa: S608
        notices.execute(copied, key, connection=restoring)
        if prepares:
            restoring.execute("PREPARE TRANSACTION 'restoring'")
        notices.execute("DELETE FROM {table} WHERE id = %s", key)
        result = collect(notices, grace=MONTH, patience=NO_GRACE)
        assert isinstance(result.stopped_by, TransientError)
        assert result.tables["notices"].deleted == 0
        if prepares:
            notices.connection.execute("COMMIT PREPARED 'restoring'")
    notices.expected[77] = notices.expected.pop(key)
    assert collect(notices, grace=MONTH).tables["notices"].orphans == 0
    notices.assert_invariant()


def test_a_session_that_sits_in_a_transaction_and_has_written_nothing_keeps_nobody_waiting(
    notices: Installation, key: int
) -> None:
    with psycopg.connect(notices.database_url) as idle:
        idle.execute("SELECT count(*) FROM notices WHERE id > %s", [0])
        assert collect(notices, patience=NO_GRACE).stopped_by is None
    finish(notices)
