"""A worker's memory depends on the size of its batches, not on how many rows there are."""

import sys
from pathlib import Path
from typing import Any

import pytest

from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import Installation, installed
from offload_pipeline_tests.offload.worker import result_of, start_worker

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")

ROW_BYTES = 8_000
TEN_MEGABYTES = 10 * 1024 * 1024
# As many as there are threads that read the sample.
LARGE_PAYLOADS = 16
LIMIT_MEGABYTES = 400
GROWTH_MEGABYTES = 40


def insert_rows(notices: Installation, rows: int, tenant: str) -> None:
    """Rows that hardly compress, made by PostgreSQL."""
    notices.execute(
        "INSERT INTO {table} (tenant_id, raw_payload)"
        " SELECT %s, jsonb_build_object('n', n, 'noise', string_agg(md5(n::text || '/' || i::text), ''))"
        " FROM generate_series(1, %s) AS n, generate_series(1, %s) AS i GROUP BY n",
        tenant, rows, ROW_BYTES // 32,
    )  # fmt: skip


def drain_in_a_worker(notices: Installation, folder: Path, tenant: str) -> dict[str, Any]:
    return result_of(start_worker(notices.pipeline, folder, tenant=tenant))


def assert_memory_does_not_grow(notices: Installation, folder: Path, few: int, many: int) -> None:
    peaks = {}
    for rows in (few, many):
        insert_rows(notices, rows, str(rows))
        result = drain_in_a_worker(notices, folder, str(rows))
        assert result["rows_released"] == rows
        peaks[rows] = result["peak_megabytes"]
    assert peaks[many] < LIMIT_MEGABYTES
    assert peaks[many] - peaks[few] < GROWTH_MEGABYTES, peaks


def test_memory_does_not_grow_with_the_rows(notices: Installation, tmp_path: Path) -> None:
    assert_memory_does_not_grow(notices, tmp_path, few=1_000, many=5_000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_very_many_rows(notices: Installation, tmp_path: Path) -> None:
    assert_memory_does_not_grow(notices, tmp_path, few=5_000, many=30_000)


@pytest.mark.parametrize("is_older_than_the_trigger", [False, True])
def test_memory_stays_bounded_with_large_payloads_among_small_ones(
    database_url: str, local_store_url: str, tmp_path: Path, is_older_than_the_trigger: bool
) -> None:
    with installed(database_url, local_store_url, payload_type="text") as notices:
        for seed in range(4):
            insert_small = (
                "INSERT INTO {table} (tenant_id, raw_payload) SELECT 'acme', n::text FROM generate_series(1, 50) AS n"
            )
            notices.execute(insert_small)
            notices.insert([large_payload(TEN_MEGABYTES, seed)])
        if is_older_than_the_trigger:
            notices.execute("UPDATE {table} SET payload_storage_status = NULL, payload_bytes = NULL")
        result = result_of(start_worker(notices.pipeline, tmp_path, unseen=is_older_than_the_trigger))
        assert result["rows_released"] == 4 * 51
        assert result["peak_megabytes"] < LIMIT_MEGABYTES


def test_memory_stays_bounded_where_verification_reads_large_payloads_alone(
    database_url: str, local_store_url: str, tmp_path: Path
) -> None:
    with installed(database_url, local_store_url, payload_type="text") as notices:
        notices.insert([large_payload(TEN_MEGABYTES, seed) for seed in range(LARGE_PAYLOADS)])
        result = result_of(start_worker(notices.pipeline, tmp_path))
        assert result["rows_released"] == LARGE_PAYLOADS
        assert result["peak_megabytes"] < LIMIT_MEGABYTES
