"""Release frees what verification passed and PostgreSQL itself hashed again, and nothing else."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from offload_pipeline.offload import release as release_module
from offload_pipeline.offload.failures import count_open
from offload_pipeline_tests.factories import large_payload, row_hashes
from offload_pipeline_tests.offload.explaining import ExplainingDatabase
from offload_pipeline_tests.offload.installation import Installation, installed
from offload_pipeline_tests.offload.stores import CountingStore
from offload_pipeline_tests.servers import wait_until

PAYLOAD = '{"n": 1}'
SHA256 = hashlib.sha256(PAYLOAD.encode()).hexdigest()


def held(notices: Installation) -> dict[Any, str | None]:
    return row_hashes(notices.connection, notices.config)


@pytest.mark.parametrize("after_copy", ["clear", "reference", "keep"])
def test_what_is_left_in_the_row_is_as_configured(database_url: str, local_store_url: str, after_copy: str) -> None:
    with installed(database_url, local_store_url, after_copy=after_copy) as notices:
        (key,) = notices.insert([PAYLOAD])
        drained = notices.drain()
        assert drained.is_sound
        assert drained.released.rows_released == (0 if after_copy == "keep" else 1)
        assert drained.released.payload_bytes == (0 if after_copy == "keep" else len(PAYLOAD))
        assert notices.one_status() == ("copied" if after_copy == "keep" else "in_storage")
        assert (held(notices)[key] == SHA256) == (after_copy == "keep")
        assert (held(notices)[key] is None) == (after_copy == "clear")
        notices.assert_invariant()
        assert notices.drain().is_sound, "and a second pass finds nothing to do"
        notices.assert_invariant()


@pytest.mark.both_servers
@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
def test_a_reference_says_in_the_columns_own_type_where_the_payload_is(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, payload_type: str
) -> None:
    url = (tmp_path_factory.mktemp("a folder with 100%") / "objects").as_uri()
    with installed(database_url, url, after_copy="reference", payload_type=payload_type) as notices:
        (key,) = notices.insert([PAYLOAD])
        assert notices.drain().is_sound
        row = notices.execute(
            "SELECT raw_payload::text, payload_stored_at, raw_payload FROM {table} WHERE id = %s", key
        ).fetchone()
        assert row is not None
        text, stored_at, value = row
        reference = json.loads(text)
        assert isinstance(value, str if payload_type == "text" else dict)
        assert reference["payload_type"] == "storage_ref"
        assert reference["storage_path"] == notices.object_key(key)
        assert reference["size_bytes"] == len(PAYLOAD)
        assert reference["url"] == f"{url}/{notices.object_key(key)}"
        shown = notices.connection.execute("SELECT to_jsonb(%s::timestamptz) #>> '{}'", (stored_at,)).fetchone()
        assert shown is not None
        assert reference["moved_at"][:19] == shown[0][:19]
        notices.assert_invariant()


def test_a_payload_that_looks_like_a_reference_is_a_payload(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, after_copy="reference") as notices:
        looks_alike = f'{{"payload_type": "storage_ref", "storage_path": "x", "size_bytes": 1, "sha256": "{SHA256}"}}'
        notices.insert([looks_alike, PAYLOAD])
        assert notices.drain().is_sound
        assert notices.one_status() == "in_storage"
        notices.assert_invariant()


def test_nothing_is_freed_before_the_release_delay_is_over(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, release_delay="1 hour") as notices:
        old, new = notices.insert([PAYLOAD] * 2)
        notices.copy()
        notices.execute("UPDATE {table} SET payload_stored_at = now() - interval '61 minutes' WHERE id = %s", old)
        notices.verify()
        assert notices.release().rows_released == 1
        assert notices.statuses() == {old: "in_storage", new: "copied"}
        notices.assert_invariant()


def test_release_goes_page_by_page_within_its_limits(notices: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "PAGE_ROWS", 4)
    monkeypatch.setattr(release_module, "PAGE_BYTES", 1000)
    notices.insert(
        [*(large_payload(100, seed) for seed in range(10)), *(large_payload(700, seed) for seed in range(5))]
    )
    notices.copy()
    notices.verify()
    pages: list[tuple[int, int]] = []
    released = notices.pipeline.release(
        notices.partition(), "run", progress=lambda rows, size: pages.append((rows, size))
    )
    assert released.rows_released == 15
    assert sum(rows for rows, _ in pages) == 15
    assert max(rows for rows, _ in pages) == 4
    assert all(size < 1000 + 700 for _, size in pages), "at most one row past the limit"
    assert len(pages) >= 5
    notices.assert_invariant()


@pytest.mark.both_servers
def test_pages_are_hashed_at_once_and_hold_no_row_while_they_wait_for_their_turn(
    notices: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever moves a row by hand holds the partition's counters until its own transaction ends."""
    monkeypatch.setattr(release_module, "PAGE_ROWS", 1)
    notices.insert([PAYLOAD] * 4)
    notices.copy()
    notices.verify()
    with notices.pipeline.connect() as other, ThreadPoolExecutor(1) as threads:
        with other.transaction():
            other.execute("SELECT FROM payload_offload_state FOR UPDATE")
            releasing = threads.submit(notices.release)
            waits = (
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                " AND application_name = 'offload_pipeline'"
            )
            # They give up after LOCK_LIMIT, 5 s.
            assert wait_until(lambda: notices.connection.execute(waits).rowcount == 3, seconds=4)
            notices.execute("SET lock_timeout = '200ms'")
            notices.execute("UPDATE {table} SET created_at = created_at WHERE id = 1")
        released = releasing.result()
    assert (released.rows_released, released.rows_left) == (3, 1), "a version that was not hashed is not freed"
    notices.assert_invariant()


