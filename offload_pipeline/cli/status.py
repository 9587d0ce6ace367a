"""`offload status`: what waits, what was done, and what failed."""

import shlex
from collections.abc import Iterator
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
    from offload_pipeline.offload.queue import CopiedTenant, PartitionState, PendingTenant
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
    "pending_rows", "pending_bytes", "unreleased_rows", "unreleased_bytes", "unverified_rows", "releasable_rows",
    "rows_never_scanned", "rows_copied", "payload_bytes_copied", "object_bytes_copied", "rows_released",
    "payload_bytes_released",
)  # fmt: skip
# What has failed at these stages is tried again by passes, until it is given up; restores are up to whoever runs them.
_RETRIED_BY_DRAIN = ("copy", "write", "release")


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
    """How many there are, how many of them were given up, by stage as well, and the newest."""
    from offload_pipeline.offload.failures import count_open, open_failures

    most = pipeline.config.offload.max_attempts
    by_stage: dict[str, dict[str, int]] = {}
    for table in tables:
        for stage, (count, given_up) in count_open(connection, table, most).items():
            counted = by_stage.setdefault(stage, {"open": 0, "given_up": 0})
            counted["open"] += count
            counted["given_up"] += given_up
    names = [table.name for table in tables]
    newest = open_failures(connection, pipeline.database.schema, most, LISTED_FAILURES, names) if names else []
    return {
        "failures_open": sum(counted["open"] for counted in by_stage.values()),
        "failures_given_up": sum(counted["given_up"] for counted in by_stage.values()),
        "failures_by_stage": by_stage,
        "open_failures": [vars(failure) for failure in newest],
    }


