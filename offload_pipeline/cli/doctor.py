"""`offload doctor`: one check after another, each with a tick or a cross and the mend."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import typer

from offload_pipeline.cli.exit_codes import DONE, UNSOUND, one_line
from offload_pipeline.cli.options import JsonOption
from offload_pipeline.cli.output import Output
from offload_pipeline.errors import OffloadError, UserError

if TYPE_CHECKING:
    from psycopg import Connection

    from offload_pipeline.config import Config, TableConfig
    from offload_pipeline.database.connection import Database
    from offload_pipeline.database.table import Table

SUPPORTED_MAJOR_VERSIONS = range(14, 19)

_SIGNS = {"passed": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and what to do about it."""

    name: str
    result: Literal["passed", "warning", "failed"]
    detail: str
    mend: str | None = None


def register(app: typer.Typer) -> None:
    """Adds the command of this group."""
    app.command()(doctor)


def doctor(as_json: JsonOption = False) -> int:
    """Check configuration, database, tables and object store."""
    output = Output(as_json=as_json)
    checks: list[Check] = []
    for check in examine():
        checks.append(check)
        sign, style = _SIGNS[check.result]
        output.line(f"{sign} {check.name}: {check.detail}" + (f"; {check.mend}" if check.mend else ""), style)
    is_sound = not any(check.result == "failed" for check in checks)
    output.document({"sound": is_sound, "checks": [asdict(check) for check in checks]})
    return DONE if is_sound else UNSOUND


def examine() -> Iterator[Check]:
    """All checks in order, without those whose ground is missing. UserError for a broken configuration."""
    from offload_pipeline.config import config_path, home, load_config, refuse_demo_tables_in_a_named_database
    from offload_pipeline.database.connection import open_database

    refuse_demo_tables_in_a_named_database()
    path = config_path()
    config = load_config(path)
    yield Check("configuration", "passed", str(path.absolute()))
    try:
        database = open_database(config.database, home())
        with contextlib.closing(database.connect()) as connection:
            yield from _database(connection, database, config)
            for table in config.tables:
                yield from _table(connection, table, database.schema, config)
    except UserError as error:
        yield _failed("database", error)
    yield _store(config)


def _failed(name: str, error: OffloadError) -> Check:
    return Check(name, "failed", one_line(str(error)))


def _database(connection: "Connection", database: "Database", config: "Config") -> Iterator[Check]:
    from offload_pipeline.database.rights import bookkeeping_grants, load_grant
    from offload_pipeline.install.installer import plan_bookkeeping

    version = connection.info.server_version // 10000
    detail = f"{database.where()}, version {connection.info.parameter_status('server_version')}"
    if version in SUPPORTED_MAJOR_VERSIONS:
        yield Check("database", "passed", detail)
    else:
        first, last = SUPPORTED_MAJOR_VERSIONS[0], SUPPORTED_MAJOR_VERSIONS[-1]
        yield Check("database", "failed", detail, f"use a server of version {first} to {last}")
    if any(config.back_pressure.model_dump().values()) and (grant := load_grant(connection)):
        yield Check("back-pressure", "warning", "replicas, waiting WAL files and vacuums are hidden", grant)
    name = f"schema {database.schema}"
    if grants := bookkeeping_grants(connection, database.schema):
        yield Check(f"{name}, rights", "failed", "the role may not keep the books", "; ".join(grants))
        return
    try:
        lacking = list(plan_bookkeeping(connection, database.schema))
    except UserError as error:
        yield _failed(name, error)
        return
    if lacking:
        yield Check(name, "failed", "bookkeeping tables are missing or outdated", "run: offload install")
    else:
        yield Check(name, "passed", "holds the bookkeeping tables")


def _table(connection: "Connection", config: "TableConfig", schema: str, whole: "Config") -> Iterator[Check]:
    from offload_pipeline.database.rights import table_grants
    from offload_pipeline.database.table import inspect_table

    name, store_url = f"table {config.name}", _store_url(whole)
    try:
        table = inspect_table(connection, config, schema, is_embedded=not whole.database.url)
    except UserError as error:
        yield _failed(name, error)
        return
    if grants := table_grants(connection, table):
        yield Check(f"{name}, rights", "failed", "the role may not read and update it", "; ".join(grants))
        if any("USAGE" in grant for grant in grants):
            return
    else:
        yield Check(f"{name}, rights", "passed", "the role may read and update it")
    yield _key(connection, table, f"{name}, primary key")
    try:
        table.require_installed()
    except UserError as error:
        yield _failed(name, error)
        return
    yield Check(name, "passed", f"{config.relation} has its pointer columns")
    yield _indexes(connection, table, name)
    yield _triggers(connection, table, name)
    yield _as_configured(connection, table, f"{name}, installed", store_url, is_only=whole.has_one_table)
    yield from _stores(connection, table, f"{name}, store", store_url)
    yield _row_security(connection, table, name)
    column = config.tenant.column
    if column and not table.columns[column].not_null:
        relation, named = (table.names()[of].as_string(connection) for of in ("relation", "tenant_column"))
        yield Check(
            f"{name}, tenant",
            "warning",
            f"{column} may be NULL, and such rows belong to no partition",
            f"ALTER TABLE {relation} ALTER COLUMN {named} SET NOT NULL",
        )


