"""Claiming: pages of rows, each held by an advisory lock for as long as its batch's transaction lives."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg
from psycopg import Connection

from offload_pipeline.database.connection import Database, is_about_the_rows
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import StoreChangedError


@dataclass(frozen=True)
class Partition:
    """The rows of one tenant in one table: the unit of work, of checkpoints and of Dagster partitions."""

    table: Table
    tenant: str

    def parameters(self) -> dict[str, str]:
        """What every statement binds."""
        return {"table": self.table.name, "tenant": self.tenant}

    def __str__(self) -> str:
        return f"{self.table.name}, tenant {self.tenant!r}"


def require_same_store(partition: Partition, known: str | None, configured: str) -> None:
    """StoreChangedError where the partition's objects are in another store than the configured one."""
    if known not in (None, configured):
        raise StoreChangedError(
            f"{partition}: its objects are in {known}, object_store.url is {configured}; correct the URL, or, "
            f"once every object is there too, set store_url in {partition.table.schema}.payload_offload_state"
        )


@dataclass(frozen=True)
class ClaimedRow:
    """A row as it was read after the claim: its key, its version (`xmin`), and the canonical bytes."""

    key: Key
    xmin: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True)
class Piece:
    """Claimed rows as they were read, and those that could not even be read (key, xmin, why)."""

    rows: list[ClaimedRow]
    unreadable: list[tuple[Key, str | None, Exception]] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """What one transaction claimed, in pieces that are read as they are asked for, inside that transaction.

    `rows_passed` counts what the queue or scan went through for it, small rows and those of other workers included.
    """

    pieces: Iterator[Piece]
    rows_passed: int


@dataclass(frozen=True)
class BatchLimits:
    """A batch ends at `rows`, or with the row that passes `payload_bytes`, whichever comes first.

    Of rows that the trigger has never seen only the stored size is known, and it is that of compressed payloads; such a
    batch is read in pieces, each of which ends with the row that passes `payload_bytes`.

    Each row costs an entry in the server's one shared lock table, so `rows` stays in the hundreds.
    """

    rows: int
    payload_bytes: int


class Batches(ABC):
    """Claimed batches of one partition, once through, in primary-key order; safe to share between threads.

    Rows that another worker holds are passed over. Rows are read in a second statement, whose snapshot is younger
    than the claims: what another worker finished just before is seen as finished.
    """

    def __init__(self, database: Database, partition: Partition, limits: BatchLimits, max_attempts: int) -> None:
        self.database, self.partition, self.limits = database, partition, limits
        self.max_attempts = max_attempts
        self._cursor: Key | None = None
        self._ended = False
        self._turn = threading.Lock()

    @abstractmethod
    def claim(self, connection: Connection) -> Batch | None:
        """Claims the next batch inside the caller's transaction, in which its rows are read; None at the end."""

    def finish(self, connection: Connection, batch: Batch, not_copied: list[Key]) -> dict[Key, str]:  # noqa: ARG002
        """Called when the batch's transaction has committed. Returns the new versions of rows that this changes."""
        return {}

    def _page_parameters(self) -> dict[str, object]:
        table = self.partition.table
        return {
            **self.partition.parameters(),
            **table.cursor_parameters(self._cursor),
            "batch_rows": self.limits.rows,
            "batch_bytes": self.limits.payload_bytes,
            "max_attempts": self.max_attempts,
            "lock_space": table.lock_space,
        }

    def _read_one_by_one(self, connection: Connection, keys: list[Key]) -> Piece:
        piece = Piece([])
        for key in keys:
            try:
                with connection.transaction():
                    piece.rows.extend(self._fetch(connection, [key]))
            except psycopg.Error as error:
                if not is_about_the_rows(error, connection):
                    raise
                piece.unreadable.append((key, self._version(connection, key), error))
        return piece

    def _version(self, connection: Connection, key: Key) -> str | None:
        table = self.partition.table
        found = connection.execute(
            statement("offload/claim", "row_version", table.names()), table.key_parameters([key])
        ).fetchone()
        return found[0] if found else None

    def _fetch(self, connection: Connection, keys: list[Key]) -> list[ClaimedRow]:
        if not keys:
            return []
        table = self.partition.table
        with connection.cursor(binary=True) as cursor:
            cursor.execute(
                statement("offload/claim", "fetch_claimed", table.names()),
                {**self.partition.parameters(), **table.key_parameters(keys)},
            )
            return [ClaimedRow(keys[position - 1], xmin, payload) for position, xmin, payload in cursor]


class PendingBatches(Batches):
    """The pending queue of one partition."""

    def claim(self, connection: Connection) -> Batch | None:
        """As `Batches.claim`."""
        with self._turn:
            page = self._next_page(connection)
        if page is None:
            return None
        keys, rows_passed = page
        return Batch(iter([self._read(connection, keys)]), rows_passed)

    def _read(self, connection: Connection, keys: list[Key]) -> Piece:
        """Reads claimed rows; where one of them cannot be read, one by one."""
        try:
            with connection.transaction():
                return Piece(self._fetch(connection, keys))
        except psycopg.Error as error:
            if not is_about_the_rows(error, connection):
                raise
            return self._read_one_by_one(connection, keys)

    def _next_page(self, connection: Connection) -> tuple[list[Key], int] | None:
        """The claimed keys of a page, and how many rows it went through."""
        if self._ended:
            return None
        table = self.partition.table
        page = connection.execute(
            statement("offload/claim", "claim_pending", table.names(self._cursor)), self._page_parameters()
        ).fetchall()
        if not page:
            self._ended = True
            return None
        self._cursor = table.key_in(page[-1])
        return [table.key_in(row) for row in page if row[-1]], len(page)
