"""Backfill of rows older than the trigger: scanned in key order from a checkpoint, copied without a marking pass."""

import contextlib
import threading
from collections.abc import Generator
from dataclasses import dataclass, field

import psycopg
from psycopg import Connection

from offload_pipeline.database.connection import Database, is_about_the_rows, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.offload.claims import Batch, Batches, BatchLimits, ClaimedRow, Partition


@dataclass
class _Page:
    """A page of the scan: the checkpoint may pass `last` once it is finished, and not before its predecessors are."""

    last: Key
    is_finished: bool = False
    batch: Batch = field(default_factory=lambda: Batch([], []))


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

    def claim(self, connection: Connection) -> Batch | None:
        """As `Batches.claim`; all rows are in `rest`, in pieces that end with the row that passes the byte limit."""
        with self._turn:
            self._begin(connection)
            page = self._scan(connection)
        if page is None:
            return None
        keys, entry, rows_passed = page
        entry.batch = Batch([], [], self._pieces(connection, keys), rows_passed)
        return entry.batch

    def finish(self, connection: Connection, batch: Batch, not_copied: list[Key]) -> dict[Key, str]:
        """Queues what was not copied, then moves the checkpoint over every finished page that has no gap before it."""
        versions = self._enqueue(connection, not_copied) if not_copied else {}
        with self._checkpoint_lock:
            next(page for page in self._pages if page.batch is batch).is_finished = True
            passed: Key | None = None
            while self._pages and self._pages[0].is_finished:
                passed = self._pages.pop(0).last
            if passed is not None and not self._has_gap:
                self._write_checkpoint(connection, passed, is_complete=self._ended and not self._pages)
        return versions

    def _enqueue(self, connection: Connection, keys: list[Key]) -> dict[Key, str]:
        table = self.partition.table
        with transaction(connection):
            rows = connection.execute(
                statement("offload/unseen", "enqueue", table.names()), table.key_parameters(keys)
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

    def _scan(self, connection: Connection) -> tuple[list[Key], _Page, int] | None:
        if self._ended:
            return None
        table = self.partition.table
        rows = connection.execute(
            statement("offload/unseen", "claim_unseen", table.names(self._cursor)), self._page_parameters()
        ).fetchall()
        with self._checkpoint_lock:
            # Together: a page finished in between must not take the scan for complete while this one is in flight.
            self._ended = len(rows) < self.limits.rows
            if not rows:
                if not self._pages and not self._has_gap:
                    self._write_checkpoint(connection, self._cursor, is_complete=True)
                return None
            self._cursor = table.key_in(rows[-1])
            # Another worker has these; should it die, a later scan must find them.
            self._has_gap = self._has_gap or not all(row[-1] for row in rows)
            page = _Page(self._cursor)
            self._pages.append(page)
        return [table.key_in(row) for row in rows if row[-1]], page, len(rows)

    def _pieces(self, connection: Connection, keys: list[Key]) -> Generator[Batch, None, None]:
        """Rows as PostgreSQL prints them; from one on that it cannot print, one by one."""
        rows: list[ClaimedRow] = []
        unread, room = dict.fromkeys(keys), self.limits.payload_bytes
        try:
            with connection.transaction(), contextlib.closing(self._stream(connection, keys)) as printed:
                for row in printed:
                    rows.append(row)
                    del unread[row.key]
                    room -= len(row.payload)
                    if room <= 0:
                        yield Batch(rows, [])
                        rows, room = [], self.limits.payload_bytes
        except psycopg.Error as error:
            if not is_about_the_rows(error, connection):
                raise
            yield from (self._read_one_by_one(connection, [key]) for key in unread)
        yield Batch(rows, [])

    def _fetch(self, connection: Connection, keys: list[Key]) -> list[ClaimedRow]:
        return list(self._stream(connection, keys))

    def _stream(self, connection: Connection, keys: list[Key]) -> Generator[ClaimedRow, None, None]:
        if not keys:
            return
        table = self.partition.table
        fetch = statement("offload/unseen", "fetch_unseen", table.names())
        bound = {**self.partition.parameters(), **table.key_parameters(keys)}
        with connection.cursor(binary=True) as cursor:
            for position, xmin, payload in cursor.stream(
                fetch, {**bound, "threshold_bytes": table.config.threshold_bytes}
            ):
                yield ClaimedRow(keys[position - 1], xmin, payload)

    def _write_checkpoint(self, connection: Connection, key: Key | None, *, is_complete: bool) -> None:
        connection.execute(
            statement("offload/unseen", "write_checkpoint", self.partition.table.names()),
            {
                **self.partition.parameters(),
                "checkpoint": list(key) if key else None,
                "is_complete": is_complete,
            },
        )


def read_checkpoint(connection: Connection, partition: Partition) -> tuple[Key | None, bool]:
    """Where a resumed scan goes on (None: at the first row), and whether an earlier one has reached the end."""
    found = connection.execute(
        statement("offload/unseen", "read_checkpoint", partition.table.names()), partition.parameters()
    ).fetchone()
    if found is None:
        return None, False
    checkpoint, backfilled_at = found
    return tuple(checkpoint) if checkpoint else None, backfilled_at is not None
