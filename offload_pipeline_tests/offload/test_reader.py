"""Application code reads payloads by key, wherever they are, or is told what is wrong with them."""

import datetime as dt
import gzip
import hashlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from offload_pipeline.errors import (
    NotInStoreError,
    ObjectDamagedError,
    ObjectMissingError,
    OffloadError,
    PayloadExpiredError,
    RowNotFoundError,
    StoreChangedError,
    StoreDeniedError,
    StoreUnavailableError,
    TransientError,
    UserError,
)
from offload_pipeline.offload import reader as reader_module
from offload_pipeline.offload.reader import PayloadReader, ReadPayload
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_pipeline
from offload_pipeline_tests.faults.proxy import FaultyProxy
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed
from offload_pipeline_tests.offload.stores import CountingStore, HookedStore, altered, truncated
from offload_pipeline_tests.offload.worker import REPOSITORY
from offload_pipeline_tests.servers import PostgresServer

ODD = '{"a": 1.10, "b": 1e400, "ü": "\\u0007"}'


@pytest.fixture
def reader(notices: Installation) -> Iterator[PayloadReader]:
    with PayloadReader(notices.pipeline) as reader:
        yield reader


def canonical(notices: Installation, key: Any) -> bytes:
    row = notices.execute("SELECT convert_to(raw_payload::text, 'UTF8') FROM {table} WHERE id = %s", key).fetchone()
    assert row is not None
    return bytes(row[0])


def expire(notices: Installation, key: Any, payload: str | None = None) -> None:
    """As the end of its retention leaves a row that was in storage."""
    notices.execute(
        "UPDATE {table} SET raw_payload = %s, payload_storage_status = 'expired', raw_object_key = NULL WHERE id = %s",
        payload, key,
    )  # fmt: skip
    assert notices.statuses()[key] == "expired"


# One payload


@pytest.mark.both_servers
def test_the_same_bytes_come_from_the_row_and_from_the_store(notices: Installation, reader: PayloadReader) -> None:
    (key,) = notices.insert([ODD])
    wanted = canonical(notices, key)
    for step, source, status in (
        (lambda: None, "row", "pending_move"),
        (notices.copy, "row", "copied"),
        (notices.drain, "store", "in_storage"),
    ):
        step()
        found = reader.get("notices", key)
        assert (found.payload, found.source, found.status) == (wanted, source, status)
        assert found.sha256 == hashlib.sha256(wanted).hexdigest()
        assert (found.object_key is None) == (status == "pending_move")


def test_a_row_without_payload_is_no_error(notices: Installation, reader: PayloadReader) -> None:
    (key,) = notices.insert([None])
    assert reader.get("notices", key) == ReadPayload(None, "row", "inline", None, None)


def test_a_row_older_than_the_trigger_has_its_payload(notices: Installation, reader: PayloadReader) -> None:
    (key,) = notices.insert([ODD])
    notices.execute("UPDATE {table} SET payload_storage_status = NULL, payload_bytes = NULL")
    assert reader.get("notices", key).status is None
    assert reader.get("notices", key).payload == canonical(notices, key)


KEYS: list[tuple[dict[str, str], dict[str, Any], list[Any]]] = [
    ({"id": "bigint"}, {"id": -5}, [-5, "-5", (-5,), ["-5"]]),
    ({"id": "text"}, {"id": "a,b %2C"}, ["a,b %2C", ("a,b %2C",)]),
    ({"id": "uuid"}, {"id": uuid.UUID(int=7)}, [uuid.UUID(int=7), str(uuid.UUID(int=7))]),
    ({"id": "boolean"}, {"id": True}, [True, "true"]),
    (
        {"region": "text", "day": "date", "n": "numeric"},
        {"region": "a,b%", "day": dt.date(2026, 2, 1), "n": "1.50"},
        [("a,b%", dt.date(2026, 2, 1), "1.50"), ("a,b%", "2026-02-01", 1.5), "a%2Cb%25,2026-02-01,1.5"],
    ),
    (
        {"moment": "timestamptz"},
        {"moment": "2026-02-01 12:00:00.25+01"},
        [dt.datetime(2026, 2, 1, 11, 0, 0, 250_000, dt.UTC), "2026-02-01 11:00:00.25+00"],
    ),
]


