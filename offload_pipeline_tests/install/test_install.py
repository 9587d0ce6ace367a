"""Install: everything it must create, doing nothing the second time, and never making the application wait."""

import json
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from offload_pipeline.config import TableConfig
from offload_pipeline.database import ddl
from offload_pipeline.errors import TransientError, UserError
from offload_pipeline.install.installer import plan_bookkeeping, plan_table, take_install_lock
from offload_pipeline.pipeline import Pipeline
from offload_pipeline_tests.factories import (
    IDENTITY_KEY,
    insert_payloads,
    install,
    large_payload,
    make_pipeline,
    make_table,
    row_hashes,
    statuses,
    stored_files,
)
from offload_pipeline_tests.servers import PostgresServer, wait_until

# Between a lock_timeout of ours and what a slow machine adds to it.
SLACK_SECONDS = 0.5


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connected:
        yield connected


@pytest.fixture
def other(database_url: str) -> Iterator[psycopg.Connection]:
    """The application's session, in transactions of its own."""
    with psycopg.connect(database_url) as connected:
        yield connected


@pytest.fixture
def twin_url(postgres_server: PostgresServer, template_database: str) -> Iterator[str]:
    """A second, equal database."""
    name = f"twin_{uuid.uuid4().hex[:12]}"
    postgres_server.create_database(name, template_database)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


def drain(pipeline: Pipeline) -> None:
    with pipeline.connect() as connection:
        partitions = pipeline.partitions(connection, None, None)
    for partition in partitions:
        result = pipeline.drain(partition, "test")
        assert result.is_sound, result
        assert result.released.rows_released == result.copied.rows_copied


def one_value(connection: psycopg.Connection, query: str | sql.Composed) -> Any:
    found = connection.execute(query).fetchone()
    assert found is not None
    return found[0]


# What it creates


@pytest.mark.both_servers
def test_install_adds_columns_triggers_valid_indexes_and_bookkeeping(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    notices = make_table(connection)
    install(make_pipeline(database_url, local_store_url, [notices]))
    columns: dict[str, str] = dict(
        connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'notices'::regclass AND attnum > 4"
        ).fetchall()
    )
    assert columns == {
        "payload_storage_status": "text",
        "payload_bytes": "bigint",
        "raw_object_key": "text",
        "payload_hash_sha256": "text",
        "payload_stored_at": "timestamp with time zone",
    }
    triggers = connection.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = 'notices'::regclass ORDER BY 1")
    assert triggers.fetchall() == [(f"zz_payload_offload_{title}",) for title in ("insert", "move", "update", "whole")]
    indexes = connection.execute(
        "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 'notices'::regclass"
    ).fetchall()
    wanted = {"notices_pkey", *(f"notices_offload_{title}" for title in ("unseen", "pending", "copied", "stored"))}
    assert dict(indexes) == dict.fromkeys(wanted, True)
    for table in ("payload_offload_state", "payload_offload_failures", "payload_offload_log", "archival_log"):
        assert one_value(connection, f"SELECT count(*) FROM public.{table}") == 0  # noqa: S608


