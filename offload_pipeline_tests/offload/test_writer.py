"""An application stores payloads as it writes its rows: what is in the row, what is in the store, what fails."""

import gzip
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import ClientCursor, errors, sql
from psycopg.rows import dict_row, namedtuple_row

from offload_pipeline.errors import (
    OffloadError,
    PayloadInvalidError,
    ReadBackMismatchError,
    StoreChangedError,
    StoreDeniedError,
    StoreUnavailableError,
    UserError,
)
from offload_pipeline.offload.reader import PayloadReader, ReadPayload
from offload_pipeline.offload.writer import FALLBACK_VARIABLE, PayloadWriter
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.factories import large_payload, make_pipeline, stored_files
from offload_pipeline_tests.faults.proxy import FaultyProxy
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed
from offload_pipeline_tests.offload.stores import CountingStore, HookedStore, truncated
from offload_pipeline_tests.offload.waiting import advisory_locks, in_thread, wait_until_blocked
from offload_pipeline_tests.offload.worker import REPOSITORY
from offload_pipeline_tests.offload.writing import expect, insert_columns, update_columns
from offload_pipeline_tests.retention.collecting import MONTH, age, collect

THRESHOLD = 200
LARGE = large_payload(1000)
OTHER = large_payload(1000, 1)
SMALL = '{"a": 1}'


@pytest.fixture
def notices(database_url: str, local_store_url: str) -> Iterator[Installation]:
    with installed(database_url, local_store_url, threshold_bytes=THRESHOLD) as installation:
        yield installation


@pytest.fixture
def writer(notices: Installation) -> Iterator[PayloadWriter]:
    with PayloadWriter(notices.pipeline) as writer:
        yield writer


@pytest.fixture
def application(notices: Installation) -> Iterator[psycopg.Connection]:
    """The application's connection as psycopg gives it: in a transaction from the first statement on."""
    with psycopg.connect(notices.database_url) as connection:
        yield connection


def read(notices: Installation, key: Any) -> ReadPayload:
    with PayloadReader(notices.pipeline) as reader:
        return reader.get("notices", key)


def objects(notices: Installation) -> list[str]:
    return [str(path) for path in stored_files(notices.store._folder or Path())]


def can_lock(notices: Installation, object_key: str) -> bool:
    """Whether garbage collection would get the object now."""
    with notices.connection.transaction():
        row = notices.connection.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended('offload_pipeline object ' || %s, 0))", [object_key]
        ).fetchone()
    assert row is not None
    return bool(row[0])


# Stored as it is written

DOCUMENTS = {
    "jsonb": ['{"b": 1.10, "a": [1e400, 123456789012345678901234567890, 0.1], "ü": "\\u0007 \\u00e9"}', "[]", "null"],
    "json": ['{"b":1.10,  "a":[1e400], "a": 2, "z": "\\u0000"}', '"x"'],
    "text": ["not JSON,\n\\ ü \x07", "", " "],
}


@pytest.mark.both_servers
@pytest.mark.parametrize("payload_type", DOCUMENTS)
@pytest.mark.parametrize("after_copy", ["clear", "reference"])
def test_what_was_written_comes_back_byte_for_byte(
    database_url: str, local_store_url: str, payload_type: str, after_copy: str
) -> None:
    with (
        installed(database_url, local_store_url, payload_type=payload_type, after_copy=after_copy) as notices,
        PayloadWriter(notices.pipeline) as writer,
    ):
        for key, document in enumerate(DOCUMENTS[payload_type], 1):
            columns = writer.write(notices.connection, "notices", "acme", key, document)
            insert_columns(notices, columns, id=key, tenant_id="acme")
            expect(notices, key, document)
        assert notices.one_status() == "in_storage"
        notices.assert_invariant()
        assert notices.verify(full=True).rows_read == len(DOCUMENTS[payload_type])
        for key in notices.expected:
            found = read(notices, key)
            assert (found.source, found.sha256) == ("store", notices.expected[key])


@pytest.mark.parametrize("after_copy", ["clear", "reference"])
def test_the_columns_are_those_that_the_pipeline_leaves(
    database_url: str, any_store: StoreAddress, after_copy: str
) -> None:
    with (
        installed(database_url, any_store, after_copy=after_copy) as notices,
        PayloadWriter(notices.pipeline) as writer,
    ):
        (moved,) = notices.insert([LARGE])
        notices.drain()
        insert_columns(notices, writer.write(notices.connection, "notices", "acme", 2, LARGE), id=2, tenant_id="acme")
        rows = notices.execute(
            "SELECT payload_storage_status, payload_bytes, payload_hash_sha256,"
            " replace(raw_object_key, '/' || id || '/', '/'), payload_stored_at <= clock_timestamp(),"
            " raw_payload - 'moved_at' - 'storage_path' - 'url',"
            " raw_payload->>'storage_path' IS NOT DISTINCT FROM raw_object_key,"
            " (raw_payload->>'moved_at')::timestamptz IS NOT DISTINCT FROM payload_stored_at,"
            " raw_payload->>'url' = %s || '/' || raw_object_key, raw_payload IS NULL FROM {table} ORDER BY id",
            notices.store.url,
        ).fetchall()
        assert rows[0][:7] == rows[1][:7]
        assert rows[1][6:] == ((False, False, None, True) if after_copy == "clear" else (True, True, True, False))
        assert notices.store.get(notices.object_key(2)) == notices.store.get(notices.object_key(moved))


