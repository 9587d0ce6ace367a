"""What install refuses, each in one line with its mend, before the first statement runs."""

from psycopg import Connection, sql

from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table
from offload_pipeline.errors import UserError

POINTER_DDL = {"status": "text", "size": "bigint", "object_key": "text", "hash": "text", "stored_at": "timestamptz"}
# Types the pointer columns may have where the table brings its own.
POINTER_TYPES = {
    "status": ("text", "character varying"),
    "size": ("bigint", "integer"),
    "object_key": ("text", "character varying"),
    "hash": ("text", "character varying"),
    "stored_at": ("timestamp with time zone",),
}


def check_database(connection: Connection, schema: str) -> None:
    """Refuses a missing schema, and an encoding in which `payload::text` is not the canonical UTF-8."""
    found = connection.execute(statement("install/catalog", "schema_exists"), {"schema": schema}).fetchone()
    if not (found and found[0]):
        raise UserError(f"database.schema: no schema {schema} in this database; create it, or correct the name")
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise UserError(
            f"the database is encoded in {encoding}; payloads are stored and hashed as UTF-8: convert it first"
        )


def check_table(connection: Connection, table: Table) -> None:
    """Refuses, in one line each, what would make offloading this table unsafe or impossible."""
    relation = table.names()["relation"].as_string(connection)
    is_partition = _check_privileges(connection, table, relation)
    if table.kind == "p":
        adding = "" if table.is_installed else f"{adding_columns(connection, table, relation)}, then "
        raise UserError(
            f"{table.name}: {relation} is partitioned, and its partitions are offloaded one by one; "
            f"{adding}name one of them as relation"
        )
    check_key(connection, table)
    _check_columns(table)
    _check_dependents(connection, table, relation)
    if is_partition and not table.is_installed:
        root = connection.execute(statement("install/catalog", "partition_root"), {"relation": relation}).fetchone()
        assert root is not None  # noqa: S101 - a partition has one
        raise UserError(
            f"{table.name}: {relation} is a partition, to which columns cannot be added; "
            f"{adding_columns(connection, table, root[0])}"
        )


def adding_columns(connection: Connection, table: Table, relation: str) -> str:
    """The statement that gives a partitioned table, and with it all its partitions, the columns that still lack."""
    return f"ALTER TABLE {relation} {missing_columns(table).as_string(connection)}"


def missing_columns(table: Table) -> sql.Composed:
    """`ADD COLUMN …, ADD COLUMN …`; empty where none is missing."""
    pointer = table.config.columns.model_dump()
    missing = [(column, POINTER_DDL[field]) for field, column in pointer.items() if column not in table.columns]
    added = [sql.SQL("ADD COLUMN {} " + type_).format(sql.Identifier(name)) for name, type_ in missing]
    return sql.SQL(", ").join(added)


def check_name(connection: Connection, table: Table, function: str) -> None:
    """Refuses a name that another table goes by: they would share a trigger's function, a gate and object keys."""
    wanted = {
        "function": sql.Identifier(table.schema, function).as_string(connection),
        "relation": table.names()["relation"].as_string(connection),
    }
    taken = connection.execute(statement("install/catalog", "name_taken_by"), wanted).fetchone()
    if taken:
        raise UserError(
            f"{table.name}: the table {taken[0]} goes by this name already, and its gate would open for both; "
            "give the newer one another name"
        )


def _check_privileges(connection: Connection, table: Table, relation: str) -> bool:
    """Refuses a role that may not install; returns whether the table is a partition."""
    schema_and_name = dict(zip(("schema", "name"), table.config.schema_and_name, strict=True))
    found = connection.execute(
        statement("install/catalog", "privileges"), schema_and_name | {"bookkeeping_schema": table.schema}
    ).fetchone()
    assert found is not None  # noqa: S101 - the table was inspected a moment ago
    owns_table, closed_schemas, is_partition, role, owner = found
    if not owns_table:
        raise UserError(f"{table.name}: {role} does not own {relation}; connect as {owner}, or GRANT {owner} TO {role}")
    if closed_schemas:
        schema = closed_schemas[0]
        raise UserError(
            f"{table.name}: {role} may not create in schema {schema}; GRANT CREATE, USAGE ON SCHEMA {schema} TO {role}"
        )
    return bool(is_partition)


def check_key(connection: Connection, table: Table) -> None:
    """Refuses a table whose rows the configured primary key does not tell apart."""
    relation = table.names()["relation"].as_string(connection)
    unique = connection.execute(statement("install/catalog", "unique_keys"), {"relation": relation}).fetchall()
    if not unique:
        raise UserError(f"{table.name}: {relation} has no primary key; add one: its rows cannot be told apart")
    if sorted(table.config.primary_key) not in [names for names, _ in unique]:
        raise UserError(
            f"{table.name}: primary_key [{', '.join(table.config.primary_key)}] is not unique in {relation}; "
            f"write [{', '.join(unique[0][0])}]"
        )


def _check_dependents(connection: Connection, table: Table, relation: str) -> None:
    """Refuses what would be confused or lost along with the payload."""
    config = table.config
    given = {
        "relation": relation, "payload": config.payload,
        "columns": [*config.primary_key, *([config.tenant.column] if config.tenant.column else [])],
    }  # fmt: skip
    derived = connection.execute(statement("install/catalog", "derived_columns"), given).fetchone()
    if derived and config.after_copy != "keep":
        raise UserError(
            f"{table.name}: {derived[0]} is generated from {config.payload} and would change when that is freed; "
            "make it an ordinary column, or set after_copy: keep"
        )
    loose = connection.execute(statement("install/catalog", "loose_columns"), given).fetchone()
    if loose:
        raise UserError(
            f"{table.name}: {loose[0]} takes different texts for equal (citext or its collation), so tenants and keys "
            "could not be told apart; use a column with an exact type and collation"
        )
    pointer = {"relation": relation, "columns": list(config.columns.model_dump().values())}
    short = connection.execute(statement("install/catalog", "short_columns"), pointer).fetchone()
    if short:
        raise UserError(
            f"{table.name}: {short[0]} is {short[1]}, and what is written there may be longer; "
            f"ALTER COLUMN {short[0]} TYPE text"
        )
    inherited = connection.execute(statement("install/catalog", "has_children"), given).fetchone()
    if inherited and inherited[0] and table.kind == "r":
        raise UserError(f"{table.name}: other tables inherit from {relation}; name a table without children")


def _check_columns(table: Table) -> None:
    payload = table.config.payload
    if table.config.after_copy == "clear" and table.columns[payload].not_null:
        raise UserError(
            f"{table.name}: {payload} is NOT NULL and after_copy is clear; "
            f"ALTER COLUMN {payload} DROP NOT NULL, or set after_copy: reference"
        )
    for field, types in POINTER_TYPES.items():
        column = table.columns.get(getattr(table.config.columns, field))
        if column and column.type not in types:
            raise UserError(
                f"{table.name}: columns.{field}: {column.name} is {column.type}, not {types[0]}; "
                "name another column, or leave it to install to add one"
            )
        if column and column.not_null and field != "status":
            raise UserError(
                f"{table.name}: columns.{field}: {column.name} is NOT NULL, but a row whose payload is not in "
                f"storage has none; ALTER COLUMN {column.name} DROP NOT NULL"
            )
