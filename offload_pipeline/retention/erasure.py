"""Erasure: everything of one tenant that is in the store. Payloads still in rows are the application's to delete."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import Connection

from offload_pipeline.database.connection import Database, database_failures, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import OffloadError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.deletions import LINGERING
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.retention.deletion import CHUNK_KEYS, Deletion, Fate, collection_lock
from offload_pipeline.retention.expired_objects import ListedObjects, ListedResult, count_listed, delete_listed
from offload_pipeline.retention.expiry import PAGE_ROWS
from offload_pipeline.retention.giving_up import RowVersion, Way, give_up
from offload_pipeline.retention.listing import delete_leftover
from offload_pipeline.retention.naming import Naming
from offload_pipeline.retention.older_transactions import PATIENCE, wait_for_older_transactions
from offload_pipeline.retention.ownership import pattern_of, require_their_store, tells_tenants_apart
from offload_pipeline.retention.spool import in_chunks
from offload_pipeline.storage.object_store import LISTED_PER_PAGE, ObjectStore, StoredObject

ROWS_ACTION = "erase"
OBJECTS_ACTION = "erase objects"
AT_ONCE = timedelta(0)
# What the writer read back is trusted for so long, also where it has yet to be named by a row.
TRUSTED_FOR = LINGERING
# What becomes of a row, by whether its payload is in storage alone.
WAYS: tuple[tuple[Way, bool], ...] = (("give_up", True), ("hold", False))


@dataclass(frozen=True)
class ErasureOptions:
    """Whether anything is erased or only counted.

    `patience` is for transactions that may hold, yet unseen, another tenant's pointer to the same object.
    """

    delete: bool
    store_threads: int
    patience: timedelta = PATIENCE


@dataclass
class TableErasure:
    """What a tenant has, or had, in one table.

    `rows_in_storage` lose their payload, `rows_copied` lose their pointer and keep it; `rows_holding` hold a payload in
    the row. `objects` are those found under the tenant's prefix, after the rows were done where they were.
    `objects_named` of them stay, because a row names them; `is_listed` is False where keys do not tell tenants apart.
    """

    rows_in_storage: int = 0
    rows_copied: int = 0
    payload_bytes: int = 0
    rows_holding: int = 0
    rows_erased: int = 0
    rows_left: int = 0
    rows_failed: int = 0
    is_listed: bool = True
    objects: int = 0
    object_bytes: int = 0
    objects_deleted: int = 0
    object_bytes_deleted: int = 0
    objects_named: int = 0
    objects_left: int = 0
    objects_failed: int = 0


@dataclass
class ErasureResult:
    """One erasure. `listed`: the objects that this, or an interrupted one, or expiry had listed."""

    tables: dict[str, TableErasure] = field(default_factory=dict)
    listed: ListedResult = field(default_factory=ListedResult)
    stopped_by: OffloadError | None = None

    @property
    def is_empty(self) -> bool:
        """Whether neither rows nor objects of the tenant were found."""
        found = sum(
            one.rows_in_storage + one.rows_copied + one.rows_holding + one.rows_erased + one.objects
            for one in self.tables.values()
        )
        return not found and not self.listed.listed

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left that a repetition would take up."""
        left = sum(
            one.rows_left + one.rows_failed + one.objects_left + one.objects_failed for one in self.tables.values()
        )
        return not left and not self.listed.objects_left and not self.listed.objects_failed and not self.stopped_by


def erase_tenant(
    database: Database, store: ObjectStore, tables: Sequence[Table], tenant: str, options: ErasureOptions,
    run_id: str, progress: Progress = no_progress,
) -> ErasureResult:  # fmt: skip
    """Counts, and with `delete` erases: first all rows, then the objects they named, then what lies under the prefix.

    Without grace, but for an hour where the keys do not tell tenants apart, and never an object that a row of another
    tenant names. Interrupted, it is finished by repeating it.
    Raises StoreUnavailableError or PermanentError where the listing fails, TransientError when the database does,
    UserError where not every row can be seen, StoreChangedError where objects are in another store.
    """
    with database_failures(), contextlib.closing(database.connect()) as connection:
        eraser = _Eraser(database, connection, store, tables, tenant, options, run_id, progress)
        require_their_store(connection, tables, store.url)
        eraser.erase_rows()
        if options.delete:
            eraser.result.stopped_by = wait_for_older_transactions(connection, options.patience)
        for listed in _listed(tables, tenant):
            if options.delete and eraser.result.stopped_by is None:
                eraser.result.listed += delete_listed(
                    database, store, tables, listed, OBJECTS_ACTION, options.store_threads, run_id
                )
                eraser.result.stopped_by = eraser.result.listed.stopped_by
            else:
                eraser.result.listed += count_listed(connection, listed)
        eraser.erase_objects()
        return eraser.result


def _listed(tables: Sequence[Table], tenant: str) -> list[ListedObjects]:
    """What the rows named. An object that tenants may share is not touched while another's writer may count on it."""
    own = [table for table in tables if tells_tenants_apart(table)]
    shared = [table for table in tables if not tells_tenants_apart(table)]
    listed = [ListedObjects(own, tenant, AT_ONCE, AT_ONCE), ListedObjects(shared, tenant, AT_ONCE, TRUSTED_FOR)]
    return [one for one in listed if one.tables]


