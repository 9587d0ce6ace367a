"""Workers killed at any instant, a server that crashes, and an application that goes on writing: nothing is lost."""

import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from offload_pipeline.errors import OffloadError, TransientError
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.invariant import assert_invariant
from offload_pipeline_tests.offload.installation import RUN, Installation, StoreAddress, installed, plain
from offload_pipeline_tests.offload.stores import HookedStore
from offload_pipeline_tests.offload.waiting import advisory_locks, open_transactions
from offload_pipeline_tests.offload.worker import FOREVER, start_worker
from offload_pipeline_tests.servers import PostgresServer, wait_until

SECTIONS = {"offload": {"batch_rows": 5, "batches_in_flight": 2, "store_threads": 4}}
ROWS = 250
KILLS = 8
MANY_KILLS = 200
LONGEST_LIFE_SECONDS = 0.4

# Each says in `written`, in the same transaction, what the application means.
WRITES = {
    "insert": """
        WITH done AS (
            INSERT INTO notices (tenant_id, raw_payload) VALUES ('acme', %(payload)s) RETURNING id, raw_payload
        )
        INSERT INTO written SELECT id, encode(sha256(convert_to(raw_payload::text, 'UTF8')), 'hex') FROM done
    """,
    "update": """
        WITH done AS (
            UPDATE notices SET raw_payload = %(payload)s
            WHERE id = (SELECT id FROM notices OFFSET %(offset)s LIMIT 1)
            RETURNING id, raw_payload
        )
        UPDATE written SET sha256 = encode(sha256(convert_to(raw_payload::text, 'UTF8')), 'hex')
        FROM done WHERE written.id = done.id
    """,
    "touch": """
        UPDATE notices SET created_at = now() WHERE id = (SELECT id FROM notices OFFSET %(offset)s LIMIT 1)
    """,
    "delete": """
        WITH done AS (
            DELETE FROM notices WHERE id = (SELECT id FROM notices OFFSET %(offset)s LIMIT 1) RETURNING id
        )
        DELETE FROM written USING done WHERE written.id = done.id
    """,
}


class Writer:
    """The application: one small transaction after the other until it is told to stop."""

    def __init__(self, database_url: str, seed: int) -> None:
        self._url, self._random = database_url, random.Random(seed)  # noqa: S311 - the same writes each time
        self._stop = threading.Event()
        self.writes = 0

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stop.wait(0.005):
                kind = self._random.choice(list(WRITES))
                offset = self._random.randrange(ROWS)
                payload = large_payload(self._random.randrange(20, 3000), self.writes)
                connection.execute(WRITES[kind], {"offset": offset, "payload": payload})
                self.writes += 1

    @contextlib.contextmanager
    def writing(self) -> Iterator["Writer"]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()


def what_was_written(connection: psycopg.Connection) -> dict[Any, str | None]:
    return dict(connection.execute("SELECT id, sha256 FROM written").fetchall())


def assert_invariant_in_a_snapshot(notices: Installation) -> None:
    """While the application goes on writing: rows, and what it means by them, as of one instant."""
    with psycopg.connect(notices.database_url) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        expected = what_was_written(connection)
        assert_invariant(connection, plain(notices.store), notices.config, expected)


