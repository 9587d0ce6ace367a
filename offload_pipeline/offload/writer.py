"""Write-time offload for application code: the object is stored and read back before the row is written."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import Connection, errors
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from offload_pipeline.database.connection import server_message
from offload_pipeline.database.shared import SharedConnection
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import ObjectMissingError, OffloadError, PayloadInvalidError, UserError
from offload_pipeline.offload.claims import ClaimedRow, Partition, require_same_store
from offload_pipeline.offload.deletions import announced, not_yet
from offload_pipeline.offload.failures import Failure, record_failures, resolve_failures
from offload_pipeline.offload.packing import holds
from offload_pipeline.offload.release import placeholder
from offload_pipeline.offload.storing import StoredPayload, store_payload
from offload_pipeline.storage.keys import object_key

if TYPE_CHECKING:
    from offload_pipeline.pipeline import Pipeline

FALLBACK_VARIABLE = "OFFLOAD_FALLBACK_ALLOW_DB_PAYLOAD"

# What PostgreSQL says of a value that its column would not take either.
_INVALID = (psycopg.DataError, errors.ProgramLimitExceeded, errors.StatementTooComplex)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """Where a payload belongs: partition and key as PostgreSQL prints them."""

    partition: Partition
    key: Key

    def __str__(self) -> str:
        return f"{self.partition.table.name} {self.partition.table.key_text(self.key)}"


class PayloadWriter:
    """Stores payloads for rows that the application is about to write; safe to share between threads.

    The application inserts or updates the row itself, on its own connection, with the columns that `write` returns.
    A connection of the writer's own, opened with the first payload that is stored, keeps the bookkeeping. Open the
    writer in the process that uses it, not before a fork. From asyncio, with a psycopg connection that no other task
    uses: `await asyncio.to_thread(writer.write, connection, "notices", "acme", 42, payload)`.
    """

    def __init__(self, pipeline: "Pipeline") -> None:
        self._pipeline = pipeline
        self._connection = SharedConnection(pipeline.database)
        self._tables: dict[str, Table] = {}
        _may_fall_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the writer's own connection; another write opens a new one."""
        self._connection.close()

    def write(
        self, connection: Connection[Any], table: str, tenant: object, key: object, payload: object
    ) -> dict[str, Any]:
        """The columns to write, name to value: always the payload's column and the five pointer columns.

        `payload` is JSON as str or bytes (UTF-8), the text itself for a text column, None for no payload, or anything
        that json.dumps takes. One above the threshold is stored and read back, and the columns name its object; any
        other, one above `max_object_bytes`, or of a table with `after_copy: keep`, comes back in its column, for the
        pipeline to move or leave. `tenant` may be None where the table has one constant tenant.

        Nothing of the caller's transaction is committed, rolled back or set. Until it ends, garbage collection leaves
        the object alone; in autocommit, write the row within the hour; rolled back, call this again. In autocommit a
        payload whose row names its object already comes back in its column, too.

        Raises PayloadInvalidError for what the column would not take, UserError for a table, tenant or key that cannot
        be, StoreChangedError, TransientError when the database fails; StoreUnavailableError, StoreDeniedError,
        ReadBackMismatchError or PermanentError when the store does. The store's are recorded in
        `payload_offload_failures`, and with OFFLOAD_FALLBACK_ALLOW_DB_PAYLOAD=true not raised: the payload comes back
        in its column. psycopg's errors of the given connection pass through.
        """
        found, falls_back = self._table(table), _may_fall_back()
        data = _as_bytes(found, payload)
        if data is None:
            return _in_row(found, None, waits=False)
        keeps_lock = not connection.autocommit or connection.info.transaction_status != TransactionStatus.IDLE
        with _savepoint(connection) as cursor:
            canonical = _canonical(cursor, found, data)
            if not _moves(found, canonical):
                return _in_row(found, canonical, waits=_is_large(found, canonical))
            place = self._place(found, tenant, key)
            try:
                stored = self._store(cursor, place, canonical, keeps_lock=keeps_lock)
            except OffloadError as error:
                self._record(place, error)
                if not falls_back:
                    raise
                return _in_row(found, canonical, waits=True)
            if stored is None:
                return _in_row(found, canonical, waits=True)
        return self._pointer(place, stored)

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            self._tables[name] = self._connection.run(
                lambda connection: self._pipeline.table(connection, name).require_active()
            )
        return self._tables[name]

    def _place(self, table: Table, tenant: object, key: object) -> _Place:
        """Refuses another store than the partition's, and gives a partition that has none yet its line of state."""
        constant = table.config.tenant.value
        given = constant if tenant is None else str(tenant)
        if given is None or constant not in (None, given):
            wanted = "its tenant; rows without one belong to no partition" if given is None else f"{constant!r} or None"
            raise UserError(f"{table.name}: {tenant!r} is no tenant of this table; give {wanted}")
        arrays = table.key_parameters([table.key_of(key)])
        bound = {"table": table.name, "tenant": given} | {name: values[0] for name, values in arrays.items()}
        try:
            return self._connection.run(lambda own: self._placed(own, table, bound))
        except psycopg.DataError as error:
            types = ", ".join(f"{column.name} {column.type}" for column in table.key_columns)
            raise UserError(
                f"{table.name}: no such tenant or key ({server_message(error)}); the key is {types}"
            ) from None

    def _placed(self, own: Connection, table: Table, bound: dict[str, Any]) -> _Place:
        row = own.execute(statement("offload/write", "place", table.names()), bound).fetchone()
        assert row is not None  # noqa: S101 - one line of values returns one row
        *_, tenant, known = row
        partition = Partition(table, tenant)
        if known is None:
            state = own.execute(
                statement("offload/record", "open_state", table.names()),
                {**partition.parameters(), "store_url": self._pipeline.store.url},
            ).fetchone()
            assert state is not None  # noqa: S101 - an upsert returns its row
            known = state[1]
        require_same_store(partition, known, self._pipeline.store.url)
        return _Place(partition, table.key_in(row))

    def _store(
        self, cursor: psycopg.Cursor[Any], place: _Place, canonical: bytes, *, keeps_lock: bool
    ) -> StoredPayload | None:
        """Under the object's lock. What a row names already is not put again: a bad PUT would take the only copy.

        None where such an object, as old as it is, would have nothing to keep garbage collection from it once the row
        is given another payload meanwhile.
        """
        template, sha256 = place.partition.table.config.key_template, hashlib.sha256(canonical).hexdigest()
        key = object_key(
            template, tenant=place.partition.tenant, table=place.partition.table.name,
            primary_key=place.key, sha256=sha256,
        )  # fmt: skip
        lock = "lock_object" if "{primary_key}" in template else "share_object"
        cursor.execute(statement("offload/write", lock), {"object_key": key}, prepare=False)
        is_condemned, is_named = self._connection.run(lambda own: _look(own, place, key))
        if is_condemned:
            raise not_yet(key)
        if is_named and (object_bytes := self._standing(key, sha256)):
            if not keeps_lock:
                return None
            return StoredPayload(place.key, "", key, sha256, len(canonical), object_bytes)
        row = ClaimedRow(place.key, "", canonical)
        compression = self._pipeline.config.offload.compression
        return store_payload(self._pipeline.store, place.partition, row, compression, renews=not keeps_lock)

    def _standing(self, key: str, sha256: str) -> int | None:
        """The bytes of the object, if it is there and whole."""
        try:
            data = self._pipeline.store.get(key)
        except ObjectMissingError:
            return None
        return len(data) if holds(data, sha256) else None

    def _pointer(self, place: _Place, stored: StoredPayload) -> dict[str, Any]:
        table = place.partition.table
        names = table.names() | {"placeholder": placeholder(table, self._pipeline.store.url)}
        bound = {"object_key": stored.object_key, "hash": stored.sha256, "size": stored.payload_bytes}

        def finish(own: Connection) -> tuple[Any, ...] | None:
            resolve_failures(own, place.partition, ("write",), [place.key])
            return own.execute(statement("offload/write", "pointer", names), bound).fetchone()

        row = self._connection.run(finish)
        assert row is not None  # noqa: S101 - one line of values returns one row
        stored_at, left_in_row = row
        return _columns(table, left_in_row, "in_storage", stored.payload_bytes, stored, stored_at)

    def _record(self, place: _Place, error: OffloadError) -> None:
        """On the writer's own connection, so that the caller's rollback leaves the line; it never hides the cause."""
        failure = Failure(place.key, None, error)
        try:
            self._connection.run(lambda own: record_failures(own, place.partition, "write", [failure]))
        except (OffloadError, psycopg.Error) as unrecorded:
            log.warning("%s: not recorded in payload_offload_failures (%s): %s", place, unrecorded, error)


