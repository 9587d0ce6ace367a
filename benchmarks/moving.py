"""One run of one subject: the same payloads in a fresh table, moved to S3, timed, and looked at afterwards."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice

from psycopg import Connection

from benchmarks import peers
from benchmarks.payloads import payloads
from benchmarks.servers import Servers
from offload_pipeline.pipeline import Pipeline
from offload_pipeline.storage.seaweedfs import SeaweedFS

SOURCE = "payload_source"
TENANT = "t"
RUN_ID = "benchmark"
_numbers = count(1)

Peer = Callable[[str, SeaweedFS, str], None]


@dataclass(frozen=True)
class Run:
    """Wall time, and the CPU time of `us`, `postgres` and `store`, of a run over so many rows."""

    rows: int
    seconds: float
    cpu_seconds: dict[str, float]

    @property
    def milliseconds_per_row(self) -> float:
        """Wall time."""
        return self.seconds / self.rows * 1e3

    @property
    def cpu_milliseconds_per_row(self) -> float:
        """CPU time of all three."""
        return sum(self.cpu_seconds.values()) / self.rows * 1e3


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
        fill = f"INSERT INTO {peers.TABLE} (id, payload) SELECT id, payload FROM {SOURCE} WHERE id <= %s"  # noqa: S608
        connection.execute(fill, [rows])
        settle(connection, peers.TABLE)
        run = timed(servers, rows, lambda: peer(servers.database_url, servers.s3, prefix))
        left = f"SELECT count(*) FROM {peers.TABLE} WHERE NOT done OR payload IS NOT NULL"  # noqa: S608
        assert one(connection, left) == 0
        assert objects_under(servers, prefix) == rows
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
        assert result.is_sound, result
        assert result.released.rows_released == rows, result

    settle(connection, partition.table.name)
    run = timed(servers, rows, work)
    assert objects_under(servers, f"{TENANT}/{partition.table.name}") == rows
    return run


def timed(servers: Servers, rows: int, work: Callable[[], None]) -> Run:
    """Wall and CPU time of the work."""
    before = servers.cpu_seconds()
    begun = time.perf_counter()
    work()
    seconds = time.perf_counter() - begun
    after = servers.cpu_seconds()
    return Run(rows, seconds, {name: after[name] - before[name] for name in after})


def settle(connection: Connection, table: str) -> None:
    """Vacuumed, analysed and behind a checkpoint: no run pays for how its table was filled, or for the run before."""
    connection.execute(f"VACUUM (ANALYZE) {table}")
    connection.execute("CHECKPOINT")


def objects_under(servers: Servers, prefix: str) -> int:
    """How many the store has."""
    return sum(1 for _ in servers.store().list(prefix))


def one(connection: Connection, query: str) -> int:
    """The first column of the first row."""
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])
