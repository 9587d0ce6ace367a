"""`offload backfill`, `drain` and `release`: payloads out of rows into the store, and rows freed."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from offload_pipeline.cli.exit_codes import DONE
from offload_pipeline.cli.options import JsonOption, TableOption, TenantOption
from offload_pipeline.cli.output import format_bytes, format_rows
from offload_pipeline.cli.results import (
    copied_document,
    copied_line,
    problems,
    released_document,
    released_line,
    verified_document,
    verified_line,
)
from offload_pipeline.cli.session import Session, open_session
from offload_pipeline.cli.work import Outcome, work_through
from offload_pipeline.errors import UserError

if TYPE_CHECKING:
    from offload_pipeline.offload.claims import Partition
    from offload_pipeline.offload.copier import Progress

# Each row of a batch is an entry in the server's one shared lock table: the bound of offload.batch_rows.
LARGEST_BATCH_ROWS = 1000


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and write nothing.")] = False,
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
    as_json: JsonOption = False,
) -> int:
    """Copy, verify and release one tenant of one table."""
    session = open_session(as_json=as_json)
    partitions = session.partitions(table, tenant)
    if null_after_upload is not None:
        partitions = [with_ending(one, clears=null_after_upload == "true") for one in partitions]
    if dry_run:
        return _count(session, table, tenant, partitions)
    return _offload(session, partitions, batch_rows=batch_size, resumes=not no_resume)


def drain(table: TableOption = None, tenant: TenantOption = None, as_json: JsonOption = False) -> int:
    """Copy, verify and release everything that is pending."""
    session = open_session(as_json=as_json)
    return _drain(session, session.partitions(table, tenant))


def release(
    table: TableOption = None,
    tenant: TenantOption = None,
    primary_key: Annotated[
        str | None,
        typer.Option(
            "--primary-key", metavar="KEY", show_default=False, help="One row of --table; a,b for two columns."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Free the payloads that verification has passed."""
    if primary_key is not None and table is None:
        raise UserError("--primary-key needs the table it is in; add --table TABLE")
    session = open_session(as_json=as_json)

    def work(partition: "Partition", progress: "Progress") -> Outcome:
        key = None if primary_key is None else partition.table.parse_key(primary_key)
        result = session.pipeline.release(partition, session.run_id, key=key, progress=progress)
        return Outcome(is_sound=not result.rows_failed, line=released_line(result), document=released_document(result))

    return work_through(session, session.partitions(table, tenant), work)


def with_ending(partition: "Partition", *, clears: bool) -> "Partition":
    """The partition with `after_copy` clear or keep. UserError where NOT NULL forbids clearing."""
    table = partition.table
    if clears and table.columns[table.config.payload].not_null:
        raise UserError(
            f"{table.name}: {table.config.payload} is NOT NULL and cannot be cleared; "
            f"ALTER COLUMN {table.config.payload} DROP NOT NULL, or leave --null-after-upload out"
        )
    config = table.config.model_copy(update={"after_copy": "clear" if clears else "keep"})
    return dataclasses.replace(partition, table=dataclasses.replace(table, config=config))


def _offload(session: Session, partitions: Sequence["Partition"], *, batch_rows: int | None, resumes: bool) -> int:
    """What a backfill does: the rows older than the trigger, then the pending queue."""
    return _drain(session, partitions, batch_rows=batch_rows, unseen=True, resume=resumes)


def _count(session: Session, table: str, tenant: str, partitions: Sequence["Partition"]) -> int:
    from offload_pipeline.offload.unseen import count_unseen

    with session.pipeline.connect() as connection:
        unseen = [count_unseen(connection, partition) for partition in partitions]
    found = [*unseen, *(session.pending(partition) for partition in partitions)]
    rows, payload_bytes = sum(one[0] for one in found), sum(one[1] for one in found)
    if rows:
        would = f"would copy {format_rows(rows)} ({format_bytes(payload_bytes)})"
        session.output.line(f"{partitions[0]}: {would}")
    else:
        session.output.line("nothing to do")
    counted = {"pending_rows": rows, "pending_bytes": payload_bytes}
    session.output.document({"dry_run": True, "table": table, "tenant": tenant} | counted)
    return DONE


def _drain(
    session: Session, partitions: Sequence["Partition"], *, batch_rows: int | None = None,
    unseen: bool = False, resume: bool = True,
) -> int:  # fmt: skip
    session.pipeline.store.check()

    def work(partition: "Partition", progress: "Progress") -> Outcome:
        result = session.pipeline.drain(
            partition, session.run_id, batch_rows=batch_rows, unseen=unseen, resume=resume, progress=progress
        )
        lines = (copied_line(result.copied), verified_line(result.verified), released_line(result.released))
        return Outcome(
            is_sound=result.is_sound,
            line="; ".join(lines),
            details=problems(result.verified, partition),
            document={
                "copied": copied_document(result.copied),
                "verified": verified_document(result.verified, partition),
                "released": released_document(result.released),
            },
            ends_the_run=result.copied.stopped_by is not None,
        )

    return work_through(session, partitions, work, total_rows=session.pending_rows)
