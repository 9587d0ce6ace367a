"""Copying: pack, upload, read back, record. The payload stays in the row; the row only gains a pointer."""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import Connection

from offload_pipeline.config import OffloadConfig
from offload_pipeline.database.back_pressure import BackPressure
from offload_pipeline.database.connection import is_about_the_rows, transaction
from offload_pipeline.database.table import Key
from offload_pipeline.errors import (
    OffloadError,
    StoreDeniedError,
)
from offload_pipeline.offload.claims import Batch, Batches, BatchLimits, ClaimedRow, Piece
from offload_pipeline.offload.deletions import announced, not_yet
from offload_pipeline.offload.failures import Failure, record_failures
from offload_pipeline.offload.packing import Compression
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.offload.record import record_copied
from offload_pipeline.offload.storing import StoredPayload, store_payload
from offload_pipeline.offload.workers import Workers
from offload_pipeline.storage.object_store import ObjectStore

# Enough for a histogram of payload sizes, whatever the number of rows.
SIZE_SAMPLE_ROWS = 10_000


@dataclass(frozen=True)
class CopyOptions:
    """How a partition is copied."""

    limits: BatchLimits
    batches_in_flight: int
    store_threads: int
    compression: Compression
    max_attempts: int

    @classmethod
    def of(cls, config: OffloadConfig, batch_rows: int | None = None) -> "CopyOptions":
        """The configured options, with another batch size where one was asked for."""
        limits = BatchLimits(batch_rows or config.batch_rows, config.batch_bytes)
        return cls(limits, config.batches_in_flight, config.store_threads, config.compression, config.max_attempts)


