"""The first pass of garbage collection: lists the store, and sets aside what its own row does not name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from psycopg import Connection

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import ObjectMissingError
from offload_pipeline.offload.progress import Progress
from offload_pipeline.retention.findings import GarbageResult
from offload_pipeline.retention.naming import Naming
from offload_pipeline.retention.ownership import Scope
from offload_pipeline.retention.spool import Spool, Suspect, in_chunks
from offload_pipeline.storage.object_store import LISTED_PER_PAGE, PROBE_KEY, ObjectStore, StoredObject

# A put takes seconds; its temporary file is nobody's after this.
LEFTOVER_AFTER = timedelta(hours=1)


@dataclass
class _TablePage:
    """Listed objects of one table, and of those the ones whose key tells a primary key."""

    table: Table
    objects: list[StoredObject] = field(default_factory=list)
    candidates: list[tuple[Key, str]] = field(default_factory=list)


class Listing:
    """Counts every object into `result`; suspects and what killed puts left go to their spools."""

    def __init__(
        self, connection: Connection, store: ObjectStore, naming: Naming, scope: Scope,
        now: datetime, grace: timedelta, result: GarbageResult,
    ) -> None:  # fmt: skip
        """`now` is the store's own clock."""
        self._connection, self._store, self._naming, self._scope = connection, store, naming, scope
        self._now, self._grace, self._result = now, grace, result

    def look(self, suspects: Spool, leftovers: Spool, progress: Progress) -> None:
        """Raises what the store raises: a listing that breaks off is none."""
        for prefix in self._scope.prefixes:
            for page in in_chunks(self._store.list(prefix), LISTED_PER_PAGE):
                with transaction(self._connection):
                    for of_table in self._sorted(page, leftovers):
                        self._count(of_table, suspects)
                progress(len(page), sum(found.bytes for found in page))

    def _sorted(self, page: Sequence[StoredObject], leftovers: Spool) -> list[_TablePage]:
        pages: dict[str, _TablePage] = {}
        for found in page:
            owned = self._scope.owner(found.key)
            if owned is None and self._store.is_leftover(found.key):
                self._set_leftover_aside(found, leftovers)
            elif owned is None and found.key != PROBE_KEY:
                self._result.foreign += 1
                self._result.foreign_bytes += found.bytes
            elif owned is not None and self._scope.includes(owned, found.key):
                of_table = pages.setdefault(owned.table.name, _TablePage(owned.table))
                of_table.objects.append(found)
                if owned.primary_key is not None:
                    of_table.candidates.append((owned.primary_key, found.key))
        return list(pages.values())

    def _set_leftover_aside(self, found: StoredObject, leftovers: Spool) -> None:
        self._result.leftovers += 1
        self._result.leftover_bytes += found.bytes
        if found.last_modified <= self._now - LEFTOVER_AFTER:
            leftovers.add(Suspect(found.key, found.bytes, table=""))

    def _count(self, page: _TablePage, suspects: Spool) -> None:
        named = self._naming.named_by_their_rows(page.table, page.candidates)
        counted = self._result.tables[page.table.name]
        for found in page.objects:
            counted.objects += 1
            counted.bytes += found.bytes
            if found.key in named:
                counted.named += 1
            elif found.last_modified > self._now - self._grace:
                counted.young += 1
            else:
                suspects.add(Suspect(found.key, found.bytes, page.table.name))


def delete_leftover(store: ObjectStore, key: str, now: datetime) -> bool:
    """Whether it was deleted: it is still there, and has not been begun anew under the same name."""
    try:
        is_old = store.head(key).last_modified <= now - LEFTOVER_AFTER
    except ObjectMissingError:
        return False
    if is_old:
        store.delete(key)
    return is_old
