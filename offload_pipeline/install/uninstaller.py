"""Switching off: what install made is taken away again, as long as no payload would be left in storage alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg import Connection, errors, sql

from offload_pipeline.database.connection import server_message, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import GUARD_TRIGGER, Key, Table
from offload_pipeline.errors import TransientError, UserError
from offload_pipeline.install.installer import (
    INDEX_TITLES,
    Step,
    called_functions,
    index_name,
    plan_stored_index,
    run,
    trigger_functions,
)
from offload_pipeline.install.ownership import TRIGGER_NAMES, of_triggers, other_table

# Of the table's key order; the locks last for the update alone.
PAGE_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class PagedStep(Step):
    """One statement, page after page behind the last key, each in a transaction of its own."""

    table: Table

    def as_script(self, connection: Connection) -> str:
        """The first page, and a word on the others."""
        return f"{super().as_script(connection)}\n-- and so on, behind the last key of each page"


def plan_uninstall_all(connection: Connection, tables: Sequence[Table], *, drop_columns: bool) -> list[Step]:
    """Every step that is left to do; all tables are examined before the first step runs.

    Raises UserError, with the count and the mend, where payloads are only in object storage.
    """
    plans = (plan_uninstall(connection, table, drop_columns=drop_columns) for table in tables)
    return [step for plan in plans for step in plan]


def plan_uninstall(connection: Connection, table: Table, *, drop_columns: bool) -> Iterator[Step]:
    """The steps for one table. Pointer columns and bookkeeping stay unless `drop_columns`."""
    _refuse_half_a_pointer(table, drop_columns=drop_columns)
    if drop_columns:
        _refuse_inherited_columns(connection, table)
    _refuse_rows_in_storage(connection, table)
    names = _names(table)
    drops_columns = drop_columns and _has_any_pointer_column(table)
    functions = _functions(connection, table)
    drops = [*_triggers(connection, table, names), *functions, *_default(connection, table, names)]
    if drops_columns and table.is_installed:
        yield from plan_stored_index(connection, table)
    if drops or drops_columns:
        what = "triggers, functions and columns" if drops_columns else "triggers and functions"
        columns = [_drop_columns(table, names), *_forgetting(names)] if drops_columns else []
        yield Step(f"{table.name}: {what}", (*_under_the_lock(table, names), *drops, *columns))
    if not drop_columns and table.is_installed:
        yield from _forget(connection, table, names, is_first_time=bool(drops))
        yield from _indexes(connection, table)


def carry_out(connection: Connection, step: Step) -> None:
    """Runs one step. Raises UserError for what stands in the way, TransientError for rows or a table held too long."""
    try:
        if isinstance(step, PagedStep):
            _forget_pages(connection, step.table)
        else:
            run(connection, step)
    except errors.ObjectInUse:
        raise UserError(
            f"{step.title}: payloads went to object storage meanwhile; stop the workers, then run: offload restore"
        ) from None
    except (errors.DependentObjectsStillExist, errors.InvalidTableDefinition) as error:
        detail = " ".join((error.diag.message_detail or "").split())
        raise UserError(
            f"{step.title}: {error.diag.message_primary}{f' ({detail})' if detail else ''}; "
            "change what depends on it first; nothing was dropped"
        ) from None


def _refuse_half_a_pointer(table: Table, *, drop_columns: bool) -> None:
    """Under other names than configured, the columns may name what is in storage, and nobody would look."""
    is_touched = table.is_guarded or table.is_guard_disabled or (drop_columns and _has_any_pointer_column(table))
    if is_touched and not table.is_installed:
        missing = next(name for name in table.config.columns.model_dump().values() if name not in table.columns)
        raise UserError(
            f"{table.name}: the pointer column {missing} is missing, so nothing tells which payloads are in storage; "
            "correct columns in offload.yaml, or run: offload install"
        )


def _refuse_inherited_columns(connection: Connection, table: Table) -> None:
    present = [name for name in table.config.columns.model_dump().values() if name in table.columns]
    relation = table.names()["relation"].as_string(connection)
    root = connection.execute(statement("install/catalog", "partition_root"), {"relation": relation}).fetchone()
    if root and present:
        dropped = ", ".join(f"DROP COLUMN {sql.Identifier(name).as_string(connection)}" for name in present)
        raise UserError(
            f"{table.name}: its pointer columns are those of the partitioned table {root[0]}; omit --drop-columns; "
            f"once every partition is uninstalled: ALTER TABLE {root[0]} {dropped}"
        )


def _refuse_rows_in_storage(connection: Connection, table: Table) -> None:
    if not table.is_installed:
        return
    try:
        with transaction(connection):
            connection.execute(statement("retention/naming", "see_every_row"))
            found = connection.execute(statement("install/uninstall", "count_in_storage", table.names())).fetchone()
    except errors.InsufficientPrivilege as error:
        raise UserError(
            f"{table.name}: cannot see every row that may be in storage ({server_message(error)}); "
            "connect as a role that is not held back by row security"
        ) from None
    if found and found[0]:
        payloads = "1 payload is" if found[0] == 1 else f"{found[0]:,} payloads are"
        raise UserError(f"{table.name}: {payloads} in object storage alone; run: offload restore --table {table.name}")


def _names(table: Table) -> dict[str, sql.Composable]:
    status = table.columns.get(table.config.columns.status)
    return table.names() | {
        "table_name": sql.Literal(table.name),
        "page_rows": sql.Literal(PAGE_ROWS),
        "never_seen": sql.SQL("'inline'" if status and status.not_null else "NULL"),
    }


def _has_any_pointer_column(table: Table) -> bool:
    return any(name in table.columns for name in table.config.columns.model_dump().values())


def _under_the_lock(table: Table, names: dict[str, sql.Composable]) -> Iterator[sql.Composed]:
    yield statement("install/uninstall", "lock_table", names)
    if table.is_installed:
        yield statement("retention/naming", "see_every_row")
        yield statement("install/uninstall", "refuse_rows_in_storage", names)


def _triggers(connection: Connection, table: Table, names: dict[str, sql.Composable]) -> Iterator[sql.Composed]:
    relation = {"relation": table.names()["relation"].as_string(connection)}
    standing = {name for name, _ in connection.execute(statement("install/catalog", "trigger_modes"), relation)}
    for name in TRIGGER_NAMES:
        if name in standing:
            yield statement("install/uninstall", "drop_trigger", names | {"trigger": sql.Identifier(name)})


def _functions(connection: Connection, table: Table) -> Iterator[sql.Composed]:
    behind_triggers = of_triggers(*trigger_functions(table))
    wanted = {
        "schema": table.schema,
        "relation": table.names()["relation"].as_string(connection),
        "guard": GUARD_TRIGGER,
        "triggers": list(TRIGGER_NAMES),
        "trigger_functions": [one.name for one in behind_triggers],
        "marks": [one.mark for one in behind_triggers],
        "called_functions": called_functions(table),
    }
    ours = statement("install/uninstall", "our_functions", {"other_table": other_table()})
    for name, arguments in connection.execute(ours, wanted).fetchall():
        signature = sql.SQL("{}({})").format(sql.Identifier(table.schema, name), sql.SQL(arguments))
        yield statement("install/uninstall", "drop_function", {"function": signature})


def _default(connection: Connection, table: Table, names: dict[str, sql.Composable]) -> Iterator[sql.Composed]:
    """Not from a column that may not be NULL: the application's own inserts would fail."""
    status = table.columns.get(table.config.columns.status)
    if status is None or status.not_null:
        return
    of_status = {"relation": names["relation"].as_string(connection), "name": status.name}
    default = connection.execute(statement("install/catalog", "column_default"), of_status).fetchone()
    if default and default[0].startswith("'inline'"):
        yield statement("install/uninstall", "drop_default", names)