@pytest.mark.parametrize("moment", ["-infinity", "0044-03-15 BC", "infinity"])
def test_a_moment_that_was_edited_to_an_impossible_one_stops_no_other_row(notices: Installation, moment: str) -> None:
    edited, sound = notices.insert([PAYLOAD] * 2)
    notices.copy()
    notices.verify()
    notices.execute("UPDATE {table} SET payload_stored_at = %s::timestamptz WHERE id = %s", moment, edited)
    notices.release()
    assert notices.statuses()[sound] == "in_storage"
    notices.assert_invariant()


@pytest.mark.parametrize("page_rows", [2, 200])
def test_a_row_that_the_table_refuses_to_free_does_not_stop_the_others(
    notices: Installation, monkeypatch: pytest.MonkeyPatch, page_rows: int
) -> None:
    monkeypatch.setattr(release_module, "PAGE_ROWS", page_rows)
    notices.insert([PAYLOAD] * 7)
    notices.execute("ALTER TABLE {table} ADD CONSTRAINT needed CHECK (id NOT IN (3, 7) OR raw_payload IS NOT NULL)")
    notices.copy()
    notices.verify()
    released = notices.release()
    assert (released.rows_released, released.rows_failed) == (5, 2)
    assert {key for key, status in notices.statuses().items() if status == "copied"} == {3, 7}
    failures = notices.failures()
    assert set(failures) == {"3", "7"}
    assert {(one["stage"], one["error_class"]) for one in failures.values()} == {("release", "CheckViolation")}
    notices.assert_invariant()
    notices.execute("ALTER TABLE {table} DROP CONSTRAINT needed")
    notices.let_time_pass()
    assert notices.release().rows_released == 2
    assert all(one["resolved_at"] for one in notices.failures().values())
    notices.assert_invariant()


OTHER_SHA256 = hashlib.sha256(b"another payload").hexdigest()


