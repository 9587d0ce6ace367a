"""`offload restore`: payloads back from the store into their rows, where they then stay."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offload_pipeline.cli.exit_codes import UNSOUND, one_line
from offload_pipeline.cli.options import JsonOption, TableOption, TenantOption
from offload_pipeline.cli.output import Watch, format_bytes, format_rows, shows_progress
from offload_pipeline.cli.session import Session, open_session
from offload_pipeline.cli.work import Outcome, work_through
from offload_pipeline.errors import UserError

if TYPE_CHECKING:
    from offload_pipeline.database.table import Key
    from offload_pipeline.offload.claims import Partition
    from offload_pipeline.offload.failures import Failure
    from offload_pipeline.offload.restore import RestoreResult


def register(app: typer.Typer) -> None:
    """Adds the command of this group."""
    app.command()(restore)


def restore(
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
    """Put payloads back into their rows, and keep them there until they are written anew."""
    if primary_key is not None and table is None:
        raise UserError("--primary-key needs the table it is in; add --table TABLE")
    session = open_session(as_json=as_json)
    partitions, key = _chosen(session, table, tenant, primary_key)

    def work(partition: "Partition", watch: Watch) -> Outcome:
        result = session.pipeline.restore(partition, session.run_id, key=key, progress=watch, announce=watch.paused)
        return Outcome(
            is_sound=result.is_sound,
            line=restored_line(result),
            details=[f"failed {one['primary_key']}: {one['problem']}" for one in _failed(result.failures, partition)],
            document=restored_document(result, partition),
            ends_the_run=result.stopped_by is not None,
        )

    def ahead(partition: "Partition") -> int | None:
        return session.pipeline.rows_to_restore(partition) if key is None and shows_progress() else None

    code = work_through(session, partitions, work, total_rows=ahead)
    is_whole = tenant is None and key is None
    return UNSOUND if is_whole and _complain_of_rows_without_tenant(session, table) else code


def _chosen(
    session: Session, table: str | None, tenant: str | None, primary_key: str | None
) -> tuple[Sequence["Partition"], "Key | None"]:
    if table is None or primary_key is None:
        return session.partitions(table, tenant), None
    partition, key = session.pipeline.row(table, primary_key)
    return ([partition] if tenant in (None, partition.tenant) else []), key


def _complain_of_rows_without_tenant(session: Session, table: str | None) -> bool:
    from offload_pipeline.offload.stored_rows import count_without_tenant

    with session.pipeline.connect() as connection:
        tables = session.pipeline.tables(connection, table)
        found = [(one, rows) for one in tables if (rows := count_without_tenant(connection, one))]
    for one, rows in found:
        column = one.config.tenant.column
        session.output.complain(
            f"{one.name}: {format_rows(rows)} in storage with {column} NULL belong to no partition; "
            f"fill {column} in, then repeat"
        )
    return bool(found)


def restored_line(result: "RestoreResult") -> str:
    """`restored 120 rows (18.0 MB)`, and what else there is to say."""
    text = f"restored {format_rows(result.rows_restored)}"
    text += f" ({format_bytes(result.payload_bytes)})" if result.rows_restored else ""
    if result.pointers_dropped:
        text += f", dropped the pointers of {format_rows(result.pointers_dropped)} that had their payload still"
    text += f", {result.rows_left:,} locked or changed: run it again" if result.rows_left else ""
    text += f", {result.rows_failed:,} failed" if result.rows_failed else ""
    return text + (f", stopped: {one_line(str(result.stopped_by))}" if result.stopped_by else "")


def restored_document(result: "RestoreResult", partition: "Partition") -> dict[str, Any]:
    """The numbers of one restoring pass, and the first rows that failed."""
    return {
        "rows_restored": result.rows_restored,
        "payload_bytes": result.payload_bytes,
        "pointers_dropped": result.pointers_dropped,
        "rows_left": result.rows_left,
        "rows_failed": result.rows_failed,
        "seconds": round(result.seconds, 3),
        "stopped_by": one_line(str(result.stopped_by)) if result.stopped_by else None,
        "failed": _failed(result.failures, partition),
    }


def _failed(failures: Sequence["Failure"], partition: "Partition") -> list[dict[str, str]]:
    return [
        {
            "primary_key": partition.table.key_text(failure.key),
            "error_class": type(failure.error).__name__,
            "problem": one_line(str(failure.error)),
        }
        for failure in failures
    ]


def lift_holds(session: Session, partition: "Partition") -> dict[str, int]:
    """Makes restored rows pending, says so, and gives the numbers."""
    lifted = session.pipeline.lift_holds(partition, session.run_id)
    left = f", {lifted.rows_left:,} locked or changed: run it again" if lifted.rows_left else ""
    session.output.line(
        f"{partition}: {format_rows(lifted.rows)} ({format_bytes(lifted.payload_bytes)}) held no longer{left}"
    )
    return {"rows_held_no_longer": lifted.rows, "rows_still_held": lifted.rows_left}


def held_rows(session: Session, partitions: Sequence["Partition"]) -> dict[str, int]:
    """What `lift_holds` would make pending; says so, and writes nothing."""
    from offload_pipeline.offload.restore import count_held

    with session.pipeline.connect() as connection:
        found = [count_held(connection, partition) for partition in partitions]
    rows, payload_bytes = sum(one[0] for one in found), sum(one[1] for one in found)
    session.output.line(
        f"of restored rows, {format_rows(rows)} ({format_bytes(payload_bytes)}) would be held no longer"
    )
    return {"held_rows": rows, "held_bytes": payload_bytes}
