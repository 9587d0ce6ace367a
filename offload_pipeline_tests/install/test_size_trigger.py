"""The size trigger: what it makes of every way in which an application writes a payload."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from offload_pipeline.config import TableConfig
from offload_pipeline_tests.factories import insert_payloads, install, make_pipeline, make_table, statuses
from offload_pipeline_tests.offload.population import lose_a_toast_chunk
from offload_pipeline_tests.servers import PostgresServer

THRESHOLD = 1000
SMALL = '{"a": 1}'
LARGE = f'{{"a": "{"x" * THRESHOLD}"}}'
POINTER = "raw_object_key = 'acme/notices/1/k', payload_hash_sha256 = 'abcd', payload_bytes = 5"
POINTER_COLUMNS = "raw_object_key, payload_hash_sha256, payload_bytes"


@dataclass(frozen=True)
class Row:
    status: str | None
    payload: str | None
    object_key: str | None
    sha256: str | None
    size: int | None
    is_dated: bool

    @property
    def has_pointer(self) -> bool:
        return None not in (self.object_key, self.sha256, self.size) and self.is_dated

    @property
    def has_no_pointer(self) -> bool:
        return self.object_key is None and self.sha256 is None and not self.is_dated


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connected:
        yield connected


def make_notices(connection: psycopg.Connection, store_url: str, **options: Any) -> TableConfig:
    config = make_table(connection, **{"threshold_bytes": THRESHOLD, **options})
    install(make_pipeline(connection_url(connection), store_url, [config]))
    return config


def connection_url(connection: psycopg.Connection) -> str:
    return connection.info.dsn


@pytest.fixture
def notices(connection: psycopg.Connection, local_store_url: str) -> TableConfig:
    return make_notices(connection, local_store_url, extra_columns={"title": "text"})


@pytest.fixture
def references(connection: psycopg.Connection, local_store_url: str) -> TableConfig:
    return make_notices(connection, local_store_url, after_copy="reference")


def row(connection: psycopg.Connection, key: int = 1) -> Row:
    found = connection.execute(
        "SELECT payload_storage_status, raw_payload::text, raw_object_key, payload_hash_sha256, payload_bytes,"
        " payload_stored_at IS NOT NULL FROM notices WHERE id = %s",
        [key],
    ).fetchone()
    assert found is not None
    return Row(*found)


def put_in_state(
    connection: psycopg.Connection, config: TableConfig, state: str, never_seen: str | None = LARGE
) -> None:
    """Row 1 with a large payload, taken to `state` by the statements that the pipeline uses."""
    payload = {"inline": SMALL, "never seen": never_seen}.get(state, LARGE)
    insert_payloads(connection, config, [payload])
    assert row(connection).status == ("inline" if payload == SMALL else "pending_move")
    if state in ("copied", "in_storage"):
        connection.execute(
            f"UPDATE notices SET payload_storage_status = 'copied', {POINTER}, payload_stored_at = now()"  # noqa: S608
        )
    if state == "in_storage":
        reference = "NULL"
        if config.after_copy == "reference":
            reference = "jsonb_build_object('payload_type', 'storage_ref', 'sha256', payload_hash_sha256)"
        connection.execute(
            f"UPDATE notices SET raw_payload = {reference}, payload_storage_status = 'in_storage'"  # noqa: S608
        )
    if state == "never seen":
        connection.execute("UPDATE notices SET payload_storage_status = NULL, payload_bytes = NULL")
    assert row(connection).status == (None if state == "never seen" else state)


def json_of_size(size: int) -> str:
    """In PostgreSQL's own form, so that text and jsonb are equally long."""
    return f'{{"a": "{"x" * (size - 9)}"}}'


# Thresholds


@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
@pytest.mark.both_servers
def test_only_a_payload_above_the_threshold_is_queued(
    connection: psycopg.Connection, local_store_url: str, payload_type: str
) -> None:
    config = make_notices(connection, local_store_url, payload_type=payload_type)
    sizes = (10, THRESHOLD - 1, THRESHOLD, THRESHOLD + 1, 20 * THRESHOLD)
    insert_payloads(connection, config, [json_of_size(size) for size in sizes])
    assert list(statuses(connection, config).values()) == ["inline"] * 3 + ["pending_move"] * 2
    assert [row(connection, key).size for key in range(1, 6)] == [None, None, None, THRESHOLD + 1, 20 * THRESHOLD]


