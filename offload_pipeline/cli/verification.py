"""`offload verify`: proof that what the rows name is in the store, and is what they say."""

from typing import TYPE_CHECKING, Annotated

import typer

from offload_pipeline.cli.options import JsonOption, TableOption, TenantOption
from offload_pipeline.cli.results import problems, verified_document, verified_line
from offload_pipeline.cli.session import open_session
from offload_pipeline.cli.work import Outcome, work_through

if TYPE_CHECKING:
    from offload_pipeline.offload.claims import Partition
    from offload_pipeline.offload.copier import Progress


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
    as_json: JsonOption = False,
) -> int:
    """Check every new object, and read a sample of the stored payloads, or all, again."""
    if full and sample is not None:
        raise typer.BadParameter("leave one of them out", context, param_hint="--sample with --full")
    session = open_session(as_json=as_json)

    def work(partition: "Partition", progress: "Progress") -> Outcome:
        result = session.pipeline.verify(partition, session.run_id, sample_rows=sample, full=full, progress=progress)
        return Outcome(
            is_sound=result.passed,
            line=verified_line(result),
            details=problems(result, partition),
            document=verified_document(result, partition),
        )

    return work_through(session, session.partitions(table, tenant), work)
