"""Requests that time out, and are carried out long after: when the row, and the world, have gone on."""

import pytest

from offload_pipeline.errors import ObjectDamagedError, StoreUnavailableError
from offload_pipeline.offload import copier
from offload_pipeline.offload.writer import PayloadWriter
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.faults.proxy import FaultyProxy
from offload_pipeline_tests.offload.installation import Installation
from offload_pipeline_tests.retention.collecting import collect, keys_in

FIRST, SECOND = large_payload(3000, 1), large_payload(3000, 2)


def upload_late(notices: Installation, proxy: FaultyProxy, fault: str) -> None:
    """A row whose upload is on its way when it has been given up."""
    notices.insert([FIRST])
    proxy.faults = {"PUT": fault}
    assert notices.copy().rows_failed == 1
    proxy.heal()
    notices.let_time_pass()


def test_an_upload_that_arrives_whole_after_its_row_was_freed_does_no_harm(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy
) -> None:
    upload_late(behind_proxy, proxy, "late")
    assert past_proxy.drain().is_sound
    assert past_proxy.one_status() == "in_storage"
    proxy.settle()
    assert past_proxy.verify(full=True).passed
    past_proxy.assert_invariant()


def test_an_upload_that_arrives_after_its_row_was_rewritten_and_collected_is_collected_again(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy
) -> None:
    upload_late(behind_proxy, proxy, "late")
    (key,) = past_proxy.expected
    past_proxy.write(key, SECOND)
    assert past_proxy.drain().is_sound
    collect(past_proxy)
    proxy.settle()
    assert len(keys_in(past_proxy.store)) == 2, "what nobody names came back"
    collect(past_proxy)
    assert keys_in(past_proxy.store) == {past_proxy.object_key(key)}
    past_proxy.assert_invariant()


def test_an_upload_that_arrives_truncated_is_found_before_anything_is_freed(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy
) -> None:
    upload_late(behind_proxy, proxy, "late truncated")
    assert past_proxy.copy().rows_copied == 1
    proxy.settle()
    drained = past_proxy.drain()
    assert [type(damage.error) for damage in drained.verified.damaged] == [ObjectDamagedError]
    assert drained.released.rows_released == 0
    assert past_proxy.drain().is_sound
    assert past_proxy.one_status() == "in_storage"
    past_proxy.assert_invariant()


def test_an_upload_that_arrives_altered_is_found_where_the_object_is_read_whole(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy
) -> None:
    upload_late(behind_proxy, proxy, "late altered")
    assert past_proxy.copy().rows_copied == 1
    proxy.settle()
    assert not past_proxy.verify(full=True).passed
    assert past_proxy.release().rows_released == 0
    assert past_proxy.drain().is_sound
    past_proxy.assert_invariant()


@pytest.mark.parametrize("fault", ["late truncated", "late altered"])
def test_an_upload_that_spoils_what_was_freed_is_reported_and_stops_every_further_release(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy, fault: str
) -> None:
    """Beyond our reach: see docs/reliability.md. S3 refuses such bytes, which are not those that were signed."""
    upload_late(behind_proxy, proxy, fault)
    assert past_proxy.drain().is_sound
    proxy.settle()
    (key,) = past_proxy.expected
    past_proxy.insert([SECOND])
    drained = past_proxy.drain()
    assert [damage.named.key for damage in drained.verified.damaged] == [(str(key),)]
    assert drained.released.rows_released == 0


def delete_late(behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy) -> int:
    """A row whose first payload's object is about to be deleted, by a request that is still on its way."""
    (key,) = past_proxy.insert([FIRST])
    past_proxy.drain()
    past_proxy.write(key, SECOND)
    past_proxy.drain()
    proxy.faults = {"DELETE": "late"}
    assert collect(behind_proxy).has_failed
    proxy.heal()
    return int(key)


def test_a_deletion_that_arrives_after_the_payload_was_written_again_leaves_no_pointer_that_dangles(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy
) -> None:
    key = delete_late(behind_proxy, past_proxy, proxy)
    past_proxy.write(key, FIRST)
    drained = past_proxy.drain()
    assert (drained.copied.rows_copied, drained.copied.rows_failed) == (0, 1)
    proxy.settle()
    past_proxy.assert_invariant()
    past_proxy.let_time_pass()
    assert past_proxy.drain().is_sound
    assert past_proxy.one_status() == "in_storage"
    past_proxy.assert_invariant()


def test_a_deletion_that_was_announced_after_the_copy_had_asked_loses_nothing(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = delete_late(behind_proxy, past_proxy, proxy)
    past_proxy.write(key, FIRST)
    monkeypatch.setattr(copier, "announced", lambda *_: set())
    drained = past_proxy.drain()
    assert (drained.copied.rows_copied, drained.verified.passed, drained.released.rows_released) == (1, False, 0)
    proxy.settle()
    past_proxy.let_time_pass()
    assert not past_proxy.drain().verified.passed, "its object was deleted after all"
    assert past_proxy.drain().is_sound
    assert past_proxy.one_status() == "in_storage"
    past_proxy.assert_invariant()


def test_what_was_deleted_an_hour_ago_is_trusted_again(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy
) -> None:
    key = delete_late(behind_proxy, past_proxy, proxy)
    proxy.settle()
    past_proxy.write(key, FIRST)
    past_proxy.let_time_pass()
    assert past_proxy.drain().is_sound
    past_proxy.assert_invariant()


def test_a_writer_does_not_trust_what_a_deletion_may_still_take(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy
) -> None:
    key = delete_late(behind_proxy, past_proxy, proxy)
    with PayloadWriter(past_proxy.pipeline) as writer:
        with pytest.raises(StoreUnavailableError, match="may still be carried out"):
            writer.write(past_proxy.connection, "notices", "acme", key, FIRST)
        past_proxy.let_time_pass()
        assert writer.write(past_proxy.connection, "notices", "acme", key, FIRST)["raw_payload"] is None


def test_a_deletion_that_was_answered_says_nothing_of_an_earlier_one_that_was_not(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy
) -> None:
    key = delete_late(behind_proxy, past_proxy, proxy)
    assert collect(past_proxy).tables["notices"].deleted == 1
    past_proxy.write(key, FIRST)
    assert past_proxy.drain().released.rows_released == 0
    proxy.settle()
    past_proxy.let_time_pass()
    past_proxy.drain()
    assert past_proxy.drain().is_sound
    past_proxy.assert_invariant()
