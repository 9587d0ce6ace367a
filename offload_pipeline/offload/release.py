"""Release: frees payloads that verification has passed, by PostgreSQL's own hash, in the statement that frees them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import Connection, sql

from offload_pipeline.database.back_pressure import BackPressure
from offload_pipeline.database.connection import Database, is_about_the_rows, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import GUARD_TRIGGER, Key, Table
from offload_pipeline.errors import ObjectDamagedError, ReleaseUndoneError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.failures import Failure, record_failures, resolve_failures
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.offload.requeue import requeue
from offload_pipeline.offload.workers import Workers

# PostgreSQL prints and hashes a page before it locks a row of it; the locks last from the update to the commit, and
# whoever waits for them waits for the update of so many rows at most.
PAGE_ROWS = 200
PAGE_BYTES = 4 * 1024 * 1024


@dataclass
class ReleaseResult:
    """What one pass freed. `rows_left` were locked or changed; `rows_failed` are recorded, and were not freed."""

    rows_released: int = 0
    payload_bytes: int = 0
    rows_left: int = 0
    rows_failed: int = 0


Position = tuple[str, Key]
"""A row's place in the order in which copies are released: PostgreSQL's own text of its `stored_at`, then the key."""


@dataclass(frozen=True)
class _Page:
    """Copies behind one position, up to and with another."""

    after: Position | None
    through: Position


@dataclass(frozen=True)
class _Freed:
    released: list[Key] = field(default_factory=list)
    released_bytes: int = 0
    mismatched: list[Key] = field(default_factory=list)
    left: int = 0


@dataclass(frozen=True)
class ReleaseOptions:
    """The store that was verified, after how many failures a row is left alone, how many pages are released at once,
    and the one row, if only one."""

    store_url: str
    max_attempts: int
    batches_in_flight: int
    key: Key | None = None


def release_partition(
    database: Database, partition: Partition, options: ReleaseOptions, run_id: str,
    progress: Progress = no_progress, pressure: BackPressure | None = None,
) -> ReleaseResult:  # fmt: skip
    """Frees what `verified_through` covers; nothing for a table with `after_copy: keep`.

    Several pages are in flight, each a short transaction: PostgreSQL prints and hashes them, on one core each. None is
    begun while there is `pressure`. Raises TransientError when the database fails; every page already committed stays
    freed and was sound.
    """
    result = ReleaseResult()
    if partition.table.config.after_copy != "keep":
        workers = Workers(database, partition, pressure)
        releaser = _Releaser(partition, options, run_id, progress, result)
        workers.run(releaser.release_next, 1 if options.key else options.batches_in_flight)
    return result


class _Releaser:
    """What the workers of one pass share."""

    def __init__(
        self, partition: Partition, options: ReleaseOptions, run_id: str, progress: Progress, result: ReleaseResult
    ) -> None:
        self._partition, self._options, self._run_id = partition, options, run_id
        self._progress, self._result = progress, result
        self._placeholder = placeholder(partition.table, options.store_url)
        self._last: Position | None = None
        self._turn, self._lock = threading.Lock(), threading.Lock()

    def release_next(self, connection: Connection) -> bool:
        """One page; False at the end."""
        with self._turn:
            page = self._next_page(connection)
        if page is None:
            return False
        try:
            self._release(connection, page)
        except (psycopg.Error, ReleaseUndoneError) as error:
            if not _is_refused(error, connection):
                raise
            self._release_one_by_one(connection, page)
        return True

    def _next_page(self, connection: Connection) -> _Page | None:
        with transaction(connection):
            found = connection.execute(
                statement("offload/release", "next_page", self._names(self._last)), self._parameters(self._last)
            ).fetchone()
        if found is None:
            return None
        page = _Page(self._last, self._position(found))
        self._last = page.through
        return page

    def _release(self, connection: Connection, page: _Page) -> None:
        with transaction(connection):
            freed = self._free(connection, page)
            if freed.released:
                self._confirm(connection, freed)
                self._account(connection, freed)
        with self._lock:
            self._result.rows_released += len(freed.released)
            self._result.payload_bytes += freed.released_bytes
            self._result.rows_left += freed.left
        self._progress(len(freed.released), freed.released_bytes)
        if freed.mismatched:
            self._requeue(connection, freed.mismatched)

    def _free(self, connection: Connection, page: _Page) -> _Freed:
        table = self._partition.table
        rows = connection.execute(
            statement("offload/release", "release", self._names(page.after) | {"placeholder": self._placeholder}),
            self._parameters(page.after, page.through),
        ).fetchall()
        return _Freed(
            released=[table.key_in(row) for row in rows if row[-1]],
            released_bytes=sum(table.after_key(row)[0] or 0 for row in rows if row[-1]),
            mismatched=[table.key_in(row) for row in rows if not row[-2]],
            left=sum(1 for row in rows if row[-2] and not row[-1]),
        )

    def _confirm(self, connection: Connection, freed: _Freed) -> None:
        """Before the commit: triggers may have rewritten the rows, or be older than the configuration; and a
        verification may have found them damaged since the statement began."""
        table = self._partition.table
        undone = connection.execute(
            statement(
                "offload/release", "not_freed",
                table.names() | {"placeholder": self._placeholder, "is_known_damaged": _is_known_damaged(table)},
            ),
            {**self._partition.parameters(), **table.key_parameters(freed.released)},
        ).fetchall()  # fmt: skip
        if undone:
            raise ReleaseUndoneError(
                "a trigger of the table changed the row as it was released, or it was found damaged then; "
                "run offload install, and let the table's own triggers leave released rows alone"
            )

    def _position(self, row: Sequence[Any]) -> Position:
        table = self._partition.table
        return table.after_key(row)[0], table.key_in(row)

    def _names(self, after: Position | None) -> dict[str, sql.Composable]:
        table = self._partition.table
        names = table.names(after[1] if after else None)
        names |= {"is_chosen": table.is_key(self._options.key), "is_watched": _is_watched(table)}
        names |= {"is_known_damaged": _is_known_damaged(table)}
        return names | {
            "is_releasable": statement("offload/release", "is_releasable", names),
            "is_in_page": table.through_position(),
        }

    def _parameters(self, after: Position | None, through: Position | None = None) -> dict[str, object]:
        table = self._partition.table
        bound: dict[str, object] = {
            **self._partition.parameters(),
            **table.cursor_parameters(after[1] if after else None),
            **table.chosen_parameters(self._options.key),
            "store_url": self._options.store_url,
            "max_attempts": self._options.max_attempts,
            "after_stored_at": after[0] if after else None,
            "release_delay": table.config.release_delay,
            "page_rows": PAGE_ROWS,
            "page_bytes": PAGE_BYTES,
        }
        if through is not None:
            bound |= {"through_stored_at": through[0], **table.through_parameters(through[1])}
        return bound

    def _account(self, connection: Connection, freed: _Freed) -> None:
        names = self._partition.table.names()
        counted = {**self._partition.parameters(), "rows": len(freed.released), "bytes": freed.released_bytes}
        connection.execute(statement("offload/release", "count_released", names), counted)
        connection.execute(
            statement("offload/record", "log_action", names), {**counted, "run_id": self._run_id, "action": "release"}
        )
        resolve_failures(connection, self._partition, ("release",), freed.released)

    def _release_one_by_one(self, connection: Connection, page: _Page) -> None:
        """A page that the table refuses as a whole (a trigger, a check)."""
        table = self._partition.table
        with transaction(connection):
            rows = connection.execute(
                statement("offload/release", "next_releasable", self._names(page.after)),
                self._parameters(page.after, page.through),
            ).fetchall()
        after = page.after
        for row in rows:
            position = self._position(row)
            try:
                self._release(connection, _Page(after, position))
            except (psycopg.Error, ReleaseUndoneError) as error:
                if not _is_refused(error, connection):
                    raise
                self._fail(connection, table.key_in(row), row[-1], error)
            after = position

    def _fail(self, connection: Connection, key: Key, row_version: str, error: Exception) -> None:
        with transaction(connection):
            record_failures(connection, self._partition, "release", [Failure(key, row_version, error)])
        self._count_failed(1)

    def _count_failed(self, rows: int) -> None:
        with self._lock:
            self._result.rows_failed += rows

    def _requeue(self, connection: Connection, keys: list[Key]) -> None:
        """Payloads that no longer are what was stored, written past the trigger: stored anew, never freed."""
        table = self._partition.table
        with transaction(connection):
            rows = connection.execute(
                statement("offload/release", "mismatched", table.names()), table.key_parameters(keys)
            ).fetchall()
            if not rows:
                return
            named = {table.key_in(row): table.after_key(row)[0] for row in rows}
            requeue(connection, self._partition, named)
            error = ObjectDamagedError("payload and pointer disagree: one was written past the trigger; queued again")
            failures = [Failure(table.key_in(row), row[-1], error, is_queued_again=True) for row in rows]
            record_failures(connection, self._partition, "release", failures)
        self._count_failed(len(rows))


def _is_refused(error: Exception, connection: Connection) -> bool:
    """Whether the table refused the rows, and not the server the statement."""
    return not isinstance(error, psycopg.Error) or is_about_the_rows(error, connection)


def _is_known_damaged(table: Table) -> sql.Composable:
    return statement("offload/release", "is_known_damaged", table.names())


def _is_watched(table: Table) -> sql.Composable:
    relation = sql.Literal(table.names()["relation"].as_string(None))
    return statement(
        "offload/release", "is_watched", {"relation_name": relation, "guard_trigger": sql.Literal(GUARD_TRIGGER)}
    )


def placeholder(table: Table, store_url: str) -> sql.Composable:
    """What is left in the row: NULL, or the storage reference in the payload's own type."""
    if table.config.after_copy != "reference":
        return sql.SQL("NULL")
    names = table.names() | {"store_url": sql.Literal(store_url.rstrip("/") + "/")}
    return sql.SQL("({})::text::{}").format(statement("install/table", "reference", names), names["payload_type"])
