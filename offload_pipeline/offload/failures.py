"""Failures per row: recorded, counted, waited out, resolved when the row succeeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg import Connection

from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, bookkeeping_names
from offload_pipeline.errors import PermanentError
from offload_pipeline.offload.claims import Partition

Stage = Literal["copy", "verify", "release"]
MESSAGE_CHARACTERS = 1000


@dataclass(frozen=True)
class Failure:
    """One row that did not succeed at one stage."""

    key: Key
    row_version: str | None
    error: Exception


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
                "permanent": isinstance(failure.error, PermanentError),
                "row_version": failure.row_version,
            },
        )


def resolve_failures(connection: Connection, partition: Partition, stage: Stage, keys: Sequence[Key]) -> None:
    """Closes what these rows had open at this stage."""
    if keys:
        texts = [partition.table.key_text(key) for key in keys]
        connection.execute(
            statement("offload/failures", "resolve_failures", partition.table.names()),
            {**partition.parameters(), "stage": stage, "primary_keys": texts},
        )


def open_failures(connection: Connection, schema: str, max_attempts: int, limit: int = 100) -> list[OpenFailure]:
    """The newest unresolved failures of all tables."""
    rows = connection.execute(
        statement("offload/failures", "open_failures", bookkeeping_names(schema)),
        {"max_attempts": max_attempts, "limit": limit},
    )
    return [OpenFailure(*row) for row in rows]
