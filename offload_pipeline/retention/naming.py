"""Which object keys does any row name? The question that every deletion hangs on."""

from collections.abc import Sequence

import psycopg
from psycopg import Connection, Rollback, sql

from offload_pipeline.database.connection import server_message
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table, bookkeeping_names
from offload_pipeline.errors import UserError


class Naming:
    """Looks through the rows, inside the caller's transaction, and holds no table lock beyond each look."""

    def __init__(self, connection: Connection, tables: Sequence[Table]) -> None:
        self._connection, self._tables = connection, tables

    def named_by_their_rows(self, table: Table, candidates: Sequence[tuple[Key, str]]) -> set[str]:
        """Of (primary key, object key) pairs, the object keys that the row with this primary key names.

        By the primary key's index. A key whose text is none of the column's type names no row.
        """
        if not candidates:
            return set()
        parameters = {
            **table.key_parameters([key for key, _ in candidates]),
            "object_keys": [object_key for _, object_key in candidates],
        }
        try:
            with self._connection.transaction():
                rows = self._connection.execute(
                    statement("retention/naming", "named_by_their_rows", table.names()), parameters
                ).fetchall()
        except psycopg.DataError:
            # Somewhere among them is a text that cannot be cast; by halves, it is found without failing the others.
            half = len(candidates) // 2
            if not half:
                return set()
            return self.named_by_their_rows(table, candidates[:half]) | self.named_by_their_rows(
                table, candidates[half:]
            )
        return {candidates[position - 1][1] for (position,) in rows}

    def named_by_any_row(self, object_keys: Sequence[str]) -> set[str]:
        """Those of these keys that any row of any table names, in one snapshot: a row that moves is not missed.

        Raises UserError where this role may not see every row.
        """
        try:
            return self._look(object_keys) if object_keys else set()
        except Rollback:
            # It comes out only where the server was gone, and the caller's locks with it.
            raise psycopg.OperationalError("the connection was lost") from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise UserError(
                f"cannot see every row that may name an object ({server_message(error)}); "
                "connect as a role that may SELECT there and is not held back by row security"
            ) from None

    def _look(self, object_keys: Sequence[str]) -> set[str]:
        named: set[str] = set()
        # Rolled back, the look's table locks are gone: no ALTER TABLE has to wait for what comes after it.
        with self._connection.transaction() as look:
            self._connection.execute(statement("retention/naming", "see_every_row"))
            parameters = {"object_keys": list(object_keys)}
            named.update(key for (key,) in self._connection.execute(self._anywhere(), parameters))
            raise Rollback(look)
        return named

    def listed_as_expired(self, object_keys: Sequence[str]) -> set[str]:
        """Those of these keys that expiry or erasure has listed."""
        names = bookkeeping_names(self._tables[0].schema)
        parameters = {"object_keys": list(object_keys)}
        rows = self._connection.execute(statement("retention/naming", "listed_as_expired", names), parameters)
        return {key for (key,) in rows}

    def _anywhere(self) -> sql.Composed:
        columns = {table.config.columns.object_key for table in self._tables}
        places = self._connection.execute(
            statement("retention/naming", "pointer_columns"), {"columns": list(columns)}
        ).fetchall()
        looks = [
            statement(
                "retention/naming",
                "named_in",
                {"relation": sql.Identifier(schema, relation), "column": sql.Identifier(column)},
            )
            for schema, relation, column in places
        ]
        return sql.SQL("\nUNION ALL\n").join(looks)
