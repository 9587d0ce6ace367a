"""A database that explains every statement as it is executed: how many blocks it touched, with the plan to look at."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from offload_pipeline.database.connection import Database

_EXPLAIN = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ")


@dataclass(frozen=True)
class Explained:
    """A statement with the blocks it found in, or read into, the shared buffers."""

    statement: str
    blocks: int
    plan: dict[str, Any]
    is_compiled: bool

    def scans(self, relation: str) -> list[dict[str, Any]]:
        """What the plan reads of a relation and its indexes."""
        return [node for node in _nodes(self.plan) if node.get("Relation Name") == relation]

    def most_rows(self, relation: str) -> float:
        """Of all scans of a relation or its indexes, the rows that the largest one went through."""
        return max(map(_rows_gone_through, self.scans(relation)), default=0)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _rows_gone_through(node: dict[str, Any]) -> float:
    each = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float(each * node["Actual Loops"])


@dataclass(frozen=True)
class ExplainingDatabase(Database):
    """Each statement that names `relation` is explained in a savepoint, rolled back, and then executed."""

    relation: str = ""
    explained: list[Explained] = field(default_factory=list)

    def connect(self) -> psycopg.Connection:
        """As the real one, with cursors that explain."""
        connection = super().connect()
        one_at_a_time = threading.Lock()

        def explain(query: Any, params: Any) -> None:
            if isinstance(query, sql.Composed) and self.relation in query.as_string(connection):
                found = _explain(connection, query, params)
                with one_at_a_time:
                    self.explained.append(found)

        class ExplainingCursor(psycopg.Cursor[Any]):
            def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
                explain(query, params)
                return super().execute(query, params, **options)

        class ExplainingServerCursor(psycopg.ServerCursor[Any]):
            def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
                explain(query, params)
                return super().execute(query, params, **options)

        connection.cursor_factory = ExplainingCursor
        connection.server_cursor_factory = ExplainingServerCursor
        return connection


def _explain(connection: psycopg.Connection, query: sql.Composed, params: Any) -> Explained:
    with connection.transaction(force_rollback=True), psycopg.Cursor(connection) as cursor:
        found = cursor.execute(_EXPLAIN + query, params).fetchone()
        assert found is not None
        document = found[0][0]
        plan = document["Plan"]
        blocks = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        return Explained(query.as_string(connection), blocks, plan, "JIT" in document)
