"""A collection's memory does not depend on how many objects there are."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from offload_pipeline_tests.offload.installation import Installation
from offload_pipeline_tests.offload.worker import result_of
from offload_pipeline_tests.retention.worker import start_worker

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")

LIMIT_MEGABYTES = 300
GROWTH_MEGABYTES = 25
LONG_AGO = time.time() - 60 * 86_400


def store_objects(notices: Installation, count: int) -> None:
    """Old objects, each of a key of its own, half of them named by a row; and nothing else."""
    folder = notices.store._folder
    assert folder is not None
    shutil.rmtree(folder / "acme", ignore_errors=True)
    for number in range(count):
        path = folder / f"acme/notices/{number}/{number:064x}.json.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"an object")
        os.utime(path, (LONG_AGO, LONG_AGO))
    notices.execute("TRUNCATE {table}")
    notices.execute(
        "INSERT INTO {table} (id, tenant_id, payload_bytes, payload_hash_sha256, raw_object_key)"
        " SELECT n, 'acme', 1, lpad(to_hex(n), 64, '0'),"
        " format('acme/notices/%%s/%%s.json.gz', n, lpad(to_hex(n), 64, '0'))"
        " FROM generate_series(0, %s, 2) AS n",
        count - 1,
    )


def assert_memory_does_not_grow(notices: Installation, folder: Path, few: int, many: int) -> None:
    peaks = {}
    for count in (few, many):
        store_objects(notices, count)
        result = result_of(start_worker(notices.pipeline, folder))
        found = result["notices"]
        assert (found["objects"], found["named"], found["deleted"]) == (count, count // 2, count // 2)
        peaks[count] = result["peak_megabytes"]
    assert peaks[many] < LIMIT_MEGABYTES
    assert peaks[many] - peaks[few] < GROWTH_MEGABYTES, peaks


def test_memory_does_not_grow_with_the_objects(notices: Installation, tmp_path: Path) -> None:
    assert_memory_does_not_grow(notices, tmp_path, few=1_000, many=20_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_very_many_objects(notices: Installation, tmp_path: Path) -> None:
    assert_memory_does_not_grow(notices, tmp_path, few=20_000, many=200_000)
