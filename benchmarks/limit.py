"""How close a backfill comes to what the machine could do if nothing but the unavoidable took any time.

Unavoidable: that PostgreSQL turns the payload into text, SHA-256, deflate at our level, and that the store takes the
bytes. The CPU time of each is measured alone, on the same payloads and in the same round as our own run; their sum over
the cores is the limit. Reading, sending, reading back, verifying, recording and releasing are not in it, nor any
transaction.

What the protocol demands besides is measured in the same way and said beside it: the store giving the object back, and
its end once more, and PostgreSQL turning the payload into text again to hash it.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import TypeVar

import deflate
import psutil  # type: ignore[import-untyped]  # has no type information
from psycopg import Connection

from benchmarks.cores import cores
from benchmarks.moving import SOURCE, move_by_us, source
from benchmarks.results import Measured, alternating, median
from benchmarks.servers import Servers
from benchmarks.throughput import OURS, SIZES, Size
from offload_pipeline.config import OffloadConfig
from offload_pipeline.offload.packing import LIBDEFLATE_LEVEL
from offload_pipeline.storage.object_store import ObjectStore

Item = TypeVar("Item")

BAR = 0.6
TEXT, SHA256, DEFLATE, PUT = "PostgreSQL, as text", "SHA-256", "deflate", "store, PUT"
UNAVOIDABLE = (TEXT, SHA256, DEFLATE, PUT)
RELEASE, GET, TRAILER = "PostgreSQL, as text and SHA-256", "store, GET", "store, trailer"
DEMANDED = (RELEASE, GET, TRAILER)
# The CPU time of other processes is counted in hundredths of a second.
ENOUGH_CPU_SECONDS = 0.6
# As many payloads as are kept in memory for the stages that need no database.
KEPT_BYTES = 60_000_000
_AS_TEXT = "octet_length(payload::text)"
_HASHED = "octet_length(sha256(convert_to(payload::text, 'UTF8')))"


@dataclass(frozen=True)
class _Stages:
    """Each gives milliseconds of CPU per row, in the process that does the work."""

    servers: Servers
    connection: Connection
    store: ObjectStore
    payloads: list[bytes]
    packed: list[bytes]
    rows: int
    _prefixes = count()

    def subjects(self) -> dict[str, Callable[[], float]]:
        """Each stage alone, by the name that it has in the figure's parts."""
        return {
            TEXT: partial(self.in_postgres, _AS_TEXT),
            SHA256: partial(self.in_python, lambda payload: hashlib.sha256(payload).digest()),
            DEFLATE: partial(self.in_python, lambda payload: deflate.gzip_compress(payload, LIBDEFLATE_LEVEL)),
            PUT: self.put,
            RELEASE: partial(self.in_postgres, _HASHED),
            GET: partial(self.look, self.store.get),
            TRAILER: partial(self.look, self.store.trailer),
        }

    def in_postgres(self, expression: str) -> float:
        """The server's process of our connection, over all rows of the source."""
        query = f"SELECT sum({expression}) FROM {SOURCE}"  # noqa: S608 - our own names
        server = psutil.Process(self.connection.info.backend_pid)
        return self._repeated(lambda: self.connection.execute(query).fetchone(), self.rows, server)

    def in_python(self, work: Callable[[bytes], object]) -> float:
        """This process, in one thread."""

        def once() -> None:
            for payload in self.payloads:
                work(payload)

        return self._repeated(once, len(self.payloads), psutil.Process())

    def put(self) -> float:
        """The store's process, with new keys each time."""
        return self._in_store(self.store.put, self.packed)

    def look(self, at: Callable[[str], object]) -> float:
        """The store's process, asked for objects that are there already."""
        prefix = f"limit-{next(self._prefixes)}"
        keys = [f"{prefix}/{number}" for number in range(len(self.packed))]
        for key, data in zip(keys, self.packed, strict=True):
            self.store.put(key, data)
        return self._in_store(lambda _key, present: at(present), keys)

    def _in_store(self, work: Callable[[str, Item], object], items: Sequence[Item]) -> float:
        """As many threads as the pipeline has: one request at a time costs the store more."""
        with ThreadPoolExecutor(OffloadConfig().store_threads) as threads:

            def once() -> None:
                prefix = f"limit-{next(self._prefixes)}"
                list(threads.map(work, (f"{prefix}/{number}" for number in range(len(items))), items))

            return self._repeated(once, len(items), psutil.Process(self.servers.s3.pid))

    @staticmethod
    def _repeated(once: Callable[[], object], rows: int, process: psutil.Process) -> float:
        before, repetitions = _cpu_seconds(process), 0
        while (spent := _cpu_seconds(process) - before) < ENOUGH_CPU_SECONDS:
            once()
            repetitions += 1
        return spent / repetitions / rows * 1e3