@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
def test_a_threshold_of_zero_queues_every_payload_but_null(
    connection: psycopg.Connection, local_store_url: str, payload_type: str
) -> None:
    config = make_notices(connection, local_store_url, payload_type=payload_type, threshold_bytes=0)
    insert_payloads(connection, config, ["null", "{}", '""', "0", None])
    assert list(statuses(connection, config).values()) == ["pending_move"] * 4 + ["inline"]


def test_an_empty_text_is_a_payload_too(connection: psycopg.Connection, local_store_url: str) -> None:
    config = make_notices(connection, local_store_url, payload_type="text", threshold_bytes=0)
    insert_payloads(connection, config, [""])
    assert row(connection).status == "pending_move"


def test_null_and_json_null_are_inline(connection: psycopg.Connection, notices: TableConfig) -> None:
    insert_payloads(connection, notices, [None, "null"])
    assert set(statuses(connection, notices).values()) == {"inline"}


@pytest.mark.parametrize(
    "piece",
    ["repeat('\\u0001', n)", "repeat('\\\\', n)", "repeat('é', n)", "repeat('\\\"', n)"],
    ids=["control characters", "backslashes", "two-byte letters", "quotes"],
)
def test_text_that_grows_when_printed_is_measured_as_printed(
    connection: psycopg.Connection, notices: TableConfig, piece: str
) -> None:
    connection.execute(
        "INSERT INTO notices (raw_payload)"  # noqa: S608 - the pieces above
        f""" SELECT ('{{"a": "' || {piece} || '"}}')::jsonb FROM generate_series(100, 1050, 5) AS n"""
    )
    wrong = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE (octet_length(raw_payload::text) > %s)"
        " <> (payload_storage_status = 'pending_move')) FROM notices",
        [THRESHOLD],
    ).fetchone()
    assert wrong == (191, 0)


@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
@pytest.mark.parametrize("storage", ["EXTENDED", "MAIN", "EXTERNAL"])
def test_a_value_that_arrives_compressed_or_out_of_line_is_measured_whole(
    connection: psycopg.Connection, local_store_url: str, payload_type: str, storage: str
) -> None:
    config = make_notices(connection, local_store_url, payload_type=payload_type)
    connection.execute(f"CREATE TABLE source (payload {payload_type})")
    connection.execute(f"ALTER TABLE source ALTER payload SET STORAGE {storage}")
    for size in (THRESHOLD, 3000, 30_000):
        connection.execute(sql.SQL("INSERT INTO source VALUES ({})").format(sql.Literal(json_of_size(size))))
    connection.execute("INSERT INTO notices (raw_payload) SELECT payload FROM source")
    assert list(statuses(connection, config).values()) == ["inline", "pending_move", "pending_move"]


# Which rows reach PL/pgSQL


def triggers_of(connection: psycopg.Connection, statement: str, *values: object) -> dict[str, int]:
    """How often each trigger was called by the statement, which is carried out."""
    found = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values).fetchone()
    assert found is not None
    return {trigger["Trigger Name"]: trigger["Calls"] for trigger in found[0][0]["Triggers"]}


@pytest.mark.both_servers
def test_a_small_row_never_reaches_plpgsql(connection: psycopg.Connection, notices: TableConfig) -> None:
    insert = "INSERT INTO notices (raw_payload) VALUES (%s)"
    assert triggers_of(connection, insert, SMALL) == {}
    assert triggers_of(connection, insert, LARGE) == {"zz_payload_offload_insert": 1}
    update = "UPDATE notices SET raw_payload = %s WHERE id = 1"
    assert triggers_of(connection, update, SMALL) == {}
    assert triggers_of(connection, update, LARGE) == {"zz_payload_offload_update": 1}


def test_an_update_of_other_columns_calls_nothing_and_keeps_the_pointer(
    connection: psycopg.Connection, notices: TableConfig
) -> None:
    put_in_state(connection, notices, "in_storage")
    before = row(connection)
    assert triggers_of(connection, "UPDATE notices SET title = 'new', tenant_id = 'b'") == {}
    assert row(connection) == before


