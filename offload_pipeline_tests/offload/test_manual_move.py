"""A move by hand: SQL writes the pointer, the operator uploads, and nothing is freed that was not read whole."""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # boto's packages carry no type information
import psycopg
import pytest
from psycopg import Connection, errors, sql

from offload_pipeline.errors import UserError
from offload_pipeline.offload.reader import PayloadReader
from offload_pipeline.storage.seaweedfs import REGION, SeaweedFS
from offload_pipeline_tests.factories import install, large_payload, make_pipeline, make_table
from offload_pipeline_tests.offload.installation import Installation, installed
from offload_pipeline_tests.offload.stores import CountingStore, HookedStore, altered, truncated
from offload_pipeline_tests.offload.waiting import advisory_locks, in_thread, wait_until_blocked

PAYLOAD = '{"a": 1.10, "b": 1e400, "ü": "\\u0007"}'
FOLDER = "by-hand/2026"
APPLICATION = "the application"


@pytest.fixture
def application(notices: Installation) -> Iterator[Connection]:
    """In a transaction from its first statement on."""
    with psycopg.connect(notices.database_url, application_name=APPLICATION) as connection:
        yield connection


def move(
    notices: Installation, *key: Any, path: str | None = FOLDER, connection: Connection | None = None,
    name: str = "move_notices_payload_to_storage",
) -> Any:  # fmt: skip
    """What the function returns, as text."""
    call = sql.SQL("SELECT {}({})::text").format(
        sql.Identifier(name), sql.SQL(", ").join([sql.SQL("%s")] * (len(key) + 1))
    )
    row = (connection or notices.connection).execute(call, [*key, path]).fetchone()
    assert row is not None
    return row[0]


def gzipped(text: str) -> bytes:
    """As the command line's gzip packs it."""
    return subprocess.run(["gzip", "-n"], input=text.encode(), capture_output=True, check=True).stdout


def upload(notices: Installation, key: Any, payload: str) -> None:
    """With nothing of ours: a file in the store's folder."""
    path = (notices.store._folder or Path()) / notices.object_key(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzipped(payload))


# A whole life


@pytest.mark.both_servers
@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
def test_moved_by_hand_uploaded_verified_released_and_read_back(
    database_url: str, local_store_url: str, payload_type: str
) -> None:
    with installed(database_url, local_store_url, payload_type=payload_type) as notices:
        (key,) = notices.insert([PAYLOAD])
        payload = move(notices, key)
        assert notices.one_status() == "copied"
        assert notices.object_key(key) == f"{FOLDER}/{notices.expected[key]}.json.gz"
        upload(notices, key, payload)
        notices.assert_invariant()
        assert notices.release().rows_released == 0, "nobody has looked at the object yet"
        assert notices.verify(sample_rows=0).rows_read == 1
        assert notices.release().rows_released == 1
        assert notices.one_status() == "in_storage"
        notices.assert_invariant()
        with PayloadReader(notices.pipeline) as reader:
            assert (reader.get("notices", key).payload or b"").decode() == payload
        log = notices.connection.execute(
            "SELECT run_id, table_name, tenant_id, action, rows, bytes FROM payload_offload_log ORDER BY id"
        ).fetchall()
        assert log[0] == ("sql postgres", "notices", "acme", "manual move", 1, len(payload.encode()))


def test_moved_by_hand_to_s3(database_url: str, s3_url: str, seaweedfs: SeaweedFS) -> None:
    with installed(
        database_url, s3_url, sections={"object_store": {"endpoint": seaweedfs.endpoint}}, after_copy="reference"
    ) as notices:
        (key,) = notices.insert([large_payload(5000)])
        payload = move(notices, key, path="exports/{sha256}.gz")
        assert notices.object_key(key) == f"exports/{notices.expected[key]}.gz"
        client = boto3.client(
            "s3", endpoint_url=seaweedfs.endpoint, region_name=REGION,
            aws_access_key_id=seaweedfs.access_key, aws_secret_access_key=seaweedfs.secret_key,
        )  # fmt: skip
        bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
        client.put_object(
            Bucket=bucket, Key=f"{prefix}/{notices.object_key(key)}", Body=gzipped(payload),
            ContentEncoding="gzip", ContentType="application/json",
        )  # fmt: skip
        client.close()
        assert notices.drain().is_sound
        assert notices.one_status() == "in_storage"
        notices.assert_invariant()


