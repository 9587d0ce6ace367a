"""The results of retention as lines for a reader and as documents for a program."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from offload_pipeline.cli.exit_codes import one_line
from offload_pipeline.cli.output import format_age, format_bytes, format_rows

if TYPE_CHECKING:
    from offload_pipeline.errors import OffloadError
    from offload_pipeline.offload.claims import Partition
    from offload_pipeline.retention.erasure import ErasureResult, TableErasure
    from offload_pipeline.retention.expired_objects import ListedResult
    from offload_pipeline.retention.expiry import ExpiryResult
    from offload_pipeline.retention.findings import GarbageResult, TableGarbage


def expired_line(result: "ExpiryResult", partition: "Partition", *, delete: bool) -> str:
    """`expired 120 rows (18.0 MB)`, or what would be."""
    if not delete:
        retention = partition.table.config.object_retention or timedelta(0)
        age = format_age(retention.total_seconds())
        return f"{format_rows(result.rows_due)} ({format_bytes(result.payload_bytes_due)}) stored more than {age} ago"
    text = f"expired {format_rows(result.rows_expired)} ({format_bytes(result.payload_bytes)})"
    text += f", {result.rows_left:,} locked or changed" if result.rows_left else ""
    return text + (f", {result.rows_failed:,} failed" if result.rows_failed else "")


def expired_document(result: "ExpiryResult") -> dict[str, Any]:
    """The numbers of one pass over a partition."""
    return asdict(result)


def listed_line(result: "ListedResult", grace: timedelta, *, delete: bool) -> str:
    """What became of the objects of expired rows, or would."""
    if not delete:
        return (
            f"expired objects: {result.listed:,} ({format_bytes(result.listed_payload_bytes)} of payload), "
            f"{result.due:,} of them listed more than {format_age(grace.total_seconds())} ago"
        )
    text = f"expired objects: deleted {result.objects_deleted:,} ({format_bytes(result.object_bytes)})"
    for count, what in (
        (result.objects_gone, "were gone"),
        (result.objects_named, "are named again"),
        (result.objects_left, "left for the next run"),
        (result.objects_failed, "failed"),
        (result.listed - result.due, "wait for the grace"),
    ):
        text += f", {count:,} {what}" if count else ""
    return text + _stopped(result.stopped_by)


def listed_document(result: "ListedResult") -> dict[str, Any]:
    """The numbers of one pass over the list."""
    return _numbers(result) | {"stopped_by": _text(result.stopped_by)}


def garbage_lines(result: "GarbageResult", *, delete: bool) -> Iterator[tuple[str, bool]]:
    """Lines, and whether each is to be seen from afar."""
    for name, table in result.tables.items():
        yield f"{name}: {_found(table)}" + (f"; {_deleted(table)}" if delete and not table.stopped else ""), False
        if table.stopped:
            yield f"{name}: {'NOT TOUCHED' if delete else 'would not be touched'}: {table.stopped}", True
    if result.foreign:
        yield f"foreign: {_objects(result.foreign)} ({format_bytes(result.foreign_bytes)}), never touched", False
    if result.leftovers:
        done = f", deleted {result.leftovers_deleted:,}" if delete else ""
        size = format_bytes(result.leftover_bytes)
        files = "1 file" if result.leftovers == 1 else f"{result.leftovers:,} files"
        yield f"left by killed processes: {files} ({size}){done}", False
    if result.stopped_by:
        yield _stopped(result.stopped_by).removeprefix(", "), True


def garbage_document(result: "GarbageResult") -> dict[str, Any]:
    """Every number of a collection, by table."""
    return {
        "tables": [{"table": name} | asdict(table) for name, table in result.tables.items()],
        "foreign": result.foreign,
        "foreign_bytes": result.foreign_bytes,
        "leftovers": result.leftovers,
        "leftover_bytes": result.leftover_bytes,
        "leftovers_deleted": result.leftovers_deleted,
        "stopped_by": _text(result.stopped_by),
    }


def erased_lines(result: "ErasureResult", tenant: str, *, delete: bool) -> Iterator[str]:
    """What a tenant had in each table, and what became of it."""
    for name, table in result.tables.items():
        yield f"{name}, tenant {tenant!r}: " + (_erased(table) if delete else _to_erase(table))
        if not table.is_listed:
            yield "  its keys do not tell tenants apart: objects that no row names are not looked for"
        if table.rows_holding:
            held = f"{table.rows_holding:,}"
            yield f"  payloads still in rows: {held}; delete them in the application, then run this again"
    listed = result.listed
    if not delete:
        yield f"listed for deletion already: {_objects(listed.listed)}"
        return
    total = listed.objects_deleted + sum(table.objects_deleted for table in result.tables.values())
    size = listed.object_bytes + sum(table.object_bytes_deleted for table in result.tables.values())
    yield f"deleted {_objects(total)} ({format_bytes(size)})" + _stopped(result.stopped_by)


def erased_document(result: "ErasureResult") -> dict[str, Any]:
    """Every number of an erasure, by table."""
    return {
        "tables": [{"table": name} | asdict(table) for name, table in result.tables.items()],
        "listed": listed_document(result.listed),
        "stopped_by": _text(result.stopped_by),
    }


def _objects(count: int) -> str:
    return f"{count:,} object" if count == 1 else f"{count:,} objects"


def _found(table: "TableGarbage") -> str:
    return (
        f"{_objects(table.objects)} ({format_bytes(table.bytes)}): {table.named:,} named, {table.young:,} young, "
        f"{table.expired:,} expired, {table.orphans:,} orphans ({format_bytes(table.orphan_bytes)})"
    )


def _deleted(table: "TableGarbage") -> str:
    text = f"deleted {table.deleted:,} ({format_bytes(table.deleted_bytes)})"
    text += f", {table.spared:,} spared" if table.spared else ""
    return text + (f", {table.failed:,} failed" if table.failed else "")


def _to_erase(table: "TableErasure") -> str:
    return (
        f"{format_rows(table.rows_in_storage)} in storage, {table.rows_copied:,} copied "
        f"({format_bytes(table.payload_bytes)}); {_objects(table.objects)} ({format_bytes(table.object_bytes)}) "
        "under its prefix"
    )


def _erased(table: "TableErasure") -> str:
    text = f"erased {format_rows(table.rows_erased)} ({format_bytes(table.payload_bytes)})"
    for count, what in (
        (table.rows_left, "locked or changed"),
        (table.rows_failed, "failed"),
        (table.objects_named, "objects named by rows of others"),
        (table.objects_left, "objects being written"),
        (table.objects_failed, "objects failed"),
    ):
        text += f", {count:,} {what}" if count else ""
    return text


def _numbers(result: Any) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in fields(result) if field.name != "stopped_by"}


def _text(error: "OffloadError | None") -> str | None:
    return one_line(str(error)) if error else None


def _stopped(error: "OffloadError | None") -> str:
    return f", stopped: {one_line(str(error))}" if error else ""
