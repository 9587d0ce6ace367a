"""A failure whose row is gone, or no longer needs that stage, closes by itself; every other one stays open."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from offload_pipeline.offload import stale_failures
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.failures import Failure, Stage, open_failures, record_failures, retry_failed
from offload_pipeline.offload.stale_failures import resolve_stale_failures
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import Installation, installed
from offload_pipeline_tests.offload.stores import truncated
from offload_pipeline_tests.offload.waiting import in_thread, wait_until_blocked

SMALL, LARGE = '{"n": 1}', large_payload(2000)
MAX_ATTEMPTS = 3


def fail(notices: Installation, key: Any, stage: Stage, tenant: str = "acme") -> None:
    parts = key if isinstance(key, tuple) else (key,)
    failure = Failure(tuple(map(str, parts)), None, RuntimeError("out of order"))
    with notices.connection.transaction():
        record_failures(notices.connection, Partition(notices.table, tenant), stage, [failure])


def open_stages(notices: Installation) -> set[tuple[str, str]]:
    return {(found.primary_key, found.stage) for found in open_failures(notices.connection, "public", MAX_ATTEMPTS)}


def delete(notices: Installation, key: int) -> None:
    notices.execute("DELETE FROM {table} WHERE id = %s", key)


def write_small(notices: Installation, key: int) -> None:
    notices.write(key, SMALL)


def move_to_another_tenant(notices: Installation, key: int) -> None:
    notices.execute("UPDATE {table} SET tenant_id = 'bolt' WHERE id = %s", key)


def expire(notices: Installation, key: int) -> None:
    notices.execute(
        "UPDATE {table} SET payload_storage_status = 'expired', raw_object_key = NULL, raw_payload = NULL"
        " WHERE id = %s",
        key,
    )


def restore(notices: Installation, key: int) -> None:
    assert notices.restore(key=key).rows_restored == 1


PENDING_ENDS = {"deleted": delete, "small now": write_small, "another tenant's": move_to_another_tenant}
STORED_ENDS = {"deleted": delete, "small now": write_small, "expired": expire, "restored": restore}


@pytest.mark.both_servers
@pytest.mark.parametrize("end", PENDING_ENDS)
def test_a_copy_that_failed_is_no_failure_of_a_row_that_needs_none(
    database_url: str, local_store_url: str, end: str
) -> None:
    with installed(database_url, local_store_url, threshold_bytes=1000, max_object_bytes=1500) as notices:
        key, other = notices.insert([LARGE, LARGE])
        assert notices.drain().copied.rows_failed == 2
        PENDING_ENDS[end](notices, key)
        notices.drain()
        assert open_stages(notices) == {(str(other), "copy")}, "the other row is still too large"


@pytest.mark.parametrize("end", STORED_ENDS)
def test_damage_is_no_failure_of_a_row_that_names_no_object(database_url: str, local_store_url: str, end: str) -> None:
    with installed(database_url, local_store_url, threshold_bytes=1000) as notices:
        key, other = notices.insert([LARGE, LARGE])
        assert notices.drain().is_sound
        for row in (key, other):
            fail(notices, row, "verify")
        kept = notices.store.get(notices.object_key(other))
        notices.store.put(notices.object_key(other), truncated(kept))
        STORED_ENDS[end](notices, key)
        assert not notices.verify(sample_rows=0).passed
        assert open_stages(notices) == {(str(other), "verify")}
        notices.store.put(notices.object_key(other), kept)
        assert notices.verify(sample_rows=0).passed, "the gate opens by itself"
        assert open_stages(notices) == set()


STATES: dict[str, Callable[[Installation], Any]] = {
    "pending_move": lambda notices: notices.insert([LARGE]),
    "copied": lambda notices: (notices.insert([LARGE]), notices.copy()),
    "in_storage": lambda notices: (notices.insert([LARGE]), notices.drain()),
    "inline": lambda notices: notices.insert([SMALL]),
}
MEANINGFUL: dict[Stage, set[str]] = {
    "copy": {"pending_move"},
    "write": set(STATES),
    "verify": {"pending_move", "copied", "in_storage"},
    "release": {"pending_move", "copied"},
    "restore": {"copied", "in_storage"},
    "expire": {"in_storage"},
}


@pytest.mark.parametrize("stage", MEANINGFUL)
@pytest.mark.parametrize("state", STATES)
def test_a_failure_stays_open_in_the_states_that_its_stage_has_a_part_in(
    database_url: str, local_store_url: str, state: str, stage: Stage
) -> None:
    with installed(database_url, local_store_url, threshold_bytes=1000) as notices:
        STATES[state](notices)
        assert notices.one_status() == state
        fail(notices, 1, stage)
        resolve_stale_failures(notices.connection, notices.table)
        assert open_stages(notices) == ({("1", stage)} if state in MEANINGFUL[stage] else set())


def test_a_write_that_failed_is_news_for_a_day_whether_its_row_exists_or_not(notices: Installation) -> None:
    fail(notices, 1, "write")
    assert resolve_stale_failures(notices.connection, notices.table) == 0
    notices.connection.execute("UPDATE payload_offload_failures SET last_failed_at = now() - interval '25 hours'")
    assert resolve_stale_failures(notices.connection, notices.table) == 1


def test_a_failure_of_a_row_that_the_trigger_never_saw_stays_open(notices: Installation) -> None:
    (key,) = notices.insert([SMALL])
    notices.execute("UPDATE {table} SET payload_storage_status = NULL")
    fail(notices, key, "copy")
    assert resolve_stale_failures(notices.connection, notices.table) == 0


def test_a_table_that_keeps_its_payloads_releases_nothing_that_could_fail(
    database_url: str, local_store_url: str
) -> None:
    with installed(database_url, local_store_url, after_copy="keep") as notices:
        notices.insert([LARGE])
        notices.copy()
        fail(notices, 1, "release")
        assert resolve_stale_failures(notices.connection, notices.table) == 1


def test_all_pages_are_looked_at_and_a_line_on_the_edge_of_two_is_not_left_out(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stale_failures, "PAGE_ROWS", 3)
    keys = notices.insert([LARGE] * 20)
    for key in keys:
        fail(notices, key, "copy")
    notices.connection.execute("UPDATE payload_offload_failures SET last_failed_at = date_trunc('day', now())")
    notices.execute("DELETE FROM {table} WHERE id % 2 = 0")
    assert resolve_stale_failures(notices.connection, notices.table) == 10
    assert open_stages(notices) == {(str(key), "copy") for key in keys if key % 2}


def test_the_failures_of_one_tenant_are_looked_at_alone_where_they_are_asked_for(notices: Installation) -> None:
    for tenant in ("acme", "bolt"):
        fail(notices, 1, "copy", tenant)
    assert resolve_stale_failures(notices.connection, notices.table, "bolt") == 1
    (left,) = open_failures(notices.connection, "public", MAX_ATTEMPTS)
    assert left.tenant == "acme"


@pytest.mark.both_servers
def test_a_key_that_no_row_can_have_is_of_no_row(notices: Installation) -> None:
    """As after a change of the primary key."""
    (key,) = notices.insert([LARGE])
    for text in ("seven", "7,8", "99999999999999999999", str(key)):
        fail(notices, text, "copy")
    assert resolve_stale_failures(notices.connection, notices.table) == 3
    assert open_stages(notices) == {(str(key), "copy")}


@pytest.mark.both_servers
def test_keys_of_several_columns_find_their_rows(database_url: str, local_store_url: str) -> None:
    key_columns = {"number": "integer", "name": "text"}
    with installed(database_url, local_store_url, key_columns=key_columns) as notices:
        names = ["a,b", "a%2Cb", "", 'quote"', "NULL", "\\"]
        for name in names:
            (key,) = notices.insert([LARGE], number=7, name=name)
            fail(notices, key, "copy")
            fail(notices, (8, name), "copy")
        assert resolve_stale_failures(notices.connection, notices.table) == len(names)
        assert {key.partition(",")[0] for key, _ in open_stages(notices)} == {"7"}


def test_a_row_that_fails_again_in_the_same_moment_is_not_closed(notices: Installation) -> None:
    fail(notices, 1, "copy")
    with notices.pipeline.connect() as ours, contextlib.ExitStack() as stack:
        with notices.connection.transaction():
            fail(notices, 1, "copy")
            closing = stack.enter_context(in_thread(lambda: resolve_stale_failures(ours, notices.table)))
            wait_until_blocked(notices.connection)
        assert closing.result() == 0
    assert open_stages(notices) == {("1", "copy")}


def test_rows_that_were_given_up_are_tried_again_when_asked_for(database_url: str, local_store_url: str) -> None:
    sections = {"offload": {"max_attempts": MAX_ATTEMPTS}}
    with installed(database_url, local_store_url, sections=sections, max_object_bytes=1500) as notices:
        large, small = notices.insert([LARGE, SMALL])
        assert notices.drain().copied.rows_failed == 1
        assert notices.drain().copied.rows_failed == 0, "given up"

        assert retry_failed(notices.connection, notices.table, "bolt") == 0
        assert retry_failed(notices.connection, notices.table, "acme") == 1
        assert open_stages(notices) == {(str(large), "copy")}, "open until it succeeds"
        assert notices.drain().copied.rows_failed == 1
        failure = notices.failures()[str(large)]
        assert (failure["attempts"], failure["permanent"]) == (1, True)
        wait = failure["next_attempt_at"] - failure["last_failed_at"]
        assert wait.total_seconds() < 60, "with its whole patience before it"
        assert notices.statuses() == {large: "pending_move", small: "in_storage"}
        notices.assert_invariant()
