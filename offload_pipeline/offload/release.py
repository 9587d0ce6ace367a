"""Release: frees payloads that verification has passed, by PostgreSQL's own hash, in the statement that frees them."""

import contextlib
from dataclasses import dataclass, field
from datetime import datetime

import psycopg
from psycopg import Connection, sql

from offload_pipeline.database.back_pressure import BackPressure
from offload_pipeline.database.connection import Database, database_failures, is_about_the_rows, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import GUARD_TRIGGER, Key, Table
from offload_pipeline.errors import ObjectDamagedError, ReleaseUndoneError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.copier import Progress, no_progress
from offload_pipeline.offload.failures import Failure, record_failures, resolve_failures
from offload_pipeline.offload.requeue import requeue

# PostgreSQL prints and hashes a page before it locks a row of it; the locks last for the update alone.
PAGE_ROWS = 200
PAGE_BYTES = 4 * 1024 * 1024


@dataclass
class ReleaseResult:
    """What one pass freed. `rows_left` were locked or changed; `rows_failed` are recorded, and were not freed."""

    rows_released: int = 0
    payload_bytes: int = 0
    rows_left: int = 0
    rows_failed: int = 0


@dataclass(frozen=True)
class _Page:
    last: tuple[datetime, Key]
    released: list[Key] = field(default_factory=list)
    released_bytes: int = 0
    mismatched: list[Key] = field(default_factory=list)
    left: int = 0


@dataclass(frozen=True)
class ReleaseOptions:
    """The store that was verified, after how many failures a row is left alone, and the one row, if only one."""

    store_url: str
    max_attempts: int
    key: Key | None = None


def release_partition(
    database: Database, partition: Partition, options: ReleaseOptions, run_id: str,
    progress: Progress = no_progress, pressure: BackPressure | None = None,
) -> ReleaseResult:  # fmt: skip
    """Frees what `verified_through` covers; nothing for a table with `after_copy: keep`.

    No page is begun while there is `pressure`. Raises TransientError when the database fails; every page already
    committed stays freed and was sound.
    """
    result = ReleaseResult()
    if partition.table.config.after_copy == "keep":
        return result
    with database_failures(partition), contextlib.closing(database.connect()) as connection:
        _Releaser(connection, partition, options, run_id, progress, pressure, result).work()
    return result


