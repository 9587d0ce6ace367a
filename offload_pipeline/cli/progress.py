"""The progress bar: rows, rows/s, MB/s and the time that remains, for work that takes more than a moment."""

import contextlib
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from offload_pipeline.cli.output import Watch

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


class Bar(Watch):
    """A bar that begins anew with each step, and tells why nothing moves."""

    def __init__(self, title: str, total_rows: int | None, bar: Progress) -> None:
        super().__init__(title, lambda _message: None)
        self._bar, self._lock = bar, threading.Lock()
        self._step, self._reason = "", ""
        self._task = bar.add_task(title, total=total_rows, payload_bytes=0)

    def __call__(self, rows: int, payload_bytes: int) -> None:
        """Moves the bar on."""
        with self._lock:
            total = self._bar.tasks[0].fields["payload_bytes"] + payload_bytes
            self._bar.update(self._task, advance=rows, payload_bytes=total)

    def step(self, name: str, total_rows: int | None) -> Watch:
        """Begins anew; a first step without a total keeps the one that the bar began with."""
        with self._lock:
            self._step = f": {name}"
            self._bar.reset(self._task, total=total_rows, description=self._description(), payload_bytes=0)
        return self

    def paused(self, reason: str | None) -> None:
        """Writes the reason beside the bar, or wipes it out."""
        with self._lock:
            self._reason = f" (paused: {reason})" if reason else ""
            self._bar.update(self._task, description=self._description())

    def _description(self) -> str:
        return f"{self.title}{self._step}{self._reason}"


@contextlib.contextmanager
def progress_bar(title: str, total_rows: int | None) -> Iterator[Bar]:
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
    watch = Bar(title, total_rows, bar)
    timer = threading.Timer(SHOWN_AFTER_SECONDS, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
