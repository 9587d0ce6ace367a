"""The demo's runs: one for each pending partition, recorded where `offload up` shows them."""

from collections.abc import Iterator

import pytest
from dagster import DagsterInstance

from offload_pipeline.defs.partition_keys import TENANT_PARTITIONS
from offload_pipeline.demo.jobs import pending_partitions, run_partitions
from offload_pipeline.demo.payloads import Document
from offload_pipeline.demo.tables import fill, now
from offload_pipeline.pipeline import Pipeline
from offload_pipeline_tests.factories import large_payload, row_hashes, statuses
from offload_pipeline_tests.invariant import assert_invariant

SIZES = {"activities": 150_000, "notices": 2_000, "TendersCurrent": 30_000, "canonical_tenders": 30_000}


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def fill_all(demo: Pipeline) -> None:
    """Three rows a table, one for each tenant."""
    for table, size in SIZES.items():
        fill(demo, table, [Document("push", now(), large_payload(size, seed)) for seed in range(3)])


def test_each_pending_partition_is_run_once_and_verified(demo: Pipeline, instance: DagsterInstance) -> None:
    fill_all(demo)
    with demo.connect() as connection:
        written = {table.name: row_hashes(connection, table) for table in demo.config.tables}
        pending = pending_partitions(demo, instance)
        assert len(pending) == 3 * 3 + 1
        runs = list(run_partitions(demo, instance, pending))
        assert [run.partition for run in runs] == [f"{one.table}|{one.tenant_key}" for one in pending]
        assert all(run.succeeded for run in runs)
        assert sum(run.rows_verified for run in runs) == sum(run.rows_read_whole for run in runs) == 12
        for table in demo.config.tables:
            end = "copied" if table.after_copy == "keep" else "in_storage"
            assert set(statuses(connection, table).values()) == {end}, table.name
            assert_invariant(connection, demo.store, table, written[table.name])
    assert pending_partitions(demo, instance) == []
    assert instance.get_runs_count() == 10


def test_the_tenants_become_known_to_dagster(demo: Pipeline, instance: DagsterInstance) -> None:
    fill_all(demo)
    pending_partitions(demo, instance)
    known = instance.get_dynamic_partitions(TENANT_PARTITIONS)
    assert sorted(known) == ["acme", "civant_default", "globex", "initech"]


def test_a_run_that_fails_is_reported_and_the_others_go_on(demo: Pipeline, instance: DagsterInstance) -> None:
    fill(demo, "notices", [Document("push", now(), large_payload(2_000, seed)) for seed in range(2)])
    with demo.connect() as connection:
        (acme,) = (one for one in demo.partitions(connection, "notices", "acme"))
        demo.copy(acme, "test-run")
        named = connection.execute("SELECT raw_object_key FROM notices WHERE tenant_id = 'acme'").fetchone()
        assert named is not None
        demo.store.delete(named[0])
        pending = pending_partitions(demo, instance)
        runs = {run.partition: run.succeeded for run in run_partitions(demo, instance, pending)}
    assert runs == {"notices|acme": False, "notices|globex": True}
