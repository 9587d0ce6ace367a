"""One installed table with its pipeline, and what the application wrote into it: what most tests here begin with."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg import Connection, sql

from offload_pipeline.config import TableConfig
from offload_pipeline.database.table import Table
from offload_pipeline.offload.claims import Batch, ClaimedRow, Partition
from offload_pipeline.offload.copier import CopyResult
from offload_pipeline.offload.deletions import LINGERING
from offload_pipeline.offload.record import record_copied
from offload_pipeline.offload.release import ReleaseResult
from offload_pipeline.offload.restore import RestoreResult
from offload_pipeline.offload.storing import StoredPayload
from offload_pipeline.pipeline import DrainResult, Pipeline
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline.verification.verifier import VerificationResult
from offload_pipeline_tests.factories import (
    IDENTITY_KEY,
    insert_payloads,
    install,
    make_pipeline,
    make_table,
    row_hashes,
    statuses,
)
from offload_pipeline_tests.invariant import assert_invariant

RUN = "test-run"


@dataclass(frozen=True)
class StoreAddress:
    """What `object_store:` in `offload.yaml` would say."""

    url: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Installation:
    """`connection` is the application's own, in autocommit; `expected` is what it wrote last."""

    connection: Connection
    database_url: str
    pipeline: Pipeline
    config: TableConfig
    table: Table
    expected: dict[Any, str | None] = field(default_factory=dict)

    def partition(self, tenant: str = "acme") -> Partition:
        return Partition(self.table, tenant)

    def insert(self, payloads: Iterable[str | None], tenant: str = "acme", **columns: Any) -> list[Any]:
        """Inserts rows, which the invariant then covers."""
        keys = insert_payloads(self.connection, self.config, payloads, tenant=tenant, **columns)
        self.take_rows_as_expected(keys)
        return keys

    def write(self, key: Any, payload: str) -> None:
        """The application's update of one row."""
        self.execute("UPDATE {table} SET raw_payload = %s WHERE id = %s", payload, key)
        self.take_rows_as_expected([key])

    def execute(self, statement: str, *values: Any, connection: Connection | None = None) -> psycopg.Cursor[Any]:
        """SQL on `{table}`, as the application would."""
        composed = sql.SQL(statement).format(table=sql.Identifier(*self.config.schema_and_name))
        return (connection or self.connection).execute(composed, values or None)

    def write_past_the_trigger(self, key: Any, payload: str) -> None:
        """An update of one row as a repair, a replication or a load makes it, with the triggers off."""
        with self.connection.transaction():
            self.execute("SET LOCAL session_replication_role = replica")
            self.execute("UPDATE {table} SET raw_payload = %s WHERE id = %s", payload, key)

    def take_rows_as_expected(self, keys: Collection[Any] | None = None) -> None:
        """What these rows (all, without `keys`) hold now is what the application means."""
        held = row_hashes(self.connection, self.config)
        self.expected.update(held if keys is None else {key: held[key] for key in keys})

    def with_store(self, store: ObjectStore) -> "Installation":
        """The same, seen through another store."""
        return replace(self, pipeline=replace(self.pipeline, store=store))

    @property
    def store(self) -> ObjectStore:
        return self.pipeline.store

    def copy(self, tenant: str = "acme") -> CopyResult:
        return self.pipeline.copy(self.partition(tenant), RUN)

    def verify(
        self, tenant: str = "acme", *, sample_rows: int | None = None, full: bool = False, resume: bool = True
    ) -> VerificationResult:
        return self.pipeline.verify(self.partition(tenant), RUN, sample_rows=sample_rows, full=full, resume=resume)

    def release(self, tenant: str = "acme") -> ReleaseResult:
        return self.pipeline.release(self.partition(tenant), RUN)

    def restore(self, tenant: str = "acme", *, key: Any = None) -> RestoreResult:
        return self.pipeline.restore(self.partition(tenant), RUN, key=None if key is None else (str(key),))

    def drain(self, tenant: str = "acme") -> DrainResult:
        return self.pipeline.drain(self.partition(tenant), RUN)

    def statuses(self) -> dict[Any, str | None]:
        return statuses(self.connection, self.config)

    def one_status(self) -> str | None:
        """The status that all rows share."""
        (status,) = set(self.statuses().values())
        return status

    def object_key(self, key: Any) -> str:
        found = self.execute("SELECT raw_object_key FROM {table} WHERE id = %s", key).fetchone()
        assert found is not None
        assert found[0] is not None
        return str(found[0])

    def record(self, connection: Connection, stored: Sequence[StoredPayload]) -> list[StoredPayload]:
        """The protocol's step alone, in the caller's transaction."""
        return record_copied(connection, self.partition(), stored, self.store.url, RUN)

    def let_time_pass(self) -> None:
        """As long as the next attempt of each failed row has to wait, and a deletion may be on its way."""
        let_time_pass(self.connection)

    def failures(self) -> dict[str, dict[str, Any]]:
        """Lines of the failures table by primary key."""
        cursor = self.connection.execute("SELECT * FROM payload_offload_failures ORDER BY last_failed_at")
        names = [column.name for column in cursor.description or ()]
        lines = [dict(zip(names, row, strict=True)) for row in cursor]
        return {line["primary_key"]: line for line in lines}

    def assert_invariant(self, damaged: Collection[Any] = (), expired: Collection[Any] = ()) -> None:
        assert_invariant(
            self.connection, plain(self.store), self.config, self.expected, damaged=damaged, expired=expired
        )


