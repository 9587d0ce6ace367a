"""Restore: payloads read back from the store, hash-checked, into their rows, where they are held."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import psycopg
from psycopg import Connection

from offload_pipeline.config import OffloadConfig
from offload_pipeline.database.back_pressure import BackPressure
from offload_pipeline.database.connection import Database, is_about_the_rows, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.errors import (
    ObjectDamagedError,
    OffloadError,
    PermanentError,
    RestoreUndoneError,
    StoreDeniedError,
)
from offload_pipeline.offload.claims import BatchLimits, Partition, require_same_store
from offload_pipeline.offload.failures import Failure, record_failures
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.offload.stored import NamedObject, read_payload
from offload_pipeline.offload.stored_rows import StoredRow, StoredRows, drop_pointers, put_back
from offload_pipeline.offload.vacancy import beside_its_pointer
from offload_pipeline.offload.workers import Workers
from offload_pipeline.storage.object_store import ObjectStore

# Enough to find the cause; the rest is in payload_offload_failures.
LISTED_FAILURES = 50

Item = TypeVar("Item")


@dataclass(frozen=True)
class RestoreOptions:
    """How much is in memory at once, and the one row, if only one."""

    limits: BatchLimits
    batches_in_flight: int
    store_threads: int
    key: Key | None = None

    @classmethod
    def of(cls, config: OffloadConfig, key: Key | None = None) -> "RestoreOptions":
        """The options that copying has."""
        limits = BatchLimits(config.batch_rows, config.batch_bytes)
        return cls(limits, config.batches_in_flight, config.store_threads, key)


@dataclass
class RestoreResult:
    """What one pass did: payloads put back, pointers dropped from rows that had theirs still.

    `rows_left` changed meanwhile or were locked, and wait for the next pass; `rows_failed` are recorded.
    """

    rows_restored: int = 0
    payload_bytes: int = 0
    pointers_dropped: int = 0
    rows_left: int = 0
    rows_failed: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    """The first of them."""
    stopped_by: OffloadError | None = None
    """What ended the pass early, when the store as a whole failed; the rows not tried stay in storage."""

    @property
    def is_sound(self) -> bool:
        """Nothing failed; rows may be left that the application held."""
        return not self.rows_failed and self.stopped_by is None


def restore_partition(
    database: Database, store: ObjectStore, partition: Partition, options: RestoreOptions, run_id: str,
    progress: Progress = no_progress, pressure: BackPressure | None = None,
) -> RestoreResult:  # fmt: skip
    """Puts every payload of the partition back into its row, and drops the pointer of every copy. Objects stay.

    Raises StoreChangedError where the objects are in another store than this, TransientError when the database fails;
    what was committed before stays restored, and a second pass begins with what is left.
    """
    started = time.monotonic()
    _require_same_store(database, store, partition)
    with ThreadPoolExecutor(options.store_threads, "store") as store_threads:
        restorer = _Restorer(database, store, partition, options, run_id, progress, pressure, store_threads)
        restorer.run()
    restorer.result.seconds = time.monotonic() - started
    return restorer.result


def _require_same_store(database: Database, store: ObjectStore, partition: Partition) -> None:
    with contextlib.closing(database.connect()) as connection, transaction(connection):
        found = connection.execute(
            statement("offload/restore", "known_store", partition.table.names()), partition.parameters()
        ).fetchone()
    require_same_store(partition, found[0] if found else None, store.url)


class _Restorer:
    """What the workers of one pass share."""

    def __init__(
        self, database: Database, store: ObjectStore, partition: Partition, options: RestoreOptions, run_id: str,
        progress: Progress, pressure: BackPressure | None, store_threads: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self._store, self._partition, self._options, self._run_id = store, partition, options, run_id
        self._progress, self._store_threads = progress, store_threads
        self._workers = Workers(database, partition, pressure)
        self._rows = StoredRows(partition, options.limits, options.key)
        self._lock = threading.Lock()
        self.result = RestoreResult()

    def run(self) -> None:
        """Until nothing is left, or the workers are stopped."""
        self._workers.run(self._restore_next, self._options.batches_in_flight)
        self.result.stopped_by = self._workers.stopped_by

    def _restore_next(self, connection: Connection) -> bool:
        """No transaction is open while the store is read."""
        page = self._rows.next_page(connection)
        if page is None:
            return False
        if page.status == "copied":
            self._drop_pointers(connection, page.rows)
        else:
            self._put_back(connection, page.rows)
        return True

    def _put_back(self, connection: Connection, rows: list[StoredRow]) -> None:
        read: list[tuple[StoredRow, bytes]] = []
        beside = beside_its_pointer(self._partition.table)
        failures = [Failure(row.key, row.xmin, beside) for row in rows if not row.is_empty]
        vacant = [row for row in rows if row.is_empty]
        for row, outcome in zip(vacant, self._store_threads.map(self._try_to_read, vacant), strict=True):
            if isinstance(outcome, bytes):
                read.append((row, outcome))
            elif outcome is not None:
                failures.append(Failure(row.key, row.xmin, outcome))
        restored, refused = self._write(connection, read, put_back, lambda item: item[0])
        keys = {row.key for row in restored}
        payload_bytes = sum(len(payload) for row, payload in read if row.key in keys)
        with self._lock:
            self.result.rows_restored += len(restored)
            self.result.payload_bytes += payload_bytes
            self.result.rows_left += len(read) - len(restored) - len(refused)
        self._conclude(connection, [*failures, *refused], len(rows), payload_bytes)

    def _drop_pointers(self, connection: Connection, rows: list[StoredRow]) -> None:
        gone = PermanentError(
            "the row says that it holds its payload, and holds none: it was removed past the trigger; "
            "write the payload, or drop it: set the object key to NULL"
        )
        failures = [Failure(row.key, row.xmin, gone) for row in rows if row.is_empty]
        held = [row for row in rows if not row.is_empty]
        dropped, refused = self._write(connection, held, drop_pointers, lambda item: item)
        with self._lock:
            self.result.pointers_dropped += len(dropped)
            self.result.rows_left += len(held) - len(dropped) - len(refused)
        self._conclude(connection, [*failures, *refused], len(rows), 0)

    def _conclude(self, connection: Connection, failures: list[Failure], rows: int, payload_bytes: int) -> None:
        if failures:
            with transaction(connection):
                record_failures(connection, self._partition, "restore", failures)
        with self._lock:
            self.result.rows_failed += len(failures)
            self.result.failures.extend(failures[: LISTED_FAILURES - len(self.result.failures)])
        self._progress(rows, payload_bytes)

    def _try_to_read(self, row: StoredRow) -> bytes | OffloadError | None:
        """The payload, the row's own failure, or nothing once the pass is stopped: the row was not tried."""
        if self._workers.are_stopping:
            return None
        try:
            payload = _read(self._store, row.named)
        except OffloadError as error:
            self._workers.store_failed(error)
            return None if isinstance(error, StoreDeniedError) else error
        self._workers.store_answered()
        return payload

    def _write(
        self, connection: Connection, items: Sequence[Item],
        write: Callable[[Connection, Partition, Sequence[Item], str], list[StoredRow]],
        row_of: Callable[[Item], StoredRow],
    ) -> tuple[list[StoredRow], list[Failure]]:  # fmt: skip
        """All in one transaction; what the table refuses as a whole (a trigger, a check), row by row."""
        if not items:
            return [], []
        try:
            with transaction(connection):
                return write(connection, self._partition, items, self._run_id), []
        except (psycopg.Error, RestoreUndoneError) as error:
            if isinstance(error, psycopg.Error) and not is_about_the_rows(error, connection):
                raise
            if len(items) == 1:
                return [], [Failure(row_of(items[0]).key, row_of(items[0]).xmin, error)]
        outcomes = [self._write(connection, [item], write, row_of) for item in items]
        return [row for rows, _ in outcomes for row in rows], [one for _, failures in outcomes for one in failures]


def _read(store: ObjectStore, named: NamedObject) -> bytes:
    """The pointer's columns are nullable and the application's to edit, whatever the types promise."""
    if named.object_key is None or named.sha256 is None:
        raise ObjectDamagedError("the row's pointer is incomplete: it was edited past the trigger")
    return read_payload(store, named)
