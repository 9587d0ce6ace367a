"""Whatever the store does to listings and deletions, nothing is deleted by mistake and what failed is done later."""

import json

import pytest

from offload_pipeline.errors import OffloadError, StoreDeniedError
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.faults.proxy import LIST_PAGE_KEYS, FaultyProxy
from offload_pipeline_tests.invariant import assert_invariant
from offload_pipeline_tests.offload.installation import Installation
from offload_pipeline_tests.retention.collecting import collect, keys_in
from offload_pipeline_tests.retention.test_erasure import erase

ROWS = 2 * LIST_PAGE_KEYS
FIRST, SECOND = '{"written": "first"}', '{"written": "second"}'


def with_orphans(notices: Installation, rows: int) -> set[str]:
    """So many stored rows, a second one for every one of them, and the objects that no row names any more."""
    keys = notices.insert(json.dumps({"n": number}) for number in range(rows))
    notices.drain()
    orphans = {notices.object_key(key) for key in keys}
    for key in keys:
        notices.write(key, json.dumps({"again": key}))
    notices.drain()
    return orphans


LISTING_FAULTS = [
    (request, fault)
    for request in ("LIST", "NEXT PAGE")
    for fault in ("500", "503 slow down", "no answer", "cut", "403")
]


@pytest.mark.parametrize(("request_kind", "fault"), LISTING_FAULTS, ids=[" ".join(pair) for pair in LISTING_FAULTS])
def test_a_listing_that_fails_on_any_page_deletes_nothing(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore, request_kind: str, fault: str
) -> None:
    orphans = with_orphans(behind_proxy, ROWS // 2 + 5)
    before = keys_in(real_store)
    proxy.faults = {request_kind: fault}
    with pytest.raises(OffloadError) as caught:
        collect(behind_proxy)
    assert "\n" not in str(caught.value)
    assert proxy.injected[f"{request_kind} {fault}"] >= 1
    assert proxy.requests["DELETE"] == 0
    assert keys_in(real_store) == before
    proxy.heal()
    assert collect(behind_proxy).tables["notices"].deleted == len(orphans)


def test_a_listing_that_ends_early_without_saying_so_deletes_only_what_it_listed(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    with_orphans(behind_proxy, ROWS // 2 + 5)
    proxy.faults = {"NEXT PAGE": "empty"}
    assert collect(behind_proxy).tables["notices"].objects <= LIST_PAGE_KEYS
    proxy.heal()
    assert_invariant(behind_proxy.connection, real_store, behind_proxy.config, behind_proxy.expected)


@pytest.mark.parametrize("fault", ["500", "no answer"])
def test_a_store_that_fails_every_deletion_ends_the_run_and_keeps_the_orphans_for_the_next(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore, fault: str
) -> None:
    orphans = with_orphans(behind_proxy, 5)
    proxy.faults = {"DELETE": fault}
    result = collect(behind_proxy)
    assert result.has_failed
    assert result.stopped_by
    assert result.tables["notices"].deleted == 0
    assert orphans <= keys_in(real_store)
    proxy.heal()
    assert collect(behind_proxy).tables["notices"].deleted == 5
    assert_invariant(behind_proxy.connection, real_store, behind_proxy.config, behind_proxy.expected)


def test_a_store_whose_clock_cannot_be_read_is_not_collected(behind_proxy: Installation, proxy: FaultyProxy) -> None:
    with_orphans(behind_proxy, 5)
    proxy.faults = {"HEAD": "500"}
    with pytest.raises(OffloadError):
        collect(behind_proxy)
    assert proxy.requests["LIST"] == proxy.requests["DELETE"] == 0


def test_a_deletion_that_fails_once_is_repeated_by_the_next_run(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    with_orphans(behind_proxy, 5)
    proxy.faults, proxy.faults_left = {"DELETE": "500"}, 2
    first = collect(behind_proxy)
    assert (first.tables["notices"].deleted, first.tables["notices"].failed) == (3, 2)
    assert first.has_failed
    assert first.stopped_by is None
    assert collect(behind_proxy).tables["notices"].deleted == 2


def test_an_answer_to_one_deletion_says_nothing_of_an_earlier_one_that_is_still_on_its_way(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    (key,) = behind_proxy.insert([FIRST])
    behind_proxy.drain()
    behind_proxy.write(key, SECOND)
    behind_proxy.drain()
    proxy.faults, proxy.faults_left = {"DELETE": "late"}, 1
    assert collect(behind_proxy).has_failed
    assert collect(behind_proxy).tables["notices"].deleted == 1
    behind_proxy.write(key, FIRST)
    behind_proxy.drain()
    assert behind_proxy.one_status() == "pending_move", "nothing is named that the first deletion may still take"
    proxy.settle()
    behind_proxy.let_time_pass()
    behind_proxy.drain()
    behind_proxy.drain()
    assert behind_proxy.one_status() == "in_storage"
    assert_invariant(behind_proxy.connection, real_store, behind_proxy.config, behind_proxy.expected)


def test_a_store_that_denies_deletion_ends_the_run_at_once(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    orphans = with_orphans(behind_proxy, 40)
    proxy.faults = {"DELETE": "403"}
    result = collect(behind_proxy)
    assert isinstance(result.stopped_by, StoreDeniedError)
    assert proxy.requests["DELETE"] < 40
    assert orphans <= keys_in(real_store)


def test_a_store_that_only_says_it_deleted_is_asked_again_by_the_listing(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore
) -> None:
    """The objects of the rows are struck off the list; what lies under the prefix is found once more."""
    keys = behind_proxy.insert(json.dumps({"n": number}) for number in range(5))
    behind_proxy.drain()
    proxy.faults, proxy.faults_left = {"DELETE": "nothing deleted"}, 5
    result = erase(behind_proxy)
    assert result.listed.objects_deleted == 5
    assert result.tables["notices"].objects_deleted == 5
    assert not keys_in(real_store)
    assert_invariant(behind_proxy.connection, real_store, behind_proxy.config, behind_proxy.expected, expired=keys)
