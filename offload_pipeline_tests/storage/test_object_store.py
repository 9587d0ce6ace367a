"""Both stores: objects as they are sent and found, and every kind of failure as one line of the right type."""

import gzip
import http.server
import json
import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_pipeline.config import ObjectStoreConfig
from offload_pipeline.errors import (
    ObjectDamagedError,
    ObjectMissingError,
    OffloadError,
    StoreDeniedError,
    StoreUnavailableError,
    TransientError,
    UserError,
)
from offload_pipeline.offload.packing import Compression, pack, unpack
from offload_pipeline.storage.object_store import ObjectStore, open_store
from offload_pipeline.storage.seaweedfs import SeaweedFS

KEY = "acme/notices/1/a.json.gz"
COMPRESSIONS: list[Compression] = ["standard", "fast"]
# Three retries with short pauses, and the 20 s at which the client stops to retry, on a slow machine.
BOUND_SECONDS = 40


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return open_store(ObjectStoreConfig(url=request.getfixturevalue("local_store_url")), tmp_path)
    endpoint = request.getfixturevalue("seaweedfs").endpoint
    return open_store(ObjectStoreConfig(url=request.getfixturevalue("s3_url"), endpoint=endpoint), tmp_path)


def local_store(folder: Path) -> ObjectStore:
    return open_store(ObjectStoreConfig(url=folder.as_uri()), folder)


def one_line(error: OffloadError) -> str:
    message = str(error)
    assert message
    assert "\n" not in message
    return message


# Objects


@pytest.mark.parametrize("compression", COMPRESSIONS)
@settings(deadline=None)
@given(payload=st.binary(max_size=2000))
def test_what_was_packed_unpacks_to_the_same_bytes(compression: Compression, payload: bytes) -> None:
    packed = pack(payload, compression)
    assert unpack(packed.data) == gzip.decompress(packed.data) == payload
    assert packed.payload_bytes == len(payload)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_packed_payload_has_no_time_and_no_file_name(compression: Compression) -> None:
    data = pack(b'{"a": 1}' * 1000, compression).data
    flags, modified = data[3], data[4:8]
    assert data[:3] == b"\x1f\x8b\x08"
    assert (flags, modified) == (0, b"\0\0\0\0")
    assert pack(b'{"a": 1}' * 1000, compression).data == data


def test_an_object_is_found_as_it_was_stored(store: ObjectStore) -> None:
    data = pack(b'{"a": 1}').data
    store.put(KEY, data)
    assert store.get(KEY) == data
    store.put(KEY, b"another")
    assert store.get(KEY) == b"another"


def test_the_trailer_tells_size_and_checksum_without_the_object(store: ObjectStore) -> None:
    payload = b'{"a": 1}' * 5000
    packed = pack(payload)
    store.put(KEY, packed.data)
    found = store.trailer(KEY)
    assert (found.object_bytes, found.payload_bytes_mod_2_32) == (len(packed.data), len(payload))
    assert found.crc32 == int.from_bytes(packed.data[-8:-4], "little")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 17])
def test_an_object_too_short_to_be_gzip_is_damaged(store: ObjectStore, size: int) -> None:
    store.put(KEY, pack(b"{}").data[:size])
    with pytest.raises(ObjectDamagedError, match="truncated") as caught:
        store.trailer(KEY)
    assert KEY in one_line(caught.value)


@pytest.mark.parametrize("read", [ObjectStore.get, ObjectStore.trailer])
def test_an_object_that_is_not_there_is_missing(store: ObjectStore, read: Callable[[Any, str], object]) -> None:
    with pytest.raises(ObjectMissingError, match=KEY) as caught:
        read(store, KEY)
    one_line(caught.value)


def test_deleting_removes_the_object_and_does_not_mind_that_it_is_gone(store: ObjectStore) -> None:
    store.put(KEY, b"data")
    store.delete(KEY)
    store.delete(KEY)
    with pytest.raises(ObjectMissingError):
        store.get(KEY)


def test_a_store_that_works_passes_the_check(store: ObjectStore) -> None:
    store.check()


