"""Rows that name an object: walked in pages, and given their payload back. Nothing here asks the store."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import Connection, sql

from offload_pipeline.database.connection import server_message, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import RestoreUndoneError, RowNotFoundError, UserError
from offload_pipeline.offload.claims import BatchLimits, Partition
from offload_pipeline.offload.failures import Stage, resolve_failures
from offload_pipeline.offload.stored import NamedObject
from offload_pipeline.offload.vacancy import is_vacant

Status = Literal["copied", "in_storage"]
# Copies first: what release frees meanwhile is then met in storage. A moment that was edited away leads no page on.
_WALKS: tuple[tuple[Status, bool], ...] = (
    ("copied", True), ("copied", False), ("in_storage", True), ("in_storage", False),
)  # fmt: skip
# A row that is back has nothing open at any stage behind the copy.
_SETTLED_STAGES: tuple[Stage, ...] = ("restore", "verify", "release")


@dataclass(frozen=True)
class StoredRow:
    """A row's pointer as it was read: of which version, and whether the row holds no payload itself, or a reference."""

    named: NamedObject
    xmin: str
    is_empty: bool

    @property
    def key(self) -> Key:
        """The row's primary key."""
        return self.named.key


@dataclass(frozen=True)
class Page:
    """Rows of one status, bounded in rows and in bytes of payload."""

    status: Status
    rows: list[StoredRow]


class StoredRows:
    """A partition's copies, then its rows in storage, oldest first, each once; safe to share between threads."""

    def __init__(self, partition: Partition, limits: BatchLimits, key: Key | None = None) -> None:
        self._partition, self._limits, self._key = partition, limits, key
        self._walks = list(_WALKS)
        self._last: NamedObject | None = None
        self._turn = threading.Lock()

    def next_page(self, connection: Connection) -> Page | None:
        """None at the end."""
        with self._turn:
            while self._walks:
                status, is_dated = self._walks[0]
                if rows := self._fetch(connection, status, is_dated=is_dated):
                    self._last = rows[-1].named
                    return Page(status, rows)
                self._walks.pop(0)
                self._last = None
        return None

    def _fetch(self, connection: Connection, status: Status, *, is_dated: bool) -> list[StoredRow]:
        table = self._partition.table
        last = self._last.key if self._last else None
        stored_at = sql.Identifier("t", table.config.columns.stored_at)
        is_ahead = (
            sql.SQL("{} IS NOT NULL AND {}").format(stored_at, table.after_position(last))
            if is_dated
            else sql.SQL("{} IS NULL AND {}").format(stored_at, table.after(last))
        )
        payload = sql.Identifier("t", table.config.payload)
        names = {
            "walked_status": sql.Literal(status), "is_ahead": is_ahead, "is_chosen": table.is_key(self._key),
            "is_empty": is_vacant(table) if status == "in_storage" else sql.SQL("{} IS NULL").format(payload),
        }  # fmt: skip
        bound = {
            **self._partition.parameters(), **table.cursor_parameters(last), **table.chosen_parameters(self._key),
            "after_stored_at": self._last.stored_at if self._last else None,
            "page_rows": self._limits.rows, "page_bytes": self._limits.payload_bytes,
        }  # fmt: skip
        with transaction(connection):
            found = connection.execute(statement("offload/restore", "next_page", table.names() | names), bound)
            return [_stored_row(table, row) for row in found]


def _stored_row(table: Table, row: tuple[object, ...]) -> StoredRow:
    *pointer, xmin, is_empty = row
    named = NamedObject(table.key_in(pointer), *table.after_key(pointer))
    return StoredRow(named, str(xmin), bool(is_empty))


