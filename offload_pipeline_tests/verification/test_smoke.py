"""The application's own queries as checks: only what is true passes, nothing is written, and no mistake breaks more."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from offload_pipeline.config import Config, load_config
from offload_pipeline.database.connection import Database
from offload_pipeline.database.statements import sql_folder
from offload_pipeline.verification import smoke
from offload_pipeline.verification.smoke import SmokeCheck, SmokeResult, run_smoke_check, smoke_checks
from offload_pipeline_tests.servers import wait_until

CONFIG = "tables: [{name: notices, relation: notices, tenant: {value: acme}, payload: raw_payload}]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "offload.yaml").write_text(CONFIG)
    found = tmp_path / "sql" / "smoke"
    found.mkdir(parents=True)
    return found


@pytest.fixture
def config(folder: Path) -> Config:
    return load_config(folder.parents[1] / "offload.yaml")


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE letters (letter text); INSERT INTO letters VALUES ('a')")
        connection.execute("CREATE SEQUENCE numbers")
        connection.execute(
            "CREATE FUNCTION write_one() RETURNS boolean LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO letters VALUES ('b'); RETURN TRUE; END $$"
        )
        yield connection


Run = Callable[[str], SmokeResult]


@pytest.fixture
def run(connection: psycopg.Connection, database_url: str, folder: Path) -> Iterator[Run]:
    """Runs a query as a file; whatever it is, the data is as it was."""

    def run_one(query: str) -> SmokeResult:
        path = folder / "one.sql"
        path.write_text(query)
        return run_smoke_check(Database(database_url, "public"), SmokeCheck("one", "", None, path))

    yield run_one
    assert connection.execute("SELECT letter FROM letters").fetchall() == [("a",)]


@pytest.mark.both_servers
@pytest.mark.parametrize(
    "query",
    [
        "SELECT TRUE",
        "SELECT TRUE;",
        "-- about it\n\nSELECT TRUE; -- and no more\n",
        "SELECT count(*) > 0 FROM letters WHERE letter LIKE '%a%' AND letter <> '%(name)s'",
        "WITH found AS (SELECT TRUE AS is_found) TABLE found",
        "VALUES (TRUE, 2), (FALSE, 3)",
        "SELECT number = 1 FROM generate_series(1, 10000000) AS number",
    ],
)
def test_a_query_passes_when_its_first_value_is_true(run: Run, query: str) -> None:
    result = run(query)
    assert (result.passed, result.message) == (True, "")
    assert result.seconds >= 0


@pytest.mark.both_servers
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT FALSE", "its first value is False, not true"),
        ("SELECT NULL::boolean", "its first value is None, not true"),
        ("SELECT 1", "its first value is 1, not true"),
        ("SELECT 'true'", "its first value is 'true', not true"),
        ("SELECT repeat('x', 1000000)", f"its first value is '{'x' * 99}, not true"),
        ("SELECT TRUE WHERE FALSE", "it returned no row"),
        ("SELECT", "its first row has no column"),
        ("", "the file holds no query that returns a row"),
        ("-- nothing yet", "the file holds no query that returns a row"),
        ("SET work_mem = '1MB'", "the file holds no query that returns a row"),
        ("COMMIT", "the file holds no query that returns a row"),
        ("COPY letters TO STDOUT", "the file holds no query that returns a row"),
        ("SELECT TRUE; SELECT TRUE", "the file holds several statements; give each a file of its own"),
        ("SELECT TRUE; DROP TABLE letters", "the file holds several statements; give each a file of its own"),
        ("COMMIT; DELETE FROM letters", "the file holds several statements; give each a file of its own"),
        ("selec true", 'syntax error at or near "selec"'),
        ("SELECT TRUE FROM envelopes", 'relation "envelopes" does not exist'),
        ("SELECT 1 / 0 = 1", "division by zero"),
        ("INSERT INTO letters VALUES ('b') RETURNING TRUE", "cannot execute INSERT in a read-only transaction"),
        ("DELETE FROM letters RETURNING TRUE", "cannot execute DELETE in a read-only transaction"),
        ("SELECT write_one()", "cannot execute INSERT in a read-only transaction"),
        ("SELECT nextval('numbers') > 0", "cannot execute nextval() in a read-only transaction"),
        ("SELECT TRUE FROM letters FOR UPDATE", "cannot execute SELECT FOR UPDATE in a read-only transaction"),
        ("SET TRANSACTION READ WRITE", "transaction read-write mode must be set before any query"),
        ("VACUUM letters", "VACUUM cannot run inside a transaction block"),
    ],
)
def test_anything_else_fails_and_says_why_in_one_line(run: Run, query: str, message: str) -> None:
    result = run(query)
    assert (result.passed, result.message) == (False, message)


def test_a_query_that_takes_too_long_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "SMOKE_LIMIT", timedelta(milliseconds=100))
    result = run("SELECT pg_sleep(60) IS NOT NULL")
    assert (result.passed, result.message) == (False, "it took longer than 0.1 s")


def test_what_a_query_sets_or_locks_ends_with_it(run: Run, connection: psycopg.Connection) -> None:
    assert run("SELECT pg_advisory_lock(7) IS NOT NULL AND set_config('work_mem', '1MB', false) = '1MB'").passed
    # A backend whose client is gone ends by itself, a moment later.
    assert wait_until(lambda: connection.execute("SELECT pg_try_advisory_lock(7)").fetchone() == (True,))


def test_a_file_that_is_gone_or_no_text_fails(run: Run, folder: Path, database_url: str) -> None:
    database = Database(database_url, "public")
    path = folder / "spoilt.sql"
    check = SmokeCheck("spoilt", "", None, path)
    assert "the file cannot be read" in run_smoke_check(database, check).message
    path.write_bytes(b"SELECT '\xff'")
    assert "the file cannot be read" in run_smoke_check(database, check).message


def test_the_header_gives_description_and_table(folder: Path, config: Config) -> None:
    (folder / "inbox.sql").write_text(
        "\n-- The inbox is searched\n--   by its sender.\n-- table: notices\n\n-- Nobody waits.\n"
        "SELECT TRUE -- not: this\n"
    )
    (check,) = smoke_checks(config)
    assert (check.name, check.table, check.path) == ("inbox", "notices", folder / "inbox.sql")
    assert check.description == "The inbox is searched by its sender. Nobody waits."


@pytest.mark.parametrize("key", ["name", "description"])
def test_the_header_may_say_what_a_line_of_it_is(folder: Path, config: Config, key: str) -> None:
    (folder / "one.sql").write_text(f"-- {key}: the inbox\nSELECT TRUE")
    assert smoke_checks(config)[0].description == "the inbox"


def test_a_check_of_a_table_that_is_not_configured_is_left_out(folder: Path, config: Config) -> None:
    (folder / "theirs.sql").write_text("-- table: activities\nSELECT TRUE")
    (folder / "ours.sql").write_text("-- table: notices\nSELECT TRUE")
    (folder / "everybodys.sql").write_text("SELECT TRUE")
    assert [check.name for check in smoke_checks(config)] == ["everybodys", "ours"]


def test_only_sql_files_beside_the_configuration_are_checks(folder: Path, config: Config, tmp_path: Path) -> None:
    (folder / "notes.md").write_text("SELECT TRUE")
    (folder / "old").mkdir()
    (folder / "old" / "one.sql").write_text("SELECT TRUE")
    assert smoke_checks(config) == []
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "offload.yaml").write_text(CONFIG)
    assert smoke_checks(load_config(tmp_path / "elsewhere" / "offload.yaml")) == []


def test_a_configuration_made_in_code_has_no_files_beside_it(config: Config) -> None:
    assert smoke_checks(Config.model_validate(config.model_dump(by_alias=True))) == []


def test_names_are_what_dagster_takes_and_all_different(folder: Path, config: Config) -> None:
    stems = ["a-b", "a_b", "a b", "search", "Größe", "no_open_failures", "x.y", "数", "数数", "UPPER", "é", "è"]
    for stem in stems:
        (folder / f"{stem}.sql").write_text("SELECT TRUE")
    names = {check.path.stem: check.name for check in smoke_checks(config)}
    assert len(set(names.values())) == len(stems)
    assert all(name.isascii() and name.replace("_", "a").isalnum() for name in names.values())
    assert (names["a_b"], names["search"], names["x.y"], names["UPPER"]) == ("a_b", "search", "x_y", "UPPER")
    assert names["no_open_failures"] != "no_open_failures", "another check of the report has this name"


def test_header_bytes_that_are_no_text_do_not_keep_the_definitions_from_loading(folder: Path, config: Config) -> None:
    (folder / "latin.sql").write_bytes(b"-- caf\xe9\nSELECT TRUE")
    (check,) = smoke_checks(config)
    assert check.description.startswith("caf")


def test_the_packaged_demo_has_the_shipped_examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OFFLOAD_CONFIG", raising=False)
    checks: dict[str, Any] = {check.name: check for check in smoke_checks(load_config())}
    assert set(checks) == {"prediction_query_still_runs", "search_still_answers"}
    for check in checks.values():
        assert check.description
        assert check.path.parent == sql_folder() / "smoke"
