"""Failures per row: recorded, counted, waited out, resolved when the row succeeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg import Connection

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table, bookkeeping_names
from offload_pipeline.errors import PermanentError, StoreUnavailableError, UserError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.stored import PAGE_ROWS

Stage = Literal["copy", "verify", "release", "restore", "write", "expire"]
MESSAGE_CHARACTERS = 1000


@dataclass(frozen=True)
class Failure:
    """One row that did not succeed at one stage; `is_queued_again`: what mends it is under way, whatever the error."""

    key: Key
    row_version: str | None
    error: Exception
    is_queued_again: bool = False


@dataclass(frozen=True)
class OpenFailure:
    """A line of the failures table that is not resolved."""

    table: str
    tenant: str
    primary_key: str
    stage: str
    error_class: str
    message: str
    attempts: int
    last_failed_at: datetime
    given_up: bool


def record_failures(connection: Connection, partition: Partition, stage: Stage, failures: Sequence[Failure]) -> None:
    """Counts one more attempt for each; the wait before the next doubles."""
    for failure in failures:
        connection.execute(
            statement("offload/failures", "record_failure", partition.table.names()),
            {
                **partition.parameters(),
                "primary_key": partition.table.key_text(failure.key),
                "stage": stage,
                "error_class": type(failure.error).__name__,
                "message": str(failure.error).strip()[:MESSAGE_CHARACTERS],
                "permanent": isinstance(failure.error, PermanentError) and not failure.is_queued_again,
                "row_version": failure.row_version,
                # An outage is not the row's doing: it never uses up the row's attempts.
                "counts": 0 if isinstance(failure.error, StoreUnavailableError) else 1,
            },
        )


def resolve_failures(
    connection: Connection, partition: Partition, stages: tuple[Stage, ...], keys: Sequence[Key]
) -> None:
    """Closes what these rows had open at these stages."""
    if keys:
        texts = [partition.table.key_text(key) for key in keys]
        connection.execute(
            statement("offload/failures", "resolve_failures", partition.table.names()),
            {**partition.parameters(), "stages": list(stages), "primary_keys": texts},
        )


def open_keys(connection: Connection, partition: Partition, stage: Stage) -> Iterator[list[Key]]:
    """Pages of the partition's rows with an open failure at this stage; each is a transaction of its own."""
    after: str | None = None
    while True:
        with transaction(connection):
            rows = connection.execute(
                statement("offload/failures", "open_keys", partition.table.names()),
                {**partition.parameters(), "stage": stage, "after": after, "page_rows": PAGE_ROWS},
            ).fetchall()
        if not rows:
            return
        after = rows[-1][0]
        keys = [parsed_key(partition.table, text) for (text,) in rows]
        yield [key for key in keys if key is not None]


def retry_failed(connection: Connection, table: Table, tenant: str | None) -> int:
    """Makes failed rows, of one tenant or of all, due at once, those given up included. Returns how many."""
    with transaction(connection):
        return connection.execute(
            statement("offload/failures", "retry_failed", table.names()), {"table": table.name, "tenant": tenant}
        ).rowcount


def count_open(connection: Connection, table: Table, max_attempts: int) -> dict[str, tuple[int, int]]:
    """By stage: open failures of the table, and how many of them were given up."""
    with transaction(connection):
        rows = connection.execute(
            statement("offload/failures", "count_open", table.names()),
            {"table": table.name, "max_attempts": max_attempts},
        ).fetchall()
    return {stage: (count, given_up) for stage, count, given_up in rows}


def count_given_up(connection: Connection, table: Table, max_attempts: int) -> dict[str, int]:
    """Rows per tenant that were refused for good or tried too often."""
    with transaction(connection):
        rows = connection.execute(
            statement("offload/failures", "count_given_up", table.names()),
            {"table": table.name, "max_attempts": max_attempts},
        ).fetchall()
    return dict(rows)


def open_failures(
    connection: Connection, schema: str, max_attempts: int, limit: int = 100, tables: Sequence[str] | None = None
) -> list[OpenFailure]:
    """The newest unresolved failures, of these tables or of all."""
    with transaction(connection):
        rows = connection.execute(
            statement("offload/failures", "open_failures", bookkeeping_names(schema)),
            {"max_attempts": max_attempts, "limit": limit, "tables": None if tables is None else list(tables)},
        ).fetchall()
    return [OpenFailure(*row) for row in rows]


def parsed_key(table: Table, primary_key: str) -> Key | None:
    """The key in a line of the table; None for one from when the table had other key columns: no row can have it."""
    try:
        return table.parse_key(primary_key)
    except UserError:
        return None