def test_a_small_payload_stays_in_the_row_and_asks_nobody(notices: Installation) -> None:
    store = CountingStore(notices.store)
    with PayloadWriter(replace(notices.pipeline, store=store)) as writer:
        columns = writer.write(notices.connection, "notices", "acme", 1, '{"a":   1}')
    assert columns == {
        "raw_payload": SMALL, "payload_storage_status": "inline", "payload_bytes": None, "raw_object_key": None,
        "payload_hash_sha256": None, "payload_stored_at": None,
    }  # fmt: skip
    insert_columns(notices, columns, id=1, tenant_id="acme")
    assert (notices.one_status(), store.puts.total()) == ("inline", 0)


@pytest.mark.parametrize("size", [THRESHOLD - 1, THRESHOLD, THRESHOLD + 1])
@pytest.mark.parametrize("padding", ["", " " * 50])
def test_writer_and_trigger_draw_the_line_at_the_same_byte(
    notices: Installation, writer: PayloadWriter, size: int, padding: str
) -> None:
    payload = f'{{"a":{padding} "{"x" * (size - 9)}"}}'
    notices.insert([payload], id=1)
    insert_columns(notices, writer.write(notices.connection, "notices", "acme", 2, payload), id=2, tenant_id="acme")
    by_trigger, by_writer = notices.statuses().values()
    assert (by_trigger, by_writer) == (("pending_move", "in_storage") if size > THRESHOLD else ("inline", "inline"))


def test_a_number_that_only_prints_large_is_stored(notices: Installation, writer: PayloadWriter) -> None:
    columns = writer.write(notices.connection, "notices", "acme", 1, "1e400")
    assert (columns["payload_storage_status"], columns["payload_bytes"]) == ("in_storage", 401)


@pytest.mark.parametrize(
    ("payload", "stored"),
    [
        ({"é": [1, 2.5, None, True]}, '{"é": [1, 2.5, null, true]}'),
        (b'{"a":1}', SMALL),
        (bytearray(b'{"a":1}'), SMALL),
        ([], "[]"),
        (7, "7"),
        ('"text"', '"text"'),
        (False, "false"),
    ],
)
def test_a_payload_is_json_text_or_what_json_can_print(
    database_url: str, local_store_url: str, payload: object, stored: str
) -> None:
    with installed(database_url, local_store_url) as notices, PayloadWriter(notices.pipeline) as writer:
        columns = writer.write(notices.connection, "notices", "acme", 1, payload)
        assert gzip.decompress(notices.store.get(columns["raw_object_key"])).decode() == stored


def test_none_is_a_row_without_payload(notices: Installation, writer: PayloadWriter) -> None:
    insert_columns(notices, writer.write(notices.connection, "notices", "acme", 1, None), id=1, tenant_id="acme")
    assert read(notices, 1).payload is None


INVALID: list[tuple[str, object]] = [
    ("jsonb", "{"), ("jsonb", ""), ("jsonb", '{"a": "\\u0000"}'), ("jsonb", '"\\ud800"'), ("jsonb", "[" * 100_000),
    ("jsonb", float("nan")), ("jsonb", {"a": float("inf")}), ("jsonb", {1, 2}), ("jsonb", {"a": "\ud800"}),
    ("jsonb", b'"\xff"'), ("jsonb", b'"\x00"'), ("json", "{'a': 1}"), ("json", b"\xc3"), ("text", b"a\x00b"),
    ("text", "a\x00b"), ("text", b"\xed\xa0\x80"), ("text", {"a": float("nan")}),
]  # fmt: skip


@pytest.mark.both_servers
@pytest.mark.parametrize(("payload_type", "payload"), INVALID, ids=[str(number) for number in range(len(INVALID))])
def test_what_the_column_would_not_take_is_one_line_and_leaves_nothing(
    database_url: str, local_store_url: str, payload_type: str, payload: object
) -> None:
    with (
        installed(database_url, local_store_url, payload_type=payload_type) as notices,
        PayloadWriter(notices.pipeline) as writer,
        psycopg.connect(database_url) as application,
    ):
        notices.execute("INSERT INTO {table} (id) VALUES (1)", connection=application)
        with pytest.raises(PayloadInvalidError, match=r"^notices: raw_payload would not take this payload \([^\n]+\)$"):
            writer.write(application, "notices", "acme", 1, payload)
        application.commit()
        assert list(notices.statuses()) == [1], "the transaction went on"
        assert objects(notices) == []
        assert notices.failures() == {}


