"""The demo's tables: never somebody else's, filled with exactly the given documents, and weighed truly."""

import gzip
import json
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import psycopg
import pytest

from offload_pipeline.demo.payloads import Document
from offload_pipeline.demo.tables import fill, is_built, largest_stored_key, make_documents, now, rebuild, weigh
from offload_pipeline.errors import UserError
from offload_pipeline.pipeline import Pipeline
from offload_pipeline_tests.factories import (
    insert_payloads,
    large_payload,
    make_pipeline,
    make_table,
    row_hashes,
    statuses,
)

TABLES = ("activities", "notices", "TendersCurrent", "canonical_tenders")
FIXED = datetime(2026, 1, 2, tzinfo=UTC)


def documents(*texts: str) -> list[Document]:
    return [Document("push", FIXED, text) for text in texts]


def test_the_tables_are_built_and_installed(demo: Pipeline) -> None:
    assert is_built(demo)
    with demo.connect() as connection:
        assert [table.name for table in demo.tables(connection)] == list(TABLES)
        assert [weight.rows for weight in weigh(connection, demo.tables(connection))] == [0, 0, 0, 0]


def test_building_again_forgets_the_rows(demo: Pipeline) -> None:
    fill(demo, "notices", documents('{"a": 1}'))
    rebuild(demo)
    with demo.connect() as connection:
        assert statuses(connection, demo.config.table("notices")) == {}


def test_somebody_elses_activities_are_refused(database_url: str, local_store_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        theirs = make_table(connection, name="activities", relation="public.activities")
        pipeline = make_pipeline(database_url, local_store_url, [theirs])
        connection.execute("INSERT INTO activities (tenant_id, raw_payload) VALUES ('acme', '{}')")
        assert not is_built(pipeline)
        with pytest.raises(UserError, match="a table activities that is not the demo's"):
            rebuild(pipeline)
        assert connection.execute("SELECT count(*) FROM activities").fetchone() == (1,)


@pytest.mark.parametrize("name", ["notices", "canonical_tenders"])
def test_somebody_elses_other_tables_are_refused(database_url: str, local_store_url: str, name: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        theirs = make_table(connection, name=name, relation=f"public.{name}")
        pipeline = make_pipeline(database_url, local_store_url, [theirs])
        insert_payloads(connection, theirs, ["{}"])
        with pytest.raises(UserError, match=f"a table {name} that is not the demo"):
            rebuild(pipeline)
        assert list(row_hashes(connection, theirs)) == [1]


def test_every_table_takes_the_documents_made_for_it(demo: Pipeline) -> None:
    for table, made in make_documents(None, now()).items():
        assert fill(demo, table, islice(made, 6)) == 6
    with demo.connect() as connection:
        assert [weight.rows for weight in weigh(connection, demo.tables(connection))] == [6, 6, 6, 6]


def test_a_file_fills_every_table_and_postgresql_holds_its_documents(demo: Pipeline, tmp_path: Path) -> None:
    lines = [
        '{"b": 1.10, "a": [1, 2]}',
        '{"event": "push", "name": "x", "payload": {"n": 123456789012345678901234567890}}',
    ]
    path = tmp_path / "documents.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    for table, made in make_documents(path, FIXED).items():
        assert fill(demo, table, made) == 2
    with demo.connect() as connection:
        rows = connection.execute("SELECT raw_payload::text FROM notices ORDER BY id").fetchall()
        assert rows == [('{"a": [1, 2], "b": 1.10}',), ('{"n": 123456789012345678901234567890}',)]
        found = connection.execute("SELECT raw::text FROM canonical_tenders ORDER BY tender_id").fetchall()
        assert found[0] == (lines[0],), "a json column keeps the text as it was written"


def test_rows_go_to_the_tenants_in_turn(demo: Pipeline) -> None:
    fill(demo, "notices", documents(*["{}"] * 4))
    with demo.connect() as connection:
        found = connection.execute("SELECT tenant_id FROM notices ORDER BY id").fetchall()
    assert [tenant for (tenant,) in found] == ["acme", "globex", "initech", "acme"]


def test_a_document_that_postgresql_refuses_is_named_in_one_line_and_leaves_no_row(demo: Pipeline) -> None:
    with pytest.raises(UserError, match=r"^PostgreSQL refuses a document: .+; remove it from the file$"):
        fill(demo, "notices", documents('{"a": 1}', json.dumps({"a": "\x00"})))
    with demo.connect() as connection:
        assert statuses(connection, demo.config.table("notices")) == {}


def test_a_missing_file_is_one_line(demo: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl"):
        fill(demo, "notices", make_documents(tmp_path / "none.jsonl", FIXED)["notices"])


def test_the_weights_are_the_bytes_of_rows_and_store(demo: Pipeline) -> None:
    texts = [large_payload(2_000, seed) for seed in range(3)]
    fill(demo, "notices", documents(*texts))
    with demo.connect() as connection:
        notices = demo.tables(connection, "notices")
        (before,) = weigh(connection, notices)
        assert largest_stored_key(connection, notices[0]) is None
        for partition in demo.partitions(connection, "notices", None):
            assert demo.drain(partition, "test-run").is_sound
        (after,) = weigh(connection, notices)
        total = sum(len(text) for text in texts)
        assert (before.rows, before.payload_bytes_in_rows, before.rows_stored) == (3, total, 0)
        assert (after.rows, after.payload_bytes_in_rows, after.rows_stored) == (3, 0, 3)
        assert after.payload_bytes_stored == total
        assert after.relation_bytes > 0
        assert largest_stored_key(connection, notices[0]) in {"1", "2", "3"}