def _describe(connection: "Connection", pipeline: "Pipeline", table: "Table") -> dict[str, Any]:
    from offload_pipeline.offload.queue import copied_by_tenant, partition_states
    from offload_pipeline.verification.report import never_scanned, rows_in_storage

    head: dict[str, Any] = {
        "table": table.name,
        "tenant_column": table.config.tenant.column,
        "installed": table.is_active,
    }
    if not table.is_active:
        return head | {"tenants": [], "totals": _total([]), "without_tenant": None, "rows_in_storage": None}
    stored, is_counted = rows_in_storage(connection, table)
    head |= {"after_copy": table.config.after_copy, "rows_in_storage": stored, "is_estimate": not is_counted}
    pending = {one.tenant: one for one in pipeline.pending(connection, table)}
    copied = {one.tenant: one for one in copied_by_tenant(connection, table, pipeline.config.offload.max_attempts)}
    states = {state.tenant: state for state in partition_states(connection, table)}
    unscanned = never_scanned(connection, table)
    tenants = sorted({*states, *unscanned, *(tenant for tenant in (*pending, *copied) if tenant is not None)})
    lines = [
        {"tenant": one}
        | _waiting(pending.get(one))
        | _unreleased(copied.get(one))
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


def _unreleased(copied: "CopiedTenant | None") -> dict[str, int]:
    """Copies whose payload is still in the row; of them, those not verified yet, and those to be freed by now."""
    return {
        "unreleased_rows": copied.rows if copied else 0,
        "unreleased_bytes": copied.payload_bytes if copied else 0,
        "unverified_rows": copied.rows - copied.rows_verified if copied else 0,
        "releasable_rows": copied.rows_releasable if copied else 0,
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
        for line, style in _lines_of(table):
            output.line(line, style)
    if document["failures_open"]:
        output.line(_failures_line(document), "red")
    for failure in document["open_failures"]:
        output.line(_failure(failure), "red" if failure["given_up"] else "")
    if more := document["failures_open"] - len(document["open_failures"]):
        output.line(f"{more:,} more; payload_offload_failures lists them all")


def _lines_of(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What concerns a table as a whole, and what to do about it."""
    if not table["installed"]:
        yield f"{table['table']}: not installed; run: offload install --table {table['table']}", "yellow"
    elif table["tenants"]:
        about = "about " if table["is_estimate"] else ""
        stored = "unknown" if table["rows_in_storage"] is None else about + format_rows(table["rows_in_storage"])
        yield f"{table['table']}: in storage now: {stored}", ""
    if table["without_tenant"]:
        yield _without_tenant(table), "yellow"
    for count, what, command in (
        ("unverified_rows", "copied and not verified", "drain"),
        ("releasable_rows", "copied and verified, and not released", "release"),
    ):
        if table["totals"][count]:
            name, rows = table["table"], format_rows(table["totals"][count])
            yield f"{name}: {rows} {what}; run: offload {command} --table {name}", "yellow"
    if table["totals"]["rows_never_scanned"]:
        yield _never_scanned(table), "yellow"


def _failures_line(document: dict[str, Any]) -> str:
    """How many, and for each stage the command that tries what was given up again; restores are never given up."""
    by_stage, given_up = document["failures_by_stage"], document["failures_given_up"]
    line = f"open failures: {document['failures_open']:,}, given up: {given_up:,}"
    if any(by_stage.get(stage, {}).get("given_up") for stage in _RETRIED_BY_DRAIN):
        line += "; to have those tried again, run: offload drain --retry-failed"
    if by_stage.get("expire", {}).get("given_up"):
        line += "; to have expiry tried again, run: offload drain --retry-failed, then offload expire --delete"
    if "restore" in by_stage:
        line += f"; of restores: {by_stage['restore']['open']:,}, tried again by: offload restore"
    return line


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
    tried = {0: ", to be tried again", 1: " after 1 attempt"}.get(attempts, f" after {attempts} attempts")
    return (
        f"{failure['table']}, tenant {failure['tenant']!r}, key {failure['primary_key']}: {failure['stage']} "
        f"{'given up' if failure['given_up'] else 'failed'}{tried}: "
        f"{failure['error_class']}: {one_line(failure['message'])}"
    )


def _show_tenants(output: Output, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """A line for each tenant where the lines fit, else a line for each fact: a number is never cut."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid

    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("table", "tenant"):
        grid.add_column(heading)
    headings = (
        "pending", "bytes", "oldest", "copied", "bytes", "never scanned",
        "copied so far", "bytes", "stored as", "released so far", "bytes",
    )  # fmt: skip
    for heading in headings:
        grid.add_column(heading, justify="right")
    grid.add_column("verified through")
    for table, tenant in rows:
        grid.add_row(table, repr(tenant["tenant"]), *_cells(tenant), _through(tenant["verified_through"]))
    totals = {"oldest_age_seconds": None} | _total([tenant for _, tenant in rows])
    if len(rows) > 1:
        grid.add_section()
        grid.add_row("all", "", *_cells(totals), "")
    if output.has_room_for(grid):
        output.show(grid)
        return
    for table, tenant in rows:
        through = _through(tenant["verified_through"])
        output.line(f"{table}, tenant {tenant['tenant']!r}: verified through {through}")
        _show_facts(output, tenant)
    if len(rows) > 1:
        output.line("all:")
        _show_facts(output, totals)


def _show_facts(output: Output, numbers: dict[str, Any]) -> None:
    age = numbers["oldest_age_seconds"]
    oldest = "" if age is None else f", oldest {format_age(age)}"
    output.line(f"  pending: {_rows_and_bytes(numbers, 'pending_rows', 'pending_bytes')}{oldest}")
    output.line(f"  copied, not released: {_rows_and_bytes(numbers, 'unreleased_rows', 'unreleased_bytes')}")
    output.line(f"  never scanned: {format_rows(numbers['rows_never_scanned'])}")
    copied = _rows_and_bytes(numbers, "rows_copied", "payload_bytes_copied")
    output.line(f"  copied so far: {copied}, stored as {format_bytes(numbers['object_bytes_copied'])}")
    output.line(f"  released so far: {_rows_and_bytes(numbers, 'rows_released', 'payload_bytes_released')}")


def _rows_and_bytes(numbers: dict[str, Any], rows: str, size: str) -> str:
    return f"{format_rows(numbers[rows])} ({format_bytes(numbers[size])})"


def _cells(numbers: dict[str, Any]) -> list[str]:
    age = numbers["oldest_age_seconds"]
    return [
        f"{numbers['pending_rows']:,}",
        format_bytes(numbers["pending_bytes"]),
        "" if age is None else format_age(age),
        f"{numbers['unreleased_rows']:,}",
        format_bytes(numbers["unreleased_bytes"]),
        f"{numbers['rows_never_scanned']:,}",
        f"{numbers['rows_copied']:,}",
        format_bytes(numbers["payload_bytes_copied"]),
        format_bytes(numbers["object_bytes_copied"]),
        f"{numbers['rows_released']:,}",
        format_bytes(numbers["payload_bytes_released"]),
    ]


def _through(moment: "datetime | None") -> str:
    return moment.isoformat(" ", "seconds") if moment else "never"