def _drop_columns(table: Table, names: dict[str, sql.Composable]) -> sql.Composed:
    present = [name for name in table.config.columns.model_dump().values() if name in table.columns]
    dropped = [sql.SQL("DROP COLUMN {}").format(sql.Identifier(name)) for name in present]
    return statement("install/uninstall", "drop_columns", names | {"columns": sql.SQL(", ").join(dropped)})


def _forgetting(names: dict[str, sql.Composable]) -> Iterator[sql.Composed]:
    for name in ("forget_partitions", "forget_failures"):
        yield statement("install/uninstall", name, names)


def _forget(
    connection: Connection, table: Table, names: dict[str, sql.Composable], *, is_first_time: bool
) -> Iterator[Step]:
    """Queued and copied rows, then the gates: not before no row has a pointer."""
    moving = connection.execute(statement("install/uninstall", "has_moving_rows", names)).fetchone()
    if is_first_time or (moving and moving[0]):
        page = statement("install/uninstall", "forget_page", names)
        yield PagedStep(f"{table.name}: queued and copied rows", (page,), table=table)
    remembered = connection.execute(statement("install/uninstall", "is_remembered", names)).fetchone()
    if is_first_time or (remembered and remembered[0]):
        closing = [statement("install/uninstall", name, names) for name in ("close_gates", "settle_failures")]
        yield Step(f"{table.name}: gates and checkpoints", tuple(closing))


def _forget_pages(connection: Connection, table: Table) -> None:
    names, cursor, rows_left = _names(table), None, 0
    while page := _forget_page(connection, table, names, cursor):
        cursor = table.key_in(page[-1])
        rows_left += sum(1 for row in page if row[-2] and not row[-1])
    if rows_left:
        rows = "1 row" if rows_left == 1 else f"{rows_left:,} rows"
        raise TransientError(f"{table.name}: not yet done: {rows} held by the application; run it again")


def _forget_page(
    connection: Connection, table: Table, names: dict[str, sql.Composable], cursor: Key | None
) -> list[tuple[object, ...]]:
    with transaction(connection):
        return connection.execute(
            statement("install/uninstall", "forget_page", names | {"after_cursor": table.after(cursor)}),
            table.cursor_parameters(cursor) if cursor else None,
        ).fetchall()


def _indexes(connection: Connection, table: Table) -> Iterator[Step]:
    wanted = {
        "relation": table.names()["relation"].as_string(connection),
        "names": [index_name(table, title) for title in INDEX_TITLES],
    }
    for schema, name in connection.execute(statement("install/uninstall", "our_indexes"), wanted).fetchall():
        drop = statement("install/uninstall", "drop_index", {"index": sql.Identifier(schema, name)})
        yield Step(f"{table.name}: index {name}", (drop,), concurrently=True)
