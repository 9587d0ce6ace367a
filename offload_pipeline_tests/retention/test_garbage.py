"""Garbage collection deletes what no row names and what is old enough, and nothing else."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from offload_pipeline.database.table import inspect_table
from offload_pipeline.errors import StoreUnavailableError, UserError
from offload_pipeline.retention import garbage
from offload_pipeline.retention.ownership import Scope
from offload_pipeline.storage import object_store
from offload_pipeline.storage.object_store import ObjectStore, StoredObject
from offload_pipeline_tests.factories import insert_payloads, install, make_pipeline, make_table
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed
from offload_pipeline_tests.retention.collecting import (
    MONTH,
    NO_GRACE,
    SHA256,
    age,
    collect,
    keys_in,
    logged,
    rewrite,
    tables_of,
)

PAYLOADS = [json.dumps({"n": number}) for number in range(10)]


def test_an_old_object_that_no_row_names_is_deleted_and_counted(database_url: str, any_store: StoreAddress) -> None:
    with installed(database_url, any_store) as notices:
        keys = notices.insert(PAYLOADS)
        notices.drain()
        orphan = rewrite(notices, keys[0])
        notices.drain()
        orphan_bytes = notices.store.head(orphan).bytes
        before = keys_in(notices.store)

        found = collect(notices).tables["notices"]

        assert (found.objects, found.named, found.orphans, found.deleted) == (11, 10, 1, 1)
        assert (found.orphan_bytes, found.deleted_bytes) == (orphan_bytes, orphan_bytes)
        assert keys_in(notices.store) == before - {orphan}
        assert logged(notices.connection, "gc") == (1, orphan_bytes)
        notices.assert_invariant()


def test_a_report_deletes_nothing(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    rewrite(notices, key)
    before = keys_in(notices.store)
    found = collect(notices, delete=False).tables["notices"]
    assert (found.orphans, found.deleted) == (1, 0)
    assert keys_in(notices.store) == before
    assert logged(notices.connection, "gc") == (0, 0)


def test_only_orphans_older_than_the_grace_are_deleted(notices: Installation) -> None:
    keys = notices.insert(PAYLOADS)
    notices.drain()
    old, young = rewrite(notices, keys[0]), rewrite(notices, keys[1])
    age(notices.store, [old, *(notices.object_key(key) for key in keys[2:])])
    found = collect(notices, grace=MONTH).tables["notices"]
    assert (found.named, found.young, found.orphans, found.deleted) == (8, 1, 1, 1)
    assert old not in keys_in(notices.store)
    assert young in keys_in(notices.store)
    notices.assert_invariant()


def test_a_second_collection_finds_nothing_to_delete(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    rewrite(notices, key)
    notices.drain()
    collect(notices)
    again = collect(notices).tables["notices"]
    assert (again.objects, again.named, again.orphans) == (1, 1, 0)


@pytest.mark.both_servers
def test_objects_of_rows_that_got_another_key_or_tenant_are_named(notices: Installation) -> None:
    first, second, third = notices.insert(PAYLOADS[:3])
    notices.drain()
    notices.execute("UPDATE {table} SET id = 1000 WHERE id = %s", first)
    notices.execute("UPDATE {table} SET tenant_id = 'globex' WHERE id = %s", second)
    notices.execute("UPDATE {table} SET id = %s WHERE id = %s", first, third)
    found = collect(notices).tables["notices"]
    assert (found.named, found.orphans) == (3, 0)
    notices.take_rows_as_expected()
    notices.expected = dict.fromkeys(notices.expected)
    assert notices.verify(full=True).passed
    assert notices.verify("globex", full=True).passed


def test_two_rows_that_share_an_object_name_it_until_the_last_is_gone(
    database_url: str, any_store: StoreAddress
) -> None:
    with installed(database_url, any_store, key_template="by-content/{table}/{sha256}.gz") as notices:
        first, second = notices.insert(['{"same": true}'] * 2)
        notices.drain()
        (shared,) = keys_in(notices.store)
        rewrite(notices, first)
        notices.drain()
        assert collect(notices).tables["notices"].orphans == 0
        rewrite(notices, second)
        notices.drain()
        assert collect(notices).tables["notices"].deleted == 1
        assert shared not in keys_in(notices.store)
        notices.assert_invariant()


def test_keys_shortened_by_a_hash_are_looked_up_in_every_row(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, key_columns={"id": "text"}) as notices:
        long_key, other = "x" * 400, "y" * 400
        notices.insert(PAYLOADS[:1], id=long_key)
        notices.insert(PAYLOADS[1:2], id=other)
        notices.drain()
        orphan = rewrite(notices, other)
        found = collect(notices).tables["notices"]
        assert (found.named, found.deleted) == (1, 1)
        assert orphan not in keys_in(notices.store)
        notices.assert_invariant()


@pytest.mark.both_servers
@pytest.mark.parametrize("key_type", ["bigint", "uuid", "timestamptz", "smallint", "numeric(4, 1)"])
def test_a_key_whose_text_is_no_value_of_the_columns_type_is_an_orphan_and_stops_nothing(
    database_url: str, local_store_url: str, key_type: str
) -> None:
    defaults = {
        "bigint": "GENERATED BY DEFAULT AS IDENTITY", "uuid": "DEFAULT gen_random_uuid()",
        "timestamptz": "DEFAULT clock_timestamp()", "smallint": "GENERATED BY DEFAULT AS IDENTITY",
        "numeric(4, 1)": "DEFAULT round(random()::numeric * 100, 1)",
    }  # fmt: skip
    with installed(database_url, local_store_url, key_columns={"id": f"{key_type} {defaults[key_type]}"}) as notices:
        notices.insert(PAYLOADS[:1])
        notices.drain()
        strange = ["abc", "99999999999999999999", "%00", "1,2", "%5F", "-", "a" * 254]
        for segment in strange:
            notices.store.put(f"acme/notices/{segment}/{SHA256}.json.gz", b"nobody's")
        found = collect(notices).tables["notices"]
        assert (found.named, found.orphans, found.deleted) == (1, len(strange), len(strange))
        notices.assert_invariant()


def test_another_spelling_of_a_rows_key_is_an_orphan(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    spelled = notices.object_key(key).replace(f"/{key}/", f"/00{key}/")
    notices.store.put(spelled, b"nobody's")
    found = collect(notices).tables["notices"]
    assert (found.named, found.deleted) == (1, 1)
    notices.assert_invariant()


AWKWARD = ["a/b", "Zoë, Inc.", "", ".", "..", "%2F", "~", "a,b", "a|b c", "%", "x" * 300, "..%2e"]


def test_awkward_tenants_and_keys_are_found_in_the_listing_as_the_rows_name_them(
    database_url: str, any_store: StoreAddress
) -> None:
    key_columns = {"part": "text", "number": "integer DEFAULT 1"}
    with installed(database_url, any_store, key_columns=key_columns) as notices:
        for tenant in AWKWARD:
            notices.insert(['{"a": 1}'], tenant=tenant, part=tenant + "/")
            notices.drain(tenant)
        named = {key for (key,) in notices.execute("SELECT raw_object_key FROM {table}").fetchall() if key is not None}
        assert keys_in(notices.store) == named
        assert len(named) == len(AWKWARD)
        found = collect(notices).tables["notices"]
        assert (found.named, found.orphans) == (len(AWKWARD), 0)
        for tenant in AWKWARD:
            narrowed = collect(notices, tenant=tenant).tables["notices"]
            assert (narrowed.objects, narrowed.named) == (1, 1)


FOREIGN = [
    f"acme/mails/1/{SHA256}.json.gz", f"acme/notices/1/{SHA256[:-1]}.json.gz", f"acme/notices/1/2/{SHA256}.json.gz",
    f"acme/notices/1/{SHA256}.json", f"acme/notices/1/{'A' * 64}.json.gz", "report.csv", f"notices/1/{SHA256}.json.gz",
    f"a b/notices/1/{SHA256}.json.gz", f"acme/notices/%2f/{SHA256}.json.gz", "archive/notices-2026.parquet",
]  # fmt: skip


def test_what_fits_no_template_is_foreign_and_never_touched(database_url: str, any_store: StoreAddress) -> None:
    with installed(database_url, any_store) as notices:
        for key in FOREIGN:
            notices.store.put(key, b"somebody else's")
        found = collect(notices)
        assert (found.foreign, found.foreign_bytes) == (len(FOREIGN), 15 * len(FOREIGN))
        assert found.tables["notices"].objects == 0
        assert keys_in(notices.store) == set(FOREIGN)


def test_objects_of_a_table_that_is_not_installed_are_foreign(notices: Installation) -> None:
    mails = make_table(notices.connection, name="mails", relation="public.mails")
    notices.store.put(f"acme/mails/1/{SHA256}.json.gz", b"nobody's here")
    bare = inspect_table(notices.connection, mails, "public")
    assert not bare.is_installed
    assert collect(notices).foreign == 1
    assert f"acme/mails/1/{SHA256}.json.gz" in keys_in(notices.store)


def with_mails(notices: Installation) -> Installation:
    """The same installation with a second table beside notices."""
    mails = make_table(notices.connection, name="mails", relation="public.mails", threshold_bytes=0)
    pipeline = make_pipeline(notices.database_url, notices.store.url, [notices.config, mails])
    install(pipeline)
    return replace(notices, pipeline=pipeline)


def test_narrowed_to_a_table_or_tenant_it_passes_over_the_others(notices: Installation) -> None:
    both = with_mails(notices)
    kept = [f"globex/mails/1/{SHA256}.json.gz", f"acme/notices/1/{SHA256}.json.gz"]
    for key in (*kept, f"acme/mails/1/{SHA256}.json.gz"):
        both.store.put(key, b"nobody's")
    found = collect(both, table="mails", tenant="acme")
    assert set(found.tables) == {"mails"}
    assert (found.foreign, found.tables["mails"].deleted) == (0, 1)
    assert keys_in(both.store) == set(kept)
    assert collect(both, tenant="globex").tables["mails"].deleted == 1
    assert collect(both, table="notices").tables["notices"].deleted == 1


def test_only_the_prefix_that_can_hold_the_keys_is_listed(notices: Installation) -> None:
    tables = tables_of(with_mails(notices))
    assert Scope(tables).prefixes == [""]
    assert Scope(tables, tenant="acme").prefixes == ["acme/mails/", "acme/notices/"]
    assert Scope(tables, "mails", "Zoë").prefixes == ["Zo%C3%AB/mails/"]


def test_a_template_that_does_not_tell_tenants_apart_cannot_be_narrowed_to_one(
    database_url: str, local_store_url: str
) -> None:
    with (
        installed(database_url, local_store_url, key_template="{table}/{sha256}.gz") as notices,
        pytest.raises(UserError, match=r"^notices: its key_template .* leave the tenant out$"),
    ):
        collect(notices, tenant="acme")


def test_an_object_that_a_row_of_another_table_names_is_no_orphan(notices: Installation) -> None:
    both = with_mails(notices)
    (key,) = both.insert(PAYLOADS[:1])
    both.drain()
    both.connection.execute(
        "INSERT INTO mails (tenant_id, payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256)"
        " SELECT tenant_id, payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256 FROM notices"
    )
    rewrite(both, key)
    assert collect(both, table="notices").tables["notices"].named == 1


@pytest.mark.both_servers
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE kept AS SELECT * FROM notices",
        "CREATE SCHEMA archive; CREATE TABLE archive.notices (LIKE notices); INSERT INTO archive.notices TABLE notices",
        "CREATE MATERIALIZED VIEW kept AS SELECT id, raw_object_key FROM notices",
        "CREATE TABLE parent (raw_object_key text) PARTITION BY LIST (raw_object_key);"
        "CREATE TABLE child PARTITION OF parent DEFAULT; INSERT INTO parent SELECT raw_object_key FROM notices",
    ],
    ids=["a copy", "an archive", "a view", "a partition"],
)
def test_an_object_that_a_row_outside_the_configured_tables_names_is_no_orphan(
    notices: Installation, statement: str
) -> None:
    notices.insert(PAYLOADS[:2])
    notices.drain()
    notices.connection.execute(statement)
    notices.execute("DELETE FROM {table}")
    found = collect(notices).tables["notices"]
    assert (found.named, found.orphans) == (2, 0)


@pytest.mark.both_servers
def test_a_view_that_was_never_filled_names_nothing_and_stops_nothing(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    rewrite(notices, key)
    notices.connection.execute("CREATE MATERIALIZED VIEW kept AS SELECT raw_object_key FROM notices WITH NO DATA")
    assert collect(notices).tables["notices"].deleted == 1


def test_what_the_look_at_the_rows_saw_is_on_disk_before_an_object_is_deleted(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    notices.connection.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$"
    )
    notices.connection.execute(
        "CREATE TABLE noted AS SELECT ''::text AS committed WITH NO DATA;"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO noted VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$;"
        "CREATE TRIGGER note AFTER INSERT ON payload_offload_deleted FOR EACH ROW EXECUTE FUNCTION note()"
    )
    notices.execute("DELETE FROM {table} WHERE id = %s", key)
    assert collect(notices).tables["notices"].deleted == 1
    assert notices.connection.execute("SELECT committed FROM noted").fetchall() == [("on",)]


def test_rows_that_the_role_may_not_see_stop_the_collection(notices: Installation) -> None:
    notices.insert(PAYLOADS[:2])
    notices.drain()
    notices.connection.execute("DROP ROLE IF EXISTS held_back")
    notices.connection.execute("CREATE ROLE held_back LOGIN")
    try:
        notices.connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO held_back")
        notices.execute("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        url = notices.database_url.replace("postgres@", "held_back@")
        database = replace(notices.pipeline.database, url=url)
        held_back = replace(notices, pipeline=replace(notices.pipeline, database=database))
        with pytest.raises(UserError, match=r"^cannot see every row .* row security$"):
            collect(held_back, tables=tables_of(notices))
        assert len(keys_in(notices.store)) == 2
    finally:
        notices.connection.execute("DROP OWNED BY held_back")
        notices.connection.execute("DROP ROLE held_back")


def test_a_table_of_which_too_many_objects_look_orphaned_is_not_touched(notices: Installation) -> None:
    keys = notices.insert(PAYLOADS)
    notices.drain()
    orphan = rewrite(notices, keys[0])
    refused = collect(notices, share=0.05)
    assert refused.stopped == {
        "notices": "10.0% of its objects look orphaned, more than 5.0%; "
        "see that this database and this store belong together, then raise the share"
    }
    assert refused.tables["notices"].deleted == 0
    assert orphan in keys_in(notices.store)
    assert collect(notices, share=0.1).tables["notices"].deleted == 1
    notices.assert_invariant()


def test_one_table_that_looks_wrong_does_not_stop_the_others(notices: Installation) -> None:
    both = with_mails(notices)
    keys = both.insert(PAYLOADS)
    both.drain()
    rewrite(both, keys[0])
    both.store.put(f"acme/mails/1/{SHA256}.json.gz", b"nobody's")
    found = collect(both, share=0.5)
    assert set(found.stopped) == {"mails"}
    assert (found.tables["notices"].deleted, found.tables["mails"].deleted) == (1, 0)


def test_a_table_that_was_emptied_keeps_its_objects(notices: Installation) -> None:
    notices.insert(PAYLOADS)
    notices.drain()
    notices.execute("TRUNCATE {table}")
    assert collect(notices, share=0.05).tables["notices"].deleted == 0
    assert len(keys_in(notices.store)) == 10


def test_a_table_whose_objects_were_copied_to_another_store_is_not_touched(notices: Installation) -> None:
    keys = notices.insert(PAYLOADS)
    notices.drain()
    rewrite(notices, keys[0])
    notices.connection.execute("UPDATE payload_offload_state SET store_url = 's3://elsewhere'")
    refused = collect(notices)
    assert "its objects are in s3://elsewhere" in refused.stopped["notices"]
    assert len(keys_in(notices.store)) == 10


def test_an_empty_store_has_no_garbage(notices: Installation) -> None:
    found = collect(notices)
    assert found.tables["notices"].objects == 0
    assert not found.stopped


class BreaksOff(ObjectStore):
    """Lists the first objects and then fails, as a real one does in mid-listing."""

    def __init__(self, inner: ObjectStore, after: int) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self._after = after

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        for number, found in enumerate(super().list(prefix)):
            if number == self._after:
                raise StoreUnavailableError("the store failed (503)")
            yield found


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_listing_that_breaks_off_deletes_nothing(
    notices: Installation, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(garbage, "SCANNED_KEYS", 1)
    monkeypatch.setattr(object_store, "LISTED_PER_PAGE", 1)
    for key in notices.insert(PAYLOADS):
        notices.drain()
        rewrite(notices, key)
    before = keys_in(notices.store)
    with pytest.raises(StoreUnavailableError):
        collect(notices.with_store(BreaksOff(notices.store, after)))
    assert keys_in(notices.store) == before
    assert logged(notices.connection, "gc") == (0, 0)


def test_a_file_that_a_killed_put_left_is_a_leftover(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    folder = Path(notices.object_key(key)).parent
    stale, fresh = f"{folder}/.7f3a.1b.part", f"{folder}/.7f3b.1b.part"
    for name in (stale, fresh):
        (notices.store._folder / name).write_bytes(b"half")  # type: ignore[operator]  # a local store has a folder
    age(notices.store, [stale], timedelta(hours=2))
    assert collect(notices, delete=False).leftovers == 2
    found = collect(notices, grace=MONTH)
    assert (found.leftovers, found.leftover_bytes, found.leftovers_deleted, found.foreign) == (2, 8, 1, 0)
    assert keys_in(notices.store) == {notices.object_key(key), fresh}


def test_a_key_like_a_temporary_file_is_foreign_on_s3(database_url: str, s3_store: StoreAddress) -> None:
    with installed(database_url, s3_store) as notices:
        notices.store.put("acme/notices/1/.7f3a.1b.part", b"somebody else's")
        found = collect(notices)
        assert (found.leftovers, found.foreign) == (0, 1)


def test_objects_that_expiry_has_listed_are_left_to_their_own_time(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    listed = rewrite(notices, key)
    notices.connection.execute(
        "INSERT INTO payload_offload_expired (object_key, table_name, tenant_id, bytes)"
        " VALUES (%s, 'notices', 'acme', 1)",
        (listed,),
    )
    found = collect(notices).tables["notices"]
    assert (found.expired, found.orphans, found.deleted) == (1, 0, 0)
    assert listed in keys_in(notices.store)


def test_fifty_tenants_are_judged_apart(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url) as notices:
        tenants = [f"tenant-{number}" for number in range(50)]
        for tenant in tenants:
            keys = notices.insert(PAYLOADS[:2], tenant=tenant)
            notices.drain(tenant)
            rewrite(notices, keys[0])
        found = collect(notices, tenant=tenants[7]).tables["notices"]
        assert (found.objects, found.deleted) == (2, 1)
        found = collect(notices).tables["notices"]
        assert (found.objects, found.named, found.deleted) == (99, 50, 49)
        notices.assert_invariant()


def test_the_collection_waits_for_no_row_that_the_application_holds(notices: Installation) -> None:
    keys = notices.insert(PAYLOADS[:2])
    notices.drain()
    orphan = rewrite(notices, keys[0])
    with psycopg.connect(notices.database_url) as application:
        application.execute("LOCK TABLE notices IN SHARE ROW EXCLUSIVE MODE")
        application.execute("SELECT FROM notices FOR UPDATE")
        found = collect(notices, patience=NO_GRACE)
        assert (found.tables["notices"].orphans, found.tables["notices"].deleted) == (1, 0)
        assert "transactions open since before" in str(found.stopped_by)
    assert collect(notices).tables["notices"].deleted == 1
    assert orphan not in keys_in(notices.store)


def test_many_orphans_are_deleted_chunk_by_chunk(notices: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "SCANNED_KEYS", 4)
    monkeypatch.setattr(garbage, "CHUNK_KEYS", 3)
    monkeypatch.setattr(object_store, "LISTED_PER_PAGE", 2)
    insert_payloads(notices.connection, notices.config, PAYLOADS)
    notices.drain()
    notices.execute("DELETE FROM {table} WHERE id > 1")
    found = collect(notices).tables["notices"]
    assert (found.named, found.orphans, found.deleted) == (1, 9, 9)
    lines = notices.connection.execute("SELECT rows FROM payload_offload_log WHERE action = 'gc' ORDER BY id")
    assert [rows for (rows,) in lines] == [3, 3, 3]
