"""A tenant that was asked for by name and that no table has ever heard of: a slip of the pen, not an empty queue."""

import difflib
from collections.abc import Collection, Sequence
from datetime import timedelta

import psycopg
from psycopg import Connection

from offload_pipeline.database.connection import bound_statements, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table
from offload_pipeline.errors import UserError

# The table may have no index on its tenants; whoever is not found by then counts as known.
SEARCH_LIMIT = timedelta(seconds=2)
LISTED_TENANTS = 5


def refuse_unknown_tenant(
    connection: Connection, tables: Sequence[Table], tenant: str, others: Collection[str]
) -> None:
    """UserError, with the nearest of `others`, where none of the tables has a row or a record of this tenant."""
    if any(_is_known(connection, table, tenant) for table in tables):
        return
    names = sorted(set(others))
    near = difflib.get_close_matches(tenant, names, 1)
    shown = ", ".join(map(repr, names[:LISTED_TENANTS])) + (", …" if len(names) > LISTED_TENANTS else "")
    hint = f"did you mean {near[0]!r}?" if near else f"known are {shown}" if names else "they have no tenants yet"
    raise UserError(f"no tenant {tenant!r} in {', '.join(table.name for table in tables)}; {hint}")


def was_erased(connection: Connection, tables: Sequence[Table], tenant: str) -> bool:
    """Whether the audit log of one of the tables has an erasure of this tenant; also where it is too long to tell."""
    try:
        return any(_says(connection, "was_erased", table, tenant) for table in tables)
    except psycopg.errors.QueryCanceled:
        return True


def _is_known(connection: Connection, table: Table, tenant: str) -> bool:
    if table.config.tenant.value is not None:
        return tenant == table.config.tenant.value
    try:
        return _says(connection, "was_worked_on", table, tenant) or _says(connection, "has_rows", table, tenant)
    except psycopg.errors.QueryCanceled:
        return True
    except psycopg.DataError:
        # What the type of the column refuses is nobody's tenant.
        return False


def _says(connection: Connection, name: str, table: Table, tenant: str) -> bool:
    with transaction(connection):
        bound_statements(connection, SEARCH_LIMIT)
        found = connection.execute(
            statement("offload/queue", name, table.names()), {"table": table.name, "tenant": tenant}
        ).fetchone()
    return found == (True,)
