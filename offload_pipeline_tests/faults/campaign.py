"""A campaign: workers under fire from every side, killed, and after each pair of them the promise checked anew."""

import contextlib
import itertools
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from offload_pipeline.config import ObjectStoreConfig, TableConfig
from offload_pipeline.pipeline import Pipeline
from offload_pipeline.storage.object_store import ObjectStore, open_store
from offload_pipeline_tests.factories import install, make_pipeline, make_table
from offload_pipeline_tests.faults.application import Application, what_expired, what_was_written
from offload_pipeline_tests.faults.chance import Chance
from offload_pipeline_tests.faults.disk import ALL_KINDS as DISK_KINDS
from offload_pipeline_tests.faults.disk import SmallDisk
from offload_pipeline_tests.faults.proxy import ALL_KINDS as PROXY_KINDS
from offload_pipeline_tests.faults.proxy import FaultyProxy
from offload_pipeline_tests.faults.worker import Orders, Told, Worker
from offload_pipeline_tests.invariant import assert_invariant
from offload_pipeline_tests.offload.installation import let_time_pass
from offload_pipeline_tests.offload.waiting import OURS, advisory_locks, open_transactions
from offload_pipeline_tests.servers import PostgresServer, wait_until

SUMMARY_VARIABLE = "OFFLOAD_FAULTS_SUMMARY"

# One table for each thing that may stay behind in a row, and one whose payloads expire.
TABLES: dict[str, dict[str, Any]] = {
    "notices": {"after_copy": "clear"},
    "letters": {"after_copy": "reference"},
    "tenders": {"after_copy": "keep"},
    "events": {"after_copy": "clear", "object_retention": "2s"},
}
THRESHOLD_BYTES = 300
ROWS = 60
SECTIONS: dict[str, dict[str, Any]] = {
    "offload": {"batch_rows": 10, "batches_in_flight": 2, "store_threads": 6},
    "verification": {"sample_rows": 5},
}
TIMEOUT = "0.5s"
DISK_MEGABYTES = 16
FULL_FILE_BYTES = 64

# One a life, in turns: what the store does to so many of its requests.
RATES = (0.1, 0.5, 0.02, 0.9, 0.05, 0.2)
# What befalls a pair of workers before they are killed, one list a life, in turns.
TROUBLES = (
    ("terminate one", "disk full"), ("restart immediate",), ("collect", "terminate all"), ("restart fast",),
    ("collect",), ("disk full",), ("collect", "terminate one"), ("terminate one", "terminate one"),
    ("collect", "disk full"), ("let time pass",),
)  # fmt: skip
# Between one trouble and the next, and the kills. Measured in work, so that a busy machine sees as much of it.
MOST_REQUESTS = 120
MOST_DELETIONS = 30
# For a pair with nothing to do just then, or no database.
LONGEST_WAIT_SECONDS = 5
# A collection waits for the transactions that were there before it.
LONGEST_COLLECTION_SECONDS = 15
START_SECONDS = 60


