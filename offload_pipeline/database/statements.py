"""Named statements out of `sql/`: `-- name: claim` begins one, the comment lines below it are its documentation.

The idea and the format are procrastinate's (`sql/queries.sql`).
"""

import re
from functools import cache
from pathlib import Path

from psycopg import sql

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


def sql_folder() -> Path:
    """`sql/` inside the wheel, else at the top of the source tree."""
    package = Path(__file__).parents[1]
    return package / "sql" if (package / "sql").is_dir() else package.parent / "sql"


@cache
def _statements(file: str) -> dict[str, str]:
    pieces = _NAME.split((sql_folder() / file).read_text(encoding="utf-8"))
    return {name: _without_comments(text) for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.strip().splitlines() if not line.startswith("--"))


def statement(file: str, name: str, names: dict[str, sql.Composable] | None = None) -> sql.Composed:
    """The statement `name` of `sql/<file>.sql` with `{placeholders}` replaced by `names`."""
    return sql.SQL(_statements(f"{file}.sql")[name]).format(**(names or {}))  # type: ignore[arg-type]