def _look(own: Connection, place: _Place, key: str) -> tuple[bool, bool]:
    """Whether a deletion of this object may be on its way, and whether the row names it."""
    table = place.partition.table
    bound = {**table.key_parameters([place.key]), "object_key": key}
    row = own.execute(statement("offload/write", "names_object", table.names()), bound).fetchone()
    assert row is not None  # noqa: S101 - EXISTS returns one row
    return bool(announced(own, table.schema, [key])), bool(row[0])


@contextlib.contextmanager
def _savepoint(connection: Connection[Any]) -> Iterator[psycopg.Cursor[Any]]:
    """A cursor with row factory of ours; what fails in it leaves the caller's transaction usable and as it was."""
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    if not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
        # Begins the caller's transaction; else the block would be one of its own, and the lock would end with it.
        cursor.execute("SELECT")
    with connection.transaction(), cursor:
        yield cursor


def _canonical(cursor: psycopg.Cursor[Any], table: Table, data: bytes) -> bytes:
    query = statement("offload/write", "canonical", table.names())
    try:
        row = cursor.execute(query, {"payload": data}, prepare=False, binary=True).fetchone()
    except _INVALID as error:
        raise _invalid(table, server_message(error)) from error
    assert row is not None  # noqa: S101 - a SELECT of one value returns one row
    return bytes(row[0])


