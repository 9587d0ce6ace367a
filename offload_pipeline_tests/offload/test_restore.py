"""Restore puts back, byte for byte, what the rows held before, and leaves nothing half done."""

import gzip
import json
from collections.abc import Callable, Iterable
from typing import Any

import psycopg
import pytest

from offload_pipeline.errors import (
    ObjectMissingError,
    RowNotFoundError,
    StoreChangedError,
    StoreDeniedError,
    StoreUnavailableError,
    UserError,
)
from offload_pipeline.offload import restore as restore_module
from offload_pipeline.offload.failures import open_failures
from offload_pipeline.offload.workers import STORE_DOWN_AFTER_FAILURES
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import RUN, Installation, StoreAddress, installed
from offload_pipeline_tests.offload.stores import CountingStore, truncated
from offload_pipeline_tests.offload.test_round_trip import (
    PAYLOADS_BY_TYPE,
    REAL_PAYLOADS,
    TEN_MEGABYTES,
    documents,
    needs_real_payloads,
    nested,
)

SMALL = '{"n": 1}'
POINTER = ("raw_object_key", "payload_hash_sha256", "payload_stored_at")


class FailingStore(ObjectStore):
    """Answers every GET whose key holds one of `parts` with this error."""

    def __init__(self, inner: ObjectStore, error: Exception, *parts: str) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self._error, self._parts = error, parts
        self.attempts = 0

    def get(self, key: str) -> bytes:
        if any(part in key for part in self._parts):
            self.attempts += 1
            raise self._error
        return super().get(key)


def whole_table(notices: Installation) -> tuple[Any, ...]:
    """Rows, and one md5 over every key, tenant and payload."""
    row = notices.execute(
        "SELECT count(*), md5(string_agg(concat_ws('|', id, tenant_id, created_at, md5(raw_payload::text)), ','"
        " ORDER BY id)) FROM {table}"
    ).fetchone()
    assert row is not None
    return tuple(row)


def held(notices: Installation, key: Any) -> tuple[Any, ...]:
    """Status and pointer of one row."""
    row = notices.execute(
        "SELECT payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256, payload_stored_at"
        " FROM {table} WHERE id = %s",
        key,
    ).fetchone()
    assert row is not None
    return tuple(row)


