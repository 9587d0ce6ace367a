"""A row's pointer and the object it names: reading the payload back, never unchecked."""

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
    return [NamedObject(table.key_in(row), *table.after_key(row)) for row in rows]


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
