"""Rows that give up their objects: the pointer goes and the object is listed for deletion, in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import Connection, sql

from offload_pipeline.database.connection import is_about_the_rows, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import ExpiryUndoneError, PayloadBesidePointerError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.failures import Failure, record_failures, resolve_failures
from offload_pipeline.offload.vacancy import beside_its_pointer, is_vacant

# The payload of a row in storage is given up; a copy whose payload is still in the row is held.
Way = Literal["give_up", "hold"]
_STATEMENTS = {"give_up": "retention/expiry", "hold": "retention/erasure"}


@dataclass
class GivenUp:
    """What became of a page: rows and payload bytes given up, rows locked or changed meanwhile, rows refused."""

    rows: int = 0
    payload_bytes: int = 0
    left: int = 0
    failed: int = 0

    def __iadd__(self, other: "GivenUp") -> "GivenUp":
        for name in ("rows", "payload_bytes", "left", "failed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass(frozen=True)
class RowVersion:
    """A row as it was read: its key and its `xmin`."""

    key: Key
    xmin: str


def give_up(
    connection: Connection, partition: Partition, rows: Sequence[RowVersion], way: Way, action: str, run_id: str
) -> GivenUp:
    """Clears the pointers of those rows that are still these versions, and lists their objects; never waits for a row.

    A page that the table refuses as a whole (a trigger, a check) is taken row by row, and the refused are recorded.
    """
    if not rows:
        return GivenUp()
    try:
        with transaction(connection):
            return _give_up(connection, partition, rows, way, action, run_id)
    except (psycopg.Error, ExpiryUndoneError, PayloadBesidePointerError) as error:
        if isinstance(error, psycopg.Error) and not is_about_the_rows(error, connection):
            raise
        if len(rows) == 1:
            with transaction(connection):
                record_failures(connection, partition, "expire", [Failure(rows[0].key, rows[0].xmin, error)])
            return GivenUp(failed=1)
    done = GivenUp()
    for row in rows:
        done += give_up(connection, partition, [row], way, action, run_id)
    return done


def _give_up(
    connection: Connection, partition: Partition, rows: Sequence[RowVersion], way: Way, action: str, run_id: str
) -> GivenUp:
    table = partition.table
    names = table.names() | {"deleted_payload": deleted_payload(table), "is_vacant": is_vacant(table)}
    found = connection.execute(
        statement(_STATEMENTS[way], way, names),
        {
            **partition.parameters(),
            **table.key_parameters([row.key for row in rows]),
            "xmins": [row.xmin for row in rows],
        },
    ).fetchall()
    if not all(was_vacant for *_, was_vacant in found):
        raise beside_its_pointer(table)
    if not all(is_given_up for _, _, is_given_up, _ in found):
        raise ExpiryUndoneError(
            "a trigger of the table gave the row its pointer back; run offload install, "
            "and let the table's own triggers leave expired rows alone"
        )
    done = GivenUp(len(found), sum(size for _, size, _, _ in found), len(rows) - len(found))
    if found:
        resolve_failures(connection, partition, ("expire",), [rows[position - 1].key for position, *_ in found])
        counted = {**partition.parameters(), "rows": done.rows, "bytes": done.payload_bytes}
        connection.execute(
            statement("offload/record", "log_action", names), {**counted, "run_id": run_id, "action": action}
        )
    return done


def deleted_payload(table: Table) -> sql.Composable:
    """What is left in the row: NULL, or where the row keeps a reference or needs a value, that it was deleted."""
    if table.config.after_copy != "reference" and not table.columns[table.config.payload].not_null:
        return sql.SQL("NULL")
    said = statement("retention/expiry", "deleted_payload")
    return sql.SQL("({})::text::{}").format(said, sql.SQL(table.payload_type))
