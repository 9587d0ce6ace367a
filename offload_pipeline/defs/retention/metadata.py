"""Retention in numbers that plot over time, and a line for each table."""

from collections import defaultdict
from collections.abc import Sequence

from dagster import MetadataValue, TableRecord

from offload_pipeline.defs.metadata import Metadata
from offload_pipeline.offload.claims import Partition
from offload_pipeline.retention.expired_objects import ListedResult
from offload_pipeline.retention.expiry import ExpiryResult
from offload_pipeline.retention.findings import GarbageResult, TableGarbage


def garbage_metadata(result: GarbageResult, *, delete: bool) -> Metadata:
    """Orphans and bytes, in all and per table."""
    tables = result.tables.values()
    return {
        "deletes": delete,
        "objects": sum(table.objects for table in tables),
        "object_bytes": sum(table.bytes for table in tables),
        "orphans": sum(table.orphans for table in tables),
        "orphan_bytes": sum(table.orphan_bytes for table in tables),
        "deleted": sum(table.deleted for table in tables),
        "deleted_bytes": sum(table.deleted_bytes for table in tables),
        "failed": sum(table.failed for table in tables),
        "foreign": result.foreign,
        "leftovers": result.leftovers,
        "tables": MetadataValue.table([_record(name, table) for name, table in result.tables.items()]),
    }


def _record(name: str, table: TableGarbage) -> TableRecord:
    return TableRecord({
        "table": name,
        "objects": table.objects,
        "named": table.named,
        "young": table.young,
        "expired": table.expired,
        "orphans": table.orphans,
        "orphan bytes": table.orphan_bytes,
        "orphan share": f"{table.orphan_share:.1%}",
        "deleted": table.deleted,
        "spared": table.spared,
        "not touched because": table.stopped or "",
    })  # fmt: skip


def expiry_metadata(
    results: Sequence[tuple[Partition, ExpiryResult]], listed: ListedResult, *, delete: bool
) -> Metadata:
    """Rows and objects, and a line for each table that has any to expire."""
    by_table: defaultdict[str, list[ExpiryResult]] = defaultdict(list)
    for partition, result in results:
        by_table[partition.table.name].append(result)
    records = [_expiry_record(name, found) for name, found in by_table.items()]
    return {
        "deletes": delete,
        "rows_due": sum(result.rows_due for _, result in results),
        "payload_bytes_due": sum(result.payload_bytes_due for _, result in results),
        "rows_expired": sum(result.rows_expired for _, result in results),
        "rows_left": sum(result.rows_left for _, result in results),
        "rows_failed": sum(result.rows_failed for _, result in results),
        "objects_listed": listed.listed,
        "objects_due": listed.due,
        "objects_deleted": listed.objects_deleted,
        "object_bytes_deleted": listed.object_bytes,
        "objects_named_again": listed.objects_named,
        "objects_failed": listed.objects_failed,
        **({"tables": MetadataValue.table(records)} if records else {}),
    }


def _expiry_record(name: str, found: Sequence[ExpiryResult]) -> TableRecord:
    return TableRecord({
        "table": name,
        "tenants": len(found),
        "rows due": sum(result.rows_due for result in found),
        "payload bytes due": sum(result.payload_bytes_due for result in found),
        "rows expired": sum(result.rows_expired for result in found),
    })  # fmt: skip
