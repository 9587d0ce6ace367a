"""Other sessions seen from outside: a test waits for what they do, never for time to pass."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg

from offload_pipeline_tests.servers import wait_until

OURS = "offload_pipeline"


def blocked_sessions(connection: psycopg.Connection, application: str = OURS) -> int:
    """How many sessions of this name wait for a lock, of a row, a table or an advisory one."""
    found = connection.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s AND wait_event_type = 'Lock'",
        (application,),
    ).fetchone()
    assert found is not None
    return int(found[0])


def wait_until_blocked(connection: psycopg.Connection, application: str = OURS) -> None:
    assert wait_until(lambda: blocked_sessions(connection, application) > 0), "no session came to wait for a lock"


def advisory_locks(connection: psycopg.Connection) -> int:
    """Claims that anybody holds in this database."""
    found = connection.execute(
        "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        " WHERE l.locktype = 'advisory' AND d.datname = current_database()"
    ).fetchone()
    assert found is not None
    return int(found[0])


def open_transactions(connection: psycopg.Connection, application: str = OURS) -> int:
    """Sessions of this name that are inside a transaction."""
    found = connection.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s AND xact_start IS NOT NULL",
        (application,),
    ).fetchone()
    assert found is not None
    return int(found[0])


@contextlib.contextmanager
def in_thread(work: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Runs beside the test; its exception, if the test did not ask for the result, is raised at the end."""
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(work)
        yield future
        future.result(timeout=60)
