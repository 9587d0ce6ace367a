"""Whether a row of a very large table takes longer than a row of a small one: payloads of some 250 bytes, to S3.

The large table is drained once, as a whole. Small ones are drained before it, between its copying and its verification,
and after it, so that a slow quarter of an hour of the machine is on both sides. Autovacuum is on, as the server comes.
"""

import threading
import time
from collections.abc import Callable, Sequence

from psycopg import Connection

from benchmarks.moving import RUN_ID, TENANT, Run, drain, installed, objects_under, settle, timed
from benchmarks.results import Measured, median
from benchmarks.servers import Servers
from offload_pipeline.offload.claims import Partition
from offload_pipeline.pipeline import Pipeline

BAR = 1.15
ROWS = 1_000_000
FEW_ROWS = 10_000
TIMES = 3
# 225 bytes as text, and a little more for large numbers.
_ROWS = "SELECT n, jsonb_build_object('n', n, 'text', repeat(md5(n::text), 6)) FROM generate_series(1, {}) AS n"


class _Stretches:
    """Milliseconds per row for each tenth of a step's rows; called as `Progress`, from any thread."""

    def __init__(self, rows: int, say: Callable[[str], None]) -> None:
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


def measure(servers: Servers, say: Callable[[str], None], rows: int = ROWS) -> list[Measured]:
    """Milliseconds per row of the large table over the median of the small ones, which have 10,000 rows."""
    with servers.connect() as connection:
        small = _small_tables(servers, connection, say)
        say(f"filling a table of {rows:,} rows")
        with installed(servers, connection, _ROWS.format(rows), threshold_bytes=0) as pipeline:
            (partition,) = pipeline.partitions(connection, None, TENANT)
            settle(connection, partition.table.name)
            tenths = _Stretches(rows, say)
            copying = timed(servers, rows, lambda: _copy(pipeline, partition, rows, say, tenths))
            small += _small_tables(servers, connection, say)
            say("verifying and releasing the large table")
            releasing = timed(servers, rows, lambda: _verify_and_release(pipeline, partition, rows, say))
            assert objects_under(servers, f"{TENANT}/{partition.table.name}") == rows
            small += _small_tables(servers, connection, say)
    return [_measured(rows, (copying, releasing), small, tenths.milliseconds)]


def _measured(rows: int, steps: Sequence[Run], small: Sequence[Run], tenths: Sequence[float]) -> Measured:
    large, few = sum(run.milliseconds_per_row for run in steps), median([run.milliseconds_per_row for run in small])
    cpu = sum(run.cpu_milliseconds_per_row for run in steps)
    few_cpu = median([run.cpu_milliseconds_per_row for run in small])
    return Measured(
        measure=f"time per row at {rows:,} rows against {FEW_ROWS:,}",
        value=large / few, unit="times", bar=BAR, is_at_most=True,
        runs=tuple(large / run.milliseconds_per_row for run in small),
        detail=f"{large:.3f} ms a row against {few:.3f} (CPU of all: {cpu:.3f} against {few_cpu:.3f}); payloads of "
        f"some 250 bytes to S3, {large * rows / 1e3:.0f} s in all; the rounds are those of the small tables",
        parts={f"{FEW_ROWS:,} rows": few, f"{rows:,} rows": large}
        | {f"copying, tenth {number}": tenth for number, tenth in enumerate(tenths, 1)},
    )  # fmt: skip


def _small_tables(servers: Servers, connection: Connection, say: Callable[[str], None]) -> list[Run]:
    found = []
    for _ in range(TIMES):
        with installed(servers, connection, _ROWS.format(FEW_ROWS), threshold_bytes=0) as pipeline:
            found.append(drain(servers, connection, pipeline, FEW_ROWS))
    say(f"{FEW_ROWS:,} rows: " + ", ".join(f"{run.milliseconds_per_row:.3f}" for run in found) + " ms a row")
    return found


def _copy(
    pipeline: Pipeline, partition: Partition, rows: int, say: Callable[[str], None], progress: _Stretches
) -> None:
    copied = pipeline.copy(partition, RUN_ID, unseen=True, progress=progress, announce=_announcing(say))
    assert (copied.rows_copied, copied.stopped_by) == (rows, None), copied


def _verify_and_release(pipeline: Pipeline, partition: Partition, rows: int, say: Callable[[str], None]) -> None:
    assert pipeline.verify(partition, RUN_ID).passed
    assert pipeline.release(partition, RUN_ID, announce=_announcing(say)).rows_released == rows


def _announcing(say: Callable[[str], None]) -> Callable[[str | None], None]:
    return lambda reason: say(f"paused: {reason}" if reason else "goes on")
