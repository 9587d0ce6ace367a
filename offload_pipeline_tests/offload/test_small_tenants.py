"""A small tenant in a table that another one fills: its passes read its own rows, and next to nothing else."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from psycopg import sql

from offload_pipeline.pipeline import Pipeline
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.explaining import Explained, ExplainingDatabase
from offload_pipeline_tests.offload.installation import RUN, Installation, installed

pytestmark = pytest.mark.both_servers

# Of each state.
SMALL, LARGE = 8, 10_000
# Twice what the worst of them takes: sixteen rows, found by indexes two or three pages deep, and joined several times.
MOST_BLOCKS_READING = 130
MOST_BLOCKS_WRITING = 800
MOST_ROWS = 100
TENANTS = {
    "text": ("small", "large"),
    "varchar(20)": ("small", "large"),
    "uuid": ("00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"),
    "bigint": ("1", "2"),
}
NEW = ["unseen", "pending_move"]
DONE = ["copied", "in_storage"]
FILL = """
    INSERT INTO notices ({columns} raw_payload, payload_storage_status, payload_bytes, raw_object_key,
        payload_hash_sha256, payload_stored_at)
    SELECT
        {values}
        jsonb_build_object('n', n, 'noise', repeat(md5(n::text), 8)),
        nullif(status, 'unseen'),
        CASE WHEN status <> 'unseen' THEN 300 END,
        CASE WHEN status IN ('copied', 'in_storage') THEN 'other' END,
        CASE WHEN status IN ('copied', 'in_storage') THEN repeat('0', 64) END,
        CASE WHEN status IN ('copied', 'in_storage') THEN now() - n * interval '1 second' END
    FROM generate_series(1, %s) AS n, unnest(%s::text[]) AS status
"""

AGAIN = """
    INSERT INTO notices (payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256, payload_stored_at)
    SELECT
        payload_storage_status, payload_bytes, raw_object_key, payload_hash_sha256,
        payload_stored_at - n * interval '1 second'
    FROM notices, generate_series(1, %s) AS n
"""


def insert(notices: Installation, tenant_type: str | None, tenant: str, rows: int, states: list[str]) -> None:
    """Rows as if they had come to these states long ago."""
    of_tenant = sql.SQL("") if tenant_type is None else sql.SQL("{}::{},").format(tenant, sql.SQL(tenant_type))
    columns = sql.SQL("" if tenant_type is None else "tenant_id,")
    notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
    notices.connection.execute(sql.SQL(FILL).format(columns=columns, values=of_tenant), [rows, states])
    notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")


def all_passes(notices: Installation, tenant: str) -> list[Explained]:
    """Every statement that reads or writes the table while this tenant's rows go all their way, page by page."""
    database = ExplainingDatabase(notices.database_url, notices.pipeline.database.schema, '"notices"')
    pipeline, partition = replace(notices.pipeline, database=database), notices.partition(tenant)
    assert pipeline.dry_run(partition, unseen=True).rows == 2 * SMALL
    assert pipeline.rows_ahead(partition, unseen=True) == 2 * SMALL
    with notices.pipeline.connect() as connection:
        assert [found.rows for found in pipeline.pending(connection, notices.table, tenant)] == [SMALL]
    assert pipeline.copy(partition, RUN, batch_rows=3).rows_copied == SMALL
    assert pipeline.verify(partition, RUN).passed
    assert pipeline.copy(partition, RUN, batch_rows=3, unseen=True).rows_copied == SMALL
    # Samples the copies of the pass before, and then the released rows.
    assert pipeline.verify(partition, RUN).passed
    assert pipeline.release(partition, RUN).rows_released == 2 * SMALL
    assert pipeline.verify(partition, RUN).passed
    return database.explained


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def rows_looked_at(explained: Explained) -> float:
    """Of the table: those that were found, and those that were read and thrown away."""
    kinds = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    scans = [node for node in nodes(explained.plan) if node.get("Relation Name") == "notices"]
    return sum(float(node.get(kind, 0) * node["Actual Loops"]) for node in scans for kind in kinds)


def reads_too_much(explained: Explained) -> bool:
    writes = any(node["Node Type"] == "ModifyTable" for node in nodes(explained.plan))
    most = MOST_BLOCKS_WRITING if writes else MOST_BLOCKS_READING
    return explained.blocks > most or rows_looked_at(explained) > MOST_ROWS


@pytest.mark.parametrize("is_analyzed", [False, True])
@pytest.mark.parametrize("tenant_type", list(TENANTS))
def test_a_small_tenants_passes_read_no_other_tenants_rows(
    database_url: str, local_store_url: str, tenant_type: str, is_analyzed: bool
) -> None:
    small, large = TENANTS[tenant_type]
    with installed(database_url, local_store_url, tenant_type=tenant_type) as notices:
        insert(notices, tenant_type, large, LARGE // 2, NEW + DONE)
        insert(notices, tenant_type, small, SMALL, NEW)
        insert(notices, tenant_type, large, LARGE // 2, NEW + DONE)
        if is_analyzed:
            notices.execute("ANALYZE {table}")
        explained = all_passes(notices, small)
        assert len(explained) > 30
        assert [(one.blocks, rows_looked_at(one), one.statement) for one in explained if reads_too_much(one)] == []


@pytest.mark.parametrize("is_analyzed", [False, True])
def test_a_constant_tenants_passes_do_not_read_what_is_done(
    database_url: str, local_store_url: str, is_analyzed: bool
) -> None:
    sample = {"verification": {"sample_rows": SMALL}}
    with installed(database_url, local_store_url, tenant_column=None, sections=sample) as notices:
        notices.insert([large_payload(300)])
        assert notices.drain().is_sound
        notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
        notices.execute(AGAIN, 2 * LARGE)
        insert(notices, None, "", SMALL, NEW)
        if is_analyzed:
            notices.execute("ANALYZE {table}")
        explained = all_passes(notices, "acme")
        assert [(one.blocks, rows_looked_at(one), one.statement) for one in explained if reads_too_much(one)] == []


@pytest.mark.parametrize("state", ["unseen", "pending", "copied"])
def test_without_its_index_a_pass_reads_everything(database_url: str, local_store_url: str, state: str) -> None:
    """What the other tests look at can be seen."""
    with installed(database_url, local_store_url) as notices:
        insert(notices, "text", "large", LARGE, NEW + DONE)
        insert(notices, "text", "small", SMALL, NEW)
        notices.connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(f"notices_offload_{state}")))
        assert any(map(reads_too_much, all_passes(notices, "small")))


def test_the_partitions_of_a_table_are_listed_without_reading_its_rows(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url) as notices:
        for tenant in ("large", "larger"):
            insert(notices, "text", tenant, LARGE, NEW + DONE)
        insert(notices, "text", "small", SMALL, NEW)
        database = ExplainingDatabase(notices.database_url, notices.pipeline.database.schema, '"notices"')
        pipeline: Pipeline = replace(notices.pipeline, database=database)
        with database.connect() as connection:
            found = pipeline.partitions(connection, None, None)
        assert [partition.tenant for partition in found] == ["large", "larger", "small"]
        assert database.explained
        assert not any(map(reads_too_much, database.explained))
