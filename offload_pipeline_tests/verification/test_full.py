"""A full pass that is killed, interrupted or finds damage goes on where it was, and never passes over what it owes."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from offload_pipeline.errors import TransientError
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline.verification import copies
from offload_pipeline_tests.offload.explaining import ExplainingDatabase
from offload_pipeline_tests.offload.installation import RUN, Installation, installed
from offload_pipeline_tests.offload.stores import CountingStore, HookedStore, truncated
from offload_pipeline_tests.verification.editing import edit_row, gate, past_the_trigger, payloads, state
from offload_pipeline_tests.verification.full_pass import run_until_killed

PAGE = 7
ROWS = 40


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "PAGE_ROWS", PAGE)


def stored(notices: Installation, rows: int = ROWS) -> list[Any]:
    """Half of them released, the others copied and seen by no pass."""
    keys = notices.insert(payloads(rows // 2))
    assert notices.drain().is_sound
    keys += notices.insert(payloads(rows - rows // 2, first=rows // 2))
    notices.copy()
    return keys


def counting(notices: Installation) -> tuple[Installation, CountingStore]:
    store = CountingStore(notices.store)
    return notices.with_store(store), store


def test_a_killed_pass_is_resumed_behind_its_last_sound_page(notices: Installation, tmp_path: Path) -> None:
    keys = stored(notices)
    run_until_killed(notices.pipeline, tmp_path, page_rows=PAGE, gets=3 * PAGE + 2)
    checkpoint = state(notices, "full_checkpoint")
    assert checkpoint[1:] == [str(keys[3 * PAGE - 1])]
    assert state(notices, "fully_verified_at") is None

    resumed, store = counting(notices)
    result = resumed.verify(full=True)
    assert result.passed
    assert result.is_resumed
    assert set(store.gets) == {notices.object_key(key) for key in keys[3 * PAGE :]}
    assert set(store.gets.values()) == {1}
    assert state(notices, "fully_verified_at") is not None
    assert state(notices, "full_checkpoint") is None
    assert gate(notices) == result.mark
    assert notices.release().rows_released == ROWS - ROWS // 2
    notices.assert_invariant()


def test_a_pass_killed_again_and_again_reads_no_checked_page_twice(notices: Installation, tmp_path: Path) -> None:
    stored(notices)
    for _ in range(ROWS // (2 * PAGE)):
        run_until_killed(notices.pipeline, tmp_path, page_rows=PAGE, gets=2 * PAGE + 1)
    resumed, store = counting(notices)
    assert resumed.verify(full=True).passed
    assert store.gets.total() == ROWS % (2 * PAGE)


def test_a_pass_whose_connection_is_ended_is_resumed(notices: Installation) -> None:
    keys = stored(notices)
    last_straw = notices.object_key(keys[2 * PAGE])

    def end_the_workers(key: str) -> None:
        if key == last_straw:
            notices.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'offload_pipeline'"
            )

    with pytest.raises(TransientError):
        notices.with_store(HookedStore(notices.store, before_get=end_the_workers)).verify(full=True)
    resumed, store = counting(notices)
    assert resumed.verify(full=True).passed
    assert store.gets.total() == ROWS - 2 * PAGE


def test_a_pass_that_finds_damage_goes_on_with_the_page_it_was_in(notices: Installation) -> None:
    keys = stored(notices)
    lost = keys[2 * PAGE]
    kept = notices.store.get(notices.object_key(lost))
    notices.store.delete(notices.object_key(lost))
    result = notices.verify(full=True)
    assert [damage.named.key for damage in result.damaged] == [(str(lost),)]
    assert result.rows_checked == ROWS, "the rest is looked at all the same"
    assert state(notices, "full_checkpoint")[1:] == [str(keys[2 * PAGE - 1])]
    assert state(notices, "fully_verified_at") is None

    assert not notices.verify(full=True).passed, "it is still lost"
    notices.store.put(notices.object_key(lost), kept)
    resumed, store = counting(notices)
    assert resumed.verify(full=True).passed
    assert set(store.gets) == {notices.object_key(key) for key in keys[2 * PAGE :]}
    assert set(store.gets.values()) == {1}, "also what was suspected"
    assert state(notices, "full_checkpoint") is None


def test_what_is_known_to_be_damaged_is_read_again_although_it_lies_behind_the_checkpoint(
    notices: Installation, tmp_path: Path
) -> None:
    keys = stored(notices)
    run_until_killed(notices.pipeline, tmp_path, page_rows=PAGE, gets=2 * PAGE)
    notices.store.delete(notices.object_key(keys[0]))
    assert not notices.verify(sample_rows=ROWS).passed
    assert [damage.named.key for damage in notices.verify(full=True).damaged] == [(str(keys[0]),)]
    assert state(notices, "fully_verified_at") is None


def test_what_is_new_and_was_read_before_the_kill_is_looked_at_again_before_the_gate_opens(
    notices: Installation, tmp_path: Path
) -> None:
    keys = notices.insert(payloads(ROWS))
    notices.copy()
    run_until_killed(notices.pipeline, tmp_path, page_rows=PAGE, gets=3 * PAGE)
    notices.store.delete(notices.object_key(keys[1]))
    resumed, store = counting(notices)
    result = resumed.verify(full=True)
    assert [damage.named.key for damage in result.damaged] == [(str(keys[1]),)]
    assert store.gets.total() == ROWS - 3 * PAGE
    assert store.trailers.total() == 3 * PAGE
    assert gate(notices) is None
    assert notices.release().rows_released == 0
    notices.assert_invariant()


def test_a_finished_pass_begins_anew_the_next_time(notices: Installation) -> None:
    stored(notices)
    assert notices.verify(full=True).passed
    first = state(notices, "fully_verified_at")
    again, store = counting(notices)
    result = again.verify(full=True)
    assert not result.is_resumed
    assert store.gets.total() == ROWS
    assert state(notices, "fully_verified_at") > first


def test_without_resume_a_pass_begins_anew_also_if_it_is_killed(notices: Installation, tmp_path: Path) -> None:
    stored(notices)
    run_until_killed(notices.pipeline, tmp_path, page_rows=PAGE, gets=3 * PAGE)
    again, store = counting(notices)
    interrupted = notices.with_store(InterruptedStore(notices.store, 1, interrupt))
    with pytest.raises(KeyboardInterrupt):
        interrupted.verify(full=True, resume=False)
    assert state(notices, "full_checkpoint") is None
    result = again.verify(full=True)
    assert not result.is_resumed
    assert store.gets.total() == ROWS


def test_a_default_pass_leaves_the_checkpoint_alone(notices: Installation, tmp_path: Path) -> None:
    stored(notices)
    run_until_killed(notices.pipeline, tmp_path, page_rows=PAGE, gets=3 * PAGE)
    checkpoint = state(notices, "full_checkpoint")
    assert notices.verify().passed
    assert state(notices, "full_checkpoint") == checkpoint
    assert state(notices, "fully_verified_at") is None


class InterruptedStore(CountingStore):
    """Counts, and does something in the middle of one GET."""

    def __init__(self, inner: ObjectStore, number: int, interrupt: Callable[[], Any]) -> None:
        super().__init__(inner)
        self._numbers, self._number, self._interrupt = itertools.count(1), number, interrupt

    def get(self, key: str) -> bytes:
        if next(self._numbers) == self._number:
            self._interrupt()
        return super().get(key)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_rows_that_are_released_while_a_pass_runs_are_read_once(notices: Installation) -> None:
    notices.insert(payloads(ROWS))
    notices.copy()
    assert notices.verify().passed
    store = InterruptedStore(notices.store, PAGE + 2, notices.release)
    assert notices.with_store(store).verify(full=True).passed
    assert notices.one_status() == "in_storage"
    assert store.gets.total() == len(store.gets) == ROWS
    notices.assert_invariant()


def test_rows_that_are_copied_while_a_pass_runs_wait_for_the_next(notices: Installation) -> None:
    keys = stored(notices)

    def copy_more() -> None:
        keys.extend(notices.insert(payloads(5, first=ROWS)))
        notices.copy()

    store = InterruptedStore(notices.store, PAGE + 2, copy_more)
    assert notices.with_store(store).verify(full=True).passed
    assert store.gets.total() == len(store.gets) == ROWS
    assert notices.release().rows_released == ROWS - ROWS // 2
    assert notices.verify(full=True).rows_read == len(keys) == ROWS + 5
    notices.assert_invariant()


def test_the_order_is_that_of_the_copies_whatever_their_keys_and_states(notices: Installation) -> None:
    stored(notices)
    with past_the_trigger(notices):
        notices.execute("UPDATE {table} SET payload_stored_at = now() - (id * 7 % 40) * interval '1 minute'")
        notices.connection.execute("UPDATE payload_offload_state SET verified_through = now()")
    interrupted = notices.with_store(InterruptedStore(notices.store, 2 * PAGE + 2, interrupt))
    with pytest.raises(KeyboardInterrupt):
        interrupted.verify(full=True)
    resumed, store = counting(notices)
    assert resumed.verify(full=True).passed
    assert store.gets.total() == len(store.gets) == ROWS - 2 * PAGE


def test_keys_of_several_columns_and_equal_moments_are_gone_through_once(
    database_url: str, local_store_url: str
) -> None:
    key_columns = {"number": "integer", "name": "text"}
    names = ["a,b", "a%2Cb", "", "é", 'quote"', "{}", "NULL", "\\", "line\nend"]
    with installed(database_url, local_store_url, key_columns=key_columns) as notices:
        for number, name in itertools.product((10, 9), names):
            notices.insert(payloads(1), number=number, name=name)
        assert notices.drain().is_sound
        with past_the_trigger(notices):
            notices.execute("UPDATE {table} SET payload_stored_at = date_trunc('day', payload_stored_at)")
        interrupted = notices.with_store(InterruptedStore(notices.store, PAGE + 2, interrupt))
        with pytest.raises(KeyboardInterrupt):
            interrupted.verify(full=True)
        resumed, store = counting(notices)
        result = resumed.verify(full=True)
        assert (result.passed, result.is_resumed) == (True, True)
        assert store.gets.total() == len(store.gets) == 2 * len(names) - PAGE


@pytest.mark.parametrize("checkpoint", [["2026-01-01 00:00:00+00"], ["2026-01-01 00:00:00+00", "1", "2"], []])
def test_a_checkpoint_of_another_key_is_no_checkpoint(notices: Installation, checkpoint: list[str]) -> None:
    stored(notices)
    notices.connection.execute("UPDATE payload_offload_state SET full_checkpoint = %s", (checkpoint,))
    assert notices.verify(full=True).rows_read == ROWS


IMPOSSIBLE = ("NULL", "'infinity'", "'-infinity'", "'20000-01-01'", "'0044-03-15 BC'")


@pytest.mark.parametrize("moment", IMPOSSIBLE)
def test_a_released_row_whose_stored_at_was_edited_to_what_no_clock_says_is_found(
    notices: Installation, moment: str
) -> None:
    keys = notices.insert(payloads(3))
    assert notices.drain().is_sound
    edit_row(notices, keys[1], f"payload_stored_at = {moment}")
    result = notices.verify(full=True)
    assert [damage.named.key for damage in result.damaged] == [(str(keys[1]),)]
    assert "edited past the trigger" in str(result.damaged[0].error)
    assert not notices.verify(sample_rows=0).passed, "and is not forgotten"
    edit_row(notices, keys[1], "payload_stored_at = now()")
    assert notices.verify(full=True).passed
    notices.assert_invariant()


def test_a_row_stamped_in_the_future_is_read_too(notices: Installation) -> None:
    keys = notices.insert(payloads(PAGE + 3))
    assert notices.drain().is_sound
    with past_the_trigger(notices):
        notices.execute("UPDATE {table} SET payload_stored_at = '2099-01-01'")
    reading, store = counting(notices)
    assert reading.verify(full=True).passed
    assert set(store.gets.values()) == {1}
    assert len(store.gets) == len(keys)
    object_key = notices.object_key(keys[PAGE + 1])
    notices.store.put(object_key, truncated(notices.store.get(object_key)))
    assert not notices.verify(full=True).passed


def test_a_released_row_without_its_key_is_found(notices: Installation) -> None:
    keys = notices.insert(payloads(2))
    assert notices.drain().is_sound
    edit_row(notices, keys[0], "raw_object_key = NULL")
    assert [damage.named.key for damage in notices.verify(full=True).damaged] == [(str(keys[0]),)]


FILL = """
    INSERT INTO notices (tenant_id, payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256,
        payload_stored_at)
    SELECT 'large', CASE WHEN n %% 2 = 0 THEN 'copied' ELSE 'in_storage' END, 300, 'other', repeat('0', 64),
        now() - n * interval '1 second'
    FROM generate_series(1, %s) AS n
