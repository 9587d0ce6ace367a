"""A configured table bound to the catalog: its column types, and the SQL fragments every statement is built from."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from psycopg import Connection, sql

from offload_pipeline.config import DATABASE_VARIABLES, TableConfig
from offload_pipeline.database.statements import statement
from offload_pipeline.errors import UserError

PAYLOAD_TYPES = ("jsonb", "json", "text")
# Of the four triggers the one without which an edit of a payload in storage would be lost.
GUARD_TRIGGER = "zz_payload_offload_update"
# In pg_trigger: for the application's own sessions, or for all.
FIRING_MODES = ("O", "A")

Key = tuple[str, ...]
"""A primary key as PostgreSQL's own text forms, one per column."""


@dataclass(frozen=True)
class Column:
    """One column as the catalog has it; `type` is SQL as `format_type` prints it."""

    name: str
    type: str
    not_null: bool


@dataclass(frozen=True)
class Table:
    """Configuration and catalog of one table. Fragments refer to the table as `t` and to given keys as `k`.

    `is_guarded`: the trigger that watches over freed payloads is there and fires; `is_guard_disabled`: there alone.
    """

    config: TableConfig
    schema: str
    columns: dict[str, Column]
    kind: str
    is_guarded: bool
    is_guard_disabled: bool = False

    @property
    def name(self) -> str:
        """The configured name: partition key, `--table`, segment of object keys."""
        return self.config.name

    @property
    def lock_space(self) -> str:
        """What the advisory lock of a row is hashed from, before its key."""
        return ".".join(self.config.schema_and_name) + "/"

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """The primary key's columns in order."""
        return tuple(self.columns[name] for name in self.config.primary_key)

    @property
    def payload_type(self) -> str:
        """jsonb, json or text."""
        return self.columns[self.config.payload].type

    @property
    def is_installed(self) -> bool:
        """Whether the five pointer columns exist: rows may name objects."""
        return all(name in self.columns for name in self.config.columns.model_dump().values())

    @property
    def is_active(self) -> bool:
        """Whether payloads may move: the trigger that watches over freed ones fires."""
        return self.is_installed and self.is_guarded

    def require_installed(self) -> "Table":
        """The table itself, or the mend."""
        if not self.is_installed:
            raise UserError(f"{self.name}: pointer columns are missing; {self._installing}")
        return self

    def require_active(self) -> "Table":
        """The table itself, or the mend."""
        if not self.require_installed().is_guarded:
            if self.is_guard_disabled:
                raise UserError(
                    f"{self.name}: the size trigger is disabled, so nothing watches over freed payloads; "
                    f"to enable it, run: offload install --table {self.name}"
                )
            raise UserError(f"{self.name}: the size trigger is missing; {self._installing}")
        return self

    @property
    def _installing(self) -> str:
        return f"take the table out of offload.yaml, or run: offload install --table {self.name}"

    def key_in(self, row: Sequence[Any]) -> Key:
        """The key in a row that begins with `{keys_as_text}` or `{key_names}`."""
        return tuple(row[: len(self.config.primary_key)])

    def after_key(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """What follows the key in such a row."""
        return tuple(row[len(self.config.primary_key) :])

    def key_text(self, key: Key) -> str:
        """The key as one text: as it is for one column, else `,` between the columns (`%` and `,` escaped)."""
        return key[0] if len(key) == 1 else ",".join(part.replace("%", "%25").replace(",", "%2C") for part in key)

    def parse_key(self, text: str) -> Key:
        """The inverse of `key_text`. UserError where the number of columns does not fit."""
        parts = (text,) if len(self.key_columns) == 1 else tuple(unquote(part) for part in text.split(","))
        if len(parts) != len(self.key_columns):
            names = ",".join(column.name for column in self.key_columns)
            raise UserError(
                f"{self.name}: the key {text!r} needs {len(self.key_columns)} parts; "
                f"write it as {names} (a comma in a part: %2C)"
            )
        return parts

    def key_of(self, given: object) -> Key:
        """The key that an application gives: text as `parse_key` takes it, one value, or a tuple of values.

        UserError where the number of columns does not fit, or a part is NULL.
        """
        if isinstance(given, str):
            return self.parse_key(given)
        parts = given if isinstance(given, tuple | list) else (given,)
        if len(parts) != len(self.key_columns) or None in parts:
            names = ", ".join(column.name for column in self.key_columns)
            raise UserError(f"{self.name}: {given!r} is no key; give a value for each of {names}")
        return tuple(map(str, parts))

    def no_key(self, given: str, reason: str) -> UserError:
        """What is said where PostgreSQL refuses a part of the key as a value of its column."""
        types = ", ".join(f"{column.name} {column.type}" for column in self.key_columns)
        return UserError(f"{self.name}: {given!r} is no key ({reason}); the key is {types}")

    def key_parameters(self, keys: Sequence[Key]) -> dict[str, list[str]]:
        """The bound arrays of `{key_arrays}`."""
        return {name: [key[index] for key in keys] for index, name in enumerate(self._key_names)}

    def cursor_parameters(self, cursor: Key | None) -> dict[str, str | None]:
        """The bound values of `{after_cursor}`; None: from the beginning."""
        return {f"after_{name}": cursor[i] if cursor else None for i, name in enumerate(self._key_names)}

    @cached_property
    def _key_names(self) -> tuple[str, ...]:
        return tuple(f"k{index + 1}" for index in range(len(self.config.primary_key)))

    def _each_key(self, template: str, separator: str) -> sql.Composed:
        pieces = [
            sql.SQL(template).format(
                column=sql.Identifier(column.name), type=sql.SQL(column.type), k=sql.Identifier(name),
                bound=sql.Placeholder(name), after=sql.Placeholder(f"after_{name}"),
                through=sql.Placeholder(f"through_{name}"), chosen=sql.Placeholder(f"chosen_{name}"),
            )
            for column, name in zip(self.key_columns, self._key_names, strict=True)
        ]  # fmt: skip
        return sql.SQL(separator).join(pieces)

    def key_text_expression(self, percent: str = "%%") -> sql.Composed:
        """`key_text` in SQL, the same to the byte; `percent` is a bare % in a statement that takes no values."""
        if len(self.key_columns) == 1:
            return self._each_key("t.{column}::text", "")
        escaped = "replace(replace(t.{column}::text, '%', '%25'), ',', '%2C')".replace("%", percent)
        return sql.SQL("concat_ws(',', {})").format(self._each_key(escaped, ", "))

    def after(self, cursor: Key | None) -> sql.Composable:
        """The keyset condition behind `cursor`, which the primary key's index serves."""
        if cursor is None:
            return sql.SQL("TRUE")
        return sql.SQL("({}) > ({})").format(
            self._each_key("t.{column}", ", "), self._each_key("{after}::{type}", ", ")
        )

    def after_position(self, cursor: Key | None) -> sql.Composable:
        """The keyset condition behind a row in the order of `stored_at`, then the key."""
        if cursor is None:
            return sql.SQL("TRUE")
        return sql.SQL("(t.{}, {}) > ({}, {})").format(
            sql.Identifier(self.config.columns.stored_at), self._each_key("t.{column}", ", "),
            sql.Placeholder("after_stored_at"), self._each_key("{after}::{type}", ", "),
        )  # fmt: skip

    def through_position(self) -> sql.Composable:
        """The condition up to and with a row in that order. Bound by `through_parameters`."""
        return sql.SQL("(t.{}, {}) <= ({}, {})").format(
            sql.Identifier(self.config.columns.stored_at), self._each_key("t.{column}", ", "),
            sql.Placeholder("through_stored_at"), self._each_key("{through}::{type}", ", "),
        )  # fmt: skip

    def through_parameters(self, key: Key) -> dict[str, str]:
        """The bound key of `through_position`."""
        return {f"through_{name}": part for name, part in zip(self._key_names, key, strict=True)}

    def is_key(self, key: Key | None) -> sql.Composable:
        """The condition for one row; all rows without a key. Bound by `chosen_parameters`."""
        return self._each_key("t.{column} = {chosen}::{type}", " AND ") if key else sql.SQL("TRUE")

    def chosen_parameters(self, key: Key | None) -> dict[str, str]:
        """The bound values of `is_key`."""
        return {f"chosen_{name}": part for name, part in zip(self._key_names, key or (), strict=False)}

    def names(self, cursor: Key | None = None) -> dict[str, sql.Composable]:
        """What statements in `sql/` may name."""
        positions = {"after_cursor": self.after(cursor), "after_position": self.after_position(cursor)}
        return {**self._names, **self._conditions, **positions}

    @cached_property
    def _conditions(self) -> dict[str, sql.Composable]:
        any_version, same_version = sql.SQL("TRUE"), sql.SQL("f.row_version = t.xmin::text")
        return {
            "is_due": self._is_not_waiting("copy", same_version),
            "is_not_waiting": self._is_not_waiting("copy", any_version),
            "is_due_for_release": self._is_not_waiting("release", same_version),
            "is_not_waiting_for_release": self._is_not_waiting("release", any_version),
            "is_due_for_expiry": self._is_not_waiting("expire", same_version),
        }

    def _is_not_waiting(self, stage: str, is_same_version: sql.SQL) -> sql.Composable:
        names = {**self._names, "stage": sql.Literal(stage), "is_same_version": is_same_version}
        return sql.SQL("NOT ") + statement("offload/failures", "is_waiting", names)

    def _is_tenant(self, alias: str) -> sql.Composable:
        column = self.config.tenant.column
        if column is None:
            return sql.SQL("TRUE")
        # Equal by type finds the index; equal as text keeps apart what the type takes for the same (1.0, 1.00; citext).
        return sql.SQL('({column} = {tenant}::text::{type} AND {column}::text COLLATE "C" = {tenant}::text)').format(
            column=sql.Identifier(alias, column), tenant=sql.Placeholder("tenant"),
            type=sql.SQL(self.columns[column].type),
        )  # fmt: skip

    @cached_property
    def _names(self) -> dict[str, sql.Composable]:
        pointer = self.config.columns
        tenant = self.config.tenant.column
        created_at = self.config.created_at
        return {
            **bookkeeping_names(self.schema),
            "relation": sql.Identifier(*self.config.schema_and_name),
            "payload": sql.Identifier(self.config.payload),
            "payload_type": sql.SQL(self.payload_type),
            "status": sql.Identifier(pointer.status),
            "size": sql.Identifier(pointer.size),
            "object_key": sql.Identifier(pointer.object_key),
            "hash": sql.Identifier(pointer.hash),
            "stored_at": sql.Identifier(pointer.stored_at),
            "stored_at_of_copy": _representable(sql.Identifier("t", pointer.stored_at)),
            "named_object": sql.SQL("{keys}, {stored_at}, t.{object_key}, t.{hash}, t.{size}").format(
                keys=self._each_key("t.{column}::text AS {k}", ", "),
                stored_at=_representable(sql.Identifier("t", pointer.stored_at)),
                object_key=sql.Identifier(pointer.object_key), hash=sql.Identifier(pointer.hash),
                size=sql.Identifier(pointer.size),
            ),
            "keys": self._each_key("t.{column}", ", "),
            "keys_as_text": self._each_key("t.{column}::text AS {k}", ", "),
            "key_text": self.key_text_expression(),
            "key_names": self._each_key("p.{k}", ", "),
            "key_names_bare": self._each_key("{k}", ", "),
            "key_arrays": self._each_key("{bound}::text[]", ", "),
            # Whatever its statistics say, the planner can only look the keys up, and evaluates nothing on other rows.
            "row_of_key": sql.SQL(
                "(SELECT t.ctid, t.xmin, t.* FROM {relation} AS t WHERE {keys_match} OFFSET 0)"
            ).format(
                relation=sql.Identifier(*self.config.schema_and_name),
                keys_match=self._each_key("t.{column} = k.{k}::{type}", " AND "),
            ),
            # For rows that are looked up by key and locked: a form that no partial index answers. The planner takes
            # one for almost empty where its statistics are old, and would read it whole for every batch.
            "current_status": sql.SQL("coalesce(t.{}, '')").format(sql.Identifier(pointer.status)),
            "keys_match": self._each_key("t.{column} = k.{k}::{type}", " AND "),
            "keys_match_stored": self._each_key("t.{column} = stored.{k}::{type}", " AND "),
            "keys_match_named": self._each_key("t.{column} = named.{k}::{type}", " AND "),
            "given_keys": self._each_key("{bound}::text::{type}::text AS {k}", ", "),
            "given_tenant": sql.SQL("{}::text::{}::text").format(
                sql.Placeholder("tenant"), sql.SQL(self.columns[tenant].type if tenant else "text")
            ),
            "is_tenant": self._is_tenant("t"),
            "is_tenant_e": self._is_tenant("e"),
            "tenant_column": sql.Identifier(tenant) if tenant else sql.SQL("NULL"),
            "tenant_text": sql.SQL("t.{}::text").format(sql.Identifier(tenant)) if tenant
                else sql.Literal(self.config.tenant.value) + sql.SQL("::text"),
            "created_at": sql.SQL("t.{}").format(sql.Identifier(created_at)) if created_at
                else sql.SQL("NULL::timestamptz"),
        }  # fmt: skip


def _representable(timestamp: sql.Composable) -> sql.Composable:
    """NULL for what an edit by hand can write and Python's datetime cannot hold."""
    return sql.SQL("CASE WHEN {0} BETWEEN '0001-01-02 UTC' AND '9998-12-31 UTC' THEN {0} END").format(timestamp)


def bookkeeping_names(schema: str) -> dict[str, sql.Composable]:
    """The bookkeeping tables, in the configured schema."""
    return {
        "state": sql.Identifier(schema, "payload_offload_state"),
        "failures": sql.Identifier(schema, "payload_offload_failures"),
        "log": sql.Identifier(schema, "payload_offload_log"),
        "expired": sql.Identifier(schema, "payload_offload_expired"),
        "deleted": sql.Identifier(schema, "payload_offload_deleted"),
        "archival_log": sql.Identifier(schema, "archival_log"),
    }


def inspect_table(connection: Connection, config: TableConfig, schema: str, *, is_embedded: bool = False) -> Table:
    """Reads the catalog. UserError, one line, for a missing table or column, a view, or an unfit payload type.

    Where the table is missing, the message says which database was looked in; `is_embedded`: ours, for want of a URL.
    """
    relation = connection.execute(
        statement("install/catalog", "relation"), dict(zip(("schema", "name"), config.schema_and_name, strict=True))
    ).fetchone()
    if relation is None:
        hint = _differing_case(connection, config)
        where = _where_embedded(connection) if is_embedded else f"{_where(connection)};"
        raise UserError(f"{config.name}: no table {config.relation} in {where} correct relation, or create it{hint}")
    oid, kind = relation
    if kind not in ("r", "p"):
        raise UserError(f"{config.name}: {config.relation} is no ordinary table; name the table behind it")
    rows = connection.execute(statement("install/catalog", "columns"), {"relation": oid}).fetchall()
    columns = {name: Column(name, type_, not_null) for name, type_, not_null in rows}
    for key, name in _configured_columns(config):
        if name not in columns:
            near = [known for known in columns if known.lower() == name.lower()]
            near = near or difflib.get_close_matches(name, columns, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(columns)}"
            raise UserError(f"{config.name}: {key}: {config.relation} has no column {name}; {hint}")
    if columns[config.payload].type not in PAYLOAD_TYPES:
        raise UserError(f"{config.name}: payload {config.payload} is {columns[config.payload].type}; "
                        "only jsonb, json and text columns can be offloaded")  # fmt: skip
    modes: dict[str, str] = dict(
        connection.execute(statement("install/catalog", "trigger_modes"), {"relation": oid}).fetchall()
    )
    is_guarded = modes.get(GUARD_TRIGGER) in FIRING_MODES
    is_guard_disabled = GUARD_TRIGGER in modes and not is_guarded
    return Table(config, schema, columns, kind, is_guarded=is_guarded, is_guard_disabled=is_guard_disabled)


def _where(connection: Connection) -> str:
    return f"database {connection.info.dbname} at {connection.info.host or 'the local socket'}"


def _where_embedded(connection: Connection) -> str:
    """A shell without the variable, more often than a table that is missing."""
    named = f"neither database.url nor {' nor '.join(DATABASE_VARIABLES)} is set"
    return f"the embedded PostgreSQL at {connection.info.host}, looked in because {named}; set one,"


def _configured_columns(config: TableConfig) -> list[tuple[str, str]]:
    keys = [("primary_key", name) for name in config.primary_key]
    optional = [("tenant.column", config.tenant.column), ("created_at", config.created_at)]
    return [*keys, ("payload", config.payload), *((key, name) for key, name in optional if name)]


def _differing_case(connection: Connection, config: TableConfig) -> str:
    found = connection.execute(
        statement("install/catalog", "same_name_other_case"), {"name": config.schema_and_name[1]}
    ).fetchone()
    return f"; did you mean {found[0]}?" if found else ""
