"""A worker in a process of its own, which tests start, count and kill: `python -m ….worker TENANT PASSES MODES`.

Prints one JSON document: rows copied, PUTs by object key, and this process's peak memory. With `restore` a pass only
restores; with `return` it restores what it has moved, and lets it move again.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from offload_pipeline.config import CONFIG_VARIABLE
from offload_pipeline.offload.claims import Partition
from offload_pipeline.pipeline import Pipeline, open_pipeline
from offload_pipeline_tests.offload.stores import CountingStore

REPOSITORY = Path(__file__).parents[2]
FOREVER = 10**9
MODULE = "offload_pipeline_tests.offload.worker"


def write_config(pipeline: Pipeline, folder: Path) -> Path:
    """`folder/offload.yaml`, for another process to open the same pipeline."""
    path = folder / "offload.yaml"
    document = pipeline.config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    path.write_text(json.dumps(document))
    return path


def start_worker(
    pipeline: Pipeline, folder: Path, *modes: str, tenant: str = "acme", passes: int = 1, unseen: bool = False
) -> "subprocess.Popen[str]":
    """Starts a worker on the same database and store; `folder` takes its configuration. The caller waits for it."""
    modes = (*modes, *(["unseen"] if unseen else []))
    config = write_config(pipeline, folder)
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, tenant, str(passes), *modes],
        cwd=REPOSITORY,
        env={**os.environ, CONFIG_VARIABLE: str(config)},
        stdout=subprocess.PIPE,
        text=True,
    )


def result_of(worker: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a worker printed; the process has ended well."""
    printed, _ = worker.communicate(timeout=600)
    assert worker.returncode == 0
    result: dict[str, Any] = json.loads(printed)
    return result


def main(tenant: str, passes: int, modes: list[str]) -> None:
    """Copy, verify, release, or what the modes say, again and again."""
    pipeline = open_pipeline()
    store = CountingStore(pipeline.store)
    pipeline = replace(pipeline, store=store)
    with pipeline.connect() as connection:
        (table,) = pipeline.tables(connection)
    counted: Counter[str] = Counter()
    partition, run = Partition(table, tenant), f"worker-{os.getpid()}"
    for _ in range(passes):
        if "restore" not in modes:
            drained = pipeline.drain(partition, run, unseen="unseen" in modes)
            counted["rows_copied"] += drained.copied.rows_copied
            counted["rows_failed"] += drained.copied.rows_failed
            counted["rows_released"] += drained.released.rows_released
        if "restore" in modes or "return" in modes:
            counted["rows_restored"] += pipeline.restore(partition, run).rows_restored
        if "return" in modes:
            pipeline.lift_holds(partition, run)
    print(json.dumps({**counted, "puts": store.puts, "peak_megabytes": peak_megabytes()}))  # noqa: T201


def peak_megabytes() -> float:
    """The most memory this program held. `ru_maxrss` would begin with that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
