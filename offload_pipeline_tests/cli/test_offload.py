"""`offload drain`, `backfill` and `release`: what they move, what they say, and how they end."""

import json
from pathlib import Path

import psycopg
import pytest

from offload_pipeline.cli.output import format_bytes
from offload_pipeline.config import TableConfig
from offload_pipeline.errors import ObjectDamagedError
from offload_pipeline.offload.failures import Failure, record_failures
from offload_pipeline.offload.packing import pack
from offload_pipeline.pipeline import open_pipeline
from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import (
    insert_payloads,
    large_payload,
    make_table,
    statuses,
    stored_files,
)

PAYLOADS = [large_payload(1000, seed) for seed in range(5)]


def test_drain_moves_every_partition_and_says_so_in_numbers(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS, tenant="acme")
    insert_payloads(connection, notices, PAYLOADS[:2], tenant="bolt")
    answer = offload("drain")
    assert answer.code == 0
    assert answer.stderr == ""
    assert answer.lines[0].startswith("notices, tenant 'acme': copied 5 rows (")
    assert answer.lines[1].endswith("2 rows checked, 2 read whole, 0 damaged, 0 unanswered; released 2 rows (2.0 kB)")
    assert set(statuses(connection, notices).values()) == {"in_storage"}


def test_idle_tenants_cost_a_drain_nothing_but_a_count(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    for tenant in ("acme", "bolt", "cargo"):
        insert_payloads(connection, notices, PAYLOADS, tenant=tenant)
    offload("drain")
    assert offload("drain").lines == ["nothing to do"]
    log = connection.execute("SELECT count(*) FROM payload_offload_log").fetchone()

    insert_payloads(connection, notices, PAYLOADS[:1], tenant="bolt")
    lines = offload("drain").lines
    assert lines[0].startswith("notices, tenant 'bolt': copied 1 row (")
    assert lines[1:] == ["2 partitions with nothing to do"]
    others = "SELECT count(*) FROM payload_offload_log WHERE tenant_id <> 'bolt'"
    assert log == (9,)
    assert connection.execute(others).fetchone() == (6,), "nothing of the others was even verified"
    assert offload("drain", "--json").document["idle_partitions"] == 3
    assert offload("drain", "--tenant", "acme").lines[0].startswith("notices, tenant 'acme': copied 0 rows; 0 rows che")


def test_an_idle_table_of_one_tenant_costs_a_drain_nothing_either(
    offload: Command, connection: psycopg.Connection
) -> None:
    table = make_table(connection, tenant_column=None, threshold_bytes=0)
    offload.configure(table)
    offload("install")
    assert offload("drain").lines == ["nothing to do"]
    insert_payloads(connection, table, PAYLOADS)
    assert offload("drain").lines[0].startswith("notices, tenant 'acme': copied 5 rows (")
    assert offload("drain").lines == ["nothing to do"]


def test_verified_copies_that_a_table_keeps_cost_a_drain_nothing(
    offload: Command, connection: psycopg.Connection
) -> None:
    table = make_table(connection, threshold_bytes=0, after_copy="keep")
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, PAYLOADS)
    assert len(offload("drain", "--json").document["partitions"]) == 1
    assert offload("drain").lines == ["nothing to do"]


