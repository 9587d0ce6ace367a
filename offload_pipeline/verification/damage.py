"""What a pass finds wrong: written down at once, since release reads it, and closed by a look that began afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import Connection

from offload_pipeline.database.connection import is_about_the_rows, server_message, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.errors import OffloadError, TransientError
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.failures import MESSAGE_CHARACTERS, Failure, record_failures
from offload_pipeline.offload.requeue import requeue
from offload_pipeline.offload.stored import NamedObject


@dataclass(frozen=True)
class Damage:
    """A row whose object is missing or is not its payload, or about which the store gave no answer."""

    named: NamedObject
    error: OffloadError

    @property
    def is_certain(self) -> bool:
        """False where only the store gave no answer."""
        return not isinstance(self.error, TransientError)


@dataclass(frozen=True)
class OpenDamage:
    """An open `verify` failure, as it was when it was read."""

    key: Key
    last_failed_at: datetime


class KnownDamage:
    """The open `verify` failures of one partition."""

    def __init__(self, connection: Connection, partition: Partition) -> None:
        self._connection, self._partition = connection, partition

    def of(self, page: Sequence[NamedObject]) -> list[OpenDamage]:
        """What is open of these rows, to be read before they are looked at."""
        keys = {self._partition.table.key_text(named.key): named.key for named in page}
        if not keys:
            return []
        with transaction(self._connection):
            rows = self._connection.execute(
                statement("verification/verify", "open_damage", self._partition.table.names()),
                {**self._partition.parameters(), "primary_keys": list(keys)},
            ).fetchall()
        return [OpenDamage(keys[text], last_failed_at) for text, last_failed_at in rows]

    def record(self, found: Sequence[Damage]) -> None:
        """Commits the damage before anything is queued again, which the table may refuse, or the application delay."""
        if not found:
            return
        # In the order of all passes, so that none waits for another's lines while that one waits for its own.
        failures = [Failure(one.named.key, None, one.error) for one in sorted(found, key=lambda one: one.named.key)]
        with transaction(self._connection):
            record_failures(self._connection, self._partition, "verify", failures)
        certain = {one.named.key: one.named.object_key for one in found if one.is_certain}
        if certain:
            self._queue_again(certain)

    def resolve(self, mended: Sequence[OpenDamage]) -> None:
        """Closes what has not failed again since it was read: a pass beside this one may know better."""
        if not mended:
            return
        texts = [self._partition.table.key_text(one.key) for one in mended]
        with transaction(self._connection):
            self._connection.execute(
                statement("verification/verify", "resolve_damage", self._partition.table.names()),
                {
                    **self._partition.parameters(),
                    "primary_keys": texts,
                    "moments": [one.last_failed_at for one in mended],
                },
            )

    def _queue_again(self, object_keys: dict[Key, str]) -> None:
        """Those that still hold their payload; one by one where the table refuses them together."""
        try:
            with transaction(self._connection):
                requeue(self._connection, self._partition, object_keys)
        except psycopg.Error as error:
            if not is_about_the_rows(error, self._connection):
                raise
            for key, object_key in object_keys.items():
                if len(object_keys) == 1:
                    self._note_refusal(key, error)
                else:
                    self._queue_again({key: object_key})

    def _note_refusal(self, key: Key, error: psycopg.Error) -> None:
        note = f"; the table refuses to have it queued again: {server_message(error)}"
        with transaction(self._connection):
            self._connection.execute(
                statement("verification/verify", "note_refusal", self._partition.table.names()),
                {
                    **self._partition.parameters(),
                    "primary_key": self._partition.table.key_text(key),
                    "note": note,
                    "characters": MESSAGE_CHARACTERS,
                },
            )