def test_a_payload_below_the_threshold_may_be_moved_by_hand(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, threshold_bytes=100_000) as notices:
        (key,) = notices.insert([PAYLOAD])
        assert notices.one_status() == "inline"
        upload_after_moving(notices, key)
        assert notices.drain().is_sound
        assert notices.one_status() == "in_storage"


def upload_after_moving(notices: Installation, key: Any) -> None:
    upload(notices, key, move(notices, key))


@pytest.mark.parametrize("state", ["never seen", "restored"])
def test_a_row_that_the_pipeline_would_leave_alone_may_be_moved_by_hand(notices: Installation, state: str) -> None:
    (key,) = notices.insert([PAYLOAD])
    if state == "restored":
        notices.drain()
        notices.execute(
            "UPDATE {table} SET raw_payload = %s, payload_storage_status = 'inline', raw_object_key = NULL", PAYLOAD
        )
    else:
        notices.execute("UPDATE {table} SET payload_storage_status = NULL, payload_bytes = NULL")
    upload_after_moving(notices, key)
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


def test_where_payloads_are_kept_a_move_by_hand_ends_with_the_copy(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, after_copy="keep") as notices:
        (key,) = notices.insert([PAYLOAD])
        upload_after_moving(notices, key)
        assert notices.drain().is_sound
        assert notices.one_status() == "copied"
        notices.assert_invariant()


# Not, or wrongly, uploaded


