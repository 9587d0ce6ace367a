"""How long `offload demo` takes, from nothing: its database, its tables, its runs in Dagster."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.results import Measured
from benchmarks.servers import Servers

BAR_SECONDS = 30
TIMES = 3
_SCRIPT = "import sys; from offload_pipeline.cli import main; sys.exit(main())"  # what the installed `offload` does
# A configuration or database of the user's is not the demo's.
_NOT_FOR_THE_DEMO = ("OFFLOAD_", "SUPABASE_", "DAGSTER_", "AWS_")


def measure(servers: Servers, say: Callable[[str], None]) -> list[Measured]:  # noqa: ARG001 - it starts its own servers
    """Seconds of a whole `offload demo` in an empty home; the slowest of some runs."""
    say("offload demo")
    runs = tuple(_demo() for _ in range(TIMES))
    return [
        Measured(
            measure="make demo after set-up",
            value=max(runs), unit="s", bar=BAR_SECONDS, is_at_most=True, runs=runs,
            detail=f"the slowest of {TIMES} runs, each from nothing",
        )
    ]  # fmt: skip


def _demo() -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_THE_DEMO)}
    with tempfile.TemporaryDirectory(prefix="offload-demo-") as folder:
        Path(folder).chmod(0o701)  # as root, PostgreSQL runs as an account of its own
        begun = time.perf_counter()
        subprocess.run(  # noqa: S603 - this interpreter
            [sys.executable, "-c", _SCRIPT, "demo"],
            env=environment | {"OFFLOAD_HOME": str(Path(folder) / "home")},
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - begun