def test_the_applications_own_trigger_has_its_say_first(connection: psycopg.Connection, notices: TableConfig) -> None:
    connection.execute(
        "CREATE FUNCTION grow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.raw_payload := to_jsonb(repeat('x', 2000)); RETURN NEW; END $$"
    )
    connection.execute("CREATE TRIGGER z_grow BEFORE INSERT ON notices FOR EACH ROW EXECUTE FUNCTION grow()")
    insert_payloads(connection, notices, [SMALL])
    assert row(connection).status == "pending_move"


# A new payload starts again


@pytest.mark.parametrize("state", ["inline", "pending_move", "copied", "in_storage", "never seen"])
@pytest.mark.parametrize(("payload", "status"), [(SMALL, "inline"), (LARGE.replace("x", "y"), "pending_move")])
def test_a_new_payload_clears_the_pointer_and_starts_again(
    connection: psycopg.Connection, notices: TableConfig, state: str, payload: str, status: str
) -> None:
    put_in_state(connection, notices, state)
    connection.execute("UPDATE notices SET raw_payload = %s", [payload])
    found = row(connection)
    assert (found.status, found.payload) == (status, payload)
    assert found.has_no_pointer
    assert found.size == (len(payload) if status == "pending_move" else None)


@pytest.mark.both_servers
def test_a_new_payload_replaces_a_reference(connection: psycopg.Connection, references: TableConfig) -> None:
    put_in_state(connection, references, "in_storage")
    connection.execute("UPDATE notices SET raw_payload = %s", [LARGE])
    assert row(connection).status == "pending_move"
    assert row(connection).has_no_pointer


@pytest.mark.parametrize("state", ["pending_move", "copied"])
def test_a_payload_that_is_taken_away_leaves_an_inline_row(
    connection: psycopg.Connection, notices: TableConfig, state: str
) -> None:
    put_in_state(connection, notices, state)
    connection.execute("UPDATE notices SET raw_payload = NULL")
    assert row(connection) == Row("inline", None, None, None, None, is_dated=False)


def test_an_edit_of_a_copied_payload_is_a_new_payload(connection: psycopg.Connection, notices: TableConfig) -> None:
    put_in_state(connection, notices, "copied")
    connection.execute("""UPDATE notices SET raw_payload = raw_payload || '{"b": 1}'""")
    assert row(connection).status == "pending_move"
    assert row(connection).has_no_pointer


@pytest.mark.parametrize("move", ["tenant_id = 'b'", "id = 2", "tenant_id = 'b', raw_payload = raw_payload"])
def test_a_copy_that_moves_to_another_tenant_or_key_is_made_again(
    connection: psycopg.Connection, notices: TableConfig, move: str
) -> None:
    put_in_state(connection, notices, "copied")
    connection.execute(f"UPDATE notices SET {move}")  # noqa: S608 - the moves above
    assert list(statuses(connection, notices).values()) == ["pending_move"]
    assert row(connection, 2 if move == "id = 2" else 1).has_no_pointer


@pytest.mark.both_servers
def test_a_copy_that_a_trigger_moves_to_another_tenant_is_made_again(
    connection: psycopg.Connection, notices: TableConfig
) -> None:
    put_in_state(connection, notices, "copied")
    connection.execute(
        "CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.tenant_id := ''b''; RETURN NEW; END'"
    )
    connection.execute("CREATE TRIGGER a_move BEFORE UPDATE ON notices FOR EACH ROW EXECUTE FUNCTION move()")
    connection.execute("UPDATE notices SET created_at = now()")
    assert list(statuses(connection, notices).values()) == ["pending_move"]
    assert row(connection).has_no_pointer


# Never seen, and moved to where a scan may have been


MOVES = ["tenant_id = 'b'", "id = 2", "tenant_id = 'b', raw_payload = raw_payload"]


@pytest.mark.both_servers
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(("payload", "status"), [(SMALL, "inline"), (LARGE, "pending_move")])
def test_a_row_never_seen_that_moves_to_another_tenant_or_key_is_measured(
    connection: psycopg.Connection, notices: TableConfig, move: str, payload: str, status: str
) -> None:
    put_in_state(connection, notices, "never seen", payload)
    connection.execute(f"UPDATE notices SET {move}")  # noqa: S608 - the moves above
    size = len(payload) if status == "pending_move" else None
    assert row(connection, 2 if move == "id = 2" else 1) == Row(status, payload, None, None, size, is_dated=False)


