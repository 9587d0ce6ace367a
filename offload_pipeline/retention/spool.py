"""Object keys set aside in a temporary file: a store may hold millions, memory may not."""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Self, TypeVar

from offload_pipeline.errors import TransientError

T = TypeVar("T")


@dataclass(frozen=True)
class Suspect:
    """An object that no row seemed to name: its key, its bytes, and the table whose template made the key."""

    key: str
    bytes: int
    table: str


class Spool:
    """Written once, then read once; gone when closed. Raises TransientError where the temporary folder is full."""

    def __init__(self) -> None:
        with _room_needed():
            self._file = tempfile.TemporaryFile("w+", encoding="ascii", prefix="offload-")  # noqa: SIM115 - see __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Nothing written is wanted any more: what does not fit the disk at the last moment is no error.
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, suspect: Suspect) -> None:
        """Sets one aside."""
        with _room_needed():
            self._file.write(json.dumps([suspect.key, suspect.bytes, suspect.table]) + "\n")

    def chunks(self, size: int) -> Iterator[list[Suspect]]:
        """Everything, in the order it came, so many at a time."""
        with _room_needed():
            self._file.seek(0)
        return in_chunks((Suspect(*json.loads(line)) for line in self._file), size)


@contextlib.contextmanager
def _room_needed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransientError(f"no room in the temporary folder ({error.strerror}); make some, or set TMPDIR") from None


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
