"""Payloads past their retention are given up row by row, their objects later, and nothing that is named again."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from offload_pipeline.errors import StoreChangedError, UserError
from offload_pipeline.offload.queue import tenants_having
from offload_pipeline.retention import expired_objects, expiry
from offload_pipeline.retention.expired_objects import ListedObjects, ListedResult, count_listed, delete_listed
from offload_pipeline.retention.expiry import ExpiryOptions, ExpiryResult, expire_partition
from offload_pipeline_tests.factories import large_payload, row_hashes
from offload_pipeline_tests.offload.installation import RUN, Installation, StoreAddress, installed
from offload_pipeline_tests.offload.waiting import in_thread
from offload_pipeline_tests.retention.collecting import MONTH, NO_GRACE, age, collect, keys_in, logged, tables_of

PAYLOADS = [json.dumps({"n": number}) for number in range(10)]
RETENTION = "90 days"


@pytest.fixture
def notices(database_url: str, local_store_url: str) -> Iterator[Installation]:
    """Payloads that expire after 90 days."""
    with installed(database_url, local_store_url, object_retention=RETENTION) as installation:
        yield installation


def expire(notices: Installation, tenant: str = "acme", *, delete: bool = True, max_attempts: int = 3) -> ExpiryResult:
    options = ExpiryOptions(delete, max_attempts)
    return expire_partition(notices.pipeline.database, notices.partition(tenant), options, RUN)


def sweep(notices: Installation, grace: timedelta = NO_GRACE) -> ListedResult:
    tables = tables_of(notices)
    listed = ListedObjects(tables, None, grace)
    return delete_listed(notices.pipeline.database, notices.store, tables, listed, "expire objects", 4, RUN)


def grow_old(notices: Installation, *keys: Any, days: int = 91) -> None:
    """As if these rows had been stored so long ago."""
    notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
    notices.execute(
        "UPDATE {table} SET payload_stored_at = payload_stored_at - %s WHERE id = ANY(%s)",
        timedelta(days=days), list(keys),
    )  # fmt: skip
    notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")


def listed_keys(notices: Installation) -> set[str]:
    return {key for (key,) in notices.connection.execute("SELECT object_key FROM payload_offload_expired")}


@pytest.mark.both_servers
def test_rows_past_their_retention_are_expired_and_the_others_are_not(notices: Installation) -> None:
    keys = notices.insert(PAYLOADS)
    notices.drain()
    grow_old(notices, *keys[:3])
    grow_old(notices, keys[3], days=89)
    objects = {notices.object_key(key) for key in keys[:3]}

    result = expire(notices)

    sizes = 3 * len(PAYLOADS[0])
    assert (result.rows_due, result.payload_bytes_due) == (3, sizes)
    assert (result.rows_expired, result.payload_bytes, result.rows_left, result.rows_failed) == (3, sizes, 0, 0)
    assert {key for key, status in notices.statuses().items() if status == "expired"} == set(keys[:3])
    assert listed_keys(notices) == objects
    assert logged(notices.connection, "expire") == (3, sizes)
    assert objects < keys_in(notices.store), "objects wait for the grace"
    notices.assert_invariant(expired=keys[:3])


def test_a_report_changes_nothing(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    grow_old(notices, key)
    result = expire(notices, delete=False)
    assert (result.rows_due, result.rows_expired) == (1, 0)
    assert notices.one_status() == "in_storage"
    assert not listed_keys(notices)
    notices.assert_invariant()


@pytest.mark.both_servers
@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
@pytest.mark.parametrize("is_not_null", [False, True])
def test_an_expired_reference_says_in_the_columns_own_type_that_it_is_deleted(
    database_url: str, local_store_url: str, payload_type: str, is_not_null: bool
) -> None:
    options = {"after_copy": "reference", "object_retention": RETENTION, "payload_type": payload_type}
    with installed(database_url, local_store_url, **options) as notices:  # type: ignore[arg-type]  # texts all
        if is_not_null:
            notices.execute("ALTER TABLE {table} ALTER raw_payload SET NOT NULL")
        (key,) = notices.insert(PAYLOADS[:1])
        notices.drain()
        grow_old(notices, key)
        assert expire(notices).rows_expired == 1
        row = notices.execute(
            "SELECT raw_payload::text, payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256,"
            " payload_stored_at FROM {table}"
        ).fetchone()
        assert row is not None
        said = json.loads(row[0])
        assert said["deleted"] is True
        assert said["deleted_at"].startswith("20")
        assert row[1:] == ("expired", None, None, None, None)


def test_a_column_that_takes_no_null_cannot_be_cleared(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, object_retention=RETENTION) as notices:
        notices.execute("ALTER TABLE {table} ALTER raw_payload SET NOT NULL")
        (table,) = tables_of(notices)
        refused = replace(notices, table=table)
        with pytest.raises(UserError, match=r"^notices: raw_payload is NOT NULL, [^\n]*after_copy: reference$"):
            expire(refused, delete=False)


def test_a_table_without_retention_expires_nothing(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url) as notices:
        (key,) = notices.insert(PAYLOADS[:1])
        notices.drain()
        grow_old(notices, key, days=10_000)
        assert expire(notices) == ExpiryResult()


def test_a_stored_at_that_is_no_moment_expires_nothing(notices: Installation) -> None:
    (first, second) = notices.insert(PAYLOADS[:2])
    notices.drain()
    notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
    notices.execute("UPDATE {table} SET payload_stored_at = '-infinity' WHERE id = %s", first)
    notices.execute("UPDATE {table} SET payload_stored_at = NULL WHERE id = %s", second)
    notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")
    assert expire(notices).rows_due == 0
    assert notices.one_status() == "in_storage"


@pytest.mark.parametrize("page_rows", [1, 3, 400])
def test_expiry_goes_page_by_page_and_tenant_by_tenant(
    notices: Installation, monkeypatch: pytest.MonkeyPatch, page_rows: int
) -> None:
    monkeypatch.setattr(expiry, "PAGE_ROWS", page_rows)
    mine, others = notices.insert(PAYLOADS), notices.insert(PAYLOADS[:4], tenant="globex")
    for tenant in ("acme", "globex"):
        notices.drain(tenant)
    grow_old(notices, *mine, *others)
    assert expire(notices, "acme").rows_expired == 10
    assert {key for key, status in notices.statuses().items() if status == "in_storage"} == set(others)
    assert expire(notices, "globex").rows_expired == 4
    assert expire(notices).rows_due == 0
    notices.assert_invariant(expired=[*mine, *others])


def test_tenants_are_found_by_their_stored_rows(notices: Installation) -> None:
    for tenant in ("b", "a", ""):
        notices.insert(PAYLOADS[:1], tenant=tenant)
        notices.drain(tenant)
    notices.insert(PAYLOADS[:1], tenant="pending")
    with notices.pipeline.connect() as connection:
        assert tenants_having(connection, notices.table, "in_storage") == ["", "a", "b"]


def test_a_row_that_the_application_holds_is_left_without_waiting(notices: Installation) -> None:
    held, free = notices.insert(PAYLOADS[:2])
    notices.drain()
    grow_old(notices, held, free)
    with psycopg.connect(notices.database_url) as application:
        notices.execute("SELECT FROM {table} WHERE id = %s FOR UPDATE", held, connection=application)
        result = expire(notices)
    assert (result.rows_expired, result.rows_left) == (1, 1)
    assert notices.statuses() == {held: "in_storage", free: "expired"}
    assert expire(notices).rows_expired == 1


@pytest.mark.both_servers
def test_a_row_that_is_written_before_its_page_is_expired_keeps_what_was_written(notices: Installation) -> None:
    written, other = notices.insert(PAYLOADS[:2])
    notices.drain()
    grow_old(notices, written, other)
    with psycopg.connect(notices.database_url) as application:
        notices.execute("UPDATE {table} SET raw_payload = '{{}}' WHERE id = %s", written, connection=application)
        with in_thread(lambda: expire(notices)) as expiring:
            assert expiring.result(timeout=30).rows_left == 1
    notices.take_rows_as_expected([written])
    assert notices.statuses() == {written: "pending_move", other: "expired"}
    notices.assert_invariant(expired=[other])


@pytest.mark.both_servers
def test_a_row_that_is_in_storage_anew_before_its_page_is_expired_is_left(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed, other = notices.insert(PAYLOADS[:2])
    notices.drain()
    grow_old(notices, renewed, other)
    read = expiry._Expirer._page

    def read_then_renew(self: expiry._Expirer, cursor: Any) -> Any:
        page = read(self, cursor)
        if cursor is None:
            notices.write(renewed, PAYLOADS[5])
            notices.drain()
        return page

    monkeypatch.setattr(expiry._Expirer, "_page", read_then_renew)
    result = expire(notices)
    assert (result.rows_expired, result.rows_left) == (1, 1)
    assert notices.statuses() == {renewed: "in_storage", other: "expired"}
    notices.assert_invariant(expired=[other])


def test_a_row_that_the_table_refuses_to_expire_does_not_stop_the_others(notices: Installation) -> None:
    keys = notices.insert(PAYLOADS[:4])
    notices.drain()
    grow_old(notices, *keys)
    notices.execute("ALTER TABLE {table} ADD CONSTRAINT kept CHECK (id <> 2 OR payload_storage_status <> 'expired')")
    result = expire(notices)
    assert (result.rows_expired, result.rows_failed) == (3, 1)
    failure = notices.failures()["2"]
    assert (failure["stage"], failure["error_class"]) == ("expire", "CheckViolation")
    assert expire(notices).rows_failed == 0, "it waits for its next attempt"
    notices.execute("ALTER TABLE {table} DROP CONSTRAINT kept")
    notices.let_time_pass()
    assert expire(notices).rows_expired == 1
    assert notices.failures()["2"]["resolved_at"]
    notices.assert_invariant(expired=keys)


@pytest.mark.parametrize("after_copy", ["clear", "reference"])
def test_a_payload_written_past_the_trigger_does_not_expire_with_the_stored_one(
    database_url: str, local_store_url: str, after_copy: str
) -> None:
    with installed(database_url, local_store_url, object_retention=RETENTION, after_copy=after_copy) as notices:
        written, other = notices.insert(PAYLOADS[:2])
        notices.drain()
        grow_old(notices, written, other)
        notices.write_past_the_trigger(written, '{"nowhere": "else"}')
        notices.take_rows_as_expected([written])
        result = expire(notices)
        assert (result.rows_expired, result.rows_left, result.rows_failed) == (1, 0, 1)
        assert notices.failures()[str(written)]["error_class"] == "PayloadBesidePointerError"
        assert len(listed_keys(notices)) == 1
        notices.assert_invariant(expired=[other])


def test_a_trigger_that_gives_the_pointer_back_is_recorded_and_its_object_kept(notices: Installation) -> None:
    (key,) = notices.insert(PAYLOADS[:1])
    notices.drain()
    grow_old(notices, key)
    notices.connection.execute(
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " NEW.raw_object_key := OLD.raw_object_key; RETURN NEW; END $$"
    )
    notices.execute("CREATE TRIGGER zzz BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION meddle()")
    assert expire(notices).rows_failed == 1
    assert notices.failures()[str(key)]["error_class"] == "ExpiryUndoneError"
    assert not listed_keys(notices)
    notices.assert_invariant()


# The objects


def expired(notices: Installation, payload: str = PAYLOADS[0]) -> tuple[int, str]:
    """A row that has just expired, and its object's key."""
    (key,) = notices.insert([payload])
    notices.drain()
    object_key = notices.object_key(key)
    grow_old(notices, key)
    assert expire(notices).rows_expired == 1
    return key, object_key


