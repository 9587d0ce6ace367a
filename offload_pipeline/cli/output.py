"""Where things are said: results on stdout, as lines or as one JSON document; everything else on stderr."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Into a file or a pipe, tables get the room they need instead of folding at the 80 columns of no terminal.
WIDTH_WITHOUT_TERMINAL = 240
# Wider than any table, to ask how wide one would like to be.
WIDEST = 100_000


class Watch:
    """What work tells as it goes on. Where nobody watches a bar, only its pauses are said, each once."""

    def __init__(self, title: str, complain: Callable[[str], None]) -> None:
        self.title, self._complain = title, complain

    def __call__(self, rows: int, payload_bytes: int) -> None:
        """After each batch: the rows it went through, the payload bytes it moved."""

    def step(self, name: str, total_rows: int | None) -> "Watch":  # noqa: ARG002 - only a bar draws them
        """The work's next step begins, with so many rows ahead, if that is known."""
        return self

    def paused(self, reason: str | None) -> None:
        """Work waits for the database to catch up; None: it goes on."""
        self._complain(f"{self.title}: paused: {reason}" if reason else f"{self.title}: goes on")


class Output:
    """What a command says, in the form that was asked for."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str, style: str = "") -> None:
        """One line for a human reader; `style` shows on a terminal only."""
        if self.as_json:
            return
        if style and sys.stdout.isatty():
            from rich.text import Text  # for a terminal only

            _console().print(Text(text, style), soft_wrap=True)
        else:
            write((text + "\n").encode(errors="backslashreplace"))

    def show(self, renderable: "RenderableType") -> None:
        """A table for a human reader."""
        if not self.as_json:
            _console().print(renderable)

    def has_room_for(self, renderable: "RenderableType") -> bool:
        """Whether a table's lines fit without folding or cutting a cell."""
        console = _console()
        return console.measure(renderable, options=console.options.update(max_width=WIDEST)).maximum <= console.width

    def document(self, document: Mapping[str, Any]) -> None:
        """The one JSON document; times become ISO 8601."""
        if self.as_json:
            write(to_json(document) + b"\n")

    def complain(self, message: str) -> None:
        """One line on stderr, in either form."""
        sys.stderr.write(f"offload: {message}\n")
        sys.stderr.flush()

    @contextlib.contextmanager
    def progress(self, title: str, total_rows: int | None) -> Iterator[Watch]:
        """What to call after each batch; draws on stderr, for a terminal only, if the work takes its time."""
        if not shows_progress():
            yield Watch(title, self.complain)
            return
        from offload_pipeline.cli.progress import progress_bar  # brings rich

        with progress_bar(title, total_rows) as watch:
            yield watch


def _console() -> "Console":
    from rich.console import Console  # a tenth of a second, for a human reader only

    width = None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(width=width, highlight=False, markup=False)


def shows_progress() -> bool:
    """Whether anybody would see a progress bar."""
    return sys.stderr.isatty()


def write(data: bytes) -> None:
    """Exactly these bytes on stdout, whatever the terminal's encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def to_json(document: Mapping[str, Any]) -> bytes:
    """UTF-8 JSON on one line."""
    return json.dumps(document, ensure_ascii=False, default=_as_json).encode()


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def format_bytes(count: int) -> str:
    """`18.0 MB`, in powers of 1000."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_rows(count: int) -> str:
    """`1 row`, `12,000 rows`."""
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def format_age(seconds: float) -> str:
    """`45 s`, `12 min`, `5 h`, `3 d`: the largest unit that fits."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