def logged(notices: Installation, action: str = "restore") -> tuple[int, int]:
    """Rows and bytes of this action in the audit log."""
    row = notices.connection.execute(
        "SELECT coalesce(sum(rows), 0), coalesce(sum(bytes), 0) FROM payload_offload_log WHERE action = %s", [action]
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def assert_table_comes_back(notices: Installation, payloads: Iterable[str | None]) -> None:
    keys = notices.insert(payloads)
    before = whole_table(notices)
    sizes = notices.execute("SELECT sum(octet_length(raw_payload::text)) FROM {table}").fetchone()
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    assert whole_table(notices) != before

    result = notices.restore()

    assert result.is_sound, result.failures
    assert (result.rows_restored, result.rows_left, result.pointers_dropped) == (len(keys), 0, 0)
    assert (result.payload_bytes,) == sizes
    assert whole_table(notices) == before
    assert notices.one_status() == "inline"
    assert logged(notices) == (len(keys), result.payload_bytes)
    notices.assert_invariant()


@pytest.mark.parametrize("after_copy", ["clear", "reference"])
@pytest.mark.parametrize("payload_type", PAYLOADS_BY_TYPE)
def test_a_restored_table_is_byte_for_byte_what_it_was(
    database_url: str, any_store: StoreAddress, payload_type: str, after_copy: str
) -> None:
    with installed(database_url, any_store, payload_type=payload_type, after_copy=after_copy) as notices:
        assert_table_comes_back(
            notices, [*PAYLOADS_BY_TYPE[payload_type], nested(500), *documents(), large_payload(TEN_MEGABYTES)]
        )


@pytest.mark.both_servers
@pytest.mark.parametrize("payload_type", PAYLOADS_BY_TYPE)
def test_a_restored_table_is_what_it_was_on_every_server(
    database_url: str, local_store_url: str, payload_type: str
) -> None:
    with installed(database_url, local_store_url, payload_type=payload_type) as notices:
        assert_table_comes_back(notices, [*PAYLOADS_BY_TYPE[payload_type], *documents()])


@needs_real_payloads
def test_real_webhook_payloads_are_restored_byte_for_byte(database_url: str, any_store: StoreAddress) -> None:
    with gzip.open(REAL_PAYLOADS, "rt", encoding="utf-8") as lines:
        payloads = [json.dumps(json.loads(line)["payload"], ensure_ascii=False) for line in lines]
    with installed(database_url, any_store) as notices:
        assert_table_comes_back(notices, payloads)


def test_a_payload_that_may_not_be_null_is_restored(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, after_copy="reference") as notices:
        notices.execute("ALTER TABLE {table} ALTER raw_payload SET NOT NULL")
        assert_table_comes_back(notices, [SMALL, "null"])


def test_composite_keys_of_any_characters_are_restored(database_url: str, local_store_url: str) -> None:
    columns = {"part": "text", "id": "bigint"}
    with installed(database_url, local_store_url, key_columns=columns, tenant_column=None) as notices:
        notices.execute("ALTER TABLE {table} ADD tenant_id text")
        for part in ("a,b", "100%", "", "é\n", "it's"):
            notices.insert([large_payload(500, len(part))], part=part, id=len(part))
        before = whole_table(notices)
        assert notices.drain().is_sound
        assert notices.restore().rows_restored == 5
        assert whole_table(notices) == before


def test_the_pointer_goes_and_the_object_and_the_size_stay(notices: Installation) -> None:
    (key,) = notices.insert([large_payload(1000)])
    notices.drain()
    object_key = notices.object_key(key)
    notices.restore()
    assert held(notices, key) == ("inline", len(large_payload(1000)), None, None, None)
    assert notices.store.get(object_key), "objects are left for garbage collection"


@pytest.mark.both_servers
def test_copies_lose_their_pointer_and_nothing_is_read_from_the_store(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, after_copy="keep") as notices:
        keys = notices.insert([large_payload(1000, seed) for seed in range(3)])
        notices.drain()
        before = whole_table(notices)
        store = CountingStore(notices.store)
        result = notices.with_store(store).restore()
        assert (result.pointers_dropped, result.rows_restored, result.payload_bytes) == (3, 0, 0)
        assert not store.gets
        assert {held(notices, key) for key in keys} == {("inline", len(large_payload(1000)), None, None, None)}
        assert whole_table(notices) == before
        assert logged(notices) == (3, 0)


def test_a_second_restore_has_nothing_to_do(notices: Installation) -> None:
    notices.insert([SMALL] * 3)
    notices.drain()
    assert notices.restore().rows_restored == 3
    store = CountingStore(notices.store)
    again = notices.with_store(store).restore()
    assert (again.rows_restored, again.pointers_dropped, again.rows_left) == (0, 0, 0)
    assert not store.gets
    assert logged(notices)[0] == 3


def test_pending_inline_and_empty_rows_are_left_as_they_are(notices: Installation) -> None:
    notices.insert([None, SMALL])
    before = notices.execute("SELECT * FROM {table} ORDER BY id").fetchall()
    assert notices.restore().is_sound
    assert notices.execute("SELECT * FROM {table} ORDER BY id").fetchall() == before


def test_one_tenant_is_restored_and_the_others_are_not(notices: Installation) -> None:
    mine, other = notices.insert([SMALL], tenant="acme"), notices.insert([SMALL], tenant="globex")
    for tenant in ("acme", "globex"):
        notices.drain(tenant)
    assert notices.restore("globex").rows_restored == 1
    assert notices.statuses() == {mine[0]: "in_storage", other[0]: "inline"}


@pytest.mark.parametrize("status", ["copied", "in_storage"])
def test_one_row_is_restored_alone(notices: Installation, status: str) -> None:
    first, second, third = notices.insert([large_payload(1000, seed) for seed in range(3)])
    notices.copy()
    if status == "in_storage":
        notices.verify()
        notices.release()
    partition, key = notices.pipeline.row("notices", str(second))
    assert partition == notices.partition()
    result = notices.pipeline.restore(partition, RUN, key=key)
    assert result.rows_restored + result.pointers_dropped == 1
    assert notices.statuses() == {first: status, second: "inline", third: status}
    notices.assert_invariant()


def test_a_row_that_is_not_there_or_belongs_to_no_partition_is_one_line(notices: Installation) -> None:
    (key,) = notices.insert([SMALL])
    with pytest.raises(RowNotFoundError, match=r"^notices has no row with the key 99; check the key$"):
        notices.pipeline.row("notices", "99")
    with pytest.raises(UserError, match=r"'x' is no key .* the key is id bigint$"):
        notices.pipeline.row("notices", "x")
    notices.execute("UPDATE {table} SET tenant_id = NULL")
    with pytest.raises(UserError, match=f"tenant_id of the row {key} is NULL"):
        notices.pipeline.row("notices", str(key))


def test_a_row_in_storage_that_moved_to_a_tenant_nobody_worked_on_is_found_there(notices: Installation) -> None:
    keys = notices.insert([SMALL] * 2)
    notices.drain()
    notices.execute("UPDATE {table} SET tenant_id = 'newcomer' WHERE id = %s", keys[0])
    assert "newcomer" in notices.pipeline.tenants(notices.connection, notices.table)
    assert notices.restore("newcomer").rows_restored == 1


@pytest.mark.both_servers
@pytest.mark.parametrize("status", ["copied", "in_storage"])
def test_a_row_whose_moment_of_storing_was_edited_away_is_restored_too(notices: Installation, status: str) -> None:
    keys = notices.insert([large_payload(300, seed) for seed in range(5)])
    notices.copy()
    if status == "in_storage":
        notices.verify()
        notices.release()
    notices.execute("UPDATE {table} SET payload_stored_at = NULL WHERE id = ANY(%s)", keys[1:3])
    assert notices.restore().is_sound
    assert notices.one_status() == "inline"
    notices.assert_invariant()


def spoil_by_deleting(notices: Installation, object_key: str) -> None:
    notices.store.delete(object_key)


def spoil_by_truncating(notices: Installation, object_key: str) -> None:
    notices.store.put(object_key, truncated(notices.store.get(object_key)))


def spoil_by_exchanging(notices: Installation, object_key: str) -> None:
    notices.store.put(object_key, gzip.compress(b'{"another": "payload"}'))


@pytest.mark.both_servers
@pytest.mark.parametrize(
    ("spoil", "error_class"),
    [
        (spoil_by_deleting, "ObjectMissingError"),
        (spoil_by_truncating, "ObjectDamagedError"),
        (spoil_by_exchanging, "ObjectDamagedError"),
    ],
)
def test_a_damaged_object_is_a_failure_until_it_is_put_back_and_the_others_are_restored(
    notices: Installation, spoil: Callable[[Installation, str], None], error_class: str
) -> None:
    first, damaged, last = notices.insert([large_payload(1000, seed) for seed in range(3)])
    notices.drain()
    object_key = notices.object_key(damaged)
    intact = notices.store.get(object_key)
    spoil(notices, object_key)
    result = notices.restore()
    assert (result.rows_restored, result.rows_failed, result.stopped_by) == (2, 1, None)
    assert [failure.key for failure in result.failures] == [(str(damaged),)]
    assert notices.statuses() == {first: "inline", damaged: "in_storage", last: "inline"}
    (failure,) = open_failures(notices.connection, "public", 8)
    assert (failure.stage, failure.error_class, failure.primary_key) == ("restore", error_class, str(damaged))
    assert notices.object_key(damaged) == object_key
    assert notices.verify(full=True).damaged, "and verification sees the same"

    notices.store.put(object_key, intact)
    assert notices.restore().rows_restored == 1
    assert open_failures(notices.connection, "public", 8) == []
    assert notices.one_status() == "inline"
    notices.assert_invariant()


def test_a_transient_error_of_one_object_is_recorded_and_the_others_are_restored(notices: Installation) -> None:
    notices.insert([SMALL] * 5)
    notices.drain()
    failing = notices.with_store(FailingStore(notices.store, StoreUnavailableError("the store failed (503)"), "/3/"))
    result = failing.restore()
    assert (result.rows_restored, result.rows_failed, result.stopped_by) == (4, 1, None)
    assert notices.failures()["3"]["stage"] == "restore"
    assert notices.restore().rows_restored == 1, "at once: restoring is asked for, and waits for no next attempt"
    assert notices.failures()["3"]["resolved_at"] is not None


def test_a_payload_written_over_one_that_could_not_be_restored_closes_its_failure_when_it_is_copied(
    notices: Installation,
) -> None:
    (key,) = notices.insert([large_payload(1000)])
    notices.drain()
    notices.store.delete(notices.object_key(key))
    assert notices.restore().rows_failed == 1
    notices.execute("UPDATE {table} SET raw_payload = %s", SMALL)
    notices.copy()
    assert notices.one_status() == "copied"
    assert open_failures(notices.connection, "public", 8) == []


FEW_AT_A_TIME = {"offload": {"batch_rows": 10, "batches_in_flight": 2, "store_threads": 4}}


def test_a_store_that_is_down_ends_the_pass_early(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, sections=FEW_AT_A_TIME) as notices:
        notices.insert([SMALL] * 200)
        notices.drain()
        store = FailingStore(notices.store, StoreUnavailableError("the store failed (503)"), "/")
        result = notices.with_store(store).restore()
        assert isinstance(result.stopped_by, StoreUnavailableError)
        assert not result.is_sound
        assert STORE_DOWN_AFTER_FAILURES <= store.attempts == result.rows_failed < STORE_DOWN_AFTER_FAILURES + 8
        assert notices.one_status() == "in_storage"
        assert notices.restore().rows_restored == 200
        notices.assert_invariant()


def test_a_store_that_denies_ends_the_pass_at_once_and_no_row_is_blamed(notices: Installation) -> None:
    notices.insert([SMALL] * 50)
    notices.drain()
    store = FailingStore(notices.store, StoreDeniedError("access denied (403)"), "/")
    result = notices.with_store(store).restore()
    assert isinstance(result.stopped_by, StoreDeniedError)
    assert (result.rows_failed, notices.failures()) == (0, {})
    assert store.attempts <= notices.pipeline.config.offload.store_threads
    assert notices.one_status() == "in_storage"


def test_objects_in_another_store_than_the_configured_one_are_not_looked_for(
    notices: Installation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    notices.insert([SMALL])
    notices.drain()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    other = notices.with_store(ObjectStore(notices.store._store, elsewhere.as_uri(), elsewhere))
    with pytest.raises(StoreChangedError, match="correct the URL"):
        other.restore()
    assert notices.failures() == {}
    assert notices.restore().rows_restored == 1


def refuse_by_check(notices: Installation) -> str:
    notices.execute("ALTER TABLE {table} ADD CHECK (id <> 2 OR payload_storage_status <> 'inline')")
    return "CheckViolation"


def refuse_by_trigger(notices: Installation) -> str:
    notices.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'row % is frozen', NEW.id; END $$"
    )
    notices.execute(
        "CREATE TRIGGER frozen BEFORE UPDATE ON {table} FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION refuse()"
    )
    return "RaiseException"


def refuse_at_commit(notices: Installation) -> str:
    refuse_by_trigger(notices)
    notices.execute(
        "DROP TRIGGER frozen ON {table}; CREATE CONSTRAINT TRIGGER frozen AFTER UPDATE ON {table} DEFERRABLE INITIALLY"
        " DEFERRED FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION refuse()"
    )
    return "RaiseException"


def change_what_comes_back(notices: Installation, when: str, name: str) -> str:
    body = {
        "BEFORE": "NEW.raw_payload := NEW.raw_payload || '{\"seen\": true}'; RETURN NEW",
        "AFTER": "UPDATE notices SET raw_payload = '{}' WHERE id = NEW.id; RETURN NULL",
    }[when]
    notices.connection.execute(f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$")
    notices.execute(
        f"CREATE TRIGGER {name} {when} UPDATE ON {{table}} FOR EACH ROW"
        " WHEN (NEW.id = 2 AND OLD.payload_storage_status = 'in_storage') EXECUTE FUNCTION meddle()"
    )
    return "RestoreUndoneError"


@pytest.mark.both_servers
@pytest.mark.parametrize(
    "meddle",
    [
        pytest.param(refuse_by_check, id="a check"),
        pytest.param(refuse_by_trigger, id="a trigger that raises"),
        pytest.param(refuse_at_commit, id="a trigger that raises at the commit"),
        pytest.param(lambda notices: change_what_comes_back(notices, "BEFORE", "a_first"), id="a change before ours"),
        pytest.param(lambda notices: change_what_comes_back(notices, "BEFORE", "zzz_last"), id="a change after ours"),
        pytest.param(lambda notices: change_what_comes_back(notices, "AFTER", "a_first"), id="a change afterwards"),
    ],
)
def test_a_row_that_the_table_refuses_or_changes_stays_in_storage_and_the_others_are_restored(
    notices: Installation, meddle: Callable[[Installation], str]
) -> None:
    notices.insert([large_payload(1000, seed) for seed in range(3)])
    notices.drain()
    error_class = meddle(notices)
    result = notices.restore()
    assert (result.rows_restored, result.rows_failed) == (2, 1)
    assert notices.statuses() == {1: "inline", 2: "in_storage", 3: "inline"}
    assert (notices.failures()["2"]["stage"], notices.failures()["2"]["error_class"]) == ("restore", error_class)
    assert logged(notices)[0] == 2
    notices.assert_invariant()


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "20000-01-01", "0044-03-15 BC"])
def test_a_row_that_was_edited_to_an_impossible_moment_is_restored_like_any_other(
    notices: Installation, moment: str
) -> None:
    keys = notices.insert([large_payload(1000, seed) for seed in range(3)])
    notices.drain()
    notices.execute("UPDATE {table} SET payload_stored_at = %s::timestamptz WHERE id = %s", moment, keys[1])
    assert notices.restore().rows_restored == 3
    assert notices.one_status() == "inline"
    notices.assert_invariant()