"""
LARGE = 20_000
# The tenant's own rows by a few indexes, each two or three pages deep.
MOST_BLOCKS_A_ROW = 20


@pytest.mark.both_servers
@pytest.mark.parametrize("is_analyzed", [False, True])
def test_a_small_tenant_in_a_large_table_reads_none_of_the_others_rows(
    notices: Installation, is_analyzed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PAGE_ROWS", 1000)
    with past_the_trigger(notices):
        notices.connection.execute(FILL, (LARGE // 2,))
    stored(notices)
    with past_the_trigger(notices):
        notices.connection.execute(FILL, (LARGE // 2,))
    if is_analyzed:
        notices.execute("ANALYZE {table}")
    database = ExplainingDatabase(notices.pipeline.database.url, notices.pipeline.database.schema, '"notices"')
    result = replace(notices.pipeline, database=database).verify(notices.partition(), RUN, full=True)
    assert result.rows_read == ROWS
    walked = [found for found in database.explained if "UNION ALL" in found.statement or " OR (t." in found.statement]
    assert len(walked) == 3, "the rows out of order, a page in order, and the end"
    for found in walked:
        assert found.blocks <= MOST_BLOCKS_A_ROW * ROWS, found.plan
        assert "notices_offload_stored" in str(found.plan)
        assert "notices_offload_copied" in str(found.plan)


def test_the_state_says_when_everything_was_last_read(notices: Installation) -> None:
    stored(notices)
    before = datetime.now(UTC)
    assert notices.verify(full=True).passed
    assert before < state(notices, "fully_verified_at") < datetime.now(UTC)
