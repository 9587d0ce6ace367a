"""The progress bar: rows, rows/s, MB/s and the time that remains, for work that takes more than a moment."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from offload_pipeline.offload.copier import Progress as Advance

# A bar that flashes by tells nothing.
SHOWN_AFTER_SECONDS = 2.0


class _Rates(ProgressColumn):
    """`1,200 rows  340 rows/s  51.0 MB/s`; bytes only where the work counts them."""

    def render(self, task: Task) -> Text:
        seconds = task.elapsed or 0.0
        if not seconds:
            return Text("")
        text = f"{task.completed:,.0f} rows  {task.completed / seconds:,.0f} rows/s"
        if payload_bytes := task.fields["payload_bytes"]:
            text += f"  {payload_bytes / 1e6 / seconds:,.1f} MB/s"
        return Text(text, style="progress.data.speed")


@contextlib.contextmanager
def progress_bar(title: str, total_rows: int | None) -> Iterator["Advance"]:
    """A bar on stderr that appears once the work has lasted, and is gone when it ends."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Rates(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = bar.add_task(title, total=total_rows, payload_bytes=0)
    lock = threading.Lock()

    def advance(rows: int, payload_bytes: int) -> None:
        with lock:
            total = bar.tasks[0].fields["payload_bytes"] + payload_bytes
            bar.update(task, advance=rows, payload_bytes=total)

    timer = threading.Timer(SHOWN_AFTER_SECONDS, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield advance
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
