"""The hold that keeps restored rows where they are, and lifting it: they join the queue again."""

import contextlib
from dataclasses import dataclass

from psycopg import Connection

from offload_pipeline.database.connection import Database, database_failures, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.offload.claims import Partition

# Rows of the table's key order per transaction; the held ones among them are printed and measured.
PAGE_ROWS = 500


@dataclass
class HoldsLifted:
    """Restored rows that are pending again; `rows_left` were locked or changed just then, and are still held."""

    rows: int = 0
    payload_bytes: int = 0
    rows_left: int = 0


def lift_holds(database: Database, partition: Partition, run_id: str) -> HoldsLifted:
    """Queues the partition's restored rows above the threshold, in primary-key order, page by page.

    Raises TransientError when the database fails; the pages before stay queued.
    """
    lifted, cursor = HoldsLifted(), None
    table = partition.table
    with database_failures(partition), contextlib.closing(database.connect()) as connection:
        while page := _lift_page(connection, partition, cursor, run_id):
            cursor = table.key_in(page[-1])
            above = [table.after_key(row) for row in page if table.after_key(row)[0] is not None]
            lifted.rows += sum(is_lifted for _, is_lifted in above)
            lifted.payload_bytes += sum(size for size, is_lifted in above if is_lifted)
            lifted.rows_left += sum(not is_lifted for _, is_lifted in above)
    return lifted


def _lift_page(
    connection: Connection, partition: Partition, cursor: Key | None, run_id: str
) -> list[tuple[object, ...]]:
    table, parameters = partition.table, partition.parameters()
    bound = {
        **parameters, **table.cursor_parameters(cursor),
        "threshold_bytes": table.config.threshold_bytes, "page_rows": PAGE_ROWS,
    }  # fmt: skip
    with transaction(connection):
        page = connection.execute(statement("offload/holds", "lift_holds", table.names(cursor)), bound).fetchall()
        sizes = [row[-2] for row in page if row[-1]]
        if sizes:
            counted = {"run_id": run_id, "action": "lift hold", "rows": len(sizes), "bytes": sum(sizes)}
            connection.execute(statement("offload/record", "log_action", table.names()), {**parameters, **counted})
    return page


def count_held(connection: Connection, partition: Partition) -> tuple[int, int]:
    """Rows and payload bytes that a backfill which includes restored rows would move again; writes nothing."""
    table = partition.table
    with transaction(connection):
        found = connection.execute(
            statement("offload/holds", "count_held", table.names()),
            {**partition.parameters(), "threshold_bytes": table.config.threshold_bytes},
        ).fetchone()
    assert found is not None  # noqa: S101 - an aggregate returns one row
    return found[0], found[1]
