"""What the size trigger costs whoever inserts.

Rows of about 1 kB, which stay inline, and of about 150 kB, which join the queue, into a table with our columns, trigger
and indexes, and into the same one without. Prepared INSERTs with bound values, a transaction each, of a thousand small
rows (as many as SQLAlchemy puts into one) or a hundred large ones, with the `synchronous_commit` that the server comes
with. What smaller INSERTs lose is said as well: PostgreSQL compiles a trigger's WHEN and a partial index's predicate
anew for each statement.

The two tables take turns INSERT by INSERT, and a round's rate is that of its median INSERT: what the disk does
meanwhile meets both, and the few INSERTs that wait for it count no more than others.
"""

import time
from collections.abc import Callable
from itertools import islice

from psycopg import Connection

from benchmarks.payloads import payloads
from benchmarks.results import Measured, median, ratios
from benchmarks.servers import Servers

ROUNDS = 15
# What a round inserts into each table.
ROUND_BYTES = 40_000_000
MOST_INSERTS = 2_000
# For what has no bar.
FEW_ROUNDS = 5
WITH, WITHOUT = "trigger_rows", "plain_rows"
_HOW = "in turn INSERT by INSERT"
_CREATE = """
    CREATE TABLE {} (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant_id text NOT NULL,
        payload jsonb,
        created_at timestamptz NOT NULL DEFAULT now()
    )
"""


def measure(servers: Servers, say: Callable[[str], None]) -> list[Measured]:
    """Rows per second with the trigger over rows per second without, for small rows and for large ones."""
    with servers.connect() as connection:
        for table in (WITH, WITHOUT):
            connection.execute(_CREATE.format(table))
        try:
            servers.pipeline({"name": WITH, "relation": f"public.{WITH}", "primary_key": ["id"], "payload": "payload",
                              "tenant": {"column": "tenant_id"}, "created_at": "created_at"})  # fmt: skip
            return [_small_rows(connection, say), _large_rows(connection, say)]
        finally:
            connection.execute(f"DROP TABLE {WITH}, {WITHOUT}")


def _small_rows(connection: Connection, say: Callable[[str], None]) -> Measured:
    say("inserting rows of 1 kB with and without the trigger")
    many, with_trigger, without = _rates(connection, 1_000, 1_000, ROUNDS)
    fewer, one = (_rates(connection, 1_000, rows_per_insert, FEW_ROUNDS)[0] for rows_per_insert in (100, 1))
    return Measured(
        measure="insert rate with the trigger against without, 1 kB rows, 1,000 an INSERT",
        value=median(many), unit="of the rate", bar=0.96, is_at_most=False, runs=tuple(many),
        detail=f"{with_trigger:,.0f} rows/s with, {without:,.0f} without, {_HOW}; "
        f"at 100 an INSERT {median(fewer):.2f}, at one {median(one):.2f}",
    )  # fmt: skip


def _large_rows(connection: Connection, say: Callable[[str], None]) -> Measured:
    say("inserting rows of 150 kB with and without the trigger")
    runs, with_trigger, without = _rates(connection, 150_000, 100, ROUNDS)
    return Measured(
        measure="insert rate with the trigger against without, 150 kB rows, 100 an INSERT",
        value=median(runs), unit="of the rate", bar=0.88, is_at_most=False, runs=tuple(runs),
        detail=f"{with_trigger:,.0f} rows/s with, {without:,.0f} without, {_HOW}",
    )  # fmt: skip


def _rates(
    connection: Connection, payload_bytes: int, rows_per_insert: int, rounds: int
) -> tuple[list[float], float, float]:
    """The ratio of each round, and the median rows per second with and without the trigger."""
    rates: dict[str, list[float]] = {WITH: [], WITHOUT: []}
    texts = list(islice(payloads(payload_bytes), ROUND_BYTES // payload_bytes))
    inserts = min(len(texts) // rows_per_insert, MOST_INSERTS)
    batches = [texts[number * rows_per_insert :][:rows_per_insert] for number in range(inserts)]
    for _ in range(rounds):
        for table, seconds in _insert_in_turn(connection, batches).items():
            rates[table].append(rows_per_insert / median(seconds))
    return ratios(rates[WITH], rates[WITHOUT]), median(rates[WITH]), median(rates[WITHOUT])


def _insert_in_turn(connection: Connection, batches: list[list[str]]) -> dict[str, list[float]]:
    """Seconds that each of the emptied tables took for each of the batches."""
    connection.execute(f"TRUNCATE {WITH}, {WITHOUT}")
    connection.execute("CHECKPOINT")
    seconds: dict[str, list[float]] = {WITH: [], WITHOUT: []}
    for number, texts in enumerate(batches):
        for table in (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH):
            values = ", ".join(["('acme', %s)"] * len(texts))
            insert = f"INSERT INTO {table} (tenant_id, payload) VALUES {values}"  # noqa: S608 - our own names
            begun = time.perf_counter()
            connection.execute(insert, texts, prepare=True)
            seconds[table].append(time.perf_counter() - begun)
    return seconds
