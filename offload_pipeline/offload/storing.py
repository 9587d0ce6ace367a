"""Storing one payload: pack, upload, read back. Nothing is recorded yet."""

from dataclasses import dataclass

from offload_pipeline.database.table import Key
from offload_pipeline.errors import ObjectMissingError, PayloadTooLargeError, ReadBackMismatchError
from offload_pipeline.offload.claims import ClaimedRow, Partition
from offload_pipeline.offload.packing import Compression, holds, pack
from offload_pipeline.storage.keys import object_key
from offload_pipeline.storage.object_store import ObjectStore


@dataclass(frozen=True)
class StoredPayload:
    """An object that was read back and is what was sent."""

    key: Key
    xmin: str
    object_key: str
    sha256: str
    payload_bytes: int
    object_bytes: int


def store_payload(
    store: ObjectStore, partition: Partition, row: ClaimedRow, compression: Compression, *, renews: bool = False
) -> StoredPayload:
    """Stores one payload and reads it back. Raises an OffloadError; at worst an orphan object is left.

    A plain PUT, never create-only: the same bytes again do no harm and renew the object's age, on which garbage
    collection relies. But what other rows may share, under a key without {primary_key}, is not put at risk where it
    stands already; unless `renews`, for who has nothing but its age to keep garbage collection from it.
    """
    config = partition.table.config
    most = config.max_object_bytes
    if most is not None and len(row.payload) > most:
        raise PayloadTooLargeError(
            f"the payload is {len(row.payload)} bytes, max_object_bytes is {most}; it stays in the row"
        )
    packed = pack(row.payload, compression)
    key = object_key(
        config.key_template, tenant=partition.tenant, table=config.name, primary_key=row.key, sha256=packed.sha256
    )
    stored = StoredPayload(row.key, row.xmin, key, packed.sha256, packed.payload_bytes, len(packed.data))
    if not renews and "{primary_key}" not in config.key_template and _stands(store, key, packed.sha256):
        return stored
    store.put(key, packed.data)
    try:
        intact = store.get(key) == packed.data
    except ObjectMissingError:
        raise ReadBackMismatchError(f"the store accepted {key} and then had no such object") from None
    if not intact:
        raise ReadBackMismatchError(f"the store gave back other bytes than were sent for {key}")
    return stored


def _stands(store: ObjectStore, key: str, sha256: str) -> bool:
    try:
        return holds(store.get(key), sha256)
    except ObjectMissingError:
        return False
