"""`offload expire` and `offload gc`: what they report, what they do when told to, and how they end."""

import json
import os
import time
from pathlib import Path

import psycopg
import pytest

from offload_pipeline.config import TableConfig
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table, statuses, stored_files

PAYLOADS = [large_payload(1000, seed) for seed in range(10)]
TWO_MONTHS = 60 * 86_400


def grow_old(folder: Path, seconds: float = TWO_MONTHS) -> None:
    """Every object, as if it had been stored so long ago."""
    for path in stored_files(folder):
        os.utime(folder / path, (time.time() - seconds, time.time() - seconds))


@pytest.fixture
def stored(offload: Command, connection: psycopg.Connection, notices: TableConfig) -> list[int]:
    """The keys of ten payloads in storage."""
    keys = insert_payloads(connection, notices, PAYLOADS)
    assert offload("drain").code == 0
    return keys


@pytest.fixture
def orphan(offload: Command, connection: psycopg.Connection, stored: list[int], store_folder: Path) -> Path:
    """An old object that no row names."""
    row = connection.execute("SELECT raw_object_key FROM notices WHERE id = %s", (stored[0],)).fetchone()
    assert row is not None
    connection.execute("UPDATE notices SET raw_payload = '{}' WHERE id = %s", (stored[0],))
    grow_old(store_folder)
    return store_folder / str(row[0])


# gc


def test_gc_reports_what_it_would_delete_and_how_to_have_it_deleted(offload: Command, orphan: Path) -> None:
    answer = offload("gc", "--max-orphan-share", "0.1")
    assert answer.code == 0
    assert answer.lines[0].startswith("notices: 10 objects (")
    assert "9 named, 0 young, 0 expired, 1 orphans (" in answer.lines[0]
    assert answer.lines[-1] == "nothing was changed; to do it: offload gc --delete"
    assert orphan.exists()


def test_gc_counts_one_foreign_object_as_one(offload: Command, stored: list[int], store_folder: Path) -> None:
    (store_folder / "theirs.txt").write_text("not ours")
    assert "foreign: 1 object (8 B), never touched" in offload("gc").lines


def test_gc_deletes_when_told_to_and_says_so_in_numbers(
    offload: Command, connection: psycopg.Connection, orphan: Path
) -> None:
    answer = offload("gc", "--delete", "--max-orphan-share", "0.1", "--json")
    assert answer.code == 0
    assert answer.document["sound"] is True
    (found,) = answer.document["tables"]
    assert (found["table"], found["objects"], found["orphans"], found["deleted"]) == ("notices", 10, 1, 1)
    assert not orphan.exists()
    logged = connection.execute("SELECT run_id, rows, bytes FROM payload_offload_log WHERE action = 'gc'").fetchall()
    assert logged == [(answer.document["run_id"], 1, found["deleted_bytes"])]
    assert offload("verify", "--full").code == 0


def test_gc_refuses_loudly_what_looks_wrong_and_ends_with_1(offload: Command, orphan: Path) -> None:
    answer = offload("gc", "--delete")
    assert answer.code == 1
    assert answer.lines[1].startswith("notices: NOT TOUCHED: 10.0% of its objects look orphaned, more than 5.0%")
    assert orphan.exists()
    document = offload("gc", "--delete", "--json").document
    assert document["sound"] is False
    assert "10.0%" in document["tables"][0]["stopped"]


def test_gc_in_a_report_says_what_it_would_refuse(offload: Command, orphan: Path) -> None:
    answer = offload("gc")
    assert answer.code == 0
    assert answer.lines[1].startswith("notices: would not be touched: 10.0%")


def test_gc_spares_what_is_younger_than_the_configured_grace(
    offload: Command, notices: TableConfig, orphan: Path, store_folder: Path
) -> None:
    grow_old(store_folder, 29 * 86_400)
    assert offload("gc", "--delete", "--json").document["tables"][0]["young"] == 1
    assert orphan.exists()
    offload.configure(notices, retention={"grace": "28 days", "max_orphan_share": 1})
    assert offload("gc", "--delete").code == 0
    assert not orphan.exists()


def test_gc_of_one_tenant_and_table_leaves_the_others(
    offload: Command, connection: psycopg.Connection, orphan: Path
) -> None:
    share = ("--max-orphan-share", "1")
    connection.execute("INSERT INTO notices (tenant_id, raw_payload) VALUES ('globex', '{}')")
    assert offload("gc", "--delete", "--tenant", "globex", *share).code == 0
    assert orphan.exists()
    answer = offload("gc", "--delete", "--table", "notices", "--tenant", "acme", *share)
    assert (answer.code, orphan.exists()) == (0, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-orphan-share", "2"), "--max-orphan-share"),
        (("--max-orphan-share", "-0.1"), "--max-orphan-share"),
        (("--table", "notice"), "no table 'notice'"),
        (("--erase-tenant", "acme", "--table", "notices"), "--erase-tenant with --table"),
        (("--erase-tenant", "acme", "--tenant", "acme"), "--erase-tenant with --table"),
    ],
)
def test_gc_refuses_wrong_usage_in_one_line(
    offload: Command, notices: TableConfig, arguments: tuple[str, ...], said: str
) -> None:
    answer = offload("gc", *arguments)
    assert answer.code == 2
    assert said in answer.complaint