def test_a_drain_takes_up_whatever_was_left_at_any_step(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    pipeline = open_pipeline()
    for tenant in ("copied", "verified", "damaged"):
        insert_payloads(connection, notices, PAYLOADS, tenant=tenant)
        (partition,) = pipeline.partitions(connection, "notices", tenant)
        pipeline.copy(partition, "test")
        if tenant != "copied":
            pipeline.verify(partition, "test")
    pipeline.release(partition, "test")
    failure = Failure(("1",), None, ObjectDamagedError("damaged, and since then mended"))
    record_failures(connection, partition, "verify", [failure])
    assert len(offload("drain", "--json").document["partitions"]) == 3
    assert set(statuses(connection, notices).values()) == {"in_storage"}


def test_drain_as_json_is_one_document_with_the_run_of_the_audit_log(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS)
    document = offload("drain", "--json").document
    assert document["sound"] is True
    (partition,) = document["partitions"]
    assert (partition["table"], partition["tenant"]) == ("notices", "acme")
    assert partition["copied"]["rows_copied"] == partition["released"]["rows_released"] == 5
    assert partition["verified"]["passed"] is True
    runs = connection.execute("SELECT DISTINCT run_id FROM payload_offload_log").fetchall()
    assert runs == [(document["run_id"],)]
    assert document["run_id"].startswith("cli-")


def test_drain_of_one_tenant_leaves_the_others(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    (key,) = insert_payloads(connection, notices, PAYLOADS[:1], tenant="acme")
    insert_payloads(connection, notices, PAYLOADS[1:], tenant="bolt")
    offload("drain", "--tenant", "acme")
    assert [found for found, status in statuses(connection, notices).items() if status == "in_storage"] == [key]


def test_the_empty_text_is_a_tenant_like_any_other(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS[:1], tenant="")
    insert_payloads(connection, notices, PAYLOADS[1:], tenant="acme")
    document = offload("drain", "--tenant", "", "--json").document
    assert [(one["tenant"], one["copied"]["rows_copied"]) for one in document["partitions"]] == [("", 1)]


def test_a_tenant_with_small_rows_alone_is_nothing_to_do(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, ['{"small": 1}'], tenant="small")
    for command in (["drain"], ["verify"], ["release"], ["backfill", "--table", "notices"]):
        answer = offload(*command, "--tenant", "small")
        assert (answer.code, answer.lines[0]) == (0, "nothing to do")


def test_another_tenant_than_the_constant_one_never_gets_the_rows_of_a_table(
    offload: Command, connection: psycopg.Connection, store_folder: Path
) -> None:
    table = make_table(connection, tenant_column=None, threshold_bytes=0)
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, PAYLOADS)
    answer = offload("drain", "--tenant", "bolt")
    assert (answer.code, answer.complaint) == (2, "offload: no tenant 'bolt' in notices; known are 'acme'")
    assert stored_files(store_folder) == []


def test_a_row_that_fails_is_exit_code_1_and_does_not_stop_the_others(
    offload: Command, connection: psycopg.Connection
) -> None:
    table = make_table(connection, threshold_bytes=0, max_object_bytes=5000)
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, [*PAYLOADS, large_payload(9000)])
    answer = offload("drain", "--json")
    assert answer.code == 1
    assert answer.document["sound"] is False
    copied = answer.document["partitions"][0]["copied"]
    assert (copied["rows_copied"], copied["rows_failed"]) == (5, 1)


@pytest.mark.parametrize("mistake", ["bucket", "credentials"])
def test_a_wrong_bucket_or_wrong_credentials_are_one_line_before_anything_is_copied(
    offload: Command,
    connection: psycopg.Connection,
    notices: TableConfig,
    s3_url: str,
    seaweedfs: SeaweedFS,
    mistake: str,
) -> None:
    insert_payloads(connection, notices, PAYLOADS)
    if mistake == "credentials":
        offload.patch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    url = s3_url if mistake == "credentials" else "s3://no-such-bucket-anywhere"
    offload.configure(notices, object_store={"url": url, "endpoint": seaweedfs.endpoint})
    for command in (["drain"], ["backfill", "--table", "notices", "--tenant", "acme"]):
        answer = offload(*command)
        assert (answer.code, answer.stdout) == (2, b"")
        assert answer.complaint.startswith(f"offload: {url}: ")
        assert "not-the-secret" not in answer.stderr
    assert set(statuses(connection, notices).values()) == {"pending_move"}


def test_backfill_takes_the_batch_size_it_is_given(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS)
    assert offload("backfill", "--table", "notices", "--tenant", "acme", "--batch-size", "2").code == 0
    batches = connection.execute("SELECT rows FROM payload_offload_log WHERE action = 'copy' ORDER BY rows").fetchall()
    assert [rows for (rows,) in batches] == [1, 2, 2]


