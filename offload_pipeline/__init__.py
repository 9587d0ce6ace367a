"""Moves large payloads out of live PostgreSQL rows into object storage, and proves it before it frees anything."""

__version__ = "0.1.0"