@pytest.mark.both_servers
@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
def test_a_row_never_seen_that_moves_is_measured_as_it_would_be_on_insert(
    connection: psycopg.Connection, local_store_url: str, payload_type: str
) -> None:
    config = make_notices(connection, local_store_url, payload_type=payload_type)
    insert_payloads(connection, config, [json_of_size(size) for size in (10, THRESHOLD, THRESHOLD + 1, 20 * THRESHOLD)])
    measured = "SELECT payload_storage_status, payload_bytes FROM notices ORDER BY id"
    expected = connection.execute(measured).fetchall()
    connection.execute("UPDATE notices SET payload_storage_status = NULL, payload_bytes = NULL")
    connection.execute("UPDATE notices SET tenant_id = 'b'")
    assert connection.execute(measured).fetchall() == expected


def test_a_row_never_seen_that_stays_where_it_is_calls_nothing(
    connection: psycopg.Connection, notices: TableConfig
) -> None:
    put_in_state(connection, notices, "never seen")
    before = row(connection)
    assert triggers_of(connection, "UPDATE notices SET title = 'new', tenant_id = tenant_id") == {}
    assert row(connection) == before
    assert triggers_of(connection, "UPDATE notices SET tenant_id = 'b'") == {"zz_payload_offload_move": 1}


@pytest.mark.both_servers
@pytest.mark.parametrize("after_copy", ["clear", "reference"])
@pytest.mark.parametrize("move", MOVES)
def test_a_row_never_seen_whose_payload_is_elsewhere_moves_with_its_pointer(
    connection: psycopg.Connection, local_store_url: str, after_copy: str, move: str
) -> None:
    """What another program stored before install, under columns that are ours since."""
    put_in_state(connection, make_notices(connection, local_store_url, after_copy=after_copy), "in_storage")
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("UPDATE notices SET payload_storage_status = NULL")
    before = row(connection)
    assert before.has_pointer
    if after_copy == "clear":
        move = move.partition(", raw_payload")[0]
    connection.execute(f"UPDATE notices SET {move}")  # noqa: S608 - the moves above
    assert row(connection, 2 if move == "id = 2" else 1) == before


@pytest.mark.parametrize("threshold_bytes", [0, THRESHOLD])
@pytest.mark.parametrize("after_copy", ["clear", "reference"])
def test_a_row_never_seen_without_payload_moves_and_takes_payloads_afterwards(
    connection: psycopg.Connection, local_store_url: str, after_copy: str, threshold_bytes: int
) -> None:
    config = make_notices(connection, local_store_url, after_copy=after_copy, threshold_bytes=threshold_bytes)
    insert_payloads(connection, config, [None])
    connection.execute("UPDATE notices SET payload_storage_status = NULL")
    connection.execute("UPDATE notices SET tenant_id = 'b'")
    assert row(connection) == Row(None, None, None, None, None, is_dated=False)
    connection.execute("UPDATE notices SET tenant_id = 'c', raw_payload = %s", [LARGE])
    assert row(connection) == Row("pending_move", LARGE, None, None, len(LARGE), is_dated=False)


@pytest.mark.both_servers
def test_a_row_never_seen_may_move_as_the_writer_stores_its_payload(
    connection: psycopg.Connection, notices: TableConfig
) -> None:
    put_in_state(connection, notices, "never seen")
    connection.execute(f"UPDATE notices SET tenant_id = 'b', raw_payload = NULL, {POINTER}")  # noqa: S608
    assert row(connection) == Row("in_storage", None, "acme/notices/1/k", "abcd", 5, is_dated=True)


@pytest.mark.both_servers
def test_a_row_never_seen_that_cannot_be_printed_can_be_moved_and_is_queued(
    connection: psycopg.Connection, notices: TableConfig
) -> None:
    """The application's statement must not fail where it did not without us; the copy records why it cannot."""
    payload = json.dumps({"key": secrets.token_hex(10_000)})
    put_in_state(connection, notices, "never seen", payload)
    lose_a_toast_chunk(connection)
    with pytest.raises(errors.DataCorrupted):
        row(connection)
    connection.execute("UPDATE notices SET tenant_id = 'b'")
    assert statuses(connection, notices) == {1: "pending_move"}


