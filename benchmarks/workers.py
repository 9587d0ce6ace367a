"""Two workers against one, on a table of 8 kB payloads in S3.

A worker drains a tenant; two workers drain a tenant each at the same time, as two runs in Dagster do. On four cores or
more nothing is bound to anything. With fewer, one worker and the servers fill them, and a second could only take away
from the first. So there the machine grows with the workers: one worker and the servers share one core, against two
workers, each on a core of its own, and the servers on both. What keeps that from being twice as fast is what workers
wait for one another, and what servers lose by serving two.
"""

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

from psycopg import Connection

from benchmarks.cores import are_few, bind, cores
from benchmarks.moving import Run, idle_seconds, median_cpu, said_cpu, settle
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


def measure(servers: Servers, say: Callable[[str], None]) -> list[Measured]:
    """Rows per second of two workers over those of one."""
    with servers.connect() as connection:
        connection.execute(_CREATE)
        try:
            say("draining with one worker and with two")
            return [_Measurement(servers, servers.pipeline(_CONFIG), connection).figure()]
        finally:
            connection.execute(f"DROP TABLE {TABLE}")
            bind(_processes(servers), cores())


class _Measurement:
    def __init__(self, servers: Servers, pipeline: Pipeline, connection: Connection) -> None:
        self._servers, self._pipeline, self._connection = servers, pipeline, connection
        self._tenants = 0
        self._is_bound = are_few()

    def figure(self) -> Measured:
        self._run(2)  # a server's first objects, and a table's first pages, take longer than all others
        found = alternating({"one": lambda: self._run(1), "two": lambda: self._run(2)})
        rates = {name: [1e3 / run.milliseconds_per_row for run in runs] for name, runs in found.items()}
        cpu = {name: said_cpu(median_cpu(runs)) for name, runs in found.items()}
        times = tuple(ratios(rates["two"], rates["one"]))
        how = "each on a core of its own, against one on one core with the servers" if self._is_bound else "unbound"
        return Measured(
            measure="two workers against one", value=median(times), unit="times", bar=1.8, is_at_most=False, runs=times,
            detail=f"{median(rates['two']):,.0f} against {median(rates['one']):,.0f} rows/s; {how}; "
            f"CPU a row in ms: {cpu['two']}, against {cpu['one']}",
        )  # fmt: skip

    def _new_tenant(self) -> str:
        self._tenants += 1
        tenant = f"tenant-{self._tenants}"
        copy_rows = f"COPY {TABLE} (tenant_id, payload) FROM STDIN"
        with self._connection.cursor() as cursor, cursor.copy(copy_rows) as copy:
            for text in islice(payloads(PAYLOAD_BYTES), ROWS_OF_A_TENANT):
                copy.write_row((tenant, text))
        return tenant

    def _run(self, workers: int) -> Run:
        """As many workers at once, a tenant each."""
        tenants = [self._new_tenant() for _ in range(workers)]
        settle(self._connection, TABLE)
        if self._is_bound:
            bind(_processes(self._servers), cores()[:workers])
        started = [
            Worker(self._pipeline, self._servers.home, tenant, core if self._is_bound else None)
            for tenant, core in zip(tenants, cycle(cores()), strict=False)
        ]
        run, drained = self._timed(started)
        if any(one.rows_released != ROWS_OF_A_TENANT for one in drained):
            raise RuntimeError(f"not everything was drained: {drained}")
        return run

    def _timed(self, workers: Sequence[Worker]) -> tuple[Run, list[Drained]]:
        """With the CPU time of all of them, and of the servers, but not of this process, which only waits."""
        before, idle_before = self._servers.cpu_seconds(), idle_seconds()
        begun = time.perf_counter()
        for worker in workers:
            worker.begin()
        drained = [worker.result() for worker in workers]
        seconds = time.perf_counter() - begun
        idle, after = idle_seconds() - idle_before, self._servers.cpu_seconds()
        cpu = {server: after[server] - before[server] for server in ("postgres", "store")}
        cpu["workers"] = sum(one.cpu_seconds for one in drained)
        return Run(len(workers) * ROWS_OF_A_TENANT, seconds, cpu, idle), drained


def _processes(servers: Servers) -> list[int]:
    return [servers.s3.pid, *(process.pid for process in servers.database_processes())]