@pytest.mark.parametrize(
    ("columns", "values", "given"), KEYS, ids=["number", "text", "uuid", "boolean", "composite", "moment"]
)
@pytest.mark.both_servers
def test_a_key_is_a_value_a_tuple_of_values_or_text(
    database_url: str, local_store_url: str, columns: dict[str, str], values: dict[str, Any], given: list[Any]
) -> None:
    with installed(database_url, local_store_url, key_columns=columns) as notices:
        insert_payloads(notices.connection, notices.config, ['{"a": 1}'], **{k: str(v) for k, v in values.items()})
        notices.drain()
        with PayloadReader(notices.pipeline) as reader:
            assert [reader.get("notices", key).payload for key in given] == [b'{"a": 1}'] * len(given)


@pytest.mark.parametrize("key", [(1, 2), (), (None,), None, "x", "1.5", "99999999999999999999"], ids=repr)
def test_what_can_be_no_key_is_one_line_that_names_the_columns(reader: PayloadReader, key: Any) -> None:
    with pytest.raises(UserError, match=r"^notices: [^\n]*\bid\b[^\n]*$"):
        reader.get("notices", key)


def test_what_can_be_no_key_is_its_own_error_among_many(notices: Installation, reader: PayloadReader) -> None:
    first, last = notices.insert(['{"n": 1}', '{"n": 2}'])
    given: list[Any] = [None, "x", first, (1, 2), (), "x", last, None]
    found = list(reader.get_many("notices", given))
    assert [key for key, _ in found] == given
    outcomes = [outcome for _, outcome in found]
    assert [one.payload for one in outcomes if isinstance(one, ReadPayload)] == [b'{"n": 1}', b'{"n": 2}']
    assert [isinstance(one, UserError) for one in outcomes] == [True, True, False, True, True, True, False, True]


def test_a_table_that_is_not_configured_is_one_line(reader: PayloadReader) -> None:
    with pytest.raises(UserError, match="no table 'notes'"):
        reader.get("notes", 1)


def test_each_way_to_fail_has_its_error(notices: Installation, reader: PayloadReader) -> None:
    missing, damaged, swapped, expired, cleared = notices.insert(large_payload(1000, seed) for seed in range(5))
    notices.drain()
    notices.store.delete(notices.object_key(missing))
    notices.store.put(notices.object_key(damaged), truncated(notices.store.get(notices.object_key(damaged))))
    notices.store.put(notices.object_key(swapped), notices.store.get(notices.object_key(cleared)))
    expire(notices, expired, '{"deleted": true}')
    expire(notices, cleared)
    wanted: dict[Any, type[OffloadError]] = {
        missing: ObjectMissingError, damaged: ObjectDamagedError, swapped: ObjectDamagedError,
        expired: PayloadExpiredError, cleared: PayloadExpiredError, 999: RowNotFoundError,
    }  # fmt: skip
    for key, error in wanted.items():
        with pytest.raises(error, match=r"^[^\n]+$"):
            reader.get("notices", key)
    outcomes = dict(reader.get_many("notices", wanted))
    assert {key: type(outcome) for key, outcome in outcomes.items()} == wanted
    assert str(outcomes[expired]) == f"notices {expired}: the payload's retention is over, and it was given up"


@pytest.mark.parametrize("spoil", [truncated, altered])
def test_a_damaged_object_is_never_handed_out(
    notices: Installation, reader: PayloadReader, spoil: Callable[[bytes], bytes]
) -> None:
    (key,) = notices.insert([large_payload(1000)])
    notices.drain()
    notices.store.put(notices.object_key(key), spoil(notices.store.get(notices.object_key(key))))
    with pytest.raises(ObjectDamagedError):
        reader.get("notices", key)


