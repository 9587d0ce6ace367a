"""Plans and runs the DDL of one table. Each step looks at the catalog first, so a second install does nothing."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg import Connection, errors, sql

from offload_pipeline.config import IDENTIFIER_BYTES
from offload_pipeline.database.ddl import run_concurrently, run_under_short_locks
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import FIRING_MODES, Table, bookkeeping_names
from offload_pipeline.errors import UserError
from offload_pipeline.install.ownership import (
    BOOKKEEPING_FUNCTIONS,
    FINGERPRINT,
    MOVE_TRIGGER,
    TRIGGER_NAMES,
    CalledFunction,
    called_function,
    not_ours,
    of_triggers,
    refuse_taken_functions,
    refuse_taken_relations,
)
from offload_pipeline.install.preflight import check_database, check_name, check_table, missing_columns

# A text is at most 6 times its uncompressed jsonb (control characters become \u00xx); json and text are their own text.
TEXT_PER_STORED_BYTE = {"jsonb": 6, "json": 1, "text": 1}
# A key and its URL, the longest that stores take, three times over.
LARGEST_REFERENCE_BYTES = 8192
# What each of the queue's indexes is for, by the ending of its name.
INDEX_TITLES = ("unseen", "pending", "copied", "stored")
# `get_activity_payload(id)` beside `get_activities_payload(id)`: a name existing applications call.
FUNCTION_ALIASES = {"activities": "activity"}
# Its functions have the plain name as well, whatever other tables there are.
PLAIN_NAMES_FOR = "activities"
PLAIN_MOVE = "move_payload_to_storage"


@dataclass(frozen=True)
class Step:
    """Statements that run together: in one transaction under short locks, or one alone and CONCURRENTLY."""

    title: str
    statements: tuple[sql.Composed, ...]
    concurrently: bool = False

    def as_script(self, connection: Connection) -> str:
        """The exact SQL, for `--dry-run`."""
        body = ";\n".join(item.as_string(connection).strip() for item in self.statements) + ";"
        return f"-- {self.title}\n" + (body if self.concurrently else f"BEGIN;\n{body}\nCOMMIT;")


def run(connection: Connection, step: Step) -> None:
    """Carries one step out."""
    if step.concurrently:
        for item in step.statements:
            run_concurrently(connection, item)
    else:
        run_under_short_locks(connection, step.statements)


def plan_all(
    connection: Connection, tables: Sequence[Table], schema: str, store_url: str, *, is_only: bool = False
) -> list[Step]:
    """Every step that is still lacking; all tables are examined before the first step runs. `is_only`: see below."""
    steps = list(plan_bookkeeping(connection, schema))
    for table in tables:
        steps += plan_table(connection, table, store_url, is_only=is_only)
    return steps


def plan_bookkeeping(connection: Connection, schema: str) -> Iterator[Step]:
    """The tables and functions that all tables share. Raises UserError where something else goes by their names."""
    check_database(connection, schema)
    refuse_taken_relations(connection, schema)
    refuse_taken_functions(connection, schema, BOOKKEEPING_FUNCTIONS)
    names = bookkeeping_names(schema) | {
        "refuse_change": sql.Identifier(schema, "payload_offload_refuse_change"),
        "calculate_payload_size": sql.Identifier(schema, "calculate_payload_size"),
    }
    wanted = _fingerprint(
        [statement("install/bookkeeping", "tables", names | {"fingerprint": sql.SQL("")})], connection
    )
    found = connection.execute(
        statement("install/bookkeeping", "fingerprint"), {"state": names["state"].as_string(connection)}
    ).fetchone()
    if found is None or found[0] != wanted:
        script = statement("install/bookkeeping", "tables", names | {"fingerprint": sql.Literal(wanted)})
        yield Step("bookkeeping", (script,))


def plan_table(connection: Connection, table: Table, store_url: str, *, is_only: bool = False) -> Iterator[Step]:
    """The steps that this table still lacks. Raises UserError for what cannot be installed.

    `is_only`: it is the only configured table, and so has the plain `move_payload_to_storage` too.
    """
    check_table(connection, table)
    check_name(connection, table, trigger_functions(table)[0])
    refuse_taken_functions(connection, table.schema, of_triggers(*trigger_functions(table)))
    names = _install_names(table, store_url)
    if statements := [*_columns(connection, table, names), *_triggers(connection, table, names)]:
        yield Step(f"{table.name}: pointer columns and size trigger", tuple(statements))
    if statements := _functions(connection, table, names, is_only=is_only):
        yield Step(f"{table.name}: functions", tuple(statements))
    yield from _indexes(connection, table, names)


def _install_names(table: Table, store_url: str) -> dict[str, sql.Composable]:
    config = table.config
    factor = TEXT_PER_STORED_BYTE[table.payload_type]
    place = list(dict.fromkeys(filter(None, (config.tenant.column, *config.primary_key))))
    names: dict[str, sql.Composable] = {
        **table.names(),
        "threshold": sql.Literal(config.threshold_bytes),
        "leaves_reference": sql.SQL("TRUE" if config.after_copy == "reference" else "FALSE"),
        "hint": sql.Literal(
            f"Restore it first: offload restore --table {config.name} --primary-key KEY; or write the whole payload; "
            f"or drop it: set {config.payload} and {config.columns.object_key} to NULL."
        ),
        "stale_hint": sql.Literal(
            f"Store the payload again; or, if its object is there for sure, set {config.columns.stored_at} to NULL."
        ),
        # Not true where there is no payload; the shorter, the cheaper every INSERT.
        "is_large": sql.SQL("NEW.{payload} IS NOT NULL").format(payload=sql.Identifier(config.payload))
        if config.threshold_bytes == 0
        else sql.SQL(
            "pg_column_size(NEW.{payload}) > {limit} OR pg_column_compression(NEW.{payload}) IS NOT NULL"
        ).format(payload=sql.Identifier(config.payload), limit=sql.Literal(config.threshold_bytes // factor)),
        "is_moved": sql.SQL("({}) IS DISTINCT FROM ({})").format(
            *(sql.SQL(", ").join(sql.Identifier(version, name) for name in place) for version in ("new", "old"))
        ),
        "move_trigger": sql.Literal(MOVE_TRIGGER),
        "function": sql.Identifier(table.schema, trigger_functions(table)[0]),
        "pointer_function": sql.Identifier(table.schema, trigger_functions(table)[1]),
        "is_reference": _is_reference(table, store_url),
        "or_is_reference": sql.SQL("OR {}").format(_is_reference(table, store_url))
        if config.after_copy == "reference"
        else sql.SQL(""),
        "store_url": sql.Literal(store_url.rstrip("/") + "/"),
        "configured_store": sql.Literal(store_url),
        "table_name": sql.Literal(table.name),
        "lock_space": sql.Literal(table.lock_space),
        "plain_key_text": table.key_text_expression("%"),
        "most_bytes": sql.SQL("NULL::bigint")
        if config.max_object_bytes is None
        else sql.Literal(config.max_object_bytes),
        "path_argument": sql.SQL(f"${len(table.key_columns) + 1}"),
        "arguments": sql.SQL(", ").join(sql.SQL(column.type) for column in table.key_columns),
        "argument_match": sql.SQL(" AND ").join(
            sql.SQL("t.{} = {}").format(sql.Identifier(column.name), sql.SQL(f"${index}"))
            for index, column in enumerate(table.key_columns, 1)
        ),
    }
    return names | {"reference": statement("install/table", "reference", names)}


def _is_reference(table: Table, store_url: str) -> sql.Composable:
    """Whether a payload on its way in is what release leaves behind here; cheap, since every small row is asked.

    One that only looks alike, but does not lead into this store, is a payload.
    """
    if table.config.after_copy != "reference":
        return sql.SQL("FALSE")
    payload, store = sql.Identifier(table.config.payload), sql.Literal(store_url.rstrip("/") + "/")
    if table.payload_type == "jsonb":
        alike = "(NEW.{0}->>'payload_type' = 'storage_ref' AND starts_with(NEW.{0}->>'url', {1}))"
        return sql.SQL(alike).format(payload, store)
    alike = (
        "(pg_column_size(NEW.{0}) <= {2} AND strpos(NEW.{0}::text, '\"storage_ref\"') > 0 "
        "AND strpos(NEW.{0}::text, {1}) > 0)"
    )
    return sql.SQL(alike).format(payload, store, sql.Literal(LARGEST_REFERENCE_BYTES))


def _columns(connection: Connection, table: Table, names: dict[str, sql.Composable]) -> Iterator[sql.Composed]:
    pointer = table.config.columns.model_dump()
    if not table.is_installed:
        yield statement("install/table", "add_columns", names | {"columns": missing_columns(table)})
    default = connection.execute(
        statement("install/catalog", "column_default"), _of(table, connection, pointer["status"])
    ).fetchone() if pointer["status"] in table.columns else None  # fmt: skip
    if default is None or not default[0].startswith("'inline'"):
        yield statement("install/table", "set_default", names)


def _triggers(connection: Connection, table: Table, names: dict[str, sql.Composable]) -> Iterator[sql.Composed]:
    functions = [statement("install/table", name, names) for name in ("trigger_function", "pointer_function")]
    modes: dict[str, str] = dict(
        connection.execute(statement("install/catalog", "trigger_modes"), _of(table, connection, "")).fetchall()
    )
    stale: list[sql.Composed] = []
    disabled: list[sql.Composed] = []
    for name, kind in zip(
        TRIGGER_NAMES, ("insert_trigger", "update_trigger", "move_trigger", "pointer_trigger"), strict=True
    ):
        trigger = names | {"trigger": sql.Identifier(name)}
        create = statement("install/table", kind, trigger)
        wanted = _fingerprint([*functions, create], connection)
        found = connection.execute(statement("install/catalog", "description"), _of(table, connection, name)).fetchone()
        if found is None or found[0] != wanted:
            stale += [
                create,
                statement("install/table", "comment_on_trigger", trigger | {"fingerprint": sql.Literal(wanted)}),
            ]
        if modes.get(name, "O") not in FIRING_MODES:
            disabled.append(statement("install/table", "enable_trigger", trigger))
    if stale:
        yield from (*functions, *stale)
    yield from disabled


def _functions(
    connection: Connection, table: Table, names: dict[str, sql.Composable], *, is_only: bool
) -> list[sql.Composed]:
    statements: list[sql.Composed] = []
    for kind, name, arguments in _function_names(table):
        called = sql.Identifier(table.schema, name)
        signature = sql.SQL(f"{{}}({{}}{arguments})").format(called, names["arguments"])
        create = statement("install/table", kind, names | {"called": called})
        wanted = _fingerprint([create], connection)
        found = called_function(connection, table, signature.as_string(connection))
        if not _is_wanted(table, name, found, is_only=is_only) or (found and found.comment == wanted):
            continue
        comment = {"called": signature, "fingerprint": sql.Literal(wanted)}
        statements += [
            *_in_the_way(table, name, signature.as_string(connection), found), create,
            statement("install/table", "comment_on_function", comment),
        ]  # fmt: skip
    return statements


def _is_wanted(table: Table, name: str, found: CalledFunction | None, *, is_only: bool) -> bool:
    """A name that tables share stays with the installed one that had it first; the plain one, until its table comes."""
    has_plain_name = _folded(table) == PLAIN_NAMES_FOR
    if found and found.is_ours and found.other_table:
        if name == PLAIN_MOVE:
            return has_plain_name
        if name == _alias(table):
            return False
    if name != PLAIN_MOVE or is_only or has_plain_name:
        return True
    return found is not None and found.is_ours and found.reads_this_table


def _in_the_way(table: Table, name: str, signature: str, found: CalledFunction | None) -> Iterator[sql.Composed]:
    """One of ours that returns another type makes room, as it cannot be replaced. UserError for others."""
    if found is None:
        return
    if not found.is_ours:
        raise not_ours(signature)
    if found.other_table and name != PLAIN_MOVE:
        raise UserError(
            f"{table.name}: the function {signature} is that of the table {found.other_table}; "
            "give the newer one another name"
        )
    if found.result != table.payload_type:
        yield statement("install/uninstall", "drop_function", {"function": sql.SQL(signature)})


def _function_names(table: Table) -> Iterator[tuple[str, str, str]]:
    """Statement, name, and what follows the primary key in its arguments; shared names as well."""
    title = _folded(table)
    yield "get_payload", _bounded(f"get_{title}", "_payload"), ""
    if alias := _alias(table):
        yield "get_payload", alias, ""
    yield "move_to_storage", _bounded(f"move_{title}", "_payload_to_storage"), ", text"
    yield "move_to_storage", PLAIN_MOVE, ", text"


def _alias(table: Table) -> str | None:
    one = FUNCTION_ALIASES.get(_folded(table))
    return one and _bounded(f"get_{one}", "_payload")


def _indexes(connection: Connection, table: Table, names: dict[str, sql.Composable]) -> Iterator[Step]:
    config = table.config
    tenant = [config.tenant.column] if config.tenant.column else []
    keys, stored_at = list(config.primary_key), config.columns.stored_at
    wanted: list[tuple[str, str | None, list[str], list[str | None]]] = [
        ("unseen", None, [*tenant, *keys], []),
        ("pending", "pending_move", [*tenant, *keys], [config.created_at, config.columns.size]),
        ("copied", "copied", [*tenant, stored_at, *keys], [config.columns.size]),
        ("stored", "in_storage", [*tenant, stored_at], []),
    ]
    for title, status, columns, included in wanted:
        columns = list(dict.fromkeys(columns))
        extra = [name for name in included if name and name not in columns]
        name = index_name(table, title)
        found = connection.execute(statement("install/catalog", "index_state"), _of(table, connection, name)).fetchone()
        if found and found[0]:
            continue
        if not found:
            _refuse_taken_index(connection, table, name)
        create = statement("install/table", "create_index", names | {
            "index": sql.Identifier(name),
            "columns": sql.SQL(", ").join(map(sql.Identifier, columns)),
            "include": _including(extra),
            "has_status": sql.SQL("= {}").format(sql.Literal(status)) if status else sql.SQL("IS NULL"),
        })  # fmt: skip
        drop = statement("install/table", "drop_invalid_index",
                         {"index": sql.Identifier(config.schema_and_name[0], name)})  # fmt: skip
        yield Step(
            f"{table.name}: index for {status or 'never seen'} rows",
            (drop, create) if found else (create,),
            concurrently=True,
        )


def _refuse_taken_index(connection: Connection, table: Table, name: str) -> None:
    schema = table.config.schema_and_name[0]
    if connection.execute(statement("install/catalog", "relation"), {"schema": schema, "name": name}).fetchone():
        raise UserError(f"{table.name}: {schema}.{name} is there already and not ours; rename it")


def _including(columns: list[str]) -> sql.Composable:
    listed = sql.SQL(", ").join(map(sql.Identifier, columns))
    return sql.SQL("INCLUDE ({})").format(listed) if columns else sql.SQL("")


def _of(table: Table, connection: Connection, name: str) -> dict[str, str]:
    return {"relation": table.names()["relation"].as_string(connection), "name": name}


def trigger_functions(table: Table) -> tuple[str, str]:
    """The names of the functions behind the triggers: of the payload, and of the pointer."""
    return _bounded(_folded(table), "_payload_offload"), _bounded(_folded(table), "_payload_offload_pointer")


def called_functions(table: Table) -> list[str]:
    """The names of the functions that applications call, shared names as well."""
    return [name for _, name, _ in _function_names(table)]


def index_name(table: Table, title: str) -> str:
    """The name of one of `INDEX_TITLES`."""
    return _bounded(table.config.schema_and_name[1], f"_offload_{title}")


def plan_stored_index(connection: Connection, table: Table) -> list[Step]:
    """The index of the rows in storage, where it does not stand: it makes looking for one an instant."""
    steps = _indexes(connection, table, table.names())
    return [step for step in steps if step.title.endswith("in_storage rows")]


def _folded(table: Table) -> str:
    return re.sub(r"[.-]", "_", table.name.lower())


def _bounded(beginning: str, ending: str) -> str:
    """At most 63 bytes; what is cut off the beginning is replaced by a hash, so that long names stay apart."""
    if len((beginning + ending).encode()) <= IDENTIFIER_BYTES:
        return beginning + ending
    ending = f"_{hashlib.sha256(beginning.encode()).hexdigest()[:8]}{ending}"
    return beginning.encode()[: IDENTIFIER_BYTES - len(ending)].decode(errors="ignore") + ending


def _fingerprint(statements: list[sql.Composed], connection: Connection) -> str:
    text = "\n".join(item.as_string(connection) for item in statements)
    return f"{FINGERPRINT}{hashlib.sha256(text.encode()).hexdigest()[:16]}"


# One at a time: two installs would build the same index twice. The server may still be busy ending a command before.
_INSTALL_LOCK = "SELECT pg_advisory_lock(hashtextextended('offload_pipeline install', 0))"
_INSTALL_LOCK_WAIT = "SET LOCAL lock_timeout = '1s'"


def take_install_lock(connection: Connection) -> None:
    """Held until the connection closes. UserError where another install runs."""
    try:
        with connection.transaction():
            connection.execute(_INSTALL_LOCK_WAIT)
            connection.execute(_INSTALL_LOCK)
    except errors.LockNotAvailable:
        raise UserError(
            "another `offload install` is running on this database, or an uninstall; wait for it to end"
        ) from None
