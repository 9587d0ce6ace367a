"""A row that fails is recorded, waits longer each time, gives up loudly, and never stops the others."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from offload_pipeline.errors import (
    ObjectDamagedError,
    OffloadError,
    PermanentError,
    StoreDeniedError,
    StoreUnavailableError,
    TransientError,
)
from offload_pipeline.offload.failures import open_failures
from offload_pipeline.offload.workers import STORE_DOWN_AFTER_FAILURES
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.offload.installation import Installation, installed
from offload_pipeline_tests.offload.stores import HookedStore

MAX_ATTEMPTS = 3
OPTIONS = {"offload": {"max_attempts": MAX_ATTEMPTS, "store_threads": 4, "batches_in_flight": 1}}
SMALL, LARGE = '{"n": 1}', '{"n": "a payload that is larger than the bucket takes"}'


class RefusingStore(ObjectStore):
    """Refuses every PUT whose key holds one of `parts`, with this error."""

    def __init__(self, inner: ObjectStore, error: OffloadError, *parts: str) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self._error, self._parts = error, parts
        self.attempts: Counter[str] = Counter()

    def put(self, key: str, data: bytes) -> None:
        self.attempts[key] += 1
        if any(part in key for part in self._parts):
            raise self._error
        super().put(key, data)


def wait_seconds(notices: Installation, key: str) -> float:
    failure = notices.failures()[key]
    return float((failure["next_attempt_at"] - failure["last_failed_at"]).total_seconds())


@pytest.mark.both_servers
def test_a_row_that_fails_is_recorded_and_the_others_go_on(notices: Installation) -> None:
    notices.insert([SMALL] * 3)
    refusing = notices.with_store(RefusingStore(notices.store, StoreUnavailableError("the store failed (503)"), "/2/"))
    result = refusing.copy()
    assert (result.rows_copied, result.rows_failed, result.stopped_by) == (2, 1, None)
    failure = notices.failures()["2"]
    assert (failure["table_name"], failure["tenant_id"], failure["stage"]) == ("notices", "acme", "copy")
    assert (failure["error_class"], failure["message"]) == ("StoreUnavailableError", "the store failed (503)")
    assert (failure["attempts"], failure["permanent"], failure["resolved_at"]) == (1, False, None)
    assert not refusing.drain().copied.rows_failed, "not due yet"
    notices.assert_invariant()


def test_a_failed_row_waits_ever_longer_and_is_given_up_loudly(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, sections=OPTIONS) as notices:
        notices.insert([SMALL] * 2)
        store = RefusingStore(notices.store, TransientError("it may pass"), "/1/")
        refusing = notices.with_store(store)
        waits: list[float] = []
        for attempt in range(1, MAX_ATTEMPTS + 1):
            assert refusing.copy().rows_failed == 1
            assert refusing.copy().rows_failed == 0, "not before the wait is over"
            assert notices.failures()["1"]["attempts"] == attempt
            waits.append(wait_seconds(notices, "1"))
            notices.let_time_pass()
        for attempt, seconds in enumerate(waits):
            least = max(30, sum(waits[:attempt]))
            assert least - 1 <= seconds <= 1.5 * least + 3, (
                "as long as it has failed so far, and up to half as much again"
            )
        assert refusing.copy().rows_failed == 0, "given up"
        assert max(store.attempts.values()) == MAX_ATTEMPTS
        (failure,) = open_failures(notices.connection, "public", MAX_ATTEMPTS)
        assert (failure.primary_key, failure.given_up) == ("1", True)
        notices.assert_invariant()

        notices.write(1, LARGE)
        assert notices.drain().is_sound, "a row that has changed is tried again at once"
        assert notices.one_status() == "in_storage"
        assert open_failures(notices.connection, "public", MAX_ATTEMPTS) == []
        notices.assert_invariant()


def test_an_outage_of_the_store_uses_up_no_attempts(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, sections=OPTIONS) as notices:
        notices.insert([SMALL])
        refusing = notices.with_store(
            RefusingStore(notices.store, StoreUnavailableError("the store failed (503)"), "/")
        )
        for _ in range(2 * MAX_ATTEMPTS):
            assert refusing.copy().rows_failed == 1
            assert wait_seconds(notices, "1") < 25 * 60, "and it ends soon after the outage does"
            notices.let_time_pass()
        assert not any(failure.given_up for failure in open_failures(notices.connection, "public", MAX_ATTEMPTS))
        assert notices.drain().is_sound
        notices.assert_invariant()


def test_a_failure_is_resolved_when_the_row_succeeds_and_counted_anew_when_it_fails_again(
    notices: Installation,
) -> None:
    notices.insert([SMALL])
    refusing = notices.with_store(RefusingStore(notices.store, TransientError("it may pass"), "/1/"))
    refusing.copy()
    notices.let_time_pass()
    refusing.copy()
    assert notices.failures()["1"]["attempts"] == 2
    notices.let_time_pass()
    assert notices.copy().rows_copied == 1
    assert notices.failures()["1"]["resolved_at"] is not None
    notices.write(1, LARGE)
    refusing.copy()
    failure = notices.failures()["1"]
    assert (failure["attempts"], failure["resolved_at"]) == (1, None)
    notices.assert_invariant()


def test_a_permanent_failure_is_not_tried_again_until_the_row_changes(notices: Installation) -> None:
    notices.insert([SMALL])
    store = RefusingStore(notices.store, PermanentError("the store refuses it (400)"), "/1/")
    for _ in range(3):
        notices.with_store(store).copy()
        notices.let_time_pass()
    assert sum(store.attempts.values()) == 1
    assert notices.failures()["1"]["permanent"]
    notices.write(1, LARGE)
    assert notices.drain().is_sound
    notices.assert_invariant()


def test_a_payload_above_max_object_bytes_stays_in_its_row_and_is_recorded(
    database_url: str, local_store_url: str
) -> None:
    with installed(database_url, local_store_url, max_object_bytes=len(LARGE) - 1) as notices:
        large, small = notices.insert([LARGE, SMALL])
        drained = notices.drain()
        assert (drained.copied.rows_copied, drained.copied.rows_failed) == (1, 1)
        assert notices.statuses() == {large: "pending_move", small: "in_storage"}
        failure = notices.failures()[str(large)]
        assert (failure["error_class"], failure["permanent"]) == ("PayloadTooLargeError", True)
        assert "max_object_bytes" in failure["message"]
        notices.assert_invariant()
        notices.write(large, SMALL)
        assert notices.drain().is_sound
        notices.assert_invariant()


@pytest.mark.both_servers
def test_a_payload_that_cannot_be_read_is_recorded_and_the_others_go_on(
    database_url: str, local_store_url: str
) -> None:
    with installed(database_url, local_store_url, payload_type="text") as notices:
        keys = notices.insert([SMALL] * 4)
        # Bytes that are no UTF-8, as a broken disk leaves them; the read refuses them, the row itself does not.
        notices.connection.execute("CREATE CAST (bytea AS text) WITHOUT FUNCTION")
        notices.execute(r"UPDATE {table} SET raw_payload = ('\xc3'::bytea)::text WHERE id = %s", keys[2])
        result = notices.copy()
        assert (result.rows_copied, result.rows_failed) == (3, 1)
        failure = notices.failures()[str(keys[2])]
        assert failure["error_class"] == "CharacterNotInRepertoire"
        assert (failure["permanent"], failure["attempts"]) == (False, 1)
        assert notices.copy().rows_failed == 0, "not due yet"
        notices.write(keys[2], SMALL)
        assert notices.drain().is_sound
        assert notices.one_status() == "in_storage"
        notices.assert_invariant()


def refuse_by_check(notices: Installation) -> str:
    notices.execute("ALTER TABLE {table} ADD CHECK (id <> 2 OR payload_storage_status <> 'copied')")
    return "CheckViolation"


def refuse_by_trigger(notices: Installation) -> str:
    notices.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'row % is frozen', NEW.id; END $$"
    )
    notices.execute(
        "CREATE TRIGGER frozen BEFORE UPDATE ON {table} FOR EACH ROW"
        " WHEN (NEW.id = 2 AND NEW.payload_storage_status = 'copied') EXECUTE FUNCTION refuse()"
    )
    return "RaiseException"


def refuse_at_commit(notices: Installation) -> str:
    refuse_by_trigger(notices)
    notices.execute(
        "DROP TRIGGER frozen ON {table}; CREATE CONSTRAINT TRIGGER frozen AFTER UPDATE ON {table} DEFERRABLE INITIALLY"
        " DEFERRED FOR EACH ROW WHEN (NEW.id = 2 AND NEW.payload_storage_status = 'copied') EXECUTE FUNCTION refuse()"
    )
    return "RaiseException"


@pytest.mark.parametrize("refuse", [refuse_by_check, refuse_by_trigger, refuse_at_commit])
def test_a_row_that_the_table_refuses_to_record_does_not_stop_the_others(
    notices: Installation, refuse: Callable[[Installation], str]
) -> None:
    notices.insert([SMALL] * 3)
    error_class = refuse(notices)
    result = notices.copy()
    assert (result.rows_copied, result.rows_left, result.rows_failed) == (2, 0, 1)
    assert notices.statuses() == {1: "copied", 2: "pending_move", 3: "copied"}
    assert notices.failures()["2"]["error_class"] == error_class
    notices.assert_invariant()


def test_a_row_that_a_trigger_silently_refuses_to_record_is_left(notices: Installation) -> None:
    notices.insert([SMALL] * 2)
    notices.connection.execute(
        "CREATE FUNCTION ignore() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
    )
    notices.execute(
        "CREATE TRIGGER ignore BEFORE UPDATE ON {table} FOR EACH ROW WHEN (OLD.id = 2) EXECUTE FUNCTION ignore()"
    )
    assert notices.copy().rows_left == 1
    assert notices.statuses() == {1: "copied", 2: "pending_move"}
    notices.assert_invariant()


def test_a_store_that_is_down_ends_the_pass_early_and_costs_few_rows_an_attempt(
    database_url: str, local_store_url: str
) -> None:
    with installed(database_url, local_store_url, sections=OPTIONS) as notices:
        notices.insert([SMALL] * 200)
        store = RefusingStore(notices.store, StoreUnavailableError("the store failed (503)"), "/")
        result = notices.with_store(store).copy()
        assert isinstance(result.stopped_by, StoreUnavailableError)
        threads = OPTIONS["offload"]["store_threads"]
        assert STORE_DOWN_AFTER_FAILURES <= result.rows_failed < STORE_DOWN_AFTER_FAILURES + threads
        assert sum(store.attempts.values()) == result.rows_failed == len(notices.failures())
        assert notices.one_status() == "pending_move"
        notices.assert_invariant()
        notices.let_time_pass()
        assert notices.drain().is_sound
        assert notices.one_status() == "in_storage"
        notices.assert_invariant()


def test_a_store_that_denies_ends_the_pass_at_once_and_costs_no_row_an_attempt(notices: Installation) -> None:
    notices.insert([SMALL] * 50)
    store = RefusingStore(notices.store, StoreDeniedError("access denied (403)"), "/")
    result = notices.with_store(store).drain().copied
    assert isinstance(result.stopped_by, StoreDeniedError)
    assert result.rows_failed == 0
    assert sum(store.attempts.values()) <= notices.pipeline.config.offload.store_threads
    assert notices.failures() == {}
    assert notices.drain().is_sound
    notices.assert_invariant()


@pytest.mark.parametrize("moment", ["before_put", "after_get"])
def test_a_connection_that_is_ended_mid_batch_loses_nothing(notices: Installation, moment: str) -> None:
    notices.insert([SMALL] * 5)

    def end_the_workers(_key: str) -> None:
        with psycopg.connect(notices.database_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'offload_pipeline'"
            )

    hooks: dict[str, Any] = {moment: end_the_workers}
    with pytest.raises(TransientError) as raised:
        notices.with_store(HookedStore(notices.store, **hooks)).copy()
    assert "\n" not in str(raised.value)
    assert "run it again" in str(raised.value)
    notices.assert_invariant()
    assert notices.failures() == {}
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


def test_damage_found_in_a_released_row_stays_reported(notices: Installation) -> None:
    (key,) = notices.insert([SMALL])
    notices.drain()
    notices.store.put(notices.object_key(key), b"not the payload")
    (damage,) = notices.verify().damaged
    assert isinstance(damage.error, ObjectDamagedError)
    (failure,) = open_failures(notices.connection, "public", MAX_ATTEMPTS)
    assert (failure.stage, failure.error_class) == ("verify", "ObjectDamagedError")
