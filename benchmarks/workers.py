"""Two workers against one, on a table of 8 kB payloads in S3.

A worker drains a tenant; two workers drain a tenant each at the same time, as two runs in Dagster do. On four cores or
more nothing is bound to anything. With fewer, one worker and the servers fill them, and a second could only take away
from the first. So there the machine grows with the workers: one worker and the servers share one core, against two
workers, each on a core of its own, and the servers on both. What keeps that from being twice as fast is what workers
wait for one another, and what servers lose by serving two.

Two more workers then drain one tenant together. Both say how many rows they copied, the audit log says it for all, and
the store has one object a row: so no row was done twice.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice

from psycopg import Connection

from benchmarks.cores import are_few, bind, cores
from benchmarks.payloads import payloads
from benchmarks.results import Measured, alternating, median, ratios
from benchmarks.servers import Servers
from benchmarks.worker import Drained, Worker
from offload_pipeline.pipeline import Pipeline

ROWS_OF_A_TENANT = 4_000
PAYLOAD_BYTES = 8_000
TABLE = "worker_rows"
# Work in bulk would pause for autovacuum, now in one run and now in another.
_CREATE = f"""
    CREATE TABLE {TABLE} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant_id text NOT NULL, payload jsonb)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false)
"""
_CONFIG = {"name": TABLE, "relation": f"public.{TABLE}", "primary_key": ["id"], "payload": "payload",
           "tenant": {"column": "tenant_id"}, "threshold_bytes": 1_000}  # fmt: skip
_COPIED = """
    SELECT coalesce(sum(rows), 0)::bigint
    FROM payload_offload_log
    WHERE table_name = %s
        AND tenant_id = %s
        AND action = 'copy'
"""


def measure(servers: Servers, say: Callable[[str], None]) -> list[Measured]:
    """Rows per second of two workers over those of one, and rows that two workers on one tenant did twice."""
    with servers.connect() as connection:
        connection.execute(_CREATE.encode())
        try:
            return _Measurement(servers, servers.pipeline(_CONFIG), connection, say).figures()
        finally:
            connection.execute(f"DROP TABLE {TABLE}".encode())
            bind(_processes(servers), cores())


class _Measurement:
    def __init__(
        self, servers: Servers, pipeline: Pipeline, connection: Connection, say: Callable[[str], None]
    ) -> None:
        self._servers, self._pipeline, self._connection, self._say = servers, pipeline, connection, say
        self._tenants = 0
        self._is_bound = are_few()

    def figures(self) -> list[Measured]:
        self._say("draining with one worker and with two")
        self._rate(2)  # a server's first objects, and a table's first pages, take longer than all others
        found = alternating({"one": lambda: self._rate(1), "two": lambda: self._rate(2)})
        runs = tuple(ratios(found["two"], found["one"]))
        how = "each on a core of its own, against one on one core with the servers" if self._is_bound else "unbound"
        speed = Measured(
            measure="two workers against one", value=median(runs), unit="times", bar=1.8, is_at_most=False, runs=runs,
            detail=f"{median(found['two']):,.0f} against {median(found['one']):,.0f} rows/s; {how}",
        )  # fmt: skip
        self._say("draining one tenant with two workers")
        return [speed, self._done_twice()]

    def _rate(self, workers: int) -> float:
        """Rows per second."""
        tenants = [self._new_tenant() for _ in range(workers)]
        seconds, drained = self._drain(tenants)
        if any(one.rows_released != ROWS_OF_A_TENANT for one in drained):
            raise RuntimeError(f"not everything was drained: {drained}")
        return workers * ROWS_OF_A_TENANT / seconds

    def _done_twice(self) -> Measured:
        tenant = self._new_tenant()
        seconds, drained = self._drain([tenant, tenant])
        objects = sum(1 for _ in self._pipeline.store.list(f"{tenant}/"))
        found = self._connection.execute(_COPIED, [TABLE, tenant]).fetchone()
        assert found is not None
        copied = [one.rows_copied for one in drained]
        twice = max(sum(copied), found[0], objects) - ROWS_OF_A_TENANT
        return Measured(
            measure="rows that two workers on one tenant did twice", value=twice, unit="rows", bar=0, is_at_most=True,
            detail=f"{copied[0]:,} and {copied[1]:,} of {ROWS_OF_A_TENANT:,} rows, {objects:,} objects, "
            f"{ROWS_OF_A_TENANT / seconds:,.0f} rows/s",
        )  # fmt: skip

    def _new_tenant(self) -> str:
        self._tenants += 1
        tenant = f"tenant-{self._tenants}"
        copy_rows = f"COPY {TABLE} (tenant_id, payload) FROM STDIN"
        with self._connection.cursor() as cursor, cursor.copy(copy_rows.encode()) as copy:
            for text in islice(payloads(PAYLOAD_BYTES), ROWS_OF_A_TENANT):
                copy.write_row((tenant, text))
        return tenant

    def _drain(self, tenants: Sequence[str]) -> tuple[float, list[Drained]]:
        """By as many workers at once; seconds, and what each did."""
        self._connection.execute(f"VACUUM (ANALYZE) {TABLE}".encode())
        self._connection.execute("CHECKPOINT")
        if self._is_bound:
            bind(_processes(self._servers), cores()[: len(tenants)])
        workers = [
            Worker(self._pipeline, self._servers.home, tenant, core if self._is_bound else None)
            for tenant, core in zip(tenants, cores(), strict=False)
        ]
        begun = time.perf_counter()
        for worker in workers:
            worker.begin()
        drained = [worker.result() for worker in workers]
        return time.perf_counter() - begun, drained


def _processes(servers: Servers) -> list[int]:
    return [servers.s3.pid, *(process.pid for process in servers.database_processes())]