class _Eraser:
    def __init__(
        self, database: Database, connection: Connection, store: ObjectStore, tables: Sequence[Table], tenant: str,
        options: ErasureOptions, run_id: str, progress: Progress,
    ) -> None:  # fmt: skip
        self._connection, self._store, self._tenant = connection, store, tenant
        self._options, self._run_id, self._progress = options, run_id, progress
        self._tables = [table for table in tables if table.config.tenant.value in (None, tenant)]
        self._deletion = Deletion(
            database, connection, store, Naming(connection, tables),
            put_before=None, store_threads=options.store_threads,
        )  # fmt: skip
        self.result = ErasureResult({table.name: TableErasure() for table in self._tables})

    def erase_rows(self) -> None:
        """Every row of the tenant that names an object, in every table that can hold this tenant at all."""
        for table in self._tables:
            if self._can_hold_the_tenant(table):
                counted = self.result.tables[table.name]
                self._count_rows(table, counted)
                if self._options.delete:
                    self._erase_rows_of(table, counted)

    def erase_objects(self) -> None:
        """What is left under the tenant's prefix: objects that no row names any more."""
        now = self._store.now()
        for table in self._tables:
            counted = self.result.tables[table.name]
            counted.is_listed = tells_tenants_apart(table)
            if not counted.is_listed or self.result.stopped_by:
                continue
            pattern = pattern_of(table, self._tenant)
            for page in in_chunks(self._store.list(pattern.prefix), LISTED_PER_PAGE):
                found = [one for one in page if pattern.match(one.key)]
                self._count_objects(found, counted)
                if self._options.delete:
                    strange = (one.key for one in page if not pattern.match(one.key))
                    for leftover in filter(self._store.is_leftover, strange):
                        delete_leftover(self._store, leftover, now)
                    for chunk in in_chunks([one.key for one in found], CHUNK_KEYS):
                        self._delete_chunk(table, chunk, counted)

    def _can_hold_the_tenant(self, table: Table) -> bool:
        try:
            with transaction(self._connection):
                found = self._connection.execute(
                    statement("retention/erasure", "can_be_tenant", table.names()), {"tenant": self._tenant}
                ).fetchone()
        except psycopg.DataError:
            return False
        return bool(found and found[0])

    def _count_rows(self, table: Table, counted: TableErasure) -> None:
        with transaction(self._connection):
            found = self._connection.execute(
                statement("retention/erasure", "count_tenant", table.names()), {"tenant": self._tenant}
            ).fetchone()
        assert found is not None  # noqa: S101 - an aggregate returns one row
        counted.rows_in_storage, counted.rows_copied, counted.payload_bytes, counted.rows_holding = found

    def _erase_rows_of(self, table: Table, counted: TableErasure) -> None:
        partition, cursor = Partition(table, self._tenant), None
        while rows := self._page(partition, cursor):
            for way, is_in_storage in WAYS:
                versions = [RowVersion(table.key_in(row), row[-1]) for row in rows if row[-2] is is_in_storage]
                done = give_up(self._connection, partition, versions, way, ROWS_ACTION, self._run_id)
                counted.rows_erased += done.rows
                counted.rows_left += done.left
                counted.rows_failed += done.failed
            self._progress(len(rows), 0)
            cursor = table.key_in(rows[-1])

    def _page(self, partition: Partition, cursor: Key | None) -> list[tuple[Any, ...]]:
        table = partition.table
        with transaction(self._connection):
            return self._connection.execute(
                statement("retention/erasure", "pointers_of_tenant", table.names(cursor)),
                {**partition.parameters(), **table.cursor_parameters(cursor), "page_rows": PAGE_ROWS},
            ).fetchall()

    def _count_objects(self, found: Sequence[StoredObject], counted: TableErasure) -> None:
        counted.objects += len(found)
        counted.object_bytes += sum(one.bytes for one in found)
        self._progress(len(found), sum(one.bytes for one in found))

    def _delete_chunk(self, table: Table, object_keys: list[str], counted: TableErasure) -> None:
        if self.result.stopped_by:
            return
        with collection_lock(self._connection):
            fates = self._deletion.delete(object_keys)
            deleted, deleted_bytes = fates.count(Fate.DELETED), sum(fates.deleted_bytes.values())
            if deleted:
                self._connection.execute(
                    statement("offload/record", "log_action", table.names()),
                    {**Partition(table, self._tenant).parameters(), "run_id": self._run_id,
                     "action": OBJECTS_ACTION, "rows": deleted, "bytes": deleted_bytes},
                )  # fmt: skip
        counted.objects_deleted += deleted
        counted.object_bytes_deleted += deleted_bytes
        counted.objects_named += fates.count(Fate.NAMED)
        counted.objects_left += fates.count(Fate.LOCKED, Fate.LEFT)
        counted.objects_failed += fates.count(Fate.FAILED)
        self.result.stopped_by = fates.stopped_by
