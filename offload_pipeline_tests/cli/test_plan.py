"""`offload plan`: the forecast as tables and sentences, or as one JSON document, before anything is installed."""

from typing import Any

import psycopg
import pytest

from offload_pipeline.cli.plan import sentences
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_pipeline, make_table
from offload_pipeline_tests.offload.population import SIZES, documents, fill


def test_a_table_is_forecast_before_anything_is_installed(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=1000)
    offload.configure(table)
    payloads = [large_payload(3000, seed) for seed in range(4)]
    insert_payloads(connection, table, [*payloads, "{}"])
    answer = offload("plan")
    assert answer.code == 0
    assert answer.stderr == ""
    text = answer.stdout.decode()
    moved = sum(map(len, payloads))
    assert (
        f"notices: 4 of 5 rows are above 1.0 kB and would move, with {moved / 1000:.1f} kB of payload" in answer.lines
    )
    assert "requests: 4 PUT, 4 GET to read back, 4 range GET to verify, 4 GET of the verified sample" in text
    assert "pages read" in text
    assert "nine times out of ten" not in text, "nothing was estimated"
    assert "rows now" not in text, "without status column no row has a state"
    columns = connection.execute(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'notices'::regclass AND attnum > 0"
    )
    assert columns.fetchone() == (4,)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", 'notices: "public"."notices" has no primary key; add one: its rows cannot be told apart'),
        (
            "ALTER TABLE notices ADD UNIQUE (tenant_id), ALTER tenant_id SET NOT NULL",
            'notices: primary_key [id] is not unique in "public"."notices"; write [tenant_id]',
        ),
    ],
)
def test_a_table_whose_rows_cannot_be_told_apart_is_forecast_and_complained_of(
    offload: Command, connection: psycopg.Connection, key: str, said: str
) -> None:
    offload.configure(make_table(connection))
    connection.execute("ALTER TABLE notices DROP CONSTRAINT notices_pkey")
    if key:
        connection.execute(key.encode())
    answer = offload("plan", "--json")
    assert answer.code == 0
    assert answer.complaint == f"offload: {said} (install refuses it)"
    assert answer.document["tables"][0]["table"] == "notices"


def test_the_document_holds_every_figure_with_its_range(offload: Command, connection: psycopg.Connection) -> None:
    tables = [make_table(connection), make_table(connection, name="mails", relation="mails", threshold_bytes=0)]
    offload.configure(*tables)
    insert_payloads(connection, tables[1], [large_payload(5000)])
    notices, mails = offload("plan", "--json").document["tables"]
    assert (notices["table"], notices["rows_to_move"]) == ("notices", {"value": 0, "low": 0, "high": 0})
    size = len(large_payload(5000))
    assert mails["payload_bytes"] == {"value": size, "low": size, "high": size}
    assert mails["sampled"] == {
        "pages": 1, "pages_total": 1, "rows": 1, "payloads": 1, "payload_bytes": size, "unreadable": 0
    }  # fmt: skip
    assert mails["requests"] == {"put": 1, "get_read_back": 1, "get_end": 1, "get_sample": 1}
    assert mails["is_exact"] is True
    assert mails["freed_bytes"]["value"] == mails["database_bytes"]["value"] - mails["left_bytes"]["value"]


def test_a_sampled_table_shows_ranges_and_says_what_they_mean(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=1000)
    offload.configure(table)
    fill(connection, table, documents(6_000, SIZES["skewed"]))
    answer = offload("plan", "--table", "notices")
    assert "Ranges hold the truth nine times out of ten." in answer.lines
    (first,) = [line for line in answer.lines if line.startswith("notices: ")]
    assert first.count(" – ") == 3, "rows, rows to move, payload"
    (found,) = offload("plan", "--json").document["tables"]
    assert found["rows"]["low"] < found["rows"]["value"] < found["rows"]["high"]


def test_what_has_moved_is_not_to_be_moved_again(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=100)
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, [large_payload(3000, seed) for seed in range(3)])
    assert offload("drain").code == 0
    lines = offload("plan").lines
    assert "notices: nothing of 3 rows would move" in lines
    assert "  rows now: never seen 0, inline 0, pending 0, moved 3" in lines


def test_a_table_that_keeps_its_payloads_frees_nothing_and_says_so(
    offload: Command, connection: psycopg.Connection
) -> None:
    table = make_table(connection, threshold_bytes=100, after_copy="keep")
    offload.configure(table)
    insert_payloads(connection, table, [large_payload(3000)])
    assert any("as after_copy: keep leaves the payloads in their rows" in line for line in offload("plan").lines)


@pytest.mark.parametrize(
    ("options", "payload", "remark"),
    [
        ({"max_object_bytes": 1000}, {}, "larger than max_object_bytes, and so never moved: 1 row"),
        ({}, {"tenant_id": None}, "without tenant, and so never moved: 1 row"),
    ],
)
def test_rows_that_will_never_move_are_remarked_on(
    offload: Command, connection: psycopg.Connection, options: dict[str, Any], payload: dict[str, Any], remark: str
) -> None:
    table = make_table(connection, threshold_bytes=100, **options)
    offload.configure(table)
    insert_payloads(connection, table, [large_payload(3000)])
    for column, value in payload.items():
        connection.execute(f"UPDATE notices SET {column} = %s".encode(), [value])  # noqa: S608 - the test's own names
    assert f"  {remark}" in offload("plan").lines


def test_toast_that_holds_no_payload_is_remarked_on(
    offload: Command, connection: psycopg.Connection, database_url: str, local_store_url: str
) -> None:
    table = make_table(connection, threshold_bytes=100_000, extra_columns={"scan": "bytea"})
    offload.configure(table)
    connection.execute("ALTER TABLE notices ALTER scan SET STORAGE EXTERNAL")
    insert_payloads(connection, table, ["{}"] * 3, scan=b"x" * 5_000_000)
    pipeline = make_pipeline(database_url, local_store_url, [table])
    said = "\n".join(sentences(pipeline.forecast(pipeline.inspect(connection, "notices"))))
    assert "TOAST holds 15." in said
    assert "the payloads account for" in said
    assert said.endswith("the rest is free space or another column")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--table", "notice"], "offload: no table 'notice' in offload.yaml (it has notices); did you mean notices?"),
        ([], "offload: notices: no table public.notices in database"),
    ],
)
def test_a_table_that_is_not_there_is_one_line_and_two(
    offload: Command, connection: psycopg.Connection, arguments: list[str], complaint: str
) -> None:
    offload.configure(make_table(connection))
    connection.execute("DROP TABLE notices")
    answer = offload("plan", *arguments)
    assert answer.code == 2
    assert answer.complaint.startswith(complaint)
    assert answer.stdout == b""
