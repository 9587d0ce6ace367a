"""Work in bulk waits for lagging replicas, for the archiver and for autovacuum; it holds nothing while it waits."""

import contextlib
import logging
import queue
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from offload_pipeline.config import BackPressureConfig
from offload_pipeline.database import back_pressure
from offload_pipeline.database.back_pressure import BackPressure
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import RUN, Installation, installed
from offload_pipeline_tests.offload.waiting import advisory_locks, in_thread, open_transactions
from offload_pipeline_tests.servers import PostgresServer, wait_until

pytestmark = pytest.mark.both_servers

SECONDS = 60
NOTHING: dict[str, Any] = {
    "max_replica_lag_bytes": None, "max_wal_files_waiting": None, "pause_for_autovacuum": False
}  # fmt: skip
FEW_BYTES = {**NOTHING, "max_replica_lag_bytes": 500_000}
FEW_FILES = {**NOTHING, "max_wal_files_waiting": 3}
AUTOVACUUM = {**NOTHING, "pause_for_autovacuum": True}
FILL_TABLE = """
    INSERT INTO {table} (tenant_id, padding) SELECT 'filler', repeat('x', 400) FROM generate_series(1, 5000)
"""
FILL_TOAST = """
    INSERT INTO {table} (tenant_id, padding) SELECT 'filler', string_agg(md5(n::text || i::text), '')
    FROM generate_series(1, 300) AS n, generate_series(1, 250) AS i GROUP BY n
"""
VACUUMS = """
    SELECT count(*) FROM pg_stat_progress_vacuum AS v JOIN pg_class AS c ON v.relid IN (c.oid, c.reltoastrelid)
    WHERE c.relname IN ('notices', 'notices_old')
"""
# A page costs at least 1, so that each takes a tenth of a second or more.
SLOW_VACUUM = ("vacuum_threshold = 10", "vacuum_scale_factor = 0", "vacuum_cost_delay = 100", "vacuum_cost_limit = 1")