def kill_workers_again_and_again(notices: Installation, folder: Path, kills: int, *, unseen: bool) -> None:
    """With `unseen`, most rows are older than the trigger, and every worker resumes the scan of the one before."""
    notices.connection.execute("CREATE TABLE written (id bigint PRIMARY KEY, sha256 text)")
    for number in range(ROWS):
        notices.connection.execute(WRITES["insert"], {"payload": large_payload(1000, -number)})
    if unseen:
        notices.execute("UPDATE {table} SET payload_storage_status = NULL, payload_bytes = NULL WHERE id % 4 > 0")
    rng = random.Random(kills)  # noqa: S311 - moments, not secrets
    life = threading.Event()
    with Writer(notices.database_url, kills).writing() as writer:
        for _ in range(kills):
            worker = start_worker(notices.pipeline, folder, passes=FOREVER, unseen=unseen)
            try:
                assert wait_until(lambda: is_at_work(notices)), "the worker did not come to work"
                life.wait(rng.uniform(0, LONGEST_LIFE_SECONDS))
            finally:
                worker.kill()
                worker.communicate()
            assert_invariant_in_a_snapshot(notices)
            assert wait_until(lambda: open_transactions(notices.connection) == 0), "a transaction outlived its worker"
            assert advisory_locks(notices.connection) == 0
    assert writer.writes > kills
    assert done_by_workers(notices) > 0, "they lived long enough to get something done"

    notices.expected = what_was_written(notices.connection)
    notices.assert_invariant()
    assert notices.pipeline.drain(notices.partition(), RUN, unseen=unseen).is_sound
    assert notices.one_status() == "in_storage"
    assert notices.verify(full=True).passed
    assert advisory_locks(notices.connection) == open_transactions(notices.connection) == 0
    notices.assert_invariant()


def is_at_work(notices: Installation) -> bool:
    return open_transactions(notices.connection) > 0


def done_by_workers(notices: Installation) -> int:
    row = notices.connection.execute("SELECT sum(rows_copied) FROM payload_offload_state").fetchone()
    assert row is not None
    return int(row[0] or 0)


@pytest.mark.parametrize("unseen", [False, True])
def test_workers_killed_at_random_moments_lose_nothing(
    database_url: str, local_store_url: str, tmp_path: Path, unseen: bool
) -> None:
    with installed(database_url, local_store_url, sections=SECTIONS) as notices:
        kill_workers_again_and_again(notices, tmp_path, KILLS, unseen=unseen)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_killed_at_very_many_random_moments_lose_nothing(
    database_url: str, any_store: StoreAddress, tmp_path: Path
) -> None:
    with installed(database_url, any_store, sections=SECTIONS) as notices:
        kill_workers_again_and_again(notices, tmp_path, MANY_KILLS, unseen=False)


@pytest.mark.parametrize("moment", ["before_put", "after_get", "before_trailer", "after_trailer"])
def test_a_database_that_crashes_mid_batch_loses_nothing(
    database_url: str, local_store_url: str, postgres_server: PostgresServer, moment: str
) -> None:
    only_once = threading.Lock()

    def crash(_key: str) -> None:
        if only_once.acquire(blocking=False):
            postgres_server.restart("immediate")

    with installed(database_url, local_store_url) as before:
        before.insert(large_payload(300, number) for number in range(10))
        crashing = before.with_store(HookedStore(before.store, **{moment: crash}))
        if "trailer" in moment:
            before.copy()
        one_line = r"^notices, tenant 'acme': the database failed \([^\n]*\); run it again$"
        with pytest.raises(TransientError, match=one_line):
            crashing.drain()
        before.connection.close()
        with psycopg.connect(database_url, autocommit=True) as connection:
            notices = replace(before, connection=connection)
            notices.assert_invariant()
            assert notices.failures() == {}
            assert advisory_locks(connection) == 0
            assert notices.drain().is_sound
            assert notices.one_status() == "in_storage"
            notices.assert_invariant()


def test_a_database_that_does_not_answer_is_one_line_and_loses_nothing(
    database_url: str, local_store_url: str, postgres_server: PostgresServer
) -> None:
    with installed(database_url, local_store_url) as before:
        before.insert([large_payload(300)])
        before.connection.close()
        postgres_server.stop()
        try:
            for step in (before.copy, before.verify, before.release):
                with pytest.raises(OffloadError, match=r"^cannot connect to [^\n]*$"):
                    step()
        finally:
            postgres_server.start()
        with psycopg.connect(database_url, autocommit=True) as connection:
            notices = replace(before, connection=connection)
            assert notices.drain().is_sound
            notices.assert_invariant()
