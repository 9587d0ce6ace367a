"""The demo's four tables: made, filled, installed and weighed."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import Connection, sql

from offload_pipeline.config import HOME_VARIABLE
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table
from offload_pipeline.demo.payloads import Document, documents_from_jsonl, emails, tenders, webhooks
from offload_pipeline.errors import UserError
from offload_pipeline.install.installer import plan_all, run
from offload_pipeline.pipeline import Pipeline

TENANTS = ("acme", "globex", "initech")
SEED = 20
# The comment on each of the demo's tables; nothing without it is ever dropped.
MADE_BY = "offload_pipeline demo"
Row = tuple[object, ...]


@dataclass(frozen=True)
class Weight:
    """What a table weighs: relation bytes with TOAST and indexes, and payload bytes that rows hold or the store has."""

    table: str
    rows: int
    relation_bytes: int
    payload_bytes_in_rows: int
    rows_stored: int
    payload_bytes_stored: int


def make_documents(payloads: Path | None, now: datetime) -> dict[str, Iterator[Document]]:
    """The documents of each table: about 200 MB made up, or a file's documents in every table."""
    if payloads is not None:
        return {name: documents_from_jsonl(payloads, now=now) for name in _COPIES}
    return {
        "activities": webhooks(300, seed=SEED, now=now, min_bytes=1_100, max_bytes=2_000_000),
        "notices": emails(600, seed=SEED, now=now, min_bytes=2_000, max_bytes=500_000),
        "TendersCurrent": tenders(300, seed=SEED, now=now, min_bytes=1_100, max_bytes=1_000_000),
        "canonical_tenders": tenders(400, seed=SEED + 1, now=now, min_bytes=1_100, max_bytes=300_000),
    }


_COPIES: dict[str, tuple[str, Callable[[int, str, Document], Row]]] = {
    "activities": ("copy_activities", lambda _, tenant, doc: (tenant, doc.kind, doc.text, doc.created_at)),
    "notices": ("copy_notices", lambda _, tenant, doc: (tenant, doc.kind, doc.text, doc.created_at)),
    "TendersCurrent": (
        "copy_tenders_current", lambda i, tenant, doc: (tenant, f"{i:06d}-2026", doc.text, doc.created_at, 1 + i % 3)
    ),
    "canonical_tenders": ("copy_canonical_tenders", lambda i, _, doc: (f"ocds-{i:06d}", doc.text, doc.created_at)),
}  # fmt: skip


def rebuild(pipeline: Pipeline) -> None:
    """Drops what an earlier demo left, makes the tables and installs. UserError where something is not the demo's."""
    with pipeline.connect() as connection:
        foreign = [name for name, comment in _comments(connection) if not comment.startswith(MADE_BY)]
        foreign += _tables_of_others(connection)
        if foreign:
            raise UserError(f"the embedded database has a table {foreign[0]} that is not the demo's; "
                            f"set {HOME_VARIABLE} to another folder")  # fmt: skip
        with connection.transaction():
            connection.execute(statement("demo/tables", "drop"))
            connection.execute(statement("demo/tables", "create", {"made_by": sql.Literal(_made_for(pipeline))}))
        install(pipeline, connection)


def is_built(pipeline: Pipeline) -> bool:
    """Whether the demo's tables are there, and their objects in this store."""
    with pipeline.connect() as connection:
        comments = dict(_comments(connection))
    return len(comments) == len(_COPIES) and set(comments.values()) == {_made_for(pipeline)}


def _made_for(pipeline: Pipeline) -> str:
    return f"{MADE_BY}, objects in {pipeline.store.url}"


def _comments(connection: Connection) -> list[tuple[str, str]]:
    return [(name, comment) for name, comment in connection.execute(statement("demo/tables", "comments"))]


def _tables_of_others(connection: Connection) -> list[str]:
    try:
        return [name for (name,) in connection.execute(statement("demo/tables", "foreign_tables"))]
    except psycopg.errors.UndefinedTable:
        return []


def install(pipeline: Pipeline, connection: Connection) -> None:
    """What `offload install` does."""
    tables = [pipeline.inspect(connection, config.name) for config in pipeline.config.tables]
    for step in plan_all(connection, tables, pipeline.database.schema, pipeline.store.url):
        run(connection, step)


def fill(pipeline: Pipeline, table: str, documents: Iterable[Document]) -> int:
    """Copies documents into a table, tenants in turn. Returns the number of rows; UserError for what JSONB refuses."""
    name, row_of = _COPIES[table]
    count = 0
    try:
        with pipeline.connect() as connection, connection.cursor() as cursor:
            with cursor.copy(statement("demo/tables", name)) as copy:
                for count, (tenant, document) in enumerate(zip(itertools.cycle(TENANTS), documents, strict=False), 1):
                    copy.write_row(row_of(count, tenant, document))
            cursor.execute("ANALYZE")
    except psycopg.DataError as error:
        raise UserError(
            f"PostgreSQL refuses a document: {error.diag.message_primary}; remove it from the file"
        ) from None
    return count


def weigh(connection: Connection, tables: Iterable[Table]) -> list[Weight]:
    """Each table as it stands."""
    weights = []
    for table in tables:
        names = table.names()
        row = connection.execute(
            statement("demo/tables", "weigh", names), {"relation": names["relation"].as_string(connection)}
        ).fetchone()
        assert row is not None  # noqa: S101 - an aggregate returns one row
        weights.append(Weight(table.name, *row))
    return weights


def largest_stored_key(connection: Connection, table: Table) -> str | None:
    """The row with the largest payload in storage, as `offload get` takes it."""
    row = connection.execute(statement("demo/tables", "some_stored_row", table.names())).fetchone()
    return table.key_text(tuple(row)) if row else None


def now() -> datetime:
    """The moment the demo's documents lead up to."""
    return datetime.now(UTC)