@dataclass
class Campaign:
    """Everything under test, and what has befallen it so far."""

    server: PostgresServer
    database_url: str
    pipeline: Pipeline
    store: ObjectStore
    """The real one, past every fault."""
    application: Application
    folder: Path
    seed: int
    proxy: FaultyProxy | None = None
    disk: SmallDisk | None = None
    injected: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    checks: int = 0
    rows_checked: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - moments, not secrets
        self._rates, self._troubles = itertools.cycle(RATES), itertools.cycle(TROUBLES)
        self._started = time.monotonic()
        self._config = self.folder / "offload.yaml"
        document = self.pipeline.config.model_dump(by_alias=True, exclude_defaults=True)
        self._config.write_text(json.dumps(document, default=lambda duration: f"{duration.total_seconds()}s"))

    @property
    def tables(self) -> Sequence[TableConfig]:
        return self.pipeline.config.tables

    @property
    def kinds(self) -> set[str]:
        """Every fault that it is there to inject."""
        of_store = PROXY_KINDS if self.proxy else DISK_KINDS
        kinds = {f"{request} {kind}" for request, known in of_store.items() for kind in known}
        kinds |= {"database restarted, fast", "database restarted, immediate", "database connection terminated"}
        return kinds if self.proxy else kinds | {"PUT disk full"}

    @contextlib.contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """Anew each time: the server is restarted again and again."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            yield connection

    def wage(self, kills: int) -> None:
        """At least so many, with the promise checked after each two. AssertionError where it is broken."""
        with self.application.writing(), contextlib.ExitStack() as workers:
            pair = self._recruit(workers)
            while self.kills < kills:
                relief = self._recruit(workers)
                self._live(pair)
                pair = relief
                with self.application.paused():
                    self.check()

    def check(self) -> None:
        """The promise, row by row against the ledger and the real store; no worker lives and nobody writes."""
        with self.connect() as connection:
            assert wait_until(lambda: open_transactions(connection) == 0), "a transaction outlived its worker"
            assert advisory_locks(connection) == 0, "a claim outlived its worker"
            for table in self.tables:
                expected, expired = what_was_written(connection, table), what_expired(connection, table)
                with self._history_of_what_broke():
                    assert_invariant(connection, self.store, table, expected, expired=expired)
                self.rows_checked += len(expected)
        self.checks += 1

    def heal(self) -> None:
        """No further fault, and what was on its way has arrived."""
        if self.proxy:
            self.injected += self.proxy.injected
            self.proxy.heal()
            self.proxy.settle()

    def summary(self) -> dict[str, Any]:
        """What docs/reliability.md quotes."""
        return {
            "seed": self.seed,
            "postgresql": self.server.version,
            "store": self.pipeline.store.url.partition(":")[0],
            "seconds": round(time.monotonic() - self._started),
            "kills": self.kills,
            "faults": sum(self.injected.values()),
            "injected": dict(sorted(self.injected.items())),
            "reached": dict(self.reached.most_common()),
            "done": dict(self.done),
            "writes": dict(self.application.writes),
            "checks": self.checks,
            "rows checked": self.rows_checked,
        }

    def _recruit(self, workers: contextlib.ExitStack) -> list[Worker]:
        """The next pair: one begins to copy, and leaves its client library no fault to hide; one to delete."""
        disk_rate = None if self.proxy else next(self._rates)
        return [
            workers.enter_context(
                Worker(self._config, Orders(self._random.randrange(10**6), retries, disk_rate, first))
            )
            for retries, first in ((0, "drain"), (1, "collect"))
        ]

    def _live(self, pair: list[Worker]) -> None:
        """Two workers, one trouble after the other, and one killed while the other goes on."""
        if self.proxy and self.proxy.chance:
            self.proxy.chance.rate = next(self._rates)
        for worker in pair:
            worker.go()
        assert wait_until(lambda: self._is_at_work(pair), START_SECONDS), "the workers did not come to work"
        for trouble in next(self._troubles):
            self._wait(pair)
            self._befall(pair, trouble)
        for worker in pair:
            self._wait(pair)
            self._take(worker.kill())
            self.kills += 1

    def _is_at_work(self, pair: list[Worker]) -> bool:
        """Or ended by itself, which `kill` will complain about."""
        with self.connect() as connection:
            return open_transactions(connection) > 0 or any(worker.has_ended for worker in pair)

    def _wait(self, pair: list[Worker]) -> None:
        """Until the workers have asked the store for a few things more."""
        enough = sum(worker.requests for worker in pair) + self._random.randrange(MOST_REQUESTS)
        wait_until(lambda: sum(worker.requests for worker in pair) >= enough, LONGEST_WAIT_SECONDS)

    def _befall(self, pair: list[Worker], trouble: str) -> None:
        match trouble.split():
            case ["restart", mode]:
                self.server.restart(mode)
                self.injected[f"database restarted, {mode}"] += 1
            case ["terminate", which]:
                self.injected["database connection terminated"] += self._terminate(None if which == "all" else 1)
            case ["disk", "full"] if self.proxy is None:
                self._fill_disk(pair)
            case ["collect"]:
                enough = self._random.randrange(MOST_DELETIONS)
                wait_until(lambda: pair[1].has_collected(enough), LONGEST_COLLECTION_SECONDS)
            case ["let", *_]:
                with self.connect() as connection:
                    let_time_pass(connection)

    def _terminate(self, limit: int | None) -> int:
        with self.connect() as connection:
            return connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = %s ORDER BY random() LIMIT %s",
                (OURS, limit),
            ).rowcount

    def _fill_disk(self, pair: list[Worker]) -> None:
        if self.disk is None:
            with pair[0].file_size_limit(FULL_FILE_BYTES):
                self._wait(pair)
            return
        self.disk.fill()
        self._wait(pair)
        self.disk.make_room()

    def _take(self, told: Told) -> None:
        self.injected += told.injected
        self.injected["PUT disk full"] += told.full_disks
        self.reached += told.failed
        self.done += told.done

    @contextlib.contextmanager
    def _history_of_what_broke(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            key = re.search(r"\S+\.json\.gz", str(error))
            if key and self.proxy:
                error.add_note("\n".join(line for line in self.proxy.history if key[0] in line))
            raise


@contextlib.contextmanager
def campaign(
    server: PostgresServer, database_url: str, store_url: str, folder: Path, seed: int,
    *, proxy: FaultyProxy | None = None, disk: SmallDisk | None = None,
) -> Iterator[Campaign]:  # fmt: skip
    """Tables, ledger and pipeline; writes what happened to the file that OFFLOAD_FAULTS_SUMMARY names, if it does."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        tables = [
            make_table(connection, name=name, relation=f"public.{name}", threshold_bytes=THRESHOLD_BYTES, **options)
            for name, options in TABLES.items()
        ]
    at_proxy = {"endpoint": proxy.endpoint} if proxy else {}
    pipeline = make_pipeline(database_url, store_url, tables, object_store={**at_proxy, "timeout": TIMEOUT}, **SECTIONS)
    install(pipeline)
    application = Application(database_url, tables, ROWS, seed)
    application.begin()
    real = ObjectStoreConfig(url=store_url, endpoint=proxy.server.endpoint if proxy else None)
    found = Campaign(
        server, database_url, pipeline, open_store(real, folder), application, folder, seed, proxy=proxy, disk=disk
    )
    if proxy:
        proxy.chance = Chance(seed, PROXY_KINDS)
    try:
        yield found
    finally:
        _write_summary(found)


def _write_summary(found: Campaign) -> None:
    """One document a line: a run has several campaigns."""
    if name := os.environ.get(SUMMARY_VARIABLE):
        with Path(name).open("a") as file:
            file.write(json.dumps(found.summary()) + "\n")
