"""The report as metadata: numbers that plot over time, and tables to read."""

from collections.abc import Sequence
from dataclasses import asdict

from dagster import MetadataValue, TableRecord
from dagster._core.definitions.metadata import RawMetadataValue  # the type that Dagster's own signatures use

from offload_pipeline.defs.metadata import Metadata
from offload_pipeline.offload.failures import OpenFailure
from offload_pipeline.verification.report import TableReport

# What is worth a curve, of each table.
PLOTTED = (
    "rows", "rows_pending", "rows_copied", "rows_in_storage", "rows_never_scanned", "offloaded_share_of_rows",
    "offloaded_share_of_bytes", "average_payload_bytes", "average_object_bytes", "heap_bytes", "toast_bytes",
    "index_bytes", "failures_given_up",
)  # fmt: skip


def report_metadata(reports: Sequence[TableReport]) -> Metadata:
    """`notices/rows` and so on, where they are known, and everything in one table."""
    metadata: dict[str, RawMetadataValue] = {"tables": len(reports)}
    for report in reports:
        known = {name: value for name in PLOTTED if (value := getattr(report, name)) is not None}
        metadata |= {f"{report.table}/{name}": value for name, value in known.items()}
        metadata[f"{report.table}/failures_open"] = sum(report.open_failures.values())
    if reports:
        metadata["report"] = MetadataValue.table([_record(report) for report in reports])
    return metadata


def failures_metadata(count: int, newest: Sequence[OpenFailure]) -> Metadata:
    """How many are open, and the newest of them."""
    records = [
        TableRecord({
            "table": failure.table, "tenant": failure.tenant, "primary_key": failure.primary_key,
            "stage": failure.stage, "error": f"{failure.error_class}: {failure.message}", "attempts": failure.attempts,
            "last_failed_at": failure.last_failed_at.isoformat(), "given_up": failure.given_up,
        })
        for failure in newest
    ]  # fmt: skip
    metadata: dict[str, RawMetadataValue] = {"failures_open": count}
    return metadata | ({"newest": MetadataValue.table(records)} if records else {})


def _record(report: TableReport) -> TableRecord:
    failures = ", ".join(f"{stage} {count}" for stage, count in report.open_failures.items())
    texts = {"open_failures": failures, "estimated": ", ".join(report.estimated)}
    moments = {
        name: None if moment is None else moment.isoformat()
        for name, moment in (
            ("verified_through_oldest", report.verified_through_oldest),
            ("fully_verified_oldest", report.fully_verified_oldest),
        )
    }
    return TableRecord(asdict(report) | texts | moments)