@pytest.mark.both_servers
def test_a_second_install_has_nothing_to_do(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    tables = [
        make_table(connection),
        make_table(connection, name="Big-Table.1", relation='public."Big"', tenant_column=None),
        make_table(connection, name="activities", relation="activities", key_columns={"a": "text", "b": "int"}),
    ]
    pipeline = make_pipeline(database_url, local_store_url, tables)
    assert len(install(pipeline)) == 1 + 3 * 6
    assert install(pipeline) == []


def test_rows_older_than_the_trigger_are_left_alone(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    notices = make_table(connection, threshold_bytes=0)
    (old,) = insert_payloads(connection, notices, [large_payload(5000)])
    before = one_value(connection, "SELECT xmin::text FROM notices")
    install(make_pipeline(database_url, local_store_url, [notices]))
    (new,) = insert_payloads(connection, notices, ["{}"])
    assert statuses(connection, notices) == {old: None, new: "pending_move"}
    assert one_value(connection, f"SELECT xmin::text FROM notices WHERE id = {old}") == before  # noqa: S608


def test_the_size_of_a_payload_can_be_calculated_in_sql(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    install(make_pipeline(database_url, local_store_url, [make_table(connection)]))
    assert one_value(connection, """SELECT calculate_payload_size('{"b":1,  "a":"é"}')""") == len(
        '{"a": "é", "b": 1}'.encode()
    )
    assert one_value(connection, "SELECT calculate_payload_size(NULL)") is None


@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
@pytest.mark.both_servers
def test_the_payload_function_gives_the_payload_or_where_it_is(
    connection: psycopg.Connection, database_url: str, local_store_url: str, payload_type: str
) -> None:
    notices = make_table(connection, payload_type=payload_type, threshold_bytes=100)
    pipeline = make_pipeline(database_url, local_store_url, [notices])
    install(pipeline)
    small, large, empty = insert_payloads(connection, notices, ['{"a": 1}', large_payload(500), None])
    drain(pipeline)
    assert one_value(connection, f"SELECT get_notices_payload({small})::text") == '{"a": 1}'
    assert one_value(connection, f"SELECT get_notices_payload({empty})") is None
    assert one_value(connection, "SELECT get_notices_payload(12345)") is None
    reference = json.loads(one_value(connection, f"SELECT get_notices_payload({large})::text"))
    row = connection.execute(
        "SELECT raw_object_key, payload_hash_sha256, payload_bytes FROM notices WHERE id = %s", [large]
    ).fetchone()
    assert (reference["storage_path"], reference["sha256"], reference["size_bytes"]) == row
    assert reference["payload_type"] == "storage_ref"
    assert reference["url"] == f"{local_store_url}/{reference['storage_path']}"
    assert set(reference) == {"payload_type", "storage_path", "size_bytes", "sha256", "moved_at", "url"}


@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
@pytest.mark.parametrize("left_in_row", [None, '{"deleted": true, "deleted_at": "2026-01-01T00:00:00+00:00"}'])
def test_the_payload_function_says_of_an_expired_payload_that_it_is_deleted(
    connection: psycopg.Connection, database_url: str, local_store_url: str, payload_type: str, left_in_row: str | None
) -> None:
    notices = make_table(connection, payload_type=payload_type, threshold_bytes=0)
    pipeline = make_pipeline(database_url, local_store_url, [notices])
    install(pipeline)
    (key,) = insert_payloads(connection, notices, ['{"a": 1}'])
    drain(pipeline)
    connection.execute(
        "UPDATE notices SET raw_payload = %s, payload_storage_status = 'expired', raw_object_key = NULL", [left_in_row]
    )
    found = json.loads(one_value(connection, f"SELECT get_notices_payload({key})::text"))
    assert found == json.loads(left_in_row or '{"deleted": true}')


def test_the_payload_function_takes_the_whole_of_a_composite_key(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    key = {"source": "text", "number": "integer", "day": "date"}
    notices = make_table(connection, key_columns=key)
    install(make_pipeline(database_url, local_store_url, [notices]))
    insert_payloads(connection, notices, ['{"a": 1}'], source="x", number=2, day="2026-02-01")
    query = "SELECT get_notices_payload('x', 2, DATE '2026-02-01')::text"
    assert one_value(connection, query) == '{"a": 1}'
    assert one_value(connection, query.replace("2,", "3,")) is None


def test_activities_have_their_payload_function_by_both_names(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    activities = make_table(connection, name="activities", relation="public.activities")
    install(make_pipeline(database_url, local_store_url, [activities]))
    insert_payloads(connection, activities, ['{"a": 1}'])
    assert one_value(connection, "SELECT get_activity_payload(1)::text") == '{"a": 1}'
    assert one_value(connection, "SELECT get_activities_payload(1)::text") == '{"a": 1}'


def test_bookkeeping_may_live_in_another_schema(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    connection.execute('CREATE SCHEMA "Ops %s {x}"')
    notices = make_table(connection, threshold_bytes=0)
    pipeline = make_pipeline(database_url, local_store_url, [notices], database={"schema": "Ops %s {x}"})
    install(pipeline)
    insert_payloads(connection, notices, ["{}"])
    drain(pipeline)
    assert statuses(connection, notices) == {1: "in_storage"}
    assert one_value(connection, 'SELECT sum(rows_copied) FROM "Ops %s {x}".payload_offload_state') == 1
    assert one_value(connection, "SELECT to_regclass('public.payload_offload_state')") is None
    assert install(pipeline) == []


@pytest.mark.parametrize("table", ["payload_offload_log", "archival_log"])
@pytest.mark.parametrize("change", ["UPDATE {} SET rows = 0", "DELETE FROM {}", "TRUNCATE {}"])
def test_the_audit_log_can_only_grow(
    connection: psycopg.Connection, database_url: str, local_store_url: str, table: str, change: str
) -> None:
    install(make_pipeline(database_url, local_store_url, [make_table(connection)]))
    connection.execute(
        f"INSERT INTO {table} (run_id, table_name, action, rows, bytes) VALUES ('r', 't', 'copy', 1, 2)"  # noqa: S608
    )
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=f"{table} is append-only"):
        connection.execute(change.format(table))
    assert one_value(connection, f"SELECT rows FROM {table}") == 1  # noqa: S608


def test_a_changed_threshold_replaces_the_trigger_and_nothing_else(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    notices = make_table(connection, threshold_bytes=1000)
    install(make_pipeline(database_url, local_store_url, [notices]))
    lower = notices.model_copy(update={"threshold_bytes": 100})
    pipeline = make_pipeline(database_url, local_store_url, [lower])
    assert install(pipeline) == ["notices: pointer columns and size trigger"]
    assert install(pipeline) == []
    insert_payloads(connection, notices, [large_payload(500)])
    assert statuses(connection, notices) == {1: "pending_move"}


@pytest.mark.both_servers
def test_an_older_trigger_that_let_unseen_rows_move_past_every_scan_is_replaced(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    notices = make_table(connection, threshold_bytes=1000)
    insert_payloads(connection, notices, [large_payload(100), large_payload(3000)])
    pipeline = make_pipeline(database_url, local_store_url, [notices])
    install(pipeline)
    move = "zz_payload_offload_move"
    definition = one_value(
        connection, sql.SQL("SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = {}").format(move)
    )
    older = re.sub(r"WHEN \(.*\) EXECUTE", "WHEN (old.payload_storage_status = 'copied') EXECUTE", definition)
    assert older != definition
    connection.execute(older.replace("CREATE", "CREATE OR REPLACE", 1))
    connection.execute(f"COMMENT ON TRIGGER {move} ON notices IS 'offload_pipeline 0'")
    assert planned_script(pipeline).startswith("-- notices: pointer columns and size trigger")
    assert install(pipeline) == ["notices: pointer columns and size trigger"]
    assert install(pipeline) == []
    connection.execute("UPDATE notices SET tenant_id = 'moved'")
    assert statuses(connection, notices) == {1: "inline", 2: "pending_move"}


def test_long_table_names_that_begin_alike_stay_apart(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    names = ["n" * 49 + "1", "n" * 49 + "2"]
    tables = [
        make_table(connection, name=name, relation=f"t{index}", threshold_bytes=1000 * index)
        for index, name in enumerate(names, 1)
    ]
    pipeline = make_pipeline(database_url, local_store_url, tables)
    install(pipeline)
    assert install(pipeline) == []
    for table in tables:
        insert_payloads(connection, table, [large_payload(1500)])
    assert [statuses(connection, table)[1] for table in tables] == ["pending_move", "inline"]
    assert one_value(connection, f"SELECT get_{names[1]}_payload(1) IS NOT NULL")


# The printed script


@pytest.mark.both_servers
def test_the_printed_script_makes_what_install_makes(
    connection: psycopg.Connection,
    database_url: str,
    twin_url: str,
    local_store_url: str,
    postgres_server: PostgresServer,
) -> None:
    with psycopg.connect(twin_url, autocommit=True) as twin:
        for target in (connection, twin):
            tables = [
                make_table(target),
                make_table(target, name="odd", relation='"5% {of} ""it"""', payload="%s", after_copy="reference"),
            ]
        install(make_pipeline(database_url, local_store_url, tables))
        script = planned_script(make_pipeline(twin_url, local_store_url, tables))
        subprocess.run(
            [postgres_server.bin_dir / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", twin_url],
            input=script,
            text=True,
            check=True,
            capture_output=True,
        )
        assert catalog(twin) == catalog(connection)
        assert planned_script(make_pipeline(twin_url, local_store_url, tables)) == ""


def planned_script(pipeline: Pipeline) -> str:
    with pipeline.connect() as connection:
        steps = list(plan_bookkeeping(connection, pipeline.database.schema))
        for table in pipeline.config.tables:
            steps += plan_table(connection, pipeline.inspect(connection, table.name), pipeline.store.url)
        return "\n".join(step.as_script(connection) for step in steps)


def catalog(connection: psycopg.Connection) -> set[tuple[Any, ...]]:
    """Every column, index, trigger, function and comment outside the system's schemas, as SQL."""
    queries = (
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, c.oid)"
        " FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0"
        " LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum"
        " WHERE c.relnamespace = 'public'::regnamespace",
        "SELECT pg_get_indexdef(i.indexrelid), i.indisvalid FROM pg_index AS i"
        " JOIN pg_class AS c ON c.oid = i.indexrelid WHERE c.relnamespace = 'public'::regnamespace",
        "SELECT pg_get_triggerdef(t.oid), obj_description(t.oid, 'pg_trigger') FROM pg_trigger AS t",
        "SELECT pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc') FROM pg_proc AS p"
        " WHERE p.pronamespace = 'public'::regnamespace",
        "SELECT obj_description('payload_offload_state'::regclass, 'pg_class')",
    )
    return {row for query in queries for row in connection.execute(query).fetchall()}


# Locks


@pytest.mark.both_servers
def test_nobody_waits_long_behind_an_install_that_waits_for_a_lock(
    connection: psycopg.Connection,
    other: psycopg.Connection,
    database_url: str,
    local_store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notices = make_table(connection)
    pipeline = make_pipeline(database_url, local_store_url, [notices])
    attempts = count_pauses(monkeypatch)
    other.execute("SELECT FROM notices")  # ACCESS SHARE, until the transaction ends
    outcome: list[list[str]] = []
    installing = threading.Thread(target=lambda: outcome.append(install(pipeline)))
    installing.start()
    longest = 0.0
    deadline = time.monotonic() + 30
    while len(attempts) < 3 and time.monotonic() < deadline:
        started = time.monotonic()
        connection.execute("SELECT FROM notices")
        longest = max(longest, time.monotonic() - started)
    still_waiting = installing.is_alive()
    other.rollback()
    installing.join(30)
    assert still_waiting
    assert len(attempts) >= 3
    assert longest < ddl.LAST_LOCK_TIMEOUT_MS / 1000 + SLACK_SECONDS
    assert len(outcome[0]) == 1 + 6
    assert install(pipeline) == []


def count_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """One entry for each attempt that met a lock; the pauses themselves are short."""
    pauses: list[float] = []

    def uniform(shortest: float, longest: float) -> float:
        pauses.append(longest)
        return 0.02

    monkeypatch.setattr(ddl, "random", SimpleNamespace(uniform=uniform))
    return pauses


def test_an_install_that_never_gets_its_lock_gives_up_and_leaves_nothing_half_done(
    connection: psycopg.Connection,
    other: psycopg.Connection,
    database_url: str,
    local_store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notices = make_table(connection)
    pipeline = make_pipeline(database_url, local_store_url, [notices])
    monkeypatch.setattr(ddl, "ATTEMPTS", 2)
    attempts = count_pauses(monkeypatch)
    other.execute("SELECT FROM notices")
    with pytest.raises(TransientError, match="stayed locked through 2 attempts"):
        install(pipeline)
    assert len(attempts) == 2
    other.rollback()
    assert columns_of(connection, notices) == ["id", "tenant_id", "raw_payload", "created_at"]
    assert len(install(pipeline)) == 6


def columns_of(connection: psycopg.Connection, config: TableConfig) -> list[str]:
    query = "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position"
    return [name for (name,) in connection.execute(query, [config.schema_and_name[1]])]


@pytest.mark.both_servers
def test_an_index_left_invalid_by_an_interruption_is_built_anew(
    connection: psycopg.Connection, other: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    notices = make_table(connection)
    pipeline = make_pipeline(database_url, local_store_url, [notices])
    install(pipeline)
    definition = one_value(connection, "SELECT pg_get_indexdef('notices_offload_pending'::regclass)")
    connection.execute("DROP INDEX notices_offload_pending")
    other.execute("INSERT INTO notices DEFAULT VALUES")
    connection.execute("SET statement_timeout = 200")
    with pytest.raises(errors.QueryCanceled):
        connection.execute("CREATE INDEX CONCURRENTLY notices_offload_pending ON notices (id)")
    connection.execute("RESET statement_timeout")
    other.rollback()
    assert not one_value(
        connection, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'notices_offload_pending'::regclass"
    )
    assert install(pipeline) == ["notices: index for pending_move rows"]
    assert one_value(connection, "SELECT pg_get_indexdef('notices_offload_pending'::regclass)") == definition
    assert one_value(connection, "SELECT bool_and(indisvalid) FROM pg_index")


def test_reads_and_writes_go_on_while_an_index_waits_for_an_old_transaction(
    connection: psycopg.Connection, other: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    notices = make_table(connection)
    pipeline = make_pipeline(database_url, local_store_url, [notices])
    install(pipeline)
    connection.execute("DROP INDEX notices_offload_pending")
    other.execute("INSERT INTO notices DEFAULT VALUES")
    installing = threading.Thread(target=install, args=[pipeline])
    installing.start()
    is_building = wait_until(lambda: one_value(connection, "SELECT count(*) FROM pg_stat_progress_create_index") == 1)
    connection.execute("SET statement_timeout = '1s'")
    insert_payloads(connection, notices, ["{}"])
    assert one_value(connection, "SELECT count(*) FROM notices") == 1
    still_waiting = installing.is_alive()
    other.commit()
    installing.join(30)
    assert is_building
    assert still_waiting
    assert install(pipeline) == []


def test_a_second_install_at_the_same_time_is_refused(
    connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    pipeline = make_pipeline(database_url, local_store_url, [make_table(connection)])
    with pipeline.connect() as first, pipeline.connect() as second:
        take_install_lock(first)
        with pytest.raises(UserError, match="another `offload install` is running"):
            take_install_lock(second)


# Names


AWKWARD_NAMES = [
    'with "quotes"', "with spaces", "50%", "%s", "%(key)s", "{id}", "{", "}}", "UPPER", "select", "user", "k1",
    "position", "it's", "back\\slash", "$1", "a;--", "a.b", "é" * 31, "n" * 63,
]  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD_NAMES)
def test_any_name_works_from_install_to_release(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, name: str
) -> None:
    def variant(suffix: str) -> str:
        return name.encode()[: 63 - len(suffix)].decode(errors="ignore") + suffix

    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    quoted = sql.Identifier(name, name).as_string(connection)
    notices = make_table(
        connection,
        relation=quoted,
        payload=name,
        tenant_column=variant("t"),
        key_columns={variant("1"): "bigint GENERATED BY DEFAULT AS IDENTITY", variant("2"): "text DEFAULT '50%,{}'"},
        threshold_bytes=0,
        after_copy="reference",
        columns={
            "status": variant("s"),
            "size": variant("z"),
            "object_key": variant("o"),
            "hash": variant("h"),
            "stored_at": variant("a"),
        },
    )
    folder = tmp_path / "50% {of} it's"
    pipeline = make_pipeline(database_url, folder.as_uri(), [notices])
    install(pipeline)
    assert install(pipeline) == []
    insert_payloads(connection, notices, ['{"a": 1}', large_payload(500)], tenant="50% {of} it's")
    hashes = set(row_hashes(connection, notices).values())
    drain(pipeline)
    assert set(statuses(connection, notices).values()) == {"in_storage"}
    assert {path.name.partition(".")[0] for path in stored_files(folder)} == hashes
    reference = one_value(connection, "SELECT get_notices_payload(2, '50%,{}')->>'url'")
    assert reference.startswith(folder.as_uri() + "/50%25%20%7Bof%7D%20it%27s/notices/2,50%25%2C%7B%7D/")


@pytest.mark.parametrize("tenant", ["50%", "%s", "it's", "{x}", "a/b"])
def test_a_constant_tenant_may_have_any_name(
    connection: psycopg.Connection, database_url: str, local_store_url: str, tenant: str
) -> None:
    notices = make_table(
        connection, tenant_column=None, tenant={"value": tenant}, threshold_bytes=0, key_columns=IDENTITY_KEY
    )
    pipeline = make_pipeline(database_url, local_store_url, [notices])
    install(pipeline)
    insert_payloads(connection, notices, ["{}"])
    drain(pipeline)
    assert statuses(connection, notices) == {1: "in_storage"}
    assert one_value(connection, "SELECT tenant_id FROM payload_offload_state") == tenant
