"""The rows of a partition that name an object, page by page, in the orders a verification pass goes through them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection, sql

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.failures import open_keys
from offload_pipeline.offload.stored import PAGE_ROWS, NamedObject, named_objects

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Position:
    """A row's place in the order of `stored_at` (PostgreSQL's own text of it, to the microsecond), then the key."""

    stored_at: datetime | str
    key: Key

    @classmethod
    def of_checkpoint(cls, checkpoint: Sequence[str] | None, key_columns: int) -> "Position | None":
        """What `as_checkpoint` wrote; None for no checkpoint, or one from when the table had another key."""
        if checkpoint is None or len(checkpoint) != key_columns + 1:
            return None
        return cls(checkpoint[0], tuple(checkpoint[1:]))

    def as_checkpoint(self) -> list[str]:
        """As `full_checkpoint` keeps it."""
        return [str(self.stored_at), *self.key]


class Copies:
    """What a pass with this mark reads of its partition. Each page is a short transaction of its own."""

    def __init__(
        self, connection: Connection, partition: Partition, mark: datetime, verified_through: datetime | None
    ) -> None:
        self._connection, self._partition = connection, partition
        self._mark, self._verified_through = mark, verified_through

    def new(self, through: datetime | str | None = None) -> Iterator[list[NamedObject]]:
        """Copied since the last pass, up to the mark or to an earlier moment."""
        table = self._partition.table
        bound = {"mark": through or self._mark, "verified_through": self._verified_through}
        for rows in self._pages("verification/verify", "new_copies", self._by_stored_at, bound):
            yield named_objects(table, rows)

    def suspected(self) -> Iterator[list[NamedObject]]:
        """What an earlier pass found damaged, or got no answer about, and the row still names."""
        table = self._partition.table
        for keys in open_keys(self._connection, self._partition, "verify"):
            with transaction(self._connection):
                rows = self._connection.execute(
                    statement("verification/verify", "copies_of", table.names()),
                    {**self._partition.parameters(), **table.key_parameters(keys)},
                ).fetchall()
            if rows:
                yield named_objects(table, rows)

    def earlier_sample(self, rows: int) -> list[NamedObject]:
        """Rows of earlier passes, at most so many released ones and so many whose payload is still in the row."""
        found = self._sample_of("in_storage", "infinity", rows)
        if self._verified_through is None:
            return found
        return found + self._sample_of("copied", self._verified_through, rows)

    def out_of_order(self) -> Iterator[list[NamedObject]]:
        """Rows that `in_order` never comes to, because their stored_at was edited by hand."""
        bound = {"mark": self._mark}
        for rows in self._pages("verification/full", "copies_out_of_order", self._by_key, bound):
            yield named_objects(self._partition.table, rows)

    def in_order(self, after: Position | None) -> Iterator[tuple[list[NamedObject], Position]]:
        """Every copy behind `after` up to the mark, in the order of stored_at; with each page its last position."""
        bound = {"mark": self._mark}
        for rows in self._pages("verification/full", "copies_in_order", self._by_position, bound, after):
            yield named_objects(self._partition.table, [row[:-1] for row in rows]), self._by_position(rows[-1])

    def _by_stored_at(self, row: Row) -> Position:
        table = self._partition.table
        return Position(table.after_key(row)[0], table.key_in(row))

    def _by_key(self, row: Row) -> Position:
        return Position("-infinity", self._partition.table.key_in(row))

    def _by_position(self, row: Row) -> Position:
        return Position(row[-1], self._partition.table.key_in(row))

    def _pages(
        self, file: str, name: str, position_of: Callable[[Row], Position], bound: dict[str, Any],
        after: Position | None = None,
    ) -> Iterator[list[Row]]:  # fmt: skip
        while rows := self._page(file, name, bound, after):
            yield rows
            after = position_of(rows[-1])

    def _page(self, file: str, name: str, bound: dict[str, Any], after: Position | None) -> list[Row]:
        table = self._partition.table
        key = after.key if after else None
        with transaction(self._connection):
            return self._connection.execute(
                statement(file, name, table.names(key)),
                {
                    **self._partition.parameters(),
                    **table.cursor_parameters(key),
                    "after_stored_at": after.stored_at if after else None,
                    "page_rows": PAGE_ROWS,
                    **bound,
                },
            ).fetchall()

    def _sample_of(self, status: str, through: datetime | str, rows: int) -> list[NamedObject]:
        if not rows:
            return []
        table = self._partition.table
        names = table.names() | {"sampled_status": sql.Literal(status)}
        bound = {"sampled_through": through, "page_rows": rows}
        with transaction(self._connection):
            found = self._connection.execute(
                statement("verification/verify", "earlier_copies", names), {**self._partition.parameters(), **bound}
            ).fetchall()
        return named_objects(table, found)
