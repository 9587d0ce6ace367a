"""Recording: the pointers of a batch, its partition's counters and the audit line, in one transaction."""

from collections.abc import Sequence

from psycopg import Connection

from offload_pipeline.database.statements import statement
from offload_pipeline.offload.claims import Partition, require_same_store
from offload_pipeline.offload.failures import Stage, resolve_failures
from offload_pipeline.offload.storing import StoredPayload

# A payload that the writer could not store has come the other way; one that could not be restored was written anew.
_SETTLED_STAGES: tuple[Stage, ...] = ("copy", "write", "restore")


def record_copied(
    connection: Connection, partition: Partition, stored: Sequence[StoredPayload], store_url: str, run_id: str
) -> list[StoredPayload]:
    """Writes pointers, counters and the audit line in the caller's transaction; returns what was recorded.

    Rows that changed since they were read are not among them.
    """
    table, parameters = partition.table, partition.parameters()
    found = connection.execute(
        statement("offload/record", "open_state", table.names()), {**parameters, "store_url": store_url}
    ).fetchone()
    assert found is not None  # noqa: S101 - an upsert returns its row
    require_same_store(partition, found[1], store_url)
    rows = connection.execute(
        statement("offload/record", "record_copied", table.names()),
        {
            **table.key_parameters([item.key for item in stored]),
            "xmins": [item.xmin for item in stored],
            "sizes": [item.payload_bytes for item in stored],
            "object_keys": [item.object_key for item in stored],
            "hashes": [item.sha256 for item in stored],
            "verification_mark": found[0],
        },
    ).fetchall()
    recorded = [stored[position - 1] for position, _ in rows]
    if recorded:
        payload_bytes = sum(item.payload_bytes for item in recorded)
        counted = {
            "rows": len(recorded), "payload_bytes": payload_bytes, "bytes": payload_bytes,
            "object_bytes": sum(item.object_bytes for item in recorded), "run_id": run_id, "action": "copy",
        }  # fmt: skip
        connection.execute(statement("offload/record", "count_copied", table.names()), {**parameters, **counted})
        connection.execute(statement("offload/record", "log_action", table.names()), {**parameters, **counted})
        resolve_failures(connection, partition, _SETTLED_STAGES, [item.key for item in recorded])
    return recorded
