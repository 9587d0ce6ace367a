"""What an application does with the columns that the writer returns."""

from typing import Any

from psycopg import Connection, sql

from offload_pipeline_tests.factories import row_hashes
from offload_pipeline_tests.offload.installation import Installation


def insert_columns(
    notices: Installation, columns: dict[str, Any], *, connection: Connection[Any] | None = None, **others: Any
) -> None:
    """The application's INSERT, with its own columns among `others`; what PostgreSQL hashed is then expected."""
    row = {**others, **columns}
    (connection or notices.connection).execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(*notices.config.schema_and_name),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(sql.Placeholder() * len(row)),
        ),
        list(row.values()),
    )


def update_columns(
    notices: Installation, columns: dict[str, Any], key: Any, *, connection: Connection[Any] | None = None
) -> None:
    """The application's UPDATE of one row by its id."""
    (connection or notices.connection).execute(
        sql.SQL("UPDATE {} SET {} WHERE id = %s").format(
            sql.Identifier(*notices.config.schema_and_name),
            sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in columns),
        ),
        [*columns.values(), key],
    )


def expect(notices: Installation, key: Any, payload: str) -> None:
    """The invariant covers from now on that the row's payload is this, as PostgreSQL would hash it."""
    row = notices.connection.execute(
        sql.SQL("SELECT encode(sha256(convert_to(%s::{}::text, 'UTF8')), 'hex')").format(
            sql.SQL(notices.table.payload_type)
        ),
        [payload],
    ).fetchone()
    assert row is not None
    notices.expected[key] = row[0]


def hold(notices: Installation, key: Any) -> str | None:
    """What the row itself holds, by PostgreSQL's hash."""
    return row_hashes(notices.connection, notices.config)[key]
