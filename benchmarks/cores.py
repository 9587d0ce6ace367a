"""Which cores processes may run on, where there are too few for everything that would be on machines of its own."""

import os
from collections.abc import Sequence
from pathlib import Path

# From here on, workers, servers and applications need not share.
ENOUGH_CORES = 4


def cores() -> list[int]:
    """Those of this machine that we may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def are_few() -> bool:
    """Whether processes have to be bound, for a figure to say anything about ours."""
    return len(cores()) < ENOUGH_CORES


def bind(processes: Sequence[int], to: Sequence[int]) -> None:
    """Every thread of them; what they start later inherits it. One that has ended meanwhile is passed over."""
    for process in processes:
        for thread in Path(f"/proc/{process}/task").glob("*"):
            try:
                os.sched_setaffinity(int(thread.name), to)
            except ProcessLookupError:
                continue
