"""`offload verify`: what it checks, and what it says about rows that do not pass."""

from pathlib import Path

import psycopg
import pytest

from offload_pipeline.config import TableConfig
from offload_pipeline.verification import copies
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table, stored_files

KEPT = ("backfill", "--table", "notices", "--tenant", "acme", "--null-after-upload", "false")


@pytest.fixture
def stored(offload: Command, connection: psycopg.Connection, notices: TableConfig) -> list[int]:
    """The keys of ten payloads in storage."""
    keys = insert_payloads(connection, notices, [large_payload(1000, seed) for seed in range(10)])
    assert offload("drain").code == 0
    return keys


def damage(folder: Path) -> str:
    """Cuts one object short, and gives the primary key in its name."""
    path = stored_files(folder)[0]
    (folder / path).write_bytes((folder / path).read_bytes()[:-1])
    return path.parts[2]


def test_a_sound_partition_is_one_line_of_numbers(offload: Command, stored: list[int]) -> None:
    answer = offload("verify", "--full")
    assert answer.code == 0
    assert answer.lines[0] == "notices, tenant 'acme': 10 rows checked, 10 read whole, 0 damaged, 0 unanswered"


def test_a_damaged_object_is_named_with_its_row_and_exit_code_1(
    offload: Command, stored: list[int], store_folder: Path
) -> None:
    key = damage(store_folder)
    answer = offload("verify", "--full")
    assert answer.code == 1
    assert "1 damaged" in answer.lines[0]
    assert answer.lines[1].startswith(f"  damaged {key}: ")


def test_json_lists_the_damaged_rows(offload: Command, stored: list[int], store_folder: Path) -> None:
    key = damage(store_folder)
    answer = offload("verify", "--full", "--json")
    assert answer.code == 1
    assert answer.document["sound"] is False
    (partition,) = answer.document["partitions"]
    assert partition["passed"] is False
    assert partition["verified_through"] is None
    assert partition["rows_checked"] == 10
    assert [row["primary_key"] for row in partition["damaged"]] == [key]
    assert partition["damaged"][0]["error_class"] == "ObjectDamagedError"


def test_the_sample_may_be_empty_and_may_not_be_negative(offload: Command, stored: list[int]) -> None:
    document = offload("verify", "--sample", "0", "--json").document
    assert document["partitions"][0]["rows_read"] == 0
    answer = offload("verify", "--sample", "-1")
    assert answer.code == 2
    assert "--sample" in answer.complaint


def test_sample_and_full_together_are_wrong_usage(offload: Command, notices: TableConfig) -> None:
    answer = offload("verify", "--sample", "5", "--full")
    assert answer.code == 2
    assert answer.complaint.startswith("offload: invalid value for --sample with --full")
    assert answer.complaint.endswith("see offload verify --help")


def test_only_the_partition_that_failed_keeps_its_payloads(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, store_folder: Path
) -> None:
    insert_payloads(connection, notices, [large_payload(1000)], tenant="acme")
    assert offload(*KEPT).code == 0
    damage(store_folder)
    insert_payloads(connection, notices, [large_payload(1000, 7)], tenant="bolt")
    answer = offload("verify", "--full", "--json")
    assert answer.code == 1
    assert {one["tenant"]: one["passed"] for one in answer.document["partitions"]} == {
        "acme": False,
        "bolt": True,
    }


def test_the_report_of_each_table_follows(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, stored: list[int]
) -> None:
    insert_payloads(connection, notices, [large_payload(1000, 99), '{"small": 1}'])
    lines = offload("verify").lines
    assert lines[1] == "notices: 12 rows; in storage 10, copied 0, pending 1, never scanned 0 rows"
    assert lines[2].startswith(
        "  offloaded 83.3 % of the rows, about 90.9 % of the measured bytes; average payload 999 B, "
    )
    assert lines[3].startswith("  verified through 2")
    assert lines[3].endswith("; open failures: none")
    assert len(lines) == 4

    (report,) = offload("verify", "--json").document["tables"]
    assert (report["table"], report["rows"], report["rows_in_storage"], report["estimated"]) == ("notices", 12, 10, [])
    assert report["open_failures"] == {}


def test_a_report_names_what_failed(offload: Command, stored: list[int], store_folder: Path) -> None:
    damage(store_folder)
    answer = offload("verify", "--full")
    assert answer.lines[-1].endswith("; open failures: verify 1")


def test_only_the_named_table_is_reported_on(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    offload.configure(notices, make_table(connection, name="mails", relation="mails"))
    assert offload("install").code == 0
    assert [one["table"] for one in offload("verify", "--json").document["tables"]] == ["notices", "mails"]
    assert [one["table"] for one in offload("verify", "--table", "mails", "--json").document["tables"]] == ["mails"]


def write_smoke(offload: Command, **queries: str) -> None:
    folder = offload.config_path.parent / "sql" / "smoke"
    folder.mkdir(parents=True, exist_ok=True)
    for name, query in queries.items():
        (folder / f"{name}.sql").write_text(query)


def test_smoke_checks_are_run_and_one_that_fails_is_exit_code_1(offload: Command, stored: list[int]) -> None:
    write_smoke(offload, found="SELECT count(*) = 10 FROM notices")
    answer = offload("verify")
    assert answer.code == 0
    assert answer.lines[-1].startswith("smoke check found: passed (")
    write_smoke(offload, empty="-- table: notices\nSELECT FALSE", theirs="-- table: mails\nSELECT FALSE")
    answer = offload("verify", "--json")
    assert answer.code == 1
    assert answer.document["sound"] is False
    assert [(one["name"], one["passed"]) for one in answer.document["smoke_checks"]] == [
        ("empty", False),
        ("found", True),
    ]
    assert answer.document["smoke_checks"][0]["message"] == "its first value is False, not true"
    assert any(
        line.startswith("smoke check empty: failed: its first value is False, not true")
        for line in offload("verify").lines
    )


def test_a_full_pass_that_found_damage_says_that_it_is_resumed(
    offload: Command, connection: psycopg.Connection, stored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PAGE_ROWS", 4)
    key = connection.execute("SELECT raw_object_key FROM notices WHERE id = %s", [stored[6]]).fetchone()
    assert key is not None
    path = Path(offload.store_url.removeprefix("file://")) / key[0]
    kept = path.read_bytes()
    path.unlink()
    assert offload("verify", "--full").code == 1
    path.write_bytes(kept)
    answer = offload("verify", "--full")
    assert answer.code == 0
    assert answer.lines[0] == "notices, tenant 'acme': resumed: 6 rows checked, 6 read whole, 0 damaged, 0 unanswered"
    assert offload("verify", "--full", "--json").document["partitions"][0]["resumed"] is False

    path.unlink()
    assert offload("verify", "--full").code == 1
    path.write_bytes(kept)
    answer = offload("verify", "--full", "--no-resume")
    assert answer.lines[0] == "notices, tenant 'acme': 10 rows checked, 10 read whole, 0 damaged, 0 unanswered"


def test_no_resume_without_full_is_wrong_usage(offload: Command, notices: TableConfig) -> None:
    answer = offload("verify", "--no-resume")
    assert answer.code == 2
    assert "only a full pass is resumed; add --full" in answer.complaint
