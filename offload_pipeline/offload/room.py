"""Room for so many bytes at a time: what work in bulk holds in memory must not depend on how large payloads are."""

import contextlib
import threading
from collections.abc import Iterator


class Room:
    """Shared by threads. Something larger than the whole room is let in alone."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._taken_bytes = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        """Waits until there is room, and takes it until the end of the `with`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken_bytes or self._taken_bytes + size_bytes <= self._most_bytes)
            self._taken_bytes += size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._taken_bytes -= size_bytes
                self._changed.notify_all()
