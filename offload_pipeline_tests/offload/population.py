"""Tables of known content: filled fast, without being analysed, and counted whole, as a forecast never does."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import sql

from offload_pipeline.config import TableConfig
from offload_pipeline.offload.forecast import Forecast
from offload_pipeline.offload.packing import pack

SizeOf = Callable[[float, random.Random], float]
"""The bytes of a payload by its place in the table, from 0 to 1."""

SIZES: dict[str, SizeOf] = {
    "skewed": lambda _, rng: rng.lognormvariate(7, 1),
    "growing": lambda place, _: 200 + 9_000 * place**3,
    "in clusters": lambda place, _: 4_000 if int(place * 40) % 4 == 0 else 150,
}


class Forecaster(Protocol):
    """The fixture `forecast`."""

    def __call__(self, config: TableConfig, seed: int = 1) -> Forecast: ...


@dataclass(frozen=True)
class Truth:
    """What a forecast estimates, counted."""

    rows: int
    rows_to_move: int
    payload_bytes: int
    object_bytes: int
    database_bytes: int
    gzip_in_row_bytes: int


def documents(count: int, size_of: SizeOf, seed: int = 1) -> Iterable[str]:
    """JSON of words, which packs about as well as real payloads do."""
    rng = random.Random(seed)  # noqa: S311 - the same payloads each time
    words = [f"{rng.getrandbits(24):06x}" for _ in range(500)]
    for number in range(count):
        text = " ".join(rng.choices(words, k=max(1, int(size_of(number / count, rng) / 7))))
        yield f'{{"number": {number}, "text": "{text}"}}'


def fill(connection: psycopg.Connection, config: TableConfig, payloads: Iterable[str], tenant: str = "acme") -> None:
    """Copies a row per payload."""
    columns = [config.payload, *([config.tenant.column] if config.tenant.column else [])]
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(*config.schema_and_name), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor, cursor.copy(into) as copy:
        for payload in payloads:
            copy.write_row((payload, tenant)[: len(columns)])


def count(connection: psycopg.Connection, config: TableConfig) -> Truth:
    """Reads everything: what a backfill would move before anything is installed."""
    query = sql.SQL("SELECT convert_to({0}::text, 'UTF8'), pg_column_size({0}) FROM {1}").format(
        sql.Identifier(config.payload), sql.Identifier(*config.schema_and_name)
    )
    rows = connection.execute(query).fetchall()
    moving = [(payload, stored) for payload, stored in rows if payload is not None]
    if config.threshold_bytes:
        moving = [(payload, stored) for payload, stored in moving if len(payload) > config.threshold_bytes]
    objects = [len(pack(payload).data) for payload, _ in moving]
    return Truth(
        rows=len(rows),
        rows_to_move=len(moving),
        payload_bytes=sum(len(payload) for payload, _ in moving),
        object_bytes=sum(objects),
        database_bytes=sum(stored for _, stored in moving),
        gzip_in_row_bytes=sum(objects) + 4 * len(objects),
    )


def holds(forecast: Forecast, truth: Truth) -> dict[str, bool]:
    """Which of the forecast's ranges have the truth in them."""
    held = {}
    for name, true in vars(truth).items():
        found = getattr(forecast, name)
        held[name] = found.low <= true and (found.high is None or true <= found.high)
    return held


def values(forecast: Forecast) -> Truth:
    """The forecast's values alone."""
    return Truth(**{name: int(getattr(forecast, name).value) for name in Truth.__dataclass_fields__})


def one(connection: psycopg.Connection, query: str) -> Any:
    """The first column of the first row."""
    found = connection.execute(query.encode()).fetchone()
    assert found is not None
    return found[0]


def lose_a_toast_chunk(connection: psycopg.Connection, before: int = 0) -> None:
    """What a broken disk does to one payload of notices; so many were written before it."""
    toast = one(connection, "SELECT reltoastrelid FROM pg_class WHERE oid = 'notices'::regclass")
    notices = one(connection, "SELECT 'notices'::regclass::oid")
    name = sql.Identifier("pg_toast", f"pg_toast_{notices}")
    connection.execute("SET allow_system_table_mods = on")
    connection.execute("UPDATE pg_class SET relkind = 'r' WHERE oid = %s", [toast])
    lose = """DELETE FROM {0} WHERE chunk_seq = 1
        AND chunk_id = (SELECT DISTINCT chunk_id FROM {0} ORDER BY chunk_id OFFSET {1} LIMIT 1)"""
    connection.execute(sql.SQL(lose).format(name, before))
    connection.execute("UPDATE pg_class SET relkind = 't' WHERE oid = %s", [toast])