@dataclass
class CopyResult:
    """What one pass did. `rows_left` changed meanwhile and wait for the next pass; `rows_failed` are recorded."""

    rows_copied: int = 0
    rows_left: int = 0
    rows_failed: int = 0
    payload_bytes: int = 0
    object_bytes: int = 0
    seconds: float = 0.0
    payload_sizes: list[int] = field(default_factory=list)
    stopped_by: OffloadError | None = None
    """What ended the pass early, when the store as a whole failed; the rows not tried stay pending."""

    def __iadd__(self, other: "CopyResult") -> "CopyResult":
        for name in ("rows_copied", "rows_left", "rows_failed", "payload_bytes", "object_bytes", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.payload_sizes = (self.payload_sizes + other.payload_sizes)[:SIZE_SAMPLE_ROWS]
        self.stopped_by = self.stopped_by or other.stopped_by
        return self

    @property
    def megabytes_per_second(self) -> float:
        """Payload bytes (10**6) over wall time."""
        return self.payload_bytes / 1e6 / self.seconds if self.seconds else 0.0


def copy_all(
    sources: Iterable[Batches], store: ObjectStore, options: CopyOptions, run_id: str,
    progress: Progress = no_progress, pressure: BackPressure | None = None,
) -> CopyResult:  # fmt: skip
    """Copies one source of batches after another, until the store as a whole fails."""
    copied = CopyResult()
    for batches in sources:
        if not copied.stopped_by:
            copied += copy_batches(batches, store, options, run_id, progress, pressure)
    return copied


def copy_batches(
    batches: Batches, store: ObjectStore, options: CopyOptions, run_id: str,
    progress: Progress = no_progress, pressure: BackPressure | None = None,
) -> CopyResult:  # fmt: skip
    """Takes claimed batches until there are no more, several in flight, each in a short transaction of its own.

    None is begun while there is `pressure`. Raises TransientError when the database goes away; what was recorded
    before stays recorded.
    """
    started = time.monotonic()
    with ThreadPoolExecutor(options.store_threads, "store") as store_threads:
        copier = _Copier(batches, store, options, run_id, progress, pressure, store_threads)
        copier.run()
    copier.result.seconds = time.monotonic() - started
    return copier.result


@dataclass
class _Outcome:
    """What became of a batch; `not_copied` has the failed rows and those left for the next pass."""

    recorded: list[StoredPayload]
    failures: list[Failure]
    not_copied: list[Key]


class _Copier:
    """What the workers of one pass share."""

    def __init__(
        self, batches: Batches, store: ObjectStore, options: CopyOptions, run_id: str,
        progress: Progress, pressure: BackPressure | None, store_threads: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self._batches, self._store, self._options, self._run_id = batches, store, options, run_id
        self._progress, self._store_threads = progress, store_threads
        self._partition = batches.partition
        self._workers = Workers(batches.database, batches.partition, pressure)
        self._lock = threading.Lock()
        self.result = CopyResult()

    def run(self) -> None:
        """Until nothing is left, or the workers are stopped."""
        self._workers.run(self._copy_next, self._options.batches_in_flight)
        self.result.stopped_by = self._workers.stopped_by

    def _copy_next(self, connection: Connection) -> bool:
        with transaction(connection):
            batch = self._batches.claim(connection)
            if batch is None:
                return False
            outcome = self._copy(connection, batch)
        versions = self._batches.finish(connection, batch, outcome.not_copied)
        if outcome.failures:
            failures = [replace(one, row_version=versions.get(one.key, one.row_version)) for one in outcome.failures]
            with transaction(connection):
                record_failures(connection, self._partition, "copy", failures)
        self._count(outcome)
        self._progress(batch.rows_passed, sum(item.payload_bytes for item in outcome.recorded))
        return True

    def _copy(self, connection: Connection, batch: Batch) -> _Outcome:
        """Everything is stored before anything is recorded: no row lock may last for an upload."""
        stored: list[StoredPayload] = []
        failures: list[Failure] = []
        claimed: set[Key] = set()
        for piece in batch.pieces:
            more, failed = self._store_rows(piece)
            stored += more
            failures += failed
            claimed.update(row.key for row in piece.rows)
            claimed.update(key for key, _, _ in piece.unreadable)
        recorded, refused = self._record(connection, stored)
        not_copied = claimed - {item.key for item in recorded}
        return _Outcome(recorded, [*failures, *refused], list(not_copied))

    def _store_rows(self, piece: Piece) -> tuple[list[StoredPayload], list[Failure]]:
        stored: list[StoredPayload] = []
        failures = [Failure(key, version, error) for key, version, error in piece.unreadable]
        for row, outcome in zip(piece.rows, self._store_threads.map(self._try_to_store, piece.rows), strict=True):
            if isinstance(outcome, StoredPayload):
                stored.append(outcome)
            elif outcome is not None:
                failures.append(Failure(row.key, row.xmin, outcome))
        return stored, failures

    def _try_to_store(self, row: ClaimedRow) -> StoredPayload | OffloadError | None:
        """The stored payload, or why it failed; None for a row not tried because the store is down."""
        if self._workers.stopped_by:
            return None
        try:
            stored = store_payload(self._store, self._partition, row, self._options.compression)
        except OffloadError as error:
            self._workers.store_failed(error)
            return None if isinstance(error, StoreDeniedError) else error
        self._workers.store_answered()
        return stored

    def _record(self, connection: Connection, stored: list[StoredPayload]) -> tuple[list[StoredPayload], list[Failure]]:
        """Writes the pointers of what no deletion on its way may take."""
        doomed = announced(connection, self._partition.table.schema, [item.object_key for item in stored])
        recorded, refused = self._record_all(connection, [item for item in stored if item.object_key not in doomed])
        not_now = [
            Failure(item.key, item.xmin, not_yet(item.object_key)) for item in stored if item.object_key in doomed
        ]
        return recorded, [*not_now, *refused]

    def _record_all(
        self, connection: Connection, stored: list[StoredPayload]
    ) -> tuple[list[StoredPayload], list[Failure]]:
        """A batch that the table itself refuses (a trigger, a check) is taken row by row."""
        if not stored:
            return [], []
        try:
            with connection.transaction():
                return self._record_now(connection, stored), []
        except psycopg.Error as error:
            if not is_about_the_rows(error, connection):
                raise
            return self._record_one_by_one(connection, stored)

    def _record_one_by_one(
        self, connection: Connection, stored: list[StoredPayload]
    ) -> tuple[list[StoredPayload], list[Failure]]:
        recorded: list[StoredPayload] = []
        failures: list[Failure] = []
        for item in stored:
            try:
                with connection.transaction():
                    done = self._record_now(connection, [item])
                recorded += done
            except psycopg.Error as error:
                if not is_about_the_rows(error, connection):
                    raise
                failures.append(Failure(item.key, item.xmin, error))
        return recorded, failures

    def _record_now(self, connection: Connection, stored: list[StoredPayload]) -> list[StoredPayload]:
        """With every deferred constraint: what one refuses at the commit would take the whole batch with it."""
        recorded = record_copied(connection, self._partition, stored, self._store.url, self._run_id)
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        return recorded

    def _count(self, outcome: _Outcome) -> None:
        recorded = outcome.recorded
        payload_bytes = sum(item.payload_bytes for item in recorded)
        with self._lock:
            result = self.result
            result.rows_copied += len(recorded)
            result.rows_failed += len(outcome.failures)
            result.rows_left += len(outcome.not_copied) - len(outcome.failures)
            result.payload_bytes += payload_bytes
            result.object_bytes += sum(item.object_bytes for item in recorded)
            room = SIZE_SAMPLE_ROWS - len(result.payload_sizes)
            result.payload_sizes.extend(item.payload_bytes for item in recorded[:room])
