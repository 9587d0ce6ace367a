"""How commands end: exit codes, one line on stderr, one document on stdout, no traceback for a mistake."""

import signal
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psycopg
import pytest

from offload_pipeline.cli.exit_codes import Terminated, terminable
from offload_pipeline.config import TableConfig
from offload_pipeline_tests.cli.command import REPOSITORY, SCRIPT, Command
from offload_pipeline_tests.factories import insert_payloads, large_payload, make_table, statuses
from offload_pipeline_tests.servers import wait_until

HEAVY_MODULES = ("dagster", "pandas", "matplotlib", "psycopg", "obstore", "pydantic")


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from offload_pipeline.cli import main; code = main(['--help']);"
        f"sys.exit(code or ' '.join(name for name in {HEAVY_MODULES} if name in sys.modules) or 0)"
    )
    done = subprocess.run([*SCRIPT[:-1], script], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert "drain" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["drain", "--tabel", "x"], "no option --tabel (did you mean --table?); see offload drain --help"),
        (["drian"], "no such command 'drian' (did you mean 'drain'?); see offload --help"),
        (["drain", "--table"], "option '--table' requires an argument; see offload drain --help"),
        (["backfill", "--table", "x"], "missing option '--tenant'; see offload backfill --help"),
        (["get", "x"], "missing argument 'KEY'; see offload get --help"),
        (
            ["backfill", "--null-after-upload", "no"],
            "invalid value for '--null-after-upload': 'no' is not one of 'true', 'false'; see offload backfill --help",
        ),
        ([], "missing command; see offload --help"),
    ],
)
def test_wrong_usage_is_one_line_with_the_mend(offload: Command, arguments: list[str], said: str) -> None:
    answer = offload(*arguments)
    assert (answer.code, answer.stdout) == (2, b"")
    assert answer.complaint == f"offload: {said}"


@pytest.mark.parametrize("size", ["0", "1001", "many"])
def test_a_batch_size_out_of_bounds_is_wrong_usage(offload: Command, size: str) -> None:
    answer = offload("backfill", "--table", "x", "--tenant", "y", "--batch-size", size)
    assert answer.code == 2
    assert "--batch-size" in answer.complaint


def test_wrong_usage_as_json_is_one_document_too(offload: Command) -> None:
    answer = offload("drain", "--tabel", "x", "--json")
    assert answer.code == 2
    assert answer.document["error"]["class"] == "UsageError"
    assert f"offload: {answer.document['error']['message']}" == answer.complaint


def test_an_unknown_table_is_answered_with_the_known_ones(offload: Command, notices: TableConfig) -> None:
    for command in ("drain", "verify", "release", "install"):
        answer = offload(command, "--table", "notice")
        assert answer.code == 2
        assert answer.complaint.endswith("(it has notices); did you mean notices?")


def test_an_empty_table_name_is_not_all_tables(offload: Command, notices: TableConfig) -> None:
    assert offload("drain", "--table", "").code == 2


def test_a_missing_install_is_one_line_in_a_process_of_its_own(
    offload: Command, connection: psycopg.Connection
) -> None:
    offload.configure(make_table(connection))
    answer = offload.process("drain")
    assert (answer.code, answer.stdout) == (2, b"")
    assert answer.complaint.endswith("run: offload install --table notices")


