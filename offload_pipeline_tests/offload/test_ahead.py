"""What a backfill has ahead of it: a dry run that writes nothing and says what will come, and a cheap count."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from offload_pipeline.offload import ahead
from offload_pipeline_tests.factories import large_payload, stored_files
from offload_pipeline_tests.offload.installation import RUN, Installation, installed

THRESHOLD = 500


@pytest.fixture
def old(database_url: str, local_store_url: str) -> Iterator[Installation]:
    """A table above whose threshold a payload must be."""
    with installed(database_url, local_store_url, threshold_bytes=THRESHOLD) as installation:
        yield installation


def insert_unseen(notices: Installation, payloads: list[str], tenant: str = "acme") -> list[Any]:
    """Rows as they were before installation."""
    notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
    keys = notices.insert(payloads, tenant, payload_storage_status=None)
    notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")
    return keys


def payload(number: int) -> str:
    """Half noise, half text that packs well."""
    return large_payload(600 + number % 7 * 300, number)[:-2] + "payload " * (80 + number % 5 * 20) + '"}'


@pytest.mark.both_servers
def test_a_dry_run_says_what_the_backfill_then_does(old: Installation) -> None:
    insert_unseen(old, [payload(number) for number in range(50)] + [large_payload(100)] * 20)
    old.insert([payload(number) for number in range(50, 60)])
    old.insert([payload(99)], tenant="other")
    found = old.pipeline.dry_run(old.partition(), unseen=True)
    done = old.pipeline.copy(old.partition(), RUN, unseen=True)
    assert (found.rows, found.payload_bytes) == (done.rows_copied, done.payload_bytes) == (60, done.payload_bytes)
    # All of them were in the sample.
    assert (found.object_bytes, found.rows_sampled) == (done.object_bytes, 60)


def test_of_many_rows_a_sample_is_packed(old: Installation) -> None:
    insert_unseen(old, [payload(number) for number in range(1000)])
    found = old.pipeline.dry_run(old.partition(), unseen=True)
    done = old.pipeline.copy(old.partition(), RUN, unseen=True)
    assert found.rows_sampled == ahead.SAMPLE_ROWS < found.rows == done.rows_copied
    assert found.object_bytes == pytest.approx(done.object_bytes, rel=0.1)


def test_few_large_payloads_that_hardly_pack_are_not_taken_for_the_many_that_do(old: Installation) -> None:
    squeezed = [json.dumps({"n": number, "text": "b" * 2_000}) for number in range(800)]
    insert_unseen(old, squeezed + [large_payload(400_000, seed) for seed in range(3)])
    found = old.pipeline.dry_run(old.partition(), unseen=True)
    done = old.pipeline.copy(old.partition(), RUN, unseen=True)
    assert found.object_bytes == pytest.approx(done.object_bytes, rel=0.1)


def test_the_sample_is_bounded_in_bytes_too(old: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "SAMPLE_BYTES", 25_000)
    insert_unseen(old, [large_payload(10_000, seed) for seed in range(20)])
    found = old.pipeline.dry_run(old.partition(), unseen=True)
    assert (found.rows, found.rows_sampled) == (20, 2)
    assert 0.4 < found.object_bytes / found.payload_bytes < 0.7


def test_a_dry_run_writes_nothing(old: Installation, tmp_path: Path) -> None:
    insert_unseen(old, [payload(1)])
    old.insert([payload(2)])

    def everything() -> list[Any]:
        tables = ("state", "failures", "log")
        written = [old.connection.execute(f"SELECT * FROM payload_offload_{name}").fetchall() for name in tables]  # noqa: S608 - the names above
        return [*written, old.execute("SELECT ctid, xmin, * FROM {table}").fetchall()]

    before = everything()
    assert old.pipeline.dry_run(old.partition(), unseen=True).rows == 2
    assert everything() == before
    assert stored_files(tmp_path / "objects") == []


def test_a_dry_run_begins_where_the_backfill_would(old: Installation) -> None:
    insert_unseen(old, [payload(number) for number in range(10)])
    old.pipeline.copy(old.partition(), RUN, unseen=True)
    old.execute("UPDATE {table} SET payload_storage_status = NULL, raw_object_key = NULL, payload_hash_sha256 = NULL")
    resumed = old.pipeline.dry_run(old.partition(), unseen=True)
    anew = old.pipeline.dry_run(old.partition(), unseen=True, resume=False)
    assert (resumed.rows, anew.rows) == (0, 10)
    assert old.pipeline.rows_ahead(old.partition(), unseen=True) == 0
    assert old.pipeline.rows_ahead(old.partition(), unseen=True, resume=False) == 10
    old.connection.execute("UPDATE payload_offload_state SET backfilled_at = NULL, checkpoint = ARRAY['4']")
    assert old.pipeline.dry_run(old.partition(), unseen=True).rows == 6
    assert old.pipeline.rows_ahead(old.partition(), unseen=True) == 6


def test_without_the_scan_only_the_queue_is_counted(old: Installation) -> None:
    insert_unseen(old, [payload(1)])
    old.insert([payload(2), payload(3)])
    assert old.pipeline.dry_run(old.partition()).rows == 2
    assert old.pipeline.rows_ahead(old.partition()) == 2


def test_what_would_be_refused_is_counted_apart(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, max_object_bytes=2000) as notices:
        insert_unseen(notices, [large_payload(1000), large_payload(3000)])
        notices.insert([large_payload(4000), large_payload(1500)])
        found = notices.pipeline.dry_run(notices.partition(), unseen=True)
        done = notices.pipeline.copy(notices.partition(), RUN, unseen=True)
        assert (found.rows, found.rows_too_large) == (done.rows_copied, done.rows_failed) == (2, 2)
        assert found.payload_bytes == done.payload_bytes
        # They failed for good, and nothing would try them again.
        assert notices.pipeline.dry_run(notices.partition(), unseen=True, resume=False).rows_too_large == 0


def test_a_row_that_cannot_be_printed_stops_no_dry_run(old: Installation) -> None:
    keys = insert_unseen(old, [large_payload(1000, seed) for seed in range(3)])
    old.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
    # A number with 131,072 digits, 10,000 times: 100 kB in the row, more than a gigabyte as text.
    old.execute(
        "UPDATE {table} SET raw_payload = (SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 10000))"
        " WHERE id = %s", keys[1],
    )  # fmt: skip
    found = old.pipeline.dry_run(old.partition(), unseen=True)
    assert (found.rows, found.rows_sampled) == (3, 2)


def test_nothing_to_do_is_nothing(old: Installation) -> None:
    old.insert([large_payload(100)])
    assert old.pipeline.dry_run(old.partition(), unseen=True) == ahead.DryRun()
    assert old.pipeline.rows_ahead(old.partition(), unseen=True) == 0


@pytest.mark.both_servers
@pytest.mark.parametrize("is_partitioned", [False, True])
def test_what_would_take_long_to_count_is_estimated_from_random_pages(
    old: Installation, monkeypatch: pytest.MonkeyPatch, is_partitioned: bool
) -> None:
    monkeypatch.setattr(ahead, "COUNTED_ROWS", 500)
    # Half of them matter in the end, give or take a tenth.
    monkeypatch.setattr(ahead, "SAMPLED_PAGES", 250)
    if is_partitioned:
        make_partitioned(old.connection)
    old.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
    old.execute(
        "INSERT INTO {table} (id, tenant_id, raw_payload, payload_storage_status)"
        " SELECT n, CASE WHEN n % 4 = 0 THEN 'acme' ELSE 'other' END, to_jsonb(repeat(md5(n::text), 12)), NULL"
        " FROM generate_series(1, 20000) AS n"
    )
    assert old.pipeline.rows_ahead(old.partition(), unseen=True) == pytest.approx(5000, rel=0.6)
    old.connection.execute(
        "INSERT INTO payload_offload_state (table_name, tenant_id, checkpoint) VALUES ('notices', 'acme', '{10000}')"
    )
    assert old.pipeline.rows_ahead(old.partition(), unseen=True) == pytest.approx(2500, rel=0.6)


def make_partitioned(connection: psycopg.Connection) -> None:
    """The same table with two partitions."""
    connection.execute("ALTER TABLE notices RENAME TO shape")
    connection.execute("CREATE TABLE notices (LIKE shape INCLUDING DEFAULTS) PARTITION BY RANGE (id)")
    connection.execute("CREATE TABLE low PARTITION OF notices FOR VALUES FROM (MINVALUE) TO (8000)")
    connection.execute("CREATE TABLE high PARTITION OF notices FOR VALUES FROM (8000) TO (MAXVALUE)")