def test_half_a_pointer_written_past_the_trigger_is_damage(notices: Installation, reader: PayloadReader) -> None:
    (key,) = notices.insert([ODD])
    notices.drain()
    notices.connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
    notices.execute("UPDATE {table} SET payload_hash_sha256 = NULL")
    with pytest.raises(ObjectDamagedError, match="pointer is incomplete"):
        reader.get("notices", key)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("403", StoreDeniedError), ("500", StoreUnavailableError), ("no answer", StoreUnavailableError)],
)
def test_a_store_that_denies_or_fails_is_told_apart(
    behind_proxy: Installation, proxy: FaultyProxy, fault: str, error: type[OffloadError]
) -> None:
    stored, held = behind_proxy.insert([ODD, ODD])
    behind_proxy.drain()
    behind_proxy.write(held, '{"in": "the row"}')
    with PayloadReader(behind_proxy.pipeline) as reader:
        proxy.faults = {"GET": fault}
        with pytest.raises(error):
            reader.get("notices", stored)
        outcomes = dict(reader.get_many("notices", [stored, held]))
        assert isinstance(outcomes[stored], error)
        assert isinstance(outcomes[held], ReadPayload)
        proxy.heal()
        assert reader.get("notices", stored).source == "store"


@pytest.mark.parametrize("fault", ["cut", "truncated", "altered"])
def test_bytes_spoilt_on_their_way_are_an_error_and_not_a_payload(
    behind_proxy: Installation, proxy: FaultyProxy, fault: str
) -> None:
    (key,) = behind_proxy.insert([large_payload(3000)])
    behind_proxy.drain()
    proxy.faults = {"GET": fault}
    with PayloadReader(behind_proxy.pipeline) as reader, pytest.raises((ObjectDamagedError, StoreUnavailableError)):
        reader.get("notices", key)


# Another store than the partition's


def elsewhere(notices: Installation, folder: Path) -> PayloadReader:
    folder.mkdir()
    return PayloadReader(make_pipeline(notices.database_url, folder.as_uri(), [notices.config]))


def test_an_object_that_is_in_another_store_is_not_called_missing(notices: Installation, tmp_path: Path) -> None:
    (key,) = notices.insert([ODD])
    notices.drain()
    with elsewhere(notices, tmp_path / "elsewhere") as reader:
        with pytest.raises(StoreChangedError, match=r"object_store\.url is .*elsewhere"):
            reader.get("notices", key)
        assert isinstance(dict(reader.get_many("notices", [key]))[key], StoreChangedError)


def test_an_object_that_has_been_moved_to_the_new_store_already_is_read_there(
    notices: Installation, tmp_path: Path
) -> None:
    (key,) = notices.insert([ODD])
    wanted = canonical(notices, key)
    notices.drain()
    with elsewhere(notices, tmp_path / "elsewhere") as reader:
        reader._pipeline.store.put(notices.object_key(key), notices.store.get(notices.object_key(key)))
        assert reader.get("notices", key).payload == wanted


# Rows that move on while they are read


def replace_payload(notices: Installation, key: Any, payload: str) -> None:
    """The application writes anew, the pipeline moves that too, and garbage collection takes the old object."""
    old = notices.object_key(key)
    notices.write(key, payload)
    assert notices.drain().is_sound
    notices.store.delete(old)


def put_back(notices: Installation, key: Any) -> None:
    old = notices.object_key(key)
    data = gzip.decompress(notices.store.get(old)).decode()
    notices.execute("UPDATE {table} SET raw_payload = %s, raw_object_key = NULL WHERE id = %s", data, key)
    notices.store.delete(old)


