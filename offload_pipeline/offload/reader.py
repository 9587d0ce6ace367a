"""Payloads for application code: by primary key, from the row or from the store, never unchecked."""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice, takewhile
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import psycopg
from psycopg import Connection

from offload_pipeline.database.connection import server_message
from offload_pipeline.database.shared import SharedConnection
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table
from offload_pipeline.errors import (
    NotInStoreError,
    ObjectDamagedError,
    ObjectMissingError,
    OffloadError,
    PayloadExpiredError,
    PermanentError,
    RowNotFoundError,
    UserError,
)
from offload_pipeline.offload.claims import Partition, require_same_store
from offload_pipeline.offload.stored import NamedObject, fetch_payload

if TYPE_CHECKING:
    from offload_pipeline.pipeline import Pipeline

# A page of `get_many`: so many keys in one statement, and so many bytes of payload in memory at once.
PAGE_KEYS = 200
PAGE_BYTES = 32 * 1024 * 1024
# A row that is restored and offloaded again between our looks has moved each time; a third time is no coincidence.
LOOKS = 3
URL_LIFE = timedelta(hours=1)

GivenKey = TypeVar("GivenKey")


@dataclass(frozen=True)
class ReadPayload:
    """The canonical bytes (None: the row has no payload), their SHA-256, and where they came from."""

    payload: bytes | None = field(repr=False)
    source: Literal["row", "store"]
    status: str | None
    object_key: str | None
    sha256: str | None


@dataclass(frozen=True)
class _Row:
    """What a row says of its payload; `payload` are the canonical bytes where the row holds them."""

    status: str | None
    stored_at: datetime
    object_key: str | None
    sha256: str | None
    payload_bytes: int
    tenant: str
    store_url: str | None
    payload: bytes | None = field(repr=False)