def test_a_backfill_that_passed_over_rows_of_another_worker_says_to_run_it_again(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
    insert_payloads(connection, notices, PAYLOADS, payload_storage_status=None)
    connection.execute("ALTER TABLE notices ENABLE TRIGGER USER")
    pipeline = open_pipeline()
    (partition,) = pipeline.partitions(connection, "notices", "acme")
    (other, _) = pipeline.batches(partition, batch_rows=2, unseen=True)
    arguments = ("backfill", "--table", "notices", "--tenant", "acme")
    with connection.transaction():
        assert other.claim(connection) is not None
        answer = offload(*arguments)
        assert (answer.code, answer.stderr) == (0, "")
        assert answer.lines[0].startswith("notices, tenant 'acme': copied 3 rows (")
        assert answer.lines[-1].endswith(
            "rows were with another worker, held by the application or refused: run it again, to scan them"
        )
        assert offload(*arguments, "--json").document["partitions"][0]["scan_complete"] is False
    (found,) = offload(*arguments, "--json").document["partitions"]
    assert (found["copied"]["rows_copied"], found["scan_complete"]) == (2, True)
    (line,) = offload(*arguments).lines
    assert line.startswith("notices, tenant 'acme': copied 0 rows; ")
    assert "scan_complete" not in offload("drain", "--tenant", "acme", "--json").document["partitions"][0]


def test_a_dry_backfill_counts_forecasts_and_writes_nothing(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, store_folder: Path
) -> None:
    insert_payloads(connection, notices, PAYLOADS)
    arguments = ("backfill", "--table", "notices", "--tenant", "acme", "--dry-run")
    pending_bytes = sum(len(payload) for payload in PAYLOADS)
    object_bytes = sum(len(pack(payload.encode()).data) for payload in PAYLOADS)
    assert offload(*arguments, "--json").document == {
        "dry_run": True,
        "table": "notices",
        "tenant": "acme",
        "pending_rows": 5,
        "pending_bytes": pending_bytes,
        "forecast_object_bytes": object_bytes,
        "rows_sampled": 5,
        "rows_too_large": 0,
    }
    would = f"would copy 5 rows (5.0 kB, as objects about {format_bytes(object_bytes)})"
    assert offload(*arguments).lines == [f"notices, tenant 'acme': {would}"]
    assert set(statuses(connection, notices).values()) == {"pending_move"}
    assert not any(store_folder.iterdir())
    assert connection.execute("SELECT count(*) FROM payload_offload_log").fetchone() == (0,)


def test_a_dry_backfill_begins_at_the_checkpoint_unless_told_otherwise(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
    insert_payloads(connection, notices, PAYLOADS, payload_storage_status=None)
    connection.execute("ALTER TABLE notices ENABLE TRIGGER USER")
    assert offload("backfill", "--table", "notices", "--tenant", "acme").code == 0
    connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
    insert_payloads(connection, notices, PAYLOADS[:2], payload_storage_status=None)
    connection.execute("ALTER TABLE notices ENABLE TRIGGER USER")
    arguments = ("backfill", "--table", "notices", "--tenant", "acme", "--dry-run", "--json")
    assert offload(*arguments).document["pending_rows"] == 0
    assert offload(*arguments, "--no-resume").document["pending_rows"] == 2


def test_a_dry_backfill_tells_what_would_be_refused(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=0, max_object_bytes=500)
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, PAYLOADS)
    answer = offload("backfill", "--table", "notices", "--tenant", "acme", "--dry-run")
    assert answer.lines == ["notices, tenant 'acme': would copy 0 rows, refuse 5 rows above max_object_bytes"]


@pytest.mark.parametrize(
    ("after_copy", "wish", "status"), [("clear", "false", "copied"), ("keep", "true", "in_storage")]
)
def test_null_after_upload_overrides_the_table(
    offload: Command, connection: psycopg.Connection, after_copy: str, wish: str, status: str
) -> None:
    table = make_table(connection, threshold_bytes=0, after_copy=after_copy)
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, PAYLOADS)
    answer = offload("backfill", "--table", "notices", "--tenant", "acme", "--null-after-upload", wish, "--no-resume")
    assert answer.code == 0
    assert set(statuses(connection, table).values()) == {status}