# In storage


@pytest.mark.parametrize("edit", ["""raw_payload || '{"b": 1}'""", "jsonb_set(raw_payload, '{a}', '1')", "NULL"])
@pytest.mark.both_servers
def test_an_edit_in_place_of_a_payload_in_storage_is_refused_with_a_hint(
    connection: psycopg.Connection, notices: TableConfig, edit: str
) -> None:
    put_in_state(connection, notices, "in_storage")
    before = row(connection)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="in object storage") as caught:
        connection.execute(f"UPDATE notices SET raw_payload = {edit}")  # noqa: S608 - the edits above
    assert "offload restore --table notices --primary-key KEY" in (caught.value.diag.message_hint or "")
    assert row(connection) == before


@pytest.mark.parametrize("edit", ["""raw_payload || '{"b": 1}'""", "raw_payload - 'payload_type'", "NULL"])
def test_an_edit_in_place_of_a_reference_is_refused_with_a_hint(
    connection: psycopg.Connection, references: TableConfig, edit: str
) -> None:
    put_in_state(connection, references, "in_storage")
    before = row(connection)
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        connection.execute(f"UPDATE notices SET raw_payload = {edit}")  # noqa: S608 - the edits above
    assert "offload restore --table notices --primary-key KEY" in (caught.value.diag.message_hint or "")
    assert row(connection) == before


@pytest.mark.parametrize("state", ["inline", "pending_move", "copied", "never seen"])
def test_a_row_saved_whole_and_unchanged_keeps_its_state(
    connection: psycopg.Connection, notices: TableConfig, state: str
) -> None:
    put_in_state(connection, notices, state)
    before = row(connection)
    save_whole_row(connection, title="new")
    assert row(connection) == before


def test_a_reference_saved_whole_and_unchanged_keeps_its_pointer(
    connection: psycopg.Connection, references: TableConfig
) -> None:
    connection.execute("ALTER TABLE notices ADD COLUMN title text")
    put_in_state(connection, references, "in_storage")
    before = row(connection)
    save_whole_row(connection, title="new")
    assert row(connection) == before
    assert before.has_pointer


def save_whole_row(connection: psycopg.Connection, title: str) -> None:
    """As an ORM does: every column, with the values that were read."""
    connection.execute(
        "UPDATE notices SET title = %s, tenant_id = r.tenant_id, raw_payload = r.raw_payload::text::jsonb,"
        " payload_storage_status = r.payload_storage_status, payload_bytes = r.payload_bytes,"
        " raw_object_key = r.raw_object_key, payload_hash_sha256 = r.payload_hash_sha256,"
        " payload_stored_at = r.payload_stored_at"
        " FROM (SELECT * FROM notices) AS r WHERE r.id = notices.id",
        [title],
    )


@pytest.mark.parametrize("after_copy", ["clear", "reference"])
@pytest.mark.parametrize("more", ["", ", payload_hash_sha256 = NULL, payload_storage_status = 'inline'"])
def test_payload_and_pointer_may_be_cleared_together(
    connection: psycopg.Connection, local_store_url: str, after_copy: str, more: str
) -> None:
    config = make_notices(connection, local_store_url, after_copy=after_copy)
    put_in_state(connection, config, "in_storage")
    connection.execute(f"UPDATE notices SET raw_payload = NULL, raw_object_key = NULL{more}")  # noqa: S608
    assert row(connection) == Row("inline", None, None, None, None, is_dated=False)


# Offloaded by the writer


@pytest.mark.both_servers
def test_a_row_written_with_its_whole_pointer_is_in_storage(
    connection: psycopg.Connection, notices: TableConfig
) -> None:
    connection.execute(f"INSERT INTO notices ({POINTER_COLUMNS}) VALUES ('k', 'abcd', 5)")  # noqa: S608
    found = row(connection)
    assert found == Row("in_storage", None, "k", "abcd", 5, is_dated=True)


