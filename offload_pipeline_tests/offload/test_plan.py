"""What is forecast from a sample is what is there, and what then happens."""

import gzip
import json
from typing import Any

import psycopg
import pytest
from psycopg import errors

from offload_pipeline.offload import plan
from offload_pipeline.offload.packing import pack
from offload_pipeline_tests.factories import insert_payloads, install, large_payload, make_pipeline, make_table
from offload_pipeline_tests.offload.installation import installed
from offload_pipeline_tests.offload.population import SIZES, Forecaster, count, documents, fill, holds, one, values
from offload_pipeline_tests.offload.stores import CountingStore
from offload_pipeline_tests.offload.test_round_trip import REAL_PAYLOADS, needs_real_payloads

ROWS = 20_000
SEEDS = 8


@pytest.mark.both_servers
@pytest.mark.parametrize("payload_type", ["jsonb", "json", "text"])
def test_a_small_table_that_is_neither_installed_nor_analysed_is_read_whole_and_known_exactly(
    connection: psycopg.Connection, forecast: Forecaster, payload_type: str
) -> None:
    config = make_table(connection, payload_type=payload_type, threshold_bytes=1000)
    fill(connection, config, documents(500, SIZES["skewed"]))
    insert_payloads(connection, config, [None])
    found, truth = forecast(config), count(connection, config)
    assert 0 < truth.rows_to_move < truth.rows == 501
    assert values(found) == truth
    assert found.is_exact
    assert all(getattr(found, name).is_exact for name in vars(truth))
    assert (found.rows_in_statistics, found.rows_by_state, found.is_installed) == (None, {}, False)
    assert found.sampled.pages == found.sampled.pages_total > 10
    assert found.sizes.heap_bytes >= found.sampled.pages * 8192
    assert found.sizes.index_bytes > 0


@pytest.mark.parametrize("sizes", SIZES)
def test_the_truth_lies_in_the_range_for_nearly_every_seed(
    connection: psycopg.Connection, forecast: Forecaster, sizes: str
) -> None:
    config = make_table(connection, threshold_bytes=1200)
    fill(connection, config, documents(ROWS, SIZES[sizes]))
    truth = count(connection, config)
    found = [forecast(config, seed=seed) for seed in range(SEEDS)]
    for name, true in vars(truth).items():
        hits = sum(holds(each, truth)[name] for each in found)
        assert hits >= SEEDS - 2, f"{name}: {true} in {hits} of {SEEDS}: {[getattr(each, name) for each in found]}"
    assert not any(each.is_exact for each in found)
    assert {each.sampled.pages for each in found} == {300}
    assert all(each.sampled.payloads <= plan.MOST_PAYLOADS + 2 for each in found)


def test_the_same_seed_gives_the_same_forecast(connection: psycopg.Connection, forecast: Forecaster) -> None:
    config = make_table(connection, threshold_bytes=1200)
    fill(connection, config, documents(8_000, SIZES["skewed"]))
    assert forecast(config, seed=3) == forecast(config, seed=3)
    assert forecast(config, seed=3) != forecast(config, seed=4)


