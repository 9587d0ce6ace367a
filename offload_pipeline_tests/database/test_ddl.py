"""DDL under short locks: what is retried, what is not, and that nothing is left half done."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import LiteralString

import psycopg
import pytest
from psycopg import errors, sql

from offload_pipeline.database import ddl
from offload_pipeline.database.ddl import run_concurrently, run_under_short_locks
from offload_pipeline.errors import TransientError, UserError
from offload_pipeline_tests.servers import wait_until


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connected:
        connected.execute("CREATE TABLE one (id int); CREATE TABLE two (id int)")
        yield connected


@pytest.fixture
def other(database_url: str, connection: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """The application's session, in transactions of its own."""
    with psycopg.connect(database_url) as connected:
        yield connected


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept between attempts."""
    found: list[float] = []
    monkeypatch.setattr(ddl, "time", SimpleNamespace(sleep=found.append))
    return found


def columns_of(connection: psycopg.Connection, table: str) -> int:
    query = "SELECT count(*) FROM information_schema.columns WHERE table_name = %s"
    found = connection.execute(query, [table]).fetchone()
    assert found is not None
    return int(found[0])


def composed(statement: LiteralString) -> sql.Composed:
    return sql.SQL(statement).format()


ADD_TO_BOTH = (composed("ALTER TABLE one ADD a int"), composed("ALTER TABLE two ADD a int"))


def test_all_statements_are_one_transaction(connection: psycopg.Connection) -> None:
    with pytest.raises(errors.UndefinedTable):
        run_under_short_locks(connection, [ADD_TO_BOTH[0], composed("ALTER TABLE three ADD a int")])
    assert columns_of(connection, "one") == 1
    run_under_short_locks(connection, ADD_TO_BOTH)
    assert (columns_of(connection, "one"), columns_of(connection, "two")) == (2, 2)


@pytest.mark.both_servers
def test_a_lock_that_is_held_on_is_given_up_and_nothing_is_half_done(
    connection: psycopg.Connection, other: psycopg.Connection, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ddl, "ATTEMPTS", 3)
    monkeypatch.setattr(ddl, "FIRST_LOCK_TIMEOUT_MS", 10)
    other.execute("SELECT FROM two")
    with pytest.raises(TransientError, match="stayed locked through 3 attempts; end the long transaction") as caught:
        run_under_short_locks(connection, ADD_TO_BOTH)
    assert "\n" not in str(caught.value)
    assert (columns_of(connection, "one"), columns_of(connection, "two")) == (1, 1)
    assert len(pauses) == 3
    shortest, longest = ddl.PAUSE_SECONDS
    assert all(shortest <= pause <= longest for pause in pauses)


def test_a_lock_that_becomes_free_is_taken_on_a_later_attempt(
    connection: psycopg.Connection, other: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ddl, "FIRST_LOCK_TIMEOUT_MS", 10)
    other.execute("SELECT FROM two")
    monkeypatch.setattr(ddl, "time", SimpleNamespace(sleep=lambda _: other.rollback()))
    run_under_short_locks(connection, ADD_TO_BOTH)
    assert columns_of(connection, "two") == 2


def test_a_deadlock_is_tried_again(
    connection: psycopg.Connection,
    other: psycopg.Connection,
    database_url: str,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ddl, "FIRST_LOCK_TIMEOUT_MS", 20_000)
    monkeypatch.setattr(ddl, "LAST_LOCK_TIMEOUT_MS", 20_000)
    connection.execute("SET deadlock_timeout = '10ms'")
    other.execute("SET deadlock_timeout = '20s'")
    other.execute("LOCK two IN ACCESS EXCLUSIVE MODE")
    crossing = threading.Thread(target=take_and_let_go, args=[other, "one"])

    def statements() -> Iterator[sql.Composed]:
        """The first time around, the second lock is asked for when the other session waits for the first."""
        yield composed("LOCK one IN ACCESS EXCLUSIVE MODE")
        if not crossing.ident:
            crossing.start()
            with psycopg.connect(database_url, autocommit=True) as observer:
                assert wait_until(lambda: is_waited_for(observer, "one"))
        yield composed("ALTER TABLE two ADD a int")

    run_under_short_locks(connection, _Lazily(statements))
    crossing.join()
    assert len(pauses) == 1
    assert columns_of(connection, "two") == 2


class _Lazily(list[sql.Composed]):
    """A list whose items are made when they are asked for."""

    def __init__(self, make: Callable[[], Iterator[sql.Composed]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[sql.Composed]:
        return self._make()


def take_and_let_go(session: psycopg.Connection, table: str) -> None:
    session.execute(sql.SQL("LOCK {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table)))
    session.rollback()


def is_waited_for(observer: psycopg.Connection, table: str) -> bool:
    query = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = %s::regclass AND NOT granted)"
    found = observer.execute(query, [table]).fetchone()
    return found == (True,)


def test_a_missing_right_is_the_users_to_mend(connection: psycopg.Connection) -> None:
    connection.execute("SET ROLE pg_monitor")
    create_index = composed("CREATE INDEX CONCURRENTLY ON one (id)")
    attempts = (
        partial(run_under_short_locks, connection, ADD_TO_BOTH),
        partial(run_concurrently, connection, create_index),
    )
    for attempt in attempts:
        with pytest.raises(UserError, match="must be owner of table one; run install as the owner") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_concurrent_statement_is_not_cut_short_by_the_sessions_limits(connection: psycopg.Connection) -> None:
    connection.execute("INSERT INTO one SELECT generate_series(1, 4)")
    connection.execute(
        "CREATE FUNCTION slowly(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS"
        " $$ BEGIN PERFORM pg_sleep(0.05); RETURN $1; END $$"
    )
    connection.execute("SET statement_timeout = 100")
    run_concurrently(connection, composed("CREATE INDEX CONCURRENTLY one_id ON one (slowly(id))"))
    found = connection.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'one_id'::regclass").fetchone()
    assert found == (True,)


def test_dates_are_written_in_utc_whatever_the_sessions_zone(connection: psycopg.Connection) -> None:
    connection.execute("SET TimeZone = 'America/Bogota'")
    run_under_short_locks(
        connection, [composed("CREATE TABLE noon AS SELECT TIMESTAMPTZ '2026-03-01 12:00' AS moment")]
    )
    found = connection.execute("SELECT moment = '2026-03-01 12:00+00' FROM noon").fetchone()
    assert found == (True,)