def test_objects_are_deleted_when_the_grace_since_their_rows_expiry_is_over(
    database_url: str, any_store: StoreAddress
) -> None:
    with installed(database_url, any_store, object_retention=RETENTION) as notices:
        _, object_key = expired(notices)
        object_bytes = notices.store.head(object_key).bytes
        waiting = sweep(notices, timedelta(hours=1))
        assert (waiting.listed, waiting.due, waiting.objects_deleted) == (1, 0, 0)
        assert keys_in(notices.store) == {object_key}
        done = sweep(notices)
        assert (done.due, done.objects_deleted, done.object_bytes) == (1, 1, object_bytes)
        assert not keys_in(notices.store)
        assert not listed_keys(notices)
        assert logged(notices.connection, "expire objects") == (1, object_bytes)


def test_the_grace_counts_from_the_expiry_however_old_the_object_is(notices: Installation) -> None:
    _, object_key = expired(notices)
    age(notices.store, [object_key])
    assert sweep(notices, MONTH).objects_deleted == 0
    notices.connection.execute("UPDATE payload_offload_expired SET expired_at = expired_at - interval '31 days'")
    assert sweep(notices, MONTH).objects_deleted == 1


def test_the_report_tells_what_is_listed_and_what_is_due(notices: Installation) -> None:
    expired(notices)
    tables = tables_of(notices)
    for grace, due in ((NO_GRACE, 1), (MONTH, 0)):
        counted = count_listed(notices.connection, ListedObjects(tables, None, grace))
        assert (counted.listed, counted.due) == (1, due)
    assert count_listed(notices.connection, ListedObjects(tables, "globex", NO_GRACE)).listed == 0
    assert len(keys_in(notices.store)) == 1