@pytest.mark.both_servers
def test_what_was_never_uploaded_is_queued_again_and_moved_by_the_pipeline(notices: Installation) -> None:
    (key,) = notices.insert([PAYLOAD])
    move(notices, key)
    assert not notices.verify(sample_rows=0).passed
    assert notices.release().rows_released == 0
    assert notices.one_status() == "pending_move"
    assert notices.failures()[str(key)]["error_class"] == "ObjectMissingError"
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    assert not notices.object_key(key).startswith(FOLDER)
    assert notices.failures()[str(key)]["resolved_at"] is not None
    notices.assert_invariant()


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "cut": truncated,
    "not gzipped": lambda _: PAYLOAD.encode(),
    "another payload of the same size": lambda _: gzipped(PAYLOAD.replace("1.10", "1.11")),
    "a bit flipped": altered,
    "with a line end": lambda _: gzipped(PAYLOAD + "\n"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_upload_is_always_noticed_and_nothing_is_freed(notices: Installation, wrong: str) -> None:
    first, key, last = notices.insert([large_payload(100), PAYLOAD, large_payload(100, 1)])
    upload_after_moving(notices, key)
    object_key = notices.object_key(key)
    notices.store.put(object_key, WRONG[wrong](notices.store.get(object_key)))
    drained = notices.drain()
    assert (drained.copied.rows_copied, drained.released.rows_released) == (2, 0)
    assert [damage.named.key for damage in drained.verified.damaged] == [(str(key),)]
    assert notices.statuses() == {first: "copied", key: "pending_move", last: "copied"}
    notices.assert_invariant()
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


def test_only_a_pass_over_a_move_by_hand_reads_every_new_object(notices: Installation) -> None:
    keys = notices.insert(large_payload(100, number) for number in range(10))
    upload_after_moving(notices, keys[0])
    notices.copy()
    assert notices.verify(sample_rows=0).rows_read == 10
    notices.insert([PAYLOAD])
    notices.copy()
    assert notices.verify(sample_rows=0).rows_read == 0


# Together with verification


@pytest.mark.both_servers
def test_the_mark_does_not_pass_a_move_that_is_not_committed_yet(
    notices: Installation, application: Connection
) -> None:
    (key,) = notices.insert([PAYLOAD])
    move(notices, key, connection=application)
    with in_thread(lambda: notices.verify(sample_rows=0)) as verification:
        wait_until_blocked(notices.connection)
        application.commit()
        assert [damage.named.key for damage in verification.result().damaged] == [(str(key),)]
    assert notices.release().rows_released == 0
    notices.assert_invariant()


def test_a_move_stamps_itself_after_a_mark_that_is_ahead_of_the_clock(notices: Installation) -> None:
    (key,) = notices.insert([PAYLOAD])
    notices.verify()
    notices.connection.execute(
        "UPDATE payload_offload_state SET verification_mark = tomorrow, verified_through = tomorrow"
        " FROM (SELECT clock_timestamp() + interval '1 day' AS tomorrow OFFSET 0) AS clock"
    )
    move(notices, key)
    assert notices.release().rows_released == 0
    assert not notices.verify(sample_rows=0).passed


def test_a_move_that_is_rolled_back_leaves_nothing(notices: Installation, application: Connection) -> None:
    (key,) = notices.insert([PAYLOAD])
    move(notices, key, connection=application)
    application.rollback()
    assert notices.one_status() == "pending_move"
    for table in ("payload_offload_state", "payload_offload_log"):
        assert notices.connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608
    assert advisory_locks(notices.connection) == 0


# Together with the copier

KEYS = [
    ({"id": "bigint"}, {"id": -5}),
    ({"region": "text", "n": "integer"}, {"region": "a,b%25 %", "n": 7}),
    ({"day": "date", "moment": "timestamptz", "size": "double precision"},
     {"day": "2026-02-01", "moment": "2026-02-01 12:00:00.25+01", "size": "0.30000000000000004"}),
]  # fmt: skip


@pytest.mark.both_servers
@pytest.mark.parametrize(("columns", "values"), KEYS, ids=["one column", "separators", "printed by settings"])
def test_the_copier_passes_over_a_row_that_is_being_moved_by_hand(
    database_url: str, local_store_url: str, columns: dict[str, str], values: dict[str, Any]
) -> None:
    with (
        installed(database_url, local_store_url, key_columns=columns) as notices,
        psycopg.connect(database_url) as application,
    ):
        notices.insert([PAYLOAD], **values)
        for setting in ("TimeZone = 'America/Bogota'", "DateStyle = 'SQL, DMY'", "extra_float_digits = -10"):
            application.execute(f"SET {setting}")
        typed = ", ".join(f"%s::{type_}" for type_ in columns.values())
        application.execute(
            f"SELECT move_notices_payload_to_storage({typed}, %s)", [*values.values(), FOLDER]
        )  # fmt: skip
        store = CountingStore(notices.store)
        assert notices.with_store(store).copy().rows_copied == 0
        assert store.puts.total() == 0
        application.commit()
        assert notices.one_status() == "copied"


@pytest.mark.both_servers
def test_a_move_by_hand_waits_for_the_copier_that_has_the_row_and_then_is_refused(
    notices: Installation, application: Connection
) -> None:
    (key,) = notices.insert([PAYLOAD])

    with ThreadPoolExecutor(1) as threads:
        moves: list[Future[Any]] = []

        def begin(_: str) -> None:
            moves.append(threads.submit(move, notices, key, connection=application))
            wait_until_blocked(notices.connection, APPLICATION)

        assert notices.with_store(HookedStore(notices.store, after_put=begin)).copy().rows_copied == 1
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="copied already, as acme/notices/"):
            moves[0].result(timeout=60)
    application.rollback()
    assert notices.drain().is_sound
    notices.assert_invariant()


