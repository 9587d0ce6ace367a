"""A tenant's payloads are erased from the store, whole and at once, and nobody else's."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from offload_pipeline.errors import StoreChangedError, StoreUnavailableError, TransientError
from offload_pipeline.offload.writer import PayloadWriter
from offload_pipeline.retention import deletion, erasure
from offload_pipeline.retention.erasure import ErasureOptions, ErasureResult, erase_tenant
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.factories import install, make_pipeline, make_table
from offload_pipeline_tests.offload.installation import RUN, Installation, StoreAddress, installed
from offload_pipeline_tests.offload.writing import insert_columns
from offload_pipeline_tests.retention.collecting import SHA256, age, collect, keys_in, logged, rewrite, tables_of

PAYLOADS = [json.dumps({"n": number}) for number in range(10)]


def erase(
    notices: Installation, tenant: str = "acme", *, delete: bool = True, patience: timedelta = timedelta(seconds=10)
) -> ErasureResult:
    pipeline = notices.pipeline
    options = ErasureOptions(delete, store_threads=4, patience=patience)
    return erase_tenant(pipeline.database, pipeline.store, tables_of(notices), tenant, options, RUN)


def listed_keys(notices: Installation) -> set[str]:
    return {key for (key,) in notices.connection.execute("SELECT object_key FROM payload_offload_expired")}


def test_a_tenants_payloads_objects_and_strays_are_erased_and_nobody_elses(
    database_url: str, any_store: StoreAddress
) -> None:
    with installed(database_url, any_store) as notices:
        mine, others = notices.insert(PAYLOADS), notices.insert(PAYLOADS, tenant="globex")
        for tenant in ("acme", "globex"):
            notices.drain(tenant)
        rewrite(notices, mine[0])
        notices.copy()
        kept = {notices.object_key(key) for key in others}

        result = erase(notices)

        assert keys_in(notices.store) == kept
        assert result.is_complete
        found = result.tables["notices"]
        assert (found.rows_in_storage, found.rows_copied, found.rows_erased) == (9, 1, 10)
        assert (result.listed.objects_deleted, found.objects_deleted) == (10, 1)
        assert found.rows_holding == 1, "the copy whose payload is still in its row"
        assert notices.statuses() == {
            **dict.fromkeys(mine[1:], "expired"), mine[0]: "inline", **dict.fromkeys(others, "in_storage")
        }  # fmt: skip
        assert logged(notices.connection, "erase")[0] == 10
        assert logged(notices.connection, "erase objects")[0] == 11
        assert not listed_keys(notices)
        notices.assert_invariant(expired=mine[1:])


def test_a_report_erases_nothing(notices: Installation) -> None:
    keys = notices.insert(PAYLOADS)
    notices.drain()
    rewrite(notices, keys[0])
    before = keys_in(notices.store)
    result = erase(notices, delete=False)
    found = result.tables["notices"]
    assert (found.rows_in_storage, found.rows_copied, found.rows_holding) == (9, 0, 1)
    assert (found.objects, found.rows_erased, found.objects_deleted) == (10, 0, 0)
    assert keys_in(notices.store) == before
    assert not listed_keys(notices)
    notices.assert_invariant()


@pytest.mark.both_servers
@pytest.mark.parametrize("after_copy", ["clear", "reference", "keep"])
@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
def test_rows_are_left_as_their_table_is_configured(
    database_url: str, local_store_url: str, after_copy: str, payload_type: str
) -> None:
    with installed(database_url, local_store_url, after_copy=after_copy, payload_type=payload_type) as notices:
        (key,) = notices.insert(PAYLOADS[:1])
        notices.drain()
        assert erase(notices).is_complete
        row = notices.execute(
            "SELECT raw_payload::text, payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256,"
            " payload_stored_at FROM {table}"
        ).fetchone()
        assert row is not None
        if after_copy == "keep":
            assert row == (PAYLOADS[0], "inline", len(PAYLOADS[0]), None, None, None)
            assert notices.drain().copied.rows_copied == 0, "what is held is not copied again"
            notices.write(key, PAYLOADS[1])
            assert notices.one_status() == "pending_move"
        else:
            assert row[1:] == ("expired", None, None, None, None)
            assert row[0] is None if after_copy == "clear" else json.loads(row[0])["deleted"] is True
        assert not keys_in(notices.store)


def test_a_payload_written_past_the_trigger_is_not_erased_with_the_stored_one(notices: Installation) -> None:
    written, other = notices.insert(PAYLOADS[:2])
    notices.drain()
    notices.write_past_the_trigger(written, '{"nowhere": "else"}')
    notices.take_rows_as_expected([written])
    result = erase(notices)
    assert not result.is_complete
    assert (result.tables["notices"].rows_erased, result.tables["notices"].rows_failed) == (1, 1)
    assert keys_in(notices.store) == {notices.object_key(written)}
    notices.assert_invariant(expired=[other])


def test_an_object_that_a_row_of_another_tenant_names_stays(notices: Installation) -> None:
    moved, mine = notices.insert(PAYLOADS[:2])
    notices.drain()
    notices.execute("UPDATE {table} SET tenant_id = 'globex' WHERE id = %s", moved)
    result = erase(notices)
    assert result.is_complete
    assert result.tables["notices"].objects_named == 1
    assert keys_in(notices.store) == {notices.object_key(moved)}
    notices.assert_invariant(expired=[mine])


@pytest.mark.both_servers
def test_an_object_that_another_tenants_row_is_about_to_name_stays(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    with psycopg.connect(notices.database_url) as application:
        notices.execute(
            "INSERT INTO {table} SELECT (jsonb_populate_record(t, %s)).* FROM {table} AS t",
            '{"id": 99, "tenant_id": "globex"}', connection=application,
        )  # fmt: skip
        result = erase(notices, patience=timedelta(0))
    assert isinstance(result.stopped_by, TransientError)
    assert not result.is_complete
    notices.expected[99] = notices.expected[key]
    notices.assert_invariant(expired=[key])
    assert erase(notices).is_complete
    assert keys_in(notices.store) == {notices.object_key(99)}
    notices.assert_invariant(expired=[key])


@pytest.mark.parametrize("folder", ["{tenant}", "{table}"])
def test_an_object_whose_key_is_like_a_temporary_file_is_still_looked_for_in_the_rows(
    database_url: str, local_store_url: str, folder: str
) -> None:
    template = f"{folder}/{{sha256}}/.{{primary_key}}.0.part"
    with installed(database_url, local_store_url, key_template=template) as notices:
        (key,) = notices.insert(PAYLOADS[:1])
        notices.drain()
        notices.execute("UPDATE {table} SET tenant_id = 'globex'")
        age(notices.store, [notices.object_key(key)])
        assert collect(notices).leftovers_deleted == 0
        assert erase(notices).is_complete
        notices.assert_invariant()


def test_objects_of_rows_that_came_from_another_tenant_are_erased_with_the_tenant_they_are_in(
    notices: Installation,
) -> None:
    (moved,) = notices.insert(PAYLOADS[:1], tenant="globex")
    notices.drain("globex")
    notices.execute("UPDATE {table} SET tenant_id = 'acme' WHERE id = %s", moved)
    assert notices.object_key(moved).startswith("globex/")
    result = erase(notices)
    assert result.listed.objects_deleted == 1
    assert not keys_in(notices.store)


def test_an_object_that_two_tenants_share_is_erased_with_the_last(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, key_template="{table}/{sha256}.gz") as notices:
        (mine,) = notices.insert(PAYLOADS[:1])
        notices.insert(PAYLOADS[:1], tenant="globex")
        for tenant in ("acme", "globex"):
            notices.drain(tenant)
        first = erase(notices)
        assert (first.listed.objects_named, first.tables["notices"].is_listed) == (1, False)
        notices.assert_invariant(expired=[mine])
        age(notices.store, keys_in(notices.store))
        assert erase(notices, "globex").listed.objects_deleted == 1
        assert not keys_in(notices.store)


def test_strays_are_erased_however_young_and_however_many(notices: Installation) -> None:
    strays = [f"acme/notices/{number}/{SHA256}.json.gz" for number in range(20)]
    for key in strays:
        notices.store.put(key, b"nobody's")
    kept = [
        f"acme2/notices/1/{SHA256}.json.gz", "acme/report.csv", f"acme/mails/1/{SHA256}.json.gz",
        "acme/notices/readme.txt", f"acme/notices/1/2/{SHA256}.json.gz",
    ]  # fmt: skip
    for key in kept:
        notices.store.put(key, b"somebody else's")
    result = erase(notices)
    assert result.tables["notices"].objects_deleted == 20
    assert keys_in(notices.store) == set(kept)


def test_what_a_killed_put_left_of_a_tenant_is_erased_too(notices: Installation) -> None:
    folder = notices.store._folder
    assert folder is not None
    left = Path("acme/notices/1/.7f3a.1b.part")
    (folder / left).parent.mkdir(parents=True)
    (folder / left).write_bytes(b"half of a payload")
    age(notices.store, [str(left)], timedelta(hours=2))
    erase(notices)
    assert not keys_in(notices.store)


def test_every_table_is_erased_and_one_whose_tenants_cannot_be_this_one_is_no_obstacle(notices: Installation) -> None:
    mails = make_table(
        notices.connection, name="mails", relation="public.mails", threshold_bytes=0, tenant_column="owner",
        extra_columns={},
    )  # fmt: skip
    notices.connection.execute("ALTER TABLE mails ALTER owner TYPE integer USING owner::integer")
    fixed = make_table(
        notices.connection, name="fixed", relation="public.fixed", threshold_bytes=0, tenant_column=None,
        tenant={"value": "initech"},
    )  # fmt: skip
    pipeline = make_pipeline(notices.database_url, notices.store.url, [notices.config, mails, fixed])
    install(pipeline)
    both = replace(notices, pipeline=pipeline)
    both.insert(PAYLOADS[:2])
    both.drain()
    result = erase(both)
    assert set(result.tables) == {"notices", "mails"}
    assert result.is_complete
    assert not keys_in(notices.store)


@pytest.mark.parametrize("tenant", ["a/b", "Zoë, Inc.", "", "..", "%2F", "x" * 300, "a|b c", "7%"])
def test_a_tenant_may_have_any_name(notices: Installation, tenant: str) -> None:
    notices.insert(PAYLOADS[:2], tenant=tenant)
    neighbour = notices.insert(PAYLOADS[:1], tenant=tenant + "x")
    for one in (tenant, tenant + "x"):
        notices.drain(one)
    notices.store.put(notices.object_key(1).replace("/1/", "/9/"), b"a stray")
    result = erase(notices, tenant)
    assert result.tables["notices"].objects_deleted == 1
    assert keys_in(notices.store) == {notices.object_key(neighbour[0])}


def test_an_unknown_tenant_erases_nothing(notices: Installation) -> None:
    keys = notices.insert(PAYLOADS)
    notices.drain()
    result = erase(notices, "nobody")
    assert result.is_complete
    assert result.tables["notices"].rows_erased == 0
    assert len(keys_in(notices.store)) == len(keys)
    notices.assert_invariant()


def test_another_spelling_of_a_tenant_is_another_tenant(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, extra_columns={"number": "integer DEFAULT 7"}) as notices:
        config = notices.config.model_copy(
            update={"tenant": notices.config.tenant.model_copy(update={"column": "number"})}
        )
        table = replace(notices.table, config=config)
        notices.insert(PAYLOADS[:1])
        for tenant, can_be in (("7", True), ("007", False), ("acme", False), ("99999999999", False)):
            eraser = erasure._Eraser(
                notices.pipeline.database,
                notices.connection,
                notices.store,
                [table],
                tenant,
                ErasureOptions(delete=False, store_threads=1),
                RUN,
                lambda *_: None,
            )
            assert eraser._can_hold_the_tenant(table) is can_be, tenant


def test_rows_that_the_application_holds_are_left_and_the_erasure_says_so(notices: Installation) -> None:
    held, free = notices.insert(PAYLOADS[:2])
    notices.drain()
    with psycopg.connect(notices.database_url) as application:
        notices.execute("SELECT FROM {table} WHERE id = %s FOR UPDATE", held, connection=application)
        result = erase(notices, patience=timedelta(0))
    assert not result.is_complete
    assert (result.tables["notices"].rows_erased, result.tables["notices"].rows_left) == (1, 1)
    assert notices.object_key(held) in keys_in(notices.store)
    notices.assert_invariant(expired=[free])
    assert erase(notices).is_complete
    assert not keys_in(notices.store)


class Killed(BaseException):
    """As abrupt as an exception can be."""


class KillsAt(ObjectStore):
    """Dies at the n-th DELETE, before or after it was carried out."""

    def __init__(self, inner: ObjectStore, number: int, *, is_done: bool) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self._numbers, self._fatal, self._is_done = itertools.count(1), number, is_done

    def delete(self, key: str) -> None:
        number = next(self._numbers)
        if number != self._fatal or self._is_done:
            super().delete(key)
        if number == self._fatal:
            raise Killed


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("number", [1, 4, 10, 12])
def test_an_erasure_that_was_interrupted_is_finished_by_repeating_it(
    notices: Installation, monkeypatch: pytest.MonkeyPatch, number: int, is_done: bool
) -> None:
    """Ten objects of rows that came from elsewhere, so that no listing would find them; and strays."""
    monkeypatch.setattr("offload_pipeline.retention.expired_objects.CHUNK_KEYS", 3)
    keys = notices.insert(PAYLOADS, tenant="globex")
    notices.drain("globex")
    notices.execute("UPDATE {table} SET tenant_id = 'acme'")
    for stray in range(4):
        notices.store.put(f"acme/notices/{stray}/{SHA256}.json.gz", b"nobody's")
    with pytest.raises(Killed):
        erase(notices.with_store(KillsAt(notices.store, number, is_done=is_done)))
    notices.assert_invariant(expired=keys)
    assert erase(notices).is_complete
    assert not keys_in(notices.store)
    assert not listed_keys(notices)
    rows = notices.connection.execute(
        "SELECT sum(rows) FROM payload_offload_log WHERE action = 'erase objects'"
    ).fetchone()
    assert rows is not None
    assert rows[0] >= 10, "those gone before they could be counted are counted by the repetition"


@pytest.mark.parametrize("step", ["_count_rows", "_erase_rows_of", "erase_objects"])
def test_an_erasure_killed_between_two_steps_is_finished_by_repeating_it(
    notices: Installation, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    keys = notices.insert(PAYLOADS)
    notices.drain()
    original: Callable[..., Any] = getattr(erasure._Eraser, step)

    def then_die(*arguments: Any) -> None:
        original(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(erasure._Eraser, step, then_die)
        with pytest.raises(Killed):
            erase(notices)
    assert erase(notices).is_complete
    assert not keys_in(notices.store)
    notices.assert_invariant(expired=keys)


class RefusesDelete(ObjectStore):
    """Fails every DELETE, as a store that is down does."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner._store, inner.url, inner._folder)

    def delete(self, key: str) -> None:
        raise StoreUnavailableError(f"the store failed at {key} (503)")