def reader_beside(notices: Installation, *actions: Callable[[], None]) -> PayloadReader:
    """Before each object that is asked for, the next of these happens."""
    rest = iter(actions)
    store = HookedStore(notices.store, before_get=lambda _key: next(rest, lambda: None)())
    return PayloadReader(replace(notices.pipeline, store=store))


def test_a_payload_that_was_replaced_meanwhile_is_followed(notices: Installation) -> None:
    (key,) = notices.insert(['{"n": 1}'])
    notices.drain()
    with reader_beside(notices, lambda: replace_payload(notices, key, '{"n": 2}')) as reader:
        found = reader.get("notices", key)
    assert (found.payload, found.source) == (b'{"n": 2}', "store")


def test_a_payload_that_was_restored_meanwhile_comes_from_the_row(notices: Installation) -> None:
    (key,) = notices.insert([ODD])
    wanted = canonical(notices, key)
    notices.drain()
    with reader_beside(notices, lambda: put_back(notices, key)) as reader:
        found = dict(reader.get_many("notices", [key]))[key]
    assert isinstance(found, ReadPayload)
    assert (found.payload, found.source) == (wanted, "row")


def test_a_row_that_was_deleted_meanwhile_is_not_found(notices: Installation) -> None:
    (key,) = notices.insert([ODD])
    notices.drain()

    def delete() -> None:
        notices.store.delete(notices.object_key(key))
        notices.execute("DELETE FROM {table}")

    with reader_beside(notices, delete) as reader, pytest.raises(RowNotFoundError):
        reader.get("notices", key)


def test_a_row_that_always_moves_on_is_followed_only_so_often(notices: Installation) -> None:
    (key,) = notices.insert(['{"n": 0}'])
    notices.drain()
    moves = [lambda n=n: replace_payload(notices, key, f'{{"n": {n}}}') for n in range(1, 6)]
    with reader_beside(notices, *moves) as reader, pytest.raises(ObjectMissingError):
        reader.get("notices", key)
    assert notices.execute("SELECT count(*) FROM {table} WHERE raw_object_key IS NOT NULL").fetchone() == (1,)
    assert gzip.decompress(notices.store.get(notices.object_key(key))) == b'{"n": 3}', "after the third look"


def test_an_object_that_stays_missing_is_asked_for_once(notices: Installation) -> None:
    (key,) = notices.insert([ODD])
    notices.drain()
    notices.store.delete(notices.object_key(key))
    store = CountingStore(notices.store)
    with PayloadReader(replace(notices.pipeline, store=store)) as reader, pytest.raises(ObjectMissingError):
        reader.get("notices", key)
    assert store.gets.total() == 1


