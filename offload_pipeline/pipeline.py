"""Configuration, database and store opened together: what the command line and the Dagster resources start from."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import Connection

from offload_pipeline.config import Config, home, load_config, refuse_demo_tables_in_a_named_database
from offload_pipeline.database.back_pressure import Announce, BackPressure, announce_nothing
from offload_pipeline.database.connection import Database, open_database
from offload_pipeline.database.rights import require_rights
from offload_pipeline.database.table import Key, Table, inspect_table
from offload_pipeline.offload.ahead import DryRun, dry_run, rows_ahead
from offload_pipeline.offload.claims import Batches, Partition, PendingBatches
from offload_pipeline.offload.copier import CopyOptions, CopyResult, copy_all
from offload_pipeline.offload.failures import OpenFailure, count_open, open_failures
from offload_pipeline.offload.holds import HoldsLifted, count_held, lift_holds
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.offload.queue import PendingTenant, known_tenants, pending_by_tenant, tenants_having
from offload_pipeline.offload.release import ReleaseOptions, ReleaseResult, release_partition
from offload_pipeline.offload.restore import RestoreOptions, RestoreResult, restore_partition
from offload_pipeline.offload.stale_failures import resolve_stale_failures
from offload_pipeline.offload.stored_rows import count_stored, find_row
from offload_pipeline.offload.tenants import partition_key
from offload_pipeline.offload.unseen import UnseenBatches
from offload_pipeline.storage.object_store import ObjectStore, open_store
from offload_pipeline.verification.report import TableReport, report_table
from offload_pipeline.verification.verifier import VerificationOptions, VerificationResult, verify_partition

if TYPE_CHECKING:
    from offload_pipeline.offload.forecast import Forecast

Steps = Callable[[str, int | None], Progress]
"""Called as a step begins, with its name and the rows ahead (None: unknown); gives what to call after each batch."""


@dataclass(frozen=True)
class DrainResult:
    """The three steps of one partition; `released` is empty where verification did not pass.

    `scan_is_complete` is False where a scan of never-seen rows has left some that only a later one finds.
    """

    copied: CopyResult
    verified: VerificationResult
    released: ReleaseResult
    scan_is_complete: bool = True

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
        return inspect_table(
            connection, self.config.table(name), self.database.schema, is_embedded=self.database.is_embedded
        )

    def inspect_all(self, connection: Connection, name: str | None = None) -> list[Table]:
        """The named table, or all, installed or not."""
        names = [name] if name is not None else [table.name for table in self.config.tables]
        return [self.inspect(connection, one) for one in names]

    def table(self, connection: Connection, name: str) -> Table:
        """The installed table of this name. UserError where install has not run."""
        return self.inspect(connection, name).require_installed()

    def tables(self, connection: Connection, name: str | None = None) -> list[Table]:
        """The named table, or all. UserError where install has not run."""
        return [table.require_installed() for table in self.inspect_all(connection, name)]

    def installed_tables(self, connection: Connection) -> list[Table]:
        """The tables that payloads may move from."""
        return [table for table in self.inspect_all(connection) if table.is_installed]

    def pending(self, connection: Connection, table: Table, tenant: str | None = None) -> list[PendingTenant]:
        """The table's queue, oldest first, or that of one tenant."""
        return pending_by_tenant(connection, table, self.config.offload.max_attempts, tenant)

    def tenants(self, connection: Connection, table: Table, queue: Sequence[PendingTenant] | None = None) -> list[str]:
        """Every tenant of the table that has pending rows (as in `queue`, if given), unseen or stored rows, or was
        worked on."""
        if table.config.tenant.value is not None:
            return [table.config.tenant.value]
        if queue is None:
            waiting = set(tenants_having(connection, table, "pending_move"))
        else:
            waiting = {found.tenant for found in queue if found.tenant is not None}
        others = [tenants_having(connection, table, status) for status in (None, "copied", "in_storage")]
        return sorted(waiting.union(known_tenants(connection, table), *others))

    def partitions(self, connection: Connection, table: str | None, tenant: str | None) -> list[Partition]:
        """The partitions of one or all tables, of one or all tenants. UserError where the role may not work on them."""
        active = [found.require_active() for found in self.tables(connection, table)]
        require_rights(connection, active)
        return [
            Partition(found, one)
            for found in active
            for one in ([tenant] if tenant is not None else self.tenants(connection, found))
            # Under another name than its constant one, all of a table's rows would be stored a second time.
            if found.config.tenant.value in (None, one)
        ]

    def partitions_of_key(self, connection: Connection, table: str, key: str) -> Sequence[Partition]:
        """What a Dagster partition stands for: one tenant, or a bucket of them."""
        found = self.table(connection, table).require_active()
        require_rights(connection, [found])
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

    def dry_run(
        self, partition: Partition, *, unseen: bool = False, resume: bool = True, progress: Progress = no_progress
    ) -> DryRun:
        """What `copy` would do, counted and with its objects' size estimated; nothing is written."""
        offload = self.config.offload
        with self.connect() as connection:
            return dry_run(
                connection, partition, offload.compression, offload.max_attempts,
                unseen=unseen, resume=resume, progress=progress,
            )  # fmt: skip

    def forecast(self, table: Table, progress: Progress = no_progress) -> "Forecast":
        """What offloading this table would save, from a sample; it need not be installed."""
        from offload_pipeline.offload.plan import PlanOptions, forecast_table  # brings numpy, a tenth of a second

        options = PlanOptions(self.config.offload.compression, self.store.url, self.config.verification.sample_rows)
        return forecast_table(self.database, table, options, progress)

    def rows_ahead(self, partition: Partition, *, unseen: bool = False, resume: bool = True) -> int:
        """How many rows a pass has to go through, small ones included; an estimate where they are many."""
        with self.connect() as connection:
            return rows_ahead(connection, partition, unseen=unseen, resume=resume)

    def pressure(self, table: Table, announce: Announce = announce_nothing) -> BackPressure:
        """What one pass of work in bulk on this table asks before each of its transactions."""
        return BackPressure(self.config.back_pressure, table, announce)

    def copy(
        self, partition: Partition, run_id: str, *, batch_rows: int | None = None, unseen: bool = False,
        resume: bool = True, progress: Progress = no_progress, announce: Announce = announce_nothing,
    ) -> CopyResult:  # fmt: skip
        """Copies what `batches` claims, with the configured options, until the store as a whole fails."""
        sources = self.batches(partition, batch_rows=batch_rows, unseen=unseen, resume=resume)
        return self._copy(sources, run_id, progress, self.pressure(partition.table, announce))

    def _copy(self, sources: Sequence[Batches], run_id: str, progress: Progress, pressure: BackPressure) -> CopyResult:
        return copy_all(sources, self.store, CopyOptions.of(self.config.offload), run_id, progress, pressure)

    def verify(
        self, partition: Partition, run_id: str, *, sample_rows: int | None = None, full: bool = False,
        resume: bool = True, progress: Progress = no_progress,
    ) -> VerificationResult:  # fmt: skip
        """One verification pass, with the configured sample unless another is asked for."""
        rows = self.config.verification.sample_rows if sample_rows is None else sample_rows
        options = VerificationOptions(rows, full, self.config.offload.store_threads, resume)
        return verify_partition(self.database, self.store, partition, options, run_id, progress)

    def report(self, connection: Connection, table: Table) -> TableReport:
        """How the table stands; cheap, whatever its size."""
        return report_table(connection, table, self.config.offload.max_attempts)

    def open_failures(self, most: int) -> tuple[int, list[OpenFailure]]:
        """How many are open in all installed tables, and the newest; those whose row is gone are closed first."""
        attempts = self.config.offload.max_attempts
        with self.connect() as connection:
            tables = self.installed_tables(connection)
            for table in tables:
                resolve_stale_failures(connection, table)
            counted = [found for table in tables for found in count_open(connection, table, attempts).values()]
            names = [table.name for table in tables]
            newest = open_failures(connection, self.database.schema, attempts, most, names) if names else []
        return sum(count for count, _ in counted), newest

    def release(
        self, partition: Partition, run_id: str, *, key: Key | None = None, progress: Progress = no_progress,
        announce: Announce = announce_nothing,
    ) -> ReleaseResult:  # fmt: skip
        """Frees what verification has passed, or of that the one row."""
        offload = self.config.offload
        options = ReleaseOptions(self.store.url, offload.max_attempts, offload.batches_in_flight, key)
        pressure = self.pressure(partition.table, announce)
        return release_partition(self.database, partition, options, run_id, progress, pressure)

    def row(self, table: str, primary_key: str) -> tuple[Partition, Key]:
        """One row and the partition that it belongs to. UserError or RowNotFoundError where there is none."""
        with self.connect() as connection:
            found = self.table(connection, table).require_active()
            require_rights(connection, [found])
            return find_row(connection, found, primary_key)

    def restore(
        self, partition: Partition, run_id: str, *, key: Key | None = None,
        progress: Progress = no_progress, announce: Announce = announce_nothing,
    ) -> RestoreResult:  # fmt: skip
        """Puts the payloads back into the rows, or that of the one row, where they then stay."""
        options = RestoreOptions.of(self.config.offload, key)
        pressure = self.pressure(partition.table, announce)
        return restore_partition(self.database, self.store, partition, options, run_id, progress, pressure)

    def rows_to_restore(self, partition: Partition) -> int:
        """How many rows a restore has to go through."""
        with self.connect() as connection:
            return count_stored(connection, partition)

    def held(self, partition: Partition) -> tuple[int, int]:
        """Rows and payload bytes that `lift_holds` would make pending; writes nothing."""
        with self.connect() as connection:
            return count_held(connection, partition)

    def lift_holds(self, partition: Partition, run_id: str) -> HoldsLifted:
        """Makes restored rows move again with the next pass."""
        return lift_holds(self.database, partition, run_id)

    def drain(
        self, partition: Partition, run_id: str, *, batch_rows: int | None = None, unseen: bool = False,
        resume: bool = True, steps: Steps = lambda _name, _rows: no_progress, announce: Announce = announce_nothing,
    ) -> DrainResult:  # fmt: skip
        """Copy, verify, release, in this order; nothing new is freed unless verification passes."""
        sources = self.batches(partition, batch_rows=batch_rows, unseen=unseen, resume=resume)
        copied = self._copy(sources, run_id, steps("copying", None), self.pressure(partition.table, announce))
        is_complete = all(one.is_complete for one in sources if isinstance(one, UnseenBatches))
        verified = self.verify(partition, run_id, progress=steps("verifying", copied.rows_copied))
        if not verified.passed:
            return DrainResult(copied, verified, ReleaseResult(), is_complete)
        progress = steps("releasing", verified.rows_checked)
        released = self.release(partition, run_id, progress=progress, announce=announce)
        return DrainResult(copied, verified, released, is_complete)


def open_pipeline(config: Config | None = None) -> Pipeline:
    """Opens what the configuration names; starts the embedded database where none is named.

    Without `config` the file is looked for; the packaged demo's tables are not looked for in a database of the user's.
    """
    if config is None:
        refuse_demo_tables_in_a_named_database()
        config = load_config()
    return Pipeline(config, open_database(config.database, home()), open_store(config.object_store, home()))
