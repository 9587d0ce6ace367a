"""`offload get`: canonical bytes and nothing else, wherever the payload is."""

import hashlib
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
    stored_files,
)

# A JSON parser that prints what it read makes something else of each of these.
EXACT = '{"a": 1.10, "b": 1e400, "c": 123456789012345678901234567890, "ü": "\\u0007", "d": 0.1}'


@pytest.fixture
def table(offload: Command, connection: psycopg.Connection) -> TableConfig:
    table = make_table(connection, threshold_bytes=0)
    offload.configure(table)
    offload("install")
    return table


def test_the_bytes_hash_to_what_postgres_says_before_and_after_the_move(
    offload: Command, connection: psycopg.Connection, table: TableConfig
) -> None:
    (key,) = insert_payloads(connection, table, [EXACT])
    wanted = row_hashes(connection, table)[key]
    for _ in ("in the row", "in storage"):
        answer = offload("get", "notices", str(key))
        assert (answer.code, answer.stderr) == (0, "")
        assert hashlib.sha256(answer.stdout).hexdigest() == wanted
        offload("drain")


def test_a_process_of_its_own_adds_nothing_to_the_bytes(
    offload: Command, connection: psycopg.Connection, table: TableConfig
) -> None:
    (key,) = insert_payloads(connection, table, [EXACT])
    offload("drain")
    answer = offload.process("get", "notices", str(key))
    assert answer.stdout == offload("get", "notices", str(key)).stdout
    assert not answer.stdout.endswith(b"\n")


def test_json_splices_the_payload_in_unparsed(
    offload: Command, connection: psycopg.Connection, table: TableConfig
) -> None:
    (key,) = insert_payloads(connection, table, [EXACT])
    offload("drain")
    payload = offload("get", "notices", str(key)).stdout
    answer = offload("get", "notices", str(key), "--json")
    assert answer.stdout.endswith(b', "payload": ' + payload + b"}\n")
    document = answer.document
    assert document["sha256"] == hashlib.sha256(payload).hexdigest()
    assert document["size_bytes"] == len(payload)
    assert (document["table"], document["primary_key"]) == ("notices", str(key))
    assert (document["source"], document["status"]) == ("store", "in_storage")
    assert document["object_key"].endswith(f"{document['sha256']}.json.gz")


def test_a_text_payload_becomes_a_json_string(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, payload_type="text", threshold_bytes=0)
    offload.configure(table)
    offload("install")
    (key,) = insert_payloads(connection, table, ['not "JSON"\n\\ at all, ü'])
    for source in ("row", "store"):
        document = offload("get", "notices", str(key), "--json").document
        assert document["payload"] == 'not "JSON"\n\\ at all, ü'
        assert document["source"] == source
        offload("drain")


def test_a_row_without_payload_prints_nothing(
    offload: Command, connection: psycopg.Connection, table: TableConfig
) -> None:
    (key,) = insert_payloads(connection, table, [None])
    answer = offload("get", "notices", str(key))
    assert (answer.code, answer.stdout, answer.stderr) == (0, b"", "")
    document = offload("get", "notices", str(key), "--json").document
    assert (document["payload"], document["sha256"], document["size_bytes"]) == (None, None, None)


def test_a_row_that_is_not_there_is_exit_code_1(offload: Command, table: TableConfig) -> None:
    answer = offload("get", "notices", "999")
    assert (answer.code, answer.stdout) == (1, b"")
    assert answer.complaint == "offload: notices has no row with the key 999; check the key"


def test_a_missing_object_is_exit_code_1(
    offload: Command, connection: psycopg.Connection, table: TableConfig, store_folder: Path
) -> None:
    (key,) = insert_payloads(connection, table, [EXACT])
    offload("drain")
    (path,) = stored_files(store_folder)
    (store_folder / path).unlink()
    answer = offload("get", "notices", str(key), "--json")
    assert answer.code == 1
    assert answer.document["error"]["class"] == "ObjectMissingError"
    assert str(path) in answer.complaint


def test_a_damaged_object_is_exit_code_1_and_none_of_it_is_printed(
    offload: Command, connection: psycopg.Connection, table: TableConfig, store_folder: Path
) -> None:
    (key,) = insert_payloads(connection, table, [large_payload(5000)])
    offload("drain")
    (path,) = stored_files(store_folder)
    data = bytearray((store_folder / path).read_bytes())
    data[len(data) // 2] ^= 1
    (store_folder / path).write_bytes(data)
    answer = offload("get", "notices", str(key))
    assert (answer.code, answer.stdout) == (1, b"")
    assert str(path) in answer.complaint


def test_a_key_of_the_wrong_type_is_a_mistake_that_names_the_type(offload: Command, table: TableConfig) -> None:
    answer = offload("get", "notices", "abc")
    assert answer.code == 2
    assert answer.complaint.endswith("the key is id bigint")


def test_negative_keys_need_no_escaping(offload: Command, connection: psycopg.Connection, table: TableConfig) -> None:
    insert_payloads(connection, table, [EXACT], id=-5)
    assert offload("get", "notices", "-5").code == 0


def test_composite_keys_are_written_with_commas(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, key_columns={"region": "text", "number": "int"}, threshold_bytes=0)
    offload.configure(table)
    offload("install")
    insert_payloads(connection, table, ['{"a": 1}'], region="a,b%", number=7)
    offload("drain")
    assert offload("get", "notices", "a%2Cb%25,7").stdout == b'{"a": 1}'
    answer = offload("get", "notices", "7")
    assert answer.code == 2
    assert answer.complaint.endswith("write it as region,number (a comma in a part: %2C)")
