"""`offload status`: what waits, what was done, and what failed."""

import shlex
from typing import TYPE_CHECKING, Any

import typer

from offload_pipeline.cli.exit_codes import DONE, one_line
from offload_pipeline.cli.options import JsonOption
from offload_pipeline.cli.output import Output, format_age, format_bytes, format_rows
from offload_pipeline.cli.report_lines import format_unscanned
from offload_pipeline.cli.session import open_session

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import Connection

    from offload_pipeline.database.table import Table
    from offload_pipeline.offload.queue import PartitionState, PendingTenant
    from offload_pipeline.pipeline import Pipeline

# The rest is counted; payload_offload_failures has them all.
LISTED_FAILURES = 100
_NOTHING_DONE = {
    "rows_copied": 0,
    "payload_bytes_copied": 0,
    "object_bytes_copied": 0,
    "rows_released": 0,
    "payload_bytes_released": 0,
    "verified_through": None,
}
# What is added up over the tenants of a table, and over the tables.
_ADDED_UP = (
    "pending_rows", "pending_bytes", "rows_never_scanned", "rows_copied", "payload_bytes_copied",
    "object_bytes_copied", "rows_released", "payload_bytes_released",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Adds the command of this group."""
    app.command()(status)


def status(as_json: JsonOption = False) -> int:
    """Show the queue, the totals and the open failures of every table and tenant."""
    session = open_session(as_json=as_json)
    pipeline = session.pipeline
    with pipeline.connect() as connection:
        found = pipeline.inspect_all(connection)
        document: dict[str, Any] = {"tables": [_describe(connection, pipeline, one) for one in found]}
        document |= _failures(connection, pipeline, [table for table in found if table.is_installed])
    session.output.document(document)
    if not as_json:
        _show(session.output, document)
    return DONE


def _failures(connection: "Connection", pipeline: "Pipeline", tables: list["Table"]) -> dict[str, Any]:
    """How many there are, how many of them were given up, and the newest."""
    from offload_pipeline.offload.failures import count_open, open_failures

    most = pipeline.config.offload.max_attempts
    counted = [found for table in tables for found in count_open(connection, table, most).values()]
    names = [table.name for table in tables]
    newest = open_failures(connection, pipeline.database.schema, most, LISTED_FAILURES, names) if names else []
    return {
        "failures_open": sum(count for count, _ in counted),
        "failures_given_up": sum(given_up for _, given_up in counted),
        "open_failures": [vars(failure) for failure in newest],
    }


def _describe(connection: "Connection", pipeline: "Pipeline", table: "Table") -> dict[str, Any]:
    from offload_pipeline.offload.queue import partition_states
    from offload_pipeline.verification.report import never_scanned

    head = {"table": table.name, "tenant_column": table.config.tenant.column, "installed": table.is_active}
    if not table.is_active:
        return head | {"tenants": [], "totals": _total([]), "without_tenant": None}
    pending = {one.tenant: one for one in pipeline.pending(connection, table)}
    states = {state.tenant: state for state in partition_states(connection, table)}
    unscanned = never_scanned(connection, table)
    tenants = sorted({*states, *unscanned, *(tenant for tenant in pending if tenant is not None)})
    lines = [
        {"tenant": one}
        | _waiting(pending.get(one))
        | {"rows_never_scanned": unscanned.get(one, 0)}
        | _done(states.get(one))
        for one in tenants
    ]
    return head | {
        "tenants": lines,
        "totals": _total(lines),
        "without_tenant": _waiting(pending[None]) if None in pending else None,
    }


def _total(lines: list[dict[str, Any]]) -> dict[str, int]:
    return {name: sum(line[name] for line in lines) for name in _ADDED_UP}


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
        if table["totals"]["rows_never_scanned"]:
            output.line(_never_scanned(table), "yellow")
    if document["failures_open"]:
        given_up = document["failures_given_up"]
        retry = "; to have those tried again, run: offload drain --retry-failed" if given_up else ""
        output.line(f"open failures: {document['failures_open']:,}, given up: {given_up:,}{retry}", "red")
    for failure in document["open_failures"]:
        output.line(_failure(failure), "red" if failure["given_up"] else "")
    if more := document["failures_open"] - len(document["open_failures"]):
        output.line(f"{more:,} more; payload_offload_failures lists them all")


def _never_scanned(table: dict[str, Any]) -> str:
    rows = table["totals"]["rows_never_scanned"]
    tenants = [tenant["tenant"] for tenant in table["tenants"] if tenant["rows_never_scanned"]]
    whose = f"of tenant {tenants[0]!r}" if len(tenants) == 1 else f"of {len(tenants):,} tenants"
    named = shlex.quote(tenants[0]) if len(tenants) == 1 else "TENANT"
    return (
        f"{table['table']}: {format_unscanned(rows)} {whose} never scanned; "
        f"run: offload backfill --table {table['table']} --tenant {named}"
    )


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
    headings = ("pending", "bytes", "oldest", "never scanned", "copied", "bytes", "stored as", "released", "bytes")
    for heading in headings:
        grid.add_column(heading, justify="right")
    grid.add_column("verified through")
    for table, tenant in rows:
        grid.add_row(table, repr(tenant["tenant"]), *_cells(tenant), _through(tenant["verified_through"]))
    if len(rows) > 1:
        totals = {"oldest_age_seconds": None} | _total([tenant for _, tenant in rows])
        grid.add_section()
        grid.add_row("all", "", *_cells(totals), "")
    output.show(grid)


def _cells(numbers: dict[str, Any]) -> list[str]:
    age = numbers["oldest_age_seconds"]
    return [
        f"{numbers['pending_rows']:,}",
        format_bytes(numbers["pending_bytes"]),
        "" if age is None else format_age(age),
        f"{numbers['rows_never_scanned']:,}",
        f"{numbers['rows_copied']:,}",
        format_bytes(numbers["payload_bytes_copied"]),
        format_bytes(numbers["object_bytes_copied"]),
        f"{numbers['rows_released']:,}",
        format_bytes(numbers["payload_bytes_released"]),
    ]


def _through(moment: "datetime | None") -> str:
    return moment.isoformat(" ", "seconds") if moment else "never"