@pytest.fixture
def archiving(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server whose archive_command fails."""
    server = PostgresServer(postgres_server.bin_dir, {"archive_mode": "on", "archive_command": "/bin/false"})
    yield server
    server.close()


@pytest.fixture
def primary(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server that replicas of either kind may follow."""
    server = PostgresServer(postgres_server.bin_dir, {"wal_level": "logical"})
    yield server
    server.close()


@pytest.fixture
def standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """Made from a base backup, streaming."""
    server = PostgresServer(primary.bin_dir, {"wal_receiver_status_interval": "1s"}, primary=primary)
    yield server
    server.close()


@pytest.fixture
def vacuuming(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server whose autovacuum looks every second."""
    server = PostgresServer(postgres_server.bin_dir, {"autovacuum_naptime": "1s"})
    yield server
    server.close()


class Said:
    """What was announced, in order."""

    def __init__(self) -> None:
        self._reasons: queue.Queue[str | None] = queue.Queue()

    def __call__(self, reason: str | None) -> None:
        self._reasons.put(reason)

    def next(self) -> str | None:
        """Waits for it."""
        return self._reasons.get(timeout=SECONDS)

    def all(self) -> list[str | None]:
        return list(self._reasons.queue)


def table_on(
    server: PostgresServer, store_url: str, policy: dict[str, Any], **options: Any
) -> contextlib.AbstractContextManager[Installation]:
    return installed(server.url(), store_url, sections={"back_pressure": policy}, **options)


def one(connection: Connection, query: str, *values: Any) -> Any:
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return row[0]


def assert_nothing_is_held(notices: Installation) -> None:
    """An application may lock the whole table, and no claim stands."""
    with notices.connection.transaction():
        notices.execute("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE NOWAIT")
    assert advisory_locks(notices.connection) == 0
    assert wait_until(lambda: open_transactions(notices.connection) == 0)


@contextlib.contextmanager
def paused(notices: Installation, work: Callable[..., Any], reason: str) -> Iterator[Future[Any]]:
    """The work waits for this reason, until the body has removed it; then it goes on to its end."""
    said = Said()
    before = notices.statuses()
    with in_thread(lambda: work(notices.partition(), RUN, announce=said)) as future:
        assert reason in str(said.next())
        assert_nothing_is_held(notices)
        assert notices.statuses() == before
        assert not future.done()
        yield future
        assert said.next() is None


def stop_replay(standby: Connection) -> None:
    standby.execute("SELECT pg_wal_replay_pause()")
    assert wait_until(lambda: one(standby, "SELECT pg_get_wal_replay_pause_state()") == "paused")


def test_copying_waits_until_a_standby_has_caught_up(
    primary: PostgresServer, standby: PostgresServer, local_store_url: str
) -> None:
    with (
        table_on(primary, local_store_url, FEW_BYTES) as notices,
        psycopg.connect(standby.url(), autocommit=True) as replica,
    ):
        stop_replay(replica)
        notices.insert(large_payload(10_000, seed) for seed in range(100))
        with paused(notices, notices.pipeline.drain, "replica 'walreceiver' is ") as drained:
            replica.execute("SELECT pg_wal_replay_resume()")
        assert drained.result().is_sound
        assert notices.one_status() == "in_storage"
        notices.assert_invariant()


def test_copying_waits_until_a_logical_subscriber_has_caught_up(primary: PostgresServer, local_store_url: str) -> None:
    subscriber = PostgresServer(primary.bin_dir)
    with contextlib.closing(subscriber), table_on(primary, local_store_url, FEW_BYTES) as notices:
        with psycopg.connect(subscriber.url(), autocommit=True) as reader, psycopg.connect(subscriber.url()) as holder:
            for connection in (notices.connection, reader):
                connection.execute("CREATE TABLE followed (id int)")
            notices.connection.execute("CREATE PUBLICATION them FOR TABLE followed")
            reader.execute(f"CREATE SUBSCRIPTION us CONNECTION '{primary.url()}' PUBLICATION them")
            assert wait_until(lambda: one(reader, "SELECT srsubstate FROM pg_subscription_rel") == "r", SECONDS)
            holder.execute("LOCK TABLE followed")
            notices.connection.execute("INSERT INTO followed VALUES (1)")
            notices.insert(large_payload(10_000, seed) for seed in range(100))
            with paused(notices, notices.pipeline.copy, "replica 'us' is "):
                holder.rollback()
            reader.execute("DROP SUBSCRIPTION us")
        assert notices.one_status() == "copied"


def let_wal_pile_up(connection: Connection, files: int) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS filler (id int)")
    for number in range(files):
        connection.execute("INSERT INTO filler VALUES (%s)", [number])
        connection.execute("SELECT pg_switch_wal()")
    assert wait_until(lambda: waiting_files(connection) >= files)


def waiting_files(connection: Connection) -> int:
    return int(one(connection, "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%%.ready'"))


def let_archiving_succeed(connection: Connection) -> None:
    connection.execute("ALTER SYSTEM SET archive_command = '/bin/true'")
    connection.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("step", ["copy", "release"])
def test_copying_and_releasing_wait_for_the_archiver(
    archiving: PostgresServer, local_store_url: str, step: str
) -> None:
    with table_on(archiving, local_store_url, FEW_FILES) as notices:
        notices.insert(large_payload(1000, seed) for seed in range(20))
        if step == "release":
            notices.copy()
            assert notices.verify().passed
        let_wal_pile_up(notices.connection, 5)
        with paused(notices, getattr(notices.pipeline, step), " WAL files wait to be archived") as done:
            let_archiving_succeed(notices.connection)
        assert done.result().rows_failed == 0
        assert notices.one_status() == ("copied" if step == "copy" else "in_storage")
        notices.assert_invariant()


@pytest.mark.parametrize("was_archived_before", [False, True])
def test_a_role_that_may_not_list_the_files_reckons_how_many_wait(
    archiving: PostgresServer, local_store_url: str, was_archived_before: bool
) -> None:
    with table_on(archiving, local_store_url, FEW_FILES) as notices:
        connection = notices.connection
        if was_archived_before:
            let_archiving_succeed(connection)
            connection.execute("SELECT pg_switch_wal()")
            assert wait_until(lambda: one(connection, "SELECT archived_count > 0 FROM pg_stat_archiver"), SECONDS)
            assert wait_until(lambda: waiting_files(connection) == 0, SECONDS)
            connection.execute("ALTER SYSTEM SET archive_command = '/bin/false'")
            connection.execute("SELECT pg_reload_conf()")
        let_wal_pile_up(connection, 6)
        assert wait_until(lambda: one(connection, "SELECT failed_count > 0 FROM pg_stat_archiver"), SECONDS)
        connection.execute("CREATE ROLE app LOGIN")
        with psycopg.connect(archiving.url(), user="app", autocommit=True) as app:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                waiting_files(app)
            said, pressure = Said(), pressure_on(notices, FEW_FILES)
            pressure._announce = said
            assert pressure._is_paused(app)
        assert str(said.next()).startswith(f"{waiting_files(connection)} WAL files wait to be archived")


def pressure_on(notices: Installation, policy: dict[str, Any], **options: Any) -> BackPressure:
    return BackPressure(BackPressureConfig(**policy), notices.table, **options)


def test_a_server_that_neither_archives_nor_replicates_never_pauses_anything(
    database_url: str, local_store_url: str
) -> None:
    least = {"max_replica_lag_bytes": 0, "max_wal_files_waiting": 0, "pause_for_autovacuum": True}
    said = Said()
    with installed(database_url, local_store_url, sections={"back_pressure": least}) as notices:
        notices.insert([large_payload(1000)])
        assert notices.pipeline.drain(notices.partition(), RUN, announce=said).is_sound
    assert said.all() == []


class CountingConnection(psycopg.Connection[Any]):
    """Keeps what was asked."""

    asked: list[str]

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        text = query if isinstance(query, str) else query.as_string(self)
        self.__dict__.setdefault("asked", []).append(text)
        return super().execute(query, *arguments, **options)


def test_however_many_workers_ask_the_database_is_looked_at_once_a_second(
    database_url: str, local_store_url: str
) -> None:
    with installed(database_url, local_store_url) as notices, ThreadPoolExecutor(4) as threads:
        pressure = pressure_on(notices, FEW_FILES)
        connections = [CountingConnection.connect(database_url, autocommit=True) for _ in range(4)]
        started = time.monotonic()

        def ask(connection: Connection) -> None:
            for _ in range(2000):
                pressure.wait(connection)

        list(threads.map(ask, connections))
        asked = [text for connection in connections for text in connection.__dict__.get("asked", [])]
        for connection in connections:
            connection.close()
        looks = sum("archive_mode" in text for text in asked)
        assert 1 <= looks <= 1 + (time.monotonic() - started) / back_pressure.LOOK_EVERY_SECONDS


def test_while_it_pauses_the_database_is_looked_at_once_a_second_too(
    archiving: PostgresServer, local_store_url: str
) -> None:
    with table_on(archiving, local_store_url, FEW_FILES) as notices:
        let_wal_pile_up(notices.connection, 5)
        said = Said()
        pressure = pressure_on(notices, FEW_FILES, announce=said)
        with contextlib.closing(CountingConnection.connect(archiving.url(), autocommit=True)) as connection:
            started = time.monotonic()
            with in_thread(lambda: pressure.wait(connection)):
                assert said.next() is not None
                let_archiving_succeed(notices.connection)
            looks = sum("archive_mode" in text for text in connection.__dict__["asked"])
            assert 2 <= looks <= 1 + (time.monotonic() - started) / back_pressure.LOOK_EVERY_SECONDS


def test_what_is_switched_off_is_not_asked_for(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url) as notices:
        connection = CountingConnection.connect(database_url, autocommit=True)
        with contextlib.closing(connection):
            pressure_on(notices, NOTHING).wait(connection)
            assert "asked" not in connection.__dict__


def test_a_role_without_privileges_is_told_once_and_works_on(
    primary: PostgresServer, standby: PostgresServer, local_store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    back_pressure._warn_once.cache_clear()
    with table_on(primary, local_store_url, NOTHING) as notices:
        assert wait_until(lambda: one(notices.connection, "SELECT count(*) FROM pg_stat_replication") == 1)
        notices.connection.execute("CREATE ROLE app LOGIN")
        with psycopg.connect(primary.url(), user="app", autocommit=True) as app, caplog.at_level(logging.WARNING):
            for _ in range(3):
                policy = {"max_replica_lag_bytes": 0, "max_wal_files_waiting": 0, "pause_for_autovacuum": True}
                pressure_on(notices, policy).wait(app)
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "back_pressure.max_replica_lag_bytes is not heeded",
        "back_pressure.pause_for_autovacuum is not heeded",
    ]


def test_a_member_of_pg_monitor_sees_what_a_superuser_sees(
    primary: PostgresServer, standby: PostgresServer, local_store_url: str
) -> None:
    with (
        table_on(primary, local_store_url, NOTHING) as notices,
        psycopg.connect(standby.url(), autocommit=True) as replica,
    ):
        stop_replay(replica)
        notices.insert([large_payload(1_000_000)])
        notices.connection.execute("CREATE ROLE app LOGIN IN ROLE pg_monitor")
        with psycopg.connect(primary.url(), user="app", autocommit=True) as app:
            assert pressure_on(notices, FEW_BYTES)._is_paused(app)
        replica.execute("SELECT pg_wal_replay_resume()")


Vacuumed = str
"""table, toast or partition."""


@contextlib.contextmanager
def vacuumed_table(server: PostgresServer, store_url: str, what: Vacuumed) -> Iterator[Installation]:
    """A table that autovacuum works on, slowly."""
    with table_on(server, store_url, AUTOVACUUM, extra_columns={"padding": "text"}) as notices:
        if what == "partition":
            make_partitioned(notices)
        let_autovacuum_begin(notices, "notices_old" if what == "partition" else "notices", is_toast=what == "toast")
        yield notices
        stop_autovacuum(notices.connection)


def make_partitioned(notices: Installation) -> None:
    """The same rows, as the one partition of a table that took the first one's name."""
    execute = notices.connection.execute
    execute("ALTER TABLE notices ALTER id DROP IDENTITY, ALTER id SET DEFAULT 0, DROP CONSTRAINT notices_pkey")
    execute("ALTER TABLE notices RENAME TO notices_old")
    execute("CREATE TABLE notices (LIKE notices_old INCLUDING DEFAULTS) PARTITION BY RANGE (id)")
    execute("ALTER TABLE notices ATTACH PARTITION notices_old FOR VALUES FROM (MINVALUE) TO (MAXVALUE)")


def let_autovacuum_begin(notices: Installation, relation: str, *, is_toast: bool) -> None:
    prefix, other = ("toast.autovacuum", "autovacuum") if is_toast else ("autovacuum", "toast.autovacuum")
    slow = ", ".join(f"{prefix}_{option}" for option in SLOW_VACUUM)
    notices.connection.execute(f"ALTER TABLE {relation} SET ({slow}, {other}_enabled = false)")
    notices.execute(FILL_TOAST if is_toast else FILL_TABLE)
    notices.execute("DELETE FROM {table} WHERE tenant_id = 'filler'")
    assert wait_until(lambda: vacuums(notices.connection) > 0, SECONDS), "autovacuum did not come"


def vacuums(connection: Connection) -> int:
    """Of our tables; the catalog's are vacuumed as well."""
    return int(one(connection, VACUUMS))


def stop_autovacuum(connection: Connection) -> None:
    connection.execute("ALTER SYSTEM SET autovacuum = off")
    connection.execute("SELECT pg_reload_conf()")

    def is_over() -> bool:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_vacuum")
        return vacuums(connection) == 0

    assert wait_until(is_over)


@pytest.mark.parametrize("what", ["table", "toast"])
def test_copying_waits_for_an_autovacuum_of_the_table(
    vacuuming: PostgresServer, local_store_url: str, what: Vacuumed
) -> None:
    with vacuumed_table(vacuuming, local_store_url, what) as notices:
        notices.insert([large_payload(1000)])
        said = Said()
        with in_thread(lambda: notices.pipeline.copy(notices.partition(), RUN, announce=said)):
            named = "pg_toast.pg_toast_" if what == "toast" else "notices"
            assert str(said.next()).startswith(f"autovacuum works on {named}")
            assert advisory_locks(notices.connection) == 0
            stop_autovacuum(notices.connection)
            assert said.next() is None
        assert set(notices.statuses().values()) >= {"copied"}


def test_an_autovacuum_of_a_partition_counts_for_the_whole_table(
    vacuuming: PostgresServer, local_store_url: str
) -> None:
    with vacuumed_table(vacuuming, local_store_url, "partition") as notices:
        assert pressure_on(notices, AUTOVACUUM)._is_paused(notices.connection)


def test_an_autovacuum_of_another_table_is_no_reason(vacuuming: PostgresServer, local_store_url: str) -> None:
    with vacuumed_table(vacuuming, local_store_url, "table") as notices:
        notices.connection.execute("ALTER TABLE notices RENAME TO others")
        notices.connection.execute("CREATE TABLE notices (LIKE others)")
        assert not pressure_on(notices, AUTOVACUUM)._is_paused(notices.connection)


def test_nobody_waits_for_ever_for_a_long_vacuum(vacuuming: PostgresServer, local_store_url: str) -> None:
    with vacuumed_table(vacuuming, local_store_url, "table") as notices:
        said = Said()
        pressure = pressure_on(notices, AUTOVACUUM, announce=said, patience=timedelta(seconds=3))
        pressure.wait(notices.connection)
        assert vacuums(notices.connection) == 1, "it was waited for to its end"
        assert said.all() in (["autovacuum works on notices", None], [])


def test_a_vacuum_that_is_old_already_holds_nobody_up(vacuuming: PostgresServer, local_store_url: str) -> None:
    with vacuumed_table(vacuuming, local_store_url, "table") as notices:
        age = (
            "SELECT max(clock_timestamp() - xact_start) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'"
        )
        assert wait_until(lambda: one(notices.connection, age) > timedelta(seconds=1))
        patient = pressure_on(notices, AUTOVACUUM, patience=timedelta(minutes=10))
        assert patient._is_paused(notices.connection)
        assert not pressure_on(notices, AUTOVACUUM, patience=timedelta(seconds=1))._is_paused(notices.connection)


def test_vacuums_without_a_gap_between_them_end_a_pause_as_well(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url) as notices:
        pressure = pressure_on(notices, AUTOVACUUM, patience=timedelta(seconds=0.2))
        assert pressure._is_worth_waiting(is_vacuumed=True)
        assert wait_until(lambda: not pressure._is_worth_waiting(is_vacuumed=True))
        assert not pressure._is_worth_waiting(is_vacuumed=True)
        assert wait_until(lambda: pressure._is_worth_waiting(is_vacuumed=True)), "half of the time it is waited for"


def test_one_vacuum_after_the_other_holds_work_up_for_half_of_the_time_at_most(
    vacuuming: PostgresServer, local_store_url: str
) -> None:
    with vacuumed_table(vacuuming, local_store_url, "table") as notices:
        said, patience = Said(), timedelta(seconds=4)
        pressure = pressure_on(notices, AUTOVACUUM, announce=said, patience=patience)
        with in_thread(lambda: pressure.wait(notices.connection)) as waited, psycopg.connect(
            vacuuming.url(), autocommit=True
        ) as other:  # fmt: skip
            while not waited.done():
                # None of them becomes old, and the next begins within a second.
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE backend_type = 'autovacuum worker' AND xact_start < clock_timestamp() - interval '2 s'"
                )
                wait_until(waited.done, 0.1)
        assert said.next() == "autovacuum works on notices"
        assert said.next() is None
        assert wait_until(lambda: vacuums(notices.connection) == 1, SECONDS)
        pressure._looked_at = float("-inf")
        pressure.wait(notices.connection)
        assert said.all() == []


def test_an_interrupt_ends_a_paused_command_and_its_reason_was_said_once(
    archiving: PostgresServer, local_store_url: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with table_on(archiving, local_store_url, FEW_FILES) as notices:
        notices.insert(large_payload(1000, seed) for seed in range(20))
        let_wal_pile_up(notices.connection, 5)
        offload = Command(tmp_path, (notices.database_url, local_store_url), capsysbinary, monkeypatch)
        offload.configure(notices.config, back_pressure=FEW_FILES)
        with offload.start("drain") as process:
            assert process.stderr is not None
            first = process.stderr.readline().decode()
            process.send_signal(signal.SIGINT)
            stdout, rest = process.communicate(timeout=SECONDS)
        assert first.startswith("offload: notices, tenant 'acme': paused: ")
        assert " WAL files wait to be archived, max_wal_files_waiting is 3" in first
        assert rest.decode().splitlines() == ["offload: interrupted; nothing is lost, run it again"]
        assert (process.returncode, stdout) == (130, b"")
        assert notices.one_status() == "pending_move"
        assert_nothing_is_held(notices)
