"""Smoke checks: the application's own queries, one a file in `sql/smoke/`, that must still be true after offloading."""

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, errors

from offload_pipeline.config import Config, packaged_config_path
from offload_pipeline.database.connection import Database, bound_statements, plan_freely, server_message, transaction
from offload_pipeline.database.statements import sql_folder

# A query that takes longer answers no user either.
SMOKE_LIMIT = timedelta(seconds=30)
# What a value that is not true may take up in a message.
SHOWN_CHARACTERS = 100
_HASH_DIGITS = 6
# What the report is also checked for.
_TAKEN = "no_open_failures"

_COMMENT = re.compile(r"--\s*(?:(?P<key>table|name|description):\s*)?(?P<text>.*)")


@dataclass(frozen=True)
class SmokeCheck:
    """One file. `name` is letters, digits and `_`, as Dagster asks for; `table` the one that the file binds it to."""

    name: str
    description: str
    table: str | None
    path: Path


@dataclass(frozen=True)
class SmokeResult:
    """Whether the first column of the first row was true; if not, what it was or what went wrong, in one line."""

    check: SmokeCheck
    passed: bool
    message: str
    seconds: float


def smoke_checks(config: Config) -> list[SmokeCheck]:
    """The files beside the configuration file, without those of tables that it does not have.

    Reads names and leading comments; no database. None for a configuration that was made in code.
    """
    if config.path is None:
        return []
    paths = sorted(_folder(config.path).glob("*.sql"))
    tables = {table.name for table in config.tables}
    checks = [_check(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    return [check for check in checks if check.table is None or check.table in tables]


def run_smoke_check(database: Database, check: SmokeCheck) -> SmokeResult:
    """Runs the one query of the file, read-only and bounded in time, on a connection of its own."""
    started = time.monotonic()
    try:
        message = _judge(database, check.path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        message = f"the file cannot be read ({error})"
    except psycopg.Error as error:
        message = _explain(error)
    return SmokeResult(check, not message, message, time.monotonic() - started)


def _folder(config: Path) -> Path:
    is_packaged = config.exists() and config.samefile(packaged_config_path())
    return sql_folder() / "smoke" if is_packaged else config.parent / "sql" / "smoke"


def _names(paths: Sequence[Path]) -> list[str]:
    """The files' names with everything else made `_`; a hash tells apart what becomes the same."""
    slugs = [re.sub(r"\W+", "_", path.stem, flags=re.ASCII) for path in paths]
    return [
        slug
        if slug != _TAKEN and (path.stem == slug or slugs.count(slug) == 1)
        else f"{slug}_{hashlib.sha256(path.stem.encode()).hexdigest()[:_HASH_DIGITS]}"
        for path, slug in zip(paths, slugs, strict=True)
    ]


def _check(path: Path, name: str) -> SmokeCheck:
    table, lines = None, []
    for key, text in _header(path):
        if key == "table":
            table = text
        elif text:
            lines.append(text)
    return SmokeCheck(name, " ".join(lines), table, path)


def _header(path: Path) -> Iterator[tuple[str | None, str]]:
    """The comment lines that the file begins with. A file that cannot be read fails when it is run."""
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            comment = _COMMENT.match(line.strip())
            if comment:
                yield comment["key"], comment["text"].strip()
            elif line.strip():
                return


def _judge(database: Database, query: str) -> str:
    """Empty where the query's first value is true."""
    with contextlib.closing(database.connect()) as connection:
        connection.read_only = True
        row = _first_row(connection, query)
    if not row:
        return "it returned no row" if row is None else "its first row has no column"
    return "" if row[0] is True else f"its first value is {row[0]!r:.{SHOWN_CHARACTERS}}, not true"


def _first_row(connection: Connection, query: str) -> tuple[Any, ...] | None:
    """Of the result no more is fetched. Rolled back: what the query set in its session goes with it."""
    row: tuple[Any, ...] | None = None
    with contextlib.suppress(psycopg.Rollback), transaction(connection):
        bound_statements(connection, SMOKE_LIMIT)
        plan_freely(connection)
        with connection.cursor() as cursor:
            row = next(cursor.stream(query.encode()), None)
        raise psycopg.Rollback
    return row


def _explain(error: psycopg.Error) -> str:
    if isinstance(error, errors.QueryCanceled):
        return f"it took longer than {SMOKE_LIMIT.total_seconds():g} s"
    # PostgreSQL gives every other syntax error its place in the text.
    if isinstance(error, errors.SyntaxError) and error.diag.statement_position is None:
        return "the file holds several statements; give each a file of its own"
    # What PostgreSQL itself did not refuse: an empty file, or a statement that gives nothing back.
    if error.sqlstate is None and isinstance(error, psycopg.InternalError | psycopg.ProgrammingError):
        return "the file holds no query that returns a row"
    return server_message(error)