def test_a_move_by_hand_closes_what_failed_before(notices: Installation) -> None:
    (key,) = notices.insert([PAYLOAD])
    notices.connection.execute(
        "INSERT INTO payload_offload_failures (table_name, tenant_id, primary_key, stage, error_class, message)"
        " SELECT 'notices', 'acme', %s::text, stage, 'X', 'x' FROM unnest(ARRAY['copy', 'write', 'verify']) AS stage",
        [key],
    )
    move(notices, key)
    open_stages = "SELECT stage FROM payload_offload_failures WHERE resolved_at IS NULL"
    assert notices.connection.execute(open_stages).fetchall() == [("verify",)]


# Paths


@pytest.mark.parametrize(
    ("path", "object_key"),
    [
        ("folder", "folder/{sha256}.json.gz"),
        ("folder/", "folder/{sha256}.json.gz"),
        ("a/b=c/{sha256}.gz", "a/b=c/{sha256}.gz"),
        ("{sha256}", "{sha256}"),
        ("a/{sha256}/payload.json.gz", "a/{sha256}/payload.json.gz"),
        ("50%25%20%7Bof%7D,x~y/..a", "50%25%20%7Bof%7D,x~y/..a/{sha256}.json.gz"),
    ],
)
def test_the_path_is_a_folder_or_has_the_hash_in_it(notices: Installation, path: str, object_key: str) -> None:
    (key,) = notices.insert([PAYLOAD])
    upload_path = object_key.replace("{sha256}", str(notices.expected[key]))
    upload_this = move(notices, key, path=path)
    assert notices.object_key(key) == upload_path
    upload(notices, key, upload_this)
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"


@pytest.mark.both_servers
@pytest.mark.parametrize(
    "path",
    [
        None, "", "/", "//", "/absolute", "..", "../up", "a/../b", "a/./b", "a//b", "a/..", " ", "a b", "a\nb", "a\n",
        "{sha256}/.a.b.part", "é", "a\\b", "{tenant}/x", "a?b", "a#b", "{sha256}/", "x" * 256, "x/" * 600, "s3://bucket/x",
    ],
)  # fmt: skip
def test_a_path_that_is_no_object_key_is_refused(notices: Installation, path: str | None) -> None:
    (key,) = notices.insert([PAYLOAD])
    with pytest.raises(errors.InvalidParameterValue, match="is no object key") as caught:
        move(notices, key, path=path)
    assert "folder/{sha256}.json.gz" in (caught.value.diag.message_hint or "")
    assert notices.one_status() == "pending_move"


# Refused


def test_what_cannot_be_moved_says_why(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, max_object_bytes=500) as notices:
        copied, stored, expired, empty, large = notices.insert(
            [PAYLOAD, '{"n": 2}', '{"n": 3}', None, large_payload(1000)]
        )
        (nobodys,) = notices.insert([PAYLOAD])
        notices.execute("UPDATE {table} SET tenant_id = NULL WHERE id = %s", nobodys)
        notices.drain()
        notices.execute(
            "UPDATE {table} SET raw_payload = NULL, payload_storage_status = 'expired', raw_object_key = NULL"
            " WHERE id = %s", expired,
        )  # fmt: skip
        notices.write(copied, PAYLOAD.replace("1.10", "1.20"))
        notices.copy()
        wrong_state = errors.ObjectNotInPrerequisiteState
        wanted: dict[Any, tuple[type[psycopg.Error], str]] = {
            999: (errors.NoDataFound, "notices: no row has this key"),
            copied: (wrong_state, f"notices {copied}: the payload is copied already, as acme/notices/"),
            stored: (wrong_state, f"notices {stored}: the payload is in storage already, as acme/notices/"),
            expired: (wrong_state, f"notices {expired}: the payload is expired"),
            empty: (wrong_state, f"notices {empty}: the row has no payload"),
            nobodys: (wrong_state, f"notices {nobodys}: its tenant is NULL"),
            large: (errors.ProgramLimitExceeded, f"notices {large}: the payload is 999 bytes, max_object_bytes is 500"),
        }
        before = notices.statuses()
        for key, (error, message) in wanted.items():
            with pytest.raises(error, match=f"^{message}"):
                move(notices, key)
        assert notices.statuses() == before


