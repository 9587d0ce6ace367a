"""What work in bulk says of itself while it goes on."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called after each batch or page, from any thread, with the rows it went through and the payload bytes it moved."""


def no_progress(_rows: int, _payload_bytes: int) -> None:
    """For callers that watch nothing."""