def test_a_store_that_deletes_nothing_leaves_the_list_for_the_repetition(notices: Installation) -> None:
    keys = notices.insert(PAYLOADS)
    notices.drain()
    before = keys_in(notices.store)
    result = erase(notices.with_store(RefusesDelete(notices.store)))
    assert not result.is_complete
    assert isinstance(result.stopped_by, StoreUnavailableError)
    assert listed_keys(notices) == before == keys_in(notices.store)
    notices.assert_invariant(expired=keys)
    assert erase(notices).is_complete
    assert not keys_in(notices.store)


def test_a_slow_store_ends_a_chunk_in_time_and_leaves_the_rest(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "CHUNK_SECONDS", -1.0)
    notices.insert(PAYLOADS)
    notices.drain()
    result = erase(notices)
    assert result.listed.objects_left == 10
    assert not result.is_complete
    assert len(keys_in(notices.store)) == 10


def test_a_tenant_whose_objects_are_in_another_store_is_not_erased_by_halves(notices: Installation) -> None:
    notices.insert(PAYLOADS[:1])
    notices.drain()
    notices.connection.execute("UPDATE payload_offload_state SET store_url = 's3://elsewhere'")
    with pytest.raises(StoreChangedError):
        erase(notices)
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


def test_one_of_fifty_tenants_is_erased(notices: Installation) -> None:
    tenants = [f"tenant-{number}" for number in range(50)]
    for tenant in tenants:
        notices.insert(PAYLOADS[:2], tenant=tenant)
        notices.drain(tenant)
    result = erase(notices, "tenant-5")
    assert result.listed.objects_deleted == 2
    assert len(keys_in(notices.store)) == 98
    assert not any(key.startswith("tenant-5/") for key in keys_in(notices.store))
    statuses = [status for status in notices.statuses().values() if status == "expired"]
    assert len(statuses) == 2


def test_where_tenants_share_objects_one_that_another_tenant_is_about_to_name_is_left(
    database_url: str, local_store_url: str
) -> None:
    with installed(database_url, local_store_url, key_template="{table}/{sha256}.json.gz") as notices:
        notices.insert(PAYLOADS[:2])
        notices.drain()
        shared, own = notices.object_key(1), notices.object_key(2)
        age(notices.store, [shared, own])
        with PayloadWriter(notices.pipeline) as writer:
            columns = writer.write(notices.connection, "notices", "globex", 3, PAYLOADS[0])
        left = erase(notices)
        insert_columns(notices, columns, id=3, tenant_id="globex")
        assert notices.object_key(3) == shared
        assert keys_in(notices.store) == {shared}
        assert (left.is_complete, left.listed.objects_left, left.listed.objects_deleted) == (False, 1, 1)
        assert erase(notices).is_complete, "a row names it now"
        assert keys_in(notices.store) == {shared}