class PayloadReader:
    """Payloads by primary key, wherever they are; safe to share between threads.

    A key is what identifies the row: a value, a tuple of values for several columns, or text as `offload get` takes it.
    One connection, opened with the first read, serves the rows; objects are fetched beside it. Open the reader in the
    process that uses it, not before a fork. From asyncio: `await asyncio.to_thread(reader.get, "notices", 42)`.
    """

    def __init__(self, pipeline: "Pipeline") -> None:
        self._pipeline = pipeline
        self._connection = SharedConnection(pipeline.database)
        self._tables: dict[str, Table] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; another read opens a new one."""
        self._connection.close()

    def get(self, table: str, key: object) -> ReadPayload:
        """One payload, hash-checked if it comes from the store.

        Raises RowNotFoundError, PayloadExpiredError, ObjectMissingError, ObjectDamagedError, StoreChangedError,
        StoreDeniedError or StoreUnavailableError; UserError for a key or table that cannot be; TransientError when the
        database fails.
        """
        found = self._table(table)
        given = found.key_of(key)
        outcome = self._payload(found, given, self._look(found, [given])[0])
        if isinstance(outcome, OffloadError):
            raise outcome
        return outcome

    def get_many(
        self, table: str, keys: Iterable[GivenKey]
    ) -> Generator[tuple[GivenKey, ReadPayload | OffloadError], None, None]:
        """Each key, in the order given, with its payload or the error that `get` would raise: for a loop, or dict().

        Works page by page as it is consumed: one statement for the rows of up to 200 keys, their objects in threads. In
        memory are at most 32 MiB of payloads and one payload more, whatever the number of keys. Raises UserError for a
        table that cannot be, TransientError when the database fails.
        """
        found, rest = self._table(table), iter(keys)
        with ThreadPoolExecutor(self._pipeline.config.offload.store_threads, "read") as threads:
            while page := list(islice(rest, PAGE_KEYS)):
                yield from self._read_page(found, page, threads)

    def url(self, table: str, key: object, expires_in: timedelta = URL_LIFE) -> str:
        """An address from which anybody can GET the payload, gzipped, until it expires (7 days at most).

        The object is looked at (it exists and is whole), not hashed; its SHA-256 is part of the path. Raises
        NotInStoreError for a payload that is in its row, UserError for a store without addresses, else as `get`.
        """
        found = self._table(table)
        given = found.key_of(key)
        row = self._look(found, [given])[0]
        if isinstance(row, OffloadError):
            raise row
        if row.status == "expired":
            raise _expired(found, given)
        if row.object_key is None or row.status not in ("copied", "in_storage"):
            raise NotInStoreError(
                f"{found.name} {found.key_text(given)}: the payload is in its row; read it from there"
            )
        address = self._pipeline.store.signed_url(row.object_key, expires_in)
        try:
            self._pipeline.store.trailer(row.object_key)
        except ObjectMissingError as error:
            raise self._explained(found, row, error) from None
        return address

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            self._tables[name] = self._connection.run(lambda connection: self._pipeline.table(connection, name))
        return self._tables[name]

    def _read_page(
        self, table: Table, page: list[GivenKey], threads: ThreadPoolExecutor
    ) -> Iterator[tuple[GivenKey, ReadPayload | OffloadError]]:
        rest = [(given, _key_or_error(table, given)) for given in page]
        while rest:
            given, first = rest[0]
            if isinstance(first, UserError):
                yield given, first
                rest = rest[1:]
                continue
            sound = takewhile(lambda one: not isinstance(one[1], UserError), rest)
            keys = [key for _, key in sound if not isinstance(key, UserError)]
            rows = self._look(table, keys)
            found = threads.map(lambda key, row: self._payload(table, key, row), keys, rows)
            yield from zip((given for given, _ in rest), found, strict=False)
            rest = rest[len(rows) :]

    def _look(self, table: Table, keys: list[Key]) -> Sequence[_Row | OffloadError]:
        """The rows of the first of these keys, as many as fit into a page; one at least."""
        try:
            return self._connection.run(lambda connection: _fetch(connection, table, keys))
        except psycopg.Error as error:
            if len(keys) > 1:
                return [self._look(table, [key])[0] for key in keys]
            return [_unreadable(table, keys[0], error)]

    def _payload(self, table: Table, key: Key, row: _Row | OffloadError) -> ReadPayload | OffloadError:
        """Follows the row to its object; where that is gone, the row may have moved on meanwhile."""
        for _ in range(LOOKS):
            if isinstance(row, OffloadError):
                return row
            try:
                return self._read(table, key, row)
            except ObjectMissingError as error:
                missing, before = error, row
            except OffloadError as error:
                return error
            row = self._look(table, [key])[0]
            if isinstance(row, _Row) and row.object_key == before.object_key:
                break
        return self._explained(table, before, missing)

    def _read(self, table: Table, key: Key, row: _Row) -> ReadPayload:
        if row.status == "expired":
            raise _expired(table, key)
        if row.status != "in_storage":
            sha256 = None if row.payload is None else hashlib.sha256(row.payload).hexdigest()
            return ReadPayload(row.payload, "row", row.status, row.object_key, sha256)
        if row.object_key is None or row.sha256 is None:
            raise ObjectDamagedError(
                f"{table.name} {table.key_text(key)}: the row's pointer is incomplete: it was edited past the trigger"
            )
        named = NamedObject(key, row.stored_at, row.object_key, row.sha256, row.payload_bytes)
        return ReadPayload(fetch_payload(self._pipeline.store, named), "store", row.status, row.object_key, row.sha256)

    def _explained(self, table: Table, row: _Row, missing: ObjectMissingError) -> OffloadError:
        """Missing in this store; it may well be in the one that the partition's objects are in."""
        try:
            require_same_store(Partition(table, row.tenant), row.store_url, self._pipeline.store.url)
        except PermanentError as elsewhere:
            return elsewhere
        return missing


def _key_or_error(table: Table, given: object) -> Key | UserError:
    """What can be no key is that entry's error, and no reason to withhold the others."""
    try:
        return table.key_of(given)
    except UserError as error:
        return error


def _fetch(connection: Connection, table: Table, keys: list[Key]) -> Sequence[_Row | OffloadError]:
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            statement("offload/read", "read_rows", table.names()),
            {**table.key_parameters(keys), "table": table.name, "page_bytes": PAGE_BYTES},
        )
        return [
            _Row(*row) if is_found else _not_found(table, key)
            for key, (is_found, *row) in zip(keys, cursor, strict=False)
        ]


def _not_found(table: Table, key: Key) -> RowNotFoundError:
    return RowNotFoundError(f"{table.name} has no row with the key {table.key_text(key)}; check the key")


def _expired(table: Table, key: Key) -> PayloadExpiredError:
    return PayloadExpiredError(
        f"{table.name} {table.key_text(key)}: the payload's retention is over, and it was given up"
    )


def _unreadable(table: Table, key: Key, error: psycopg.Error) -> OffloadError:
    said = server_message(error)
    if isinstance(error, psycopg.DataError):
        return table.no_key(table.key_text(key), said)
    return PermanentError(f"{table.name} {table.key_text(key)}: the row cannot be read ({said})")


def open_reader() -> PayloadReader:
    """A reader on what `$OFFLOAD_CONFIG` or ./offload.yaml names. Raises UserError, one line, where that is wrong."""
    from offload_pipeline.pipeline import open_pipeline

    return PayloadReader(open_pipeline())
