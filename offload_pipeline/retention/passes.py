"""Retention as configured: what the command line and the Dagster assets call."""

from dataclasses import dataclass

from psycopg import Connection

from offload_pipeline.database.rights import require_rights
from offload_pipeline.database.table import Table
from offload_pipeline.errors import UserError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.offload.queue import tenants_having
from offload_pipeline.pipeline import Pipeline
from offload_pipeline.retention.erasure import ErasureOptions, ErasureResult, erase_tenant
from offload_pipeline.retention.expired_objects import ListedObjects, ListedResult, count_listed, delete_listed
from offload_pipeline.retention.expiry import ExpiryOptions, ExpiryResult, expire_partition, require_expirable
from offload_pipeline.retention.findings import GarbageResult
from offload_pipeline.retention.garbage import GarbageOptions, collect_garbage
from offload_pipeline.retention.ownership import Scope

EXPIRED_OBJECTS_ACTION = "expire objects"


@dataclass(frozen=True)
class Retention:
    """The passes over one installation. Each only counts unless `delete` is true."""

    pipeline: Pipeline

    def expirable(self, connection: Connection, table: str | None = None, tenant: str | None = None) -> list[Partition]:
        """The partitions with payloads in storage, of the tables with `object_retention`; of one, or one tenant.

        UserError for a table where an expired row could hold nothing.
        """
        tables = [found for found in self.tables(connection, table) if require_expirable(found) is not None]
        return [
            Partition(found, one)
            for found in tables
            for one in tenants_having(connection, found, "in_storage")
            if tenant in (None, one)
        ]

    def expire(
        self, partition: Partition, run_id: str, *, delete: bool, progress: Progress = no_progress
    ) -> ExpiryResult:
        """Gives up the payloads past their retention."""
        if delete:
            with self.pipeline.connect() as connection:
                require_rights(connection, [partition.table])
        options = ExpiryOptions(delete, self.pipeline.config.offload.max_attempts)
        return expire_partition(self.pipeline.database, partition, options, run_id, progress)

    def delete_expired(
        self, run_id: str, *, table: str | None = None, tenant: str | None = None, delete: bool
    ) -> ListedResult:
        """Deletes the objects that expiry or erasure listed at least `retention.grace` ago."""
        pipeline = self.pipeline
        with pipeline.connect() as connection:
            listed = ListedObjects(self.tables(connection, table), tenant, pipeline.config.retention.grace)
            if not delete:
                return count_listed(connection, listed)
            tables = self._installed(connection, writing=True)
        threads = pipeline.config.offload.store_threads
        return delete_listed(pipeline.database, pipeline.store, tables, listed, EXPIRED_OBJECTS_ACTION, threads, run_id)

    def collect_garbage(
        self, run_id: str, *, table: str | None = None, tenant: str | None = None, delete: bool,
        max_orphan_share: float | None = None, progress: Progress = no_progress,
    ) -> GarbageResult:  # fmt: skip
        """Looks for objects that no row names, in the whole store or for one table or tenant."""
        pipeline, retention = self.pipeline, self.pipeline.config.retention
        share = retention.max_orphan_share if max_orphan_share is None else max_orphan_share
        options = GarbageOptions(retention.grace, share, delete, pipeline.config.offload.store_threads)
        with pipeline.connect() as connection:
            if table is not None:
                pipeline.table(connection, table)
            tables = self._installed(connection, writing=delete)
        scope = Scope(tables, table, tenant)
        return collect_garbage(pipeline.database, pipeline.store, tables, scope, options, run_id, progress)

    def erase(self, tenant: str, run_id: str, *, delete: bool, progress: Progress = no_progress) -> ErasureResult:
        """Erases everything that the store has of one tenant."""
        pipeline = self.pipeline
        with pipeline.connect() as connection:
            tables = self._installed(connection, writing=delete)
        options = ErasureOptions(delete, pipeline.config.offload.store_threads)
        return erase_tenant(pipeline.database, pipeline.store, tables, tenant, options, run_id, progress)

    def tables(self, connection: Connection, table: str | None) -> list[Table]:
        """The named table, or all that are installed. UserError where none is."""
        return self._installed(connection) if table is None else self.pipeline.tables(connection, table)

    def _installed(self, connection: Connection, *, writing: bool = False) -> list[Table]:
        """The configured tables that may have objects; those of the others would all look orphaned, so are foreign."""
        installed = self.pipeline.installed_tables(connection)
        if not installed:
            raise UserError("no table of offload.yaml is installed; run: offload install")
        require_rights(connection, installed, writing=writing)
        return installed
