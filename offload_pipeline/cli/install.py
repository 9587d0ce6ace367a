"""`offload install` and `uninstall`: what the database must hold before a payload moves, and its removal."""

from typing import TYPE_CHECKING, Annotated

import typer

from offload_pipeline.cli.exit_codes import DONE
from offload_pipeline.cli.options import JsonOption, TableOption
from offload_pipeline.cli.output import Output
from offload_pipeline.cli.session import open_session

if TYPE_CHECKING:
    from psycopg import Connection

    from offload_pipeline.install.installer import Step
    from offload_pipeline.pipeline import Pipeline

NOTHING_TO_DO = "-- nothing to do: everything is installed as configured"
NOTHING_TO_REMOVE = "-- nothing to do: nothing is installed"


def register(app: typer.Typer) -> None:
    """Adds the commands of this group."""
    for command in (install, uninstall):
        app.command()(command)


def install(
    table: TableOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL, and run nothing.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Add what the database still lacks: columns, trigger, indexes, bookkeeping."""
    from offload_pipeline.install.installer import run, take_install_lock

    session = open_session(as_json=as_json)
    with session.pipeline.connect() as connection:
        if not dry_run:
            take_install_lock(connection)
        steps = plan(session.pipeline, connection, table)
        documents = [{"title": step.title, "sql": step.as_script(connection)} for step in steps]
        for step, document in zip(steps, documents, strict=True):
            if not dry_run:
                run(connection, step)
            session.output.line(document["sql"] if dry_run else f"installed {step.title}")
    if not steps:
        _say_nothing_to_do(session.output, NOTHING_TO_DO, dry_run=dry_run)
    session.output.document({"dry_run": dry_run, "steps": documents})
    return DONE


def uninstall(
    table: TableOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL, and run nothing.")] = False,
    drop_columns: Annotated[
        bool, typer.Option("--drop-columns", help="Drop the pointer columns and the table's bookkeeping as well.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Switch offloading off: triggers, functions and indexes go. Refused while payloads are in storage."""
    from offload_pipeline.install.installer import take_install_lock
    from offload_pipeline.install.uninstaller import carry_out, plan_uninstall_all

    session = open_session(as_json=as_json)
    names = [table] if table is not None else [one.name for one in session.pipeline.config.tables]
    with session.pipeline.connect() as connection:
        if not dry_run:
            take_install_lock(connection)
        tables = [session.pipeline.inspect(connection, name) for name in names]
        is_only = len(session.pipeline.config.tables) == 1
        steps = plan_uninstall_all(connection, tables, drop_columns=drop_columns, is_only=is_only)
        documents = [{"title": step.title, "sql": step.as_script(connection)} for step in steps]
        for step, document in zip(steps, documents, strict=True):
            if not dry_run:
                carry_out(connection, step)
            session.output.line(document["sql"] if dry_run else f"removed {step.title}")
    if not steps:
        _say_nothing_to_do(session.output, NOTHING_TO_REMOVE, dry_run=dry_run)
    session.output.document({"dry_run": dry_run, "steps": documents})
    return DONE


def plan(pipeline: "Pipeline", connection: "Connection", table: str | None) -> list["Step"]:
    """Every step that is still lacking, all tables examined before the first step runs."""
    from offload_pipeline.install.installer import plan_all

    names = [table] if table is not None else [one.name for one in pipeline.config.tables]
    tables = [pipeline.inspect(connection, name) for name in names]
    is_only = len(pipeline.config.tables) == 1
    return plan_all(connection, tables, pipeline.database.schema, pipeline.store.url, is_only=is_only)


def _say_nothing_to_do(output: Output, text: str, *, dry_run: bool) -> None:
    output.line(text if dry_run else text.removeprefix("-- "))
