"""The objects that expiry and erasure listed: deleted when their time has come, unless a row names them again."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import timedelta

from psycopg import Connection

from offload_pipeline.database.connection import Database, database_failures, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table, bookkeeping_names
from offload_pipeline.errors import OffloadError
from offload_pipeline.retention.deletion import AWAY, CHUNK_KEYS, Deletion, Fate, Fates, collection_lock
from offload_pipeline.retention.naming import Naming
from offload_pipeline.retention.ownership import require_their_store
from offload_pipeline.storage.object_store import ObjectStore


@dataclass(frozen=True)
class ListedObjects:
    """What is meant of payload_offload_expired: these tables, one tenant or all, listed at least `grace` ago.

    An object that was put again within `spared_for` is left, whatever the list says: as long as the grace, if not set.
    """

    tables: Sequence[Table]
    tenant: str | None
    grace: timedelta
    spared_for: timedelta | None = None

    def parameters(self) -> dict[str, object]:
        """What the statements bind."""
        return {"tables": [table.name for table in self.tables], "one_tenant": self.tenant, "grace": self.grace}


@dataclass
class ListedResult:
    """Listed objects and their payload bytes, all and those due; and what became of the due ones.

    `objects_gone` were no longer there, `objects_named` were struck off because a row names them again, `objects_left`
    are being written or were renewed, and stay listed.
    """

    listed: int = 0
    listed_payload_bytes: int = 0
    due: int = 0
    due_payload_bytes: int = 0
    objects_deleted: int = 0
    object_bytes: int = 0
    objects_gone: int = 0
    objects_named: int = 0
    objects_left: int = 0
    objects_failed: int = 0
    stopped_by: OffloadError | None = None
    """What ended the deletion early, when the store as a whole failed."""

    def __iadd__(self, other: "ListedResult") -> "ListedResult":
        for one in fields(self):
            if one.name != "stopped_by":
                setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        self.stopped_by = self.stopped_by or other.stopped_by
        return self


def count_listed(connection: Connection, listed: ListedObjects) -> ListedResult:
    """The report: touches nothing."""
    with transaction(connection):
        found = connection.execute(
            statement("retention/expired", "count_listed", bookkeeping_names(listed.tables[0].schema)),
            listed.parameters(),
        ).fetchone()
    assert found is not None  # noqa: S101 - an aggregate returns one row
    return ListedResult(*found)


def delete_listed(
    database: Database, store: ObjectStore, tables: Sequence[Table], listed: ListedObjects, action: str,
    store_threads: int, run_id: str,
) -> ListedResult:  # fmt: skip
    """Deletes what is due, by the guarded routine of garbage collection: never what any row of `tables` names.

    Raises TransientError when the database fails, UserError where not every row can be seen, StoreChangedError where
    the objects are in another store.
    """
    spared_for = listed.grace if listed.spared_for is None else listed.spared_for
    with database_failures(), contextlib.closing(database.connect()) as connection:
        require_their_store(connection, listed.tables, store.url)
        result = count_listed(connection, listed)
        deletion = Deletion(
            database, connection, store, Naming(connection, tables),
            put_before=store.now() - spared_for, store_threads=store_threads,
        )  # fmt: skip
        _Deleter(connection, deletion, listed, action, run_id, result).work()
        return result


class _Deleter:
    def __init__(
        self, connection: Connection, deletion: Deletion, listed: ListedObjects, action: str,
        run_id: str, result: ListedResult,
    ) -> None:  # fmt: skip
        self._connection, self._deletion, self._listed = connection, deletion, listed
        self._action, self._run_id, self._result = action, run_id, result
        self._names = bookkeeping_names(listed.tables[0].schema)

    def work(self) -> None:
        after_key: str | None = ""
        while after_key is not None and self._result.stopped_by is None:
            after_key = self._delete_chunk(after_key)

    def _delete_chunk(self, after_key: str) -> str | None:
        """The last key of the chunk; None at the end."""
        with collection_lock(self._connection):
            rows = self._connection.execute(
                statement("retention/expired", "due", self._names),
                {**self._listed.parameters(), "after_key": after_key, "page_rows": CHUNK_KEYS},
            ).fetchall()
            if not rows:
                return None
            fates = self._deletion.delete([key for key, _, _ in rows])
            self._connection.execute(
                statement("retention/expired", "strike_off", self._names),
                {"object_keys": fates.keys(*AWAY, Fate.NAMED)},
            )
            self._log(rows, fates)
        self._count(fates)
        return str(rows[-1][0])

    def _log(self, rows: Sequence[tuple[str, str, str]], fates: Fates) -> None:
        """What is no longer there is counted, also where an earlier run was killed before it could say so."""
        objects: Counter[tuple[str, str]] = Counter()
        object_bytes: Counter[tuple[str, str]] = Counter()
        for key, table, tenant in rows:
            if fates.of[key] in AWAY:
                objects[table, tenant] += 1
                object_bytes[table, tenant] += fates.deleted_bytes.get(key, 0)
        for (table, tenant), count in objects.items():
            self._connection.execute(
                statement("offload/record", "log_action", self._names),
                {"run_id": self._run_id, "table": table, "tenant": tenant, "action": self._action,
                 "rows": count, "bytes": object_bytes[table, tenant]},
            )  # fmt: skip

    def _count(self, fates: Fates) -> None:
        result = self._result
        result.objects_deleted += fates.count(Fate.DELETED)
        result.object_bytes += sum(fates.deleted_bytes.values())
        result.objects_gone += fates.count(Fate.GONE)
        result.objects_named += fates.count(Fate.NAMED)
        result.objects_left += fates.count(Fate.YOUNG, Fate.LOCKED, Fate.LEFT)
        result.objects_failed += fates.count(Fate.FAILED)
        result.stopped_by = fates.stopped_by
