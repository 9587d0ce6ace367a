"""What a table looks like: its rows by state, how much of it is in storage, what failed. Cheap on any table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection, sql

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table
from offload_pipeline.offload.failures import count_open

# Counting what lies in so few bytes takes a moment (an index of some 200,000 rows); more is estimated.
COUNTED_BYTES = 8 * 1024 * 1024
# Enough to say that a backfill is due.
MOST_NEVER_SCANNED = 100_000


@dataclass(frozen=True)
class TableReport:
    """One table as it stands. `estimated` names the numbers that were not counted; None: not known.

    Shares are between 0 and 1: of all rows, and of the payload bytes that were ever measured (pending, copied, in
    storage, and held after a restore; not the last where `rows_held` is None: there they are not counted). What is in
    storage is weighed by the average. Averages are over everything copied so far. `rows_never_seen` are older than the
    trigger; `rows_never_scanned` are those of them that no backfill has looked at yet, counted up to 100,001. Sizes are
    on disk.
    """

    table: str
    rows: int | None
    rows_pending: int | None
    rows_copied: int | None
    rows_in_storage: int | None
    rows_held: int | None
    rows_never_seen: int | None
    rows_never_scanned: int
    offloaded_share_of_rows: float | None
    offloaded_share_of_bytes: float | None
    average_payload_bytes: int | None
    average_object_bytes: int | None
    heap_bytes: int
    toast_bytes: int
    index_bytes: int
    tenants: int
    tenants_never_verified: int
    verified_through_oldest: datetime | None
    fully_verified_oldest: datetime | None
    open_failures: dict[str, int]
    failures_given_up: int
    estimated: tuple[str, ...]


def report_table(connection: Connection, table: Table, max_attempts: int) -> TableReport:
    """Reads the catalog, the bookkeeping, and a few megabytes at most of the table and of each of its indexes."""
    with transaction(connection):
        sizes, rows, held = _sizes(connection, table)
        states = _states(connection, table)
        done = _done(connection, table)
    failures = count_open(connection, table, max_attempts)
    payload = _mean(done.payload_bytes, done.rows)
    pending, copied, stored, never_seen = (states[name] for name, *_ in _STATES)
    counted = {"rows": rows, **{f"rows_{name}": found for name, found in states.items()}}
    return TableReport(
        table=table.name,
        rows=rows.rows,
        rows_pending=pending.rows,
        rows_copied=copied.rows,
        rows_in_storage=stored.rows,
        rows_held=held.rows,
        rows_never_seen=never_seen.rows,
        rows_never_scanned=sum(never_scanned(connection, table).values()),
        offloaded_share_of_rows=_share(stored.rows, rows.rows),
        offloaded_share_of_bytes=_share_of_bytes(payload, stored, pending, copied, held),
        average_payload_bytes=payload,
        average_object_bytes=_mean(done.object_bytes, done.rows),
        heap_bytes=sizes.heap_bytes,
        toast_bytes=sizes.toast_bytes,
        index_bytes=sizes.index_bytes,
        tenants=done.tenants,
        tenants_never_verified=done.tenants_never_verified,
        verified_through_oldest=done.verified_through_oldest,
        fully_verified_oldest=done.fully_verified_oldest,
        open_failures={stage: count for stage, (count, _) in failures.items()},
        failures_given_up=sum(given_up for _, given_up in failures.values()),
        estimated=tuple(name for name, found in counted.items() if not found.is_counted),
    )


def never_scanned(connection: Connection, table: Table) -> dict[str, int]:
    """By tenant: rows older than the trigger where no backfill has come to its end; counted up to 100,001 in all."""
    name = "never_scanned" if table.config.tenant.column else "never_scanned_of_the_one_tenant"
    with transaction(connection):
        rows = connection.execute(
            statement("verification/report", name, table.names()),
            {"table": table.name, "most_rows": MOST_NEVER_SCANNED + 1},
        ).fetchall()
    return dict(rows)


def rows_in_storage(connection: Connection, table: Table) -> tuple[int | None, bool]:
    """How many rows have their payload in storage alone (None: not known), and whether they were counted."""
    with transaction(connection):
        found = _states(connection, table, ("in_storage",))["in_storage"]
    return found.rows, found.is_counted


class _Count(NamedTuple):
    rows: int | None
    is_counted: bool
    payload_bytes: int | None = None

    def bytes_at(self, average: int) -> int:
        return (self.rows or 0) * average if self.payload_bytes is None else self.payload_bytes


class _Sizes(NamedTuple):
    heap_bytes: int
    toast_bytes: int
    index_bytes: int


class _Done(NamedTuple):
    tenants: int
    tenants_never_verified: int
    verified_through_oldest: datetime | None
    fully_verified_oldest: datetime | None
    rows: int
    payload_bytes: int
    object_bytes: int


# The state's name, the index that leads to its rows, its condition, and whether the index holds their sizes.
_STATES = (
    ("pending", "pending", "= 'pending_move'", True),
    ("copied", "copied", "= 'copied'", True),
    ("in_storage", "stored", "= 'in_storage'", False),
    ("never_seen", "unseen", "IS NULL", False),
)


def _sizes(connection: Connection, table: Table) -> tuple[_Sizes, _Count, _Count]:
    """Bytes on disk, all rows, and those held after a restore: no index leads to these, so only few are counted."""
    *sizes, main_bytes, estimate = _one(connection, "sizes", table, {}, _relation(connection, table))
    if main_bytes > COUNTED_BYTES:
        return _Sizes(*sizes), _Count(estimate, is_counted=False), _Count(None, is_counted=False, payload_bytes=0)
    rows, held, held_bytes = _one(connection, "count_rows", table)
    return _Sizes(*sizes), _Count(rows, is_counted=True), _Count(held, is_counted=True, payload_bytes=held_bytes)


def _states(connection: Connection, table: Table, only: Sequence[str] = ()) -> dict[str, _Count]:
    rows = connection.execute(statement("verification/report", "index_sizes"), _relation(connection, table)).fetchall()
    indexes = {title: (main_bytes, estimate) for title, main_bytes, estimate in rows}
    found = {}
    for name, title, condition, has_sizes in _STATES:
        if only and name not in only:
            continue
        main_bytes, estimate = indexes.get(title, (None, None))
        if main_bytes is None or main_bytes > COUNTED_BYTES:
            found[name] = _Count(estimate, is_counted=False)
            continue
        query = "weigh_state" if has_sizes else "count_in_state"
        count, *payload_bytes = _one(connection, query, table, {"has_status": sql.SQL(condition)})
        found[name] = _Count(count, is_counted=True, payload_bytes=payload_bytes[0] if has_sizes else None)
    return found


def _done(connection: Connection, table: Table) -> _Done:
    return _Done(*_one(connection, "progress", table, {}, {"table": table.name}))


def _one(
    connection: Connection, name: str, table: Table, names: Mapping[str, sql.Composable] | None = None,
    bound: Mapping[str, str] | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    query = statement("verification/report", name, {**table.names(), **(names or {})})
    found = connection.execute(query, bound or None).fetchone()
    assert found is not None  # noqa: S101 - an aggregate returns one row
    return found


def _relation(connection: Connection, table: Table) -> dict[str, str]:
    return {"relation": table.names()["relation"].as_string(connection)}


def _mean(total: int, count: int) -> int | None:
    return round(total / count) if count else None


def _share(part: int | None, whole: int | None) -> float | None:
    """At most 1, whatever the estimates say."""
    return min(1.0, part / whole) if whole and part is not None else None


def _share_of_bytes(average: int | None, stored: _Count, *elsewhere: _Count) -> float | None:
    """Nothing is known of the bytes in storage before something was copied."""
    if average is None:
        return None
    in_storage = stored.bytes_at(average)
    return _share(in_storage, in_storage + sum(found.bytes_at(average) for found in elsewhere))
