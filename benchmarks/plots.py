"""The plots of the report, as small SVG files that are the same for the same record."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import limit, throughput
from benchmarks.record import Record
from benchmarks.results import Measured

INCH = 0.3
OURS_COLOUR, OTHER_COLOUR, MISSED_COLOUR = "#2266aa", "#b8b8b8", "#bb3322"
STAGE_COLOURS = ("#88b0d8", "#c8a860", "#88b878", "#b890c0")
_STYLE: Any = {"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 8, "axes.spines.top": False,
          "axes.spines.right": False}  # fmt: skip


def draw(records: Mapping[str, Record], folder: Path) -> dict[str, str]:
    """Draws what there are figures for; gives the title of each file."""
    figures = [one for record in records.values() for one in record.figures]
    plots: dict[str, tuple[str, Callable[[Path], None]]] = {
        "rounds.svg": ("Every round of every measure against its bar", lambda file: _rounds(figures, file))
    }
    if "throughput" in records:
        moved = records["throughput"].figures
        plots["throughput.svg"] = ("Rows per second, by us and by the peers", lambda file: _throughput(moved, file))
    if "limit" in records:
        limits = records["limit"].figures
        plots["limit.svg"] = ("Time per row beside the limit", lambda file: _limit(limits, file))
    if "growth" in records:
        (grown,) = records["growth"].figures
        plots["growth.svg"] = ("Time per row while a large table is copied", lambda file: _growth(grown, file))
    with mpl.rc_context(_STYLE):
        for name, (_, plot) in plots.items():
            plot(folder / name)
    return {name: title for name, (title, _) in plots.items()}


def _rounds(figures: list[Measured], file: Path) -> None:
    """Of those whose bar is not zero, to which nothing has a ratio."""
    figures = [one for one in figures if one.bar]
    figure, axes = _axes(len(figures) + 2)
    for row, one in enumerate(figures):
        runs = [_against_bar(one, value) for value in one.runs or (one.value,)]
        axes.plot(runs, [row] * len(runs), "o", color=OTHER_COLOUR, markersize=3)
        colour = OURS_COLOUR if one.is_met else MISSED_COLOUR
        axes.plot([_against_bar(one, one.value)], [row], "D", color=colour, markersize=5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 4], ["half", "the bar", "2×", "4×"])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(figures)), [one.measure for one in figures])
    axes.set_xlabel("better than the bar by; diamond: the figure in the table, dots: its rounds")
    _save(figure, axes, file)


def _against_bar(one: Measured, value: float) -> float:
    """Above 1 where the bar is kept to, whichever way it points."""
    return one.bar / value if one.is_at_most else value / one.bar


def _throughput(figures: tuple[Measured, ...], file: Path) -> None:
    bars: dict[str, float] = {}
    for one in figures:
        size = one.measure.partition(",")[0]
        bars |= {f"{size}: {name}": 1e3 / milliseconds for name, milliseconds in one.parts.items()}
    figure, axes = _axes(len(bars) + 2)
    colours = [OURS_COLOUR if name.endswith(throughput.OURS) else OTHER_COLOUR for name in bars]
    drawn = axes.barh(list(bars), list(bars.values()), color=colours)
    axes.bar_label(drawn, [f"{rows:,.0f}" for rows in bars.values()], padding=3)
    axes.set_xlabel("rows per second")
    _save(figure, axes, file)


def _limit(figures: tuple[Measured, ...], file: Path) -> None:
    figure, axes = _axes(2 * len(figures) + 3)
    for one in figures:
        size = one.measure.partition(",")[0]
        cores = sum(one.parts[name] for name in limit.UNAVOIDABLE) / one.parts["limit"]
        left = 0.0
        for name, colour in zip(limit.UNAVOIDABLE, STAGE_COLOURS, strict=True):
            label = name if one is figures[0] else None
            axes.barh(f"{size}: limit", one.parts[name] / cores, left=left, color=colour, label=label)
            left += one.parts[name] / cores
        axes.barh(f"{size}: {throughput.OURS}", one.parts[throughput.OURS], color=OURS_COLOUR)
    axes.set_xlabel("milliseconds per row; of the limit's stages, CPU time over the cores")
    axes.legend(frameon=False)
    _save(figure, axes, file)


def _growth(one: Measured, file: Path) -> None:
    tenths = [milliseconds for name, milliseconds in one.parts.items() if name.startswith("copying, tenth ")]
    figure, axes = _axes(7)
    axes.plot(range(1, len(tenths) + 1), tenths, "o-", color=OURS_COLOUR)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(1, len(tenths) + 1))
    axes.set_xlabel("tenth of the rows")
    axes.set_ylabel("ms per row copied")
    figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")


def _axes(lines: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, lines * INCH), facecolor="white")
    return figure, figure.add_subplot()


def _save(figure: Figure, axes: Axes, file: Path) -> None:
    """The first line at the top."""
    axes.invert_yaxis()
    figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
