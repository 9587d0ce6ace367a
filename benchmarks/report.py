"""`docs/performance.md` from the record alone: the template beside this file, with table, machine and plots."""

from collections.abc import Iterable, Mapping
from datetime import date
from math import floor, log10
from pathlib import Path
from string import Template

from benchmarks.plots import draw
from benchmarks.record import Record
from benchmarks.results import Measured

TEMPLATE = Path(__file__).with_name("performance.template.md")
DOCS = Path(__file__).parents[1] / "docs"
PLOTS = "performance"
# As the table has them; what was never measured is not in it.
ORDER = ("throughput", "limit", "growth", "memory", "trigger", "application", "workers", "sensor", "demo")


def write_report(records: Mapping[str, Record], docs: Path) -> Path:
    """Writes the page and its plots, and gives the page."""
    in_order = {name: records[name] for name in ORDER if name in records}
    (docs / PLOTS).mkdir(exist_ok=True)
    drawn = draw(in_order, docs / PLOTS)
    page = Template(TEMPLATE.read_text()).substitute(
        table="\n".join(_table(in_order.values())),
        machine="\n".join(_machines(in_order)),
        plots="\n\n".join(f"![{title}]({PLOTS}/{file})" for file, title in drawn.items()),
    )
    file = docs / "performance.md"
    file.write_text(page)
    return file


def said(value: float, unit: str) -> str:
    """A figure to three digits; of a share, per cent."""
    if unit.startswith("of "):
        return f"{value:.1%} {unit}".replace("%", " %")
    digits = max(0, 2 - floor(log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f} {unit}"


def bar(measured: Measured) -> str:
    """What has to be kept to, trailing zeros left out."""
    figure = f"{measured.bar:.0%}".replace("%", " %") if measured.unit.startswith("of ") else f"{measured.bar:g}"
    return f"{'at most' if measured.is_at_most else 'at least'} {figure}"


def rounds(measured: Measured) -> str:
    """The lowest and the highest."""
    if not measured.runs:
        return ""
    lowest, highest = (said(of(measured.runs), measured.unit).removesuffix(measured.unit).strip() for of in (min, max))
    return f"{lowest} to {highest}"


def _table(records: Iterable[Record]) -> Iterable[str]:
    yield "| measure | measured | bar | rounds | how |"
    yield "|---|---|---|---|---|"
    for record in records:
        for one in record.figures:
            missed = "" if one.is_met else ", **missed**"
            cells = (one.measure, f"**{said(one.value, one.unit)}**", bar(one) + missed, rounds(one), one.detail)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _machines(records: Mapping[str, Record]) -> Iterable[str]:
    """Which measures were taken when, on what."""
    taken: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for name, record in records.items():
        taken.setdefault((record.date, tuple(record.machine.items())), []).append(name)
    for (day, machine), names in taken.items():
        what = "; ".join(f"{part} {value}" for part, value in machine)
        moment = date.fromisoformat(day)
        yield f"- {', '.join(names)}: {moment.day} {moment:%B %Y}. {what}."
