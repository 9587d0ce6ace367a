"""Every measure still runs, and says what it measured: on little data, so that its figures mean nothing."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import workers
from benchmarks.cores import bind, cores
from benchmarks.report import ORDER, bar, rounds, said
from benchmarks.results import alternating
from benchmarks.servers import Servers
from benchmarks.throughput import LOOP, OURS, SCRIPT, THREADS, Size
from benchmarks.worker import Worker
from offload_pipeline.pipeline import Pipeline

FEW = Size(8_000, 0, {OURS: 60, LOOP: 20, THREADS: 40, SCRIPT: 3}, bar=6.0)
IN_ROUNDS = partial(alternating, rounds=2)
# By module, what takes the time; `demo` starts servers of its own and is tested as a command.
LITTLE: Mapping[str, Mapping[str, Any]] = {
    "throughput": {"SIZES": (FEW,), "alternating": IN_ROUNDS},
    "limit": {"SIZES": (FEW,), "alternating": IN_ROUNDS, "ENOUGH_CPU_SECONDS": 0.03},
    "growth": {"ROWS": 2_000, "FEW_ROWS": 200, "TIMES": 1},
    "memory": {"LARGE_BYTES": 100_000, "LARGE_ROWS": 2, "SMALL_ROWS_FOR_EACH_LARGE": 10},
    "trigger": {"ROUND_BYTES": 15_000_000, "ROUNDS": 2, "FEW_ROUNDS": 1, "MOST_INSERTS": 4},
    "application": {
        "ROWS": 200, "ROWS_ONE_BY_ONE": 100, "ROWS_OF_LOOP": 50, "ALONE_SECONDS": 0.5, "CALM_SECONDS": 0,
        "alternating": IN_ROUNDS,
    },
    "workers": {"ROWS_OF_A_TENANT": 100, "alternating": IN_ROUNDS},
    "sensor": {"ROWS": 20_000, "TICKS": 3},
}  # fmt: skip
FIGURES = {
    "throughput": 3,
    "limit": 1,
    "growth": 1,
    "memory": 1,
    "trigger": 2,
    "application": 3,
    "workers": 1,
    "sensor": 2,
}


def test_no_measure_is_left_out() -> None:
    assert {*LITTLE, "demo"} == set(ORDER)


@pytest.mark.slow
@pytest.mark.parametrize("name", LITTLE)
def test_a_measure_runs_and_leaves_no_table(name: str, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(f"benchmarks.{name}")
    for constant, value in LITTLE[name].items():
        monkeypatch.setattr(module, constant, value)
    figures = module.measure(servers, lambda _line: None)
    assert len(figures) == FIGURES[name]
    for one in figures:
        print(f"{one.measure}: {said(one.value, one.unit)}, {bar(one)}, {rounds(one)}: {one.detail}")  # noqa: T201
        assert one.value >= 0
        assert one.detail
    with servers.connect() as connection:
        left = connection.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '_rows$|^moved_'")
        assert not left.fetchall()


@pytest.mark.slow
def test_one_core_is_enough_for_two_workers(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants: list[str] = []

    class CountedWorker(Worker):
        def __init__(self, pipeline: Pipeline, folder: Path, tenant: str, core: int | None = None) -> None:
            tenants.append(tenant)
            super().__init__(pipeline, folder, tenant, core)

    patches = {"Worker": CountedWorker, "cores": lambda: cores()[:1], "are_few": lambda: True}
    for name, value in {**LITTLE["workers"], **patches}.items():
        monkeypatch.setattr(workers, name, value)
    try:
        workers.measure(servers, lambda _line: None)
    finally:
        bind(workers._processes(servers), cores())
    assert len(tenants) == len(set(tenants)) == 2 + 2 * (1 + 2), "to warm up, and in two rounds"
