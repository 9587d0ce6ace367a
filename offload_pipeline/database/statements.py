"""Named statements out of `sql/`: `-- name: claim` begins one, the comment lines below it are its documentation.

The idea and the format are procrastinate's (`sql/queries.sql`).
"""

import re
from functools import cache
from pathlib import Path

from psycopg import sql
from psycopg.abc import AdaptContext

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
    text = sql.SQL(_statements(f"{file}.sql")[name])
    composed = text.format(**(names or {}))
    return _with_percent_doubled(composed) if _takes_values(composed) else composed


class _Bindable(sql.Composable):
    """A name or literal in a statement that takes values, where psycopg reads a bare `%` as a placeholder."""

    def as_bytes(self, context: AdaptContext | None = None) -> bytes:
        """The SQL of the name or literal, with its `%` doubled."""
        inner: sql.Composable = self._obj
        return inner.as_bytes(context).replace(b"%", b"%%")


def _takes_values(part: sql.Composable) -> bool:
    if isinstance(part, sql.Composed):
        return any(map(_takes_values, part))
    return isinstance(part, sql.Placeholder) or (isinstance(part, sql.SQL) and "%(" in part.as_string())


def _with_percent_doubled(composed: sql.Composed) -> sql.Composed:
    return sql.Composed([_bindable(part) for part in composed])


def _bindable(part: sql.Composable) -> sql.Composable:
    if isinstance(part, sql.Composed):
        return _with_percent_doubled(part)
    return _Bindable(part) if isinstance(part, sql.Identifier | sql.Literal) else part