class _Releaser:
    def __init__(
        self, connection: Connection, partition: Partition, options: ReleaseOptions, run_id: str,
        progress: Progress, pressure: BackPressure | None, result: ReleaseResult,
    ) -> None:  # fmt: skip
        self._connection, self._partition, self._run_id = connection, partition, run_id
        self._progress, self._pressure, self._result = progress, pressure, result
        self._options = options
        self._placeholder = placeholder(partition.table, options.store_url)

    def work(self) -> None:
        cursor: tuple[datetime, Key] | None = None
        while True:
            if self._pressure is not None:
                self._pressure.wait(self._connection)
            try:
                page = self._release_page(cursor, PAGE_ROWS)
                cursor = page.last if page else None
            except (psycopg.Error, ReleaseUndoneError) as error:
                if isinstance(error, psycopg.Error) and not is_about_the_rows(error, self._connection):
                    raise
                cursor = self._release_one_by_one(cursor)
            if cursor is None:
                return

    def _release_page(self, cursor: tuple[datetime, Key] | None, page_rows: int) -> _Page | None:
        with transaction(self._connection):
            page = self._free(cursor, page_rows)
            if page and page.released:
                self._confirm(page)
                self._account(page)
        if page is None:
            return None
        if page.mismatched:
            self._requeue(page.mismatched)
        self._result.rows_released += len(page.released)
        self._result.payload_bytes += page.released_bytes
        self._result.rows_left += page.left
        self._progress(len(page.released), page.released_bytes)
        return page

    def _free(self, cursor: tuple[datetime, Key] | None, page_rows: int) -> _Page | None:
        table = self._partition.table
        names = self._names(cursor) | {"placeholder": self._placeholder}
        rows = self._connection.execute(
            statement("offload/release", "release", names), self._parameters(cursor, page_rows)
        ).fetchall()
        if not rows:
            return None
        last_stored_at = table.after_key(rows[-1])[0]
        return _Page(
            last=(last_stored_at, table.key_in(rows[-1])),
            released=[table.key_in(row) for row in rows if row[-1]],
            released_bytes=sum(table.after_key(row)[1] or 0 for row in rows if row[-1]),
            mismatched=[table.key_in(row) for row in rows if not row[-2]],
            left=sum(1 for row in rows if row[-2] and not row[-1]),
        )

    def _confirm(self, page: _Page) -> None:
        """Before the commit: triggers may have rewritten the rows, or be older than the configuration."""
        table = self._partition.table
        undone = self._connection.execute(
            statement("offload/release", "not_freed", table.names() | {"placeholder": self._placeholder}),
            table.key_parameters(page.released),
        ).fetchall()
        if undone:
            raise ReleaseUndoneError(
                "a trigger of the table changed the row as it was released; "
                "run offload install, and let the table's own triggers leave released rows alone"
            )

    def _names(self, cursor: tuple[datetime, Key] | None) -> dict[str, sql.Composable]:
        table = self._partition.table
        names = table.names(cursor[1] if cursor else None)
        names |= {"is_chosen": table.is_key(self._options.key), "is_watched": _is_watched(table)}
        return names | {"is_releasable": statement("offload/release", "is_releasable", names)}

    def _parameters(self, cursor: tuple[datetime, Key] | None, page_rows: int) -> dict[str, object]:
        table = self._partition.table
        return {
            **self._partition.parameters(),
            **table.cursor_parameters(cursor[1] if cursor else None),
            **table.chosen_parameters(self._options.key),
            "store_url": self._options.store_url,
            "max_attempts": self._options.max_attempts,
            "after_stored_at": cursor[0] if cursor else None,
            "release_delay": table.config.release_delay,
            "page_rows": page_rows,
            "page_bytes": PAGE_BYTES,
        }

    def _account(self, page: _Page) -> None:
        names = self._partition.table.names()
        counted = {**self._partition.parameters(), "rows": len(page.released), "bytes": page.released_bytes}
        self._connection.execute(statement("offload/release", "count_released", names), counted)
        self._connection.execute(
            statement("offload/record", "log_action", names), {**counted, "run_id": self._run_id, "action": "release"}
        )
        resolve_failures(self._connection, self._partition, ("release",), page.released)

    def _release_one_by_one(self, cursor: tuple[datetime, Key] | None) -> tuple[datetime, Key] | None:
        """A page that the table refuses as a whole (a trigger, a check), row by row; returns where it ended."""
        table = self._partition.table
        with transaction(self._connection):
            rows = self._connection.execute(
                statement("offload/release", "next_releasable", self._names(cursor)),
                self._parameters(cursor, PAGE_ROWS),
            ).fetchall()
        for row in rows:
            key = table.key_in(row)
            try:
                self._release_page(cursor, 1)
            except (psycopg.Error, ReleaseUndoneError) as error:
                if isinstance(error, psycopg.Error) and not is_about_the_rows(error, self._connection):
                    raise
                self._fail(key, row[-1], error)
            cursor = (table.after_key(row)[0], key)
        return cursor if rows else None

    def _fail(self, key: Key, row_version: str, error: Exception) -> None:
        with transaction(self._connection):
            record_failures(self._connection, self._partition, "release", [Failure(key, row_version, error)])
        self._result.rows_failed += 1

    def _requeue(self, keys: list[Key]) -> None:
        """Payloads that no longer are what was stored, written past the trigger: stored anew, never freed."""
        table = self._partition.table
        with transaction(self._connection):
            rows = self._connection.execute(
                statement("offload/release", "mismatched", table.names()), table.key_parameters(keys)
            ).fetchall()
            if not rows:
                return
            named = {table.key_in(row): table.after_key(row)[0] for row in rows}
            requeue(self._connection, self._partition, named)
            error = ObjectDamagedError("payload and pointer disagree: one was written past the trigger; queued again")
            failures = [Failure(table.key_in(row), row[-1], error, is_queued_again=True) for row in rows]
            record_failures(self._connection, self._partition, "release", failures)
        self._result.rows_failed += len(rows)


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
