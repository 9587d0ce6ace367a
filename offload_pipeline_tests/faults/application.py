"""The application: it writes while everything else fails, and notes in the same transaction what it means."""

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import errors, sql

from offload_pipeline.config import TableConfig
from offload_pipeline_tests.factories import large_payload

TENANTS = ("acme", "globex")
# Small ones stay in the row.
SMALLEST_BYTES, LARGEST_BYTES = 20, 3000
PAUSE_SECONDS = 0.004
RECONNECT_SECONDS = 0.05

# `first` is the payload a row began with: what a rewrite goes back to (A, B, then A again under the same object key).
LEDGER = """
    CREATE TABLE written (
        table_name text,
        id bigint,
        sha256 text,
        bytes bigint,
        first text,
        at timestamptz DEFAULT clock_timestamp(),
        PRIMARY KEY (table_name, id)
    )
"""
NOTE_INSERT = """
    INSERT INTO written (table_name, id, sha256, bytes, first)
    SELECT %(table)s, %(id)s, encode(sha256(convert_to(as_stored, 'UTF8')), 'hex'), octet_length(as_stored), as_stored
    FROM (SELECT (%(payload)s::jsonb)::text AS as_stored) AS payload
"""
# A copy that is written again as it is stays the copy it was, and its age counts from when it was stored.
_NOTE = sql.SQL("""
    UPDATE written SET
        at = CASE WHEN written.sha256 = now.sha256 THEN at ELSE clock_timestamp() END,
        sha256 = now.sha256,
        bytes = now.bytes
    FROM (
        SELECT
            id,
            encode(sha256(convert_to(raw_payload::text, 'UTF8')), 'hex') AS sha256,
            octet_length(raw_payload::text) AS bytes
        FROM done
    ) AS now
    WHERE written.id = now.id AND table_name = %(table)s
""")
_NOTED_INSERT = """
    WITH done AS (
        INSERT INTO {{table}} (tenant_id, raw_payload{}) VALUES (%(tenant)s, %(payload)s{}) RETURNING id, raw_payload
    )
    INSERT INTO written (table_name, id, sha256, bytes, first)
    SELECT %(table)s, id, encode(sha256(convert_to(raw_payload::text, 'UTF8')), 'hex'),
        octet_length(raw_payload::text), raw_payload::text
    FROM done
"""
_SOME_ROW = sql.SQL("(SELECT id FROM {table} ORDER BY id OFFSET %(offset)s LIMIT 1)")

# As all rows are that are older than the trigger: a scan has to find them.
PAST_THE_TRIGGER = "insert past the trigger"
WRITES = {
    "insert": _NOTED_INSERT.format("", ""),
    PAST_THE_TRIGGER: _NOTED_INSERT.format(", payload_storage_status", ", NULL"),
    "new payload": """
        WITH done AS (
            UPDATE {table} SET raw_payload = %(payload)s WHERE id = {some_row} RETURNING id, raw_payload
        ) {note}
    """,
    "first payload again": """
        WITH done AS (
            UPDATE {table} AS t SET raw_payload = w.first::jsonb
            FROM written AS w
            WHERE t.id = {some_row} AND w.table_name = %(table)s AND w.id = t.id
            RETURNING t.id, raw_payload
        ) {note}
    """,
    "edit in place": """
        WITH done AS (
            UPDATE {table} SET raw_payload = raw_payload || jsonb_build_object('edit', %(offset)s::integer)
            WHERE id = {some_row} RETURNING id, raw_payload
        ) {note}
    """,
    "no payload": """
        WITH done AS (
            UPDATE {table} SET raw_payload = NULL, raw_object_key = NULL WHERE id = {some_row}
            RETURNING id, raw_payload
        ) {note}
    """,
    "touch": "UPDATE {table} SET created_at = created_at WHERE id = {some_row}",
    "other tenant": "UPDATE {table} SET tenant_id = %(tenant)s WHERE id = {some_row}",
    "other key": """
        WITH done AS (
            UPDATE {table} AS t SET id = nextval(pg_get_serial_sequence(%(relation)s, 'id'))
            FROM {some_row} AS old (was)
            WHERE t.id = old.was
            RETURNING old.was, t.id
        )
        UPDATE written SET id = done.id FROM done WHERE written.id = done.was AND table_name = %(table)s
    """,
    "delete": """
        WITH done AS (DELETE FROM {table} WHERE id = {some_row} RETURNING id)
        DELETE FROM written USING done WHERE written.id = done.id AND table_name = %(table)s
    """,
}
# As many inserts as deletions.
KINDS = [("insert", PAST_THE_TRIGGER), *((kind,) for kind in WRITES if kind not in ("insert", PAST_THE_TRIGGER))]


