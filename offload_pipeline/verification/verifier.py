"""The verification pass of one partition, and the gate it opens: `verified_through`, which release reads."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from psycopg import Connection

from offload_pipeline.database.connection import Database, database_failures, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.errors import ObjectDamagedError, OffloadError, StoreDeniedError
from offload_pipeline.offload.claims import Partition, require_same_store
from offload_pipeline.offload.deletions import announced, not_yet
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.offload.reservoir import Reservoir
from offload_pipeline.offload.stale_failures import resolve_stale_failures
from offload_pipeline.offload.stored import NamedObject
from offload_pipeline.offload.workers import STORE_DOWN_AFTER_FAILURES
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline.verification.checkpoint import Checkpoint
from offload_pipeline.verification.copies import Copies
from offload_pipeline.verification.damage import Damage, KnownDamage
from offload_pipeline.verification.objects import check_end, check_whole

Check = Callable[[ObjectStore, NamedObject], int]

# A store that lost so many lost more; they are found in the passes after, when these have been copied again.
MOST_DAMAGED = 1000


@dataclass(frozen=True)
class VerificationOptions:
    """How much is read again: `sample_rows` whole objects of the new and of the old rows, or all.

    All: from where an earlier full pass was interrupted or failed, unless `resume` is off.
    """

    sample_rows: int
    full: bool
    store_threads: int
    resume: bool = True


@dataclass
class VerificationResult:
    """What a pass saw. It passed when nothing was damaged and the store answered every question."""

    mark: datetime
    is_resumed: bool = False
    """Whether a full pass went on where an earlier one had ended; the numbers are of this pass alone."""
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

    Damage is recorded as it is met, and damaged rows that still hold their payload are queued to be copied again.
    Raises TransientError when the database fails, StoreDeniedError when the store refuses altogether.
    """
    with (
        database_failures(partition),
        contextlib.closing(database.connect()) as connection,
        ThreadPoolExecutor(options.store_threads) as threads,
    ):
        return _Verifier(connection, store, partition, options, run_id, progress, threads).work()


