"""Whether a row of a very large table takes longer than a row of a small one: payloads of some 250 bytes, to S3.

The large table is drained once, as a whole. Small ones are drained before it, between its copying and its verification,
and after it, so that a slow quarter of an hour of the machine is on both sides. Autovacuum is on, as the server comes.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from psycopg import Connection

from benchmarks.moving import RUN_ID, TENANT, Run, installed, require_objects, said_cpu, settle, timed
from benchmarks.results import Measured, median, medians
from benchmarks.servers import Servers
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.pipeline import Pipeline

BAR = 1.15
ROWS = 1_000_000
FEW_ROWS = 10_000
TIMES = 3
COPYING, VERIFYING, RELEASING = "copying", "verifying", "releasing"
# 225 bytes as text, and a little more for large numbers.
_ROWS = "SELECT n, jsonb_build_object('n', n, 'text', repeat(md5(n::text), 6)) FROM generate_series(1, {}) AS n"

Say = Callable[[str], None]


class _Stretches:
    """Milliseconds per row for each tenth of a step's rows; called as `Progress`, from any thread."""

    def __init__(self, rows: int, say: Say) -> None:
        self._tenth, self._say = rows // 10, say
        self._lock, self._done, self._since = threading.Lock(), 0, (0, time.perf_counter())
        self.milliseconds: list[float] = []

    def __call__(self, rows: int, _payload_bytes: int) -> None:
        with self._lock:
            self._done += rows
            if self._done < (len(self.milliseconds) + 1) * self._tenth:
                return
            (done, moment), now = self._since, time.perf_counter()
            self.milliseconds.append((now - moment) / (self._done - done) * 1e3)
            self._since = self._done, now
            self._say(f"copied {self._done:,} rows, {self.milliseconds[-1]:.3f} ms a row in this tenth")


class _Pauses:
    """The seconds for which back-pressure held the work up; called as `Announce`."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._since: float | None = None
        self.seconds = 0.0

    def __call__(self, reason: str | None) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now if reason else None
        self._say(f"paused: {reason}" if reason else "goes on")


@dataclass(frozen=True)
class _Table:
    """A table's way to the store; each of its steps is timed apart."""

    servers: Servers
    pipeline: Pipeline
    partition: Partition
    rows: int
    pauses: _Pauses
    steps: dict[str, Run] = field(default_factory=dict)

    def copy(self, progress: Progress = no_progress) -> None:
        """Every row, which is older than the trigger."""

        def work() -> None:
            copied = self.pipeline.copy(self.partition, RUN_ID, unseen=True, progress=progress, announce=self.pauses)
            if (copied.rows_copied, copied.stopped_by) != (self.rows, None):
                raise RuntimeError(f"not all of {self.rows} rows were copied: {copied}")

        self.steps[COPYING] = timed(self.servers, self.rows, work)

    def verify_and_release(self) -> None:
        """With PostgreSQL's own hash of every row."""
        self.steps[VERIFYING] = timed(self.servers, self.rows, self._verify)
        self.steps[RELEASING] = timed(self.servers, self.rows, self._release)
        require_objects(self.servers, f"{TENANT}/{self.partition.table.name}", self.rows)

    def _verify(self) -> None:
        verified = self.pipeline.verify(self.partition, RUN_ID)
        if not verified.passed:
            raise RuntimeError(f"verification did not pass: {verified}")

    def _release(self) -> None:
        released = self.pipeline.release(self.partition, RUN_ID, announce=self.pauses)
        if released.rows_released != self.rows:
            raise RuntimeError(f"not all of {self.rows} rows were released: {released}")

    @property
    def wall(self) -> dict[str, float]:
        """Milliseconds a row of each step."""
        return {step: run.milliseconds_per_row for step, run in self.steps.items()}

    @property
    def cpu(self) -> dict[str, float]:
        """Milliseconds a row of each process, over all steps."""
        each = [run.cpu_milliseconds_per_row for run in self.steps.values()]
        return {process: sum(one[process] for one in each) for process in each[0]}


def measure(servers: Servers, say: Say, rows: int | None = None) -> list[Measured]:
    """Milliseconds per row of the large table, a million rows unless said, over the median of the small ones."""
    rows = rows or ROWS
    with servers.connect() as connection:
        small = _small_tables(servers, connection, say)
        say(f"filling a table of {rows:,} rows")
        with installed(servers, connection, _ROWS.format(rows), threshold_bytes=0) as pipeline:
            large = _table(servers, connection, pipeline, rows, say)
            tenths = _Stretches(rows, say)
            large.copy(tenths)
            small += _small_tables(servers, connection, say)
            say("verifying and releasing the large table")
            large.verify_and_release()
            small += _small_tables(servers, connection, say)
    return [_measured(large, small, tenths.milliseconds)]


def _small_tables(servers: Servers, connection: Connection, say: Say) -> list[_Table]:
    found = []
    for _ in range(TIMES):
        with installed(servers, connection, _ROWS.format(FEW_ROWS), threshold_bytes=0) as pipeline:
            found.append(_table(servers, connection, pipeline, FEW_ROWS, say))
            found[-1].copy()
            found[-1].verify_and_release()
    say(f"{FEW_ROWS:,} rows: " + ", ".join(f"{sum(one.wall.values()):.3f}" for one in found) + " ms a row")
    return found


def _table(servers: Servers, connection: Connection, pipeline: Pipeline, rows: int, say: Say) -> _Table:
    (partition,) = pipeline.partitions(connection, None, TENANT)
    settle(connection, partition.table.name)
    return _Table(servers, pipeline, partition, rows, _Pauses(say))


def _measured(large: _Table, small: Sequence[_Table], tenths: Sequence[float]) -> Measured:
    wall = {"large": large.wall, "small": medians([one.wall for one in small])}
    cpu = {"large": large.cpu, "small": medians([one.cpu for one in small])}
    taken, each = sum(large.wall.values()), [sum(one.wall.values()) for one in small]
    parts = {f"{FEW_ROWS:,} rows": median(each), f"{large.rows:,} rows": taken}
    for which, of in wall.items():
        parts |= {f"{which}, {step}": figure for step, figure in of.items()}
        parts |= {f"{which}, CPU of {process}": figure for process, figure in cpu[which].items()}
    return Measured(
        measure=f"time per row at {large.rows:,} rows against {FEW_ROWS:,}",
        value=taken / median(each), unit="times", bar=BAR, is_at_most=True, runs=tuple(taken / one for one in each),
        detail=f"{taken:.3f} ms a row ({_said(wall['large'])}) against {median(each):.3f} ({_said(wall['small'])}); "
        f"CPU a row in ms: {said_cpu(cpu['large'])}, against {said_cpu(cpu['small'])}; one run of "
        f"{taken * large.rows / 1e3:.0f} s, of which {large.pauses.seconds:.0f} s were pauses for autovacuum; "
        "the rounds are small tables before, amid and after it",
        parts=parts | {f"{COPYING}, tenth {number}": tenth for number, tenth in enumerate(tenths, 1)},
    )  # fmt: skip


def _said(wall: Mapping[str, float]) -> str:
    return ", ".join(f"{step} {figure:.2f}" for step, figure in wall.items())