class Application:
    """One small transaction after the other; servers that restart or break connections only make it connect again."""

    def __init__(self, database_url: str, tables: Sequence[TableConfig], rows: int, seed: int) -> None:
        self._url, self._tables, self._rows = database_url, tables, rows
        self._random = random.Random(seed)  # noqa: S311 - the same writes each time
        self._stop = threading.Event()
        self._turn = threading.Lock()
        self._number = 0
        self.writes: Counter[str] = Counter()

    def begin(self) -> None:
        """Makes the ledger, and fills the tables."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(LEDGER)
            for number in range(self._rows):
                for table in self._tables:
                    self._write(connection, "insert" if number % 2 else PAST_THE_TRIGGER, table)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Writes in a thread of its own."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Between two transactions."""
        with self._turn:
            yield

    def _run(self) -> None:
        while not self._stop.is_set():
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(self._url, autocommit=True) as connection,
            ):
                while not self._stop.wait(PAUSE_SECONDS):
                    with self._turn:
                        kind = self._random.choice(KINDS)
                        self._write(connection, self._random.choice(kind), self._random.choice(self._tables))
            self._stop.wait(RECONNECT_SECONDS)

    def _write(self, connection: psycopg.Connection, kind: str, table: TableConfig) -> None:
        self._number += 1
        size = self._random.randrange(SMALLEST_BYTES, LARGEST_BYTES)
        values: dict[str, Any] = {
            "table": table.name,
            "relation": table.relation,
            "offset": self._random.randrange(self._rows),
            "tenant": self._random.choice(TENANTS),
            "payload": large_payload(size, self._number),
        }
        relation = sql.Identifier(*table.schema_and_name)
        names = {"table": relation, "some_row": _SOME_ROW.format(table=relation), "note": _NOTE}
        try:
            with connection.transaction():
                if kind == PAST_THE_TRIGGER:
                    connection.execute("SET LOCAL session_replication_role = replica")
                done = connection.execute(sql.SQL(WRITES[kind]).format(**names), values).rowcount
        except errors.ObjectNotInPrerequisiteState:
            # The trigger refuses an edit that would build on a payload in storage, as it promises.
            self.writes["refused edit"] += 1
        else:
            self.writes[kind] += done


def what_was_written(connection: psycopg.Connection, table: TableConfig) -> dict[Any, str | None]:
    """By key the hash of what the application wrote last."""
    rows = connection.execute("SELECT id, sha256 FROM written WHERE table_name = %s", (table.name,))
    return dict(rows.fetchall())


def what_expired(connection: psycopg.Connection, table: TableConfig) -> set[Any]:
    """The keys that are expired, of payloads whose time had come; none in a table without retention."""
    rows = connection.execute(
        sql.SQL(
            "SELECT id FROM {} AS t JOIN written AS w USING (id) WHERE w.table_name = %s"
            " AND t.payload_storage_status = 'expired' AND w.at <= clock_timestamp() - %s::interval"
        ).format(sql.Identifier(*table.schema_and_name)),
        (table.name, table.object_retention),
    )
    return {key for (key,) in rows}