@pytest.mark.both_servers
@pytest.mark.parametrize(
    "edit",
    [
        f"payload_hash_sha256 = '{OTHER_SHA256}'",
        "payload_hash_sha256 = NULL",
        "raw_object_key = NULL",
        "raw_object_key = 'acme/notices/1/elsewhere'",
        f"raw_object_key = 'acme/notices/1/{OTHER_SHA256}', payload_hash_sha256 = '{OTHER_SHA256}'",
    ],
)
def test_a_row_whose_pointer_was_edited_after_verification_is_not_freed_but_stored_anew(
    notices: Installation, edit: str
) -> None:
    edited, other = notices.insert([PAYLOAD] * 2)
    notices.copy()
    notices.verify()
    notices.execute(f"UPDATE {{table}} SET {edit} WHERE id = %s", edited)  # noqa: S608 - the test's own
    released = notices.release()
    assert (released.rows_released, released.rows_failed) == (1, 1)
    assert notices.statuses() == {edited: "pending_move", other: "in_storage"}
    assert count_open(notices.connection, notices.table, 8) == {"release": (1, 0)}, "not given up: a drain mends it"
    assert held(notices)[edited] == SHA256
    notices.assert_invariant()
    assert notices.drain().is_sound
    assert notices.one_status() == "in_storage"
    notices.assert_invariant()


def test_release_asks_the_database_alone(notices: Installation) -> None:
    notices.insert([PAYLOAD] * 3)
    notices.copy()
    notices.verify()
    store = CountingStore(notices.store)
    notices.with_store(store).release()
    assert not store.gets
    assert not store.trailers
    assert not store.puts
    assert notices.one_status() == "in_storage"


def test_a_row_whose_release_a_trigger_suppresses_is_left(notices: Installation) -> None:
    notices.insert([PAYLOAD] * 2)
    notices.copy()
    notices.verify()
    notices.connection.execute(
        "CREATE FUNCTION ignore() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
    )
    notices.execute(
        "CREATE TRIGGER ignore BEFORE UPDATE ON {table} FOR EACH ROW WHEN (OLD.id = 1) EXECUTE FUNCTION ignore()"
    )
    released = notices.release()
    assert (released.rows_released, released.rows_left, released.rows_failed) == (1, 1, 0)
    notices.assert_invariant()


FILL_IN = "NEW.raw_payload := coalesce(NEW.raw_payload, '0')"
PUT_BACK = "NEW.raw_payload := OLD.raw_payload"


@pytest.mark.both_servers
@pytest.mark.parametrize("body", [FILL_IN, PUT_BACK])
@pytest.mark.parametrize("name", ["a_first", "zzz_last"])
def test_a_trigger_of_the_application_that_undoes_the_release_loses_nothing(
    database_url: str, local_store_url: str, body: str, name: str
) -> None:
    with installed(database_url, local_store_url) as notices:
        notices.insert([PAYLOAD, large_payload(2000)])
        notices.execute(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS "
            f"'BEGIN {body.replace(chr(39), chr(39) * 2)}; RETURN NEW; END'"
        )
        notices.execute(f"CREATE TRIGGER {name} BEFORE UPDATE ON {{table}} FOR EACH ROW EXECUTE FUNCTION meddle()")
        drained = notices.drain()
        assert (drained.released.rows_released, drained.released.rows_failed) == (0, 2)
        assert notices.one_status() == "copied"
        assert {line["error_class"] for line in notices.failures().values()} == {"ReleaseUndoneError"}
        notices.assert_invariant()
        notices.execute(f"DROP TRIGGER {name} ON {{table}}")
        notices.let_time_pass()
        assert notices.drain().released.rows_released == 2
        notices.assert_invariant()


def test_a_change_of_after_copy_without_install_frees_nothing(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, after_copy="clear") as notices:
        notices.insert([PAYLOAD])
        config = notices.config.model_copy(update={"after_copy": "reference"})
        changed = replace(notices, config=config, table=replace(notices.table, config=config))
        drained = changed.drain()
        assert (drained.released.rows_released, drained.released.rows_failed) == (0, 1)
        notices.assert_invariant()


def test_release_hashes_its_page_and_not_the_table(database_url: str, local_store_url: str) -> None:
    """One payload that cannot be printed fails alone, whatever plan PostgreSQL takes."""
    with installed(database_url, local_store_url) as notices:
        notices.insert([large_payload(3000, seed) for seed in range(50)])
        assert notices.copy().rows_copied == 50
        notices.verify()
        notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
        notices.execute(
            "UPDATE {table} SET raw_payload = (SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 10000))"
            " WHERE id = 50"
        )
        notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")
        notices.release()
        assert [key for key, status in notices.statuses().items() if status != "in_storage"] == [50]


