"""The results of the core as lines for a reader and as documents for a program."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from offload_pipeline.cli.exit_codes import one_line
from offload_pipeline.cli.output import format_bytes, format_rows

if TYPE_CHECKING:
    from offload_pipeline.offload.ahead import DryRun
    from offload_pipeline.offload.claims import Partition
    from offload_pipeline.offload.copier import CopyResult
    from offload_pipeline.offload.release import ReleaseResult
    from offload_pipeline.verification.damage import Damage
    from offload_pipeline.verification.verifier import VerificationResult

# A store that is down leaves thousands of questions unanswered; the failures table has them all.
LISTED_ROWS = 50


def copied_line(result: "CopyResult") -> str:
    """`copied 120 rows (18.0 MB as 3.1 MB, 71.2 MB/s)`, and what else there is to say."""
    text = f"copied {format_rows(result.rows_copied)}"
    if result.rows_copied:
        text += (
            f" ({format_bytes(result.payload_bytes)} as {format_bytes(result.object_bytes)}, "
            f"{result.megabytes_per_second:.1f} MB/s)"
        )
    text += f", {result.rows_left:,} changed meanwhile" if result.rows_left else ""
    text += f", {result.rows_failed:,} failed" if result.rows_failed else ""
    return text + (f", stopped: {one_line(str(result.stopped_by))}" if result.stopped_by else "")


def copied_document(result: "CopyResult") -> dict[str, Any]:
    """The numbers of one copying pass."""
    return {
        "rows_copied": result.rows_copied,
        "rows_left": result.rows_left,
        "rows_failed": result.rows_failed,
        "payload_bytes": result.payload_bytes,
        "object_bytes": result.object_bytes,
        "seconds": round(result.seconds, 3),
        "stopped_by": one_line(str(result.stopped_by)) if result.stopped_by else None,
    }


def dry_run_line(found: "DryRun") -> str:
    """`would copy 5 rows (5.0 kB, as objects about 2.9 kB)`, and what would fail."""
    if not found.rows and not found.rows_too_large:
        return "nothing to do"
    sizes = f"{format_bytes(found.payload_bytes)}, as objects about {format_bytes(found.object_bytes)}"
    text = f"would copy {format_rows(found.rows)}" + (f" ({sizes})" if found.rows else "")
    return text + (
        f", refuse {format_rows(found.rows_too_large)} above max_object_bytes" if found.rows_too_large else ""
    )


def dry_run_document(found: "DryRun") -> dict[str, Any]:
    """The numbers of a dry run."""
    return {
        "pending_rows": found.rows,
        "pending_bytes": found.payload_bytes,
        "forecast_object_bytes": found.object_bytes,
        "rows_sampled": found.rows_sampled,
        "rows_too_large": found.rows_too_large,
    }


def verified_line(result: "VerificationResult") -> str:
    """`12 rows checked, 5 read whole, 0 damaged, 0 unanswered`."""
    return (
        f"{'resumed: ' if result.is_resumed else ''}"
        f"{format_rows(result.rows_checked)} checked, {result.rows_read:,} read whole, "
        f"{len(result.damaged):,} damaged, {len(result.unanswered):,} unanswered"
    )


def verified_document(result: "VerificationResult", partition: "Partition") -> dict[str, Any]:
    """The numbers of one verification pass, and every row that did not pass."""
    return {
        "passed": result.passed,
        "resumed": result.is_resumed,
        "verified_through": result.mark if result.passed else None,
        "rows_checked": result.rows_checked,
        "rows_read": result.rows_read,
        "payload_bytes_read": result.payload_bytes_read,
        "damaged": _rows(result.damaged, partition),
        "unanswered": _rows(result.unanswered, partition),
    }


def problems(result: "VerificationResult", partition: "Partition") -> list[str]:
    """A line for each row that did not pass, up to `LISTED_ROWS` of a kind."""
    lines: list[str] = []
    for kind, found in (("damaged", result.damaged), ("unanswered", result.unanswered)):
        listed = _rows(found[:LISTED_ROWS], partition)
        lines += [f"{kind} {row['primary_key']}: {row['problem']}" for row in listed]
        if (more := len(found) - LISTED_ROWS) > 0:
            lines.append(f"{more:,} more {kind}; payload_offload_failures lists them all")
    return lines


def released_line(result: "ReleaseResult") -> str:
    """`released 120 rows (18.0 MB)`, and what could not be freed."""
    text = f"released {format_rows(result.rows_released)}"
    text += f" ({format_bytes(result.payload_bytes)})" if result.rows_released else ""
    text += f", {result.rows_left:,} locked or changed" if result.rows_left else ""
    return text + (f", {result.rows_failed:,} failed" if result.rows_failed else "")


def released_document(result: "ReleaseResult") -> dict[str, Any]:
    """The numbers of one releasing pass."""
    return {
        "rows_released": result.rows_released,
        "payload_bytes": result.payload_bytes,
        "rows_left": result.rows_left,
        "rows_failed": result.rows_failed,
    }


def _rows(found: Sequence["Damage"], partition: "Partition") -> list[dict[str, str]]:
    return [
        {
            "primary_key": partition.table.key_text(damage.named.key),
            "error_class": type(damage.error).__name__,
            "problem": one_line(str(damage.error)),
        }
        for damage in found
    ]
