"""A full pass in a process of its own that kills itself: `python -m ….full_pass PAGE_ROWS GETS`."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

from offload_pipeline.config import CONFIG_VARIABLE
from offload_pipeline.offload.claims import Partition
from offload_pipeline.pipeline import Pipeline, open_pipeline
from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline.verification import copies
from offload_pipeline_tests.offload.worker import REPOSITORY, write_config

MODULE = "offload_pipeline_tests.verification.full_pass"


class FatalStore(ObjectStore):
    """Ends its process, as `kill -9` does, in the GET after so many."""

    def __init__(self, inner: ObjectStore, gets: int) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self._left, self._counting = gets, threading.Lock()

    def get(self, key: str) -> bytes:
        with self._counting:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().get(key)


def run_until_killed(pipeline: Pipeline, folder: Path, *, page_rows: int, gets: int) -> None:
    """A full pass of tenant acme that dies after `gets` GETs."""
    config = write_config(pipeline, folder)
    done = subprocess.run(
        [sys.executable, "-m", MODULE, str(page_rows), str(gets)],
        cwd=REPOSITORY,
        env={**os.environ, CONFIG_VARIABLE: str(config)},
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL


def main(page_rows: int, gets: int) -> None:
    vars(copies)["PAGE_ROWS"] = page_rows
    pipeline = open_pipeline()
    pipeline = replace(pipeline, store=FatalStore(pipeline.store, gets))
    with pipeline.connect() as connection:
        (table,) = pipeline.tables(connection)
    pipeline.verify(Partition(table, "acme"), "killed", full=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