def test_one_row_can_be_released_alone(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url) as notices:
        first, second = notices.insert([PAYLOAD, large_payload(2000)])
        notices.copy()
        notices.verify()
        released = notices.pipeline.release(notices.partition(), "run", key=(str(second),))
        assert released.rows_released == 1
        assert notices.statuses() == {first: "copied", second: "in_storage"}
        notices.assert_invariant()


def fail_verification(notices: Installation, key: Any, *, tenant: str = "acme", table: str = "notices") -> None:
    """An open line, as a pass writes it that finds the row's object damaged."""
    notices.connection.execute(
        "INSERT INTO payload_offload_failures (tenant_id, table_name, primary_key, stage, error_class, message)"
        " VALUES (%s, %s, %s, 'verify', 'ObjectMissingError', 'lost')",
        (tenant, table, str(key)),
    )


@pytest.mark.parametrize("page_rows", [2, 200])
def test_rows_known_to_be_damaged_are_passed_over_on_any_page(
    notices: Installation, monkeypatch: pytest.MonkeyPatch, page_rows: int
) -> None:
    monkeypatch.setattr(release_module, "PAGE_ROWS", page_rows)
    keys = notices.insert([PAYLOAD] * 7)
    notices.copy()
    notices.verify()
    for key in (keys[0], keys[2], keys[3]):
        fail_verification(notices, key)
    released = notices.release()
    assert released == release_module.ReleaseResult(rows_released=4, payload_bytes=4 * len(PAYLOAD))
    assert {key for key, status in notices.statuses().items() if status == "copied"} == {keys[0], keys[2], keys[3]}
    alone = notices.pipeline.release(notices.partition(), "run", key=(str(keys[0]),))
    assert alone == release_module.ReleaseResult(), "nor by its key"
    notices.assert_invariant()
    assert notices.drain().released.rows_released == 3, "once they were looked at again"
    notices.assert_invariant()


def test_damage_of_another_row_or_of_the_past_holds_nothing_back(notices: Installation) -> None:
    key, other = notices.insert([PAYLOAD] * 2)
    notices.copy()
    notices.verify()
    fail_verification(notices, key, tenant="globex")
    fail_verification(notices, key, table="letters")
    fail_verification(notices, other)
    notices.connection.execute(
        "UPDATE payload_offload_failures SET resolved_at = now() WHERE primary_key = %s", [str(other)]
    )
    assert notices.release().rows_released == 2
    notices.assert_invariant()


@pytest.mark.both_servers
@pytest.mark.parametrize("is_known", [True, False])
def test_known_damage_is_looked_up_row_by_row_however_much_there_is(notices: Installation, is_known: bool) -> None:
    """Whatever the planner knows of the failures: nothing of the last hour, or the truth."""
    notices.execute("ALTER TABLE {table} SET (autovacuum_enabled = false)")
    notices.connection.execute("ALTER TABLE payload_offload_failures SET (autovacuum_enabled = false)")
    notices.insert([PAYLOAD] * 50)
    notices.copy()
    notices.verify()
    notices.connection.execute("VACUUM (ANALYZE) payload_offload_failures")
    notices.connection.execute(
        "INSERT INTO payload_offload_failures (tenant_id, table_name, primary_key, stage, error_class, message)"
        " SELECT 'acme', 'notices', n, 'verify', 'ObjectMissingError', 'lost' FROM generate_series(26, 5000) AS n"
    )
    if is_known:
        notices.connection.execute("VACUUM (ANALYZE) payload_offload_failures")
    database = ExplainingDatabase(notices.database_url, "public", '"notices"')
    watched = replace(notices, pipeline=replace(notices.pipeline, database=database))
    assert watched.release().rows_released == 25
    for one in database.explained:
        assert one.most_rows("payload_offload_failures") <= 100, f"{one.statement}\n{one.plan}"
    assert any(one.scans("payload_offload_failures") for one in database.explained)
