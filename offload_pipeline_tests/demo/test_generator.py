"""The generator is the application of `offload up`: it inserts until it is told to stop."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from offload_pipeline.demo.generator import insert_until
from offload_pipeline.pipeline import Pipeline
from offload_pipeline_tests.servers import wait_until

STOP_SECONDS = 5


@contextmanager
def running(pipeline: Pipeline, stopped: threading.Event) -> Iterator[tuple[threading.Thread, list[int]]]:
    """The generator in a thread of its own, and what it returned."""
    returned: list[int] = []
    thread = threading.Thread(target=lambda: returned.append(insert_until(stopped, pipeline)))
    thread.start()
    try:
        yield thread, returned
    finally:
        stopped.set()
        thread.join(STOP_SECONDS)
        assert not thread.is_alive()


def rows(pipeline: Pipeline) -> int:
    with pipeline.connect() as connection:
        found = connection.execute(
            "SELECT (SELECT count(*) FROM activities) + (SELECT count(*) FROM notices)"
        ).fetchone()
    assert found is not None
    return int(found[0])


def test_it_inserts_into_both_tables_until_told_to_stop(demo: Pipeline) -> None:
    stopped = threading.Event()
    with running(demo, stopped) as (thread, returned):
        assert wait_until(lambda: rows(demo) >= 4, 30)
        stopped.set()
        thread.join(STOP_SECONDS)
        assert not thread.is_alive()
    assert returned == [rows(demo)]
    with demo.connect() as connection:
        waiting = connection.execute("SELECT DISTINCT payload_storage_status FROM notices").fetchall()
    assert waiting == [("pending_move",)]


def test_told_before_it_starts_it_inserts_nothing(demo: Pipeline) -> None:
    stopped = threading.Event()
    stopped.set()
    assert insert_until(stopped, demo) == 0
    assert rows(demo) == 0


def test_it_ends_by_itself_when_the_database_goes_away(demo: Pipeline) -> None:
    with running(demo, threading.Event()) as (thread, returned):
        assert wait_until(lambda: rows(demo) >= 2, 30)
        with demo.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'offload_pipeline' AND pid <> pg_backend_pid()"
            )
        thread.join(STOP_SECONDS)
        assert not thread.is_alive()
    assert returned == [rows(demo)]
