"""The verification pass of one partition, and the gate it opens: `verified_through`, which release reads."""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

import psycopg
from psycopg import Connection, sql

from offload_pipeline.database.connection import Database, server_message, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.errors import ObjectDamagedError, OffloadError, StoreDeniedError, TransientError
from offload_pipeline.offload.claims import Partition, require_same_store
from offload_pipeline.offload.copier import STORE_DOWN_AFTER_FAILURES, Progress, no_progress
from offload_pipeline.offload.failures import Failure, record_failures, resolve_failures
from offload_pipeline.offload.requeue import requeue
from offload_pipeline.offload.stored import PAGE_ROWS, NamedObject, named_objects
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline.verification.objects import check_end, check_whole

# A store that lost so many lost more; they are found in the passes after, when these have been copied again.
MOST_DAMAGED = 1000


@dataclass(frozen=True)
class VerificationOptions:
    """How much is read again: `sample_rows` whole objects of the new and of the old rows, or all."""

    sample_rows: int
    full: bool
    store_threads: int


@dataclass(frozen=True)
class Damage:
    """A row whose object is missing or is not its payload."""

    named: NamedObject
    error: OffloadError


@dataclass
class VerificationResult:
    """What a pass saw. It passed when nothing was damaged and the store answered every question."""

    mark: datetime
    rows_checked: int = 0
    rows_read: int = 0
    payload_bytes_read: int = 0
    damaged: list[Damage] = field(default_factory=list)
    unanswered: list[Damage] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether release may free what was copied up to `mark`."""
        return not self.damaged and not self.unanswered


def verify_partition(
    database: Database, store: ObjectStore, partition: Partition, options: VerificationOptions, run_id: str,
    progress: Progress = no_progress,
) -> VerificationResult:  # fmt: skip
    """Checks every row copied since the last pass, reads a sample (or all) whole, and moves the gate if all is sound.

    Damaged rows that still hold their payload are queued to be copied again; damage is recorded either way.
    Raises TransientError when the database fails, StoreDeniedError when the store refuses altogether.
    """
    try:
        with contextlib.closing(database.connect()) as connection, ThreadPoolExecutor(options.store_threads) as threads:
            return _Verifier(connection, store, partition, options, run_id, progress, threads).work()
    except psycopg.Error as error:
        raise TransientError(f"{partition}: the database failed ({server_message(error)}); run it again") from error


class _Verifier:
    def __init__(
        self, connection: Connection, store: ObjectStore, partition: Partition, options: VerificationOptions,
        run_id: str, progress: Progress, threads: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self._connection, self._store, self._partition = connection, store, partition
        self._options, self._run_id, self._progress, self._threads = options, run_id, progress, threads
        with transaction(connection):
            self._mark, self._verified_through = self._set_mark()
        self._result = VerificationResult(self._mark)

    def work(self) -> VerificationResult:
        sample = _Reservoir(self._options.sample_rows)
        for page in self._pages("verification/verify", "new_copies"):
            self._result.rows_checked += len(page)
            self._check(page, check_whole if self._options.full else check_end)
            for named in page:
                sample.offer(named)
        if self._options.full:
            for page in self._pages("offload/read", "all_copies"):
                earlier = [named for named in page if not self._is_new(named)]
                self._result.rows_checked += len(earlier)
                self._check(earlier, check_whole)
        else:
            self._check(sample.kept, check_whole)
            self._check(self._earlier_sample(), check_whole)
        self._conclude()
        return self._result

    def _is_new(self, named: NamedObject) -> bool:
        if named.stored_at is None:  # edited by hand
            return False
        return self._verified_through is None or self._verified_through < named.stored_at <= self._mark

    def _pages(self, file: str, name: str) -> Iterator[list[NamedObject]]:
        cursor: tuple[datetime, Key] | None = None
        while page := self._page(file, name, cursor):
            yield page
            if self._is_settled():
                return
            cursor = (page[-1].stored_at, page[-1].key)

    def _is_settled(self) -> bool:
        """Looking further would only make a longer list of what is known: the pass does not stand."""
        return len(self._result.unanswered) >= STORE_DOWN_AFTER_FAILURES or len(self._result.damaged) >= MOST_DAMAGED

    def _page(self, file: str, name: str, cursor: tuple[datetime, Key] | None) -> list[NamedObject]:
        table = self._partition.table
        with transaction(self._connection):
            found = self._connection.execute(
                statement(file, name, table.names(cursor[1] if cursor else None)),
                {
                    **self._partition.parameters(),
                    **table.cursor_parameters(cursor[1] if cursor else None),
                    "after_stored_at": cursor[0] if cursor else None,
                    "mark": self._mark,
                    "verified_through": self._verified_through,
                    "page_rows": PAGE_ROWS,
                },
            ).fetchall()
        return named_objects(table, found)

    def _earlier_sample(self) -> list[NamedObject]:
        """Whole objects of earlier passes: of the released rows, and of those whose payload is still in the row."""
        released = self._sample_of("in_storage", "infinity")
        return (
            released if self._verified_through is None else released + self._sample_of("copied", self._verified_through)
        )

    def _sample_of(self, status: str, through: datetime | str) -> list[NamedObject]:
        if not self._options.sample_rows:
            return []
        table = self._partition.table
        names = table.names() | {"sampled_status": sql.Literal(status)}
        bound = {"sampled_through": through, "page_rows": self._options.sample_rows}
        with transaction(self._connection):
            rows = self._connection.execute(
                statement("verification/verify", "earlier_copies", names), {**self._partition.parameters(), **bound}
            ).fetchall()
        return named_objects(table, rows)

    def _check(self, page: list[NamedObject], check: Callable[[ObjectStore, NamedObject], int]) -> None:
        """Looks at each object in threads; keeps what is wrong, after looking whether the row still names it."""
        wrong: list[Damage] = []
        for named, outcome in zip(
            page, self._threads.map(lambda named: _outcome(self._store, named, check), page), strict=True
        ):
            if isinstance(outcome, StoreDeniedError):
                raise outcome
            if isinstance(outcome, OffloadError):
                wrong.append(Damage(named, outcome))
            elif check is check_whole:
                self._result.rows_read += 1
                self._result.payload_bytes_read += outcome
        if check is check_whole:
            wrong += self._differing_from_rows(page)
        self._sort_out(wrong)
        self._resolve(page, wrong)
        self._progress(len(page), 0)

    def _differing_from_rows(self, page: list[NamedObject]) -> Iterable[Damage]:
        """Rows that still hold the payload must hash, in PostgreSQL, to what was stored."""
        for named, status, row_hash in self._still_named(page):
            if status == "copied" and row_hash != named.sha256:
                yield Damage(named, ObjectDamagedError(f"the row's payload does not hash to {named.sha256}"))

    def _still_named(self, page: list[NamedObject]) -> list[tuple[NamedObject, str, str | None]]:
        table = self._partition.table
        parameters = {
            **table.key_parameters([named.key for named in page]),
            "object_keys": [named.object_key for named in page],
        }
        with transaction(self._connection):
            rows = self._connection.execute(
                statement("verification/verify", "still_named", table.names()), parameters
            ).fetchall()
        return [(page[position - 1], status, row_hash) for position, status, row_hash in rows]

    def _sort_out(self, wrong: list[Damage]) -> None:
        named_still = (
            {named.key for named, _, _ in self._still_named([damage.named for damage in wrong])} if wrong else set()
        )
        seen = {damage.named.key for damage in (*self._result.damaged, *self._result.unanswered)}
        for damage in wrong:
            if damage.named.key in named_still and damage.named.key not in seen:
                is_transient = isinstance(damage.error, TransientError)
                (self._result.unanswered if is_transient else self._result.damaged).append(damage)
                seen.add(damage.named.key)

    def _resolve(self, page: list[NamedObject], wrong: list[Damage]) -> None:
        unsound = {damage.named.key for damage in wrong}
        sound = [named.key for named in page if named.key not in unsound]
        with transaction(self._connection):
            resolve_failures(self._connection, self._partition, "verify", sound)

    def _conclude(self) -> None:
        result, parameters = self._result, self._partition.parameters()
        names = self._partition.table.names()
        with transaction(self._connection):
            if result.passed:
                self._connection.execute(
                    statement("verification/verify", "advance", names),
                    {**parameters, "mark": self._mark, "rows": result.rows_checked},
                )
            else:
                requeue(self._connection, self._partition, {d.named.key: d.named.object_key for d in result.damaged})
                failures = [Failure(d.named.key, None, d.error) for d in (*result.damaged, *result.unanswered)]
                record_failures(self._connection, self._partition, "verify", failures)
            action = "verify" if result.passed else "verify failed"
            self._connection.execute(
                statement("offload/record", "log_action", names),
                {**parameters, "run_id": self._run_id, "action": action,
                 "rows": result.rows_checked, "bytes": result.payload_bytes_read},
            )  # fmt: skip

    def _set_mark(self) -> tuple[datetime, datetime | None]:
        found = self._connection.execute(
            statement("verification/verify", "set_mark", self._partition.table.names()),
            self._partition.parameters(),
        ).fetchone()
        assert found is not None  # noqa: S101 - an upsert returns its row
        mark, verified_through, store_url = found
        require_same_store(self._partition, store_url, self._store.url)
        return mark, verified_through


def _outcome(
    store: ObjectStore, named: NamedObject, check: Callable[[ObjectStore, NamedObject], int]
) -> int | OffloadError:
    try:
        return check(store, named)
    except OffloadError as error:
        return error


class _Reservoir:
    """A uniform sample of a stream of unknown length (Vitter's algorithm R)."""

    def __init__(self, size: int) -> None:
        self._size, self._seen = size, 0
        self.kept: list[NamedObject] = []

    def offer(self, named: NamedObject) -> None:
        self._seen += 1
        if len(self.kept) < self._size:
            self.kept.append(named)
        elif self._size and (slot := random.randrange(self._seen)) < self._size:  # noqa: S311 - a sample, not a secret
            self.kept[slot] = named
