"""`offload verify`: proof that what the rows name is in the store, and is what they say; and how each table stands."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offload_pipeline.cli.options import JsonOption, TableOption, TenantOption
from offload_pipeline.cli.output import Watch
from offload_pipeline.cli.report_lines import report_lines
from offload_pipeline.cli.results import problems, verified_document, verified_line
from offload_pipeline.cli.session import Session, open_session
from offload_pipeline.cli.work import Outcome, work_through

if TYPE_CHECKING:
    from offload_pipeline.offload.claims import Partition
    from offload_pipeline.verification.smoke import SmokeResult


def register(app: typer.Typer) -> None:
    """Adds the command of this group."""
    app.command()(verify)


def verify(
    context: typer.Context,
    table: TableOption = None,
    tenant: TenantOption = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="ROWS",
            min=0,
            show_default=False,
            help="Stored payloads to read again; else verification.sample_rows.",
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Read every stored payload again.")] = False,
    no_resume: Annotated[
        bool, typer.Option("--no-resume", help="With --full: begin anew, not where an unfinished pass ended.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Check every new object, read a sample of the stored payloads, or all, again; report on each table."""
    if full and sample is not None:
        raise typer.BadParameter("leave one of them out", context, param_hint="--sample with --full")
    if no_resume and not full:
        raise typer.BadParameter("only a full pass is resumed; add --full", context, param_hint="--no-resume")
    session = open_session(as_json=as_json)

    def work(partition: "Partition", watch: Watch) -> Outcome:
        result = session.pipeline.verify(
            partition, session.run_id, sample_rows=sample, full=full, resume=not no_resume, progress=watch
        )
        return Outcome(
            is_sound=result.passed,
            line=verified_line(result),
            details=problems(result, partition),
            document=verified_document(result, partition),
        )

    return work_through(session, session.partitions(table, tenant), work, afterwards=lambda: _report(session, table))


def _report(session: Session, only: str | None) -> Outcome:
    """How the tables stand, and what the smoke checks say; a check bound to another table is left out."""
    from offload_pipeline.verification.smoke import run_smoke_check, smoke_checks

    pipeline = session.pipeline
    with pipeline.connect() as connection:
        reports = [pipeline.report(connection, found) for found in pipeline.tables(connection, only)]
    checks = [check for check in smoke_checks(pipeline.config) if only is None or check.table in (None, only)]
    results = [run_smoke_check(pipeline.database, check) for check in checks]
    return Outcome(
        is_sound=all(result.passed for result in results),
        details=[line for report in reports for line in report_lines(report)] + [_smoke_line(one) for one in results],
        document={
            "tables": [asdict(report) for report in reports],
            "smoke_checks": [_smoke_document(result) for result in results],
        },
    )


def _smoke_line(result: "SmokeResult") -> str:
    said = "passed" if result.passed else f"failed: {result.message}"
    return f"smoke check {result.check.name}: {said} ({result.seconds:.2f} s)"


def _smoke_document(result: "SmokeResult") -> dict[str, Any]:
    return {
        "name": result.check.name,
        "table": result.check.table,
        "passed": result.passed,
        "message": result.message,
        "seconds": round(result.seconds, 3),
    }