@pytest.mark.parametrize(
    "values", ["'k', 'abcd', NULL", "'k', NULL, 5", "NULL, 'abcd', 5", "'k', NULL, NULL", "NULL, 'abcd', NULL"]
)
def test_a_row_written_with_half_a_pointer_is_refused(
    connection: psycopg.Connection, notices: TableConfig, values: str
) -> None:
    with pytest.raises(errors.CheckViolation, match="without hash, key and size") as caught:
        connection.execute(f"INSERT INTO notices ({POINTER_COLUMNS}) VALUES ({values})")  # noqa: S608
    assert "all three pointer columns" in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize("state", ["inline", "pending_move", "in_storage"])
def test_a_writer_may_exchange_the_payload_for_a_whole_pointer(
    connection: psycopg.Connection, notices: TableConfig, state: str
) -> None:
    put_in_state(connection, notices, state)
    connection.execute(
        "UPDATE notices SET raw_payload = NULL, raw_object_key = 'new', payload_hash_sha256 = 'ef', payload_bytes = 7"
    )
    assert row(connection) == Row("in_storage", None, "new", "ef", 7, is_dated=True)


def test_a_writer_may_not_exchange_the_payload_for_half_a_pointer(
    connection: psycopg.Connection, notices: TableConfig
) -> None:
    put_in_state(connection, notices, "pending_move")
    with pytest.raises(errors.CheckViolation, match="without hash, key and size"):
        connection.execute("UPDATE notices SET raw_payload = NULL, raw_object_key = 'new'")
    assert row(connection).payload == LARGE


@pytest.mark.both_servers
@pytest.mark.parametrize("after_copy", ["clear", "reference"])
def test_a_writer_may_fill_a_row_that_has_no_payload_yet(
    connection: psycopg.Connection, local_store_url: str, after_copy: str
) -> None:
    config = make_notices(connection, local_store_url, after_copy=after_copy)
    insert_payloads(connection, config, [None])
    reference = '{"sha256": "ef", "payload_type": "storage_ref"}' if after_copy == "reference" else None
    connection.execute(
        "UPDATE notices SET raw_payload = %s, raw_object_key = 'new', payload_hash_sha256 = 'ef', payload_bytes = 7,"
        " payload_stored_at = now() - interval '59 minutes', payload_storage_status = 'in_storage'",
        [reference],
    )
    assert row(connection) == Row("in_storage", reference, "new", "ef", 7, is_dated=True)
    assert connection.execute("SELECT isfinite(payload_stored_at) FROM notices").fetchone() == (True,)


@pytest.mark.parametrize("after_copy", ["clear", "reference"])
@pytest.mark.parametrize(("later", "is_believed"), [("1 second", True), ("0 seconds", False), ("-1 second", False)])
def test_the_same_payload_stored_once_more_is_told_from_an_edit_in_place_by_its_later_moment(
    connection: psycopg.Connection, local_store_url: str, after_copy: str, later: str, is_believed: bool
) -> None:
    put_in_state(connection, make_notices(connection, local_store_url, after_copy=after_copy), "in_storage")
    reference = '{"n": 2, "sha256": "abcd", "payload_type": "storage_ref"}' if after_copy == "reference" else None
    written_again = (
        f"UPDATE notices SET raw_payload = %s, {POINTER}, payload_storage_status = 'in_storage',"  # noqa: S608
        f" payload_stored_at = payload_stored_at + interval '{later}'"
    )
    if is_believed:
        connection.execute(written_again, [reference])
        assert row(connection) == Row("in_storage", reference, "acme/notices/1/k", "abcd", 5, is_dated=True)
    else:
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="in object storage"):
            connection.execute(written_again, [reference])


