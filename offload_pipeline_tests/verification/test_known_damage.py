"""What a pass has found damaged is not freed from then on, whatever other passes see, until a look finds it mended."""

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from offload_pipeline.offload.release import _Freed, _Page, _Releaser
from offload_pipeline.verification import copies
from offload_pipeline_tests.factories import row_hashes
from offload_pipeline_tests.offload.installation import Installation, installed
from offload_pipeline_tests.offload.stores import HookedStore, altered
from offload_pipeline_tests.offload.test_stale_failures import fail
from offload_pipeline_tests.verification.editing import payloads


def verified(notices: Installation, rows: int) -> list[Any]:
    """Rows that the gate has passed, whose payloads are still in them."""
    keys = notices.insert(payloads(rows))
    notices.copy()
    assert notices.verify(sample_rows=0).passed
    return keys


def lose(notices: Installation, key: Any) -> None:
    notices.store.delete(notices.object_key(key))


def alter(notices: Installation, key: Any) -> None:
    object_key = notices.object_key(key)
    notices.store.put(object_key, altered(notices.store.get(object_key)))


@contextlib.contextmanager
def held_by_the_application(notices: Installation, key: Any) -> Iterator[None]:
    with psycopg.connect(notices.database_url) as application:
        notices.execute("SELECT FROM {table} WHERE id = %s FOR UPDATE", key, connection=application)
        yield


def find_while_held(notices: Installation, key: Any) -> None:
    """A full pass that finds the row damaged and cannot queue it again."""
    with held_by_the_application(notices, key):
        result = notices.verify(full=True, resume=False)
    assert [damage.named.key for damage in result.damaged] == [(str(key),)]
    assert notices.statuses()[key] == "copied"


def assert_kept(notices: Installation, key: Any) -> None:
    assert notices.statuses()[key] == "copied"
    assert row_hashes(notices.connection, notices.config)[key] == notices.expected[key], "the only copy"
    assert notices.failures()[str(key)]["resolved_at"] is None
    notices.assert_invariant(damaged=[key])


def assert_mended_by_draining(notices: Installation) -> None:
    """One pass finds what is damaged and queues it, the next copies it."""
    notices.drain()
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    assert all(failure["resolved_at"] for failure in notices.failures().values())
    notices.assert_invariant()


@pytest.mark.both_servers
def test_a_row_that_the_application_held_while_its_damage_was_found_is_not_released(notices: Installation) -> None:
    keys = verified(notices, 3)
    lose(notices, keys[0])
    find_while_held(notices, keys[0])
    released = notices.release()
    assert (released.rows_released, released.rows_left, released.rows_failed) == (2, 0, 0)
    assert_kept(notices, keys[0])
    assert_mended_by_draining(notices)


