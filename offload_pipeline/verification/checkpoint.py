"""How far an unfinished full pass came, kept in the partition's state, so that no object is read twice."""

from psycopg import Connection

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.offload.claims import Partition
from offload_pipeline.verification.copies import Position


class Checkpoint:
    """The checkpoint of one partition; its state row exists."""

    def __init__(self, connection: Connection, partition: Partition) -> None:
        self._connection, self._partition = connection, partition

    def read(self, *, resume: bool) -> Position | None:
        """Where the pass goes on; None for the beginning, which `resume` off makes it."""
        if not resume:
            self._write(None)
            return None
        with transaction(self._connection):
            found = self._connection.execute(
                statement("verification/full", "read_checkpoint", self._partition.table.names()),
                self._partition.parameters(),
            ).fetchone()
        return Position.of_checkpoint(found and found[0], len(self._partition.table.key_columns))

    def write(self, position: Position) -> None:
        """Everything up to here was read, and is sound."""
        self._write(position)

    def finish(self) -> None:
        """In the caller's transaction: everything was read and is sound; the next full pass begins at the beginning."""
        self._connection.execute(
            statement("verification/full", "finish", self._partition.table.names()), self._partition.parameters()
        )

    def _write(self, position: Position | None) -> None:
        with transaction(self._connection):
            self._connection.execute(
                statement("verification/full", "write_checkpoint", self._partition.table.names()),
                {**self._partition.parameters(), "checkpoint": position.as_checkpoint() if position else None},
            )
