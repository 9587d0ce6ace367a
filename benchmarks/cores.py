"""Which cores processes may run on, where there are too few for everything that would be on machines of its own."""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # has no type information

from benchmarks.servers import Servers

# From here on, workers, servers and applications need not share.
ENOUGH_CORES = 4


def cores() -> list[int]:
    """Those of this machine that we may use."""
    return sorted(os.sched_getaffinity(0))


def are_few() -> bool:
    """Whether processes have to be bound, for a figure to say anything about ours."""
    return len(cores()) < ENOUGH_CORES


def database_processes(servers: Servers) -> list[int]:
    """The server's main process, from which connections inherit what it is bound to, and all that it has now."""
    with servers.connect() as connection:
        found = connection.execute("SELECT pg_read_file('postmaster.pid')").fetchone()
    assert found is not None
    postmaster = psutil.Process(int(found[0].split()[0]))
    return [postmaster.pid, *(child.pid for child in postmaster.children())]


def bind(processes: Sequence[int], to: Sequence[int]) -> None:
    """Every thread of them; what they start later inherits it. One that has ended meanwhile is passed over."""
    for process in processes:
        for thread in Path(f"/proc/{process}/task").glob("*"):
            try:
                os.sched_setaffinity(int(thread.name), to)
            except ProcessLookupError:
                continue
