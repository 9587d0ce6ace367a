"""What a command starts from: the opened pipeline, a run id for the audit log, and where to say things."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offload_pipeline.cli.output import Output, shows_progress
from offload_pipeline.errors import UserError

if TYPE_CHECKING:
    from psycopg import Connection

    from offload_pipeline.database.table import Key, Table
    from offload_pipeline.offload.claims import Partition
    from offload_pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Session:
    """One run of one command."""

    pipeline: "Pipeline"
    run_id: str
    output: Output

    def partitions(self, table: str | None, tenant: str | None) -> list["Partition"]:
        """The partitions of one or all tables, of one or all tenants; none for a tenant with small rows alone.

        A tenant counts only as the database writes it: another spelling of the same value (`007` for an
        integer) would name other object keys for the same rows. UserError for one that nothing is known of.
        """
        with self.pipeline.connect() as connection:
            found = self.pipeline.partitions(connection, table, None)
            wanted = [partition for partition in found if tenant in (None, partition.tenant)]
            if tenant is not None and not wanted:
                self.refuse_unknown(connection, self.pipeline.tables(connection, table), tenant)
        return wanted

    def with_work(self, partitions: Sequence["Partition"]) -> list["Partition"]:
        """Of these, the ones that have something to copy, to verify or to release, or a failure open."""
        from offload_pipeline.offload.queue import tenants_with_work

        tables = {partition.table.name: partition.table for partition in partitions}
        most = self.pipeline.config.offload.max_attempts
        with self.pipeline.connect() as connection:
            busy = {name: tenants_with_work(connection, table, most) for name, table in tables.items()}
        return [partition for partition in partitions if partition.tenant in busy[partition.table.name]]

    def refuse_unknown(self, connection: "Connection", tables: Sequence["Table"], tenant: str) -> None:
        """UserError, with the nearest that there is, where none of these tables has ever heard of the tenant."""
        from offload_pipeline.offload.unknown_tenant import refuse_unknown_tenant

        others = {one for table in tables for one in self.pipeline.tenants(connection, table)}
        refuse_unknown_tenant(connection, tables, tenant, others)

    def chosen(
        self, table: str | None, tenant: str | None, primary_key: str | None
    ) -> tuple[list["Partition"], "Key | None"]:
        """As `partitions`; with a primary key the one row and its partition, none if the row is another tenant's.

        Raises RowNotFoundError, or UserError for what is no key or comes without its table.
        """
        if primary_key is None:
            return self.partitions(table, tenant), None
        if table is None:
            raise UserError("--primary-key needs the table it is in; add --table TABLE")
        partition, key = self.pipeline.row(table, primary_key)
        return ([partition] if tenant in (None, partition.tenant) else []), key

    def rows_ahead(self, partition: "Partition", *, unseen: bool = False, resume: bool = True) -> int | None:
        """How much a progress bar has ahead of it; None where nobody would see one."""
        return self.pipeline.rows_ahead(partition, unseen=unseen, resume=resume) if shows_progress() else None


def open_session(*, as_json: bool) -> Session:
    """Reads the configuration and opens what it names."""
    from offload_pipeline.pipeline import open_pipeline

    return Session(open_pipeline(), f"cli-{uuid.uuid4().hex[:12]}", Output(as_json=as_json))
