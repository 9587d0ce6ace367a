"""The shipped smoke checks: true of the demo empty, filled and offloaded, false where something is missing."""

from itertools import islice
from pathlib import Path

from offload_pipeline.demo.tables import fill, make_documents, now, rebuild
from offload_pipeline.offload.claims import Partition
from offload_pipeline.pipeline import Pipeline
from offload_pipeline.verification.smoke import run_smoke_check, smoke_checks

OTHER_SHAPES = '"text"\n[1, 2]\n{"estimated_value": {"amount": "a lot"}}\n{"payload_type": null}\n'


def failed(demo: Pipeline) -> dict[str, str]:
    results = [run_smoke_check(demo.database, check) for check in smoke_checks(demo.config)]
    assert len(results) == 2
    return {result.check.name: result.message for result in results if not result.passed}


def drain(demo: Pipeline) -> None:
    with demo.connect() as connection:
        partitions = demo.partitions(connection, None, None)
    for partition in partitions:
        assert demo.drain(Partition(partition.table, partition.tenant), "test").is_sound


def test_they_hold_whatever_is_in_the_tables_before_and_after_offloading(demo: Pipeline, tmp_path: Path) -> None:
    assert failed(demo) == {}, "empty"
    for table, made in make_documents(None, now()).items():
        fill(demo, table, islice(made, 60))
    assert failed(demo) == {}
    drain(demo)
    assert failed(demo) == {}
    rebuild(demo)
    payloads = tmp_path / "other.jsonl"
    payloads.write_text(OTHER_SHAPES)
    for table, made in make_documents(payloads, now()).items():
        fill(demo, table, made)
    assert failed(demo) == {}


def test_they_fail_where_payloads_are_missing(demo: Pipeline) -> None:
    for table, made in make_documents(None, now()).items():
        fill(demo, table, islice(made, 60))
    with demo.connect() as connection, connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("ALTER TABLE activities ALTER COLUMN payload DROP NOT NULL")
        connection.execute("UPDATE activities SET payload = NULL, storage_path = NULL")
        connection.execute("""UPDATE "TendersCurrent" SET document = '{"payload_type": "storage_ref"}'""")
    assert set(failed(demo)) == {"prediction_query_still_runs", "search_still_answers"}
