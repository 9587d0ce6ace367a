"""What the measurements reckon with, where it needs no server."""

import time
from typing import Any

import psutil  # type: ignore[import-untyped]  # has no type information
import pytest

from benchmarks import growth, limit, sensor
from benchmarks.application import _Seen
from benchmarks.moving import Run, median_cpu, said_cpu
from benchmarks.updater import Updates

INDEX_ONLY = {"Node Type": "Index Only Scan", "Index Name": "pending", "Heap Fetches": 0}
FROM_THE_HEAP = INDEX_ONLY | {"Index Name": "copied", "Heap Fetches": 3}


def test_an_application_is_judged_by_the_slowest_hundredth_of_its_updates() -> None:
    seen = _Seen(Updates([number / 1e3 for number in range(100, 0, -1)], lock_waits=0), rows_per_second=0)
    assert (seen.p50, seen.p99) == pytest.approx((50.5, 100))


def test_the_limit_is_the_sum_of_its_stages_over_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "cores", lambda: [0, 1])
    assert limit._over_the_cores({"a": [1.0, 2.0], "b": [3.0, 4.0], "c": [9.0, 9.0]}, ("a", "b")) == [2.0, 3.0]


@pytest.mark.parametrize(
    ("scans", "wrong", "detail"),
    [
        ([INDEX_ONLY, INDEX_ONLY], 0, "of 2 scans"),
        ([INDEX_ONLY, FROM_THE_HEAP, {"Node Type": "Seq Scan"}], 2, "of 3 scans: Index Only Scan copied, Seq Scan"),
    ],
)
def test_every_scan_that_is_not_index_only_is_counted_and_named(
    scans: list[dict[str, Any]], wrong: int, detail: str
) -> None:
    figure = sensor._not_index_only(scans)
    assert (figure.value, figure.detail, figure.is_met) == (wrong, detail, wrong == 0)


def test_a_tick_that_reads_nothing_is_no_tick() -> None:
    with pytest.raises(RuntimeError, match="reads sensor_rows"):
        sensor._not_index_only([])


def test_pauses_are_counted_from_their_first_reason_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([10.0, 12.0, 15.0, 100.0, 101.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    said: list[str] = []
    pauses = growth._Pauses(said.append)
    for reason in ("autovacuum works on a", "replica lags", None, "autovacuum works on a", None):
        pauses(reason)
    assert pauses.seconds == 6.5
    assert said[:3] == ["paused: autovacuum works on a", "paused: replica lags", "goes on"]


def test_each_tenth_of_a_table_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    tenths = growth._Stretches(1_000, lambda _line: None)
    for rows in (60, 40, 50, 50):
        tenths(rows, 0)
    assert tenths.milliseconds == [10.0, 20.0]


def test_cpu_time_is_said_by_process_and_as_the_median_of_the_runs() -> None:
    runs = [Run(1_000, 2.0, {"us": seconds, "store": 2 * seconds}, 0.0) for seconds in (0.5, 0.1, 0.9)]
    assert median_cpu(runs) == {"us": 0.5, "store": 1.0}
    assert said_cpu(median_cpu(runs)) == "0.50 us, 1.00 store"


def test_what_other_processes_took_of_the_cores_is_left_out_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    alone = Run(1_000, 1.0, {"us": 1.0, "store": 0.6}, idle_seconds=0.4)
    beside_others = Run(1_000, 3.0, {"us": 1.0, "store": 0.6}, idle_seconds=0.4)
    assert alone.undisturbed_milliseconds_per_row == alone.milliseconds_per_row == 1.0
    assert beside_others.undisturbed_milliseconds_per_row == 1.0
