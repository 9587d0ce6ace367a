"""Requeueing: a copy that turned out unsound is made again. Only for rows that still hold their payload."""

from psycopg import Connection

from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.offload.claims import Partition


def requeue(connection: Connection, partition: Partition, object_keys: dict[Key, str]) -> None:
    """Clears the pointer of the copied rows that still name these objects and makes them pending again."""
    table = partition.table
    connection.execute(
        statement("offload/requeue", "requeue", table.names()),
        {**table.key_parameters(list(object_keys)), "object_keys": list(object_keys.values())},
    )