# Many payloads


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys each statement was given."""
    found: list[int] = []
    fetch = reader_module._fetch

    def counted(connection: psycopg.Connection, table: Any, keys: list[Any]) -> Any:
        found.append(len(keys))
        return fetch(connection, table, keys)

    monkeypatch.setattr(reader_module, "_fetch", counted)
    return found


@pytest.mark.both_servers
def test_many_payloads_take_one_statement_a_page_and_keep_their_order(
    notices: Installation, reader: PayloadReader, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "PAGE_KEYS", 10)
    keys = notices.insert(f'{{"n": {number}}}' for number in range(25))
    notices.drain()
    held = notices.insert(f'{{"held": {number}}}' for number in range(5))
    wanted = {key: canonical(notices, key) for key in held} | {
        key: f'{{"n": {number}}}'.encode() for number, key in enumerate(keys)
    }
    asked = [*held, *reversed(keys), keys[0], str(keys[1])]
    found = list(reader.get_many("notices", iter(asked)))
    assert [key for key, _ in found] == asked
    for key, outcome in found:
        assert isinstance(outcome, ReadPayload)
        assert outcome.payload == wanted[int(key)]
        assert outcome.source == ("row" if key in held else "store")
    assert looks == [10, 10, 10, 2]


def test_many_payloads_are_read_as_they_are_consumed(notices: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "PAGE_KEYS", 5)
    keys = notices.insert(large_payload(200, number) for number in range(20))
    notices.drain()
    store = CountingStore(notices.store)
    with PayloadReader(replace(notices.pipeline, store=store)) as reader:
        many = reader.get_many("notices", keys)
        assert store.gets.total() == 0
        assert next(many)[0] == keys[0]
        many.close()
        assert store.gets.total() <= 5
        assert len(dict(reader.get_many("notices", keys))) == 20


@pytest.mark.parametrize("held", [True, False])
def test_a_page_ends_with_the_payload_that_fills_it(
    notices: Installation, reader: PayloadReader, looks: list[int], monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    monkeypatch.setattr(reader_module, "PAGE_BYTES", 2500)
    keys = notices.insert(large_payload(1000, number) for number in range(10))
    wanted = {key: canonical(notices, key) for key in keys}
    if not held:
        notices.drain()
    found = dict(reader.get_many("notices", [*keys, 999]))
    assert isinstance(found.pop(999), RowNotFoundError)
    assert {key: outcome.payload for key, outcome in found.items() if isinstance(outcome, ReadPayload)} == wanted
    assert looks == [11, 8, 5, 2], "three payloads of about a kilobyte a page"


def test_one_key_that_is_none_spoils_no_other(notices: Installation, reader: PayloadReader) -> None:
    first, second = notices.insert([ODD, ODD])
    found = dict(reader.get_many("notices", [first, "x", second]))
    assert isinstance(found["x"], UserError)
    assert str(found["x"]).endswith("the key is id bigint")
    assert isinstance(found[first], ReadPayload)
    assert isinstance(found[second], ReadPayload)


MANY = """
import sys
from offload_pipeline import open_reader
from offload_pipeline_tests.offload.worker import peak_megabytes
from offload_pipeline.config import Config
with open_reader() as reader:
    read = sum(len(found.payload) for _, found in reader.get_many("notices", range(1, int(sys.argv[1]) + 1)))