def _as_bytes(table: Table, payload: object) -> bytes | None:
    """The text of the payload in UTF-8, as the application wrote it."""
    if payload is None or isinstance(payload, bytes):
        return payload
    try:
        if isinstance(payload, bytearray | memoryview):
            return bytes(payload)
        text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid(table, str(error)) from error


def _invalid(table: Table, reason: str) -> PayloadInvalidError:
    return PayloadInvalidError(f"{table.name}: {table.config.payload} would not take this payload ({reason})")


def _is_large(table: Table, canonical: bytes) -> bool:
    """As the size trigger judges."""
    threshold = table.config.threshold_bytes
    return threshold == 0 or len(canonical) > threshold


def _moves(table: Table, canonical: bytes) -> bool:
    most = table.config.max_object_bytes
    fits = most is None or len(canonical) <= most
    return table.config.after_copy != "keep" and fits and _is_large(table, canonical)


def _in_row(table: Table, canonical: bytes | None, *, waits: bool) -> dict[str, Any]:
    """The payload itself; `waits`: for the pipeline. The trigger judges again, and leaves no pointer beside it."""
    text = None if canonical is None else canonical.decode()
    size = len(canonical) if canonical is not None and waits else None
    return _columns(table, text, "pending_move" if waits else "inline", size)


def _columns(
    table: Table, payload: str | None, status: str, size: int | None,
    stored: StoredPayload | None = None, stored_at: datetime | None = None,
) -> dict[str, Any]:  # fmt: skip
    names = table.config.columns
    return {
        table.config.payload: payload,
        names.status: status,
        names.size: size,
        names.object_key: stored.object_key if stored else None,
        names.hash: stored.sha256 if stored else None,
        names.stored_at: stored_at,
    }


def _may_fall_back() -> bool:
    given = os.environ.get(FALLBACK_VARIABLE, "").lower()
    if given not in ("", "true", "false"):
        raise UserError(f"{FALLBACK_VARIABLE} is {given!r}; write true or false")
    return given == "true"


def open_writer() -> PayloadWriter:
    """A writer on what `$OFFLOAD_CONFIG` or ./offload.yaml names. Raises UserError, one line, where that is wrong."""
    from offload_pipeline.pipeline import open_pipeline

    return PayloadWriter(open_pipeline())