def put_back(
    connection: Connection, partition: Partition, payloads: Sequence[tuple[StoredRow, bytes]], run_id: str
) -> list[StoredRow]:
    """Writes payloads into their rows in the caller's transaction; returns the rows that were still as they were read.

    Raises RestoreUndoneError where PostgreSQL's own hash of what a row then holds is not the row's.
    """
    table = partition.table
    bound = {
        **_versions(table, [row for row, _ in payloads]),
        "object_keys": [row.named.object_key for row, _ in payloads],
        "payloads": [payload for _, payload in payloads],
    }
    connection.execute(statement("offload/restore", "commit_to_disk"))
    found = connection.execute(statement("offload/restore", "put_back", table.names()), bound).fetchall()
    restored = [payloads[position - 1] for (position,) in found]
    _confirm(connection, table, [row for row, _ in restored])
    _account(connection, partition, [row for row, _ in restored], sum(len(payload) for _, payload in restored), run_id)
    return [row for row, _ in restored]


def drop_pointers(
    connection: Connection, partition: Partition, rows: Sequence[StoredRow], run_id: str
) -> list[StoredRow]:
    """Leaves copies only their payload, in the caller's transaction; returns the rows that were as they were read."""
    table = partition.table
    found = connection.execute(
        statement("offload/restore", "drop_pointers", table.names()), _versions(table, rows)
    ).fetchall()
    dropped = [rows[position - 1] for (position,) in found]
    _account(connection, partition, dropped, 0, run_id)
    return dropped


def _versions(table: Table, rows: Sequence[StoredRow]) -> dict[str, list[str]]:
    return {**table.key_parameters([row.key for row in rows]), "xmins": [row.xmin for row in rows]}


def _confirm(connection: Connection, table: Table, rows: Sequence[StoredRow]) -> None:
    """Before the commit, after all triggers: what came back is held, and is what was stored."""
    found = connection.execute(
        statement("offload/restore", "held", table.names()), table.key_parameters([row.key for row in rows])
    ).fetchall()
    sound = sum(is_held and sha256 == rows[position - 1].named.sha256 for position, is_held, sha256 in found)
    if sound != len(rows):
        raise RestoreUndoneError(
            "a trigger of the table changed the row as it was restored; "
            "run offload install, and let the table's own triggers leave restored rows alone"
        )


def _account(
    connection: Connection, partition: Partition, rows: Sequence[StoredRow], payload_bytes: int, run_id: str
) -> None:
    if not rows:
        return
    resolve_failures(connection, partition, _SETTLED_STAGES, [row.key for row in rows])
    counted = {"run_id": run_id, "action": "restore", "rows": len(rows), "bytes": payload_bytes}
    connection.execute(
        statement("offload/record", "log_action", partition.table.names()), {**partition.parameters(), **counted}
    )


def count_stored(connection: Connection, partition: Partition) -> int:
    """Copies and rows in storage of one partition."""
    with transaction(connection):
        found = connection.execute(
            statement("offload/restore", "count_stored", partition.table.names()), partition.parameters()
        ).fetchone()
    return found[0] if found else 0


def count_without_tenant(connection: Connection, table: Table) -> int:
    """Rows in storage that belong to no partition, because their tenant is NULL."""
    if table.config.tenant.column is None:
        return 0
    with transaction(connection):
        found = connection.execute(statement("offload/restore", "count_without_tenant", table.names())).fetchone()
    return found[0] if found else 0


def find_row(connection: Connection, table: Table, text: str) -> tuple[Partition, Key]:
    """The row of this key, as the command line takes it, and its partition.

    Raises RowNotFoundError, or UserError for what is no key, or a row whose tenant is NULL.
    """
    key = table.parse_key(text)
    try:
        with transaction(connection):
            found = connection.execute(
                statement("offload/restore", "tenant_of_row", table.names()), table.key_parameters([key])
            ).fetchone()
    except psycopg.DataError as error:
        raise table.no_key(text, server_message(error)) from None
    if found is None:
        raise RowNotFoundError(f"{table.name} has no row with the key {text}; check the key")
    if found[0] is None:
        column = table.config.tenant.column
        raise UserError(f"{table.name}: {column} of the row {text} is NULL, so it belongs to no partition; fill it in")
    return Partition(table, found[0]), key
