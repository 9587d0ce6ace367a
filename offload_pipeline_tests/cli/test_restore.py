"""`offload restore`, and `backfill --include-restored`: what they do, what they say, and how they end."""

from pathlib import Path

import psycopg
import pytest

from offload_pipeline.config import TableConfig
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import (
    insert_payloads,
    large_payload,
    make_table,
    row_hashes,
    statuses,
    stored_files,
)

PAYLOADS = [large_payload(1000, seed) for seed in range(5)]
BACKFILL = ("backfill", "--table", "notices", "--tenant", "acme")


def test_restore_puts_every_partition_back_and_says_so_in_numbers(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, store_folder: Path
) -> None:
    insert_payloads(connection, notices, PAYLOADS, tenant="acme")
    insert_payloads(connection, notices, PAYLOADS[:2], tenant="bolt")
    before = row_hashes(connection, notices)
    offload("drain")
    answer = offload("restore")
    assert (answer.code, answer.stderr) == (0, "")
    assert answer.lines == [
        "notices, tenant 'acme': restored 5 rows (5.0 kB)",
        "notices, tenant 'bolt': restored 2 rows (2.0 kB)",
    ]
    assert row_hashes(connection, notices) == before
    assert set(statuses(connection, notices).values()) == {"inline"}
    assert len(stored_files(store_folder)) == 7, "objects are left for garbage collection"
    assert offload("restore").lines[0] == "notices, tenant 'acme': restored 0 rows"


def test_restore_as_json_is_one_document_with_the_run_of_the_audit_log(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS)
    offload("drain")
    document = offload("restore", "--json").document
    assert document["sound"] is True
    (partition,) = document["partitions"]
    assert partition.pop("seconds") > 0
    assert partition == {
        "table": "notices", "tenant": "acme", "sound": True, "rows_restored": 5, "payload_bytes": 4995,
        "pointers_dropped": 0, "rows_left": 0, "rows_failed": 0, "stopped_by": None, "failed": [],
    }  # fmt: skip
    logged = connection.execute("SELECT run_id, rows, bytes FROM payload_offload_log WHERE action = 'restore'")
    assert logged.fetchall() == [(document["run_id"], 5, 4995)]


def test_one_tenant_of_one_table_is_restored(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    keys = insert_payloads(connection, notices, PAYLOADS[:2], tenant="acme")
    insert_payloads(connection, notices, PAYLOADS, tenant="bolt")
    offload("drain")
    assert offload("restore", "--table", "notices", "--tenant", "acme").code == 0
    assert [key for key, status in statuses(connection, notices).items() if status == "inline"] == keys


def test_one_row_is_restored_whatever_its_tenant(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS[:1], tenant="acme")
    (key,) = insert_payloads(connection, notices, PAYLOADS[1:2], tenant="bolt")
    offload("drain")
    one = ("restore", "--table", "notices", "--primary-key", str(key))
    assert offload(*one, "--tenant", "acme").lines == ["nothing to do"], "the row is another tenant's"
    assert offload(*one).lines == ["notices, tenant 'bolt': restored 1 row (999 B)"]
    assert [found for found, status in statuses(connection, notices).items() if status == "inline"] == [key]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--primary-key", "1"], 2, "--primary-key needs the table it is in; add --table TABLE"),
        (["--table", "notices", "--primary-key", "x"], 2, "'x' is no key"),
        (["--table", "notices", "--primary-key", "99"], 1, "notices has no row with the key 99; check the key"),
        (["--table", "notice"], 2, "did you mean notices?"),
    ],
)
def test_a_mistake_is_one_line(
    offload: Command, notices: TableConfig, arguments: list[str], code: int, said: str
) -> None:
    answer = offload("restore", *arguments)
    assert answer.code == code
    assert said in answer.complaint


