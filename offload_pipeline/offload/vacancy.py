"""Rows in storage hold no payload themselves; where one does, it was written past the trigger, and is nowhere else."""

from psycopg import sql

from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table
from offload_pipeline.errors import PayloadBesidePointerError


def is_vacant(table: Table) -> sql.Composable:
    """The condition on `t`, a row in storage, that nothing is lost when its payload's column is written."""
    return statement("offload/vacancy", "is_vacant", table.names())


def beside_its_pointer(table: Table) -> PayloadBesidePointerError:
    """What is said of a row that is not vacant, and how either payload is kept."""
    payload, pointer = table.config.payload, table.config.columns
    return PayloadBesidePointerError(
        "the row holds a payload beside the pointer to another: it was written past the trigger; "
        f"to keep the one in the row, set {payload} = {payload}, {pointer.object_key} = NULL; "
        f"to keep the one in storage, set {payload} = NULL, {pointer.stored_at} = now()"
    )