# Not stored by the writer


def test_a_payload_over_the_buckets_limit_is_left_to_the_pipeline(database_url: str, local_store_url: str) -> None:
    with (
        installed(database_url, local_store_url, max_object_bytes=500) as notices,
        PayloadWriter(notices.pipeline) as writer,
    ):
        columns = writer.write(notices.connection, "notices", "acme", 1, LARGE)
        assert (columns["raw_payload"], columns["payload_storage_status"]) == (LARGE, "pending_move")
        insert_columns(notices, columns, id=1, tenant_id="acme")
        assert objects(notices) == []
        notices.drain()
        assert notices.failures()["1"]["error_class"] == "PayloadTooLargeError"
        assert writer.write(notices.connection, "notices", "acme", 2, large_payload(500))["raw_payload"] is None


def test_a_table_that_keeps_its_payloads_is_left_to_the_pipeline(database_url: str, local_store_url: str) -> None:
    with (
        installed(database_url, local_store_url, after_copy="keep") as notices,
        PayloadWriter(notices.pipeline) as writer,
    ):
        insert_columns(notices, writer.write(notices.connection, "notices", "acme", 1, LARGE), id=1, tenant_id="acme")
        assert (notices.one_status(), objects(notices)) == ("pending_move", [])
        notices.take_rows_as_expected()
        assert notices.drain().is_sound
        assert notices.one_status() == "copied"
        notices.assert_invariant()


# The caller's connection


SETTINGS = ("TimeZone", "DateStyle", "IntervalStyle", "lock_timeout", "statement_timeout", "client_encoding")


def settings(connection: psycopg.Connection[Any]) -> list[str]:
    with psycopg.Cursor(connection) as cursor:
        return [cursor.execute(f"SHOW {name}").fetchall()[0][0] for name in SETTINGS]


@pytest.mark.both_servers
@pytest.mark.parametrize("payload", [SMALL, LARGE])
def test_the_callers_transaction_is_neither_ended_nor_set(
    notices: Installation, writer: PayloadWriter, application: psycopg.Connection, payload: str
) -> None:
    application.execute("SET TimeZone = 'America/Bogota'")
    application.execute("SET LOCAL lock_timeout = '7s'")
    before = settings(application)
    notices.execute("INSERT INTO {table} (id, tenant_id) VALUES (7, 'acme')", connection=application)
    columns = writer.write(application, "notices", "acme", 8, payload)
    insert_columns(notices, columns, connection=application, id=8, tenant_id="acme")
    assert settings(application) == before
    assert notices.statuses() == {}, "nothing is committed"
    application.rollback()
    assert notices.statuses() == {}
    assert advisory_locks(notices.connection) == 0
    columns = writer.write(application, "notices", "acme", 8, payload)
    insert_columns(notices, columns, connection=application, id=8, tenant_id="acme")
    application.commit()
    assert list(notices.statuses()) == [8]


@pytest.mark.parametrize("options", [{"row_factory": dict_row}, {"row_factory": namedtuple_row},
                                     {"cursor_factory": ClientCursor}, {"client_encoding": "LATIN1"},
                                     {"prepare_threshold": 0}], ids=lambda options: next(iter(options)))  # fmt: skip
@pytest.mark.parametrize("autocommit", [True, False])
def test_any_psycopg_connection_will_do(
    notices: Installation, writer: PayloadWriter, options: dict[str, Any], autocommit: bool
) -> None:
    payload = json.dumps({"é": "é€" * 200}, ensure_ascii=False)
    with psycopg.connect(notices.database_url, autocommit=autocommit, **options) as connection:
        for key in (1, 2):
            columns = writer.write(connection, "notices", "acme", key, payload)
            insert_columns(notices, columns, connection=connection, id=key, tenant_id="acme")
            expect(notices, key, payload)
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


def test_a_write_inside_the_callers_own_savepoint_is_part_of_it(
    notices: Installation, writer: PayloadWriter, application: psycopg.Connection
) -> None:
    with application.transaction():
        with application.transaction() as inner:
            columns = writer.write(application, "notices", "acme", 1, LARGE)
            insert_columns(notices, columns, connection=application, id=1, tenant_id="acme")
            raise psycopg.Rollback(inner)
        columns = writer.write(application, "notices", "acme", 2, LARGE)
        insert_columns(notices, columns, connection=application, id=2, tenant_id="acme")
        assert not can_lock(notices, columns["raw_object_key"])
    assert notices.statuses() == {2: "in_storage"}


def test_a_transaction_that_has_failed_says_so(
    notices: Installation, writer: PayloadWriter, application: psycopg.Connection
) -> None:
    with pytest.raises(errors.UndefinedTable):
        application.execute("SELECT FROM nowhere")
    with pytest.raises(errors.InFailedSqlTransaction):
        writer.write(application, "notices", "acme", 1, LARGE)
    application.rollback()
    assert writer.write(application, "notices", "acme", 1, LARGE)["payload_storage_status"] == "in_storage"


