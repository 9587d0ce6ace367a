"""Named statements: every one in `sql/` is found, and psycopg reads it as PostgreSQL does."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from offload_pipeline.database import statements
from offload_pipeline.database.statements import sql_folder, statement

# Smoke checks are whole files, one query each.
FILES = sorted(
    path.relative_to(sql_folder()).with_suffix("").as_posix()
    for path in sql_folder().rglob("*.sql")
    if path.parent.name != "smoke"
)


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connected:
        yield connected


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of statements of the test's own."""
    monkeypatch.setattr(statements, "sql_folder", lambda: tmp_path)
    statements._statements.cache_clear()
    yield tmp_path / "made_up.sql"
    statements._statements.cache_clear()


@pytest.mark.parametrize("file", FILES)
def test_every_file_holds_statements_with_names_of_their_own(file: str) -> None:
    text = (sql_folder() / f"{file}.sql").read_text(encoding="utf-8")
    names = re.findall(r"^-- name: (.*)$", text, re.MULTILINE)
    assert names
    assert len(set(names)) == len(names)
    assert text.startswith("-- name: ")
    assert all(statements._statements(f"{file}.sql").values())


def test_a_statement_is_what_stands_between_two_names_without_its_comments(made_up: Path) -> None:
    made_up.write_text("-- name: one\n-- Locks: none.\nSELECT 1\n\n-- name: two\nSELECT\n    -- kept\n    2\n")
    assert statement("made_up", "one").as_string() == "SELECT 1"
    assert statement("made_up", "two").as_string() == "SELECT\n    -- kept\n    2"


AWKWARD = ["50%", "%s", "%(bound)s", "%%", "{x}", 'a"b', "a'b", "\\"]


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("placeholder", ["%(bound)s", "{bound}"])
def test_a_name_or_literal_survives_beside_bound_values(
    connection: psycopg.Connection, made_up: Path, name: str, placeholder: str
) -> None:
    made_up.write_text(f"-- name: query\nSELECT {placeholder}::text AS bound, {{literal}} AS {{name}}, 7 %% 4, '%%'")
    names: dict[str, sql.Composable] = {
        "name": sql.Identifier(name),
        "literal": sql.SQL("coalesce({})").format(sql.Literal(name)),
        "bound": sql.Placeholder("bound"),
    }
    found = connection.execute(statement("made_up", "query", names), {"bound": "value"})
    assert found.description is not None
    assert found.description[1].name == name
    assert found.fetchone() == ("value", name, 3, "%")


@pytest.mark.parametrize("name", AWKWARD)
def test_a_name_or_literal_survives_where_nothing_is_bound(
    connection: psycopg.Connection, made_up: Path, name: str
) -> None:
    made_up.write_text("-- name: query\nSELECT {literal} AS {name}, 7 % 4")
    names: dict[str, sql.Composable] = {"name": sql.Identifier(name), "literal": sql.Literal(name)}
    found = connection.execute(statement("made_up", "query", names))
    assert found.description is not None
    assert found.description[0].name == name
    assert found.fetchone() == (name, 3)


@pytest.mark.parametrize("name", AWKWARD)
def test_a_statement_inside_another_is_escaped_once(connection: psycopg.Connection, made_up: Path, name: str) -> None:
    made_up.write_text("-- name: inner\n{literal} = %(bound)s\n-- name: outer\nSELECT {condition}, {literal}")
    names: dict[str, sql.Composable] = {"literal": sql.Literal(name)}
    condition = statement("made_up", "inner", names)
    outer = statement("made_up", "outer", names | {"condition": condition})
    assert connection.execute(outer, {"bound": name}).fetchone() == (True, name)