def test_a_row_whose_update_a_trigger_suppresses_is_left(notices: Installation) -> None:
    notices.insert([SMALL] * 2)
    notices.drain()
    notices.connection.execute(
        "CREATE FUNCTION ignore() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
    )
    notices.execute(
        "CREATE TRIGGER ignore BEFORE UPDATE ON {table} FOR EACH ROW WHEN (OLD.id = 1) EXECUTE FUNCTION ignore()"
    )
    result = notices.restore()
    assert (result.rows_restored, result.rows_left, result.rows_failed) == (1, 1, 0)
    notices.assert_invariant()


def test_a_copy_that_lost_its_payload_past_the_trigger_keeps_its_pointer(notices: Installation) -> None:
    lost, _ = notices.insert([large_payload(300, seed) for seed in range(2)])
    notices.copy()
    with notices.connection.transaction():
        notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
        notices.execute("UPDATE {table} SET raw_payload = NULL WHERE id = %s", lost)
        notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")
    result = notices.restore()
    assert (result.pointers_dropped, result.rows_failed) == (1, 1)
    assert notices.store.get(notices.object_key(lost))
    assert "removed past the trigger" in notices.failures()[str(lost)]["message"]


@pytest.mark.both_servers
@pytest.mark.parametrize("after_copy", ["clear", "reference"])
@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
def test_a_payload_written_past_the_trigger_is_not_overwritten_before_somebody_chose(
    database_url: str, local_store_url: str, payload_type: str, after_copy: str
) -> None:
    with installed(database_url, local_store_url, payload_type=payload_type, after_copy=after_copy) as notices:
        new_one, old_one, other = notices.insert([SMALL] * 3)
        notices.drain()
        for key in (new_one, old_one):
            notices.write_past_the_trigger(key, '{"sha256": "nowhere else"}')
        notices.take_rows_as_expected([new_one])
        result = notices.restore()
        assert (result.rows_restored, result.rows_left, result.rows_failed) == (1, 0, 2)
        assert "raw_payload = raw_payload, raw_object_key = NULL;" in notices.failures()[str(new_one)]["message"]
        assert notices.failures()[str(old_one)]["error_class"] == "PayloadBesidePointerError"

        notices.execute("UPDATE {table} SET raw_payload = raw_payload, raw_object_key = NULL WHERE id = %s", new_one)
        notices.execute("UPDATE {table} SET raw_payload = NULL, payload_stored_at = now() WHERE id = %s", old_one)
        assert notices.restore().rows_restored == 1
        assert notices.statuses() == {new_one: "pending_move", old_one: "inline", other: "inline"}
        notices.assert_invariant()