def let_time_pass(connection: Connection) -> None:
    """As long as the next attempt of each failed row has to wait, and a deletion may be on its way.

    Line by line: workers that are under way take the same lines in an order of their own.
    """
    lines = "SELECT table_name, tenant_id, primary_key, stage FROM payload_offload_failures"
    for line in connection.execute(lines).fetchall():
        connection.execute(
            """
            UPDATE payload_offload_failures SET
                first_failed_at = first_failed_at - (next_attempt_at - last_failed_at),
                last_failed_at = last_failed_at - (next_attempt_at - last_failed_at),
                next_attempt_at = last_failed_at
            WHERE (table_name, tenant_id, primary_key, stage) = (%s, %s, %s, %s)
            """,
            line,
        )
    for (key,) in connection.execute("SELECT object_key FROM payload_offload_deleted").fetchall():
        connection.execute(
            "UPDATE payload_offload_deleted SET asked_at = asked_at - %s WHERE object_key = %s", (LINGERING, key)
        )


def plain(store: ObjectStore) -> ObjectStore:
    """The real store behind what a test put in front of it."""
    return ObjectStore(store._store, store.url, store._folder)


@contextlib.contextmanager
def installed(
    database_url: str,
    store: StoreAddress | str,
    *,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    payload_type: str = "jsonb",
    key_columns: Mapping[str, str] = IDENTITY_KEY,
    tenant_column: str | None = "tenant_id",
    tenant_type: str = "text",
    extra_columns: Mapping[str, str] | None = None,
    **table_options: Any,
) -> Iterator[Installation]:
    """A table that offloads every payload, unless `table_options` say otherwise."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        config = make_table(
            connection, payload_type=payload_type, key_columns=key_columns, tenant_column=tenant_column,
            tenant_type=tenant_type, extra_columns=extra_columns, **{"threshold_bytes": 0, **table_options},
        )  # fmt: skip
        address = StoreAddress(store) if isinstance(store, str) else store
        pipeline = make_pipeline(
            database_url, address.url, [config], **{"object_store": address.options, **(sections or {})}
        )
        install(pipeline)
        table = pipeline.table(connection, config.name)
        yield Installation(connection, database_url, pipeline, config, table)


def rows_of(batch: Batch) -> list[ClaimedRow]:
    """All that could be read, inside the transaction that claimed them."""
    return [row for piece in batch.pieces for row in piece.rows]
