"""Reading payloads, from the row or from the store, never unchecked."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from psycopg import Connection

from offload_pipeline.database.connection import Database, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import RowNotFoundError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.stored import PAGE_ROWS, NamedObject, named_objects, read_payload
from offload_pipeline.storage.object_store import ObjectStore


@dataclass(frozen=True)
class ReadPayload:
    """The canonical bytes (None: the row has no payload) and where they came from."""

    payload: bytes | None
    source: Literal["row", "store"]
    status: str | None
    object_key: str | None
    sha256: str | None


def get_payload(connection: Connection, store: ObjectStore, table: Table, key: Key) -> ReadPayload:
    """Raises RowNotFoundError, ObjectMissingError, ObjectDamagedError, StoreDeniedError or StoreUnavailableError."""
    with transaction(connection), connection.cursor(binary=True) as cursor:
        cursor.execute(statement("offload/read", "read_row", table.names()), table.key_parameters([key]))
        row = cursor.fetchone()
    if row is None:
        raise RowNotFoundError(f"{table.name} has no row with the key {table.key_text(key)}; check the key")
    status, stored_at, object_key, sha256, payload_bytes, inline = row
    if status != "in_storage" or object_key is None:
        return ReadPayload(inline, "row", status, object_key, sha256)
    payload = read_payload(store, NamedObject(key, stored_at, object_key, sha256, payload_bytes))
    return ReadPayload(payload, "store", status, object_key, sha256)


class StoredPayloads:
    """Lazy reader of everything a partition has in the store: hash-checked payloads, one object in memory at a time."""

    def __init__(self, database: Database, store: ObjectStore, partition: Partition) -> None:
        self._database, self._store, self._partition = database, store, partition

    def objects(self) -> Iterator[NamedObject]:
        """Every pointer of the partition, in primary-key order; nothing is read from the store."""
        table, cursor = self._partition.table, None
        with contextlib.closing(self._database.connect()) as connection:
            while page := self._page(connection, table, cursor):
                yield from page
                cursor = page[-1].key

    def __iter__(self) -> Iterator[tuple[NamedObject, bytes]]:
        """Pointer and canonical bytes. Raises ObjectMissingError, ObjectDamagedError or StoreUnavailableError."""
        for named in self.objects():
            yield named, read_payload(self._store, named)

    def _page(self, connection: Connection, table: Table, cursor: Key | None) -> list[NamedObject]:
        with transaction(connection):
            rows = connection.execute(
                statement("offload/read", "all_copies", table.names(cursor)),
                {**self._partition.parameters(), **table.cursor_parameters(cursor), "page_rows": PAGE_ROWS},
            ).fetchall()
        return named_objects(table, rows)
