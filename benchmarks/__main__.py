"""`python -m benchmarks [NAME…]`: measures, prints tables, keeps the figures, and writes `docs/performance.md`."""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import growth, record
from benchmarks.machine import describe
from benchmarks.record import Record
from benchmarks.report import DOCS, ORDER, bar, rounds, said, write_report
from benchmarks.results import Measured
from benchmarks.servers import Servers, servers

LONG = ("growth",)
SHORT = tuple(name for name in ORDER if name not in LONG)

console = Console()


def main(arguments: Sequence[str] | None = None, file: Path = record.FILE, docs: Path = DOCS) -> int:
    """0: every bar was kept to. 1: not every one; it is said which."""
    options = _options(arguments)
    if options.report:
        shown = record.read(file)
        write_report(shown, docs)
        return _judge(shown)
    names = options.names or (LONG if options.long else SHORT)
    with servers() as running:
        if options.rows is not None:
            tried = growth.measure(running, _say, options.rows)
            _show(tried)
            return 0 if all(one.is_met for one in tried) else 1
        measured = {name: _measure(running, name, file) for name in names}
    write_report(record.read(file), docs)
    return _judge(measured)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = f"{', '.join(SHORT)} (all of these by default), {', '.join(LONG)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {known}")
    parser.add_argument("--long", action="store_true", help=f"{' and '.join(LONG)}, instead of the others")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the report of what is recorded")
    parser.add_argument("--rows", type=int, metavar="N", help="try growth with a table of N rows; nothing is recorded")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {*SHORT, *LONG}:
        parser.error(f"no measure is called {', '.join(unknown)}; there are {known}")
    if options.rows is not None and options.names not in ([], ["growth"]):
        parser.error("--rows is for trying growth, and for nothing else")
    return options


def _measure(running: Servers, name: str, file: Path) -> Record:
    """Recorded at once: what comes after it may fail, and takes minutes."""
    console.rule(name)
    figures = tuple(importlib.import_module(f"benchmarks.{name}").measure(running, _say))
    measured = Record(f"{datetime.now(UTC):%Y-%m-%d}", describe(running), figures)
    record.write(record.read(file) | {name: measured}, file)
    _show(figures)
    return measured


def _say(line: str) -> None:
    console.print(f"{datetime.now():%H:%M:%S} {line}", style="dim", highlight=False)  # noqa: DTZ005 - for who watches


def _show(figures: Sequence[Measured]) -> None:
    table = Table("measure", "measured", "bar", "rounds", box=None, pad_edge=False)
    for one in figures:
        style = "green" if one.is_met else "red"
        table.add_row(one.measure, f"[{style}]{said(one.value, one.unit)}[/]", bar(one), rounds(one))
    console.print(table)
    for one in figures:
        console.print(f"{one.measure}: {one.detail}", style="dim", highlight=False, soft_wrap=True)


def _judge(records: Mapping[str, Record]) -> int:
    missed = [one for measured in records.values() for one in measured.figures if not one.is_met]
    for one in missed:
        console.print(f"missed: {one.measure}: {said(one.value, one.unit)}, {bar(one)}", style="red", soft_wrap=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