def test_an_object_that_was_put_again_is_left_until_it_is_old(notices: Installation) -> None:
    _, object_key = expired(notices)
    notices.connection.execute("UPDATE payload_offload_expired SET expired_at = expired_at - interval '31 days'")
    left = sweep(notices, MONTH)
    assert (left.due, left.objects_left) == (1, 1)
    assert listed_keys(notices) == {object_key}
    age(notices.store, [object_key])
    assert sweep(notices, MONTH).objects_deleted == 1


def test_an_object_that_a_row_names_again_is_taken_off_the_list(notices: Installation) -> None:
    key, object_key = expired(notices)
    notices.write(key, PAYLOADS[0])
    notices.drain()
    assert notices.object_key(key) == object_key
    result = sweep(notices)
    assert (result.due, result.objects_deleted, result.objects_named) == (1, 0, 1)
    assert not listed_keys(notices)
    notices.assert_invariant()


def test_an_object_that_another_row_still_names_stays_until_that_expires(
    database_url: str, local_store_url: str
) -> None:
    options = {"object_retention": RETENTION, "key_template": "{table}/{sha256}.gz"}
    with installed(database_url, local_store_url, **options) as notices:  # type: ignore[arg-type]  # texts all
        first, second = notices.insert([PAYLOADS[0]] * 2)
        notices.drain()
        grow_old(notices, first)
        expire(notices)
        assert sweep(notices).objects_named == 1
        notices.assert_invariant(expired=[first])
        grow_old(notices, second)
        expire(notices)
        assert sweep(notices).objects_deleted == 1
        assert not keys_in(notices.store)


