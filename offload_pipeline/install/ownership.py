"""What goes by one of our names and is not ours: install takes nothing over, and uninstall drops none of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import Connection, sql

from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import GUARD_TRIGGER, Table
from offload_pipeline.errors import UserError

# What the comments of our triggers and functions begin with.
FINGERPRINT = "offload_pipeline "
# By its name our function knows that a row is there for its move alone.
MOVE_TRIGGER = "zz_payload_offload_move"
# Fires after the application's own BEFORE triggers, which run in the order of their names.
TRIGGER_NAMES = (
    "zz_payload_offload_insert",
    GUARD_TRIGGER,
    MOVE_TRIGGER,
    "zz_payload_offload_whole",
)
# By these columns a bookkeeping table is told from another of its name; they never change.
BOOKKEEPING_COLUMNS = {
    "payload_offload_state": ("tenant_id", "table_name", "checkpoint", "verification_mark", "verified_through"),
    "payload_offload_failures": ("table_name", "tenant_id", "primary_key", "stage", "row_version", "resolved_at"),
    "payload_offload_log": ("logged_at", "run_id", "table_name", "tenant_id", "action", "rows", "bytes"),
    "payload_offload_expired": ("object_key", "table_name", "tenant_id", "expired_at"),
    "payload_offload_deleted": ("object_key", "asked_at"),
    "archival_log": ("logged_at", "run_id", "table_name", "tenant_id", "action", "rows", "bytes", "location"),
}


@dataclass(frozen=True)
class OurFunction:
    """A function that is not called by applications alone. `mark`: what its body has had in every version."""

    name: str
    arguments: str
    result: str
    mark: str


BOOKKEEPING_FUNCTIONS = (
    OurFunction("calculate_payload_size", "jsonb", "bigint", "RETURN octet_length((payload)::text)"),
    OurFunction("payload_offload_refuse_change", "", "trigger", "is append-only"),
)


@dataclass(frozen=True)
class CalledFunction:
    """A function that applications call, as it stands. `other_table`: the installed one that it reads instead."""

    comment: str
    result: str
    reads_this_table: bool
    other_table: str | None

    @property
    def is_ours(self) -> bool:
        """Whether install wrote it."""
        return self.comment.startswith(FINGERPRINT)


def of_triggers(payload_function: str, pointer_function: str) -> tuple[OurFunction, ...]:
    """The functions behind one table's triggers."""
    return (
        OurFunction(payload_function, "", "trigger", "is in object storage"),
        OurFunction(pointer_function, "", "trigger", "-infinity"),
    )


def refuse_taken_relations(connection: Connection, schema: str) -> None:
    """UserError for a table, view, index or sequence that goes by a bookkeeping table's name and is none."""
    pairs = [(table, column) for table, columns in BOOKKEEPING_COLUMNS.items() for column in columns]
    tables, columns = (list(part) for part in zip(*pairs, strict=True))
    bound = {"schema": schema, "tables": tables, "columns": columns}
    found = connection.execute(statement("install/ownership", "taken_relation"), bound).fetchone()
    if found:
        name, is_table, column = found
        why = f"has no column {column}" if is_table else "is no table"
        raise UserError(
            f"{schema}.{name} is there already and not ours (it {why}); rename it, or name another database.schema"
        )


def refuse_taken_functions(connection: Connection, schema: str, functions: Sequence[OurFunction]) -> None:
    """UserError for a function of the same name and arguments that install did not write."""
    bound = {
        "schema": schema,
        "names": [one.name for one in functions],
        "arguments": [one.arguments for one in functions],
        "results": [one.result for one in functions],
        "marks": [one.mark for one in functions],
        "triggers": list(TRIGGER_NAMES),
    }
    found = connection.execute(statement("install/ownership", "taken_function"), bound).fetchone()
    if found:
        raise not_ours(f"{schema}.{found[0]}({found[1]})")


def not_ours(signature: str) -> UserError:
    """What is said of a function that install would replace, and did not write."""
    return UserError(
        f"the function {signature} is there already and not ours; rename or drop it, or name another database.schema"
    )


def called_function(connection: Connection, table: Table, signature: str) -> CalledFunction | None:
    """The function of this signature, None where there is none."""
    bound = {
        "signature": signature,
        "relation": table.names()["relation"].as_string(connection),
        "guard": GUARD_TRIGGER,
    }
    found = connection.execute(
        statement("install/ownership", "called_function", {"other_table": other_table()}), bound
    ).fetchone()
    return CalledFunction(*found) if found else None


def other_table() -> sql.Composed:
    """The installed table that the body of `p` reads instead of this one, as a subquery."""
    return statement("install/ownership", "other_table")