def test_a_payload_that_may_not_be_null_is_not_cleared(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=0, after_copy="reference")
    connection.execute("ALTER TABLE notices ALTER raw_payload SET NOT NULL")
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, PAYLOADS)
    for extra in ([], ["--dry-run"]):
        arguments = [
            "backfill",
            "--table",
            "notices",
            "--tenant",
            "acme",
            "--null-after-upload",
            "true",
            *extra,
        ]
        answer = offload(*arguments)
        assert answer.code == 2
        assert "raw_payload is NOT NULL and cannot be cleared" in answer.complaint
    assert set(statuses(connection, table).values()) == {"pending_move"}


def test_release_frees_what_was_verified_and_nothing_else(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS)
    offload("backfill", "--table", "notices", "--tenant", "acme", "--null-after-upload", "false")
    later = insert_payloads(connection, notices, [large_payload(1000, 99)])
    document = offload("release", "--table", "notices", "--json").document
    assert document["partitions"][0]["rows_released"] == 5
    assert [key for key, status in statuses(connection, notices).items() if status != "in_storage"] == later


def test_all_tables_are_drained_where_none_is_named(offload: Command, connection: psycopg.Connection) -> None:
    tables = [
        make_table(connection, threshold_bytes=0),
        make_table(connection, name="mails", relation="mails"),
    ]
    offload.configure(*tables)
    offload("install")
    for table in tables:
        insert_payloads(connection, table, [large_payload(200_000)])
    document = offload("drain", "--json").document
    assert [partition["table"] for partition in document["partitions"]] == ["notices", "mails"]
    for table in tables:
        insert_payloads(connection, table, [large_payload(200_000)])
    only = offload("drain", "--table", "mails", "--json").document
    assert [partition["table"] for partition in only["partitions"]] == ["mails"]


def test_tenants_with_any_characters_come_through_as_they_are(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    tenants = sorted(["[bold]x", "a|b/..", "ünï\n", "--json"])
    for tenant in tenants:
        insert_payloads(connection, notices, PAYLOADS[:1], tenant=tenant)
    answer = offload("drain")
    assert answer.code == 0
    assert [line.partition(": copied")[0] for line in answer.lines] == [f"notices, tenant {one!r}" for one in tenants]
    document = offload("verify", "--json").document
    assert sorted(partition["tenant"] for partition in document["partitions"]) == tenants
    assert json.dumps(document)


def test_one_row_is_released_in_its_own_partition(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    for tenant in ("acme", "bolt"):
        insert_payloads(connection, notices, PAYLOADS, tenant=tenant)
        offload("backfill", "--table", "notices", "--tenant", tenant, "--null-after-upload", "false")
    assert offload("release", "--table", "notices", "--primary-key", "7").lines == [
        "notices, tenant 'bolt': released 1 row (999 B)"
    ]
    assert [key for key, status in statuses(connection, notices).items() if status == "in_storage"] == [7]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--primary-key", "1"], 2, "--primary-key needs the table it is in; add --table TABLE"),
        (["--table", "notices", "--primary-key", "x"], 2, "'x' is no key"),
        (["--table", "notices", "--primary-key", "99"], 1, "notices has no row with the key 99; check the key"),
    ],
)
def test_a_row_to_release_that_cannot_be_is_a_mistake(
    offload: Command, notices: TableConfig, arguments: list[str], code: int, said: str
) -> None:
    offload.configure(notices)
    answer = offload("release", *arguments)
    assert answer.code == code
    assert said in answer.complaint