def test_an_object_that_is_gone_already_is_struck_off_and_counted(notices: Installation) -> None:
    """Where a run was killed between the deletion and its commit."""
    _, object_key = expired(notices)
    notices.store.delete(object_key)
    result = sweep(notices)
    assert (result.objects_deleted, result.objects_gone) == (0, 1)
    assert not listed_keys(notices)
    assert logged(notices.connection, "expire objects")[0] == 1


def test_objects_in_another_store_are_not_taken_for_gone(notices: Installation) -> None:
    _, object_key = expired(notices)
    notices.connection.execute("UPDATE payload_offload_state SET store_url = 's3://elsewhere'")
    with pytest.raises(StoreChangedError, match="its objects are in s3://elsewhere"):
        sweep(notices)
    assert listed_keys(notices) == {object_key}


def test_many_listed_objects_are_deleted_chunk_by_chunk(notices: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expired_objects, "CHUNK_KEYS", 3)
    keys = notices.insert(PAYLOADS)
    notices.drain()
    grow_old(notices, *keys)
    expire(notices)
    notices.write(keys[4], PAYLOADS[4])
    notices.drain()
    result = sweep(notices)
    assert (result.objects_deleted, result.objects_named) == (9, 1)
    assert keys_in(notices.store) == {notices.object_key(keys[4])}


def test_garbage_collection_leaves_listed_objects_alone(notices: Installation) -> None:
    expired(notices)
    found = collect(notices).tables["notices"]
    assert (found.expired, found.deleted) == (1, 0)


# The row afterwards


def test_a_row_that_expired_takes_a_new_payload_and_moves_again(notices: Installation) -> None:
    key, _ = expired(notices)
    notices.write(key, large_payload(2000))
    assert notices.one_status() == "pending_move"
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


def test_an_expired_row_written_again_as_it_is_stays_expired(notices: Installation) -> None:
    key, _ = expired(notices)
    notices.execute("UPDATE {table} SET raw_payload = raw_payload, created_at = now() WHERE id = %s", key)
    assert notices.one_status() == "expired"


def test_the_pointer_of_an_expired_row_cannot_be_put_back_by_hand(notices: Installation) -> None:
    key, object_key = expired(notices)
    with pytest.raises(psycopg.errors.CheckViolation):
        notices.execute("UPDATE {table} SET raw_payload = NULL, raw_object_key = %s WHERE id = %s", object_key, key)
    assert row_hashes(notices.connection, notices.config) == {key: None}
    assert notices.one_status() == "expired"


def test_a_late_restore_brings_back_the_stored_rows_and_leaves_the_expired_ones(notices: Installation) -> None:
    gone, object_key = expired(notices)
    (stored,) = notices.insert(PAYLOADS[5:6])
    notices.drain()
    assert notices.restore().rows_restored == 1
    assert notices.restore(key=gone).rows_restored == 0
    assert notices.statuses() == {gone: "expired", stored: "inline"}
    assert object_key in keys_in(notices.store)
    notices.assert_invariant(expired=[gone])
