"""`offload backfill`, `drain` and `release`: payloads out of rows into the store, and rows freed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from offload_pipeline.cli.exit_codes import DONE
from offload_pipeline.cli.options import JsonOption, PrimaryKeyOption, TableOption, TenantOption
from offload_pipeline.cli.output import Watch
from offload_pipeline.cli.restore import held_rows, lift_holds
from offload_pipeline.cli.results import (
    copied_document,
    copied_line,
    dry_run_document,
    dry_run_line,
    problems,
    released_document,
    released_line,
    verified_document,
    verified_line,
)
from offload_pipeline.cli.session import Session, open_session
from offload_pipeline.cli.work import Outcome, work_through

if TYPE_CHECKING:
    from offload_pipeline.offload.claims import Partition

# Each row of a batch is an entry in the server's one shared lock table: the bound of offload.batch_rows.
LARGEST_BATCH_ROWS = 1000
PASSED_OVER = "rows were with another worker, held by the application or refused: run it again, to scan them"


def register(app: typer.Typer) -> None:
    """Adds the commands of this group."""
    for command in (backfill, drain, release):
        app.command()(command)


def backfill(
    table: Annotated[str, typer.Option("--table", metavar="TABLE", help="A table of offload.yaml.")],
    tenant: Annotated[str, typer.Option("--tenant", metavar="TENANT", help="The tenant; '' is one too.")],
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="ROWS",
            min=1,
            max=LARGEST_BATCH_ROWS,
            show_default=False,
            help="Rows per transaction; else offload.batch_rows.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count and forecast, and write nothing.")] = False,
    no_resume: Annotated[
        bool, typer.Option("--no-resume", help="Begin at the first row, not at the checkpoint.")
    ] = False,
    null_after_upload: Annotated[
        Literal["true", "false"] | None,
        typer.Option(
            "--null-after-upload",
            show_default=False,
            help="Whether the row's payload is cleared once it is verified; else as after_copy says.",
        ),
    ] = None,
    include_restored: Annotated[
        bool, typer.Option("--include-restored", help="Move restored rows again, too, which are otherwise held.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Copy, verify and release one tenant of one table."""
    from offload_pipeline.offload.ending import with_ending

    session = open_session(as_json=as_json)
    clears = None if null_after_upload is None else null_after_upload == "true"
    partitions = [with_ending(one, null_after_upload=clears) for one in session.partitions(table, tenant)]
    if dry_run:
        held = held_rows(session, partitions) if include_restored else {}
        return _dry_run(session, (table, tenant), partitions, resume=not no_resume, held=held)
    return _drain(
        session, partitions, batch_rows=batch_size, unseen=True, resume=not no_resume, lifts_holds=include_restored
    )


def drain(
    table: TableOption = None,
    tenant: TenantOption = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed rows at once, those given up as well.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Copy, verify and release everything that is pending."""
    session = open_session(as_json=as_json)
    if retry_failed:
        _make_due(session, table, tenant)
    partitions = session.partitions(table, tenant)
    # Who names a tenant gets a pass, with its sample of what is stored; else the idle ones would be most of the work.
    busy = partitions if tenant is not None else session.with_work(partitions)
    return _drain(session, busy, idle=len(partitions) - len(busy))


def _make_due(session: Session, table: str | None, tenant: str | None) -> None:
    from offload_pipeline.offload.failures import retry_failed

    with session.pipeline.connect() as connection:
        due = sum(retry_failed(connection, one, tenant) for one in session.pipeline.tables(connection, table))
    session.output.line(f"failures to be tried again: {due:,}")


def release(
    table: TableOption = None,
    tenant: TenantOption = None,
    primary_key: PrimaryKeyOption = None,
    as_json: JsonOption = False,
) -> int:
    """Free the payloads that verification has passed."""
    session = open_session(as_json=as_json)
    partitions, key = session.chosen(table, tenant, primary_key)

    def work(partition: "Partition", watch: Watch) -> Outcome:
        result = session.pipeline.release(partition, session.run_id, key=key, progress=watch, announce=watch.paused)
        return Outcome(is_sound=not result.rows_failed, line=released_line(result), document=released_document(result))

    return work_through(session, partitions, work)


def _dry_run(
    session: Session, asked_for: tuple[str, str], partitions: Sequence["Partition"],
    *, resume: bool, held: dict[str, int],
) -> int:  # fmt: skip
    from offload_pipeline.offload.ahead import DryRun

    found = DryRun()
    for partition in partitions:
        with session.output.progress(
            str(partition), session.rows_ahead(partition, unseen=True, resume=resume)
        ) as watch:
            found += session.pipeline.dry_run(partition, unseen=True, resume=resume, progress=watch)
    session.output.line(f"{partitions[0]}: {dry_run_line(found)}" if partitions else "nothing to do")
    table, tenant = asked_for
    session.output.document({"dry_run": True, "table": table, "tenant": tenant} | dry_run_document(found) | held)
    return DONE


def _drain(
    session: Session, partitions: Sequence["Partition"], *, batch_rows: int | None = None,
    unseen: bool = False, resume: bool = True, lifts_holds: bool = False, idle: int = 0,
) -> int:  # fmt: skip
    session.pipeline.store.check()

    def work(partition: "Partition", watch: Watch) -> Outcome:
        lifted = lift_holds(session, partition) if lifts_holds else {}
        result = session.pipeline.drain(
            partition, session.run_id, batch_rows=batch_rows, unseen=unseen, resume=resume,
            steps=watch.step, announce=watch.paused,
        )  # fmt: skip
        lines = (copied_line(result.copied), verified_line(result.verified), released_line(result.released))
        # What has stopped a scan is said already.
        passed_over = [] if result.scan_is_complete or result.copied.stopped_by else [PASSED_OVER]
        return Outcome(
            is_sound=result.is_sound,
            line="; ".join(lines),
            details=[*problems(result.verified, partition), *passed_over],
            document={
                "copied": copied_document(result.copied),
                "verified": verified_document(result.verified, partition),
                "released": released_document(result.released),
            }
            | ({"scan_complete": result.scan_is_complete} if unseen else {})
            | lifted,
            stopped_by=result.copied.stopped_by,
        )

    def ahead(partition: "Partition") -> int | None:
        return session.rows_ahead(partition, unseen=unseen, resume=resume)

    said = [f"{idle:,} {'partition' if idle == 1 else 'partitions'} with nothing to do"] if idle and partitions else []
    return work_through(
        session, partitions, work, total_rows=ahead,
        afterwards=lambda: Outcome(is_sound=True, details=said, document={"idle_partitions": idle}),
    )  # fmt: skip
