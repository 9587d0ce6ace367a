"""Faults and kills by the hundred at random moments, and an application that goes on writing: nothing is lost."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.faults.aftermath import assert_all_ends_well
from offload_pipeline_tests.faults.campaign import DISK_MEGABYTES, Campaign, campaign
from offload_pipeline_tests.faults.disk import small_disk
from offload_pipeline_tests.faults.proxy import FaultyProxy
from offload_pipeline_tests.servers import PostgresServer

SEED_VARIABLE = "OFFLOAD_FAULTS_SEED"
KILLS, FAULTS = 8, 75
MANY_KILLS, MANY_FAULTS = 200, 1000
STEPS = {
    "copied", "verifications passed", "released", "restored", "holds lifted", "written through the writer",
    "expired", "expired objects deleted", "orphans deleted",
}  # fmt: skip


@pytest.fixture
def seed() -> int:
    """A new one each time, unless OFFLOAD_FAULTS_SEED repeats one; printed where the test fails."""
    found = int(os.environ.get(SEED_VARIABLE) or random.randrange(10**6))  # noqa: S311 - faults, not secrets
    print(f"{SEED_VARIABLE}={found}")  # noqa: T201 - pytest shows it where the test fails
    return found


@pytest.fixture
def on_s3(
    postgres_server: PostgresServer, database_url: str, s3_url: str, seaweedfs: SeaweedFS, tmp_path: Path, seed: int
) -> Iterator[Campaign]:
    with (
        FaultyProxy(seaweedfs).running() as proxy,
        campaign(postgres_server, database_url, s3_url, tmp_path, seed, proxy=proxy) as found,
    ):
        yield found


@pytest.fixture
def on_disk(postgres_server: PostgresServer, database_url: str, tmp_path: Path, seed: int) -> Iterator[Campaign]:
    folder = tmp_path / "disk"
    with small_disk(folder, DISK_MEGABYTES) as disk:
        url = (folder / "objects").as_uri()
        with campaign(postgres_server, database_url, url, tmp_path, seed, disk=disk) as found:
            yield found


def assert_survives(found: Campaign, kills: int, faults: int) -> None:
    found.wage(kills)
    assert_all_ends_well(found)
    assert found.kills >= kills
    assert sum(found.injected.values()) >= faults
    assert found.done["copied"] > 0, "the workers came to work"


def assert_saw_everything(found: Campaign) -> None:
    assert found.kinds - set(+found.injected) == set(), "a kind of fault did not happen"
    assert STEPS - set(+found.done) == set(), "a step was never done"


def test_faults_on_s3_and_kills_lose_nothing(on_s3: Campaign) -> None:
    assert_survives(on_s3, KILLS, FAULTS)


def test_faults_on_a_local_store_and_kills_lose_nothing(on_disk: Campaign) -> None:
    assert_survives(on_disk, KILLS, FAULTS)


@pytest.mark.slow
@pytest.mark.both_servers
@pytest.mark.timeout(3600)
def test_a_thousand_faults_on_s3_and_two_hundred_kills_lose_nothing(on_s3: Campaign) -> None:
    assert_survives(on_s3, MANY_KILLS, MANY_FAULTS)
    assert_saw_everything(on_s3)


@pytest.mark.slow
@pytest.mark.both_servers
@pytest.mark.timeout(3600)
def test_a_thousand_faults_on_a_local_store_and_two_hundred_kills_lose_nothing(on_disk: Campaign) -> None:
    assert_survives(on_disk, MANY_KILLS, MANY_FAULTS)
    assert_saw_everything(on_disk)
