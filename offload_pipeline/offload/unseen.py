"""Backfill of rows older than the trigger: scanned in key order from a checkpoint, copied without a marking pass."""

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection, Cursor, ServerCursor

from offload_pipeline.database.connection import Database, is_about_the_rows, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.offload.claims import Batch, Batches, BatchLimits, ClaimedRow, Partition, Piece

# How far a compressed payload is taken to unpack until a row has unpacked further: webhooks do four to eight times.
EXPECTED_RATIO = 16.0


@dataclass
class _Page:
    """A page of the scan: the checkpoint may pass `last` once it is finished, and not before its predecessors are."""

    batch: Batch
    last: Key
    payload_bytes: dict[Key, int]
    is_finished: bool = False


class UnseenBatches(Batches):
    """The never-seen rows of one partition, once through; `resume` starts behind the checkpoint of an earlier scan."""

    def __init__(
        self, database: Database, partition: Partition, limits: BatchLimits, max_attempts: int, *, resume: bool = True
    ) -> None:
        super().__init__(database, partition, limits, max_attempts)
        self._resume = resume
        self._is_begun = False
        self._pages: list[_Page] = []
        self._has_gap = False
        self._checkpoint_lock = threading.Lock()

    @property
    def is_complete(self) -> bool:
        """Whether the end is reached with nothing passed over; else a later scan has something left to find."""
        with self._checkpoint_lock:
            return self._ended and not self._has_gap and not self._pages

    def claim(self, connection: Connection) -> Batch | None:
        """As `Batches.claim`."""
        with self._turn:
            self._begin(connection)
            return self._scan(connection)

    def finish(self, connection: Connection, batch: Batch, not_copied: list[Key]) -> dict[Key, str]:
        """Queues what was not copied, then moves the checkpoint over every finished page that has no gap before it."""
        with self._checkpoint_lock:
            finished = next(page for page in self._pages if page.batch is batch)
        versions = self._enqueue(connection, not_copied, finished.payload_bytes) if not_copied else {}
        with self._checkpoint_lock:
            finished.is_finished = True
            passed: Key | None = None
            while self._pages and self._pages[0].is_finished:
                passed = self._pages.pop(0).last
            if passed is not None and not self._has_gap:
                self._write_checkpoint(connection, passed, is_complete=self._ended and not self._pages)
        return versions

    def _enqueue(self, connection: Connection, keys: list[Key], payload_bytes: dict[Key, int]) -> dict[Key, str]:
        """Rows that the table refuses to update stay never seen; a later scan comes back to them."""
        try:
            return self._enqueue_all(connection, keys, payload_bytes)
        except psycopg.Error as error:
            if not is_about_the_rows(error, connection):
                raise
        if len(keys) > 1:
            each = [self._enqueue(connection, [key], payload_bytes) for key in keys]
            return {key: version for found in each for key, version in found.items()}
        self._has_gap = True
        return {}

    def _enqueue_all(self, connection: Connection, keys: list[Key], payload_bytes: dict[Key, int]) -> dict[Key, str]:
        table = self.partition.table
        with transaction(connection):
            rows = connection.execute(
                statement("offload/unseen", "enqueue", table.names()),
                {**table.key_parameters(keys), "sizes": [payload_bytes.get(key) for key in keys]},
            ).fetchall()
        if any(is_left for _, _, is_left in rows):
            self._has_gap = True
        return {keys[position - 1]: version for position, version, _ in rows if version is not None}

    def _begin(self, connection: Connection) -> None:
        if self._is_begun:
            return
        self._is_begun = True
        if self._resume:
            self._cursor, self._ended = read_checkpoint(connection, self.partition)

    def _scan(self, connection: Connection) -> Batch | None:
        if self._ended:
            return None
        table = self.partition.table
        rows = connection.execute(
            statement("offload/unseen", "claim_unseen", table.names(self._cursor)), self._page_parameters()
        ).fetchall()
        with self._checkpoint_lock:
            # Together: a page finished in between must not take the scan for complete while this one is in flight.
            self._ended = not rows
            if not rows:
                if not self._pages and not self._has_gap:
                    self._write_checkpoint(connection, self._cursor, is_complete=True)
                return None
            self._cursor = table.key_in(rows[-1])
            if not all(row[-1] for row in rows):
                # Another worker has these; should it die, a later scan must find them.
                self._has_gap = True
            sizes = {table.key_in(row): row[-2] for row in rows if row[-1]}
            payload_bytes: dict[Key, int] = {}
            batch = Batch(self._pieces(connection, sizes, payload_bytes), len(rows))
            self._pages.append(_Page(batch, self._cursor, payload_bytes))
        return batch

    def _pieces(self, connection: Connection, sizes: dict[Key, int], payload_bytes: dict[Key, int]) -> Iterator[Piece]:
        """The rows of these keys (with their stored bytes), in pieces; adds to `payload_bytes` what they really are.

        Each piece is a statement that has ended before the piece is given: while payloads are on their way to the
        store, no snapshot is to hold back vacuum. Where one fails, what it has given by then is kept, and the next row
        is read alone.
        """
        unread = dict(sizes)
        while unread:
            rows: list[ClaimedRow] = []
            alone = Piece([])
            try:
                with connection.transaction():
                    self._read_piece(connection, unread, rows)
            except psycopg.Error as error:
                if not is_about_the_rows(error, connection):
                    raise
                key = next(iter(unread))
                del unread[key]
                alone = self._read_one_by_one(connection, [key])
            piece = Piece([*rows, *alone.rows], alone.unreadable)
            payload_bytes.update((row.key, len(row.payload)) for row in piece.rows)
            yield piece

    def _read_piece(self, connection: Connection, unread: dict[Key, int], rows: list[ClaimedRow]) -> None:
        """Adds rows up to the one that passes the byte limit; takes what was gone through out of `unread`.

        How far this table's payloads unpack is learnt from what has arrived: one row first, then twice as
        many each time.
        """
        keys, room, ratio, few = list(unread), self.limits.payload_bytes, EXPECTED_RATIO, 1
        with connection.cursor("unseen", binary=True) as cursor:
            self._open(cursor, keys)
            while room > 0 and unread:
                printed = cursor.fetchmany(min(few, _fitting(unread.values(), room / ratio)))
                rows += _claimed(keys, printed)
                for position, _, payload in printed:
                    stored_bytes, arrived = unread.pop(keys[position - 1]), len(payload or b"")
                    ratio = max(ratio, arrived / max(1, stored_bytes))
                    room -= arrived
                few *= 2

    def _fetch(self, connection: Connection, keys: list[Key]) -> list[ClaimedRow]:
        with connection.cursor(binary=True) as cursor:
            self._open(cursor, keys)
            return _claimed(keys, cursor.fetchall())

    def _open(self, cursor: Cursor[Any] | ServerCursor[Any], keys: list[Key]) -> None:
        table = self.partition.table
        bound = {**self.partition.parameters(), **table.key_parameters(keys)}
        cursor.execute(
            statement("offload/unseen", "fetch_unseen", table.names()),
            {**bound, "threshold_bytes": table.config.threshold_bytes},
        )

    def _write_checkpoint(self, connection: Connection, key: Key | None, *, is_complete: bool) -> None:
        checkpoint = {"checkpoint": list(key) if key else None, "is_complete": is_complete}
        with transaction(connection):
            connection.execute(
                statement("offload/unseen", "write_checkpoint", self.partition.table.names()),
                {**self.partition.parameters(), **checkpoint},
            )


def _claimed(keys: list[Key], printed: Iterable[tuple[int, str, bytes | None]]) -> list[ClaimedRow]:
    return [ClaimedRow(keys[position - 1], xmin, payload) for position, xmin, payload in printed if payload is not None]


def _fitting(stored_bytes: Iterable[int], most: float) -> int:
    """How many of these rows come to so many bytes; one at least."""
    totals = itertools.accumulate(stored_bytes)
    return max(1, sum(1 for _ in itertools.takewhile(lambda total: total <= most, totals)))


def read_checkpoint(connection: Connection, partition: Partition) -> tuple[Key | None, bool]:
    """Where a resumed scan goes on (None: at the first row), and whether an earlier one has reached the end."""
    found = connection.execute(
        statement("offload/unseen", "read_checkpoint", partition.table.names()), partition.parameters()
    ).fetchone()
    if found is None:
        return None, False
    checkpoint, backfilled_at = found
    return tuple(checkpoint) if checkpoint else None, backfilled_at is not None
