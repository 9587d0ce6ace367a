"""One run of one subject: the same payloads in a fresh table, moved to S3, timed, and looked at afterwards."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

import psutil  # type: ignore[import-untyped]  # has no type information
from psycopg import Connection

from benchmarks import peers
from benchmarks.payloads import payloads
from benchmarks.results import medians
from benchmarks.servers import Servers
from offload_pipeline.pipeline import Pipeline
from offload_pipeline.storage.seaweedfs import SeaweedFS

SOURCE = "payload_source"
TENANT = "t"
RUN_ID = "benchmark"
_numbers = count(1)

Peer = Callable[[str, SeaweedFS, str], Callable[[], None]]
"""Called with the database's URL, the store and a prefix; gives what moves the rows."""


@dataclass(frozen=True)
class Run:
    """Wall time, the CPU time of each process that took part, and what all cores idled, of a run over so many rows."""

    rows: int
    seconds: float
    cpu_seconds: dict[str, float]
    idle_seconds: float

    @property
    def milliseconds_per_row(self) -> float:
        """Wall time."""
        return self.seconds / self.rows * 1e3

    @property
    def undisturbed_milliseconds_per_row(self) -> float:
        """Wall time without what other processes took of the cores: what was spent on this, or on nothing."""
        spent = sum(self.cpu_seconds.values()) + self.idle_seconds
        return float(spent / psutil.cpu_count() / self.rows * 1e3)

    @property
    def cpu_milliseconds_per_row(self) -> dict[str, float]:
        """CPU time by process."""
        return {name: seconds / self.rows * 1e3 for name, seconds in self.cpu_seconds.items()}


def median_cpu(runs: Sequence[Run]) -> dict[str, float]:
    """Milliseconds a row of each process."""
    return medians([run.cpu_milliseconds_per_row for run in runs])


def said_cpu(milliseconds: Mapping[str, float]) -> str:
    """As `0.47 us, 0.15 postgres, 0.97 store`."""
    return ", ".join(f"{figure:.2f} {name}" for name, figure in milliseconds.items())


@contextlib.contextmanager
def source(connection: Connection, size_bytes: int, rows: int) -> Iterator[None]:
    """The payloads of every run, as rows (id, payload); dropped afterwards."""
    connection.execute(f"CREATE TABLE {SOURCE} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload jsonb)")
    try:
        with connection.cursor() as cursor, cursor.copy(f"COPY {SOURCE} (payload) FROM STDIN") as copy:
            for text in islice(payloads(size_bytes), rows):
                copy.write_row((text,))
        yield
    finally:
        connection.execute(f"DROP TABLE {SOURCE}")


def move_by_peer(servers: Servers, connection: Connection, peer: Peer, rows: int) -> Run:
    """The first so many rows of the source, by one of `peers`."""
    prefix = f"peer-{next(_numbers)}"
    connection.execute(peers.CREATE)
    try:
        fill = f"INSERT INTO {peers.TABLE} (id, payload) SELECT id, payload FROM {SOURCE} WHERE id <= %s"  # noqa: S608 - our own names
        connection.execute(fill, [rows])
        settle(connection, peers.TABLE)
        run = timed(servers, rows, peer(servers.database_url, servers.s3, prefix))
        waiting = f"SELECT count(*) FROM {peers.TABLE} WHERE NOT done OR payload IS NOT NULL"  # noqa: S608 - our own names
        [(left,)] = connection.execute(waiting)
        if left:
            raise RuntimeError(f"{left} of {rows} rows were not moved")
        require_objects(servers, prefix, rows)
    finally:
        connection.execute(f"DROP TABLE {peers.TABLE}")
    return run


def move_by_us(servers: Servers, connection: Connection, rows: int, threshold_bytes: int) -> Run:
    """The first so many rows of the source, by a backfill of a table that was filled before the installation."""
    fill = f"SELECT id, payload FROM {SOURCE} WHERE id <= {rows}"  # noqa: S608 - our own names
    with installed(servers, connection, fill, threshold_bytes) as pipeline:
        return drain(servers, connection, pipeline, rows)


@contextlib.contextmanager
def installed(servers: Servers, connection: Connection, fill: str, threshold_bytes: int) -> Iterator[Pipeline]:
    """A table of what the query `fill` gives (id, payload), older than its trigger; dropped afterwards."""
    name = f"moved_{next(_numbers)}"
    connection.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, tenant_id text DEFAULT '{TENANT}', payload jsonb)")
    try:
        connection.execute(f"INSERT INTO {name} (id, payload) {fill}")
        yield servers.pipeline({
            "name": name, "relation": f"public.{name}", "tenant": {"column": "tenant_id"}, "payload": "payload",
            "threshold_bytes": threshold_bytes,
        })  # fmt: skip
    finally:
        connection.execute(f"DROP TABLE {name}")


def drain(servers: Servers, connection: Connection, pipeline: Pipeline, rows: int) -> Run:
    """Copy with read-back of every object, verification, release with PostgreSQL's own hash."""
    (partition,) = pipeline.partitions(connection, None, TENANT)

    def work() -> None:
        result = pipeline.drain(partition, RUN_ID, unseen=True)
        if not result.is_sound or result.released.rows_released != rows:
            raise RuntimeError(f"not all of {rows} rows were drained: {result}")

    settle(connection, partition.table.name)
    run = timed(servers, rows, work)
    require_objects(servers, f"{TENANT}/{partition.table.name}", rows)
    return run


def timed(servers: Servers, rows: int, work: Callable[[], None]) -> Run:
    """Wall and CPU time of the work."""
    before, idle_before = servers.cpu_seconds(), idle_seconds()
    begun = time.perf_counter()
    work()
    seconds = time.perf_counter() - begun
    idle, after = idle_seconds() - idle_before, servers.cpu_seconds()
    return Run(rows, seconds, {name: after[name] - before[name] for name in after}, idle)


def idle_seconds() -> float:
    """What all cores together have idled since the machine's start, waiting for disks included."""
    found = psutil.cpu_times()
    return float(found.idle + getattr(found, "iowait", 0.0))


def settle(connection: Connection, table: str) -> None:
    """Vacuumed, analysed and behind a checkpoint: no run pays for how its table was filled, or for the run before."""
    connection.execute(f"VACUUM (ANALYZE) {table}")
    connection.execute("CHECKPOINT")


def require_objects(servers: Servers, prefix: str, rows: int) -> None:
    """Raises RuntimeError where the store does not have one for each row."""
    objects = sum(1 for _ in servers.store().list(prefix))
    if objects != rows:
        raise RuntimeError(f"the store has {objects} objects of {rows} rows under {prefix}")
