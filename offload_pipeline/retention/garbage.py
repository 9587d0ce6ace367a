"""Garbage collection: objects that no row names any more. Lists, looks, counts; deletes only when told to."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg import Connection

from offload_pipeline.database.connection import Database, database_failures, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table, bookkeeping_names
from offload_pipeline.errors import OffloadError
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.retention.deletion import AWAY, CHUNK_KEYS, Deletion, Fate, Fates, collection_lock
from offload_pipeline.retention.findings import GarbageResult, TableGarbage
from offload_pipeline.retention.listing import Listing, delete_leftover
from offload_pipeline.retention.naming import Naming
from offload_pipeline.retention.older_transactions import PATIENCE, wait_for_older_transactions
from offload_pipeline.retention.ownership import Scope, other_stores
from offload_pipeline.retention.spool import Spool, Suspect, in_chunks
from offload_pipeline.storage.object_store import ObjectStore

# Keys per scan of the tables: more would cost memory, fewer more scans.
SCANNED_KEYS = 5000


@dataclass(frozen=True)
class GarbageOptions:
    """`grace` is counted from an object's last PUT; `max_orphan_share` is of a table's listed objects, 0 to 1.

    `patience` is for transactions that are older than the look at the rows; nothing is deleted before they have ended.
    """

    grace: timedelta
    max_orphan_share: float
    delete: bool
    store_threads: int
    patience: timedelta = PATIENCE


def collect_garbage(
    database: Database, store: ObjectStore, tables: Sequence[Table], scope: Scope, options: GarbageOptions,
    run_id: str, progress: Progress = no_progress,
) -> GarbageResult:  # fmt: skip
    """Lists the scope's objects and judges them by the rows of all `tables`; with `delete`, deletes the orphans.

    Memory does not depend on the number of objects. Nothing is deleted before the whole listing has been judged.
    Raises StoreUnavailableError or PermanentError where the listing fails, TransientError when the database does, and
    UserError where not every row can be seen.
    """
    now = store.now()
    with database_failures(), contextlib.ExitStack() as stack:
        suspects, orphans, leftovers = (stack.enter_context(Spool()) for _ in range(3))
        connection = stack.enter_context(contextlib.closing(database.connect()))
        collector = _Collector(database, connection, store, tables, scope, options, now, run_id)
        collector.listing.look(suspects, leftovers, progress)
        collector.judge(suspects, orphans)
        collector.stop_what_looks_wrong()
        if options.delete:
            collector.delete(orphans)
            collector.delete_leftovers(leftovers)
    return collector.result


class _Collector:
    def __init__(
        self, database: Database, connection: Connection, store: ObjectStore, tables: Sequence[Table], scope: Scope,
        options: GarbageOptions, now: datetime, run_id: str,
    ) -> None:  # fmt: skip
        self._database, self._connection, self._store, self._options = database, connection, store, options
        self._now, self._run_id = now, run_id
        self._schema = tables[0].schema
        self._names = bookkeeping_names(self._schema)
        self._naming = Naming(connection, tables)
        self.result = GarbageResult({table.name: TableGarbage() for table in scope.tables})
        self.listing = Listing(connection, store, self._naming, scope, now, options.grace, self.result)

    def judge(self, suspects: Spool, orphans: Spool) -> None:
        """Looks for the suspects in every row: rows are re-keyed and moved, and the pointer keeps the old key."""
        for chunk in suspects.chunks(SCANNED_KEYS):
            keys = [suspect.key for suspect in chunk]
            with transaction(self._connection):
                named = self._naming.named_by_any_row(keys)
                expired = self._naming.listed_as_expired(keys) - named
            for suspect in chunk:
                counted = self.result.tables[suspect.table]
                if suspect.key in named:
                    counted.named += 1
                elif suspect.key in expired:
                    counted.expired += 1
                else:
                    counted.orphans += 1
                    counted.orphan_bytes += suspect.bytes
                    orphans.add(suspect)

    def stop_what_looks_wrong(self) -> None:
        """A table whose objects are in another store, or of which too many look orphaned, is left alone."""
        elsewhere = other_stores(self._connection, self._schema, self._store.url)
        most = self._options.max_orphan_share
        for name, counted in self.result.tables.items():
            if counted.orphans and name in elsewhere:
                counted.stopped = f"its objects are in {elsewhere[name]}, object_store.url is {self._store.url}"
            elif counted.orphan_share > most:
                counted.stopped = (
                    f"{counted.orphan_share:.1%} of its objects look orphaned, more than {most:.1%}; "
                    "see that this database and this store belong together, then raise the share"
                )

    def delete(self, orphans: Spool) -> None:
        """Deletes the orphans of the tables that look sound, each after another look."""
        if any(counted.orphans and not counted.stopped for counted in self.result.tables.values()):
            self.result.stopped_by = wait_for_older_transactions(self._connection, self._options.patience)
        sound = (
            orphan
            for chunk in orphans.chunks(CHUNK_KEYS)
            for orphan in chunk
            if not self.result.tables[orphan.table].stopped
        )
        for chunk in in_chunks(sound, CHUNK_KEYS):
            if self.result.stopped_by is None:
                self._delete_chunk(chunk)

    def delete_leftovers(self, leftovers: Spool) -> None:
        """No row ever names these, so there is nothing to look up."""
        for chunk in leftovers.chunks(CHUNK_KEYS):
            for leftover in chunk:
                try:
                    self.result.leftovers_deleted += delete_leftover(self._store, leftover.key, self._now)
                except OffloadError as error:
                    self.result.stopped_by = error
                    return

    def _delete_chunk(self, chunk: list[Suspect]) -> None:
        with collection_lock(self._connection):
            deletion = Deletion(
                self._database, self._connection, self._store, self._naming,
                put_before=self._now - self._options.grace, store_threads=self._options.store_threads,
                spares_listed=True,
            )  # fmt: skip
            fates = deletion.delete([orphan.key for orphan in chunk])
            for name in {orphan.table for orphan in chunk}:
                self._account(name, [orphan.key for orphan in chunk if orphan.table == name], fates)
        self.result.stopped_by = fates.stopped_by

    def _account(self, name: str, object_keys: list[str], fates: Fates) -> None:
        counted = self.result.tables[name]
        deleted = [key for key in object_keys if fates.of[key] is Fate.DELETED]
        deleted_bytes = sum(fates.deleted_bytes[key] for key in deleted)
        counted.deleted += len(deleted)
        counted.deleted_bytes += deleted_bytes
        counted.failed += sum(fates.of[key] is Fate.FAILED for key in object_keys)
        counted.spared += sum(fates.of[key] not in (*AWAY, Fate.FAILED) for key in object_keys)
        if deleted:
            self._connection.execute(
                statement("offload/record", "log_action", self._names),
                {"run_id": self._run_id, "table": name, "tenant": None, "action": "gc",
                 "rows": len(deleted), "bytes": deleted_bytes},
            )  # fmt: skip