def test_a_snapshot_older_than_the_partition_does_no_harm(notices: Installation, writer: PayloadWriter) -> None:
    with psycopg.connect(notices.database_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM notices")
        for key in (1, 2):
            columns = writer.write(connection, "notices", "new tenant", key, LARGE)
            insert_columns(notices, columns, connection=connection, id=key, tenant_id="new tenant")
    assert notices.one_status() == "in_storage"


# The object's lock, on which garbage collection relies


@pytest.mark.both_servers
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_object_is_locked_from_before_its_put_until_the_transaction_ends(
    notices: Installation, application: psycopg.Connection, end: str
) -> None:
    during: list[bool] = []
    store = HookedStore(notices.store, before_put=lambda key: during.append(can_lock(notices, key)))
    with PayloadWriter(replace(notices.pipeline, store=store)) as writer:
        columns = writer.write(application, "notices", "acme", 1, LARGE)
    object_key = columns["raw_object_key"]
    assert during == [False]
    assert not can_lock(notices, object_key)
    insert_columns(notices, columns, connection=application, id=1, tenant_id="acme")
    assert not can_lock(notices, object_key)
    getattr(application, end)()
    assert can_lock(notices, object_key)


def test_in_autocommit_the_object_is_locked_for_the_call(notices: Installation) -> None:
    during: list[bool] = []
    hooks = {
        moment: lambda key: during.append(can_lock(notices, key)) for moment in ("before_put", "after_put", "after_get")
    }
    with (
        psycopg.connect(notices.database_url, autocommit=True) as application,
        PayloadWriter(replace(notices.pipeline, store=HookedStore(notices.store, **hooks))) as writer,
    ):
        columns = writer.write(application, "notices", "acme", 1, LARGE)
        assert during == [False, False, False]
        assert can_lock(notices, columns["raw_object_key"])


def test_in_autocommit_a_payload_whose_object_only_the_row_protects_goes_into_the_row(
    notices: Installation, writer: PayloadWriter
) -> None:
    (key,) = notices.insert([LARGE])
    notices.drain()
    age(notices.store, [notices.object_key(key)])
    again = writer.write(notices.connection, "notices", "acme", key, LARGE)
    notices.write(key, '{"written": "meanwhile"}')
    assert collect(notices, grace=MONTH).tables["notices"].deleted == 1
    update_columns(notices, again, key)
    expect(notices, key, LARGE)
    notices.assert_invariant()
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


@pytest.mark.both_servers
def test_a_second_writer_of_the_same_payload_for_the_same_row_waits_and_leaves_the_object_alone(
    notices: Installation, application: psycopg.Connection
) -> None:
    store = CountingStore(notices.store)
    with (
        PayloadWriter(replace(notices.pipeline, store=store)) as writer,
        psycopg.connect(notices.database_url, application_name="second") as second,
    ):
        notices.insert([None], id=1)
        first = writer.write(application, "notices", "acme", 1, LARGE)
        update_columns(notices, first, 1, connection=application)
        with in_thread(lambda: writer.write(second, "notices", "acme", 1, LARGE)) as waiting:
            wait_until_blocked(notices.connection, "second")
            application.commit()
            again = waiting.result(timeout=60)
        update_columns(notices, again, 1, connection=second)
        second.commit()
    assert again["raw_object_key"] == first["raw_object_key"]
    assert store.puts == {first["raw_object_key"]: 1}
    assert read(notices, 1).payload == LARGE.encode()


def test_where_rows_share_objects_writers_do_not_wait_for_each_other(database_url: str, local_store_url: str) -> None:
    with (
        installed(database_url, local_store_url, key_template="{tenant}/{sha256}.json.gz") as notices,
        PayloadWriter(notices.pipeline) as writer,
        psycopg.connect(database_url) as first,
        psycopg.connect(database_url) as second,
    ):
        second.execute("SET lock_timeout = '1ms'")
        for key, connection in ((1, first), (2, second)):
            columns = writer.write(connection, "notices", "acme", key, LARGE)
            insert_columns(notices, columns, connection=connection, id=key, tenant_id="acme")
        first.rollback()
        assert not can_lock(notices, columns["raw_object_key"]), "the second still has it"
        second.commit()
        assert can_lock(notices, columns["raw_object_key"])
        assert notices.verify(full=True).rows_read == 1


@pytest.mark.parametrize("state", ["copied", "in_storage"])
@pytest.mark.parametrize("fault", ["truncated", "altered", "nothing stored"])
def test_a_bad_put_of_a_payload_delivered_again_does_not_take_the_only_copy(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore, state: str, fault: str
) -> None:
    (key,) = behind_proxy.insert([LARGE])
    behind_proxy.copy()
    if state == "in_storage":
        behind_proxy.drain()
    proxy.faults = {"PUT": fault}
    with PayloadWriter(behind_proxy.pipeline) as writer, behind_proxy.connection.transaction():
        update_columns(behind_proxy, writer.write(behind_proxy.connection, "notices", "acme", key, LARGE), key)
    assert behind_proxy.one_status() == "in_storage"
    assert gzip.decompress(real_store.get(behind_proxy.object_key(key))) == LARGE.encode()


@pytest.mark.parametrize("spoil", [truncated, None])
def test_a_damaged_object_is_mended_by_the_payload_delivered_again(
    notices: Installation, writer: PayloadWriter, spoil: Callable[[bytes], bytes] | None
) -> None:
    (key,) = notices.insert([LARGE])
    notices.drain()
    object_key = notices.object_key(key)
    if spoil:
        notices.store.put(object_key, spoil(notices.store.get(object_key)))
    else:
        notices.store.delete(object_key)
    assert not notices.verify(full=True).passed
    update_columns(notices, writer.write(notices.connection, "notices", "acme", key, LARGE), key)
    assert notices.verify(full=True).passed


# Rows that are there already


def prepare(notices: Installation, state: str) -> int:
    """Row 1 in this state; what it holds is LARGE, if anything."""
    if state == "empty":
        notices.insert([None], id=1)
        return 1
    notices.insert([SMALL if state == "inline" else LARGE], id=1)
    if state == "never seen":
        notices.execute("UPDATE {table} SET payload_storage_status = NULL, payload_bytes = NULL")
    if state == "copied":
        notices.copy()
    if state in ("in_storage", "expired", "dropped", "held"):
        notices.drain()
    if state == "expired":
        notices.execute(
            "UPDATE {table} SET raw_payload = NULL, payload_storage_status = 'expired', raw_object_key = NULL"
        )
    if state == "dropped":
        notices.execute("UPDATE {table} SET raw_payload = NULL, raw_object_key = NULL")
    if state == "held":
        notices.execute(
            "UPDATE {table} SET raw_payload = %s, payload_storage_status = 'inline', raw_object_key = NULL", LARGE
        )
    wanted = {"never seen": None, "held": "inline", "dropped": "inline", "empty": "inline"}.get(state, state)
    if state not in ("pending_move",):
        assert notices.statuses() == {1: wanted}
    return 1


STATES = ("empty", "inline", "never seen", "pending_move", "copied", "in_storage", "dropped", "held", "expired")


@pytest.mark.both_servers
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("after_copy", ["clear", "reference"])
@pytest.mark.parametrize("payload", [OTHER, LARGE, SMALL], ids=["other", "the same", "small"])
def test_a_row_in_any_state_is_updated_to_the_payload_that_was_written(
    database_url: str, local_store_url: str, state: str, after_copy: str, payload: str
) -> None:
    with (
        installed(database_url, local_store_url, threshold_bytes=THRESHOLD, after_copy=after_copy) as notices,
        PayloadWriter(notices.pipeline) as writer,
    ):
        key = prepare(notices, state)
        for _ in ("once", "and delivered again"):
            with notices.connection.transaction():
                update_columns(notices, writer.write(notices.connection, "notices", "acme", key, payload), key)
            expect(notices, key, payload)
            assert notices.one_status() == ("inline" if payload == SMALL else "in_storage")
            assert read(notices, key).payload == payload.encode()
            notices.assert_invariant()
        assert notices.drain().is_sound
        assert notices.verify(full=True).passed
        notices.assert_invariant()


@pytest.mark.parametrize("after_copy", ["clear", "reference"])
def test_an_upsert_delivered_twice_is_the_same_row(database_url: str, local_store_url: str, after_copy: str) -> None:
    with (
        installed(database_url, local_store_url, after_copy=after_copy) as notices,
        PayloadWriter(notices.pipeline) as writer,
    ):
        for payload in (LARGE, LARGE, OTHER, OTHER):
            columns = writer.write(notices.connection, "notices", "acme", 1, payload)
            names = ", ".join(columns)
            notices.connection.execute(
                f"INSERT INTO notices (id, tenant_id, {names}) VALUES (1, 'acme', {', '.join(['%s'] * 6)})"  # noqa: S608
                f" ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in columns)}",
                list(columns.values()),
            )
            assert read(notices, 1).payload == payload.encode()
        assert notices.verify(full=True).passed


@pytest.mark.parametrize("after_copy", ["clear", "reference"])
def test_an_edit_in_place_of_what_the_writer_stored_is_refused(
    database_url: str, local_store_url: str, after_copy: str
) -> None:
    with (
        installed(database_url, local_store_url, after_copy=after_copy) as notices,
        PayloadWriter(notices.pipeline) as writer,
    ):
        insert_columns(notices, writer.write(notices.connection, "notices", "acme", 1, LARGE), id=1, tenant_id="acme")
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="in object storage"):
            notices.execute("""UPDATE {table} SET raw_payload = raw_payload || '{{"b": 1}}'""")


