"""Numbers for readers, and the progress bar: on a terminal's stderr, after a moment, and never on stdout."""

import contextlib
import os
import pty
from collections.abc import Iterator

import psycopg
import pytest

from offload_pipeline.cli import progress
from offload_pipeline.cli.output import Output, format_age, format_bytes, format_rows, shows_progress
from offload_pipeline.cli.session import open_session
from offload_pipeline.config import TableConfig
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import insert_payloads, large_payload


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pseudo-terminal as stderr; what it shows is read from this descriptor.

    No fixture: pytest puts its own stderr back between a test's set-up and the test.
    """
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stderr)
        yield ours
    os.close(ours)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (18_000_000, "18.0 MB"), (5 * 10**15, "5000.0 TB")],
)
def test_bytes_are_written_in_powers_of_a_thousand(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_rows_and_ages_are_written_for_readers() -> None:
    assert [format_rows(1), format_rows(12_000)] == ["1 row", "12,000 rows"]
    ages = [format_age(seconds) for seconds in (45, 720, 18_000, 260_000)]
    assert ages == ["45 s", "12 min", "5 h", "3 d"]


def test_long_work_shows_its_progress_on_stderr_only(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(progress, "SHOWN_AFTER_SECONDS", 0)
    seen = ""
    with (
        terminal(monkeypatch) as screen,
        Output(as_json=True).progress("notices, tenant '[bold]x'", 200) as advance,
    ):
        advance(100, 5_000_000)
        while "MB/s" not in seen:
            seen += os.read(screen, 4096).decode(errors="replace")
    assert "notices, tenant '[bold]x'" in seen
    assert "100 rows" in seen
    assert "rows/s" in seen
    assert capsysbinary.readouterr().out == b""


def screen_until(screen: int, text: str) -> str:
    """What was drawn since the last call, up to and including this."""
    seen = ""
    while text not in seen:
        seen += os.read(screen, 4096).decode(errors="replace")
    return seen


def test_the_bar_begins_anew_with_each_step_and_tells_the_time_that_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOWN_AFTER_SECONDS", 0)
    with terminal(monkeypatch) as screen, Output(as_json=False).progress("notices", 400) as watch:
        watch.step("copying", None)
        for _ in range(3):
            watch(100, 1000)
        assert "300 rows" in screen_until(screen, "0:00:0")
        watch.step("releasing", 300)(50, 0)
        assert "notices: releasing" in screen_until(screen, "50 rows")


def test_a_pause_and_its_reason_stand_beside_the_bar_for_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOWN_AFTER_SECONDS", 0)
    with terminal(monkeypatch) as screen, Output(as_json=False).progress("notices", 400) as watch:
        watch.paused("replica 'us' is 5 bytes behind")
        assert "notices (paused: replica 'us' is 5 bytes behind)" in screen_until(screen, "behind)")
        watch.paused(None)
        watch(100, 0)
        assert "paused" not in screen_until(screen, "100 rows").rpartition("notices")[2]


def test_without_a_terminal_a_pause_is_one_line_on_stderr_in_either_form(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    for as_json in (False, True):
        with Output(as_json=as_json).progress("notices", None) as watch:
            watch.paused("replica 'us' is 5 bytes behind")
            watch.paused(None)
        said = capsysbinary.readouterr()
        assert said.out == b""
        assert said.err.decode().splitlines() == [
            "offload: notices: paused: replica 'us' is 5 bytes behind",
            "offload: notices: goes on",
        ]


def test_who_watches_a_bar_is_told_how_many_rows_are_ahead_small_ones_included(
    monkeypatch: pytest.MonkeyPatch, offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    connection.execute("ALTER TABLE notices DISABLE TRIGGER USER")
    insert_payloads(connection, notices, ["{}", large_payload(1000)], payload_storage_status=None)
    connection.execute("ALTER TABLE notices ENABLE TRIGGER USER")
    insert_payloads(connection, notices, [large_payload(1000)])
    session = open_session(as_json=False)
    (partition,) = session.partitions("notices", "acme")
    with terminal(monkeypatch):
        assert session.rows_ahead(partition, unseen=True) == 3
        assert session.rows_ahead(partition) == 1
    assert session.rows_ahead(partition, unseen=True) is None


def test_short_work_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        assert shows_progress()
        with Output(as_json=False).progress("notices", 200) as advance:
            advance(200, 1000)
        os.set_blocking(screen, False)
        with pytest.raises(BlockingIOError):
            os.read(screen, 1)


def test_without_a_terminal_there_is_no_progress_at_all(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(progress, "SHOWN_AFTER_SECONDS", 0)
    with Output(as_json=False).progress("notices", 200) as advance:
        advance(200, 1000)
    said = capsysbinary.readouterr()
    assert (said.out, said.err) == (b"", b"")