print(read, peak_megabytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("is_stored", [True, False])
def test_memory_does_not_grow_with_the_keys(
    notices: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    notices.execute(
        "INSERT INTO {table} (tenant_id, raw_payload)"
        " SELECT 'acme', jsonb_build_object('noise', repeat(md5(n::text), 10000)) FROM generate_series(1, 500) AS n"
    )
    if is_stored:
        notices.drain()
    config = tmp_path / "offload.yaml"
    config.write_text(json.dumps(notices.pipeline.config.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
    monkeypatch.setenv("OFFLOAD_CONFIG", str(config))
    peaks = {}
    for count in (100, 500):
        done = subprocess.run(
            [sys.executable, "-c", MANY, str(count)], cwd=REPOSITORY, check=True, capture_output=True, text=True
        )
        read, peak = done.stdout.split()
        assert int(read) > count * 320_000
        peaks[count] = float(peak)
    assert peaks[500] - peaks[100] < 60, f"160 MB of payloads, {peaks}"


# Its connection


def test_a_connection_that_was_cut_is_opened_again(notices: Installation, reader: PayloadReader) -> None:
    (key,) = notices.insert([ODD])
    reader.get("notices", key)
    notices.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'offload_pipeline'"
    )
    assert reader.get("notices", key).payload == canonical(notices, key)
    reader.close()
    assert reader.get("notices", key).payload == canonical(notices, key)


def test_a_database_that_is_down_is_one_line_and_passes(
    database_url: str, local_store_url: str, postgres_server: PostgresServer
) -> None:
    with installed(database_url, local_store_url) as notices, PayloadReader(notices.pipeline) as reader:
        (key,) = notices.insert([ODD])
        reader.get("notices", key)
        notices.connection.close()
        postgres_server.stop()
        try:
            with pytest.raises(TransientError, match=r"^[^\n]+$"):
                reader.get("notices", key)
            with pytest.raises(TransientError):
                list(reader.get_many("notices", [key]))
        finally:
            postgres_server.start()
        assert reader.get("notices", key).status == "pending_move"


def test_a_database_without_the_bookkeeping_says_how_to_mend_it(notices: Installation, reader: PayloadReader) -> None:
    (key,) = notices.insert([ODD])
    notices.connection.execute("DROP TABLE payload_offload_state")
    with pytest.raises(UserError, match="run: offload install"):
        reader.get("notices", key)


def test_threads_share_a_reader(notices: Installation, reader: PayloadReader) -> None:
    keys = notices.insert(f'{{"n": {number}}}' for number in range(40))
    notices.drain()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda key: reader.get("notices", key).payload, keys * 3))
    assert found == [f'{{"n": {number}}}'.encode() for number in range(40)] * 3


# Addresses


def test_an_address_gives_gzipped_json_to_any_http_client(database_url: str, s3_store: StoreAddress) -> None:
    with installed(database_url, s3_store) as notices, PayloadReader(notices.pipeline) as reader:
        (key,) = notices.insert([ODD], tenant="50% of it")
        wanted = canonical(notices, key)
        notices.drain("50% of it")
        address = reader.url("notices", key, timedelta(minutes=5))
        assert parse_qs(urlsplit(address).query)["X-Amz-Expires"] == ["300"]
        with urllib.request.urlopen(address) as answer:  # noqa: S310 - an http address that the store made
            assert (answer.headers["Content-Encoding"], answer.headers["Content-Type"]) == ("gzip", "application/json")
            assert gzip.decompress(answer.read()) == wanted
        curl = subprocess.run(["curl", "-sS", "--compressed", address], check=True, capture_output=True)
        assert curl.stdout == wanted
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address.replace("Signature=", "Signature=0"))  # noqa: S310


def test_there_is_no_address_of_what_is_not_in_the_store(database_url: str, s3_store: StoreAddress) -> None:
    with installed(database_url, s3_store) as notices, PayloadReader(notices.pipeline) as reader:
        expired, missing, held = notices.insert([ODD, '{"n": 2}', '{"n": 3}'])
        notices.drain()
        notices.write(held, ODD)
        notices.store.delete(notices.object_key(missing))
        expire(notices, expired)
        wanted = {held: NotInStoreError, missing: ObjectMissingError, expired: PayloadExpiredError, 9: RowNotFoundError}
        for key, error in wanted.items():
            with pytest.raises(error, match=r"^[^\n]+$"):
                reader.url("notices", key)


@pytest.mark.parametrize("expires_in", [timedelta(0), timedelta(seconds=-1), timedelta(days=7, seconds=1)])
def test_an_address_lasts_seven_days_at_most(database_url: str, s3_store: StoreAddress, expires_in: timedelta) -> None:
    with installed(database_url, s3_store) as notices, PayloadReader(notices.pipeline) as reader:
        (key,) = notices.insert([ODD])
        notices.drain()
        with pytest.raises(UserError, match="from one second to 7 days"):
            reader.url("notices", key, expires_in)


def test_a_folder_has_no_addresses(notices: Installation, reader: PayloadReader) -> None:
    (key,) = notices.insert([ODD])
    notices.drain()
    with pytest.raises(UserError, match=r"^file://\S+ is a folder, which has no addresses[^\n]*$"):
        reader.url("notices", key)


# The package


def test_reader_and_writer_are_imported_without_dagster() -> None:
    script = (
        "import sys; from offload_pipeline import PayloadReader, PayloadWriter, open_reader, open_writer\n"
        "assert not [name for name in sys.modules if name.startswith('dagster')]"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=REPOSITORY, check=True)


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(ImportError):
        from offload_pipeline import PayloadEraser  # noqa: F401
