"""Expiry: payloads in storage past `object_retention` are given up, their objects listed. Counts unless told to."""

import contextlib
from dataclasses import dataclass
from datetime import timedelta

from psycopg import Connection

from offload_pipeline.database.connection import Database, database_failures, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import UserError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.retention.giving_up import GivenUp, RowVersion, give_up

# One transaction: short, and as many rows as a copier's batch has.
PAGE_ROWS = 400


@dataclass(frozen=True)
class ExpiryOptions:
    """Whether rows are expired or only counted, and after how many failures a row is left alone."""

    delete: bool
    max_attempts: int


@dataclass
class ExpiryResult:
    """One pass over a partition: rows and payload bytes past their retention, and what was done about them.

    `rows_left` were locked or changed meanwhile and wait for the next pass; `rows_failed` are recorded.
    """

    rows_due: int = 0
    payload_bytes_due: int = 0
    rows_expired: int = 0
    payload_bytes: int = 0
    rows_left: int = 0
    rows_failed: int = 0


def require_expirable(table: Table) -> timedelta | None:
    """The table's retention; None where it has none. UserError where an expired row could hold nothing."""
    config = table.config
    if config.object_retention is not None and config.after_copy == "clear" and table.columns[config.payload].not_null:
        raise UserError(
            f"{table.name}: {config.payload} is NOT NULL, so an expired payload cannot be cleared; "
            f"ALTER COLUMN {config.payload} DROP NOT NULL, or set after_copy: reference"
        )
    return config.object_retention


def expire_partition(
    database: Database, partition: Partition, options: ExpiryOptions, run_id: str, progress: Progress = no_progress
) -> ExpiryResult:
    """Counts the rows past their retention, and with `delete` gives their payloads up, a page a transaction.

    Never waits for a row that the application holds. Raises UserError as `require_expirable`, TransientError when the
    database fails; every page already committed stays expired.
    """
    result = ExpiryResult()
    retention = require_expirable(partition.table)
    if retention is None:
        return result
    with database_failures(partition), contextlib.closing(database.connect()) as connection:
        _Expirer(connection, partition, retention, options, run_id, result).work(progress)
    return result


class _Expirer:
    def __init__(
        self, connection: Connection, partition: Partition, retention: timedelta, options: ExpiryOptions,
        run_id: str, result: ExpiryResult,
    ) -> None:  # fmt: skip
        self._connection, self._partition, self._retention = connection, partition, retention
        self._options, self._run_id, self._result = options, run_id, result

    def work(self, progress: Progress) -> None:
        self._count()
        if not self._options.delete:
            return
        cursor: tuple[str, Key] | None = None
        while rows := self._page(cursor):
            table = self._partition.table
            versions = [RowVersion(table.key_in(row), row[-1]) for row in rows]
            done = give_up(self._connection, self._partition, versions, "give_up", "expire", self._run_id)
            self._add(done)
            progress(len(rows), done.payload_bytes)
            cursor = (table.after_key(rows[-1])[0], table.key_in(rows[-1]))

    def _count(self) -> None:
        with transaction(self._connection):
            found = self._connection.execute(
                statement("retention/expiry", "count_expirable", self._partition.table.names()), self._parameters()
            ).fetchone()
        assert found is not None  # noqa: S101 - an aggregate returns one row
        self._result.rows_due, self._result.payload_bytes_due = found

    def _page(self, cursor: tuple[str, Key] | None) -> list[tuple[str, ...]]:
        table = self._partition.table
        key = cursor[1] if cursor else None
        with transaction(self._connection):
            return self._connection.execute(
                statement("retention/expiry", "expirable", table.names(key)),
                {
                    **self._parameters(),
                    **table.cursor_parameters(key),
                    "after_stored_at": cursor[0] if cursor else None,
                    "max_attempts": self._options.max_attempts,
                    "page_rows": PAGE_ROWS,
                },
            ).fetchall()

    def _parameters(self) -> dict[str, object]:
        return {**self._partition.parameters(), "object_retention": self._retention}

    def _add(self, done: GivenUp) -> None:
        self._result.rows_expired += done.rows
        self._result.payload_bytes += done.payload_bytes
        self._result.rows_left += done.left
        self._result.rows_failed += done.failed
