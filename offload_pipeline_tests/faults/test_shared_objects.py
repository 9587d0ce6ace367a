"""Rows that share an object, as they do under a key without {primary_key}: no upload may spoil it for the others."""

from collections.abc import Iterator
from contextlib import suppress

import pytest

from offload_pipeline.errors import OffloadError
from offload_pipeline.offload.writer import PayloadWriter
from offload_pipeline.storage import object_store
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.faults.proxy import FaultyProxy
from offload_pipeline_tests.invariant import assert_invariant
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed
from offload_pipeline_tests.retention.collecting import keys_in

PAYLOAD = large_payload(3000)
SPOILING = pytest.mark.parametrize("fault", ["truncated", "altered"])


@pytest.fixture
def by_content(
    database_url: str, s3_url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Installation]:
    monkeypatch.setattr(object_store, "RETRIES", {"max_retries": 0})
    address = StoreAddress(s3_url, {"endpoint": proxy.endpoint, "timeout": "1s"})
    with installed(database_url, address, key_template="{table}/{sha256}.json.gz") as installation:
        yield installation


def assert_nothing_lost(notices: Installation, store: ObjectStore) -> None:
    assert_invariant(notices.connection, store, notices.config, notices.expected)
    assert len(keys_in(store)) == 1


@SPOILING
def test_a_spoilt_upload_leaves_the_object_of_another_row_alone(
    by_content: Installation, proxy: FaultyProxy, real_store: ObjectStore, fault: str
) -> None:
    by_content.insert([PAYLOAD])
    assert by_content.drain().is_sound
    by_content.insert([PAYLOAD], tenant="globex")
    proxy.faults = {"PUT": fault}
    assert by_content.drain("globex").is_sound, "what stands there already is not sent again"
    assert_nothing_lost(by_content, real_store)


@SPOILING
def test_an_application_that_writes_the_payload_again_leaves_the_object_of_another_row_alone(
    by_content: Installation, proxy: FaultyProxy, real_store: ObjectStore, fault: str
) -> None:
    by_content.insert([PAYLOAD])
    assert by_content.drain().is_sound
    proxy.faults = {"PUT": fault}
    with (
        suppress(OffloadError),
        PayloadWriter(by_content.pipeline) as writer,
        by_content.connection.transaction(),
    ):
        writer.write(by_content.connection, "notices", "acme", 77, PAYLOAD)
    assert_nothing_lost(by_content, real_store)


@SPOILING
def test_an_object_that_is_not_the_payload_is_sent_again(
    by_content: Installation, proxy: FaultyProxy, real_store: ObjectStore, fault: str
) -> None:
    by_content.insert([PAYLOAD])
    proxy.faults = {"PUT": fault}
    assert by_content.copy().rows_failed == 1
    proxy.heal()
    by_content.let_time_pass()
    assert by_content.drain().is_sound
    assert_nothing_lost(by_content, real_store)
