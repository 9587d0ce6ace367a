"""The faults have stopped: every row comes to its end, nothing stays open, and nothing was given up meanwhile."""

from datetime import timedelta

import psycopg
from psycopg import sql

from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.failures import open_failures
from offload_pipeline.storage.object_store import PROBE_KEY
from offload_pipeline_tests.factories import large_payload, statuses
from offload_pipeline_tests.faults.application import LARGEST_BYTES, TENANTS
from offload_pipeline_tests.faults.campaign import THRESHOLD_BYTES, Campaign
from offload_pipeline_tests.faults.work import Work
from offload_pipeline_tests.offload.installation import RUN, let_time_pass

PASSES_TO_FINISH = 4
# What nothing tries again once it was given up, unlike restoring and verifying.
TRIED_AGAIN = ("copy", "release", "write", "expire")


def assert_all_ends_well(campaign: Campaign) -> None:
    """Restores every payload, moves all of them once more, verifies them all, and collects every orphan."""
    campaign.heal()
    with campaign.connect() as connection:
        given_up = [one for one in open_failures(connection, "public", _max_attempts(campaign)) if one.given_up]
        assert not [one for one in given_up if one.stage in TRIED_AGAIN], f"given up in an outage: {given_up}"
        let_time_pass(connection)
        _write_again(campaign, connection)
        partitions = _partitions(campaign, connection)
        assert [one for one in partitions if not campaign.pipeline.restore(one, RUN).is_sound] == []
        unsound = [_move_again(campaign, connection, partitions) for _ in range(PASSES_TO_FINISH)]
        assert unsound[-1] == []
        assert [one for one in partitions if not campaign.pipeline.verify(one, RUN, full=True).passed] == []
        campaign.check()
        _assert_finished(campaign, connection)
        still_open = open_failures(connection, "public", _max_attempts(campaign))
        assert not still_open, f"still open: {still_open}"
        _assert_no_orphan_is_left(campaign, connection)


def _max_attempts(campaign: Campaign) -> int:
    return campaign.pipeline.config.offload.max_attempts


def _partitions(campaign: Campaign, connection: psycopg.Connection) -> list[Partition]:
    return [Partition(table, tenant) for table in campaign.pipeline.tables(connection) for tenant in TENANTS]


def _write_again(campaign: Campaign, connection: psycopg.Connection) -> None:
    """What the application was told that it was not written, through the pipeline's writer."""
    failed = connection.execute(
        "SELECT table_name, tenant_id, primary_key FROM payload_offload_failures"
        " WHERE stage = 'write' AND resolved_at IS NULL"
    )
    work = Work(campaign.pipeline, campaign.seed)
    for name, tenant, key in failed.fetchall():
        table = campaign.pipeline.table(connection, name)
        work.write_row(table, tenant, int(key), large_payload(LARGEST_BYTES, int(key)))


def _move_again(campaign: Campaign, connection: psycopg.Connection, partitions: list[Partition]) -> list[Partition]:
    """One pass, and the partitions where something failed."""
    let_time_pass(connection)
    for one in partitions:
        campaign.pipeline.lift_holds(one, RUN)
    return [one for one in partitions if not campaign.pipeline.drain(one, RUN, unseen=True, resume=False).is_sound]


def _assert_finished(campaign: Campaign, connection: psycopg.Connection) -> None:
    for table in campaign.tables:
        query = "SELECT id FROM written WHERE table_name = %s AND bytes > %s"
        large = {key for (key,) in connection.execute(query, (table.name, THRESHOLD_BYTES))}
        found = statuses(connection, table)
        finished = "copied" if table.after_copy == "keep" else "in_storage"
        expired = {key for key, status in found.items() if status == "expired"}
        assert {key for key, status in found.items() if status == finished} == large - expired
        assert {found[key] for key in set(found) - large} <= {None, "inline", "expired"}


def _assert_no_orphan_is_left(campaign: Campaign, connection: psycopg.Connection) -> None:
    """Garbage collection, without a grace, leaves exactly what the rows name."""
    Work(campaign.pipeline, campaign.seed).collect(timedelta(0))
    query = sql.SQL("SELECT raw_object_key FROM {} WHERE raw_object_key IS NOT NULL")
    named = {
        key
        for table in campaign.tables
        for (key,) in connection.execute(query.format(sql.Identifier(*table.schema_and_name)))
    }
    # Halves that killed workers left are no objects; they go after an hour.
    listed = {found.key for found in campaign.store.list() if not campaign.store.is_leftover(found.key)}
    assert listed - {PROBE_KEY} == named
    campaign.check()