def test_payloads_beyond_the_byte_limit_are_sampled_and_their_totals_still_found(
    connection: psycopg.Connection, forecast: Forecaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_table(connection, threshold_bytes=20_000)
    fill(connection, config, documents(1500, lambda _, rng: rng.lognormvariate(10.3, 0.8)))
    truth = count(connection, config)
    monkeypatch.setattr(plan, "MOST_STORED_BYTES", 3_000_000)
    found = [forecast(config, seed=seed) for seed in range(SEEDS)]
    for each in found:
        assert each.sampled.pages == each.sampled.pages_total, "the heap is small, its TOAST is not"
        assert 50 < each.sampled.payloads < 400
        assert each.rows.is_exact
        assert not each.is_exact
        assert each.payload_bytes.value == pytest.approx(truth.payload_bytes, rel=0.15)
        assert each.object_bytes.value == pytest.approx(truth.object_bytes, rel=0.15)
    for name in vars(truth):
        assert sum(holds(each, truth)[name] for each in found) >= SEEDS - 2, name


@pytest.mark.both_servers
def test_what_was_forecast_from_a_sample_is_what_a_backfill_then_does(
    database_url: str, local_store_url: str, connection: psycopg.Connection, forecast: Forecaster
) -> None:
    config = make_table(connection, threshold_bytes=4000)
    fill(connection, config, documents(12_000, SIZES["skewed"]))
    found = forecast(config)
    assert not found.is_exact
    pipeline = make_pipeline(database_url, local_store_url, [config])
    install(pipeline)
    before = one(connection, "SELECT sum(pg_column_size(raw_payload)) FROM notices")
    (partition,) = pipeline.partitions(connection, None, None)
    drained = pipeline.drain(partition, "test-run", unseen=True)
    assert drained.is_sound
    freed = before - one(connection, "SELECT sum(pg_column_size(raw_payload)) FROM notices")
    assert drained.released.rows_released > 500
    happened = {
        "rows_to_move": drained.copied.rows_copied,
        "payload_bytes": drained.copied.payload_bytes,
        "object_bytes": drained.copied.object_bytes,
        "database_bytes": freed,
    }
    for name, amount in happened.items():
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(amount, rel=0.15), name
        assert estimate.low <= amount <= estimate.high, name
    after = forecast(config)
    assert after.rows_to_move.value == 0
    moved = after.rows_by_state["moved"]
    assert moved.value == pytest.approx(drained.released.rows_released, rel=0.5), "they lie together, in few pages"


@pytest.mark.both_servers
@pytest.mark.parametrize("after_copy", ["clear", "reference", "keep"])
def test_an_exact_forecast_is_what_a_backfill_does_to_the_byte_and_the_request(
    database_url: str, local_store_url: str, after_copy: str
) -> None:
    with installed(database_url, local_store_url, threshold_bytes=1500, after_copy=after_copy) as installation:
        config, connection = installation.config, installation.connection
        connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
        connection.execute("ALTER TABLE notices ALTER COLUMN payload_storage_status DROP DEFAULT")
        fill(connection, config, documents(300, SIZES["skewed"]))
        connection.execute("ALTER TABLE notices ENABLE TRIGGER USER")
        found = installation.pipeline.forecast(installation.table)
        assert found.is_exact
        kept = "pg_column_size(payload_storage_status) + pg_column_size(payload_bytes) + pg_column_size(raw_object_key)"
        kept += " + pg_column_size(payload_hash_sha256) + pg_column_size(payload_stored_at)"
        before = one(connection, "SELECT sum(pg_column_size(raw_payload)) FROM notices")
        counting = installation.with_store(CountingStore(installation.store))
        drained = counting.pipeline.drain(counting.partition(), "test-run", unseen=True)
        assert drained.is_sound
        assert (found.rows_to_move.value, found.object_bytes.value) == (
            drained.copied.rows_copied, drained.copied.object_bytes
        )  # fmt: skip
        assert found.rows_to_move.value > 50
        store = counting.store
        assert isinstance(store, CountingStore)
        assert found.requests.put == store.puts.total()
        assert found.requests.get_end == store.trailers.total()
        assert found.requests.get_read_back + found.requests.get_sample == store.gets.total()
        moved = " FROM notices WHERE raw_object_key IS NOT NULL"
        pointers = one(connection, f"SELECT sum({kept})" + moved)
        stays = one(connection, "SELECT coalesce(sum(pg_column_size(raw_payload)), 0)" + moved)
        assert found.left_bytes.value == pytest.approx(pointers + stays, rel=0.05)
        after = one(connection, "SELECT sum(pg_column_size(raw_payload)) FROM notices")
        assert found.freed_bytes.value == pytest.approx(before - after - pointers, rel=0.02)


def test_only_what_a_backfill_would_take_counts_as_still_to_move(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, threshold_bytes=1000, max_object_bytes=50_000) as installation:
        connection, config = installation.connection, installation.config
        installation.insert([large_payload(2000, seed) for seed in range(3)])
        assert installation.drain().is_sound
        installation.insert([large_payload(3000, seed) for seed in range(2)])
        installation.insert([large_payload(60_000)])
        installation.insert(["{}"])
        connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
        unseen: dict[str, Any] = {"payload_storage_status": None}
        insert_payloads(connection, config, [large_payload(4000), '{"small": 1}'], **unseen)
        insert_payloads(connection, config, [large_payload(4000)], **unseen, tenant_id=None)
        connection.execute("UPDATE notices SET tenant_id = NULL WHERE id = (SELECT max(id) FROM notices)")
        # Larger than the threshold is now, and judged small when it was written.
        insert_payloads(connection, config, [large_payload(5000)], payload_storage_status="inline")
        found = installation.pipeline.forecast(installation.table)
        assert found.is_exact
        assert {state: rows.value for state, rows in found.rows_by_state.items()} == {
            "never_seen": 3, "inline": 2, "pending": 3, "moved": 3
        }  # fmt: skip
        assert found.rows_to_move.value == 3
        assert found.rows_too_large.value == 1
        assert found.rows_without_tenant.value == 1


@pytest.mark.both_servers
def test_lz4_and_gzip_in_the_row_are_what_such_columns_then_hold(
    connection: psycopg.Connection, forecast: Forecaster
) -> None:
    config = make_table(connection, threshold_bytes=1000)
    fill(connection, config, documents(300, SIZES["skewed"]))
    found = forecast(config)
    connection.execute("CREATE TABLE packed (data bytea)")
    rows = connection.execute("SELECT convert_to(raw_payload::text, 'UTF8') FROM notices").fetchall()
    with connection.cursor() as cursor:
        for (payload,) in rows:
            if len(payload) > 1000:
                cursor.execute("INSERT INTO packed VALUES (%s)", [pack(payload).data])
    held = one(connection, "SELECT sum(pg_column_size(data)) FROM packed")
    assert found.gzip_in_row_bytes.value == pytest.approx(held, rel=0.01)
    try:
        connection.execute("CREATE TABLE in_lz4 (payload jsonb COMPRESSION lz4)")
    except errors.FeatureNotSupported:
        assert found.lz4_bytes is None
        assert found.no_lz4_because == "this server was built without lz4"
        return
    connection.execute(
        "INSERT INTO in_lz4 SELECT raw_payload::text::jsonb FROM notices WHERE octet_length(raw_payload::text) > 1000"
    )
    assert found.no_lz4_because is None
    assert found.lz4_bytes is not None
    assert found.lz4_bytes.value == pytest.approx(
        one(connection, "SELECT sum(pg_column_size(payload)) FROM in_lz4"), rel=0.001
    )
    assert found.lz4_bytes.value != found.database_bytes.value


@needs_real_payloads
def test_real_webhook_payloads_are_forecast_to_the_byte(connection: psycopg.Connection, forecast: Forecaster) -> None:
    config = make_table(connection, threshold_bytes=4096)
    with gzip.open(REAL_PAYLOADS, "rt", encoding="utf-8") as lines:
        fill(connection, config, [json.dumps(json.loads(line)["payload"]) for line in lines])
    found, truth = forecast(config), count(connection, config)
    assert found.is_exact
    assert values(found) == truth
    assert truth.rows_to_move > 0
    assert found.compression_ratio.value > 2
