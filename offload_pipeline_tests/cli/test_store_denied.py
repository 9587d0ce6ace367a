"""A store that refuses is a mistake of the user's, whichever command meets it: one line with bucket and mend."""

import psycopg
import pytest

from offload_pipeline.config import TableConfig
from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.cli.command import Answer, Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, statuses

COMMANDS = {
    "drain": ["drain"],
    "backfill": ["backfill", "--table", "notices", "--tenant", "acme"],
    "verify": ["verify"],
    "restore": ["restore"],
    "get": ["get", "notices", "1"],
    "gc": ["gc"],
    "gc --delete": ["gc", "--delete"],
    "erase": ["gc", "--erase-tenant", "acme", "--delete"],
}
MEND = "check the bucket's name, the credentials in the environment, and that they may put and get objects"


@pytest.fixture
def stored(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, s3_url: str, seaweedfs: SeaweedFS
) -> str:
    """One payload in the bucket; gives the store's URL."""
    offload.configure(notices, object_store={"url": s3_url, "endpoint": seaweedfs.endpoint})
    assert offload("install").code == 0
    insert_payloads(connection, notices, [large_payload(1000)])
    assert offload("drain").code == 0
    assert statuses(connection, notices) == {1: "in_storage"}
    return s3_url


def assert_refused(answer: Answer, url: str, cause: str) -> None:
    said = [*answer.stderr.splitlines(), *answer.lines]
    (line,) = [line for line in said if cause in line]
    assert f"{url}: " in line
    assert line.endswith(MEND)
    assert answer.code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_credentials_are_a_mistake_of_the_users(offload: Command, stored: str, command: str) -> None:
    offload.patch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    assert_refused(offload(*COMMANDS[command]), stored, "access denied (403 SignatureDoesNotMatch)")


@pytest.mark.parametrize("command", ["verify", "restore", "get", "gc"])
def test_a_bucket_that_is_not_there_is_a_mistake_of_the_users(
    offload: Command, stored: str, connection: psycopg.Connection, notices: TableConfig, seaweedfs: SeaweedFS,
    command: str,
) -> None:  # fmt: skip
    elsewhere = "s3://no-such-bucket-anywhere"
    offload.configure(notices, object_store={"url": elsewhere, "endpoint": seaweedfs.endpoint})
    connection.execute("UPDATE payload_offload_state SET store_url = %s", (elsewhere,))
    assert_refused(offload(*COMMANDS[command]), elsewhere, "no such bucket")