def test_the_key_may_come_from_the_row_that_was_just_inserted(
    notices: Installation, writer: PayloadWriter, application: psycopg.Connection
) -> None:
    row = application.execute("INSERT INTO notices (tenant_id) VALUES ('acme') RETURNING id").fetchone()
    assert row is not None
    update_columns(notices, writer.write(application, "notices", "acme", row[0], LARGE), row[0], connection=application)
    application.commit()
    assert read(notices, row[0]).payload == LARGE.encode()


# The partition's line of state


@pytest.mark.both_servers
def test_a_tenant_that_only_the_writer_has_seen_is_visited_by_the_pipeline(
    notices: Installation, writer: PayloadWriter, application: psycopg.Connection
) -> None:
    columns = writer.write(application, "notices", "new", 1, LARGE)
    insert_columns(notices, columns, connection=application, id=1, tenant_id="new")
    other = writer.write(notices.connection, "notices", "new", 2, LARGE)
    insert_columns(notices, other, id=2, tenant_id="new")
    assert notices.verify("new", full=True).rows_read == 1, "an open transaction keeps nobody waiting"
    application.commit()
    assert notices.connection.execute("SELECT tenant_id, store_url FROM payload_offload_state").fetchall() == [
        ("new", notices.store.url)
    ]
    with notices.pipeline.connect() as connection:
        assert [one.tenant for one in notices.pipeline.partitions(connection, None, None)] == ["new"]
    assert notices.verify("new", full=True).rows_read == 2


