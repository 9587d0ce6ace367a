"""`offload get`: canonical bytes and nothing else, wherever the payload is."""

import hashlib
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from offload_pipeline.config import TableConfig
from offload_pipeline.storage.seaweedfs import SeaweedFS
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


def test_an_expired_payload_is_exit_code_1(
    offload: Command, connection: psycopg.Connection, table: TableConfig
) -> None:
    (key,) = insert_payloads(connection, table, [EXACT])
    offload("drain")
    connection.execute(
        "UPDATE notices SET raw_payload = NULL, payload_storage_status = 'expired', raw_object_key = NULL"
    )
    answer = offload("get", "notices", str(key), "--json")
    assert answer.code == 1
    assert answer.document["error"]["class"] == "PayloadExpiredError"
    assert answer.complaint == f"offload: notices {key}: the payload's retention is over, and it was given up"


def test_another_store_than_the_partitions_is_named_instead_of_a_missing_object(
    offload: Command, connection: psycopg.Connection, table: TableConfig, tmp_path: Path
) -> None:
    (key,) = insert_payloads(connection, table, [EXACT])
    offload("drain")
    elsewhere = (tmp_path / "elsewhere").as_uri()
    offload.configure(table, object_store={"url": elsewhere})
    answer = offload("get", "notices", str(key))
    assert (answer.code, answer.stdout) == (1, b"")
    assert f"its objects are in {offload.store_url}, object_store.url is {elsewhere}" in answer.complaint
    assert "no object" not in answer.complaint


def test_an_address_is_printed_instead_of_the_payload(
    offload: Command,
    connection: psycopg.Connection,
    s3_url: str,
    seaweedfs: SeaweedFS,
) -> None:
    table = make_table(connection, threshold_bytes=0)
    offload.configure(table, object_store={"url": s3_url, "endpoint": seaweedfs.endpoint})
    offload("install")
    (key,) = insert_payloads(connection, table, [EXACT])
    payload = offload("get", "notices", str(key)).stdout
    offload("drain")
    (address,) = offload("get", "notices", str(key), "--url", "--expires", "90 min").lines
    assert parse_qs(urlsplit(address).query)["X-Amz-Expires"] == ["5400"]
    curl = subprocess.run(["curl", "-sS", "--compressed", address], check=True, capture_output=True)
    assert curl.stdout == payload
    document = offload("get", "notices", str(key), "--url", "--json").document
    assert document["expires_in_seconds"] == 3600
    assert document["url"].startswith(seaweedfs.endpoint)


def test_a_folder_has_no_address_to_print(offload: Command, connection: psycopg.Connection, table: TableConfig) -> None:
    (key,) = insert_payloads(connection, table, [EXACT])
    offload("drain")
    answer = offload("get", "notices", str(key), "--url")
    assert (answer.code, answer.stdout) == (2, b"")
    assert answer.complaint.endswith("is a folder, which has no addresses; read the payload instead")


def test_a_time_needs_an_address_and_an_end(offload: Command, table: TableConfig) -> None:
    answer = offload("get", "notices", "1", "--expires", "1h")
    assert (answer.code, answer.complaint) == (2, "offload: --expires needs the address that it is for; add --url")
    answer = offload("get", "notices", "1", "--url", "--expires", "tomorrow")
    assert answer.code == 2
    assert answer.complaint.startswith("offload: --expires is not a duration; write for example")


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