class _Verifier:
    def __init__(
        self, connection: Connection, store: ObjectStore, partition: Partition, options: VerificationOptions,
        run_id: str, progress: Progress, threads: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self._connection, self._store, self._partition = connection, store, partition
        self._options, self._run_id, self._progress, self._threads = options, run_id, progress, threads
        with transaction(connection):
            self._mark, verified_through = self._set_mark()
        self._copies = Copies(connection, partition, self._mark, verified_through)
        self._checkpoint = Checkpoint(connection, partition)
        self._known_damage = KnownDamage(connection, partition)
        self._suspected: set[NamedObject] = set()
        self._result = VerificationResult(self._mark)

    def work(self) -> VerificationResult:
        resolve_stale_failures(self._connection, self._partition.table, self._partition.tenant)
        rest = self._everything() if self._options.full else self._new_and_samples()
        for page, check in itertools.chain(self._what_was_wrong(), rest):
            self._check(page, check)
            if self._is_settled():
                break
        self._conclude()
        return self._result

    def _what_was_wrong(self) -> Iterator[tuple[list[NamedObject], Check]]:
        """Damage that is known keeps the gate shut until it is mended, whatever the sample would have met."""
        for page in self._copies.suspected():
            self._suspected.update(page)
            yield page, check_whole

    def _new_and_samples(self) -> Iterator[tuple[list[NamedObject], Check]]:
        # What was moved by hand was uploaded by somebody else, and read back by nobody yet.
        check, sample_rows = (check_whole, 0) if self._has_moves_by_hand else (check_end, self._options.sample_rows)
        sample = Reservoir[NamedObject](sample_rows)
        for page in self._copies.new():
            self._result.rows_checked += len(page)
            for named in page:
                sample.offer(named)
            yield page, check
        yield sample.kept, check_whole
        yield self._copies.earlier_sample(self._options.sample_rows), check_whole

    def _everything(self) -> Iterator[tuple[list[NamedObject], Check]]:
        """Every object once, from where an unfinished pass ended; what is new and was read by it is looked at again."""
        begin = self._checkpoint.read(resume=self._options.resume)
        self._result.is_resumed = begin is not None
        for page in self._copies.out_of_order():
            yield self._counted(page), check_whole
        if begin:
            for page in self._copies.new(begin.stored_at):
                yield self._counted(page), check_end
        is_sound = True
        for page, last in self._copies.in_order(begin):
            yield self._counted(page), check_whole
            is_sound = is_sound and not self._unsound.intersection(named.key for named in page)
            if is_sound:
                self._checkpoint.write(last)

    def _counted(self, page: list[NamedObject]) -> list[NamedObject]:
        self._result.rows_checked += len(page)
        return [named for named in page if named not in self._suspected]

    @property
    def _unsound(self) -> set[Key]:
        return {damage.named.key for damage in (*self._result.damaged, *self._result.unanswered)}

    def _is_settled(self) -> bool:
        """Looking further would only make a longer list of what is known: the pass does not stand."""
        return len(self._result.unanswered) >= STORE_DOWN_AFTER_FAILURES or len(self._result.damaged) >= MOST_DAMAGED

    def _check(self, page: list[NamedObject], check: Check) -> None:
        """Looks at each object in threads; keeps what is wrong, after looking whether the row still names it."""
        wrong: list[Damage] = []
        known = self._known_damage.of(page) if check is check_whole else []
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
        # Only a whole look at the object that the row still names closes what an earlier look has found.
        read = self._still_named(page) if check is check_whole else []
        wrong += _differing(read)
        wrong += self._perhaps_deleted(page)
        self._sort_out(wrong)
        sound = {named.key for named, _, _ in read} - {damage.named.key for damage in wrong} - self._unsound
        self._known_damage.resolve([one for one in known if one.key in sound])
        self._progress(len(page), 0)

    def _perhaps_deleted(self, page: list[NamedObject]) -> list[Damage]:
        """What stands there now, but a deletion that was asked for before may still take."""
        keys = [named.object_key for named in page]
        with transaction(self._connection):
            perhaps = announced(self._connection, self._partition.table.schema, keys)
        return [Damage(named, not_yet(named.object_key)) for named in page if named.object_key in perhaps]

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
        seen, found = self._unsound, []
        for damage in wrong:
            if damage.named.key in named_still and damage.named.key not in seen:
                (self._result.damaged if damage.is_certain else self._result.unanswered).append(damage)
                seen.add(damage.named.key)
                found.append(damage)
        self._known_damage.record(found)

    def _conclude(self) -> None:
        result, parameters = self._result, self._partition.parameters()
        names = self._partition.table.names()
        with transaction(self._connection):
            if result.passed:
                self._connection.execute(
                    statement("verification/verify", "advance", names),
                    {**parameters, "mark": self._mark, "rows": result.rows_checked},
                )
                if self._options.full:
                    self._checkpoint.finish()
            action = "verify" if result.passed else "verify failed"
            self._connection.execute(
                statement("offload/record", "log_action", names),
                {**parameters, "run_id": self._run_id, "action": action,
                 "rows": result.rows_checked, "bytes": result.payload_bytes_read},
            )  # fmt: skip

    def _set_mark(self) -> tuple[datetime, datetime | None]:
        self._connection.execute(statement("verification/verify", "wait_for_deletions"))
        found = self._connection.execute(
            statement("verification/verify", "set_mark", self._partition.table.names()),
            self._partition.parameters(),
        ).fetchone()
        assert found is not None  # noqa: S101 - an upsert returns its row
        mark, verified_through, store_url, self._has_moves_by_hand = found
        require_same_store(self._partition, store_url, self._store.url)
        return mark, verified_through


def _differing(read: Iterable[tuple[NamedObject, str, str | None]]) -> Iterator[Damage]:
    """Rows that still hold the payload must hash, in PostgreSQL, to what was stored."""
    for named, status, row_hash in read:
        if status == "copied" and row_hash != named.sha256:
            yield Damage(named, ObjectDamagedError(f"the row's payload does not hash to {named.sha256}"))


def _outcome(store: ObjectStore, named: NamedObject, check: Check) -> int | OffloadError:
    try:
        return check(store, named)
    except OffloadError as error:
        return error