def test_what_the_writer_stored_is_sampled_like_the_rest(notices: Installation, writer: PayloadWriter) -> None:
    columns = writer.write(notices.connection, "notices", "acme", 1, LARGE)
    insert_columns(notices, columns, id=1, tenant_id="acme")
    assert notices.verify(sample_rows=1).rows_read == 1
    notices.store.put(columns["raw_object_key"], truncated(notices.store.get(columns["raw_object_key"])))
    assert not notices.verify(sample_rows=1).passed


def test_a_partition_whose_objects_are_elsewhere_gets_nothing_stored(notices: Installation, tmp_path: Path) -> None:
    notices.insert([LARGE])
    notices.drain()
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere = make_pipeline(notices.database_url, folder.as_uri(), [notices.config])
    with PayloadWriter(elsewhere) as writer, pytest.raises(StoreChangedError, match="its objects are in"):
        writer.write(notices.connection, "notices", "acme", 2, OTHER)
    assert stored_files(folder) == []


@pytest.mark.parametrize("tenant", [None, "ac\x00me"])
def test_a_row_must_have_a_tenant(notices: Installation, writer: PayloadWriter, tenant: str | None) -> None:
    with pytest.raises((UserError, psycopg.DataError)):
        writer.write(notices.connection, "notices", tenant, 1, LARGE)
    assert objects(notices) == []


def test_a_table_with_one_constant_tenant_takes_no_other(database_url: str, local_store_url: str) -> None:
    with (
        installed(database_url, local_store_url, tenant_column=None) as notices,
        PayloadWriter(notices.pipeline) as writer,
    ):
        for key, tenant in ((1, None), (2, "acme")):
            insert_columns(notices, writer.write(notices.connection, "notices", tenant, key, LARGE), id=key)
        with pytest.raises(UserError, match="'globex' is no tenant of this table; give 'acme' or None"):
            writer.write(notices.connection, "notices", "globex", 3, LARGE)
        assert notices.verify(full=True).rows_read == 2


@pytest.mark.parametrize("key", ["x", (1, 2), None])
def test_a_key_that_cannot_be_is_one_line(notices: Installation, writer: PayloadWriter, key: Any) -> None:
    with pytest.raises(UserError, match=r"^notices: [^\n]*\bid\b[^\n]*$"):
        writer.write(notices.connection, "notices", "acme", key, LARGE)
    assert objects(notices) == []


def test_key_and_tenant_are_named_as_the_pipeline_names_them(database_url: str, local_store_url: str) -> None:
    keys = {"day": "date", "moment": "timestamptz", "n": "integer"}
    with (
        installed(database_url, local_store_url, key_columns=keys) as notices,
        PayloadWriter(notices.pipeline) as writer,
        psycopg.connect(database_url, autocommit=True) as application,
    ):
        application.execute("SET TimeZone = 'America/Bogota'")
        application.execute("SET DateStyle = 'SQL, DMY'")
        row = {"day": "2026-02-01", "moment": "2026-02-01 12:00:00+00", "n": "007"}
        columns = writer.write(application, "notices", "acme", tuple(row.values()), LARGE)
        notices.insert([LARGE], **row)
        notices.drain()
        assert notices.execute("SELECT raw_object_key FROM {table}").fetchone() == (columns["raw_object_key"],)


# Stores that fail


