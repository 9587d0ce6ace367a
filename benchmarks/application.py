"""What an application notices of a backfill: the latency of its updates by primary key, meanwhile and without.

Rows of 8 kB that are older than the trigger, of another tenant in each run. A client process of its own updates rows of
that tenant, a hundred a second, every tenth with a new payload: with nothing else going on; while a worker, in another
process, copies, verifies and releases the whole tenant; while one does so with one batch and one request at a time;
and, for comparison, while the loop moves rows of another table. An update's latency counts from the moment when it was
due. Waits for locks of more than 50 ms are counted by PostgreSQL itself (`log_lock_waits`), in the client's session.

Where client, servers and worker share two cores, what an update waits for is above all a core: with the client and its
connection at a real-time priority, p99 during a backfill is a third.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

from psycopg import Connection

from benchmarks import peers
from benchmarks.moving import settle
from benchmarks.payloads import payloads
from benchmarks.results import Measured, alternating, median, ratios
from benchmarks.servers import Servers
from benchmarks.updater import Updater, Updates
from benchmarks.worker import Worker
from offload_pipeline.pipeline import Pipeline

PAYLOAD_BYTES = 8_000
UPDATES_PER_SECOND = 100
# So that each takes some ten seconds, and sees a thousand updates.
ALONE_SECONDS = 10
ROWS, ROWS_ONE_BY_ONE, ROWS_OF_LOOP = 12_000, 6_000, 5_000
P99 = "application's p99 during"
ONE_BY_ONE = {"batches_in_flight": 1, "store_threads": 1}
# After the checkpoint that ends what an earlier run has left to be written.
CALM_SECONDS = 1
TABLE = "application_rows"
_CREATE = f"""
    CREATE TABLE {TABLE} (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant_id text NOT NULL,
        title text,
        payload jsonb,
        created_at timestamptz NOT NULL DEFAULT now()
    )