def measure(servers: Servers, say: Callable[[str], None]) -> list[Measured]:
    """Rows per second of ours over those of the limit, for large payloads and for small ones."""
    with servers.connect() as connection:
        connection.execute("SET max_parallel_workers_per_gather = 0")
        connection.execute("SET jit = off")
        return [_at(servers, connection, say, size) for size in SIZES]


def _at(servers: Servers, connection: Connection, say: Callable[[str], None], size: Size) -> Measured:
    rows = size.rows[OURS]
    say(f"{size} to S3, by us, and each unavoidable stage alone")
    ours = partial(move_by_us, servers, connection, rows, size.threshold_bytes)
    with source(connection, size.payload_bytes, rows):
        stages = _stages(servers, connection, size, rows)
        found = alternating({OURS: lambda: ours().milliseconds_per_row, **stages.subjects()})
    return _measured(size, found)


def _measured(size: Size, found: Mapping[str, Sequence[float]]) -> Measured:
    limits = _over_the_cores(found, UNAVOIDABLE)
    runs = [limit / ours for limit, ours in zip(limits, found[OURS], strict=True)]
    demanded = _over_the_cores(found, UNAVOIDABLE + DEMANDED)
    share = median([limit / ours for limit, ours in zip(demanded, found[OURS], strict=True)])
    parts = {name: median(found[name]) for name in UNAVOIDABLE + DEMANDED}
    return Measured(
        measure=f"{size}, S3: against the limit",
        value=median(runs), unit="of its rows/s", bar=BAR, is_at_most=False, runs=tuple(runs),
        detail=f"{median(found[OURS]):.2f} ms a row, the limit {median(limits):.2f}: ms of CPU a row "
        f"({_said(parts, UNAVOIDABLE)}) over {len(cores())} cores; with what the protocol demands besides "
        f"({_said(parts, DEMANDED)}) it is {median(demanded):.2f}, and ours {100 * share:.0f} % of it",
        parts={**parts, OURS: median(found[OURS]), "limit": median(limits)},
    )  # fmt: skip


def _over_the_cores(found: Mapping[str, Sequence[float]], stages: Sequence[str]) -> list[float]:
    return [sum(parts) / len(cores()) for parts in zip(*(found[name] for name in stages), strict=True)]


def _said(parts: Mapping[str, float], stages: Sequence[str]) -> str:
    return ", ".join(f"{parts[name]:.3f} {name}" for name in stages)


def _stages(servers: Servers, connection: Connection, size: Size, rows: int) -> _Stages:
    texts = connection.execute(f"SELECT convert_to(payload::text, 'UTF8') FROM {SOURCE} ORDER BY id")  # noqa: S608 - our own names
    kept = [payload for (payload,) in islice(texts, KEPT_BYTES // size.payload_bytes)]
    packed = [bytes(deflate.gzip_compress(payload, LIBDEFLATE_LEVEL)) for payload in kept]
    return _Stages(servers, connection, servers.store(), kept, packed, rows)


def _cpu_seconds(process: psutil.Process) -> float:
    if process.pid == os.getpid():
        return time.process_time()
    spent = process.cpu_times()
    return float(spent.user + spent.system)
