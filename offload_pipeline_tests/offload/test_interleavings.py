"""The application writes at every step of the protocol, and what it wrote stays."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from offload_pipeline.database.connection import transaction
from offload_pipeline.offload.claims import BatchLimits, ClaimedRow, PendingBatches, Piece
from offload_pipeline.offload.storing import store_payload
from offload_pipeline_tests.factories import row_hashes
from offload_pipeline_tests.offload.installation import RUN, Installation, installed, rows_of
from offload_pipeline_tests.offload.stores import HookedStore
from offload_pipeline_tests.offload.waiting import blocked_sessions, in_thread, wait_until_blocked

NEVER_WAITS_SECONDS = 3  # the core's own lock_timeout is 5 s: whoever waits for a lock, takes longer
NEW = '{"written": "meanwhile"}'
OLD = '{"written": "first"}'


class Application:
    """Does to each of its rows what the row is named for, on a connection of its own, once."""

    ROWS = ("kept", "updated", "deleted", "rekeyed", "moved", "changed and changed back", "emptied", "touched")

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._turn = threading.Lock()
        self._rows = dict(zip(installation.insert([OLD] * len(self.ROWS)), self.ROWS, strict=True))
        self.connection = psycopg.connect(installation.database_url, autocommit=True)

    def act(self, *_: Any) -> None:
        """All at once."""
        for key in list(self._rows):
            self._act_on(key)

    def act_on_row_of(self, object_key: str) -> None:
        """As the hook of a store."""
        self._act_on(int(object_key.split("/")[2]))

    def _act_on(self, key: int) -> None:
        with self._turn:
            row, expected = self._rows.pop(key, "kept"), self._installation.expected
            if row == "updated":
                self._do("UPDATE {table} SET raw_payload = %s WHERE id = %s", NEW, key)
            elif row == "deleted":
                self._do("DELETE FROM {table} WHERE id = %s", key)
                del expected[key]
            elif row == "rekeyed":
                # To before the first row: a pass that has begun does not meet it again.
                self._do("UPDATE {table} SET id = %s WHERE id = %s", -key, key)
                expected[-key] = expected.pop(key)
            elif row == "moved":
                self._do("UPDATE {table} SET tenant_id = 'globex' WHERE id = %s", key)
            elif row == "changed and changed back":
                self._do("UPDATE {table} SET raw_payload = %s WHERE id = %s", NEW, key)
                self._do("UPDATE {table} SET raw_payload = %s WHERE id = %s", OLD, key)
            elif row == "emptied":
                self._do("UPDATE {table} SET raw_payload = NULL WHERE id = %s", key)
                expected[key] = None
            elif row == "touched":
                self._do("UPDATE {table} SET created_at = now() WHERE id = %s", key)
            if row == "updated":
                expected.update({key: row_hashes(self.connection, self._installation.config)[key]})

    def _do(self, statement: str, *values: Any) -> None:
        self._installation.execute(statement, *values, connection=self.connection)

    def has_acted(self) -> bool:
        return all(row == "kept" for row in self._rows.values())


@pytest.fixture
def application(notices: Installation) -> Iterator[Application]:
    found = Application(notices)
    yield found
    found.connection.close()


def finish(notices: Installation) -> None:
    """Passes over both tenants until nothing is pending: everything that has a payload ends in storage."""
    notices.assert_invariant()
    for tenant in ("acme", "globex", "acme"):
        drained = notices.drain(tenant)
        assert drained.verified.passed
        assert drained.copied.rows_failed == drained.released.rows_failed == 0
        notices.assert_invariant()
    wanted = {key: "inline" if sha256 is None else "in_storage" for key, sha256 in notices.expected.items()}
    assert notices.statuses() == wanted


@pytest.mark.parametrize("moment", ["before_put", "after_put", "after_get"])
def test_rows_written_while_they_are_copied_keep_what_was_written(
    notices: Installation, application: Application, moment: str
) -> None:
    result = notices.with_store(HookedStore(notices.store, **{moment: application.act_on_row_of})).copy()
    assert application.has_acted()
    assert (result.rows_copied, result.rows_left, result.rows_failed) == (1, 7, 0)
    finish(notices)


@pytest.mark.both_servers
def test_rows_written_between_claim_and_reading_keep_what_was_written(
    notices: Installation, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = PendingBatches._read

    def write_then_read(self: PendingBatches, connection: psycopg.Connection, keys: list[Any]) -> Piece:
        application.act()
        return read(self, connection, keys)

    monkeypatch.setattr(PendingBatches, "_read", write_then_read)
    result = notices.copy()
    assert application.has_acted()
    assert result.rows_copied == 4, "kept, updated, changed and changed back, touched: read after the write"
    finish(notices)


@pytest.mark.both_servers
def test_rows_written_between_read_back_and_recording_keep_what_was_written(
    notices: Installation, application: Application
) -> None:
    partition = notices.partition()
    batches = PendingBatches(notices.pipeline.database, partition, BatchLimits(100, 10**6), max_attempts=3)
    with notices.pipeline.connect() as connection:
        with transaction(connection):
            batch = batches.claim(connection)
            assert batch is not None
            stored = [store_payload(notices.store, partition, row, "standard") for row in rows_of(batch)]
            application.act()
            recorded = notices.record(connection, stored)
        assert [item.key for item in recorded] == [("1",)]
    finish(notices)


def test_rows_written_between_copy_and_verification_keep_what_was_written(
    notices: Installation, application: Application
) -> None:
    notices.copy()
    application.act()
    finish(notices)


@pytest.mark.parametrize("moment", ["before_trailer", "after_trailer", "before_get", "after_get"])
def test_rows_written_during_verification_keep_what_was_written(
    notices: Installation, application: Application, moment: str
) -> None:
    notices.copy()
    hooked = notices.with_store(HookedStore(notices.store, **{moment: application.act_on_row_of}))
    assert hooked.verify().passed, "a row that no longer names the object cannot damage the pass"
    assert application.has_acted()
    notices.assert_invariant()
    notices.release()
    finish(notices)


@pytest.mark.both_servers
def test_rows_written_between_verification_and_release_keep_what_was_written(
    notices: Installation, application: Application
) -> None:
    notices.copy()
    notices.verify()
    application.act()
    released = notices.release()
    assert (released.rows_released, released.rows_failed) == (2, 0), "kept and touched"
    finish(notices)


def test_rows_written_after_the_release_keep_what_was_written(notices: Installation, application: Application) -> None:
    notices.drain()
    for key, row in zip(list(notices.expected), Application.ROWS, strict=True):
        if row == "emptied":  # refused: NULL over NULL would lose the payload without a word
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                notices.execute("UPDATE {table} SET raw_payload = NULL WHERE id = %s", key)
            application._rows.pop(key)
    application.act()
    finish(notices)


def hash_waits_for(connection: psycopg.Connection, marker: str) -> None:
    """From now on sha256() of a payload that holds `marker` waits for advisory lock 1: release stops in mid-statement.

    A sha256() of the test's own stands in the search path before PostgreSQL's.
    """
    connection.execute("CREATE SCHEMA slow")
    connection.execute(
        "CREATE FUNCTION slow.sha256(payload bytea) RETURNS bytea LANGUAGE plpgsql AS $$ BEGIN"
        f" IF position('{marker}'::bytea IN payload) > 0 THEN"
        " PERFORM pg_advisory_lock_shared(1); PERFORM pg_advisory_unlock_shared(1);"
        " END IF; RETURN pg_catalog.sha256(payload); END $$"
    )
    connection.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = slow, pg_catalog, public',"
        " current_database()); END $$"
    )


@pytest.mark.both_servers
def test_rows_written_between_the_hash_of_release_and_its_update_keep_what_was_written(
    notices: Installation, application: Application
) -> None:
    notices.insert(['{"name": "the slow one"}'])
    notices.copy()
    notices.verify()
    hash_waits_for(notices.connection, "the slow one")
    notices.connection.execute("SELECT pg_advisory_lock(1)")
    with in_thread(notices.release) as release:
        wait_until_blocked(notices.connection)
        application.connection.execute("SET statement_timeout = '2s'")
        application.act()  # the rows before the slow one are hashed, and must not be locked
        notices.connection.execute("SELECT pg_advisory_unlock(1)")
        released = release.result(timeout=30)
    assert (released.rows_released, released.rows_failed) == (2, 0), "kept, and the slow one"
    assert released.rows_left == 7
    finish(notices)


@pytest.mark.parametrize("step", ["copy", "release"])
def test_a_row_that_the_application_holds_is_left_for_the_next_pass_without_waiting(
    notices: Installation, application: Application, step: str
) -> None:
    keys = notices.insert([OLD, OLD, OLD])
    if step == "release":
        notices.copy()
        notices.verify()
    with application.connection.transaction():
        notices.execute("SELECT FROM {table} WHERE id = %s FOR UPDATE", keys[1], connection=application.connection)
        started = time.monotonic()
        result = notices.copy() if step == "copy" else notices.release()
        seconds = time.monotonic() - started
    assert seconds < NEVER_WAITS_SECONDS
    assert (result.rows_left, result.rows_failed) == (1, 0)
    finished = {"copy": "copied", "release": "in_storage"}[step]
    assert [key for key, status in notices.statuses().items() if status != finished] == [keys[1]]
    finish(notices)


@pytest.mark.parametrize("step", ["copy", "release"])
def test_a_row_that_the_application_has_changed_and_not_yet_committed_is_left(
    notices: Installation, application: Application, step: str
) -> None:
    (key,) = notices.insert([OLD])
    if step == "release":
        notices.copy()
        notices.verify()
    with application.connection.transaction():
        notices.execute(
            "UPDATE {table} SET raw_payload = %s WHERE id = %s", NEW, key, connection=application.connection
        )
        result = notices.copy() if step == "copy" else notices.release()
    assert (result.rows_left, result.rows_failed) == (1, 0)
    notices.take_rows_as_expected([key])
    finish(notices)


def test_the_application_waits_for_our_row_locks_no_longer_than_for_the_commit(
    notices: Installation, application: Application
) -> None:
    key = next(iter(notices.expected))
    partition = notices.partition()
    batches = PendingBatches(notices.pipeline.database, partition, BatchLimits(100, 10**6), max_attempts=3)

    def write() -> None:
        notices.execute(
            "UPDATE {table} SET raw_payload = %s WHERE id = %s", NEW, key, connection=application.connection
        )

    application.connection.execute("SET application_name = 'the application'")
    with notices.pipeline.connect() as connection:
        with connection.transaction():
            batch = batches.claim(connection)
            assert batch is not None
            stored = [store_payload(notices.store, partition, row, "standard") for row in rows_of(batch)]
            assert len(notices.record(connection, stored)) == len(Application.ROWS)
            thread = threading.Thread(target=write)
            thread.start()
            wait_until_blocked(notices.connection, "the application")
        thread.join(NEVER_WAITS_SECONDS)
        assert not thread.is_alive()
    notices.take_rows_as_expected([key])
    finish(notices)


def assert_nothing_is_locked_while_objects_are_uploaded(notices: Installation, application: Application) -> None:
    seen: list[tuple[int, int]] = []
    turn = threading.Lock()

    def look(_object_key: str) -> None:
        with turn:
            notices.execute("SELECT FROM {table} FOR UPDATE NOWAIT", connection=application.connection)
            row = application.connection.execute(
                "SELECT count(backend_xmin) + count(backend_xid), count(*) FILTER (WHERE xact_start IS NOT NULL)"
                " FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'offload_pipeline'"
            ).fetchone()
            assert row is not None
            seen.append(row)

    hooked = notices.with_store(HookedStore(notices.store, before_get=look))
    copied = hooked.pipeline.copy(notices.partition(), RUN, unseen=True)
    assert copied.rows_copied == len(seen) > 0
    assert all(horizons == 0 and transactions >= 1 for horizons, transactions in seen)


def test_while_objects_are_uploaded_nothing_is_locked_and_vacuum_is_not_held_back(
    notices: Installation, application: Application
) -> None:
    assert_nothing_is_locked_while_objects_are_uploaded(notices, application)


def test_while_rows_older_than_the_trigger_are_uploaded_nothing_is_locked(
    database_url: str, local_store_url: str
) -> None:
    few_bytes_a_batch = {"offload": {"batch_bytes": 50, "batches_in_flight": 1}}
    with installed(database_url, local_store_url, sections=few_bytes_a_batch) as notices:
        application = Application(notices)
        notices.execute("UPDATE {table} SET payload_storage_status = NULL, payload_bytes = NULL")
        assert_nothing_is_locked_while_objects_are_uploaded(notices, application)
        finish(notices)
        application.connection.close()


def change_past_the_trigger(notices: Installation, statement: str, *values: Any) -> None:
    with notices.connection.transaction():
        notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
        notices.execute(statement, *values)
        notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")


@pytest.mark.parametrize("is_verified_before", [True, False])
def test_a_payload_written_past_the_trigger_is_not_freed_but_stored_anew(
    notices: Installation, is_verified_before: bool
) -> None:
    first, second = notices.insert([OLD, OLD])
    notices.copy()
    if is_verified_before:
        notices.verify()
    change_past_the_trigger(notices, "UPDATE {table} SET raw_payload = %s WHERE id = %s", NEW, first)
    notices.take_rows_as_expected([first])
    if not is_verified_before:
        assert not notices.verify(sample_rows=0).damaged, "the object itself is sound"
    released = notices.release()
    assert (released.rows_released, released.rows_failed) == (1, 1)
    assert notices.statuses() == {first: "pending_move", second: "in_storage"}
    assert notices.failures()[str(first)]["stage"] == "release"
    finish(notices)
    assert notices.failures()[str(first)]["resolved_at"] is not None


def test_a_payload_removed_past_the_trigger_frees_nothing_else(notices: Installation) -> None:
    first, second = notices.insert([OLD, OLD])
    notices.copy()
    notices.verify()
    change_past_the_trigger(notices, "UPDATE {table} SET raw_payload = NULL WHERE id = %s", first)
    assert notices.release().rows_released == 1
    assert notices.statuses() == {first: "copied", second: "in_storage"}
    assert notices.store.get(notices.object_key(first)), "the only copy that is left stays where the row says"


def test_a_copy_that_moves_to_a_tenant_whose_gate_is_open_is_verified_there_before_it_is_freed(
    notices: Installation,
) -> None:
    (moved,) = notices.insert([OLD], tenant="acme")
    notices.copy("acme")
    notices.store.put(notices.object_key(moved), b"not the payload")
    notices.insert([OLD], tenant="globex")
    assert notices.drain("globex").is_sound
    notices.execute("UPDATE {table} SET tenant_id = 'globex' WHERE id = %s", moved)
    notices.verify("globex", sample_rows=0)
    notices.release("globex")
    assert notices.statuses()[moved] == "pending_move"
    finish(notices)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_the_guards_hold_whatever_the_default_isolation_of_the_database(
    database_url: str, local_store_url: str, isolation: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = %L',"
            f" current_database(), '{isolation}'); END $$"
        )
    with installed(database_url, local_store_url) as notices:
        application = Application(notices)
        hooked = notices.with_store(HookedStore(notices.store, after_put=application.act_on_row_of))
        result = hooked.copy()
        assert (result.rows_copied, result.rows_left, result.rows_failed) == (1, 7, 0)
        finish(notices)
        application.connection.close()


def test_a_row_is_recorded_only_while_it_is_pending(notices: Installation) -> None:
    (key,) = notices.insert([OLD])
    notices.execute("UPDATE {table} SET payload_storage_status = 'inline'")
    (xmin,) = notices.execute("SELECT xmin::text FROM {table}").fetchone() or ("",)
    partition = notices.partition()
    with notices.pipeline.connect() as connection, transaction(connection):
        row = ClaimedRow((str(key),), xmin, OLD.encode())
        stored = store_payload(notices.store, partition, row, "standard")
        assert notices.record(connection, [stored]) == []
    assert notices.one_status() == "inline"


def test_a_row_is_recorded_only_in_the_version_that_was_read(notices: Installation) -> None:
    (key,) = notices.insert([OLD])
    partition = notices.partition()
    with notices.pipeline.connect() as connection, transaction(connection):
        stale = ClaimedRow((str(key),), "3", b'{"written": "never"}')
        stored = store_payload(notices.store, partition, stale, "standard")
        assert notices.record(connection, [stored]) == []
    assert notices.one_status() == "pending_move"
    assert blocked_sessions(notices.connection) == 0
    finish(notices)
