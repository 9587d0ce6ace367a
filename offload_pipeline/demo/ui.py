"""The Dagster UI and daemon of `offload up`, as one child process."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from offload_pipeline.errors import TransientError, UserError

HOST = "127.0.0.1"
START_SECONDS = 120
# The watcher asks three times, 20 seconds apart; usually the first is enough.
STOP_SECONDS = 70
POLL_SECONDS = 0.5

# Leads a session with everything below `dagster dev`: webserver, daemon, code server and runs. SIGINT is taken back
# from shells that start background jobs with it ignored.
_WATCH = """
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGINT, signal.SIG_DFL)
dagster = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
def stop_with_owner():
    os.read(0, 1)
    for ask in (signal.SIGINT, signal.SIGTERM):
        os.killpg(0, ask)
        try:
            return dagster.wait(20)
        except subprocess.TimeoutExpired:
            pass
    dagster.kill()
threading.Thread(target=stop_with_owner, daemon=True).start()
dagster.wait()
os.killpg(0, signal.SIGKILL)
"""


@contextlib.contextmanager
def dagster_ui(variables: Mapping[str, str], port: int, log_file: Path) -> Iterator[str]:
    """Runs `dagster dev` on the project's definitions; yields the address once it answers, stops it in the end.

    UserError where the port is taken, TransientError where Dagster does not start; its output is in `log_file`.
    """
    port = port or _free_port()
    address = f"http://{HOST}:{port}"
    require_free(port)
    dagster = [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "-m",
        "offload_pipeline.definitions",
        "-h",
        HOST,
        "-p",
        str(port),
    ]
    with log_file.open("wb") as log:
        watcher = subprocess.Popen(  # noqa: S603 - this interpreter, the script above
            [sys.executable, "-c", _WATCH, *dagster], env={**os.environ, **variables}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait_until_it_answers(watcher, address, log_file)
        yield address
    finally:
        # Its input ends, and it stops everything; the same happens when this process is killed.
        watcher.communicate(timeout=STOP_SECONDS)


def _wait_until_it_answers(watcher: "subprocess.Popen[bytes]", address: str, log_file: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(address):
        if watcher.poll() is not None or time.monotonic() > deadline:
            raise TransientError(f"Dagster did not start; see {log_file}")
        time.sleep(POLL_SECONDS)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/server_info", timeout=5):  # noqa: S310 - a fixed http address
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def require_free(port: int) -> None:
    """UserError where something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UserError(f"port {port} is in use; choose another: offload up --port 3001") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