def test_missing_bookkeeping_tables_lead_back_to_install(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    connection.execute("DROP TABLE payload_offload_failures")
    answer = offload("status")
    assert answer.code == 2
    assert answer.complaint.endswith("run: offload install")


def test_an_unreachable_database_is_one_line_without_the_password(offload: Command, notices: TableConfig) -> None:
    offload.configure(notices, database={"url": "postgresql://me:secret@127.0.0.1:1/app"})
    answer = offload.process("drain", "--json")
    assert answer.code == 2
    assert answer.document["error"]["class"] == "DatabaseUnreachableError"
    assert "127.0.0.1" in answer.complaint
    assert "secret" not in answer.stderr + answer.stdout.decode()


def test_broken_yaml_is_one_line_that_names_file_and_line(offload: Command) -> None:
    offload.config_path.write_text("tables:\n  - name: [\n")
    answer = offload.process("status")
    assert (answer.code, answer.stdout) == (2, b"")
    assert f"{offload.config_path}:" in answer.complaint


def test_a_store_under_a_file_is_one_line(offload: Command, notices: TableConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    offload.configure(notices, object_store={"url": (tmp_path / "file" / "objects").as_uri()})
    answer = offload.process("drain")
    assert (answer.code, answer.stdout) == (2, b"")
    assert "object_store.url" in answer.complaint


def test_a_role_without_privileges_is_one_line(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    role = f"nobody_{connection.info.dbname}"
    connection.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        offload.configure(notices, database={"url": offload.database_url.replace("postgres@", f"{role}@")})
        answer = offload("status")
        assert answer.code == 2
        assert "permission denied" in answer.complaint
    finally:
        connection.execute(f"DROP ROLE {role}".encode())


def test_an_argument_that_is_no_utf_8_is_a_mistake(offload: Command, notices: TableConfig) -> None:
    answer = offload.process("get", "notices", "\udcff")
    assert answer.code == 2
    assert "is not UTF-8" in answer.complaint


def test_a_reader_that_stops_reading_gets_no_traceback(offload: Command, connection: psycopg.Connection) -> None:
    table = make_table(connection, threshold_bytes=0)
    offload.configure(table)
    offload("install")
    (key,) = insert_payloads(connection, table, [large_payload(2_000_000)])
    with offload.start("get", "notices", str(key)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupted_backfill_ends_soon_in_one_line_and_loses_nothing(
    offload: Command, connection: psycopg.Connection, notices: TableConfig, number: signal.Signals, code: int, said: str
) -> None:
    rows = 3000
    connection.execute(
        "INSERT INTO notices (tenant_id, raw_payload)"
        " SELECT 'acme', jsonb_build_object('a', repeat(md5(i::text), 20)) FROM generate_series(1, %s) AS i",
        [rows],
    )

    def copied() -> int:
        found = connection.execute("SELECT coalesce(sum(rows), 0) FROM payload_offload_log").fetchone()
        assert found is not None
        return int(found[0])

    with offload.start("backfill", "--table", "notices", "--tenant", "acme", "--batch-size", "1") as process:
        assert wait_until(lambda: copied() > 0, seconds=30)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr.decode() == f"offload: {said}; nothing is lost, run it again\n"
    assert copied() < rows
    stored = statuses(connection, notices).values()
    assert list(stored).count("copied") == copied(), "what the log counts is what the rows say"


@pytest.fixture
def no_sigterm_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("no_sigterm_handler")
def test_a_second_sigterm_does_not_disturb_the_end_that_the_first_began() -> None:
    with terminable():
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("no_sigterm_handler")
def test_a_child_process_begins_without_the_handler() -> None:
    with terminable(), subprocess.Popen(["sleep", "60"]) as child:
        child.send_signal(signal.SIGTERM)
    assert child.returncode == -signal.SIGTERM


@pytest.mark.usefixtures("no_sigterm_handler")
def test_another_handler_of_sigterm_is_left_alone() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_the_interrupted_work_is_finished_by_the_next_run(
    offload: Command, connection: psycopg.Connection, notices: TableConfig
) -> None:
    insert_payloads(connection, notices, [large_payload(1000, seed) for seed in range(3)])
    with offload.start("drain", "--json") as process:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    document = offload("drain", "--json").document
    assert document["sound"] is True
    assert offload("verify", "--full").code == 0


def test_a_bug_keeps_its_traceback(offload: Command, notices: TableConfig, connection: psycopg.Connection) -> None:
    connection.execute("ALTER TABLE payload_offload_state RENAME rows_copied TO something_else")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        offload("status")


@pytest.mark.parametrize("command", ["drain", "doctor"])
def test_the_demos_tables_are_not_looked_for_in_a_named_database(
    offload: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("OFFLOAD_CONFIG", raising=False)
    monkeypatch.setenv("OFFLOAD_DATABASE_URL", "postgresql://me@127.0.0.1:1/app")
    answer = offload(command)
    assert (answer.code, answer.lines) == (2, [])
    assert "there is no offload.yaml in this folder" in answer.complaint


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_without_a_url_it_is_said_that_the_embedded_database_was_looked_in(
    offload: Command, connection: psycopg.Connection, embedded_dir: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("OFFLOAD_HOME", str(embedded_dir))
    offload.configure(make_table(connection), database={"url": None})
    answer = offload(command)
    said = answer.stdout.decode() + answer.stderr
    assert answer.code != 0
    assert "no table public.notices in the embedded PostgreSQL at " in said
    assert "because neither database.url nor OFFLOAD_DATABASE_URL nor SUPABASE_DB_URL is set; set one, correct " in said


def test_the_version_is_that_of_the_package(offload: Command) -> None:
    assert offload("--version").lines == [f"offload_pipeline {version('offload_pipeline')}"]


def test_a_password_with_a_raw_at_sign_is_not_said_aloud(offload: Command, notices: TableConfig) -> None:
    offload.configure(notices, database={"url": "postgresql://me:s3cr3t@Pass/w0rd@127.0.0.1:1/app"})
    answer = offload("status")
    assert answer.code == 2
    assert "more than one @" in answer.complaint
    assert "w0rd" not in answer.stderr
