"""Comparing one row's pointer with the store: the cheap look at the end of the object, and the whole reading."""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import ObjectDamagedError
from offload_pipeline.offload.packing import unpack
from offload_pipeline.storage.object_store import ObjectStore

# Rows per page: small enough that a page of keys is nothing in memory, large enough to keep all threads busy.
PAGE_ROWS = 1000


@dataclass(frozen=True)
class NamedObject:
    """A row's pointer: which object it names, and what that object must be."""

    key: Key
    stored_at: datetime
    object_key: str
    sha256: str
    payload_bytes: int


def named_objects(table: Table, rows: Sequence[tuple[Any, ...]]) -> list[NamedObject]:
    """Rows of `new_copies`, `earlier_copies` or `all_copies`: the key's columns, then the pointer's."""
    width = len(table.key_columns)
    return [NamedObject(tuple(row[:width]), *row[width:]) for row in rows]


def check_end(store: ObjectStore, named: NamedObject) -> int:
    """Exists, is not truncated, and holds as many bytes as the row says, by its gzip trailer. Returns bytes read.

    Raises ObjectMissingError, ObjectDamagedError or StoreUnavailableError.
    """
    _check_pointer(named)
    found = store.trailer(named.object_key).payload_bytes_mod_2_32
    if found != named.payload_bytes % 2**32:
        raise ObjectDamagedError(f"{named.object_key} holds {found} bytes, the row says {named.payload_bytes}")
    return 8


def read_payload(store: ObjectStore, named: NamedObject) -> bytes:
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


def check_whole(store: ObjectStore, named: NamedObject) -> int:
    """Reads, unpacks and hashes the whole object. Returns payload bytes read; raises as `read_payload`."""
    _check_pointer(named)
    found = len(read_payload(store, named))
    if found != named.payload_bytes:
        raise ObjectDamagedError(f"{named.object_key} holds {found} bytes, the row says {named.payload_bytes}")
    return found


def _check_pointer(named: NamedObject) -> None:
    """The columns are nullable and the application's to edit, whatever the types above promise."""
    if None in (named.stored_at, named.object_key, named.sha256, named.payload_bytes):
        raise ObjectDamagedError("the row's pointer is incomplete: it was edited past the trigger")
    if named.sha256 not in named.object_key:
        raise ObjectDamagedError(f"the pointer {named.object_key} does not name the row's hash {named.sha256}")
