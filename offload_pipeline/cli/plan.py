"""`offload plan`: what offloading would save, forecast from a sample before anything is installed or moved."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from offload_pipeline.cli.exit_codes import DONE
from offload_pipeline.cli.options import JsonOption, TableOption
from offload_pipeline.cli.output import Output, format_bytes, format_rows
from offload_pipeline.cli.session import open_session
from offload_pipeline.errors import UserError

if TYPE_CHECKING:
    from psycopg import Connection

    from offload_pipeline.database.table import Table
    from offload_pipeline.offload.estimate import Range
    from offload_pipeline.offload.forecast import Forecast

# Less of TOAST than this in payloads is worth a sentence: it is bloat, another column, or something the sample missed.
EXPLAINED_SHARE = 0.7
# Less TOAST than this is not worth it.
NOTABLE_TOAST_BYTES = 10_000_000


def register(app: typer.Typer) -> None:
    """Adds the command of this group."""
    app.command()(plan)


def plan(table: TableOption = None, as_json: JsonOption = False) -> int:
    """Forecast what offloading would save, from a sample; nothing is written, nothing need be installed."""
    session = open_session(as_json=as_json)
    pipeline = session.pipeline
    with pipeline.connect() as connection:
        tables = pipeline.inspect_all(connection, table)
        for one in tables:
            _complain_of_the_key(session.output, connection, one)
    forecasts = []
    for one in tables:
        with session.output.progress(one.name, None) as progress:
            forecasts.append(pipeline.forecast(one, progress))
    session.output.document({"tables": [asdict(found) for found in forecasts]})
    if not as_json:
        _show(session.output, forecasts)
    return DONE


def _complain_of_the_key(output: Output, connection: "Connection", table: "Table") -> None:
    """The forecast needs no key; what comes after it does."""
    from offload_pipeline.install.preflight import check_key

    try:
        check_key(connection, table)
    except UserError as error:
        output.complain(f"{error} (install refuses it)")


def _show(output: Output, forecasts: Sequence["Forecast"]) -> None:
    _show_savings(output, forecasts)
    _show_sizes(output, forecasts)
    for found in forecasts:
        output.line("")
        for sentence in sentences(found):
            output.line(sentence)
    output.line("\nFreed room is for new rows to use once VACUUM has run; pg_repack gives it back to the file system.")
    if not all(found.is_exact for found in forecasts):
        output.line("Ranges hold the truth nine times out of ten.")


def _show_savings(output: Output, forecasts: Sequence["Forecast"]) -> None:
    headings = ("table", "rows", "to move", "payload", "as objects", "in the database", "with lz4", "gzip in the row",
                "left in the rows")  # fmt: skip
    lines = []
    for found in forecasts:
        sizes = (found.payload_bytes, found.object_bytes, found.database_bytes, found.lz4_bytes,
                 found.gzip_in_row_bytes, found.left_bytes)  # fmt: skip
        counts = (_cell(found.rows, _count), _cell(found.rows_to_move, _count))
        lines.append((found.table, *counts, *(_cell(size, format_bytes) for size in sizes)))
    _grid(output, "What is still to be moved, and what it would occupy", headings, lines)


def _show_sizes(output: Output, forecasts: Sequence["Forecast"]) -> None:
    lines = []
    for found in forecasts:
        sizes = (found.sizes.heap_bytes, found.sizes.toast_bytes, found.sizes.index_bytes)
        pages = f"{found.sampled.pages:,} of {found.sampled.pages_total:,}"
        lines.append((found.table, *map(format_bytes, sizes), pages, f"{found.sampled.payloads:,}"))
    headings = ("table", "heap", "TOAST", "indexes", "pages read", "payloads read")
    _grid(output, "What the tables occupy now, and what was read of them", headings, lines)


def _grid(output: Output, title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid

    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for position, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if position else "left")
    for line in lines:
        grid.add_row(*line)
    output.show(grid)


def sentences(found: "Forecast") -> list[str]:
    """What the figures mean for one table."""
    said = [_to_move(found)]
    if found.rows_to_move.value:
        said += [_saving(found), _alternatives(found), _requests(found)]
    if found.rows_by_state:
        states = found.rows_by_state.items()
        said.append(
            "  rows now: " + ", ".join(f"{name.replace('_', ' ')} {_span(rows, _count)}" for name, rows in states)
        )
    return said + [f"  {remark}" for remark in _remarks(found)]


def _to_move(found: "Forecast") -> str:
    of_rows = f"of {_span(found.rows, _count)} rows"
    if found.rows_to_move.value:
        above = f" are above {format_bytes(found.threshold_bytes)} and" if found.threshold_bytes else ""
        moved = f"{_span(found.rows_to_move, _count)} {of_rows}{above} would move"
        return f"{found.table}: {moved}, with {_span(found.payload_bytes, format_bytes)} of payload"
    most = found.rows_to_move.high
    return f"{found.table}: nothing {of_rows} would move" + (
        f"; none is in the sample, so {most:,} at most" if most else ""
    )


def _saving(found: "Forecast") -> str:
    kept = ", as after_copy: keep leaves the payloads in their rows" if found.after_copy == "keep" else ""
    stored = (
        f"{_span(found.object_bytes, format_bytes)} of objects, {_span(found.compression_ratio, _ratio)} times smaller"
    )
    if found.freed_bytes.value < 0:
        grows = format_bytes(-round(found.freed_bytes.value))
        return f"  becomes {stored}; the rows would grow by {grows}: pointers outweigh what is freed{kept}"
    return (
        f"  becomes {stored}; frees {_span(found.freed_bytes, format_bytes)} in heap and TOAST, "
        f"{_span(found.left_bytes, format_bytes)} stays in the rows"
    )


def _alternatives(found: "Forecast") -> str:
    lz4 = f"lz4 not measured: {found.no_lz4_because}"
    if found.lz4_bytes is not None:
        lz4 = f"lz4 would make it {_span(found.lz4_bytes, format_bytes)}"
    now = _span(found.database_bytes, format_bytes)
    return f"  in the database it is {now}; {lz4}; gzip in the row {_span(found.gzip_in_row_bytes, format_bytes)}"


def _requests(found: "Forecast") -> str:
    sent = found.requests
    return (
        f"  requests: {sent.put:,} PUT, {sent.get_read_back:,} GET to read back, {sent.get_end:,} range GET to verify, "
        f"{sent.get_sample:,} GET of the verified sample"
    )


def _remarks(found: "Forecast") -> list[str]:
    remarks = []
    if found.rows_without_tenant.value:
        remarks.append(f"without tenant, and so never moved: {_span(found.rows_without_tenant, format_rows)}")
    if found.rows_too_large.value:
        remarks.append(f"larger than max_object_bytes, and so never moved: {_span(found.rows_too_large, format_rows)}")
    if found.sampled.unreadable:
        remarks.append(f"payloads that could not be read, and were left out: {found.sampled.unreadable:,}")
    if found.foreign_partitions:
        remarks.append(f"foreign partitions, not looked at: {', '.join(found.foreign_partitions)}")
    toast, explained = found.sizes.toast_bytes, found.all_payloads_database_bytes
    if toast > NOTABLE_TOAST_BYTES and (explained.high or 0) < EXPLAINED_SHARE * toast:
        missed = "" if explained.is_exact else ", or a few very large payloads that the sample missed"
        remarks.append(
            f"TOAST holds {format_bytes(toast)}, the payloads account for {_span(explained, format_bytes)}: "
            f"the rest is free space or another column{missed}"
        )
    return remarks


def _cell(found: "Range | None", as_text: Callable[[int], str]) -> str:
    """The value, and below it the range."""
    if found is None:
        return "not measured"
    return as_text(round(found.value)) + ("" if found.is_exact else f"\n{_limits(found, as_text)}")


def _span(found: "Range", as_text: Callable[[Any], str]) -> str:
    """`1.2 GB (1.1 GB – 1.3 GB)`; without range where it was counted."""
    return as_text(found.value) + ("" if found.is_exact else f" ({_limits(found, as_text)})")


def _limits(found: "Range", as_text: Callable[[Any], str]) -> str:
    return f"{as_text(found.low)} – {'?' if found.high is None else as_text(found.high)}"


def _count(count: int) -> str:
    return f"{count:,}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.1f}"
