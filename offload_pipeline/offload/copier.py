"""Copying: pack, upload, read back, record. The payload stays in the row; the row only gains a pointer."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import Connection

from offload_pipeline.config import OffloadConfig
from offload_pipeline.database.back_pressure import BackPressure
from offload_pipeline.database.connection import is_about_the_rows, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.errors import (
    ObjectMissingError,
    OffloadError,
    PayloadTooLargeError,
    ReadBackMismatchError,
    StoreDeniedError,
)
from offload_pipeline.offload.claims import Batch, Batches, BatchLimits, ClaimedRow, Partition, require_same_store
from offload_pipeline.offload.failures import Failure, Stage, record_failures, resolve_failures
from offload_pipeline.offload.packing import Compression, holds, pack
from offload_pipeline.offload.workers import Workers
from offload_pipeline.storage.keys import object_key
from offload_pipeline.storage.object_store import ObjectStore

# Enough for a histogram of payload sizes, whatever the number of rows.
SIZE_SAMPLE_ROWS = 10_000
# A payload that the writer could not store has come the other way; one that could not be restored was written anew.
_SETTLED_STAGES: tuple[Stage, ...] = ("copy", "write", "restore")

Progress = Callable[[int, int], None]
"""Called after each batch or page, from any thread, with the rows it went through and the payload bytes it moved."""


def no_progress(_rows: int, _payload_bytes: int) -> None:
    """For callers that watch nothing."""


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


@dataclass(frozen=True)
class StoredPayload:
    """An object that was read back and is what was sent."""

    key: Key
    xmin: str
    object_key: str
    sha256: str
    payload_bytes: int
    object_bytes: int


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
        stored, failures, claimed = self._store_rows(batch)
        with contextlib.closing(batch.rest) as rest:
            for piece in rest:
                more, failed, read = self._store_rows(piece)
                stored, failures, claimed = stored + more, failures + failed, claimed | read
        recorded, refused = self._record(connection, stored)
        not_copied = claimed - {item.key for item in recorded}
        return _Outcome(recorded, [*failures, *refused], list(not_copied))

    def _store_rows(self, batch: Batch) -> tuple[list[StoredPayload], list[Failure], set[Key]]:
        stored: list[StoredPayload] = []
        failures = [Failure(key, version, error) for key, version, error in batch.unreadable]
        for row, outcome in zip(batch.rows, self._store_threads.map(self._try_to_store, batch.rows), strict=True):
            if isinstance(outcome, StoredPayload):
                stored.append(outcome)
            elif outcome is not None:
                failures.append(Failure(row.key, row.xmin, outcome))
        return stored, failures, {*(row.key for row in batch.rows), *(key for key, _, _ in batch.unreadable)}

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
        """Writes the pointers; a batch that the table itself refuses (a trigger, a check) is taken row by row."""
        if not stored:
            return [], []
        try:
            with connection.transaction():
                return record_copied(connection, self._partition, stored, self._store.url, self._run_id), []
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
                    recorded += record_copied(connection, self._partition, [item], self._store.url, self._run_id)
            except psycopg.Error as error:
                if not is_about_the_rows(error, connection):
                    raise
                failures.append(Failure(item.key, item.xmin, error))
        return recorded, failures

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


def store_payload(
    store: ObjectStore, partition: Partition, row: ClaimedRow, compression: Compression, *, renews: bool = False
) -> StoredPayload:
    """Stores one payload and reads it back. Raises an OffloadError; at worst an orphan object is left.

    A plain PUT, never create-only: the same bytes again do no harm and renew the object's age, on which garbage
    collection relies. But what other rows may share, under a key without {primary_key}, is not put at risk where it
    stands already; unless `renews`, for who has nothing but its age to keep garbage collection from it.
    """
    config = partition.table.config
    most = config.max_object_bytes
    if most is not None and len(row.payload) > most:
        raise PayloadTooLargeError(
            f"the payload is {len(row.payload)} bytes, max_object_bytes is {most}; it stays in the row"
        )
    packed = pack(row.payload, compression)
    key = object_key(
        config.key_template, tenant=partition.tenant, table=config.name, primary_key=row.key, sha256=packed.sha256
    )
    stored = StoredPayload(row.key, row.xmin, key, packed.sha256, packed.payload_bytes, len(packed.data))
    if not renews and "{primary_key}" not in config.key_template and _stands(store, key, packed.sha256):
        return stored
    store.put(key, packed.data)
    try:
        intact = store.get(key) == packed.data
    except ObjectMissingError:
        raise ReadBackMismatchError(f"the store accepted {key} and then had no such object") from None
    if not intact:
        raise ReadBackMismatchError(f"the store gave back other bytes than were sent for {key}")
    return stored


def _stands(store: ObjectStore, key: str, sha256: str) -> bool:
    try:
        return holds(store.get(key), sha256)
    except ObjectMissingError:
        return False


def record_copied(
    connection: Connection, partition: Partition, stored: Sequence[StoredPayload], store_url: str, run_id: str
) -> list[StoredPayload]:
    """Writes pointers, counters and the audit line in the caller's transaction; returns what was recorded.

    Rows that changed since they were read are not among them.
    """
    table, parameters = partition.table, partition.parameters()
    found = connection.execute(
        statement("offload/record", "open_state", table.names()), {**parameters, "store_url": store_url}
    ).fetchone()
    assert found is not None  # noqa: S101 - an upsert returns its row
    require_same_store(partition, found[1], store_url)
    rows = connection.execute(
        statement("offload/record", "record_copied", table.names()),
        {
            **table.key_parameters([item.key for item in stored]),
            "xmins": [item.xmin for item in stored],
            "sizes": [item.payload_bytes for item in stored],
            "object_keys": [item.object_key for item in stored],
            "hashes": [item.sha256 for item in stored],
            "verification_mark": found[0],
        },
    ).fetchall()
    recorded = [stored[position - 1] for position, _ in rows]
    if recorded:
        payload_bytes = sum(item.payload_bytes for item in recorded)
        counted = {
            "rows": len(recorded), "payload_bytes": payload_bytes, "bytes": payload_bytes,
            "object_bytes": sum(item.object_bytes for item in recorded), "run_id": run_id, "action": "copy",
        }  # fmt: skip
        connection.execute(statement("offload/record", "count_copied", table.names()), {**parameters, **counted})
        connection.execute(statement("offload/record", "log_action", table.names()), {**parameters, **counted})
        resolve_failures(connection, partition, _SETTLED_STAGES, [item.key for item in recorded])
    return recorded
