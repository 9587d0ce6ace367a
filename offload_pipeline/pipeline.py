"""Configuration, database and store opened together: what the command line and the Dagster resources start from."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg import Connection

from offload_pipeline.config import Config, home, load_config, refuse_demo_tables_in_a_named_database
from offload_pipeline.database.connection import Database, open_database
from offload_pipeline.database.table import Key, Table, inspect_table
from offload_pipeline.offload.claims import Batches, Partition, PendingBatches
from offload_pipeline.offload.copier import CopyOptions, CopyResult, Progress, copy_all, no_progress
from offload_pipeline.offload.queue import PendingTenant, known_tenants, pending_by_tenant
from offload_pipeline.offload.release import ReleaseOptions, ReleaseResult, release_partition
from offload_pipeline.offload.tenants import partition_key
from offload_pipeline.offload.unseen import UnseenBatches, unseen_tenants
from offload_pipeline.storage.object_store import ObjectStore, open_store
from offload_pipeline.verification.verifier import VerificationOptions, VerificationResult, verify_partition


@dataclass(frozen=True)
class DrainResult:
    """The three steps of one partition; `released` is empty where verification did not pass."""

    copied: CopyResult
    verified: VerificationResult
    released: ReleaseResult

    @property
    def is_sound(self) -> bool:
        """Nothing failed, and everything copied was verified."""
        failed = self.copied.rows_failed or self.released.rows_failed or self.copied.stopped_by
        return self.verified.passed and not failed


@dataclass(frozen=True)
class Pipeline:
    """One configured installation."""

    config: Config
    database: Database
    store: ObjectStore

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection that is closed afterwards."""
        with contextlib.closing(self.database.connect()) as connection:
            yield connection

    def inspect(self, connection: Connection, name: str) -> Table:
        """The table of this name as the catalog has it now, installed or not."""
        return inspect_table(connection, self.config.table(name), self.database.schema)

    def table(self, connection: Connection, name: str) -> Table:
        """The installed table of this name. UserError where install has not run."""
        return self.inspect(connection, name).require_installed()

    def tables(self, connection: Connection, name: str | None = None) -> list[Table]:
        """The named table, or all."""
        return [
            self.table(connection, wanted)
            for wanted in ([name] if name is not None else [t.name for t in self.config.tables])
        ]

    def pending(self, connection: Connection, table: Table) -> list[PendingTenant]:
        """The table's queue, oldest first."""
        return pending_by_tenant(connection, table, self.config.offload.max_attempts)

    def tenants(self, connection: Connection, table: Table, queue: Sequence[PendingTenant] | None = None) -> list[str]:
        """Every tenant of the table that has pending rows (as in `queue`, if given), unseen rows, or was worked on."""
        if table.config.tenant.value is not None:
            return [table.config.tenant.value]
        pending = self.pending(connection, table) if queue is None else queue
        waiting = {found.tenant for found in pending if found.tenant is not None}
        return sorted(waiting.union(known_tenants(connection, table), unseen_tenants(connection, table)))

    def partitions(self, connection: Connection, table: str | None, tenant: str | None) -> list[Partition]:
        """The partitions of one or all tables, of one or all tenants."""
        return [
            Partition(found, one)
            for found in self.tables(connection, table)
            for one in ([tenant] if tenant is not None else self.tenants(connection, found))
            # Under another name than its constant one, all of a table's rows would be stored a second time.
            if found.config.tenant.value in (None, one)
        ]

    def partitions_of_key(self, connection: Connection, table: str, key: str) -> Sequence[Partition]:
        """What a Dagster partition stands for: one tenant, or a bucket of them."""
        found = self.table(connection, table)
        buckets = self.config.tenant_buckets
        return [Partition(found, one) for one in self.tenants(connection, found) if partition_key(one, buckets) == key]

    def batches(
        self, partition: Partition, *, batch_rows: int | None = None, unseen: bool = False, resume: bool = True
    ) -> list[Batches]:
        """What there is to copy: with `unseen` first the rows older than the trigger, then the pending queue."""
        options = CopyOptions.of(self.config.offload, batch_rows)
        pending = PendingBatches(self.database, partition, options.limits, options.max_attempts)
        if not unseen:
            return [pending]
        return [UnseenBatches(self.database, partition, options.limits, options.max_attempts, resume=resume), pending]

    def copy(
        self, partition: Partition, run_id: str, *, batch_rows: int | None = None, unseen: bool = False,
        resume: bool = True, progress: Progress = no_progress,
    ) -> CopyResult:  # fmt: skip
        """Copies what `batches` claims, with the configured options, until the store as a whole fails."""
        sources = self.batches(partition, batch_rows=batch_rows, unseen=unseen, resume=resume)
        return copy_all(sources, self.store, CopyOptions.of(self.config.offload), run_id, progress)

    def verify(
        self, partition: Partition, run_id: str, *, sample_rows: int | None = None, full: bool = False,
        progress: Progress = no_progress,
    ) -> VerificationResult:  # fmt: skip
        """One verification pass, with the configured sample unless another is asked for."""
        rows = self.config.verification.sample_rows if sample_rows is None else sample_rows
        options = VerificationOptions(rows, full, self.config.offload.store_threads)
        return verify_partition(self.database, self.store, partition, options, run_id, progress)

    def release(
        self, partition: Partition, run_id: str, *, key: Key | None = None, progress: Progress = no_progress
    ) -> ReleaseResult:
        """Frees what verification has passed, or of that the one row."""
        options = ReleaseOptions(self.store.url, self.config.offload.max_attempts, key)
        return release_partition(self.database, partition, options, run_id, progress)

    def drain(
        self, partition: Partition, run_id: str, *, batch_rows: int | None = None, unseen: bool = False,
        resume: bool = True, progress: Progress = no_progress,
    ) -> DrainResult:  # fmt: skip
        """Copy, verify, release, in this order; nothing new is freed unless verification passes."""
        copied = self.copy(partition, run_id, batch_rows=batch_rows, unseen=unseen, resume=resume, progress=progress)
        verified = self.verify(partition, run_id)
        released = self.release(partition, run_id) if verified.passed else ReleaseResult()
        return DrainResult(copied, verified, released)


def open_pipeline(config: Config | None = None) -> Pipeline:
    """Opens what the configuration names; starts the embedded database where none is named.

    Without `config` the file is looked for; the packaged demo's tables are not looked for in a database of the user's.
    """
    if config is None:
        refuse_demo_tables_in_a_named_database()
        config = load_config()
    return Pipeline(config, open_database(config.database, home()), open_store(config.object_store, home()))