"""
_CONFIG = {"name": TABLE, "relation": f"public.{TABLE}", "primary_key": ["id"], "payload": "payload",
           "tenant": {"column": "tenant_id"}, "created_at": "created_at", "threshold_bytes": 1_000}  # fmt: skip
_FILL_PEER = f"INSERT INTO {peers.TABLE} (id, payload) SELECT id, payload FROM {TABLE} WHERE tenant_id = %s"  # noqa: S608 - our own names
_OLDER_THAN_THE_TRIGGER = f"SELECT count(*) FROM {TABLE} WHERE tenant_id = %s AND payload_storage_status IS NULL"  # noqa: S608 - our own names


@dataclass(frozen=True)
class _Seen:
    """What the application saw of a run, and how many rows a second were moved meanwhile."""

    updates: Updates
    rows_per_second: float

    @property
    def p50(self) -> float:
        """Milliseconds."""
        return median(self.updates.seconds) * 1e3

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return sorted(self.updates.seconds)[int(len(self.updates.seconds) * 0.99)] * 1e3


def measure(servers: Servers, say: Callable[[str], None]) -> list[Measured]:
    """p99 of the latency during a backfill over p99 without, and the waits for locks of more than 50 ms."""
    with servers.connect() as connection:
        connection.execute(_CREATE)
        try:
            seen = alternating(_Runs(servers, connection, say).subjects)
        finally:
            connection.execute(f"DROP TABLE IF EXISTS {TABLE}, {peers.TABLE}")
    backfills = [*seen["a backfill"], *seen["one by one"]]
    settings = ", ".join(f"`{name}: {value}`" for name, value in ONE_BY_ONE.items())
    return [
        _p99(f"{P99} a backfill against without", seen["a backfill"], seen["nothing"]),
        _p99(
            f"{P99} a backfill one row at a time against without", seen["one by one"], seen["nothing"],
            f"{settings}; {_said('beside the loop', seen['the loop'])}",
        ),
        Measured(
            measure="application's waits for locks of more than 50 ms",
            value=sum(one.updates.lock_waits for one in backfills), unit="waits", bar=0, is_at_most=True,
            runs=tuple(one.updates.lock_waits for one in backfills),
            detail=f"all rounds together, in {sum(len(one.updates.seconds) for one in backfills):,} updates",
        ),
    ]  # fmt: skip


def _p99(measure: str, during: Sequence[_Seen], without: Sequence[_Seen], besides: str = "") -> Measured:
    runs = tuple(ratios([one.p99 for one in during], [one.p99 for one in without]))
    return Measured(
        measure=measure, value=median(runs), unit="times", bar=1.5, is_at_most=True, runs=runs,
        detail=f"{_said('without', without)}; {_said('during', during)}" + (besides and f"; {besides}"),
    )  # fmt: skip


def _said(what: str, seen: Sequence[_Seen]) -> str:
    p99, p50 = median([one.p99 for one in seen]), median([one.p50 for one in seen])
    rate = median([one.rows_per_second for one in seen])
    return f"{what}: p99 {p99:.1f} ms, p50 {p50:.1f}" + (f", at {rate:,.0f} rows/s" if rate else "")


class _Runs:
    def __init__(self, servers: Servers, connection: Connection, say: Callable[[str], None]) -> None:
        self._servers, self._connection, self._say = servers, connection, say
        self._tenants = (f"tenant-{number}" for number in count())
        usual, one_by_one = servers.pipeline(_CONFIG), servers.pipeline(_CONFIG, offload=ONE_BY_ONE)
        self.subjects: dict[str, Callable[[], _Seen]] = {
            "nothing": self._alone,
            "a backfill": partial(self._during_a_backfill, usual, ROWS),
            "one by one": partial(self._during_a_backfill, one_by_one, ROWS_ONE_BY_ONE),
            "the loop": self._during_the_loop,
        }

    def _alone(self) -> _Seen:
        self._say("updating rows alone, during backfills, and beside the loop")
        return self._watched(self._filled(ROWS), 0, lambda: time.sleep(ALONE_SECONDS))

    def _during_a_backfill(self, pipeline: Pipeline, rows: int) -> _Seen:
        tenant = self._filled(rows)
        worker = Worker(pipeline, self._servers.home, tenant)

        def work() -> None:
            worker.begin()
            worker.result()

        seen = self._watched(tenant, rows, work)
        [(left,)] = self._connection.execute(_OLDER_THAN_THE_TRIGGER, [tenant])
        # Each update can have kept one row, changed while it was uploaded, for a later pass.
        if left > len(seen.updates.seconds):
            raise RuntimeError(f"{left} of {rows} rows were not backfilled")
        return seen

    def _during_the_loop(self) -> _Seen:
        tenant = self._filled(ROWS_OF_LOOP)
        self._connection.execute(peers.CREATE)
        self._connection.execute(_FILL_PEER, [tenant])
        settle(self._connection, peers.TABLE)
        move = peers.simple_loop(self._servers.database_url, self._servers.s3, f"{tenant}/loop")
        seen = self._watched(tenant, ROWS_OF_LOOP, move)
        self._connection.execute(f"DROP TABLE {peers.TABLE}")
        return seen

    def _watched(self, tenant: str, rows: int, work: Callable[[], None]) -> _Seen:
        time.sleep(CALM_SECONDS)
        updater = Updater(self._servers.database_url, TABLE, tenant, UPDATES_PER_SECOND)
        begun = time.perf_counter()
        work()
        seconds = time.perf_counter() - begun
        return _Seen(updater.stop(), rows / seconds)

    def _filled(self, rows: int) -> str:
        """A tenant with so many rows that the trigger has not seen."""
        tenant = next(self._tenants)
        self._connection.execute("SET session_replication_role = replica")
        copy_rows = f"COPY {TABLE} (tenant_id, payload, payload_storage_status) FROM STDIN"
        with self._connection.cursor() as cursor, cursor.copy(copy_rows) as copy:
            for text in islice(payloads(PAYLOAD_BYTES), rows):
                copy.write_row((tenant, text, None))
        settle(self._connection, TABLE)
        return tenant
