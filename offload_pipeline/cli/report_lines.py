"""A table's report as lines for a reader."""

from typing import TYPE_CHECKING

from offload_pipeline.cli.output import format_bytes, format_rows

if TYPE_CHECKING:
    from offload_pipeline.verification.report import TableReport


def report_lines(report: "TableReport") -> list[str]:
    """Three lines: rows by state, what was offloaded, what it takes up; what is no count is marked `about`."""
    stage = ", ".join(f"{name} {count:,}" for name, count in report.open_failures.items())
    given_up = f" ({report.failures_given_up:,} given up)" if report.failures_given_up else ""
    through = report.verified_through_oldest
    held = f"restored and held {report.rows_held:,}, " if report.rows_held else ""
    never = f", {report.tenants_never_verified:,} tenants never" if report.tenants_never_verified else ""
    return [
        f"{report.table}: {_number(report, 'rows')} rows; in storage {_number(report, 'rows_in_storage')}, "
        f"copied {_number(report, 'rows_copied')}, pending {_number(report, 'rows_pending')}, "
        f"{held}never scanned {format_unscanned(report.rows_never_scanned)}",
        f"  offloaded {_of_rows(report)} of the rows, {_of_bytes(report)}; "
        f"average payload {_bytes(report.average_payload_bytes)}, object {_bytes(report.average_object_bytes)}; "
        f"heap {format_bytes(report.heap_bytes)}, TOAST {format_bytes(report.toast_bytes)}, "
        f"indexes {format_bytes(report.index_bytes)}",
        f"  verified through {through.isoformat(' ', 'seconds') if through else 'never'}{never}; "
        f"open failures: {stage or 'none'}{given_up}",
    ]


def _number(report: "TableReport", name: str) -> str:
    value = getattr(report, name)
    if value is None:
        return "unknown"
    return f"about {value:,}" if name in report.estimated else f"{value:,}"


def _of_rows(report: "TableReport") -> str:
    return _percent(report.offloaded_share_of_rows, is_exact=not {"rows", "rows_in_storage"} & {*report.estimated})


def _of_bytes(report: "TableReport") -> str:
    """What is in storage is weighed by an average; only all and nothing are exact."""
    is_counted = report.rows_held is not None
    is_counted = is_counted and not {"rows_in_storage", "rows_copied", "rows_pending"} & {*report.estimated}
    share = report.offloaded_share_of_bytes
    apart = ", restored ones not counted" if report.rows_held is None else ""
    return f"{_percent(share, is_exact=is_counted and share in (0, 1))} of the measured bytes{apart}"


def _percent(share: float | None, *, is_exact: bool) -> str:
    if share is None:
        return "an unknown share"
    return f"{'' if is_exact else 'about '}{100 * share:.1f} %"


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else format_bytes(count)


def format_unscanned(count: int) -> str:
    """`12 rows`, `more than 100,000 rows`: no more are counted."""
    from offload_pipeline.verification.report import MOST_NEVER_SCANNED

    return f"more than {format_rows(MOST_NEVER_SCANNED)}" if count > MOST_NEVER_SCANNED else format_rows(count)
