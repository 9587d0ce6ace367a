"""`offload status`: what waits, what was done, and what failed."""

from typing import TYPE_CHECKING, Any

import typer

from offload_pipeline.cli.exit_codes import DONE, one_line
from offload_pipeline.cli.options import JsonOption
from offload_pipeline.cli.output import Output, format_age, format_bytes, format_rows
from offload_pipeline.cli.session import open_session

if TYPE_CHECKING:
    from psycopg import Connection

    from offload_pipeline.database.table import Table
    from offload_pipeline.offload.failures import OpenFailure
    from offload_pipeline.offload.queue import PartitionState, PendingTenant
    from offload_pipeline.pipeline import Pipeline

_NOTHING_DONE = {
    "rows_copied": 0,
    "payload_bytes_copied": 0,
    "object_bytes_copied": 0,
    "rows_released": 0,
    "payload_bytes_released": 0,
    "verified_through": None,
}


def register(app: typer.Typer) -> None:
    """Adds the command of this group."""
    app.command()(status)


def status(as_json: JsonOption = False) -> int:
    """Show the queue, the totals and the open failures of every table and tenant."""
    session = open_session(as_json=as_json)
    pipeline = session.pipeline
    with pipeline.connect() as connection:
        found = [pipeline.inspect(connection, table.name) for table in pipeline.config.tables]
        document: dict[str, Any] = {"tables": [_describe(connection, pipeline, one) for one in found]}
        document["open_failures"] = [vars(failure) for failure in _failures(connection, pipeline, found)]
    session.output.document(document)
    if not as_json:
        _show(session.output, document)
    return DONE


def _failures(connection: "Connection", pipeline: "Pipeline", tables: list["Table"]) -> list["OpenFailure"]:
    from offload_pipeline.offload.failures import open_failures

    if not any(table.is_installed for table in tables):
        return []
    return open_failures(connection, pipeline.database.schema, pipeline.config.offload.max_attempts)


def _describe(connection: "Connection", pipeline: "Pipeline", table: "Table") -> dict[str, Any]:
    from offload_pipeline.offload.queue import partition_states

    head = {"table": table.name, "tenant_column": table.config.tenant.column, "installed": table.is_installed}
    if not table.is_installed:
        return head | {"tenants": [], "without_tenant": None}
    pending = {one.tenant: one for one in pipeline.pending(connection, table)}
    states = {state.tenant: state for state in partition_states(connection, table)}
    tenants = sorted({*states, *(tenant for tenant in pending if tenant is not None)})
    lines = [{"tenant": one} | _waiting(pending.get(one)) | _done(states.get(one)) for one in tenants]
    return head | {
        "tenants": lines,
        "without_tenant": _waiting(pending[None]) if None in pending else None,
    }


def _waiting(pending: "PendingTenant | None") -> dict[str, Any]:
    return {
        "pending_rows": pending.rows if pending else 0,
        "pending_bytes": pending.payload_bytes if pending else 0,
        "oldest_pending_at": pending.oldest if pending else None,
        "oldest_age_seconds": round(pending.age_seconds(), 3) if pending and pending.oldest else None,
    }


def _done(state: "PartitionState | None") -> dict[str, Any]:
    return {name: getattr(state, name) for name in _NOTHING_DONE} if state else _NOTHING_DONE


def _show(output: Output, document: dict[str, Any]) -> None:
    rows = [(table["table"], tenant) for table in document["tables"] for tenant in table["tenants"]]
    if rows:
        _show_tenants(output, rows)
    else:
        output.line("nothing pending, nothing done yet")
    for table in document["tables"]:
        if not table["installed"]:
            output.line(f"{table['table']}: not installed; run: offload install --table {table['table']}", "yellow")
        if table["without_tenant"]:
            output.line(_without_tenant(table), "yellow")
    for failure in document["open_failures"]:
        output.line(_failure(failure), "red" if failure["given_up"] else "")


def _without_tenant(table: dict[str, Any]) -> str:
    column, missing = table["tenant_column"], table["without_tenant"]
    count = f"{format_rows(missing['pending_rows'])} ({format_bytes(missing['pending_bytes'])})"
    return (
        f"{table['table']}: {count} with {column} NULL belong to no partition and stay where they are; "
        f"fill {column} in, or write tenant: {{value: NAME}} in offload.yaml"
    )


def _failure(failure: dict[str, Any]) -> str:
    attempts = failure["attempts"]
    tried = f"{attempts} attempt" if attempts == 1 else f"{attempts} attempts"
    return (
        f"{failure['table']}, tenant {failure['tenant']!r}, key {failure['primary_key']}: {failure['stage']} "
        f"{'given up' if failure['given_up'] else 'failed'} after {tried}: "
        f"{failure['error_class']}: {one_line(failure['message'])}"
    )


def _show_tenants(output: Output, rows: list[tuple[str, dict[str, Any]]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid

    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("table", "tenant"):
        grid.add_column(heading)
    for heading in ("pending", "bytes", "oldest", "copied", "bytes", "stored as", "released", "bytes"):
        grid.add_column(heading, justify="right")
    grid.add_column("verified through")
    for table, tenant in rows:
        age, through = tenant["oldest_age_seconds"], tenant["verified_through"]
        grid.add_row(
            table,
            repr(tenant["tenant"]),
            f"{tenant['pending_rows']:,}",
            format_bytes(tenant["pending_bytes"]),
            "" if age is None else format_age(age),
            f"{tenant['rows_copied']:,}",
            format_bytes(tenant["payload_bytes_copied"]),
            format_bytes(tenant["object_bytes_copied"]),
            f"{tenant['rows_released']:,}",
            format_bytes(tenant["payload_bytes_released"]),
            through.isoformat(" ", "seconds") if through else "never",
        )
    output.show(grid)