def test_another_store_than_the_partitions_is_refused(notices: Installation, tmp_path: Path) -> None:
    notices.insert([large_payload(100)])
    notices.drain()
    (key,) = notices.insert([PAYLOAD])
    install(make_pipeline(notices.database_url, (tmp_path / "elsewhere").as_uri(), [notices.config]))
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"its objects are in file://.*installed for file"):
        move(notices, key)
    assert notices.statuses()[key] == "pending_move"


# Names


def functions(connection: Connection) -> set[str]:
    rows = connection.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc AS p"
        " WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'move%'"
    )
    return {name for (name,) in rows}


@pytest.mark.parametrize(
    ("names", "plain_for"),
    [(["notices"], "notices"), (["notices", "mails"], None), (["mails", "activities"], "activities")],
)
def test_the_plain_name_is_for_the_only_table_or_for_activities(
    database_url: str, local_store_url: str, names: list[str], plain_for: str | None
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        types = {"notices": "bigint", "mails": "uuid", "activities": "integer"}
        tables = [make_table(connection, name=name, relation=name, key_columns={"id": types[name]}) for name in names]
        pipeline = make_pipeline(database_url, local_store_url, tables)
        install(pipeline)
        wanted = {f"move_{name}_payload_to_storage({types[name]},text)" for name in names}
        if plain_for:
            wanted.add(f"move_payload_to_storage({types[plain_for]},text)")
        assert functions(connection) == wanted
        assert install(pipeline) == []


def test_the_plain_name_goes_over_to_a_table_with_another_type_of_payload(
    database_url: str, local_store_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        notices = make_table(connection)
        install(make_pipeline(database_url, local_store_url, [notices]))
        activities = make_table(connection, name="activities", relation="activities", payload_type="text")
        pipeline = make_pipeline(database_url, local_store_url, [notices, activities])
        install(pipeline)
        assert install(pipeline) == []
        assert "move_payload_to_storage(bigint,text)" in functions(connection)
        connection.execute("INSERT INTO activities (tenant_id, raw_payload) VALUES ('acme', 'no JSON')")
        assert connection.execute("SELECT move_payload_to_storage(1, 'x')").fetchone() == ("no JSON",)


def test_a_function_of_the_applications_own_is_not_dropped(database_url: str, local_store_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE FUNCTION move_payload_to_storage(bigint, text) RETURNS void LANGUAGE sql AS ''")
        pipeline = make_pipeline(database_url, local_store_url, [make_table(connection)])
        with pytest.raises(
            UserError,
            match="is there already and not ours; rename or drop it",
        ):
            install(pipeline)


def test_the_plain_name_does_the_same(notices: Installation) -> None:
    (key,) = notices.insert([PAYLOAD])
    payload = move(notices, key, name="move_payload_to_storage")
    upload(notices, key, payload)
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"


@pytest.mark.both_servers
def test_odd_names_are_quoted(database_url: str, local_store_url: str) -> None:
    names = {"status": "sta%tus", "size": "si ze", "object_key": 'obj"ect', "hash": "{hash}", "stored_at": "stored%%At"}
    with installed(
        database_url, local_store_url, relation='"5% {of} ""it"""', payload="%s", key_columns={"i%d": "text"},
        tenant_column="te{n}ant", columns=names, sections={"database": {"schema": "public"}},
    ) as odd:  # fmt: skip
        odd.insert([PAYLOAD], tenant="50% of 'it'", **{"i%d": "a%b,c"})
        payload = move(odd, "a%b,c", path="x%20y")
        object_key = f"x%20y/{next(iter(odd.expected.values()))}.json.gz"
        odd.store.put(object_key, gzipped(payload))
        assert odd.drain("50% of 'it'").is_sound
        assert odd.one_status() == "in_storage"
        odd.assert_invariant()
