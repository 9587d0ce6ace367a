"""The one place that deletes objects: under locks, after a last look at the rows, the store and the clock.

Why that is safe: docs/decisions/0012-objects-are-deleted-under-a-lock.md.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from psycopg import Connection

from offload_pipeline.database.connection import Database, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.errors import ObjectMissingError, OffloadError, StoreDeniedError
from offload_pipeline.offload.deletions import announce, announced, withdraw
from offload_pipeline.retention.naming import Naming
from offload_pipeline.storage.object_store import ObjectStore

# Each key is an entry in the server's one shared lock table, as a copier's claim is; and each chunk costs a scan.
CHUNK_KEYS = 500
# No deletion of a chunk begins later than this after its locks were taken: who waits for them waits no longer, and the
# server would end an idle transaction, and with it the locks, only after minutes.
CHUNK_SECONDS = 20.0


class Fate(Enum):
    """What became of an object that was to be deleted."""

    DELETED = "deleted"
    GONE = "gone"
    NAMED = "named"
    YOUNG = "young"
    LOCKED = "locked"
    LISTED = "listed"
    FAILED = "failed"
    LEFT = "left"


# No longer there, however that came about.
AWAY = (Fate.DELETED, Fate.GONE)


@dataclass
class Fates:
    """By object key: what became of it, and the bytes that were deleted. `error` is one of those that failed."""

    of: dict[str, Fate] = field(default_factory=dict)
    deleted_bytes: dict[str, int] = field(default_factory=dict)
    error: OffloadError | None = None

    def keys(self, *fates: Fate) -> list[str]:
        """The object keys that one of these became of."""
        return [key for key, fate in self.of.items() if fate in fates]

    def count(self, *fates: Fate) -> int:
        """How many these became of."""
        return len(self.keys(*fates))

    @property
    def stopped_by(self) -> OffloadError | None:
        """The error that ends the run: the store refuses, or failed whatever was asked of it."""
        is_down = isinstance(self.error, StoreDeniedError) or not self.count(*AWAY, Fate.YOUNG)
        return self.error if is_down else None


@contextlib.contextmanager
def collection_lock(connection: Connection) -> Iterator[None]:
    """A transaction that alone may delete. The statements after it see everything that was committed before."""
    with transaction(connection):
        connection.execute(statement("retention/deletion", "lock_collection"))
        yield


class Deletion:
    """Deletes unnamed objects, chunk by chunk, each inside a `collection_lock` of the caller's."""

    def __init__(
        self, database: Database, connection: Connection, store: ObjectStore, naming: Naming, *,
        put_before: datetime | None, store_threads: int, spares_listed: bool = False,
    ) -> None:  # fmt: skip
        """`put_before` (the store's clock) spares younger objects; `spares_listed` those that expiry has listed."""
        self._database, self._connection, self._store, self._naming = database, connection, store, naming
        self._put_before, self._store_threads, self._spares_listed = put_before, store_threads, spares_listed

    def delete(self, object_keys: Sequence[str]) -> Fates:
        """Deletes those of at most CHUNK_KEYS keys that no row names, that nobody is writing, and that are old enough.

        Raises UserError where not every row can be seen; errors of the store are fates.
        """
        fates = Fates()
        unnamed = self._unnamed(self._free(object_keys, fates), fates)
        # Inside the transaction: the locks last until the last thread is done, whatever interrupts this one.
        with ThreadPoolExecutor(self._store_threads, "delete") as threads:
            executioner = _Executioner(self._store, self._put_before, fates, threads)
            if unnamed:
                # Asked for before, without an answer: this one's answer says nothing of that one.
                unsettled = announced(self._connection, self._database.schema, unnamed)
                # Before the look: what a copier puts now is refused as announced, or is seen to be young.
                self._announce(unnamed)
                executioner.look(unnamed)
                condemned = [key for key in unnamed if key not in fates.of]
                executioner.delete(condemned)
                unsettled |= {key for key in condemned if fates.of[key] is Fate.FAILED}
                withdraw(self._connection, self._database.schema, [key for key in unnamed if key not in unsettled])
        return fates

    def _announce(self, object_keys: list[str]) -> None:
        """On a connection of its own: committed now, and seen by whoever gets the locks of this transaction next."""
        with contextlib.closing(self._database.connect()) as own:
            announce(own, self._database.schema, object_keys)
        # Had the server ended this transaction meanwhile, its locks would be gone.
        self._connection.execute("SELECT")

    def _free(self, object_keys: Sequence[str], fates: Fates) -> list[str]:
        rows = self._connection.execute(
            statement("retention/deletion", "try_objects"), {"object_keys": list(object_keys)}
        ).fetchall()
        fates.of.update({key: Fate.LOCKED for key, is_mine in rows if not is_mine})
        return [key for key, is_mine in rows if is_mine]

    def _unnamed(self, object_keys: list[str], fates: Fates) -> list[str]:
        named = self._naming.named_by_any_row(object_keys)
        listed = self._naming.listed_as_expired(object_keys) - named if self._spares_listed else set()
        fates.of.update(dict.fromkeys(listed, Fate.LISTED) | dict.fromkeys(named, Fate.NAMED))
        return [key for key in object_keys if key not in fates.of]


class _Executioner:
    """HEAD, then DELETE, in threads, until the time of the chunk is up."""

    def __init__(
        self, store: ObjectStore, put_before: datetime | None, fates: Fates, threads: ThreadPoolExecutor
    ) -> None:
        self._store, self._put_before, self._fates, self._threads = store, put_before, fates, threads
        self._deadline = time.monotonic() + CHUNK_SECONDS
        self._stopped = threading.Event()
        self._bytes: dict[str, int] = {}

    def look(self, object_keys: Sequence[str]) -> None:
        """Gives a fate to those that are gone or too young."""
        self._each(object_keys, self._look_at)

    def delete(self, object_keys: Sequence[str]) -> None:
        """Gives every one its fate."""
        self._each(object_keys, self._delete)

    def _each(self, object_keys: Sequence[str], work: Callable[[str], Fate | None]) -> None:
        futures = [self._threads.submit(self._give_fate, key, work) for key in object_keys]
        try:
            for future in futures:
                future.result()
        except BaseException:
            self._stopped.set()
            raise

    def _give_fate(self, key: str, work: Callable[[str], Fate | None]) -> None:
        try:
            is_over = self._stopped.is_set() or time.monotonic() > self._deadline
            fate = Fate.LEFT if is_over else work(key)
        except OffloadError as error:
            fate = Fate.FAILED
            is_denied = isinstance(error, StoreDeniedError)
            if is_denied:
                self._stopped.set()
            if is_denied or self._fates.error is None:
                self._fates.error = error
        if fate:
            self._fates.of[key] = fate

    def _look_at(self, key: str) -> Fate | None:
        try:
            found = self._store.head(key)
        except ObjectMissingError:
            return Fate.GONE
        self._bytes[key] = found.bytes
        is_young = self._put_before is not None and found.last_modified > self._put_before
        return Fate.YOUNG if is_young else None

    def _delete(self, key: str) -> Fate:
        self._store.delete(key)
        self._fates.deleted_bytes[key] = self._bytes[key]
        return Fate.DELETED