FAULTS: dict[str, tuple[dict[str, str], type[OffloadError]]] = {
    "500": ({"PUT": "500"}, StoreUnavailableError),
    "503": ({"PUT": "503 slow down"}, StoreUnavailableError),
    "no answer": ({"PUT": "no answer"}, StoreUnavailableError),
    "denied": ({"PUT": "403"}, StoreDeniedError),
    "cut": ({"PUT": "cut"}, StoreUnavailableError),
    "nothing stored": ({"PUT": "nothing stored"}, ReadBackMismatchError),
    "truncated": ({"PUT": "truncated"}, ReadBackMismatchError),
    "altered": ({"PUT": "altered"}, ReadBackMismatchError),
    "read back cut": ({"GET": "cut"}, StoreUnavailableError),
    "read back altered": ({"GET": "altered"}, ReadBackMismatchError),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails_is_raised_recorded_and_resolved_by_the_write_that_succeeds(
    behind_proxy: Installation, proxy: FaultyProxy, real_store: ObjectStore, fault: str
) -> None:
    proxy.faults, error = FAULTS[fault]
    with (
        PayloadWriter(behind_proxy.pipeline) as writer,
        psycopg.connect(behind_proxy.database_url) as application,
    ):
        behind_proxy.execute("INSERT INTO {table} (id, tenant_id) VALUES (1, 'acme')", connection=application)
        for attempt in (1, 2):
            with pytest.raises(error, match=r"^[^\n]+$"):
                writer.write(application, "notices", "acme", 2, LARGE)
            line = behind_proxy.failures()["2"]
            assert (line["stage"], line["error_class"], line["tenant_id"]) == ("write", error.__name__, "acme")
            assert line["attempts"] == (1 if issubclass(error, StoreUnavailableError) else attempt)
            assert line["resolved_at"] is None
        application.commit()
        assert list(behind_proxy.statuses()) == [1], "the transaction went on"

        proxy.heal()
        columns = writer.write(application, "notices", "acme", 2, LARGE)
        insert_columns(behind_proxy, columns, connection=application, id=2, tenant_id="acme")
        application.commit()
    assert behind_proxy.failures()["2"]["resolved_at"] is not None
    assert gzip.decompress(real_store.get(columns["raw_object_key"])) == LARGE.encode()
    assert behind_proxy.verify(full=True).passed


def test_the_line_of_a_failed_write_outlives_the_callers_rollback_and_every_pass(
    behind_proxy: Installation, proxy: FaultyProxy
) -> None:
    proxy.faults = {"PUT": "500"}
    with (
        PayloadWriter(behind_proxy.pipeline) as writer,
        psycopg.connect(behind_proxy.database_url) as application,
        pytest.raises(StoreUnavailableError),
    ):
        writer.write(application, "notices", "acme", 2, LARGE)
    proxy.heal()
    behind_proxy.insert([OTHER])
    assert behind_proxy.drain().is_sound
    assert behind_proxy.failures()["2"]["resolved_at"] is None, "the row was never written: this is all there is of it"


@pytest.mark.parametrize("fault", ["500", "denied", "altered"])
def test_the_payload_goes_into_the_row_where_that_is_allowed_and_is_moved_later(
    behind_proxy: Installation, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv(FALLBACK_VARIABLE, "true")
    proxy.faults, error = FAULTS[fault]
    with PayloadWriter(behind_proxy.pipeline) as writer:
        columns = writer.write(behind_proxy.connection, "notices", "acme", 2, LARGE)
    assert (columns["raw_payload"], columns["payload_storage_status"]) == (LARGE, "pending_move")
    insert_columns(behind_proxy, columns, id=2, tenant_id="acme")
    behind_proxy.take_rows_as_expected()
    assert behind_proxy.failures()["2"]["error_class"] == error.__name__
    proxy.heal()
    assert behind_proxy.drain().is_sound
    assert behind_proxy.one_status() == "in_storage"
    assert behind_proxy.failures()["2"]["resolved_at"] is not None
    behind_proxy.assert_invariant()


def test_a_fallback_variable_that_says_neither_is_a_mistake(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FALLBACK_VARIABLE, "yes")
    with pytest.raises(UserError, match=f"{FALLBACK_VARIABLE} is 'yes'; write true or false"):
        PayloadWriter(notices.pipeline)


def test_a_failure_that_cannot_be_recorded_does_not_hide_the_cause(
    behind_proxy: Installation, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    behind_proxy.connection.execute("DROP TABLE payload_offload_failures")
    proxy.faults = {"PUT": "500"}
    with (
        PayloadWriter(behind_proxy.pipeline) as writer,
        caplog.at_level(logging.WARNING),
        pytest.raises(StoreUnavailableError),
    ):
        writer.write(behind_proxy.connection, "notices", "acme", 2, LARGE)
    assert "notices 2: not recorded in payload_offload_failures" in caplog.text


# Dying, and others at work


DIES = """
import os, signal, sys
import psycopg
from dataclasses import replace
from offload_pipeline import PayloadWriter
from offload_pipeline.pipeline import open_pipeline
from offload_pipeline_tests.offload.stores import HookedStore

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

moment, url, payload = sys.argv[1:]
pipeline = open_pipeline()
hooks = {} if moment in ("returned", "inserted") else {moment: die}
writer = PayloadWriter(replace(pipeline, store=HookedStore(pipeline.store, **hooks)))
with psycopg.connect(url) as connection:
    columns = writer.write(connection, "notices", "acme", 1, payload)
    if moment == "returned":
        die()
    names = ", ".join(columns)
    connection.execute(
        f"INSERT INTO notices (id, tenant_id, {names}) VALUES (1, 'acme', {', '.join(['%s'] * 6)})",
        list(columns.values()),
    )
    die()
"""


@pytest.mark.parametrize("moment", ["before_put", "after_put", "after_get", "returned", "inserted"])
def test_a_writer_that_dies_before_the_commit_leaves_an_orphan_at_most(
    notices: Installation, writer: PayloadWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    config = tmp_path / "offload.yaml"
    config.write_text(json.dumps(notices.pipeline.config.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
    monkeypatch.setenv("OFFLOAD_CONFIG", str(config))
    done = subprocess.run(
        [sys.executable, "-c", DIES, moment, notices.database_url, LARGE],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert notices.statuses() == {}
    assert len(objects(notices)) == (0 if moment == "before_put" else 1)
    insert_columns(notices, writer.write(notices.connection, "notices", "acme", 1, LARGE), id=1, tenant_id="acme")
    expect(notices, 1, LARGE)
    assert len(objects(notices)) == 1
    assert notices.verify(full=True).passed
    notices.assert_invariant()


@pytest.mark.both_servers
def test_writers_of_one_key_leave_the_payload_of_the_one_that_was_last(
    notices: Installation, writer: PayloadWriter
) -> None:
    notices.insert([None], id=1)
    payloads = [large_payload(1000, seed) for seed in range(24)]
    last: list[str] = []
    turn = threading.Lock()

    def write(payload: str) -> None:
        with psycopg.connect(notices.database_url) as connection:
            columns = writer.write(connection, "notices", "acme", 1, payload)
            with turn:
                update_columns(notices, columns, 1, connection=connection)
                connection.commit()
                last[:] = [payload]

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(write, payloads))
    assert read(notices, 1).payload == last[0].encode()
    assert len(objects(notices)) == len(payloads), "all others are orphans"
    assert notices.verify(full=True).passed
    assert advisory_locks(notices.connection) == 0


def test_of_two_inserts_of_one_key_the_second_fails_as_it_would_without_the_writer(
    notices: Installation, writer: PayloadWriter, application: psycopg.Connection
) -> None:
    columns = writer.write(application, "notices", "acme", 1, LARGE)
    insert_columns(notices, columns, connection=application, id=1, tenant_id="acme")
    application.commit()
    other = writer.write(application, "notices", "acme", 1, OTHER)
    with pytest.raises(errors.UniqueViolation):
        insert_columns(notices, other, connection=application, id=1, tenant_id="acme")
    application.rollback()
    assert read(notices, 1).payload == LARGE.encode()


def test_a_row_that_is_written_while_it_is_copied_keeps_what_was_written(
    notices: Installation, writer: PayloadWriter
) -> None:
    (key,) = notices.insert([LARGE])
    once = iter([True])

    def write(_: str) -> None:
        if next(once, False):
            update_columns(notices, writer.write(notices.connection, "notices", "acme", key, OTHER), key)

    copied = notices.with_store(HookedStore(notices.store, after_get=write)).copy()
    assert (copied.rows_copied, copied.rows_left) == (0, 1)
    expect(notices, key, OTHER)
    assert notices.one_status() == "in_storage"
    assert notices.drain().is_sound
    notices.assert_invariant()


@pytest.mark.both_servers
def test_odd_names_are_quoted(database_url: str, local_store_url: str) -> None:
    names = {
        "status": "sta%tus", "size": "si ze", "object_key": 'obj"ect', "hash": "{hash}", "stored_at": "stored%%At",
    }  # fmt: skip
    with (
        installed(
            database_url, local_store_url, relation='"5% {of} ""it"""', payload="%s", key_columns={"i%d": "text"},
            tenant_column="te{n}ant", after_copy="reference", columns=names,
        ) as odd,
        PayloadWriter(odd.pipeline) as writer,
    ):  # fmt: skip
        columns = writer.write(odd.connection, "notices", "50%", "a%b", LARGE)
        row = {"i%d": "a%b", "te{n}ant": "50%", **columns}
        odd.connection.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier('5% {of} "it"'),
                sql.SQL(", ").join(map(sql.Identifier, row)),
                sql.SQL(", ").join(map(sql.Literal, row.values())),
            )
        )
        assert odd.verify("50%", full=True).rows_read == 1
        assert read(odd, "a%b").payload == LARGE.encode()
