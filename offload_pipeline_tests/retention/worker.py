"""A collection in a process of its own, which tests measure and kill: `python -m ….worker [TENANT]`.

Collects garbage with deletion switched on, or erases the tenant. Prints one JSON document: what was deleted, and this
process's peak memory.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from offload_pipeline.config import CONFIG_VARIABLE
from offload_pipeline.pipeline import Pipeline, open_pipeline
from offload_pipeline.retention.passes import Retention
from offload_pipeline_tests.offload.worker import REPOSITORY, peak_megabytes

MODULE = "offload_pipeline_tests.retention.worker"


def start_worker(pipeline: Pipeline, folder: Path, tenant: str | None = None) -> "subprocess.Popen[str]":
    """Starts a collection on the same database and store; `folder` takes its configuration. The caller waits for it."""
    config = folder / "offload.yaml"
    document = pipeline.config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    config.write_text(json.dumps(document))
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, *([] if tenant is None else [tenant])],
        cwd=REPOSITORY,
        env={**os.environ, CONFIG_VARIABLE: str(config)},
        stdout=subprocess.PIPE,
        text=True,
    )


def main(tenant: str | None) -> None:
    """Deletes what there is to delete."""
    retention, run_id = Retention(open_pipeline()), f"worker-{os.getpid()}"
    if tenant is None:
        found = retention.collect_garbage(run_id, delete=True, max_orphan_share=1)
        counted = {name: vars(table) for name, table in found.tables.items()}
    else:
        erased = retention.erase(tenant, run_id, delete=True)
        counted = {name: vars(table) for name, table in erased.tables.items()}
    print(json.dumps({**counted, "peak_megabytes": peak_megabytes()}))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
