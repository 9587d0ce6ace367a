"""What was restored stays in its row until the application writes another payload, or an operator lifts the hold."""

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from offload_pipeline.offload import holds
from offload_pipeline.offload.holds import HoldsLifted, count_held
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import RUN, Installation, installed

THRESHOLD = 100
SMALL = '{"n": 1}'
POINTER_COLUMNS = "payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256, payload_stored_at"


def restored(notices: Installation, payloads: list[str]) -> list[Any]:
    keys = notices.insert(payloads)
    assert notices.drain().is_sound
    assert notices.restore().rows_restored == len(keys)
    return keys


def lift(notices: Installation, tenant: str = "acme") -> HoldsLifted:
    return notices.pipeline.lift_holds(notices.partition(tenant), RUN)


def held(notices: Installation) -> tuple[int, int]:
    return count_held(notices.connection, notices.partition())


def large(count: int) -> list[str]:
    return [large_payload(1000, seed) for seed in range(count)]


@pytest.mark.both_servers
@pytest.mark.parametrize("unseen", [False, True])
def test_a_drain_or_backfill_after_a_restore_moves_nothing(notices: Installation, unseen: bool) -> None:
    restored(notices, large(3))
    drained = notices.pipeline.drain(notices.partition(), RUN, unseen=unseen, resume=False)
    assert (drained.copied.rows_copied, drained.released.rows_released) == (0, 0)
    assert notices.pipeline.pending(notices.connection, notices.table) == []
    assert notices.one_status() == "inline"
    notices.assert_invariant()


def save_payload(notices: Installation, key: Any) -> None:
    notices.execute("UPDATE {table} SET raw_payload = raw_payload WHERE id = %s", key)


def save_whole_row(notices: Installation, key: Any) -> None:
    """As an ORM does: every column with the value that was read."""
    row = notices.execute(
        f"SELECT raw_payload::text, tenant_id, {POINTER_COLUMNS} FROM {{table}} WHERE id = %s",  # noqa: S608
        key,
    ).fetchone()
    assert row is not None
    notices.execute(
        f"UPDATE {{table}} SET (raw_payload, tenant_id, {POINTER_COLUMNS}) ="  # noqa: S608 - the test's own
        " (%s, %s, %s, %s, %s, %s, %s) WHERE id = %s",
        *row,
        key,
    )


def touch(notices: Installation, key: Any) -> None:
    notices.execute("UPDATE {table} SET created_at = now() WHERE id = %s", key)


@pytest.mark.both_servers
@pytest.mark.parametrize("save", [save_payload, save_whole_row, touch])
def test_a_row_saved_with_the_same_content_stays_held(notices: Installation, save: Any) -> None:
    (key,) = restored(notices, large(1))
    save(notices, key)
    assert not notices.drain().copied.rows_copied
    assert notices.one_status() == "inline"
    assert held(notices)[0] == 1
    notices.assert_invariant()


@pytest.mark.both_servers
def test_a_new_payload_ends_the_hold_and_moves_again(notices: Installation) -> None:
    written, other = restored(notices, large(2))
    notices.write(written, large_payload(900, 99))
    assert notices.statuses() == {written: "pending_move", other: "inline"}
    assert notices.drain().released.rows_released == 1
    assert notices.statuses() == {written: "in_storage", other: "inline"}
    notices.assert_invariant()


def test_a_pointer_loaded_before_the_restore_and_saved_after_it_takes_no_payload_away(notices: Installation) -> None:
    """An ORM that defers the payload saves the pointer columns as it read them."""
    (key,) = notices.insert(large(1))
    notices.drain()
    stale = notices.execute(f"SELECT {POINTER_COLUMNS} FROM {{table}}").fetchone()  # noqa: S608
    assert stale is not None
    notices.restore()
    notices.execute(
        f"UPDATE {{table}} SET ({POINTER_COLUMNS}) = (%s, %s, %s, %s, %s) WHERE id = %s",  # noqa: S608
        *stale,
        key,
    )
    assert notices.one_status() == "inline"
    notices.assert_invariant()


