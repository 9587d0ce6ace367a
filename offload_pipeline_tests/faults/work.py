"""What a worker under fire does, step by step: everything that the pipeline can do to a row or an object."""

import os
import random
from collections.abc import Callable
from datetime import timedelta

import psycopg
from psycopg import sql

from offload_pipeline.database.table import Table
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.writer import PayloadWriter
from offload_pipeline.pipeline import Pipeline
from offload_pipeline.retention.expired_objects import ListedObjects, delete_listed
from offload_pipeline.retention.expiry import ExpiryOptions, expire_partition
from offload_pipeline.retention.garbage import GarbageOptions, collect_garbage
from offload_pipeline.retention.ownership import Scope
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.faults.application import LARGEST_BYTES, NOTE_INSERT, SMALLEST_BYTES, TENANTS

# As always longer than a batch takes from its first PUT until it is recorded; as never, seconds.
GRACE = timedelta(seconds=20)
# As always longer than a request can be late (see LATE_SECONDS of the proxy); as never, seconds.
LINGERING = timedelta(seconds=10)
# Drained most of the time, so that there is something in storage for the others.
SHARES = {"drain": 8, "collect": 4, "expire": 3, "write": 3, "restore": 4}

RESUMED = 0.5

Done = dict[str, int]


class Work:
    """Steps on random partitions; the seed makes their order repeatable."""

    def __init__(self, pipeline: Pipeline, seed: int, first: str | None = None) -> None:
        """`first`: the step to begin with."""
        self._pipeline, self._random = pipeline, random.Random(seed)  # noqa: S311 - which step, not a secret
        self._first = first
        self._run_id = f"worker-{os.getpid()}"
        self._threads = pipeline.config.offload.store_threads

    def next_step(self) -> tuple[str, Callable[[], Done]]:
        """Its name, and what does it and tells what it did."""
        name = self._first or self._random.choices(list(SHARES), weights=list(SHARES.values()))[0]
        self._first = None
        return name, getattr(self, name)

    def drain(self) -> Done:
        """Copy, verify, release; the scan of never-seen rows goes on behind its checkpoint, or begins anew."""
        resume = self._random.random() < RESUMED
        drained = self._pipeline.drain(self._partition(), self._run_id, unseen=True, resume=resume)
        return {
            "copied": drained.copied.rows_copied,
            "verified": drained.verified.rows_checked,
            "verifications passed": int(drained.verified.passed),
            "released": drained.released.rows_released,
        }

    def restore(self) -> Done:
        """Back from the store into the rows, to be moved once more."""
        partition = self._partition()
        restored = self._pipeline.restore(partition, self._run_id)
        lifted = self._pipeline.lift_holds(partition, self._run_id)
        return {
            "restored": restored.rows_restored,
            "pointers dropped": restored.pointers_dropped,
            "holds lifted": lifted.rows,
        }

    def expire(self) -> Done:
        """Gives up what is past its retention; most tables have none."""
        options = ExpiryOptions(delete=True, max_attempts=self._pipeline.config.offload.max_attempts)
        expired = expire_partition(self._pipeline.database, self._partition(), options, self._run_id)
        return {"expired": expired.rows_expired}

    def collect(self, grace: timedelta = GRACE) -> Done:
        """Deletes what expiry listed, and every orphan, however many there seem to be."""
        tables = self._tables()
        database, store = self._pipeline.database, self._pipeline.store
        listed = ListedObjects(tables, None, grace)
        deleted = delete_listed(database, store, tables, listed, "expire", self._threads, self._run_id)
        options = GarbageOptions(grace, max_orphan_share=1, delete=True, store_threads=self._threads)
        collected = collect_garbage(database, store, tables, Scope(tables), options, self._run_id)
        return {
            "expired objects deleted": deleted.objects_deleted,
            "orphans deleted": sum(table.deleted for table in collected.tables.values()),
        }

    def write(self) -> Done:
        """A row whose payload is stored before the row is written, as the application's own code would do it."""
        table = self._random.choice(self._tables())
        with psycopg.connect(self._pipeline.database.url) as connection:
            found = connection.execute("SELECT nextval(pg_get_serial_sequence(%s, 'id'))", (table.config.relation,))
            (key,) = found.fetchone() or (None,)
        assert key is not None
        payload = large_payload(self._random.randrange(SMALLEST_BYTES, LARGEST_BYTES), self._random.randrange(10**9))
        return self.write_row(table, self._random.choice(TENANTS), key, payload)

    def write_row(self, table: Table, tenant: str, key: int, payload: str) -> Done:
        """A new row with this key."""
        with psycopg.connect(self._pipeline.database.url) as connection, PayloadWriter(self._pipeline) as writer:
            written = writer.write(connection, table.name, tenant, key, payload)
            columns = {"id": key, "tenant_id": tenant, **written}
            insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier(*table.config.schema_and_name),
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                sql.SQL(", ").join(map(sql.Placeholder, columns)),
            )
            connection.execute(insert, columns)
            connection.execute(NOTE_INSERT, {"table": table.name, "id": key, "payload": payload})
        return {"written through the writer": 1}

    def _partition(self) -> Partition:
        return Partition(self._random.choice(self._tables()), self._random.choice(TENANTS))

    def _tables(self) -> list[Table]:
        with self._pipeline.connect() as connection:
            return self._pipeline.tables(connection)
