"""Requests that time out, and are carried out long after: when the row, and the world, have gone on."""

import pytest

from offload_pipeline.errors import ObjectDamagedError, StoreUnavailableError
from offload_pipeline.offload.writer import PayloadWriter
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.faults.proxy import FaultyProxy
from offload_pipeline_tests.invariant import assert_invariant
from offload_pipeline_tests.offload.installation import Installation
from offload_pipeline_tests.retention.collecting import collect, keys_in

FIRST, SECOND = large_payload(3000, 1), large_payload(3000, 2)


def upload_late(notices: Installation, proxy: FaultyProxy, fault: str = "late") -> int:
    """A row whose first upload is still on its way when the second has been recorded."""
    (key,) = notices.insert([FIRST])
    proxy.faults = {"PUT": fault}
    assert notices.copy().rows_failed == 1
    proxy.heal()
    notices.let_time_pass()
    assert notices.copy().rows_copied == 1
    return int(key)


def assert_nothing_lost(notices: Installation, store: ObjectStore) -> None:
    assert_invariant(notices.connection, store, notices.config, notices.expected)


def test_an_upload_that_arrives_whole_after_its_row_was_freed_does_no_harm(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    upload_late(behind_proxy, proxy)
    assert behind_proxy.drain().is_sound
    assert behind_proxy.one_status() == "in_storage"
    proxy.settle()
    assert behind_proxy.verify(full=True).passed
    assert_nothing_lost(behind_proxy, real_store)


def test_an_upload_that_arrives_after_its_row_was_rewritten_and_collected_is_collected_again(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    (key,) = behind_proxy.insert([FIRST])
    proxy.faults = {"PUT": "late"}
    behind_proxy.copy()
    proxy.heal()
    behind_proxy.write(key, SECOND)
    assert behind_proxy.drain().is_sound
    collect(behind_proxy)
    proxy.settle()
    assert len(keys_in(real_store)) == 2, "what nobody names came back"
    collect(behind_proxy)
    assert keys_in(real_store) == {behind_proxy.object_key(key)}
    assert_nothing_lost(behind_proxy, real_store)


def test_an_upload_that_arrives_truncated_is_found_before_anything_is_freed(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    upload_late(behind_proxy, proxy, "late truncated")
    proxy.settle()
    drained = behind_proxy.drain()
    assert [type(damage.error) for damage in drained.verified.damaged] == [ObjectDamagedError]
    assert drained.released.rows_released == 0
    assert behind_proxy.drain().is_sound
    assert behind_proxy.one_status() == "in_storage"
    assert_nothing_lost(behind_proxy, real_store)


def test_an_upload_that_arrives_altered_is_found_where_the_object_is_read_whole(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    upload_late(behind_proxy, proxy, "late altered")
    proxy.settle()
    assert not behind_proxy.verify(full=True).passed
    assert behind_proxy.release().rows_released == 0
    assert behind_proxy.drain().is_sound
    assert_nothing_lost(behind_proxy, real_store)


@pytest.mark.parametrize("fault", ["late truncated", "late altered"])
def test_an_upload_that_spoils_what_was_freed_is_reported_and_stops_every_further_release(
    behind_proxy: Installation, proxy: FaultyProxy, fault: str
) -> None:
    """Beyond our reach: see docs/reliability.md. S3 refuses such bytes, which are not those that were signed."""
    key = upload_late(behind_proxy, proxy, fault)
    assert behind_proxy.drain().is_sound
    proxy.settle()
    behind_proxy.insert([SECOND])
    drained = behind_proxy.drain()
    assert [damage.named.key for damage in drained.verified.damaged] == [(str(key),)]
    assert drained.released.rows_released == 0


def delete_late(notices: Installation, proxy: FaultyProxy) -> int:
    """A row whose first payload's object is about to be deleted, by a request that is still on its way."""
    (key,) = notices.insert([FIRST])
    notices.drain()
    notices.write(key, SECOND)
    notices.drain()
    proxy.faults = {"DELETE": "late"}
    assert collect(notices).has_failed
    proxy.heal()
    return int(key)


def test_a_deletion_that_arrives_after_the_payload_was_written_again_loses_nothing(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    key = delete_late(behind_proxy, proxy)
    behind_proxy.write(key, FIRST)
    drained = behind_proxy.drain()
    assert (drained.copied.rows_copied, drained.verified.passed, drained.released.rows_released) == (1, False, 0)
    proxy.settle()
    behind_proxy.let_time_pass()
    assert not behind_proxy.drain().verified.passed, "its object was deleted after all"
    assert behind_proxy.drain().is_sound
    assert behind_proxy.one_status() == "in_storage"
    assert_nothing_lost(behind_proxy, real_store)


def test_what_was_deleted_an_hour_ago_is_trusted_again(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    key = delete_late(behind_proxy, proxy)
    proxy.settle()
    behind_proxy.write(key, FIRST)
    behind_proxy.let_time_pass()
    assert behind_proxy.drain().is_sound
    assert_nothing_lost(behind_proxy, real_store)


def test_a_writer_does_not_trust_what_a_deletion_may_still_take(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    key = delete_late(behind_proxy, proxy)
    with PayloadWriter(behind_proxy.pipeline) as writer:
        with pytest.raises(StoreUnavailableError, match="may still be carried out"):
            writer.write(behind_proxy.connection, "notices", "acme", key, FIRST)
        behind_proxy.let_time_pass()
        assert writer.write(behind_proxy.connection, "notices", "acme", key, FIRST)["raw_payload"] is None
