"""Comparing one row's pointer with the store: the cheap look at the end of the object, and the whole reading."""

from offload_pipeline.errors import ObjectDamagedError
from offload_pipeline.offload.stored import NamedObject, read_payload
from offload_pipeline.storage.object_store import ObjectStore


def check_end(store: ObjectStore, named: NamedObject) -> int:
    """Exists, is not truncated, and holds as many bytes as the row says, by its gzip trailer. Returns bytes read.

    Raises ObjectMissingError, ObjectDamagedError or StoreUnavailableError.
    """
    _check_pointer(named)
    found = store.trailer(named.object_key).payload_bytes_mod_2_32
    if found != named.payload_bytes % 2**32:
        raise ObjectDamagedError(f"{named.object_key} holds {found} bytes, the row says {named.payload_bytes}")
    return 8


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
