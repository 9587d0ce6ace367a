"""What was measured is kept measure by measure, and the report is written from that alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import record, report
from benchmarks.__main__ import main
from benchmarks.limit import UNAVOIDABLE
from benchmarks.record import Record
from benchmarks.results import Measured
from benchmarks.throughput import OURS

KEPT = Measured("a | b: against the loop", 4.1234567, "times", 4, is_at_most=False, detail="how", runs=(4.0, 4.2))
MISSED = Measured("a large table", 1.2, "times", 1.15, is_at_most=True, detail="how", runs=(1.1, 1.3))
MACHINE = {"CPU": "two cores", "memory": "1 GB"}


def a_record(*figures: Measured, date: str = "2026-11-22") -> Record:
    return Record(date, MACHINE, figures)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results.json"


def test_a_measure_that_is_not_taken_again_keeps_its_date(file: Path) -> None:
    record.write({"demo": a_record(KEPT, date="2026-01-31"), "memory": a_record(MISSED)}, file)
    record.write(record.read(file) | {"memory": a_record(KEPT)}, file)
    kept = record.read(file)
    assert {name: one.date for name, one in kept.items()} == {"demo": "2026-01-31", "memory": "2026-11-22"}
    assert kept["memory"].figures == (replace(KEPT, value=4.1235),)


def test_the_report_has_every_figure_with_its_bar(file: Path, tmp_path: Path) -> None:
    record.write({"memory": a_record(KEPT), "workers": a_record(MISSED, date="2026-01-31")}, file)
    page = report.write_report(record.read(file), tmp_path).read_text()
    assert "| a \\| b: against the loop | **4.12 times** | at least 4 | 4.00 to 4.20 | how |" in page
    assert "| a large table | **1.20 times** | at most 1.15, **missed** | 1.10 to 1.30 | how |" in page
    assert "- memory: 22 November 2026. CPU two cores; memory 1 GB." in page
    assert "- workers: 31 January 2026." in page


def test_every_plot_that_the_report_shows_is_drawn_and_the_same_each_time(file: Path, tmp_path: Path) -> None:
    stages = dict.fromkeys(UNAVOIDABLE, 0.5)
    none = Measured("waits", 0, "waits", 0, is_at_most=True, detail="none of a bar of none", runs=(0, 0))
    records = {
        "throughput": a_record(replace(KEPT, parts={OURS: 1.0, "the loop": 4.0})),
        "limit": a_record(replace(KEPT, parts={**stages, OURS: 1.5, "limit": 1.0})),
        "workers": a_record(none),
        "growth": a_record(replace(MISSED, parts={"10,000 rows": 1.0, "copying, tenth 1": 1.1, "copying, tenth 2": 1})),
    }
    record.write(records, file)
    page = report.write_report(record.read(file), tmp_path).read_text()
    drawn = {plot.name: plot.read_bytes() for plot in (tmp_path / report.PLOTS).iterdir()}
    assert set(drawn) == {"rounds.svg", "throughput.svg", "limit.svg", "growth.svg"}
    assert all(f"({report.PLOTS}/{name})" in page for name in drawn)
    report.write_report(record.read(file), tmp_path)
    assert {plot.name: plot.read_bytes() for plot in (tmp_path / report.PLOTS).iterdir()} == drawn


@pytest.mark.parametrize(("figure", "code"), [(KEPT, 0), (MISSED, 1)])
def test_a_missed_bar_is_named_and_makes_the_exit_code(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], figure: Measured, code: int
) -> None:
    record.write({"memory": a_record(figure)}, file)
    assert main(["--report"], file, tmp_path) == code
    said = capsys.readouterr().out
    assert said == ("missed: a large table: 1.20 times, at most 1.15\n" if code else "")


def test_an_unknown_measure_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["throughput", "thruput"])
    assert "no measure is called thruput; there are throughput" in capsys.readouterr().err