def test_gc_without_an_installed_table_is_one_line(offload: Command, connection: psycopg.Connection) -> None:
    offload.configure(make_table(connection))
    answer = offload("gc")
    assert answer.code == 2
    assert answer.complaint == "offload: no table of offload.yaml is installed; run: offload install"


# gc --erase-tenant


def test_erasing_a_tenant_reports_then_erases_and_says_what_is_still_in_the_rows(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, stored: list[int], store_folder: Path
) -> None:
    insert_payloads(connection, notices, PAYLOADS[:1], tenant="globex")
    insert_payloads(connection, notices, ['{"small": true}'], tenant="acme")
    assert offload("drain", "--tenant", "globex").code == 0
    report = offload("gc", "--erase-tenant", "acme")
    assert report.code == 0
    assert report.lines[0].startswith("notices, tenant 'acme': 10 rows in storage, 0 copied (")
    assert report.lines[-1] == "nothing was changed; to do it: offload gc --erase-tenant acme --delete"
    assert len(stored_files(store_folder)) == 11

    answer = offload("gc", "--erase-tenant", "acme", "--delete")
    assert answer.code == 0
    assert answer.lines[0].startswith("notices, tenant 'acme': erased 10 rows (")
    assert answer.lines[1].startswith("  payloads still in rows: 1; delete them in the application")
    assert answer.lines[-1].startswith("deleted 10 objects (")
    assert [path.parts[0] for path in stored_files(store_folder)] == ["globex"]
    again = offload("gc", "--erase-tenant", "acme", "--delete", "--json").document
    assert again["sound"] is True
    assert again["listed"]["objects_deleted"] == 0


def test_an_erasure_that_could_not_reach_a_row_ends_with_1(
    offload: Command, database_url: str, stored: list[int]
) -> None:
    with psycopg.connect(database_url) as application:
        application.execute("SELECT FROM notices WHERE id = %s FOR UPDATE", (stored[0],))
        answer = offload("gc", "--erase-tenant", "acme", "--delete")
    assert answer.code == 1
    assert answer.complaint == "offload: not complete; run it again"
    assert offload("gc", "--erase-tenant", "acme", "--delete").code == 0


# expire


@pytest.fixture
def expiring(offload: Command, notices: TableConfig, stored: list[int], connection: psycopg.Connection) -> list[int]:
    """Ten payloads in storage, three of them past their retention."""
    document = json.loads(offload.config_path.read_text())
    document["tables"][0]["object_retention"] = "90 days"
    offload.config_path.write_text(json.dumps(document))
    assert offload("install").code == 0
    connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
    connection.execute(
        "UPDATE notices SET payload_stored_at = payload_stored_at - interval '91 days' WHERE id = ANY(%s)",
        (stored[:3],),
    )
    connection.execute("ALTER TABLE notices ENABLE TRIGGER USER")
    return stored


def test_expire_reports_what_it_would_give_up_and_how_to_have_it_done(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, expiring: list[int]
) -> None:
    answer = offload("expire")
    assert answer.code == 0
    assert answer.lines == [
        "notices, tenant 'acme': 3 rows (3.0 kB) stored more than 90 d ago",
        "expired objects: 0 (0 B of payload), 0 of them listed more than 30 d ago",
        "nothing was changed; to do it: offload expire --delete",
    ]
    assert set(statuses(connection, notices).values()) == {"in_storage"}


def test_expire_gives_up_rows_first_and_their_objects_after_the_grace(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, expiring: list[int], store_folder: Path
) -> None:
    answer = offload("expire", "--delete")
    assert answer.code == 0
    assert answer.lines == [
        "notices, tenant 'acme': expired 3 rows (3.0 kB)",
        "expired objects: deleted 0 (0 B), 3 wait for the grace",
    ]
    assert {key for key, status in statuses(connection, notices).items() if status == "expired"} == set(expiring[:3])
    assert len(stored_files(store_folder)) == 10
    connection.execute("UPDATE payload_offload_expired SET expired_at = expired_at - interval '31 days'")
    grow_old(store_folder)
    document = offload("expire", "--delete", "--json").document
    assert document["sound"] is True
    assert (document["partitions"][0]["rows_due"], document["objects"]["objects_deleted"]) == (0, 3)
    assert len(stored_files(store_folder)) == 7


def test_expire_of_another_tenant_or_of_a_table_without_retention_does_nothing(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, expiring: list[int]
) -> None:
    insert_payloads(connection, notices, ['{"small": true}'], tenant="globex")
    assert offload("expire", "--tenant", "globex", "--delete").lines[0] == "nothing to do"
    offload.configure(notices)
    assert offload("expire", "--delete").lines[0] == "nothing to do"
    assert "expired" not in statuses(connection, notices).values()


def test_expire_refuses_a_column_that_takes_no_null_in_one_line(
    offload: Command, connection: psycopg.Connection, expiring: list[int]
) -> None:
    connection.execute("UPDATE notices SET raw_payload = '{}', raw_object_key = NULL")
    connection.execute("ALTER TABLE notices ALTER raw_payload SET NOT NULL")
    answer = offload("expire")
    assert answer.code == 2
    assert "raw_payload is NOT NULL" in answer.complaint


def test_an_expired_payload_cannot_be_got(offload: Command, expiring: list[int]) -> None:
    assert offload("expire", "--delete").code == 0
    answer = offload("get", "notices", str(expiring[0]), "--json")
    assert answer.code == 1
    assert answer.document["error"]["class"] == "PayloadExpiredError"
