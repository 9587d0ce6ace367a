"""`offload verify`: what it checks, and what it says about rows that do not pass."""

from pathlib import Path

import psycopg
import pytest

from offload_pipeline.config import TableConfig
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, stored_files

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
    assert answer.lines == ["notices, tenant 'acme': 10 rows checked, 10 read whole, 0 damaged, 0 unanswered"]


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