@pytest.mark.parametrize("state", ["inline", "pending_move", "copied", "in_storage"])
@pytest.mark.parametrize("after_copy", ["clear", "reference"])
def test_a_row_read_long_ago_and_saved_whole_does_not_bring_its_pointer_back(
    connection: psycopg.Connection, local_store_url: str, state: str, after_copy: str
) -> None:
    put_in_state(connection, make_notices(connection, local_store_url, after_copy=after_copy), state)
    before = row(connection)
    reference = '{"sha256": "ef", "payload_type": "storage_ref"}' if after_copy == "reference" else None
    stale = (
        "UPDATE notices SET raw_payload = %s, raw_object_key = 'old', payload_hash_sha256 = 'ef', payload_bytes = 7,"
        " payload_storage_status = 'in_storage', payload_stored_at = {}"
    )
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="its object may be gone") as caught:
        connection.execute(sql.SQL(stale).format(sql.SQL("now() - interval '61 minutes'")), [reference])
    assert "set payload_stored_at to NULL" in (caught.value.diag.message_hint or "")
    assert row(connection) == before
    connection.execute(sql.SQL(stale).format(sql.SQL("NULL")), [reference])
    assert row(connection) == Row("in_storage", reference, "old", "ef", 7, is_dated=True)


def test_another_whole_pointer_saved_without_the_payload_is_stale_and_not_believed(
    connection: psycopg.Connection, notices: TableConfig
) -> None:
    put_in_state(connection, notices, "in_storage")
    before = row(connection)
    connection.execute(
        "UPDATE notices SET raw_object_key = 'older', payload_hash_sha256 = 'ef', payload_bytes = 7,"
        " payload_stored_at = now()"
    )
    assert row(connection) == before


def reference_in(store_url: str) -> str:
    """As release leaves it."""
    return (
        '{"payload_type": "storage_ref", "storage_path": "acme/k", "size_bytes": 5, "sha256": "abcd",'
        f' "moved_at": "2026-01-01T00:00:00+00:00", "url": "{store_url}/acme/k"}}'
    )


@pytest.mark.both_servers
@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
@pytest.mark.parametrize("state", ["inline", "pending_move", "copied", "never seen"])
def test_a_reference_without_its_pointer_does_not_take_a_payloads_place(
    connection: psycopg.Connection, local_store_url: str, payload_type: str, state: str
) -> None:
    config = make_notices(connection, local_store_url, after_copy="reference", payload_type=payload_type)
    put_in_state(connection, config, state)
    before = row(connection)
    for statement in (
        "UPDATE notices SET raw_payload = %s WHERE id = 1",
        "INSERT INTO notices (raw_payload) VALUES (%s)",
    ):
        with pytest.raises(errors.CheckViolation, match="without its pointer") as caught:
            connection.execute(statement, [reference_in(local_store_url)])
        assert "or the pointer columns as well" in (caught.value.diag.message_hint or "")
    assert row(connection) == before


def test_a_payload_that_only_looks_like_a_reference_is_a_payload(
    connection: psycopg.Connection, references: TableConfig, local_store_url: str
) -> None:
    others = [reference_in("s3://elsewhere"), f'{{"url": "{local_store_url}/acme/k"}}']
    insert_payloads(connection, references, [*others, '["storage_ref"]', '"storage_ref"', SMALL])
    assert set(statuses(connection, references).values()) == {"inline"}


def test_where_no_references_are_left_one_is_a_payload_like_any_other(
    connection: psycopg.Connection, notices: TableConfig, local_store_url: str
) -> None:
    insert_payloads(connection, notices, [reference_in(local_store_url)])
    assert statuses(connection, notices) == {1: "inline"}


@pytest.mark.parametrize("payload", [SMALL, LARGE])
def test_a_pointer_beside_a_payload_is_not_trusted(
    connection: psycopg.Connection, notices: TableConfig, payload: str
) -> None:
    connection.execute(
        f"INSERT INTO notices ({POINTER_COLUMNS}, raw_payload) VALUES ('k', 'abcd', 5, %s)",  # noqa: S608
        [payload],
    )
    assert row(connection).has_no_pointer
    assert row(connection).status == ("inline" if payload == SMALL else "pending_move")


@pytest.mark.parametrize("status", ["in_storage", "copied", "pending_move", "nonsense", None])
def test_a_writer_does_not_decide_the_status(
    connection: psycopg.Connection, notices: TableConfig, status: str | None
) -> None:
    insert_payloads(connection, notices, [SMALL, LARGE, None], payload_storage_status=status)
    assert list(statuses(connection, notices).values()) == ["inline", "pending_move", "inline"]


# Other ways to write


