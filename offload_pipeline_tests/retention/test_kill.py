"""Collections and erasures killed at any instant, while the application writes and workers copy: nothing is lost."""

import random
import threading
from pathlib import Path

import psycopg

from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import Installation
from offload_pipeline_tests.offload.waiting import advisory_locks, open_transactions
from offload_pipeline_tests.offload.worker import result_of
from offload_pipeline_tests.retention.collecting import age, keys_in
from offload_pipeline_tests.retention.test_interleavings import assert_nothing_is_lost
from offload_pipeline_tests.retention.worker import start_worker
from offload_pipeline_tests.servers import wait_until

KILLS = 6
ROWS = 60
LONGEST_LIFE_SECONDS = 0.3


def is_at_work(connection: psycopg.Connection) -> bool:
    return open_transactions(connection) > 0


def start_and_kill(notices: Installation, folder: Path, moment: float, tenant: str | None = None) -> None:
    worker = start_worker(notices.pipeline, folder, tenant)
    try:
        assert wait_until(lambda: is_at_work(notices.connection) or worker.poll() is not None, 60)
        threading.Event().wait(moment)
    finally:
        worker.kill()
        worker.communicate()
    assert wait_until(lambda: open_transactions(notices.connection) == 0), "a transaction outlived its process"
    assert advisory_locks(notices.connection) == 0


def let_payloads_come_back(notices: Installation, keys: list[int], turn: int) -> None:
    """Every row goes on to the payload it had two turns ago, under whose key an orphan lies that has grown old."""
    for key in keys:
        notices.write(key, large_payload(200, seed=1000 * (turn % 2) + key))


def test_collections_killed_at_random_moments_lose_nothing(notices: Installation, tmp_path: Path) -> None:
    rng = random.Random(KILLS)  # noqa: S311 - moments, not secrets
    keys = notices.insert(large_payload(200, seed) for seed in range(ROWS))
    for turn in range(KILLS):
        notices.let_time_pass()
        notices.drain()
        age(notices.store, keys_in(notices.store))
        let_payloads_come_back(notices, keys, turn)
        copying = threading.Thread(target=notices.copy)
        copying.start()
        start_and_kill(notices, tmp_path, rng.uniform(0, LONGEST_LIFE_SECONDS))
        copying.join()
        assert_nothing_is_lost(notices)
    for _ in range(2):
        notices.let_time_pass()
        notices.drain()
    assert notices.one_status() == "in_storage"
    age(notices.store, keys_in(notices.store))
    result_of(start_worker(notices.pipeline, tmp_path))
    assert keys_in(notices.store) == {notices.object_key(key) for key in keys}
    notices.assert_invariant()


def test_erasures_killed_at_random_moments_are_finished_by_the_last(notices: Installation, tmp_path: Path) -> None:
    rng = random.Random(KILLS)  # noqa: S311 - moments, not secrets
    mine = notices.insert(large_payload(200, seed) for seed in range(ROWS))
    others = notices.insert((large_payload(200, seed) for seed in range(ROWS)), tenant="globex")
    for tenant in ("acme", "globex"):
        notices.drain(tenant)
    kept = {notices.object_key(key) for key in others}
    for _ in range(KILLS):
        start_and_kill(notices, tmp_path, rng.uniform(0, LONGEST_LIFE_SECONDS), "acme")
    result_of(start_worker(notices.pipeline, tmp_path, "acme"))
    assert keys_in(notices.store) == kept
    notices.assert_invariant(expired=mine)