@pytest.mark.both_servers
def test_damage_that_is_found_while_the_row_is_hashed_is_seen_before_the_commit(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement that frees the row began before, and its snapshot is older."""
    keys = verified(notices, 3)
    free = _Releaser._free

    def find_and_free(self: _Releaser, connection: psycopg.Connection, page: _Page) -> _Freed:
        freed = free(self, connection, page)
        if not notices.failures():
            lose(notices, keys[0])
            fail(notices, keys[0], "verify")
        return freed

    monkeypatch.setattr(_Releaser, "_free", find_and_free)
    assert notices.release().rows_released == 2
    assert_kept(notices, keys[0])
    assert_mended_by_draining(notices)


def test_what_a_full_pass_has_found_is_recorded_and_queued_again_while_it_goes_on(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PAGE_ROWS", 2)
    keys = verified(notices, 8)
    lose(notices, keys[0])
    last = notices.object_key(keys[-1])
    seen: list[Any] = []

    def meanwhile(object_key: str) -> None:
        if object_key == last:
            seen.append((notices.statuses()[keys[0]], set(notices.failures())))
            assert notices.verify(sample_rows=0).passed, "a pass that meets none of the old rows"
            seen.append(notices.release().rows_released)

    result = notices.with_store(HookedStore(notices.store, before_get=meanwhile)).verify(full=True)
    assert seen == [("pending_move", {str(keys[0])}), 7]
    assert [damage.named.key for damage in result.damaged] == [(str(keys[0]),)]
    assert result.rows_checked == 8
    assert notices.failures()[str(keys[0])]["attempts"] == 1
    notices.assert_invariant()
    assert_mended_by_draining(notices)


@pytest.mark.both_servers
def test_a_pass_that_read_the_object_before_it_was_lost_does_not_close_what_another_found_since(
    notices: Installation,
) -> None:
    keys = verified(notices, 3)

    def lose_it_then(object_key: str) -> None:
        if object_key == notices.object_key(keys[0]):
            lose(notices, keys[0])
            find_while_held(notices, keys[0])

    assert notices.with_store(HookedStore(notices.store, after_get=lose_it_then)).verify(sample_rows=10).passed
    assert notices.release().rows_released == 2
    assert_kept(notices, keys[0])
    assert_mended_by_draining(notices)


def test_a_look_at_the_end_of_an_object_does_not_close_what_a_whole_look_has_found(notices: Installation) -> None:
    keys = notices.insert(payloads(3))
    notices.copy()

    def alter_it_first(object_key: str) -> None:
        if object_key == notices.object_key(keys[0]):
            alter(notices, keys[0])
            find_while_held(notices, keys[0])

    assert notices.with_store(HookedStore(notices.store, before_trailer=alter_it_first)).verify(sample_rows=0).passed
    assert notices.release().rows_released == 2, "the gate is open"
    assert_kept(notices, keys[0])
    assert_mended_by_draining(notices)


def test_a_pass_that_looked_at_an_earlier_payload_of_the_row_does_not_close_what_was_found_of_the_next(
    notices: Installation,
) -> None:
    (key,) = verified(notices, 1)
    fail(notices, key, "verify")
    earlier = notices.object_key(key)

    def write_anew(object_key: str) -> None:
        if object_key == earlier:
            notices.write(key, payloads(1, first=7)[0])
            notices.copy()

    notices.with_store(HookedStore(notices.store, before_get=write_anew)).verify(sample_rows=10)
    assert notices.failures()[str(key)]["resolved_at"] is None
    assert_mended_by_draining(notices)


REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN IF NEW.id = 2 THEN RAISE EXCEPTION ''row 2 is archived''; END IF; RETURN NEW; END'
"""
REFUSALS = {
    "at once": "CREATE TRIGGER a_refuse BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()",
    "at commit": "CREATE CONSTRAINT TRIGGER a_refuse AFTER UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION refuse()",
}


@pytest.mark.both_servers
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_row_that_the_table_refuses_to_queue_again_does_not_stop_the_others(
    notices: Installation, refusal: str
) -> None:
    keys = verified(notices, 4)
    notices.connection.execute(REFUSE)
    notices.execute(REFUSALS[refusal])
    for key in keys[:3]:
        lose(notices, key)
    assert len(notices.verify(sample_rows=10).damaged) == 3
    assert notices.statuses() == dict(zip(keys, ("pending_move", "copied", "pending_move", "copied"), strict=True))
    failures = notices.failures()
    assert {key: (one["error_class"], one["attempts"]) for key, one in failures.items()} == dict.fromkeys(
        map(str, keys[:3]), ("ObjectMissingError", 1)
    )
    assert "row 2 is archived" in failures["2"]["message"]
    assert "refuse" not in failures["1"]["message"]
    assert notices.release().rows_released == 1
    assert_kept(notices, keys[1])
    notices.execute("DROP TRIGGER a_refuse ON {table}")
    assert_mended_by_draining(notices)


@pytest.mark.both_servers
@pytest.mark.parametrize("full", [False, True])
def test_every_pass_looks_again_at_what_is_open_and_what_is_sound_is_released(
    notices: Installation, full: bool
) -> None:
    keys = verified(notices, 3)
    for key in keys:
        fail(notices, key, "verify")
    assert notices.release().rows_released == 0
    result = notices.verify(sample_rows=0, full=full)
    assert (result.passed, result.rows_read) == (True, 3)
    assert all(failure["resolved_at"] for failure in notices.failures().values())
    assert notices.release().rows_released == 3
    notices.assert_invariant()


@pytest.mark.parametrize("full", [False, True])
def test_an_object_that_is_put_back_lets_its_row_be_released(notices: Installation, full: bool) -> None:
    keys = verified(notices, 2)
    kept = notices.store.get(notices.object_key(keys[0]))
    lose(notices, keys[0])
    find_while_held(notices, keys[0])
    notices.store.put(notices.object_key(keys[0]), kept)
    assert notices.verify(sample_rows=0, full=full).passed
    assert notices.release().rows_released == 2
    notices.assert_invariant()


def test_a_row_written_anew_is_released_once_its_new_copy_was_looked_at(notices: Installation) -> None:
    keys = verified(notices, 2)
    lose(notices, keys[0])
    find_while_held(notices, keys[0])
    notices.write(keys[0], payloads(1, first=7)[0])
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    assert notices.failures()[str(keys[0])]["resolved_at"] is not None
    notices.assert_invariant()


def test_an_open_failure_holds_the_row_of_its_own_key_alone(database_url: str, local_store_url: str) -> None:
    key_columns = {"number": "integer", "name": "text"}
    with installed(database_url, local_store_url, key_columns=key_columns) as notices:
        for name in ("a,b", "a%2Cb", "é", ""):
            notices.insert(payloads(1), number=10, name=name)
        notices.copy()
        assert notices.verify(sample_rows=0).passed
        fail(notices, (10, "a,b"), "verify")
        assert notices.release().rows_released == 3
        assert notices.statuses()[10, "a,b"] == "copied"
        assert_mended_by_draining(notices)
