"""Moves large payloads out of live PostgreSQL rows into object storage, and proves it before it frees anything."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offload_pipeline.offload.reader import PayloadReader, ReadPayload, open_reader
    from offload_pipeline.offload.writer import PayloadWriter, open_writer

__version__ = "0.1.0"
__all__ = ["PayloadReader", "PayloadWriter", "ReadPayload", "open_reader", "open_writer"]

_HOMES = {
    "PayloadReader": "offload_pipeline.offload.reader",
    "ReadPayload": "offload_pipeline.offload.reader",
    "open_reader": "offload_pipeline.offload.reader",
    "PayloadWriter": "offload_pipeline.offload.writer",
    "open_writer": "offload_pipeline.offload.writer",
}


def __getattr__(name: str) -> Any:
    """What applications use, imported when it is asked for: `offload --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