def test_a_damaged_object_is_exit_code_1_named_and_does_not_stop_the_others(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, store_folder: Path
) -> None:
    keys = insert_payloads(connection, notices, PAYLOADS)
    offload("drain")
    damaged = next(path for path in stored_files(store_folder) if f"/{keys[2]}/" in str(path))
    (store_folder / damaged).unlink()
    answer = offload("restore")
    assert answer.code == 1
    assert answer.lines == [
        "notices, tenant 'acme': restored 4 rows (4.0 kB), 1 failed",
        f"  failed {keys[2]}: no object {damaged}",
    ]
    again = offload("restore", "--json")
    assert again.code == 1
    (failed,) = again.document["partitions"][0]["failed"]
    assert (failed["primary_key"], failed["error_class"]) == (str(keys[2]), "ObjectMissingError")
    assert "ObjectMissingError" in offload("status").stdout.decode()


def test_a_store_that_is_gone_stops_the_run_after_the_first_partition(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, store_folder: Path
) -> None:
    for tenant in ("acme", "bolt"):
        insert_payloads(connection, notices, PAYLOADS[:1], tenant=tenant)
    offload("drain")
    offload.configure(notices, object_store={"url": store_folder.with_name("elsewhere").as_uri()})
    answer = offload("restore")
    assert answer.code == 1
    assert all("its objects are in file://" in line for line in answer.lines)
    for line, tenant in zip(answer.lines, ("acme", "bolt"), strict=True):
        assert line.count(f"tenant '{tenant}'") == 1, "named once"
    assert set(statuses(connection, notices).values()) == {"in_storage"}


def test_copies_are_said_apart_from_what_came_back(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=0, after_copy="keep")
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, PAYLOADS)
    offload("drain")
    said = "restored 0 rows, dropped the pointers of 5 rows that had their payload still"
    assert offload("restore").lines == [f"notices, tenant 'acme': {said}"]


def test_rows_of_no_tenant_are_not_forgotten(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS)
    offload("drain")
    connection.execute("UPDATE notices SET tenant_id = NULL WHERE id < 3")
    answer = offload("restore")
    assert answer.code == 1
    assert answer.lines == ["notices, tenant 'acme': restored 3 rows (3.0 kB)"]
    assert answer.complaint == (
        "offload: notices: 2 rows in storage with tenant_id NULL belong to no partition; fill tenant_id in, then repeat"
    )
    document = offload("restore", "--json").document
    assert (document["sound"], document["without_tenant"]) == (False, [{"table": "notices", "rows": 2}])
    connection.execute("UPDATE notices SET tenant_id = 'acme'")
    document = offload("restore", "--json").document
    assert (document["sound"], document["without_tenant"]) == (True, [])
    assert set(statuses(connection, notices).values()) == {"inline"}


def test_what_was_restored_stays_until_a_backfill_includes_it(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, PAYLOADS)
    offload("drain")
    offload("restore")
    assert offload(*BACKFILL, "--no-resume").code == offload("drain").code == 0
    assert set(statuses(connection, notices).values()) == {"inline"}

    dry = offload(*BACKFILL, "--include-restored", "--dry-run", "--json").document
    assert (dry["held_rows"], dry["held_bytes"]) == (5, 4995)
    assert set(statuses(connection, notices).values()) == {"inline"}

    answer = offload(*BACKFILL, "--include-restored")
    assert answer.code == 0
    assert answer.lines[0] == "notices, tenant 'acme': 5 rows (5.0 kB) held no longer"
    assert "copied 5 rows" in answer.lines[1]
    assert set(statuses(connection, notices).values()) == {"in_storage"}
    offload("restore")
    document = offload(*BACKFILL, "--include-restored", "--json").document
    assert document["partitions"][0]["rows_held_no_longer"] == 5


def test_a_restore_that_is_killed_is_taken_up_by_the_next(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    connection.execute(
        "INSERT INTO notices (tenant_id, raw_payload) SELECT 'acme', jsonb_build_object('n', n, 'x', repeat('x', 2000))"
        " FROM generate_series(1, 3000) AS n"
    )
    before = row_hashes(connection, notices)
    offload("drain")
    restored = "SELECT count(*) FROM notices WHERE payload_storage_status = 'inline'"
    with offload.start("restore") as process:
        while connection.execute(restored).fetchone() == (0,):
            assert process.poll() is None, "it ended before anything was restored"
        process.kill()
    assert offload("restore").code == 0
    assert row_hashes(connection, notices) == before
    logged = connection.execute("SELECT sum(rows) FROM payload_offload_log WHERE action = 'restore'").fetchone()
    assert logged == (3000,), "no row twice"
