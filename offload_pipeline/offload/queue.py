"""The pending queue seen from outside: how deep, how heavy, how old, per tenant."""

from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg import Connection, sql

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table


@dataclass(frozen=True)
class PendingTenant:
    """What waits for one tenant. `tenant` None: rows whose tenant column is NULL, which belong to no partition."""

    tenant: str | None
    rows: int
    payload_bytes: int
    oldest: datetime | None

    def age_seconds(self, now: datetime | None = None) -> float:
        """Age of the oldest pending row; 0 where the table has no `created_at`."""
        return max(0.0, ((now or datetime.now(UTC)) - self.oldest).total_seconds()) if self.oldest else 0.0


@dataclass(frozen=True)
class CopiedTenant:
    """Copies whose payload is still in the row, of one tenant (None: its column is NULL).

    `rows_verified` of them have passed the gate; `rows_releasable` of those, release_delay over, a pass would free.
    """

    tenant: str | None
    rows: int
    payload_bytes: int
    rows_verified: int
    rows_releasable: int


@dataclass(frozen=True)
class PartitionState:
    """A line of `payload_offload_state`: what was done so far, restored and rewritten payloads included."""

    tenant: str
    rows_copied: int
    payload_bytes_copied: int
    object_bytes_copied: int
    rows_released: int
    payload_bytes_released: int
    verified_through: datetime | None


def pending_by_tenant(
    connection: Connection, table: Table, max_attempts: int, tenant: str | None = None
) -> list[PendingTenant]:
    """The queue of one table, oldest first; with `tenant` only that one's, read without the others'."""
    names = table.names()
    names["is_chosen"] = sql.SQL("TRUE") if tenant is None else names["is_tenant"]
    with transaction(connection):
        rows = connection.execute(
            statement("offload/queue", "pending_by_tenant", names),
            {"table": table.name, "max_attempts": max_attempts, "tenant": tenant},
        ).fetchall()
    found = [PendingTenant(tenant, count, size, _as_utc(oldest)) for tenant, count, size, oldest in rows]
    return sorted(found, key=lambda pending: (-pending.age_seconds(), -pending.rows))


def unreleased_by_tenant(connection: Connection, table: Table, max_attempts: int) -> list[PendingTenant]:
    """Copies that could be free by now, with the moment since when; none for a table that keeps its payloads."""
    if table.config.after_copy == "keep":
        return []
    with transaction(connection):
        rows = connection.execute(
            statement("offload/queue", "unreleased_by_tenant", table.names()),
            {"table": table.name, "max_attempts": max_attempts, "release_delay": table.config.release_delay},
        ).fetchall()
    return [PendingTenant(*row) for row in rows]


def copied_by_tenant(connection: Connection, table: Table, max_attempts: int) -> list[CopiedTenant]:
    """What is in the store and in the row as well; nothing of a table that keeps its payloads is to be released."""
    with transaction(connection):
        rows = connection.execute(
            statement("offload/queue", "copied_by_tenant", table.names()),
            {"table": table.name, "max_attempts": max_attempts, "release_delay": table.config.release_delay},
        ).fetchall()
    is_kept = table.config.after_copy == "keep"
    return [
        CopiedTenant(tenant, count, size, verified or 0, 0 if is_kept else releasable or 0)
        for tenant, count, size, verified, releasable in rows
    ]


def tenants_having(connection: Connection, table: Table, status: str | None) -> list[str]:
    """The tenants with rows of this status (None: older than the trigger); the one of a table that has but one."""
    if table.config.tenant.value is not None:
        return [table.config.tenant.value]
    has_status = sql.SQL("IS NULL") if status is None else sql.SQL("= {}").format(sql.Literal(status))
    with transaction(connection):
        rows = connection.execute(
            statement("offload/queue", "tenants_having", table.names() | {"has_status": has_status})
        )
        return [tenant for (tenant,) in rows]


def tenants_with_work(connection: Connection, table: Table, max_attempts: int) -> set[str]:
    """The tenants that a pass over the queue would do anything for; `keep` leaves verified copies as they are."""
    if table.config.after_copy == "keep":
        found = copied_by_tenant(connection, table, max_attempts)
        copied = [one.tenant for one in found if one.rows > one.rows_verified and one.tenant is not None]
    else:
        copied = _tenants_with(connection, table, "copied")
    with transaction(connection):
        rows = connection.execute(
            statement("offload/failures", "tenants_having_open", table.names()), {"table": table.name}
        ).fetchall()
    return {*_tenants_with(connection, table, "pending_move"), *copied, *(tenant for (tenant,) in rows)}


def _tenants_with(connection: Connection, table: Table, status: str) -> list[str]:
    """As `tenants_having`, and none for a table of one tenant without such a row."""
    if table.config.tenant.value is not None:
        names = table.names() | {"has_status": sql.SQL("= {}").format(sql.Literal(status))}
        with transaction(connection):
            if connection.execute(statement("offload/queue", "has_status", names)).fetchone() == (False,):
                return []
    return tenants_having(connection, table, status)


def known_tenants(connection: Connection, table: Table) -> list[str]:
    """The tenants that were ever worked on in this table."""
    with transaction(connection):
        rows = connection.execute(statement("offload/queue", "known_tenants", table.names()), {"table": table.name})
        return [tenant for (tenant,) in rows]


def partition_states(connection: Connection, table: Table) -> list[PartitionState]:
    """Progress and gate of each tenant of a table."""
    with transaction(connection):
        rows = connection.execute(statement("offload/queue", "state_by_tenant", table.names()), {"table": table.name})
        return [PartitionState(*row) for row in rows]


def _as_utc(moment: object) -> datetime | None:
    """`created_at` may be a date or a timestamp without zone, which is then taken as UTC."""
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        moment = datetime.fromisoformat(str(moment))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
