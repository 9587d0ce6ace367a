"""Reading a sample of a table: a few hundred pages judged by stored sizes, and of their rows some payloads whole.

Pages are named by number and rows by place, so that no plan can turn into a full scan. Nothing is written but a
temporary table, in a transaction that the caller rolls back.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import Connection, sql

from offload_pipeline.database.connection import is_about_the_rows
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.install.installer import TEXT_PER_STORED_BYTE
from offload_pipeline.offload.estimate import PageChoice

Place = tuple[int, str]
"""A row: the position of its leaf, and its ctid."""


@dataclass(frozen=True)
class Leaf:
    """A relation that holds rows of the table: the table itself, a partition or a child."""

    schema: str
    name: str
    is_foreign: bool
    pages: int
    rows_in_statistics: int | None
    heap_bytes: int
    toast_bytes: int
    index_bytes: int

    def names(self, table: Table) -> dict[str, sql.Composable]:
        """What the statements of `offload/plan` may name."""
        status = sql.SQL("t.{}::text").format(sql.Identifier(table.config.columns.status))
        return table.names() | {
            "leaf": sql.Identifier(self.schema, self.name),
            "state": status if table.is_installed else sql.SQL("NULL::text"),
        }


@dataclass(frozen=True)
class SampledRows:
    """The rows on the chosen pages, one array entry each. `pages` are positions among the chosen."""

    places: list[Place]
    pages: NDArray[np.int64]
    stored_bytes: NDArray[np.float64]
    states: NDArray[np.str_]
    has_tenant: NDArray[np.bool_]
    has_payload: NDArray[np.bool_]
    is_compressed: NDArray[np.bool_]

    def may_move(self, table: Table) -> NDArray[np.bool_]:
        """Rows that a backfill or drain would look at, without those whose stored size shows that they are small."""
        limit = table.config.threshold_bytes // TEXT_PER_STORED_BYTE[table.payload_type]
        is_small = (self.stored_bytes <= limit) & ~self.is_compressed & (table.config.threshold_bytes > 0)
        is_unseen = (self.states == "never_seen") & ~is_small
        is_pending = self.states == "pending_move"
        moves: NDArray[np.bool_] = self.has_payload & self.has_tenant & (is_unseen | is_pending)
        return moves


@dataclass(frozen=True)
class SampledPayload:
    """One payload, canonical."""

    place: Place
    key: Key
    tenant: str
    payload: bytes


def leaves(connection: Connection, table: Table) -> list[Leaf]:
    """Where the table's rows are."""
    relation = table.names()["relation"].as_string(connection)
    return [Leaf(*row) for row in connection.execute(statement("offload/plan", "leaves"), {"relation": relation})]


def read_rows(connection: Connection, table: Table, found: Sequence[Leaf], choice: PageChoice) -> SampledRows:
    """Every row that this snapshot sees on the chosen pages; the leaves' pages are numbered through."""
    rows: list[tuple[int, int, str, int | None, bool, str | None, bool]] = []
    first_page = 0
    for position, leaf in enumerate(found):
        start, end = np.searchsorted(choice.pages, [first_page, first_page + leaf.pages])
        pages = (choice.pages[start:end] - first_page).tolist()
        first_page += leaf.pages
        if pages:
            query = statement("offload/plan", "rows_of_pages", leaf.names(table))
            rows += [
                (position, int(start) + page, *rest) for page, *rest in connection.execute(query, {"pages": pages})
            ]
    return SampledRows(
        places=[(row[0], row[2]) for row in rows],
        pages=np.array([row[1] for row in rows], dtype=np.int64),
        stored_bytes=np.array([row[3] or 0 for row in rows], dtype=np.float64),
        states=np.array([row[5] or "never_seen" for row in rows], dtype=np.str_),
        has_tenant=np.array([row[6] for row in rows], dtype=np.bool_),
        has_payload=np.array([row[3] is not None for row in rows], dtype=np.bool_),
        is_compressed=np.array([row[4] for row in rows], dtype=np.bool_),
    )


def read_payloads(
    connection: Connection, table: Table, found: Sequence[Leaf], places: Sequence[Place]
) -> Iterator[SampledPayload]:
    """The payloads at these places, one in memory at a time; what cannot be read is left out."""
    for position, tids in _by_leaf(places).items():
        names = found[position].names(table)
        read: set[str] = set()
        try:
            with connection.transaction():
                for payload in _stream(connection, table, names, position, tids):
                    read.add(payload.place[1])
                    yield payload
        except psycopg.Error as error:
            if not is_about_the_rows(error, connection):
                raise
            for tid in [tid for tid in tids if tid not in read]:
                yield from _readable(connection, table, names, (position, tid))


def lz4_sizes(
    connection: Connection, table: Table, found: Sequence[Leaf], places: Sequence[Place]
) -> dict[Place, int] | str:
    """Bytes of each of these payloads in a column with lz4, by trying it on a temporary table; or why not."""
    (reason,) = connection.execute(statement("offload/plan", "why_no_lz4")).fetchone() or (None,)
    if reason is not None:
        return str(reason)
    connection.execute(statement("offload/plan", "create_lz4_table", table.names()))
    for position, tids in _by_leaf(places).items():
        connection.execute(
            statement("offload/plan", "fill_lz4_table", found[position].names(table)), {"leaf": position, "tids": tids}
        )
    rows = connection.execute(statement("offload/plan", "lz4_sizes")).fetchall()
    return {(leaf, tid): size for leaf, tid, size in rows}


def _by_leaf(places: Sequence[Place]) -> dict[int, list[str]]:
    tids: dict[int, list[str]] = defaultdict(list)
    for position, tid in places:
        tids[position].append(tid)
    return tids


def _stream(
    connection: Connection, table: Table, names: dict[str, sql.Composable], position: int, tids: list[str]
) -> Iterator[SampledPayload]:
    with connection.cursor() as cursor:
        for row in cursor.stream(statement("offload/plan", "payloads", names), {"tids": tids}, binary=True):
            tid, tenant, payload = table.after_key(row)
            yield SampledPayload((position, tid), table.key_in(row), tenant, payload)


def _readable(
    connection: Connection, table: Table, names: dict[str, sql.Composable], place: Place
) -> list[SampledPayload]:
    position, tid = place
    try:
        with connection.transaction():
            return list(_stream(connection, table, names, position, [tid]))
    except psycopg.Error as error:
        if not is_about_the_rows(error, connection):
            raise
        return []