@pytest.mark.parametrize("column", ["payload_hash_sha256", "raw_object_key"])
def test_half_a_pointer_is_a_failure_of_its_row(notices: Installation, column: str) -> None:
    notices.insert([SMALL] * 2)
    notices.drain()
    with notices.connection.transaction():
        notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
        notices.execute(f"UPDATE {{table}} SET {column} = NULL WHERE id = 1")  # noqa: S608 - the test's own
        notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")
    result = notices.restore()
    assert (result.rows_restored, result.rows_failed) == (1, 1)
    assert notices.failures()["1"]["error_class"] == "ObjectDamagedError"


def test_a_trigger_older_than_restore_restores_nothing_and_says_what_to_do(notices: Installation) -> None:
    notices.insert([SMALL])
    notices.drain()
    notices.connection.execute(
        "CREATE OR REPLACE FUNCTION notices_payload_offload() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " NEW.payload_storage_status := 'pending_move'; RETURN NEW; END $$"
    )
    assert notices.restore().rows_failed == 1
    assert "run offload install" in notices.failures()["1"]["message"]
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


@pytest.mark.parametrize(("default", "wanted"), [("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")])
def test_a_payload_is_back_on_disk_before_its_object_may_be_collected(
    database_url: str, local_store_url: str, default: str, wanted: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = %L',"
            f" current_database(), '{default}'); END $$"
        )
    with installed(database_url, local_store_url, extra_columns={"committed": "text"}) as notices:
        notices.insert([SMALL])
        notices.drain()
        notices.connection.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.committed := current_setting('synchronous_commit'); RETURN NEW; END $$"
        )
        notices.execute("CREATE TRIGGER note BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note()")
        assert notices.restore().rows_restored == 1
        assert notices.execute("SELECT committed FROM {table}").fetchone() == (wanted,)


