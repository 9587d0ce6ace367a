"""What the role that offloads may do, and the GRANT for what it may not."""

from collections.abc import Iterator, Sequence

from psycopg import Connection

from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table
from offload_pipeline.errors import UserError

# What passes write. The audit log takes new lines alone; nothing here writes the archival log.
BOOKKEEPING_RIGHTS = {
    "payload_offload_state": ("SELECT", "INSERT", "UPDATE"),
    "payload_offload_failures": ("SELECT", "INSERT", "UPDATE"),
    "payload_offload_log": ("SELECT", "INSERT"),
    "payload_offload_expired": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "payload_offload_deleted": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}

# Schema, table, column (None: the whole table), privilege.
_Right = tuple[str, str, str | None, str]


def require_rights(connection: Connection, tables: Sequence[Table], *, writing: bool = True) -> None:
    """UserError, naming the GRANT, where the role may not work on these tables; without `writing`, not read them."""
    for table in tables:
        lacking = [*bookkeeping_grants(connection, table.schema, writing=writing),
                   *table_grants(connection, table, writing=writing)]  # fmt: skip
        if lacking:
            role = lacking[0].rpartition(" TO ")[2]
            raise UserError(f"{table.name}: permission denied to {role}; {'; '.join(lacking)}")


def bookkeeping_grants(connection: Connection, schema: str, *, writing: bool = True) -> list[str]:
    """The GRANTs on our own tables that the role lacks; none for tables that do not stand yet."""
    rights: list[_Right] = [
        (schema, table, None, privilege)
        for table, privileges in BOOKKEEPING_RIGHTS.items()
        for privilege in privileges
        if writing or privilege == "SELECT"
    ]
    return _grants(connection, rights)


def table_grants(connection: Connection, table: Table, *, writing: bool = True) -> list[str]:
    """The GRANTs on this table that the role lacks. Rights on the columns in question are enough."""
    config = table.config
    pointer = list(config.columns.model_dump().values())
    optional = [name for name in (config.tenant.column, config.created_at) if name]
    read = [*config.primary_key, config.payload, *optional, *pointer]
    rights: list[_Right] = [(*config.schema_and_name, name, "SELECT") for name in read]
    if writing:
        rights += [(*config.schema_and_name, name, "UPDATE") for name in (config.payload, *pointer)]
    return _grants(connection, rights)


def load_grant(connection: Connection) -> str | None:
    """The GRANT without which back-pressure does not see everything."""
    found = connection.execute(statement("database/rights", "sees_the_load")).fetchone()
    return f"GRANT pg_monitor TO {found[1]}" if found and not found[0] else None


def _grants(connection: Connection, rights: Sequence[_Right]) -> list[str]:
    names = ("schemas", "tables", "columns", "privileges")
    bound = dict(zip(names, map(list, zip(*rights, strict=True)), strict=True))
    lacking: dict[tuple[str, str], list[str]] = {}
    for name, is_schema, privilege, role in connection.execute(statement("database/rights", "lacking"), bound):
        lacking.setdefault((role, f"SCHEMA {name}" if is_schema else name), []).append(privilege)
    return list(_together(lacking))


def _together(lacking: dict[tuple[str, str], list[str]]) -> Iterator[str]:
    """The statements; objects on which the same privileges lack, in one."""
    together: dict[tuple[str, str], list[str]] = {}
    for (role, name), privileges in lacking.items():
        together.setdefault((role, ", ".join(privileges)), []).append(name)
    for (role, shared), names in together.items():
        yield f"GRANT {shared} ON {', '.join(names)} TO {role}"
