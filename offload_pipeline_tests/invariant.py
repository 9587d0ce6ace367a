"""The promise, checked with SQL, gunzip and sha256 alone: the row holds the payload, or its object does."""

import gzip
import hashlib
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import psycopg
from psycopg import sql

from offload_pipeline.config import TableConfig
from offload_pipeline.errors import ObjectMissingError
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.factories import row_hashes


def assert_invariant(
    connection: psycopg.Connection,
    store: ObjectStore,
    config: TableConfig,
    expected: Mapping[Any, str | None],
    *,
    damaged: Collection[Any] = (),
    expired: Collection[Any] = (),
) -> None:
    """Every payload that the application wrote last, and no other row, is in its row or in its object.

    `expected` holds by key the sha256 of `payload::text`, None for no payload, and belongs to the caller's
    snapshot. Pointers of rows that still hold the payload must not dangle either, but for the keys in
    `damaged`, whose objects the test itself spoilt. The rows of `expired`, and no others, gave theirs up.
    """
    held = row_hashes(connection, config)
    pointers = _pointers(connection, config)
    assert set(held) == set(expected), "rows appeared or vanished"
    for key, sha256 in expected.items():
        status, object_key, named = pointers[key]
        if key in expired:
            assert (status, object_key, named) == ("expired", None, None), f"row {key} is not expired: {status}"
        elif held[key] != sha256:
            assert status == "in_storage", f"row {key} lost its payload: {status}, holds {held[key]}"
            assert object_key is not None, f"row {key} names no object"
            assert named == sha256, f"row {key} names the hash {named}, the application wrote {sha256}"
        if object_key is not None and key not in damaged:
            assert _sha256_of_object(store, object_key) == named, f"row {key}: {object_key} is not its payload"


def _pointers(
    connection: psycopg.Connection, config: TableConfig
) -> dict[Any, tuple[str | None, str | None, str | None]]:
    columns = config.columns
    names = (*config.primary_key, columns.status, columns.object_key, columns.hash)
    query = sql.SQL("SELECT {} FROM {}").format(
        sql.SQL(", ").join(map(sql.Identifier, names)), sql.Identifier(*config.schema_and_name)
    )
    rows = connection.execute(query).fetchall()
    return {row[0] if len(row) == 4 else tuple(row[:-3]): (row[-3], row[-2], row[-1]) for row in rows}


def _sha256_of_object(store: ObjectStore, object_key: str) -> str | None:
    """What `gunzip -c OBJECT | sha256sum` prints; None where there is no whole object."""
    try:
        return hashlib.sha256(gzip.decompress(store.get(object_key))).hexdigest()
    except (ObjectMissingError, OSError, EOFError, zlib.error):
        return None