def test_pages_are_bounded_in_rows_and_in_bytes(database_url: str, local_store_url: str) -> None:
    limits = {"offload": {"batch_rows": 4, "batch_bytes": 1000, "batches_in_flight": 1}}
    with installed(database_url, local_store_url, sections=limits) as notices:
        notices.insert([*(large_payload(100, n) for n in range(10)), *(large_payload(700, n) for n in range(5))])
        notices.drain()
        pages: list[tuple[int, int]] = []
        result = notices.pipeline.restore(
            notices.partition(), RUN, progress=lambda rows, size: pages.append((rows, size))
        )
        assert sum(rows for rows, _ in pages) == result.rows_restored == 15
        assert max(rows for rows, _ in pages) == 4
        assert all(size < 1000 + 700 for _, size in pages), "at most one row past the limit"
        assert len(pages) >= 5
        notices.assert_invariant()


def test_each_object_is_read_once(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, sections=FEW_AT_A_TIME) as notices:
        notices.insert([large_payload(200, seed) for seed in range(45)])
        notices.drain()
        store = CountingStore(notices.store)
        assert notices.with_store(store).restore().rows_restored == 45
        assert set(store.gets.values()) == {1}
        assert len(store.gets) == 45


def test_a_list_of_failures_is_cut_and_the_count_is_not(notices: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore_module, "LISTED_FAILURES", 3)
    notices.insert([SMALL] * 7)
    notices.drain()
    result = notices.with_store(FailingStore(notices.store, ObjectMissingError("no object"), "/")).restore()
    assert (result.rows_failed, len(result.failures)) == (7, 3)
    assert len(notices.failures()) == 7


def test_the_hint_of_the_trigger_names_the_mend_that_works(notices: Installation) -> None:
    (key,) = notices.insert([SMALL])
    notices.drain()
    edit = "UPDATE {table} SET raw_payload = raw_payload || '{{\"seen\": true}}' WHERE id = %s"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
        notices.execute(edit, key)
    hint = caught.value.diag.message_hint or ""
    assert "offload restore --table notices --primary-key KEY" in hint
    notices.restore(key=key)
    notices.execute(edit, key)
    row = notices.execute("SELECT raw_payload::text FROM {table}").fetchone()
    assert row == ('{"n": 1, "seen": true}',)
