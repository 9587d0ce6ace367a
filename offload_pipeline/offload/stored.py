"""A row's pointer and the object it names: reading the payload back, never unchecked."""

import contextlib
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from offload_pipeline.database.connection import Database, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import ObjectDamagedError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.packing import unpack
from offload_pipeline.offload.room import Room
from offload_pipeline.storage.object_store import ObjectStore

# Rows per page: small enough that a page of keys is nothing in memory, large enough to keep all threads busy.
PAGE_ROWS = 1000
# Payload bytes that are read at a time. As object and as payload, in the store's client and here, each is there about
# four times; what is smaller than 2 MiB still has all threads at work.
_ROOM = Room(32 * 1024 * 1024)


@dataclass(frozen=True)
class NamedObject:
    """A row's pointer: which object it names, and what that object must be."""

    key: Key
    stored_at: datetime
    object_key: str
    sha256: str
    payload_bytes: int


def named_objects(table: Table, rows: Sequence[tuple[Any, ...]]) -> list[NamedObject]:
    """Rows of `{named_object}`: the key's columns, then the pointer's."""
    return [NamedObject(table.key_in(row), *table.after_key(row)) for row in rows]


def read_payload(store: ObjectStore, named: NamedObject) -> bytes:
    """As `fetch_payload`, for work in bulk, whose many threads would else hold as many large payloads at once."""
    # The pointer's columns are nullable and the application's to edit, whatever the types promise.
    with _ROOM.taken(max(0, named.payload_bytes or 0)):
        return fetch_payload(store, named)


def fetch_payload(store: ObjectStore, named: NamedObject) -> bytes:
    """The canonical bytes, unpacked and hash-checked.

    Raises ObjectMissingError, ObjectDamagedError or StoreUnavailableError.
    """
    data = store.get(named.object_key)
    try:
        payload = unpack(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ObjectDamagedError(f"{named.object_key} is no whole gzip member ({error})") from error
    if hashlib.sha256(payload).hexdigest() != named.sha256:
        raise ObjectDamagedError(f"{named.object_key} does not hash to {named.sha256}")
    return payload


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
