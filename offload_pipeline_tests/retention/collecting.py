"""Garbage collection as tests call it: with any grace, and with objects as old as they say."""

import os
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from psycopg import Connection

from offload_pipeline.database.table import Table
from offload_pipeline.retention.findings import GarbageResult
from offload_pipeline.retention.garbage import GarbageOptions, collect_garbage
from offload_pipeline.retention.ownership import Scope
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.offload.installation import RUN, Installation

MONTH = timedelta(days=30)
NO_GRACE = timedelta(0)
ANY_SHARE = 1.0
SHA256 = "a" * 64


def collect(
    installation: Installation, *, delete: bool = True, grace: timedelta = NO_GRACE, share: float = ANY_SHARE,
    table: str | None = None, tenant: str | None = None, tables: list[Table] | None = None,
    patience: timedelta = timedelta(seconds=10),
) -> GarbageResult:  # fmt: skip
    """One collection over the installation's tables, through its store."""
    found = tables or tables_of(installation)
    options = GarbageOptions(grace, share, delete, store_threads=4, patience=patience)
    pipeline = installation.pipeline
    return collect_garbage(pipeline.database, pipeline.store, found, Scope(found, table, tenant), options, RUN)


def tables_of(installation: Installation) -> list[Table]:
    with installation.pipeline.connect() as connection:
        return installation.pipeline.tables(connection)


def age(store: ObjectStore, keys: Iterable[str], by: timedelta = 2 * MONTH) -> None:
    """Makes objects of a local store older than they are."""
    assert store._folder is not None
    moment = time.time() - by.total_seconds()
    for key in keys:
        os.utime(store._folder / key, (moment, moment))


def keys_in(store: ObjectStore) -> set[str]:
    """Every object but the store's own probe."""
    return {found.key for found in store.list() if not found.key.startswith(".offload/")}


def rewrite(installation: Installation, key: Any, payload: str = '{"written": "anew"}') -> str:
    """Gives a stored row another payload; the key of the object that nothing names any more."""
    orphan = installation.object_key(key)
    installation.write(key, payload)
    return orphan


def logged(connection: Connection, action: str) -> tuple[int, int]:
    """Rows and bytes that the audit log has for an action."""
    found = connection.execute(
        "SELECT coalesce(sum(rows), 0), coalesce(sum(bytes), 0) FROM payload_offload_log WHERE action = %s", (action,)
    ).fetchone()
    assert found is not None
    return int(found[0]), int(found[1])
