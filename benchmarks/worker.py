"""A worker in a process of its own: `python -m benchmarks.worker CONFIG TENANT [CORE]`.

Says that it is ready, waits for a line, drains the tenant's rows in the one table of CONFIG, those older than the
trigger as well, and prints what came of it.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, cast

import psutil  # type: ignore[import-untyped]  # has no type information

from offload_pipeline.config import load_config
from offload_pipeline.offload.claims import Partition
from offload_pipeline.pipeline import Pipeline, open_pipeline
from offload_pipeline_tests.offload.worker import write_config

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Drained:
    """What one worker did, the CPU time that this took it, and the most memory (10**6 bytes) that it ever held."""

    rows_released: int
    cpu_seconds: float
    peak_megabytes: float


class Worker:
    """One that has started, and waits to be told to drain."""

    def __init__(self, pipeline: Pipeline, folder: Path, tenant: str, core: int | None = None) -> None:
        arguments = [str(write_config(pipeline, folder)), tenant, *([] if core is None else [str(core)])]
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, the module below
            [sys.executable, "-m", __name__, *arguments],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        cast("IO[str]", self._process.stdout).readline()

    def begin(self) -> None:
        """Tells it to drain, and does not wait."""
        self._process.stdin = cast("IO[str]", self._process.stdin)
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> Drained:
        """Waits for its end. Raises CalledProcessError where it failed."""
        printed, _ = self._process.communicate()
        if self._process.returncode:
            raise subprocess.CalledProcessError(self._process.returncode, self._process.args)
        return Drained(**json.loads(printed))


def drain_in_a_process(pipeline: Pipeline, folder: Path, tenant: str) -> Drained:
    """By one worker, from its start to its end."""
    worker = Worker(pipeline, folder, tenant)
    worker.begin()
    return worker.result()


def _work(config: Path, tenant: str) -> Drained:
    pipeline = open_pipeline(load_config(config))
    with pipeline.connect() as connection:
        (table,) = pipeline.tables(connection)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    begun = time.process_time()
    done = pipeline.drain(Partition(table, tenant), "benchmark", unseen=True)
    spent = time.process_time() - begun
    return Drained(done.released.rows_released, spent, _peak_megabytes())


def _peak_megabytes() -> float:
    """Of this program alone: `ru_maxrss` would begin with that of the process which started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    if len(sys.argv) > 3:
        psutil.Process().cpu_affinity([int(sys.argv[3])])
    sys.stdout.write(json.dumps(asdict(_work(Path(sys.argv[1]), sys.argv[2]))))