def _key(connection: "Connection", table: "Table", name: str) -> Check:
    from offload_pipeline.install.preflight import check_key

    try:
        check_key(connection, table)
    except UserError as error:
        return _failed(name, error)
    return Check(name, "passed", f"[{', '.join(table.config.primary_key)}] tells rows apart")


def _indexes(connection: "Connection", table: "Table", name: str) -> Check:
    from offload_pipeline.install.installer import INDEX_TITLES

    is_valid = dict(_catalog(connection, table, "offload_indexes"))
    wrong = [title for title in INDEX_TITLES if not is_valid.get(title)]
    if wrong:
        said = ", ".join(f"{title} is {'invalid' if title in is_valid else 'missing'}" for title in wrong)
        return Check(f"{name}, indexes", "failed", said, _install(table))
    return Check(f"{name}, indexes", "passed", "all there and valid")


def _triggers(connection: "Connection", table: "Table", name: str) -> Check:
    from offload_pipeline.database.table import FIRING_MODES
    from offload_pipeline.install.ownership import TRIGGER_NAMES

    modes = dict(_catalog(connection, table, "trigger_modes"))
    for trigger in TRIGGER_NAMES:
        if trigger not in modes:
            return Check(f"{name}, trigger", "failed", f"{trigger} is missing", _install(table))
        if modes[trigger] not in FIRING_MODES:
            return Check(
                f"{name}, trigger",
                "failed",
                f"{trigger} is disabled: nothing watches over payloads",
                _install(table),
            )
    return Check(f"{name}, trigger", "passed", "there and enabled")


def _as_configured(connection: "Connection", table: "Table", name: str, store_url: str, *, is_only: bool) -> Check:
    """Whether install would still change something, say after a new threshold; only the owner can tell."""
    from offload_pipeline.install.installer import plan_table

    _, owns, role, owner = _catalog(connection, table, "access")[0]
    if not owns:
        return Check(name, "warning", f"not compared with offload.yaml: {owner} owns the table, not {role}")
    try:
        titles = [step.title for step in plan_table(connection, table, store_url, is_only=is_only)]
    except UserError as error:
        return _failed(name, error)
    if titles:
        lacking = ", ".join(title.removeprefix(f"{table.name}: ") for title in titles)
        return Check(name, "failed", f"differs from offload.yaml in: {lacking}", _install(table))
    return Check(name, "passed", "as offload.yaml says")


def _stores(connection: "Connection", table: "Table", name: str, store_url: str) -> Iterator[Check]:
    """Whether the objects of every partition are in the configured store; nothing can be said before install."""
    import psycopg

    from offload_pipeline.database.statements import statement

    bound = {"table": table.name, "store_url": store_url}
    try:
        found = connection.execute(statement("offload/queue", "other_stores", table.names()), bound).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        return
    except psycopg.errors.InsufficientPrivilege:
        state = f"{table.schema}.payload_offload_state"
        yield Check(name, "warning", f"not looked at: no permission for {state}", f"GRANT SELECT ON {state}")
        return
    if not found:
        yield Check(name, "passed", f"every partition's objects are in {store_url}")
        return
    where = "; ".join(
        f"those of tenant {tenant!r}{_and_others(count - 1)} are in {url}" for url, count, tenant in found
    )
    mend = (
        f"correct the URL, or, once every object is in {store_url} too, "
        f"set store_url in {table.schema}.payload_offload_state"
    )
    yield Check(name, "failed", f"not every partition's objects are in {store_url}: {where}", mend)


def _and_others(count: int) -> str:
    return "" if not count else f" and {count:,} other{'' if count == 1 else 's'}"


def _row_security(connection: "Connection", table: "Table", name: str) -> Check:
    hides, _, role, _ = _catalog(connection, table, "access")[0]
    if hides:
        mend = f"ALTER ROLE {role} BYPASSRLS, or connect as the owner"
        return Check(f"{name}, row security", "failed", f"policies may hide rows from {role}", mend)
    return Check(f"{name}, row security", "passed", f"hides nothing from {role}")


def _install(table: "Table") -> str:
    return f"run: offload install --table {table.name}"


def _catalog(connection: "Connection", table: "Table", name: str) -> list[tuple[Any, ...]]:
    from offload_pipeline.database.statements import statement

    relation = table.names()["relation"].as_string(connection)
    return connection.execute(statement("install/catalog", name), {"relation": relation}).fetchall()


def _store_url(config: "Config") -> str:
    from offload_pipeline.config import home

    return config.object_store.url or (home() / "objects").as_uri()


def _store(config: "Config") -> Check:
    from offload_pipeline.config import home
    from offload_pipeline.storage.object_store import open_store

    try:
        store = open_store(config.object_store, home())
        store.check()
    except OffloadError as error:
        return _failed("object store", error)
    return Check("object store", "passed", f"{store.url} stores and gives back")