@pytest.mark.both_servers
@pytest.mark.parametrize("page_rows", [2, 500])
def test_a_lifted_hold_lets_rows_above_the_threshold_move_again(
    database_url: str, local_store_url: str, monkeypatch: pytest.MonkeyPatch, page_rows: int
) -> None:
    monkeypatch.setattr(holds, "PAGE_ROWS", page_rows)
    with installed(database_url, local_store_url, threshold_bytes=THRESHOLD) as notices:
        small = notices.insert([SMALL, SMALL])
        keys = restored_with_others(notices)
        sizes = sum(len(payload) for payload in large(5))
        assert held(notices) == (5, sizes)
        assert lift(notices) == HoldsLifted(rows=5, payload_bytes=sizes, rows_left=0)
        assert held(notices) == (0, 0)
        assert {notices.statuses()[key] for key in keys} == {"pending_move"}
        assert {notices.statuses()[key] for key in small} == {"inline"}
        assert lift(notices).rows == 0
        assert notices.drain().released.rows_released == 5
        assert {notices.statuses()[key] for key in keys} == {"in_storage"}
        logged = "SELECT sum(rows) FROM payload_offload_log WHERE action = 'lift hold'"
        assert notices.connection.execute(logged).fetchone() == (5,)
        notices.assert_invariant()


def restored_with_others(notices: Installation) -> list[Any]:
    notices.insert(large(2), tenant="globex")
    notices.drain("globex")
    notices.restore("globex")
    keys = notices.insert(large(5))
    notices.drain()
    notices.restore()
    return keys


def test_holds_of_another_tenant_are_not_lifted(notices: Installation) -> None:
    restored_with_others(notices)
    assert lift(notices).rows == 5
    tenants = notices.execute("SELECT DISTINCT tenant_id FROM {table} WHERE payload_storage_status = 'inline'")
    assert tenants.fetchall() == [("globex",)]


def test_a_payload_that_has_become_small_is_not_queued(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, threshold_bytes=500) as notices:
        smaller, emptied, other = restored(notices, large(3))
        notices.write(smaller, SMALL)
        notices.execute("UPDATE {table} SET raw_payload = NULL WHERE id = %s", emptied)
        notices.take_rows_as_expected()
        assert held(notices)[0] == 1
        assert lift(notices).rows == 1
        assert notices.statuses() == {smaller: "inline", emptied: "inline", other: "pending_move"}
        assert notices.drain().is_sound
        notices.assert_invariant()


def test_a_row_that_was_never_restored_is_not_queued_however_large(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, threshold_bytes=5000) as notices:
        notices.insert(large(1))
        lower = notices.config.model_copy(update={"threshold_bytes": THRESHOLD})
        lowered = replace(notices, config=lower, table=replace(notices.table, config=lower))
        assert held(lowered) == (0, 0)
        assert lift(lowered).rows == 0
        assert notices.one_status() == "inline"


def test_copies_whose_pointer_was_dropped_are_held_and_lifted_like_others(
    database_url: str, local_store_url: str
) -> None:
    with installed(database_url, local_store_url, after_copy="keep") as notices:
        notices.insert(large(2))
        notices.drain()
        assert notices.restore().pointers_dropped == 2
        assert notices.drain().copied.rows_copied == 0
        assert lift(notices).rows == 2
        assert notices.drain().copied.rows_copied == 2
        notices.assert_invariant()


def test_a_held_row_that_the_application_holds_is_left_without_waiting_for_it(notices: Installation) -> None:
    first, second = restored(notices, large(2))
    with psycopg.connect(notices.database_url) as other:
        notices.execute("SELECT FROM {table} WHERE id = %s FOR UPDATE", first, connection=other)
        lifted = lift(notices)  # were it to wait, lock_timeout would end it
        assert (lifted.rows, lifted.rows_left) == (1, 1)
    assert notices.statuses() == {first: "inline", second: "pending_move"}
    assert lift(notices).rows == 1


def test_composite_keys_are_walked_in_their_order(
    database_url: str, local_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "PAGE_ROWS", 2)
    columns = {"part": "text", "id": "bigint"}
    with installed(database_url, local_store_url, key_columns=columns) as notices:
        for part in ("a,b", "100%", "", "é"):
            notices.insert(large(1), part=part, id=1)
            notices.insert(large(1), part=part, id=2)
        notices.drain()
        notices.restore()
        assert lift(notices).rows == 8
