"""`offload_plan`: the forecast of every table, launched when somebody wonders whether and where offloading pays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagster import AssetExecutionContext, AssetsDefinition, MaterializeResult, MetadataValue, TableRecord, asset

from offload_pipeline.defs.metadata import Metadata, picture
from offload_pipeline.defs.offload.assets import GROUP
from offload_pipeline.defs.resources import PipelineResource
from offload_pipeline.defs.retries import no_retry_of_permanent_errors

if TYPE_CHECKING:
    from offload_pipeline.offload.estimate import Range
    from offload_pipeline.offload.forecast import Forecast

# A picture for each table of a large fleet would be more than anybody looks at; the table has them all.
PICTURED_TABLES = 8
# The order of the bars, and the colours that they keep in every picture.
BARS = {
    "now": ("database_bytes", "#8b8b99"),
    "lz4": ("lz4_bytes", "#c8a415"),
    "gzip in the row": ("gzip_in_row_bytes", "#2f8f6b"),
    "offloaded": ("left_bytes", "#4f43dd"),
}


def plan_assets() -> list[AssetsDefinition]:
    """One asset for all tables: what pays most is seen by comparing them."""

    @asset(group_name=GROUP, kinds={"postgres"})
    def offload_plan(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult[None]:
        """What offloading would still save, per table, from a bounded sample; nothing need be installed."""
        with no_retry_of_permanent_errors():
            with pipeline.pipeline.connect() as connection:
                tables = pipeline.pipeline.inspect_all(connection)
            forecasts = []
            for table in tables:
                forecasts.append(pipeline.pipeline.forecast(table))
                context.log.info(f"{table.name}: sampled {forecasts[-1].sampled.pages} pages")
        return MaterializeResult(metadata=plan_metadata(forecasts))

    return [offload_plan]


def plan_metadata(forecasts: Sequence["Forecast"]) -> Metadata:
    """Sums that plot over time, a line for each table, and a picture of the tables with most to move."""
    heaviest = sorted(forecasts, key=lambda found: found.database_bytes.value, reverse=True)
    pictured = [found for found in heaviest if found.database_bytes.value][:PICTURED_TABLES]
    return {
        "rows_to_move": round(sum(found.rows_to_move.value for found in forecasts)),
        "payload_bytes": round(sum(found.payload_bytes.value for found in forecasts)),
        "object_bytes": round(sum(found.object_bytes.value for found in forecasts)),
        "database_bytes_freed": round(sum(found.freed_bytes.value for found in forecasts)),
        "tables": MetadataValue.table([_record(found) for found in heaviest]),
        **({"in_the_database": comparison(pictured)} if pictured else {}),
    }


def _record(found: "Forecast") -> TableRecord:
    return TableRecord({
        "table": found.table,
        "installed": found.is_installed,
        "exact": found.is_exact,
        "rows": _text(found.rows),
        "rows to move": _text(found.rows_to_move),
        "payload bytes": _text(found.payload_bytes),
        "object bytes": _text(found.object_bytes),
        "times smaller": _text(found.compression_ratio),
        "database bytes": _text(found.database_bytes),
        "with lz4": found.no_lz4_because if found.lz4_bytes is None else _text(found.lz4_bytes),
        "gzip in the row": _text(found.gzip_in_row_bytes),
        "left in the rows": _text(found.left_bytes),
        "requests": sum(vars(found.requests).values()),
    })  # fmt: skip


def _text(found: "Range") -> str:
    """`1,200 (1,100 – 1,300)`; without range where it was counted."""
    if found.is_exact:
        return f"{found.value:,}"
    return f"{found.value:,} ({found.low:,} – {'?' if found.high is None else f'{found.high:,}'})"


def comparison(forecasts: Sequence["Forecast"]) -> MetadataValue:
    """A PNG of some kB: what the payloads to be moved occupy in the database, now and in three other ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 0.4 + 1.15 * len(forecasts)), dpi=80, layout="constrained")
    for position, found in enumerate(forecasts, 1):
        axes = figure.add_subplot(len(forecasts), 1, position)
        ranges = {name: getattr(found, attribute) for name, (attribute, _) in BARS.items()}
        shown = {name: one for name, one in ranges.items() if one is not None}
        values = [one.value / 1e6 for one in shown.values()]
        errors = [_error_bar(one) for one in shown.values()]
        axes.barh(
            list(shown), values, xerr=list(zip(*errors, strict=True)), capsize=3, height=0.7,
            color=[BARS[name][1] for name in shown], error_kw={"elinewidth": 1},
        )  # fmt: skip
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_title(f"{found.table}, MB in the database", fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
    return picture(figure, "now, lz4, gzip in the row, offloaded")


def _error_bar(found: "Range") -> tuple[float, float]:
    """Megabytes below and above the value; none above where the sample cannot tell."""
    high = found.value if found.high is None else found.high
    return (found.value - found.low) / 1e6, (high - found.value) / 1e6
