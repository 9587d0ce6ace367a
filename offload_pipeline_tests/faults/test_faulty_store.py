"""Whatever the store does to requests and bytes, nothing is lost, and all is finished once it has recovered."""

import json
from typing import Any

import pytest

from offload_pipeline.errors import StoreDeniedError, StoreUnavailableError
from offload_pipeline.offload.workers import STORE_DOWN_AFTER_FAILURES
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.faults.proxy import FaultyProxy
from offload_pipeline_tests.invariant import assert_invariant
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed
from offload_pipeline_tests.offload.stores import FaultyStore

PASSES = 6
ROWS = 30


@pytest.mark.parametrize("seed", range(3))
def test_a_store_that_spoils_most_requests_loses_nothing(notices: Installation, seed: int) -> None:
    keys = notices.insert(large_payload(500, number) for number in range(ROWS))
    store = FaultyStore(notices.store, seed)
    faulty = notices.with_store(store)
    for number in range(PASSES):
        faulty.copy()
        notices.assert_invariant()
        if faulty.verify().passed:
            faulty.release()
        notices.assert_invariant()
        notices.write(keys[number], json.dumps({"written in pass": number}))
        notices.let_time_pass()
    assert len(store.faults) >= 9, "every kind of fault happened"

    store.heal()
    faulty.drain()
    notices.let_time_pass()
    assert faulty.drain().is_sound
    assert notices.one_status() == "in_storage"
    assert faulty.verify(full=True).passed
    assert all(failure["resolved_at"] for failure in notices.failures().values())
    notices.assert_invariant()


FAULTS: list[dict[str, str]] = [
    *({"PUT": fault} for fault in ("500", "503 slow down", "400 request timeout", "no answer", "cut")),
    *({"PUT": fault} for fault in ("nothing stored", "truncated", "altered")),
    *({"GET": fault} for fault in ("500", "503 slow down", "no answer", "cut", "truncated", "altered")),
    {"PUT": "altered", "GET": "cut"},
]


@pytest.mark.parametrize("faults", FAULTS, ids=lambda faults: ", ".join(map(" ".join, faults.items())))
def test_a_server_that_fails_every_request_loses_nothing(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore, faults: dict[str, str]
) -> None:
    def assert_nothing_lost() -> None:
        assert_invariant(behind_proxy.connection, real_store, behind_proxy.config, behind_proxy.expected)

    behind_proxy.insert(large_payload(3000, number) for number in range(3))
    proxy.faults = faults
    drained = behind_proxy.drain()
    assert (drained.copied.rows_copied, drained.copied.rows_failed) == (0, 3)
    assert not any(failure["permanent"] for failure in behind_proxy.failures().values())
    assert behind_proxy.one_status() == "pending_move"
    assert_nothing_lost()

    proxy.heal()
    behind_proxy.let_time_pass()
    behind_proxy.copy()
    assert behind_proxy.one_status() == "copied"
    assert_nothing_lost()

    if "GET" in faults:
        proxy.faults = faults
        behind_proxy.insert([large_payload(3000, 9)])
        assert not behind_proxy.verify(sample_rows=2).passed
        assert proxy.requests["HEAD"] == 0, "what has no answer is not asked in another way as well"
        behind_proxy.release()
        assert "in_storage" not in behind_proxy.statuses().values()
        assert_nothing_lost()
        proxy.heal()
    behind_proxy.let_time_pass()
    assert behind_proxy.drain().is_sound
    assert behind_proxy.one_status() == "in_storage"
    assert_nothing_lost()


@pytest.mark.parametrize("fault", ["403", "400 expired token"])
def test_a_server_that_denies_ends_the_pass_and_marks_no_row_as_failed(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore, fault: str
) -> None:
    behind_proxy.insert(large_payload(1000, number) for number in range(3))
    proxy.faults = {"PUT": fault, "GET": fault}
    assert isinstance(behind_proxy.copy().stopped_by, StoreDeniedError)
    assert behind_proxy.failures() == {}
    proxy.heal()
    behind_proxy.copy()
    proxy.faults = {"PUT": fault, "GET": fault}
    with pytest.raises(StoreDeniedError):
        behind_proxy.verify()
    assert behind_proxy.release().rows_released == 0
    proxy.heal()
    assert behind_proxy.drain().is_sound
    assert_invariant(behind_proxy.connection, real_store, behind_proxy.config, behind_proxy.expected)


@pytest.mark.parametrize("faults", [{"PUT": "503 slow down"}, {"GET": "500"}, {"PUT": "cut"}], ids=str)
def test_a_fault_that_passes_within_a_request_is_not_even_noticed(
    database_url: str, s3_url: str, proxy: FaultyProxy, faults: dict[str, Any]
) -> None:
    with installed(database_url, StoreAddress(s3_url, {"endpoint": proxy.endpoint})) as notices:
        notices.insert([large_payload(1000)])
        proxy.faults, proxy.faults_left = faults, 2
        assert notices.drain().is_sound
        assert proxy.faults_left == 0
        assert notices.failures() == {}
        notices.assert_invariant()


@pytest.mark.parametrize("fault", ["nothing stored", "truncated", "altered"])
def test_a_store_that_spoils_everything_for_hours_uses_up_no_attempts_and_stops_each_pass(
    behind_proxy: Installation, past_proxy: Installation, proxy: FaultyProxy, fault: str
) -> None:
    behind_proxy.insert(large_payload(300, number) for number in range(STORE_DOWN_AFTER_FAILURES + 20))
    proxy.faults = {"PUT": fault}
    for _ in range(behind_proxy.pipeline.config.offload.max_attempts + 1):
        assert isinstance(behind_proxy.copy().stopped_by, StoreUnavailableError)
        behind_proxy.let_time_pass()
    assert {failure["attempts"] for failure in behind_proxy.failures().values()} == {1}
    past_proxy.assert_invariant()

    assert past_proxy.drain().is_sound
    assert past_proxy.one_status() == "in_storage"
    past_proxy.assert_invariant()
