"""Metadata worth looking at: scalars that plot over time, and a small picture of the payload sizes."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dagster import MetadataValue
from dagster._core.definitions.metadata import RawMetadataValue  # the type that Dagster's own signatures use

from offload_pipeline.offload.ahead import DryRun
from offload_pipeline.offload.copier import CopyResult
from offload_pipeline.offload.queue import PendingTenant
from offload_pipeline.offload.release import ReleaseResult
from offload_pipeline.verification.verifier import VerificationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metadata = Mapping[str, RawMetadataValue]

# Enough to find the cause; the rest is in payload_offload_failures.
SHOWN_DAMAGES = 20


def pending_metadata(pending: Sequence[PendingTenant]) -> Metadata:
    """Depth, bytes and age of a queue."""
    return {
        "rows": sum(found.rows for found in pending),
        "payload_bytes": sum(found.payload_bytes for found in pending),
        "oldest_age_seconds": round(max((found.age_seconds() for found in pending), default=0.0), 1),
    }


def copy_metadata(result: CopyResult) -> Metadata:
    """Rows, bytes before and after, ratio, MB/s of the pass, and a histogram of sizes."""
    ratio = result.payload_bytes / result.object_bytes if result.object_bytes else 0.0
    metadata: dict[str, RawMetadataValue] = {
        "rows": result.rows_copied,
        "rows_left_for_next_pass": result.rows_left,
        "rows_failed": result.rows_failed,
        "payload_bytes": result.payload_bytes,
        "object_bytes": result.object_bytes,
        "compression_ratio": round(ratio, 2),
        "megabytes_per_second": round(result.megabytes_per_second, 1),
    }
    return metadata | ({"payload_sizes": size_histogram(result.payload_sizes)} if result.payload_sizes else {})


def dry_run_metadata(found: DryRun) -> Metadata:
    """What a dry run saw."""
    ratio = found.payload_bytes / found.object_bytes if found.object_bytes else 0.0
    return {
        "dry_run": True,
        "rows": found.rows,
        "payload_bytes": found.payload_bytes,
        "forecast_object_bytes": found.object_bytes,
        "compression_ratio": round(ratio, 2),
        "rows_sampled": found.rows_sampled,
        "rows_too_large": found.rows_too_large,
    }


def verification_metadata(results: Sequence[VerificationResult]) -> Metadata:
    """What was looked at, and what was wrong."""
    damaged = [damage for result in results for damage in (*result.damaged, *result.unanswered)]
    metadata: dict[str, RawMetadataValue] = {
        "rows_checked": sum(result.rows_checked for result in results),
        "rows_read_whole": sum(result.rows_read for result in results),
        "payload_bytes_read": sum(result.payload_bytes_read for result in results),
        "rows_damaged": sum(len(result.damaged) for result in results),
        "rows_unanswered": sum(len(result.unanswered) for result in results),
    }
    lines = [f"- `{damage.named.object_key}`: {damage.error}" for damage in damaged[:SHOWN_DAMAGES]]
    return metadata | ({"problems": MetadataValue.md("\n".join(lines))} if lines else {})


def release_metadata(results: Sequence[ReleaseResult]) -> Metadata:
    """What was freed in the rows."""
    return {
        "rows": sum(result.rows_released for result in results),
        "rows_left_for_next_pass": sum(result.rows_left for result in results),
        "rows_failed": sum(result.rows_failed for result in results),
        "payload_bytes_freed": sum(result.payload_bytes for result in results),
    }


def size_histogram(sizes: Sequence[int]) -> MetadataValue:
    """A PNG of a few kB: payload sizes on a logarithmic axis."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 1.8), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    kilobytes = np.asarray(sizes) / 1000
    low, high = max(kilobytes.min(), 0.001), max(kilobytes.max(), 0.002)
    axes.hist(kilobytes, bins=list(np.geomspace(low * 0.9, high * 1.1, 30)), color="#4f43dd")
    axes.set_xscale("log")
    axes.set_xlabel("payload, kB")
    axes.set_ylabel("rows")
    return picture(figure, "payload sizes")


def picture(figure: "Figure", title: str) -> MetadataValue:
    """The figure as a PNG that the UI shows in place."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})")