@pytest.mark.both_servers
def test_copy_measures_every_row(connection: psycopg.Connection, notices: TableConfig) -> None:
    with connection.cursor().copy("COPY notices (tenant_id, raw_payload) FROM STDIN") as copy:
        for payload in (SMALL, LARGE, None):
            copy.write_row(["acme", payload])
    assert list(statuses(connection, notices).values()) == ["inline", "pending_move", "inline"]


UPSERT = (
    "INSERT INTO notices (id, raw_payload) VALUES (1, %s)"
    " ON CONFLICT (id) DO UPDATE SET raw_payload = excluded.raw_payload"
)
MERGE = (
    "MERGE INTO notices USING (VALUES (1, %s::jsonb)) AS s (id, payload) ON notices.id = s.id"
    " WHEN MATCHED THEN UPDATE SET raw_payload = s.payload"
    " WHEN NOT MATCHED THEN INSERT (id, raw_payload) VALUES (s.id, s.payload)"
)


@pytest.mark.parametrize("statement", [UPSERT, MERGE], ids=["upsert", "merge"])
@pytest.mark.both_servers
def test_an_upsert_is_an_insert_or_a_new_payload(
    connection: psycopg.Connection, notices: TableConfig, statement: str, postgres_server: PostgresServer
) -> None:
    if statement is MERGE and postgres_server.version < 15:
        pytest.skip("MERGE came with PostgreSQL 15")
    connection.execute(statement, [LARGE])
    assert row(connection).status == "pending_move"
    connection.execute("DELETE FROM notices")
    put_in_state(connection, notices, "pending_move")
    connection.execute("UPDATE notices SET id = 1")
    connection.execute(statement, [SMALL])
    assert row(connection) == Row("inline", SMALL, None, None, None, is_dated=False)


def test_an_upsert_onto_a_payload_in_storage_replaces_it(connection: psycopg.Connection, notices: TableConfig) -> None:
    put_in_state(connection, notices, "in_storage")
    connection.execute(UPSERT, [LARGE])
    assert row(connection).status == "pending_move"
    assert row(connection).has_no_pointer


def test_an_upsert_that_edits_in_place_is_refused(connection: psycopg.Connection, notices: TableConfig) -> None:
    put_in_state(connection, notices, "in_storage")
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        connection.execute(UPSERT.replace("= excluded.", "= notices.raw_payload || excluded."), [SMALL])


# Saved by an ORM that leaves the large column out


STALE = {
    "pending_move": (59, None, None),
    "inline": (None, None, None),
    "copied": (59, "acme/notices/1/other", "other"),
    "expired": (None, None, None),
}


@pytest.mark.both_servers
@pytest.mark.parametrize("status", STALE)
def test_stale_pointer_columns_saved_without_the_payload_do_not_undo_a_release(
    connection: psycopg.Connection, notices: TableConfig, status: str
) -> None:
    put_in_state(connection, notices, "in_storage")
    before = row(connection)
    connection.execute(
        "UPDATE notices SET payload_storage_status = %s, payload_bytes = %s, raw_object_key = %s,"
        " payload_hash_sha256 = %s, payload_stored_at = NULL",
        (status, *STALE[status]),
    )
    assert row(connection) == before


@pytest.mark.parametrize("state", ["inline", "pending_move", "copied"])
def test_a_stale_pointer_over_a_newer_payload_is_not_believed(
    connection: psycopg.Connection, notices: TableConfig, state: str
) -> None:
    put_in_state(connection, notices, state)
    before = row(connection)
    connection.execute(
        "UPDATE notices SET payload_storage_status = 'in_storage', payload_bytes = 5, raw_object_key = 'k/old',"
        " payload_hash_sha256 = 'old', payload_stored_at = now()"
    )
    assert row(connection) == before


@pytest.mark.parametrize("state", ["inline", "pending_move", "copied"])
def test_a_row_that_got_a_payload_since_it_expired_is_not_expired_again_by_stale_columns(
    connection: psycopg.Connection, notices: TableConfig, state: str
) -> None:
    put_in_state(connection, notices, state)
    before = row(connection)
    connection.execute(
        "UPDATE notices SET payload_storage_status = 'expired', payload_bytes = NULL, raw_object_key = NULL,"
        " payload_hash_sha256 = NULL, payload_stored_at = NULL"
    )
    assert row(connection) == before
