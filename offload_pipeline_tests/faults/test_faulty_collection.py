"""Garbage collection on a store that fails to list, to tell ages or to delete: only orphans ever go."""

import pytest

from offload_pipeline.errors import OffloadError, StoreDeniedError, StoreUnavailableError
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.faults.proxy import LIST_PAGE_KEYS, FaultyProxy
from offload_pipeline_tests.offload.installation import Installation
from offload_pipeline_tests.retention.collecting import collect, keys_in, rewrite

ROWS, ORPHANS = LIST_PAGE_KEYS + 10, 5


@pytest.fixture
def with_orphans(past_proxy: Installation) -> Installation:
    """More objects than a page of the listing holds; some that no row names any more."""
    keys = past_proxy.insert(large_payload(100, number) for number in range(ROWS))
    assert past_proxy.drain().is_sound
    for key in keys[:ORPHANS]:
        rewrite(past_proxy, key)
    assert past_proxy.drain().is_sound
    return past_proxy


def assert_only_orphans_are_gone(notices: Installation, orphans: int) -> None:
    assert len(keys_in(notices.store)) == ROWS + orphans
    notices.assert_invariant()


FAILURES = ("500", "503 slow down", "no answer", "cut")


@pytest.mark.parametrize("request_kind", ["LIST", "NEXT PAGE"])
@pytest.mark.parametrize("fault", [*FAILURES, "403"])
def test_a_listing_that_fails_anywhere_deletes_nothing(
    with_orphans: Installation, behind_proxy: Installation, proxy: FaultyProxy, request_kind: str, fault: str
) -> None:
    proxy.faults = {request_kind: fault}
    with pytest.raises(StoreDeniedError if fault == "403" else StoreUnavailableError):
        collect(behind_proxy)
    assert proxy.injected[f"{request_kind} {fault}"] == 1
    assert_only_orphans_are_gone(with_orphans, ORPHANS)

    proxy.heal()
    collect(with_orphans)
    assert_only_orphans_are_gone(with_orphans, 0)


@pytest.mark.parametrize(("request_kind", "fewest_left"), [("LIST", ORPHANS), ("NEXT PAGE", 0)])
def test_a_listing_that_ends_too_early_without_an_error_deletes_orphans_at_most(
    with_orphans: Installation, behind_proxy: Installation, proxy: FaultyProxy, request_kind: str, fewest_left: int
) -> None:
    proxy.faults = {request_kind: "empty"}
    deleted = collect(behind_proxy).tables["notices"].deleted
    assert ORPHANS - deleted >= fewest_left
    assert_only_orphans_are_gone(with_orphans, ORPHANS - deleted)


@pytest.mark.parametrize("fault", ["403", *FAILURES[:-1]])
def test_an_object_whose_age_the_store_does_not_tell_is_not_deleted(
    with_orphans: Installation, behind_proxy: Installation, proxy: FaultyProxy, fault: str
) -> None:
    # The first HEAD asks for the store's clock, and without it nothing begins.
    proxy.faults = {"HEAD": fault}
    with pytest.raises(OffloadError):
        collect(behind_proxy)
    assert proxy.requests["LIST"] == 0
    assert_only_orphans_are_gone(with_orphans, ORPHANS)


@pytest.mark.parametrize("fault", [*FAILURES, "nothing deleted", "403"])
def test_a_deletion_that_fails_is_made_up_for_by_the_next_collection(
    with_orphans: Installation, behind_proxy: Installation, proxy: FaultyProxy, fault: str
) -> None:
    proxy.faults = {"DELETE": fault}
    collected = collect(behind_proxy)
    assert collected.has_failed is (fault != "nothing deleted")
    assert proxy.injected[f"DELETE {fault}"] > 0
    proxy.heal()
    assert_only_orphans_are_gone(with_orphans, 0 if fault == "cut" else ORPHANS)
    collect(with_orphans)
    assert_only_orphans_are_gone(with_orphans, 0)