def test_a_plain_http_client_gets_json(s3_url: str, seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    store = open_store(ObjectStoreConfig(url=s3_url, endpoint=seaweedfs.endpoint), tmp_path)
    store.put(KEY, pack('{"name": "Zoë"}'.encode()).data)
    url = obstore.sign(store._store, "GET", KEY, timedelta(minutes=1))
    answer = urllib3.request("GET", url)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Content-Encoding"] == "gzip"
    assert json.loads(answer.data) == {"name": "Zoë"}


# Where the store is


def test_without_a_url_objects_go_to_a_folder_in_the_projects_home(tmp_path: Path) -> None:
    store = open_store(ObjectStoreConfig(), tmp_path)
    store.put(KEY, b"data")
    assert (tmp_path / "objects" / KEY).read_bytes() == b"data"
    assert store.url == (tmp_path / "objects").as_uri()


@pytest.mark.parametrize("name", ["with space", "50%", "a#b", "a?b", "Zoë"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    store = local_store(tmp_path / name)
    store.put(KEY, b"data")
    assert store.get(KEY) == (tmp_path / name / KEY).read_bytes()


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="check the path") as caught:
        local_store(tmp_path / "file" / "objects")
    one_line(caught.value)


# Failures


def test_wrong_credentials_are_the_users_to_mend(
    s3_url: str, seaweedfs: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(ObjectStoreConfig(url=s3_url, endpoint=seaweedfs.endpoint), tmp_path)
    with pytest.raises(UserError, match=r"access denied.*check .*credentials") as caught:
        store.check()
    assert "wrong" not in one_line(caught.value)
    with pytest.raises(StoreDeniedError):
        store.put(KEY, b"data")


def test_a_wrong_bucket_is_the_users_to_mend(s3_url: str, seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    store = open_store(ObjectStoreConfig(url="s3://no-such-bucket", endpoint=seaweedfs.endpoint), tmp_path)
    with pytest.raises(UserError, match=r"s3://no-such-bucket: no such bucket.*check the bucket's name") as caught:
        store.check()
    one_line(caught.value)


@pytest.fixture
def s3_at(s3_url: str, tmp_path: Path) -> Callable[[int], ObjectStore]:
    def open_at(port: int) -> ObjectStore:
        endpoint = f"http://127.0.0.1:{port}"
        config = ObjectStoreConfig(url=s3_url, endpoint=endpoint, timeout=timedelta(milliseconds=200))
        return open_store(config, tmp_path)

    return open_at


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def silent_server() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


class _Error500(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    do_PUT = do_GET  # noqa: N815 - called by the base class

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


@contextmanager
def failing_server() -> Iterator[int]:
    """Answers 500 to everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Error500) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def assert_unavailable_in_bounded_time(store: ObjectStore) -> None:
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError) as put:
        store.put(KEY, b"data")
    with pytest.raises(StoreUnavailableError) as get:
        store.get(KEY)
    assert time.monotonic() - started < 2 * BOUND_SECONDS
    one_line(put.value)
    one_line(get.value)


def test_a_refused_connection_may_pass_and_is_given_up_in_bounded_time(s3_at: Callable[[int], ObjectStore]) -> None:
    assert_unavailable_in_bounded_time(s3_at(free_port()))


def test_a_server_that_never_answers_is_given_up_in_bounded_time(s3_at: Callable[[int], ObjectStore]) -> None:
    with silent_server() as port:
        assert_unavailable_in_bounded_time(s3_at(port))


def test_a_server_error_may_pass(s3_at: Callable[[int], ObjectStore]) -> None:
    with failing_server() as port:
        assert_unavailable_in_bounded_time(s3_at(port))


@contextmanager
def small_disk(folder: Path, options: str = "size=64k") -> Iterator[None]:
    """A file system of 64 kB mounted on the folder; skips the test where that is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process grows past 64 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_nothing_is_left_of_a_large_object(folder: Path) -> None:
    store = local_store(folder)
    store.put("acme/small", b"data")
    with pytest.raises(TransientError) as caught:
        store.put(KEY, b"x" * 200_000)
    one_line(caught.value)
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "acme/small"]
    assert store.get("acme/small") == b"data"


def test_a_full_disk_leaves_nothing_behind_and_may_pass(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk"):
        assert_nothing_is_left_of_a_large_object(tmp_path / "disk")


def test_a_file_size_limit_leaves_nothing_behind_and_may_pass(tmp_path: Path) -> None:
    with small_files():
        assert_nothing_is_left_of_a_large_object(tmp_path / "objects")


def assert_denied(store: ObjectStore) -> None:
    with pytest.raises(StoreDeniedError, match="access denied") as denied:
        store.put(KEY, b"data")
    with pytest.raises(UserError, match="access denied") as refused:
        store.check()
    one_line(denied.value)
    one_line(refused.value)


def test_a_read_only_file_system_is_the_users_to_mend(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64k,ro"):
        assert_denied(local_store(tmp_path / "disk"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_the_users_to_mend(tmp_path: Path) -> None:
    store = local_store(tmp_path / "objects")
    (tmp_path / "objects").chmod(0o500)
    assert_denied(store)
