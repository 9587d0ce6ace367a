"""The Dagster UI and daemon of `offload up`, as one child process."""

import contextlib
import os
import signal
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
STOP_SECONDS = 30
POLL_SECONDS = 0.5


@contextlib.contextmanager
def dagster_ui(variables: Mapping[str, str], port: int, log_file: Path) -> Iterator[str]:
    """Runs `dagster dev` on the project's definitions; yields the address once it answers, stops it in the end.

    UserError where the port is taken, TransientError where Dagster does not start; its output is in `log_file`.
    """
    port = port or _free_port()
    address = f"http://{HOST}:{port}"
    if _answers(address):
        raise UserError(f"port {port} is in use; choose another: offload up --port 3001")
    command = [
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
        process = subprocess.Popen(  # noqa: S603 - this interpreter, fixed arguments
            command, env={**os.environ, **variables}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait_until_it_answers(process, address, log_file)
        yield address
    finally:
        _stop(process)


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", address: str, log_file: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
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


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Asks the whole session to end: `dagster dev` has webserver, daemon, code server and runs below it."""
    for ask in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, ask)
        try:
            process.wait(STOP_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
