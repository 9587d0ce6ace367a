"""Listings of both stores: every object, under the key it was stored under, and never a part for the whole."""

import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from offload_pipeline.config import ObjectStoreConfig
from offload_pipeline.errors import ObjectMissingError, PermanentError, StoreDeniedError, StoreUnavailableError
from offload_pipeline.storage.durability import is_leftover, put_durably
from offload_pipeline.storage.keys import DEFAULT_TEMPLATE, object_key
from offload_pipeline.storage.object_store import PROBE_KEY, ObjectStore, open_store
from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.storage.test_keys import AWKWARD_IDS, SHA256

SECOND = timedelta(seconds=1)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return open_store(ObjectStoreConfig(url=request.getfixturevalue("local_store_url")), tmp_path)
    endpoint = request.getfixturevalue("seaweedfs").endpoint
    return open_store(ObjectStoreConfig(url=request.getfixturevalue("s3_url"), endpoint=endpoint), tmp_path)


def keys_in(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted(found.key for found in store.list(prefix))


def test_a_listed_key_is_the_stored_one_to_the_byte(store: ObjectStore) -> None:
    keys = [
        object_key(DEFAULT_TEMPLATE, tenant=one, table="notices", primary_key=[one, "1"], sha256=SHA256)
        for one in AWKWARD_IDS
    ]
    for key in keys:
        store.put(key, b"data")
    assert keys_in(store) == sorted(keys)
    for key in keys:
        assert keys_in(store, key.rsplit("/", 2)[0] + "/") == [key]


def test_a_listing_tells_size_and_moment_as_head_does(store: ObjectStore) -> None:
    before = datetime.now(UTC) - SECOND
    store.put("a/b", b"12345")
    (listed,) = store.list()
    head = store.head("a/b")
    assert (listed.key, listed.bytes) == (head.key, head.bytes) == ("a/b", 5)
    assert before <= head.last_modified <= datetime.now(UTC) + SECOND
    assert abs(listed.last_modified - head.last_modified) <= SECOND


def test_a_prefix_is_of_whole_segments(store: ObjectStore) -> None:
    for key in ("acme/notices/1", "acme/notices2/1", "acme2/notices/1"):
        store.put(key, b"data")
    assert keys_in(store, "acme/notices/") == ["acme/notices/1"]
    assert keys_in(store, "acme/") == ["acme/notices/1", "acme/notices2/1"]
    assert keys_in(store, "acm/") == []


def test_more_objects_than_a_page_are_all_listed(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload_pipeline.storage.object_store.LISTED_PER_PAGE", 7)
    keys = [f"acme/{number:03}" for number in range(50)]
    for key in keys:
        store.put(key, b"data")
    assert keys_in(store) == keys


def test_an_empty_store_lists_nothing(store: ObjectStore) -> None:
    assert keys_in(store) == keys_in(store, "acme/") == []


def test_the_head_of_what_is_not_there_is_missing(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissingError):
        store.head("acme/nothing")


def test_another_put_renews_the_age_and_the_stores_clock_goes_on(store: ObjectStore) -> None:
    store.put("a", b"data")
    first = store.head("a").last_modified
    assert first <= store.now() + SECOND
    assert keys_in(store) == [PROBE_KEY, "a"]
    while store.now() == first:
        time.sleep(0.1)  # S3 tells whole seconds
    store.put("a", b"data")
    assert store.head("a").last_modified > first


# What keeps a listing from its end


def test_a_store_that_does_not_answer_cannot_be_listed(s3_url: str, tmp_path: Path) -> None:
    config = ObjectStoreConfig(url=s3_url, endpoint="http://127.0.0.1:1", timeout=timedelta(milliseconds=200))
    with pytest.raises(StoreUnavailableError):
        keys_in(open_store(config, tmp_path))


def test_a_wrong_bucket_cannot_be_listed(s3_url: str, seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    store = open_store(ObjectStoreConfig(url="s3://no-such-bucket", endpoint=seaweedfs.endpoint), tmp_path)
    with pytest.raises(StoreDeniedError, match="no such bucket"):
        keys_in(store)


@pytest.mark.parametrize("name", ["tab\tulator", "line\nend", os.fsdecode(b"\xff\xfe")])
def test_a_foreign_file_whose_name_is_no_key_stops_the_listing_and_is_named(tmp_path: Path, name: str) -> None:
    store = open_store(ObjectStoreConfig(url=(tmp_path / "objects").as_uri()), tmp_path)
    store.put("acme/1", b"data")
    try:
        (tmp_path / "objects" / name).write_bytes(b"somebody else's")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(PermanentError, match=r"^the listing holds a name that is no key [^\n]*$"):
        keys_in(store)


def test_folders_that_come_and_go_during_a_listing_do_no_harm(tmp_path: Path) -> None:
    store = open_store(ObjectStoreConfig(url=(tmp_path / "objects").as_uri()), tmp_path)
    stay = [f"acme/notices/{number}/x" for number in range(500)]
    for key in stay:
        store.put(key, b"data")
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            store.put("acme/notices/passing/x", b"data")
            store.delete("acme/notices/passing/x")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(20):
            assert set(stay) <= set(keys_in(store))
    finally:
        stop.set()
        thread.join()


# Leftovers


KILLED_IN_PUT = """
import os, sys
from pathlib import Path
from offload_pipeline.storage import durability
durability.os.fsync = lambda _descriptor: os._exit(9)
durability.put_durably(Path(sys.argv[1]), "acme/notices/1/x.json.gz", b"data")
"""


def test_what_a_put_leaves_when_its_process_is_killed_is_a_leftover(tmp_path: Path) -> None:
    store = open_store(ObjectStoreConfig(url=(tmp_path / "objects").as_uri()), tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED_IN_PUT, tmp_path / "objects"], check=False)
    assert done.returncode == 9
    (left,) = keys_in(store)
    assert store.is_leftover(left)
    assert is_leftover(left)


def test_no_object_is_a_leftover(tmp_path: Path, store: ObjectStore) -> None:
    put_durably(tmp_path, "acme/notices/1/x", b"data")
    for key in ("acme/notices/1/x", ".part", "a/.1.part", "a/1.2.part", f"a/.1.2.part/{SHA256}.json.gz", "a/.1.g.part"):
        assert not store.is_leftover(key)


def test_only_a_local_store_has_leftovers(s3_url: str, seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    store = open_store(ObjectStoreConfig(url=s3_url, endpoint=seaweedfs.endpoint), tmp_path)
    assert is_leftover("acme/.7f3a.1b.part")
    assert not store.is_leftover("acme/.7f3a.1b.part")
