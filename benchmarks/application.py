"""What an application notices of a backfill: the latency of its updates by primary key, before and meanwhile.

Rows of 8 kB that are older than the trigger, of one tenant a round. A client process of its own updates rows of that
tenant, a hundred a second, every tenth with a new payload; first alone, then while a worker, in another process,
copies, verifies and releases the whole tenant. An update's latency counts from the moment when it was due. Waits for
locks of more than 50 ms are counted by PostgreSQL itself (`log_lock_waits`), in the client's session.

Where client, servers and worker share two cores, what an update waits for is above all a core: with the client and its
connection at a real-time priority, p99 during a backfill is a third.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice

from psycopg import Connection

from benchmarks.payloads import payloads
from benchmarks.results import ROUNDS, Measured, median
from benchmarks.servers import Servers
from benchmarks.updater import Updater, Updates
from benchmarks.worker import Worker
from offload_pipeline.pipeline import Pipeline

ROWS_OF_A_TENANT = 12_000
PAYLOAD_BYTES = 8_000
UPDATES_PER_SECOND = 100
ALONE_SECONDS = 10
# After the checkpoint that ends what an earlier round has left to be written.
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


def measure(servers: Servers, say: Callable[[str], None]) -> list[Measured]:
    """p99 of the latency during a backfill over p99 before, and the waits for locks of more than 50 ms."""
    rounds: list[tuple[Updates, Updates]] = []
    with servers.connect() as connection:
        connection.execute(_CREATE.encode())
        try:
            pipeline = servers.pipeline(_CONFIG)
            for number in range(ROUNDS):
                say(f"updating rows before and during a backfill, round {number + 1} of {ROUNDS}")
                rounds.append(_round(servers, pipeline, f"tenant-{number}"))
        finally:
            connection.execute(f"DROP TABLE {TABLE}".encode())
    before = [_percentile(alone.seconds, 0.99) for alone, _ in rounds]
    during = [_percentile(meanwhile.seconds, 0.99) for _, meanwhile in rounds]
    runs = tuple(a / b for a, b in zip(during, before, strict=True))
    return [
        Measured(
            measure="application's p99 during a backfill against before",
            value=median(runs), unit="times", bar=1.5, is_at_most=True, runs=runs,
            detail=f"p99 {median(before) * 1000:.1f} ms before, {median(during) * 1000:.1f} ms during; "
            f"p50 {_typical([alone for alone, _ in rounds]):.1f} and {_typical([other for _, other in rounds]):.1f} ms"
        ),
        Measured(
            measure="application's waits for locks of more than 50 ms",
            value=sum(meanwhile.lock_waits for _, meanwhile in rounds), unit="waits", bar=0, is_at_most=True,
            runs=tuple(meanwhile.lock_waits for _, meanwhile in rounds),
            detail=f"in {sum(len(meanwhile.seconds) for _, meanwhile in rounds):,} updates during backfills",
        ),
    ]  # fmt: skip


def _round(servers: Servers, pipeline: Pipeline, tenant: str) -> tuple[Updates, Updates]:
    with servers.connect() as connection:
        _fill(connection, tenant)
        connection.execute(f"VACUUM (ANALYZE) {TABLE}".encode())
        connection.execute("CHECKPOINT")
    time.sleep(CALM_SECONDS)
    updater = Updater(servers.database_url, TABLE, tenant, UPDATES_PER_SECOND)
    time.sleep(ALONE_SECONDS)
    alone = updater.stop()
    worker = Worker(pipeline, servers.home, tenant)
    updater = Updater(servers.database_url, TABLE, tenant, UPDATES_PER_SECOND)
    worker.begin()
    drained = worker.result()
    meanwhile = updater.stop()
    if drained.rows_copied < ROWS_OF_A_TENANT / 2:
        raise RuntimeError(f"{drained.rows_copied} of {ROWS_OF_A_TENANT} rows were backfilled")
    return alone, meanwhile


def _fill(connection: Connection, tenant: str) -> None:
    """Rows that the trigger has not seen."""
    connection.execute("SET session_replication_role = replica")
    copy_rows = f"COPY {TABLE} (tenant_id, payload, payload_storage_status) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(copy_rows.encode()) as copy:
        for text in islice(payloads(PAYLOAD_BYTES), ROWS_OF_A_TENANT):
            copy.write_row((tenant, text, None))


def _percentile(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[int(len(seconds) * share)]


def _typical(updates: list[Updates]) -> float:
    return median([median(one.seconds) for one in updates]) * 1000
