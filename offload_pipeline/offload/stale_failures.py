"""Failures that nothing will ever resolve by succeeding: the row was deleted, or no longer needs that stage."""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import psycopg
from psycopg import Connection

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.offload.failures import parsed_key
from offload_pipeline.offload.stored import PAGE_ROWS

# The states of a row in which a failure at a stage still means something. A row queued again after it was found
# damaged, or could not be released, is not mended before it is copied, verified and released. None: never seen.
MEANINGFUL: Mapping[str, tuple[str | None, ...]] = {
    "copy": (None, "pending_move"),
    "verify": ("pending_move", "copied", "in_storage"),
    "release": ("pending_move", "copied"),
    "restore": ("copied", "in_storage"),
    "expire": ("in_storage",),
}
# A write that failed may have left no row, or the row as it was, and was said aloud to the application: the line is all
# there is of it, until a write succeeds or it is no news any more.
WRITE_IS_NEWS_FOR = timedelta(days=1)


class _Line(NamedTuple):
    """What tells one open failure from all others, and from itself failing again."""

    tenant: str
    primary_key: str
    stage: str
    last_failed_at: datetime


def resolve_stale_failures(connection: Connection, table: Table, tenant: str | None = None) -> int:
    """Closes the table's stale failures, of one tenant or of all; looks at no row without one. Returns how many."""
    resolved, last = 0, None
    newest, now = _newest_and_now(connection, table)
    # What fails from here on comes no more: its row has just been looked at.
    while newest and (page := _page(connection, table, tenant, last, newest)):
        stale = _stale(connection, table, page, now)
        with transaction(connection):
            resolved += connection.execute(
                statement("offload/failures", "resolve_stale", table.names()),
                {
                    "table": table.name,
                    "tenants": [line.tenant for line in stale],
                    "primary_keys": [line.primary_key for line in stale],
                    "stages": [line.stage for line in stale],
                    "moments": [line.last_failed_at for line in stale],
                },
            ).rowcount
        last = page[-1]
    return resolved


def _newest_and_now(connection: Connection, table: Table) -> tuple[datetime | None, datetime]:
    with transaction(connection):
        row = connection.execute(statement("offload/failures", "newest_open", table.names())).fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns one row
    return row[0], row[1]


def _page(
    connection: Connection, table: Table, tenant: str | None, after: _Line | None, until: datetime
) -> list[_Line]:
    with transaction(connection):
        rows = connection.execute(
            statement("offload/failures", "open_in_table", table.names()),
            {
                "table": table.name,
                "tenant": tenant,
                "until": until,
                "last_failed_at": after.last_failed_at if after else "-infinity",
                "after_tenant": after.tenant if after else "",
                "after": after.primary_key if after else "",
                "after_stage": after.stage if after else "",
                "page_rows": PAGE_ROWS,
            },
        ).fetchall()
    return [_Line(*row) for row in rows]


def _stale(connection: Connection, table: Table, page: Sequence[_Line], now: datetime) -> list[_Line]:
    """The lines whose row is gone, belongs to another tenant now, or is in a state that the stage has no part in."""
    writes = [line for line in page if line.stage == "write"]
    others = [line for line in page if line.stage != "write"]
    statuses = _statuses_of(connection, table, others)
    return [line for line in writes if line.last_failed_at < now - WRITE_IS_NEWS_FOR] + [
        line for line in others if line not in statuses or not _means_something(table, line.stage, statuses[line])
    ]


def _statuses_of(connection: Connection, table: Table, page: Sequence[_Line]) -> dict[_Line, str | None]:
    """Of the lines whose row exists."""
    by_key = [(line, key) for line in page if (key := parsed_key(table, line.primary_key)) is not None]
    try:
        return _statuses(connection, table, by_key)
    except psycopg.DataError:
        found: dict[_Line, str | None] = {}
        for one in by_key:
            with contextlib.suppress(psycopg.DataError):
                found |= _statuses(connection, table, [one])
        return found


def _statuses(connection: Connection, table: Table, lines: Sequence[tuple[_Line, Key]]) -> dict[_Line, str | None]:
    """Raises DataError for a text that the type of the key refuses: no row can have it either."""
    parameters = {
        **table.key_parameters([key for _, key in lines]),
        "tenants": [line.tenant for line, _ in lines],
    }
    with transaction(connection):
        rows = connection.execute(
            statement("offload/failures", "statuses_of_failed", table.names()), parameters
        ).fetchall()
    return {lines[position - 1][0]: status for position, status in rows}


def _means_something(table: Table, stage: str, status: str | None) -> bool:
    if stage == "release" and table.config.after_copy == "keep":
        return False
    # A stage that this version does not know is left to the one that does.
    return stage not in MEANINGFUL or status in MEANINGFUL[stage]
