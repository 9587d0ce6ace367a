"""Several workers on one pass over a partition, each on a thread and a connection of its own."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from psycopg import Connection

from offload_pipeline.database.back_pressure import BackPressure
from offload_pipeline.database.connection import Database, database_failures
from offload_pipeline.errors import OffloadError, StoreDeniedError, StoreUnavailableError
from offload_pipeline.offload.claims import Partition

# So many rows in a row that the store failed: it is down, and more attempts would only count against the rows.
STORE_DOWN_AFTER_FAILURES = 32


class Workers:
    """What stops one of them stops all: an error, an interrupt, a store that refuses or is down."""

    def __init__(self, database: Database, partition: Partition, pressure: BackPressure | None) -> None:
        self._database, self._partition, self._pressure = database, partition, pressure
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._store_failures_in_a_row = 0
        self.stopped_by: OffloadError | None = None
        """What the store said, when it failed as a whole."""

    @property
    def are_stopping(self) -> bool:
        """Whether no further batch is begun."""
        return self._stopping.is_set()

    def run(self, next_batch: Callable[[Connection], bool], count: int) -> None:
        """Calls `next_batch` on `count` threads until it gives False; none is begun while there is pressure.

        Raises TransientError when the database fails, else what the first of them raised, after all have ended.
        """
        with ThreadPoolExecutor(count, "worker") as threads:
            futures: list[Future[None]] = [threads.submit(self._work, next_batch) for _ in range(count)]
            try:
                for future in as_completed(futures):
                    if future.exception():
                        self._stopping.set()
            finally:
                # Interrupted, the batches in flight are finished and no others begun.
                self._stopping.set()
        for future in futures:
            future.result()

    def _work(self, next_batch: Callable[[Connection], bool]) -> None:
        with database_failures(self._partition), contextlib.closing(self._database.connect()) as connection:
            while self._may_go_on(connection) and next_batch(connection):
                pass

    def _may_go_on(self, connection: Connection) -> bool:
        if self._pressure is not None:
            self._pressure.wait(connection, self._stopping)
        return not self.are_stopping

    def store_answered(self) -> None:
        """A row succeeded: the store is up."""
        self._store_failures_in_a_row = 0

    def store_failed(self, error: OffloadError) -> None:
        """A row failed; stops all where the store refuses, or has failed so often in a row that it is down."""
        with self._lock:
            if isinstance(error, StoreUnavailableError):
                self._store_failures_in_a_row += 1
            is_down = self._store_failures_in_a_row >= STORE_DOWN_AFTER_FAILURES
            if is_down or isinstance(error, StoreDeniedError):
                self.stopped_by = self.stopped_by or error
                self._stopping.set()
