"""The pipeline's worker in a process of its own, doing everything it can do until it is killed.

Says on stdout, a JSON document a line, what it did and what reached it: faults that the client library's own retries
hide are not among them. Anything but a named error ends it, which the campaign takes for a mistake of ours.
"""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import psycopg

from offload_pipeline.config import CONFIG_VARIABLE
from offload_pipeline.errors import OffloadError
from offload_pipeline.offload import deletions
from offload_pipeline.pipeline import open_pipeline
from offload_pipeline.storage import object_store
from offload_pipeline.storage.object_store import ObjectStore, StoredObject, Trailer
from offload_pipeline_tests.faults.disk import FaultyDisk
from offload_pipeline_tests.faults.work import LINGERING, Work

REPOSITORY = Path(__file__).parents[2]
MODULE = "offload_pipeline_tests.faults.worker"
ASKED = '{"asked": '
FAILED_TO_COLLECT = '{"failed": "collect"'


@dataclass(frozen=True)
class Orders:
    """What a worker is told on its command line."""

    seed: int
    client_retries: int
    """Of the store's client library."""
    disk_rate: float | None = None
    """How often a request to a local store goes wrong; None for a store that is behind a proxy."""
    first: str | None = None
    """The step to begin with."""


def say(**line: object) -> None:
    # In one system call, so that a killed worker leaves whole lines.
    os.write(1, json.dumps(line).encode() + b"\n")


class TellingStore(ObjectStore):
    """Tells of every request, and whether it failed for good."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self._inner = inner

    def put(self, key: str, data: bytes) -> None:
        with _telling("PUT"):
            self._inner.put(key, data)

    def get(self, key: str) -> bytes:
        with _telling("GET"):
            return self._inner.get(key)

    def trailer(self, key: str) -> Trailer:
        with _telling("GET"):
            return self._inner.trailer(key)

    def head(self, key: str) -> StoredObject:
        with _telling("HEAD"):
            return self._inner.head(key)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        with _telling("LIST"):
            yield from self._inner.list(prefix)

    def delete(self, key: str) -> None:
        with _telling("DELETE"):
            self._inner.delete(key)


@contextlib.contextmanager
def _telling(request: str) -> Iterator[None]:
    say(asked=request)
    try:
        yield
    except OffloadError as error:
        say(failed=request, error=str(error)[:200])
        raise


def main(orders: Orders) -> None:
    """One step of the whole cycle after the other."""
    object_store.RETRIES = {**object_store.RETRIES, "max_retries": orders.client_retries}
    deletions.LINGERING = LINGERING
    pipeline = open_pipeline()
    store = pipeline.store
    if orders.disk_rate is not None:
        store = FaultyDisk(store, orders.seed, orders.disk_rate, lambda fault: say(injected=fault))
    work = Work(replace(pipeline, store=TellingStore(store)), orders.seed, orders.first)
    sys.stdin.readline()
    while True:
        name, step = work.next_step()
        with _told(name):
            say(done=step())


@contextlib.contextmanager
def _told(step: str) -> Iterator[None]:
    """An operator's run would end here with one line (see `cli/exit_codes.py`), and be run again."""
    try:
        yield
    except (OffloadError, psycopg.OperationalError) as error:
        say(failed=step, error=f"{type(error).__name__}: {error}"[:300])


class Worker:
    """A worker process as its campaign sees it. It waits for `go`, so that the next can start up beside this one."""

    def __init__(self, config: Path, orders: Orders) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, json.dumps(asdict(orders))],
            cwd=REPOSITORY,
            env={**os.environ, CONFIG_VARIABLE: str(config)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._errors = ""
        assert self._process.stdin
        self._orders = self._process.stdin
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout, self._process.stderr))
        self._reader.start()

    def go(self) -> None:
        """To work."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.write("go\n")
            self._orders.flush()

    @property
    def requests(self) -> int:
        """How often it has asked the store for anything."""
        return sum(line.startswith(ASKED) for line in self._lines)

    def has_collected(self, deletions: int) -> bool:
        """Whether it has asked for so many deletions, or had no more to ask for."""
        asked = sum(line.startswith(ASKED + '"DELETE"') for line in self._lines)
        return asked >= deletions or any("orphans deleted" in line or FAILED_TO_COLLECT in line for line in self._lines)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @contextlib.contextmanager
    def file_size_limit(self, most_bytes: int) -> Iterator[None]:
        """No file that it writes grows longer: what a full disk is where none can be made."""
        before = resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (most_bytes, before[1]))
        yield
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, before)

    def kill(self) -> "Told":
        """SIGKILL, and what it told before. Raises AssertionError where it had already ended by itself."""
        ended = self._end()
        assert ended == -signal.SIGKILL, f"the worker ended by itself ({ended}):\n{self._errors}"
        return Told.of(self._lines)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> int:
        self._process.kill()
        self._reader.join()
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()
        return self._process.wait()

    def _read(self, printed: IO[str], errors: IO[str]) -> None:
        with printed, errors:
            self._lines.extend(printed)
            self._errors = errors.read()


@dataclass(frozen=True)
class Told:
    """The lines of one life: rows by step, requests and steps that failed, faults it injected itself."""

    done: Counter[str]
    failed: Counter[str]
    injected: Counter[str]

    @property
    def full_disks(self) -> int:
        """Writes that the file system itself refused."""
        return sum(count for line, count in self.failed.items() if "Errno 28" in line or "Errno 27" in line)

    @classmethod
    def of(cls, lines: list[str]) -> "Told":
        told = cls(Counter(), Counter(), Counter())
        for line in map(json.loads, lines):
            told.done.update(line.get("done", {}))
            told.done["requests"] += "asked" in line
            if "failed" in line:
                told.failed[f"{line['failed']}: {_without_keys(line['error'])}"] += 1
            if "injected" in line:
                told.injected[line["injected"]] += 1
        return told


def _without_keys(message: str) -> str:
    """So that equal failures of different objects, partitions and sockets count together."""
    return re.sub(r"\S*/\S+|(?<= )\d+(?= bytes)|tenant '\w+'|test_\w+", "…", message)


if __name__ == "__main__":
    main(Orders(**json.loads(sys.argv[1])))
