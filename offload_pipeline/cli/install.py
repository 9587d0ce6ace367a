"""`offload install` and `uninstall`: what the database must hold before a payload moves, and its removal."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from offload_pipeline.cli.exit_codes import DONE
from offload_pipeline.cli.options import JsonOption, TableOption
from offload_pipeline.cli.session import Session, open_session

if TYPE_CHECKING:
    from psycopg import Connection

    from offload_pipeline.database.table import Table
    from offload_pipeline.install.installer import Step

NOTHING_TO_DO = "nothing to do: everything is installed as configured"
NOTHING_TO_REMOVE = "nothing to do: nothing is installed"

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the SQL, and run nothing.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this group."""
    for command in (install, uninstall):
        app.command()(command)


def install(table: TableOption = None, dry_run: DryRunOption = False, as_json: JsonOption = False) -> int:
    """Add what the database still lacks: columns, trigger, indexes, bookkeeping."""
    from offload_pipeline.install.installer import plan_all, run

    session = open_session(as_json=as_json)
    pipeline = session.pipeline

    def plan(connection: "Connection", tables: Sequence["Table"]) -> list["Step"]:
        is_only = pipeline.config.has_one_table
        return plan_all(connection, tables, pipeline.database.schema, pipeline.store.url, is_only=is_only)

    return _carry_out(session, table, plan, run, "installed", NOTHING_TO_DO, dry_run=dry_run)


def uninstall(
    table: TableOption = None,
    dry_run: DryRunOption = False,
    drop_columns: Annotated[
        bool, typer.Option("--drop-columns", help="Drop the pointer columns and the table's bookkeeping as well.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Switch offloading off: triggers, functions and indexes go. Refused while payloads are in storage."""
    from offload_pipeline.install.uninstaller import carry_out, plan_uninstall_all

    session = open_session(as_json=as_json)

    def plan(connection: "Connection", tables: Sequence["Table"]) -> list["Step"]:
        return plan_uninstall_all(connection, tables, drop_columns=drop_columns)

    return _carry_out(session, table, plan, carry_out, "removed", NOTHING_TO_REMOVE, dry_run=dry_run)


def _carry_out(
    session: Session,
    only: str | None,
    plan: Callable[["Connection", Sequence["Table"]], list["Step"]],
    run: Callable[["Connection", "Step"], None],
    done: str,
    nothing_to_do: str,
    *,
    dry_run: bool,
) -> int:
    """Plans, all tables examined before the first step runs, then runs each step and says so, or prints its SQL."""
    from offload_pipeline.install.installer import take_install_lock

    with session.pipeline.connect() as connection:
        if not dry_run:
            take_install_lock(connection)
        steps = plan(connection, session.pipeline.inspect_all(connection, only))
        documents = [{"title": step.title, "sql": step.as_script(connection)} for step in steps]
        for step, document in zip(steps, documents, strict=True):
            if not dry_run:
                run(connection, step)
            session.output.line(document["sql"] if dry_run else f"{done} {step.title}")
    if not steps:
        session.output.line(f"-- {nothing_to_do}" if dry_run else nothing_to_do)
    session.output.document({"dry_run": dry_run, "steps": documents})
    return DONE
