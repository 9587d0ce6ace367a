"""The gate: nothing is freed that verification has not passed, and verification passes nothing it has not seen."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from offload_pipeline.database.connection import transaction
from offload_pipeline.errors import ObjectDamagedError, ObjectMissingError, StoreUnavailableError
from offload_pipeline.offload.claims import BatchLimits, PendingBatches
from offload_pipeline.offload.storing import store_payload
from offload_pipeline.offload.workers import STORE_DOWN_AFTER_FAILURES
from offload_pipeline.storage.object_store import ObjectStore, Trailer
from offload_pipeline.verification import copies, verifier
from offload_pipeline_tests.offload.installation import Installation, installed, rows_of
from offload_pipeline_tests.offload.stores import CountingStore, HookedStore, altered, truncated
from offload_pipeline_tests.offload.waiting import wait_until_blocked
from offload_pipeline_tests.verification.editing import gate, payloads

PAYLOAD = '{"n": 1}'


def stored_at(notices: Installation, key: Any) -> datetime:
    row = notices.execute("SELECT payload_stored_at FROM {table} WHERE id = %s", key).fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


def test_release_before_verification_frees_nothing(notices: Installation) -> None:
    notices.insert(payloads(3))
    assert notices.release().rows_released == 0, "no state yet"
    notices.copy()
    assert notices.release().rows_released == 0
    assert notices.one_status() == "copied"
    notices.assert_invariant()


@pytest.mark.both_servers
def test_release_frees_what_was_verified_and_not_what_was_copied_since(notices: Installation) -> None:
    old = notices.insert(payloads(3))
    notices.copy()
    assert notices.verify().passed
    new = notices.insert(payloads(2, first=3))
    notices.copy()
    assert notices.release().rows_released == 3
    assert notices.statuses() == {**dict.fromkeys(old, "in_storage"), **dict.fromkeys(new, "copied")}
    notices.assert_invariant()


def remove(notices: Installation, key: Any) -> None:
    notices.store.delete(notices.object_key(key))


def truncate(notices: Installation, key: Any) -> None:
    object_key = notices.object_key(key)
    notices.store.put(object_key, truncated(notices.store.get(object_key)))


def empty(notices: Installation, key: Any) -> None:
    notices.store.put(notices.object_key(key), b"")


def alter(notices: Installation, key: Any) -> None:
    object_key = notices.object_key(key)
    notices.store.put(object_key, altered(notices.store.get(object_key)))


def replace_by_another_rows(notices: Installation, key: Any) -> None:
    other = next(found for found in notices.expected if found != key)
    notices.store.put(notices.object_key(key), notices.store.get(notices.object_key(other)))


def replace_by_something_else(notices: Installation, key: Any) -> None:
    notices.store.put(notices.object_key(key), b"<html>404 Not Found</html>")


def edit(assignment: str) -> Callable[[Installation, Any], None]:
    def set_pointer(notices: Installation, key: Any) -> None:
        notices.execute(f"UPDATE {{table}} SET {assignment} WHERE id = %s", key)  # noqa: S608 - the test's own

    return set_pointer


DAMAGE: dict[str, Callable[[Installation, Any], None]] = {
    "object missing": remove,
    "object truncated": truncate,
    "object empty": empty,
    "object altered": alter,
    "object of another row": replace_by_another_rows,
    "object of another kind": replace_by_something_else,
    "wrong key": edit("raw_object_key = 'acme/notices/' || raw_object_key"),
    "key without the hash": edit("raw_object_key = 'elsewhere'"),
    "no key": edit("raw_object_key = NULL"),
    "wrong hash": edit("payload_hash_sha256 = repeat('0', 64)"),
    "no hash": edit("payload_hash_sha256 = NULL"),
    "wrong size": edit("payload_bytes = payload_bytes + 1"),
    "no size": edit("payload_bytes = NULL"),
}
# A look at the trailer of the object cannot tell these; the sample and `--full` can.
NEEDS_READING = {"object altered", "object of another row"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_closes_the_gate_and_the_next_pass_heals_it(notices: Installation, damage: str) -> None:
    keys = notices.insert(payloads(4))
    notices.copy()
    DAMAGE[damage](notices, keys[1])

    result = notices.verify(sample_rows=4 if damage in NEEDS_READING else 0)

    assert not result.passed
    assert [found.named.key for found in result.damaged] == [(str(keys[1]),)]
    assert not result.unanswered
    assert gate(notices) is None, "verified_through does not move"
    assert notices.release().rows_released == 0, "also when release is started alone"
    expected = dict.fromkeys(keys, "copied") | {keys[1]: "pending_move"}
    assert notices.statuses() == expected, "what is damaged is queued again while its payload is in the row"
    failure = notices.failures()[str(keys[1])]
    assert (failure["stage"], failure["resolved_at"]) == ("verify", None)
    assert failure["permanent"]
    notices.assert_invariant()

    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    assert notices.failures()[str(keys[1])]["resolved_at"] is not None
    notices.assert_invariant()


# A row without a key is no copy at all: release itself refuses it.
@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage != "no key"])
def test_a_full_verification_finds_damage_behind_the_gate(notices: Installation, damage: str) -> None:
    keys = notices.insert(payloads(3))
    notices.copy()
    assert notices.verify().passed
    DAMAGE[damage](notices, keys[1])
    assert notices.verify(sample_rows=0).passed, "rows that passed once are not looked at again"
    result = notices.verify(full=True)
    assert [found.named.key for found in result.damaged] == [(str(keys[1]),)]
    assert notices.statuses()[keys[1]] == "pending_move"
    notices.release()
    notices.assert_invariant()
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


def test_a_copied_row_without_stored_at_is_found_by_a_full_verification(notices: Installation) -> None:
    keys = notices.insert(payloads(2))
    notices.copy()
    notices.verify()
    edit("payload_stored_at = NULL")(notices, keys[0])
    assert notices.release().rows_released == 1
    assert len(notices.verify(full=True).damaged) == 1
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


@pytest.mark.parametrize(
    ("damage", "error"), [("object missing", ObjectMissingError), ("object altered", ObjectDamagedError)]
)
def test_damage_on_a_released_row_is_reported_and_recorded(
    notices: Installation, damage: str, error: type[Exception]
) -> None:
    keys = notices.insert(payloads(3))
    assert notices.drain().is_sound
    mark = gate(notices)
    DAMAGE[damage](notices, keys[1])
    for _ in range(2):
        (found,) = notices.verify(full=True).damaged
        assert isinstance(found.error, error)
    assert notices.one_status() == "in_storage", "there is nothing left to copy it from"
    assert gate(notices) == mark
    failure = notices.failures()[str(keys[1])]
    assert (failure["stage"], failure["error_class"], failure["attempts"]) == ("verify", error.__name__, 2)
    assert failure["resolved_at"] is None


def test_an_object_that_is_put_back_ends_the_alarm(notices: Installation) -> None:
    (key,) = notices.insert(payloads(1))
    notices.drain()
    kept = notices.store.get(notices.object_key(key))
    remove(notices, key)
    assert not notices.verify().passed, "the sample of earlier rows"
    notices.store.put(notices.object_key(key), kept)
    assert notices.verify().passed
    assert notices.failures()[str(key)]["resolved_at"] is not None
    notices.assert_invariant()


# As docs/operations.md says it.
ACCEPTED = {
    "clear": "UPDATE {table} SET raw_payload = NULL, raw_object_key = NULL WHERE id = %s",
    "reference": "UPDATE {table} SET raw_payload = '{{\"lost\": true}}' WHERE id = %s",
}


@pytest.mark.parametrize("after_copy", ACCEPTED)
def test_a_lost_object_shuts_the_gate_until_the_loss_is_accepted(
    database_url: str, local_store_url: str, after_copy: str
) -> None:
    with installed(database_url, local_store_url, after_copy=after_copy, threshold_bytes=100) as notices:
        keys = notices.insert(payloads(3))
        assert notices.drain().is_sound
        remove(notices, keys[1])
        assert not notices.verify(full=True).passed
        notices.insert(payloads(2, first=3))
        for _ in range(2):
            assert not notices.pipeline.drain(notices.partition(), "test").is_sound
            assert notices.pipeline.verify(notices.partition(), "test", sample_rows=0).rows_read == 0
        assert sorted(map(str, notices.statuses().values())) == ["copied"] * 2 + ["in_storage"] * 3

        notices.execute(ACCEPTED[after_copy], keys[1])
        notices.take_rows_as_expected([keys[1]])
        assert notices.drain().is_sound, "the gate opens by itself"
        assert notices.statuses()[keys[1]] == "inline"
        assert sorted(map(str, notices.statuses().values())) == ["in_storage"] * 4 + ["inline"]
        assert all(failure["resolved_at"] for failure in notices.failures().values())
        notices.assert_invariant()


def test_a_payload_changed_past_the_trigger_is_found_by_the_sample(notices: Installation) -> None:
    first, second = notices.insert(payloads(2))
    notices.copy()
    with notices.connection.transaction():
        notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
        notices.execute("UPDATE {table} SET raw_payload = %s WHERE id = %s", PAYLOAD, first)
        notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")
    notices.take_rows_as_expected()
    assert len(notices.verify().damaged) == 1
    assert notices.statuses() == {first: "pending_move", second: "copied"}
    assert notices.drain().is_sound
    notices.assert_invariant()


class UnreachableStore(ObjectStore):
    """Answers no question about objects whose key holds one of `parts`."""

    def __init__(self, inner: ObjectStore, *parts: str) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self._parts = parts
        self.questions = 0

    def _ask(self, key: str) -> None:
        self.questions += 1
        if any(part in key for part in self._parts):
            raise StoreUnavailableError("the store failed (time-out)")

    def get(self, key: str) -> bytes:
        self._ask(key)
        return super().get(key)

    def trailer(self, key: str) -> Trailer:
        self._ask(key)
        return super().trailer(key)


@pytest.mark.parametrize("full", [False, True])
def test_a_store_that_does_not_answer_passes_nothing_and_condemns_nothing(notices: Installation, full: bool) -> None:
    keys = notices.insert(payloads(3))
    notices.copy()
    result = notices.with_store(UnreachableStore(notices.store, "/2/")).verify(full=full)
    assert not result.passed
    assert not result.damaged
    assert [found.named.key for found in result.unanswered] == [("2",)]
    assert gate(notices) is None
    assert notices.release().rows_released == 0
    assert notices.statuses() == dict.fromkeys(keys, "copied"), "nothing is queued again"
    assert not notices.failures()["2"]["permanent"]
    assert notices.drain().is_sound
    notices.assert_invariant()


def test_a_store_that_is_down_is_not_asked_about_every_row(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PAGE_ROWS", STORE_DOWN_AFTER_FAILURES)
    notices.insert(payloads(4 * STORE_DOWN_AFTER_FAILURES))
    notices.copy()
    store = UnreachableStore(notices.store, "/")
    assert not notices.with_store(store).verify(sample_rows=5).passed
    assert store.questions <= STORE_DOWN_AFTER_FAILURES + 2 * 5
    assert gate(notices) is None


@pytest.mark.both_servers
def test_a_pass_costs_in_proportion_to_what_is_new(notices: Installation) -> None:
    notices.insert(payloads(500))
    store = CountingStore(notices.store)
    counting = notices.with_store(store)
    notices.copy()
    first = counting.verify(sample_rows=7)
    assert (first.rows_checked, first.rows_read) == (500, 7)
    assert (store.trailers.total(), store.gets.total()) == (500, 7)
    assert notices.release().rows_released == 500

    notices.insert(payloads(3, first=500))
    notices.copy()
    store.forget()
    second = counting.verify(sample_rows=7)
    assert second.passed
    assert second.rows_checked == 3
    assert store.trailers.total() == 3
    assert 3 <= store.gets.total() <= 3 + 7, "all of the new, and a sample of the old"

    store.forget()
    idle = counting.verify(sample_rows=0)
    assert (idle.rows_checked, store.trailers.total(), store.gets.total()) == (0, 0, 0)


def test_every_row_of_many_pages_is_checked(notices: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "PAGE_ROWS", 7)
    notices.insert(payloads(40))
    notices.copy()
    notices.execute("UPDATE {table} SET payload_stored_at = date_trunc('second', now()) WHERE id % 2 = 0")
    store = CountingStore(notices.store)
    assert notices.with_store(store).verify(sample_rows=0).rows_checked == 40
    assert set(store.trailers.values()) == {1}
    assert len(store.trailers) == 40
    store.forget()
    assert notices.with_store(store).verify(full=True).rows_read == 40
    assert set(store.gets.values()) == {1}
    assert len(store.gets) == 40


def test_a_full_verification_reads_everything_once(notices: Installation) -> None:
    notices.insert(payloads(10))
    notices.drain()
    notices.insert(payloads(5, first=10))
    notices.copy()
    store = CountingStore(notices.store)
    result = notices.with_store(store).verify(full=True)
    assert (result.rows_checked, result.rows_read) == (15, 15)
    assert store.gets.total() == len(store.gets) == 15
    notices.assert_invariant()


def test_the_sample_is_spread_over_all_new_rows(notices: Installation) -> None:
    notices.insert(payloads(60))
    notices.copy()
    store = CountingStore(notices.store)
    counting = notices.with_store(store)
    for _ in range(40):
        notices.connection.execute("UPDATE payload_offload_state SET verified_through = NULL")
        counting.verify(sample_rows=6)
    assert store.gets.total() == 40 * 6
    assert len(store.gets) > 45, "40 samples of a tenth each leave hardly a row out"


def copy_without_commit(notices: Installation, connection: psycopg.Connection) -> str:
    """Copies the one pending row in the caller's transaction; gives its object's key."""
    partition = notices.partition()
    batch = PendingBatches(notices.pipeline.database, partition, BatchLimits(100, 10**6), 3).claim(connection)
    assert batch is not None
    stored = [store_payload(notices.store, partition, row, "standard") for row in rows_of(batch)]
    (recorded,) = notices.record(connection, stored)
    return recorded.object_key


@pytest.mark.both_servers
@pytest.mark.parametrize("is_first_pass", [True, False])
def test_the_gate_does_not_pass_a_copy_that_is_not_yet_committed(notices: Installation, is_first_pass: bool) -> None:
    """Its rows have an earlier stored_at than the mark, and verification cannot see them yet: it waits."""
    if not is_first_pass:
        notices.insert(payloads(1, first=9))
        assert notices.drain().is_sound
    (key,) = notices.insert(payloads(1))
    with notices.pipeline.connect() as connection, ThreadPoolExecutor(1) as threads:
        with transaction(connection):
            object_key = copy_without_commit(notices, connection)
            verification = threads.submit(notices.verify)
            wait_until_blocked(notices.connection)
            notices.store.delete(object_key)
        result = verification.result(timeout=30)
    assert [found.named.key for found in result.damaged] == [(str(key),)]
    notices.release()
    notices.assert_invariant()
    assert notices.drain().is_sound
    notices.assert_invariant()


@pytest.mark.parametrize("column", ["verification_mark", "verified_through"])
def test_when_the_clock_steps_back_new_copies_still_come_after_the_gate(notices: Installation, column: str) -> None:
    old, new = notices.insert(payloads(2))
    ahead = datetime.now(UTC) + timedelta(hours=1)
    notices.execute("UPDATE {table} SET tenant_id = 'later' WHERE id = %s", new)
    notices.drain()
    notices.connection.execute(
        "UPDATE payload_offload_state SET verification_mark = %s, verified_through = CASE WHEN %s = 'verified_through'"
        " THEN %s ELSE verified_through END",
        (ahead, column, ahead),
    )
    notices.execute("UPDATE {table} SET tenant_id = 'acme' WHERE id = %s", new)
    notices.copy()
    assert stored_at(notices, new) > ahead
    remove(notices, new)
    assert notices.release().rows_released == 0
    result = notices.verify(sample_rows=0)
    assert result.mark > ahead
    assert [damage.named.key for damage in result.damaged] == [(str(new),)], (
        "it is checked without waiting for the clock"
    )
    assert notices.statuses() == {old: "in_storage", new: "pending_move"}
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


def test_two_verifications_at_once_open_the_gate_as_one_would(notices: Installation) -> None:
    notices.insert(payloads(20))
    notices.copy()
    results: list[verifier.VerificationResult] = []
    only_one = threading.Lock()

    def verify_too(_key: str) -> None:
        if only_one.acquire(blocking=False):
            results.append(notices.verify())

    outer = notices.with_store(HookedStore(notices.store, before_trailer=verify_too)).verify()
    assert outer.passed
    assert results[0].passed
    assert results[0].mark >= outer.mark
    assert gate(notices) == results[0].mark, "the gate never moves back"
    assert notices.release().rows_released == 20
    notices.assert_invariant()


def test_a_row_copied_while_verification_runs_waits_for_the_next_pass(notices: Installation) -> None:
    (first,) = notices.insert(payloads(1))
    notices.copy()
    copied: list[Any] = []

    def copy_more(_key: str) -> None:
        copied.extend(notices.insert(payloads(1, first=5)))
        notices.copy()

    assert notices.with_store(HookedStore(notices.store, after_trailer=copy_more)).verify().passed
    assert notices.release().rows_released == 1
    assert notices.statuses() == {first: "in_storage", copied[0]: "copied"}
    notices.assert_invariant()


def test_gates_of_tenants_are_their_own(notices: Installation) -> None:
    notices.insert(payloads(2), tenant="acme")
    (theirs,) = notices.insert(payloads(1, first=2), tenant="globex")
    notices.copy("acme")
    notices.copy("globex")
    assert notices.verify("acme").passed
    assert notices.release("acme").rows_released == 2
    assert notices.statuses()[theirs] == "copied"
    remove(notices, theirs)
    assert not notices.verify("globex").passed
    assert notices.verify("acme").passed
    assert notices.release("globex").rows_released == 0
    notices.assert_invariant()


def test_what_is_kept_is_verified_and_never_freed(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, after_copy="keep") as notices:
        notices.insert(payloads(3))
        assert notices.drain().is_sound
        assert notices.one_status() == "copied"
        assert notices.verify(full=True).rows_read == 3
        notices.assert_invariant()


@pytest.mark.parametrize("after_copy", ["clear", "keep"])
def test_an_object_lost_after_its_verification_is_found_in_a_partition_no_larger_than_the_sample(
    database_url: str, local_store_url: str, after_copy: str
) -> None:
    with installed(database_url, local_store_url, after_copy=after_copy) as notices:
        keys = notices.insert(payloads(20))
        assert notices.drain().is_sound
        remove(notices, keys[3])
        result = notices.verify(sample_rows=20)
        assert [damage.named.key for damage in result.damaged] == [(str(keys[3]),)]
        assert not result.passed


def test_the_sample_of_a_large_partition_stays_as_small_as_asked(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url) as notices:
        notices.insert(payloads(60))
        assert notices.drain().is_sound
        assert notices.verify(sample_rows=7).rows_read == 7
