"""Reading one payload, from the row or from the store, never unchecked."""

from dataclasses import dataclass
from typing import Literal

from psycopg import Connection

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import RowNotFoundError
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline.verification.objects import NamedObject, read_payload


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
