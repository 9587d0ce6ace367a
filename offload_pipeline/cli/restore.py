"""`offload restore`: payloads back from the store into their rows, where they then stay."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from offload_pipeline.cli.exit_codes import one_line
from offload_pipeline.cli.options import JsonOption, PrimaryKeyOption, TableOption, TenantOption
from offload_pipeline.cli.output import Watch, format_bytes, format_rows, shows_progress
from offload_pipeline.cli.session import Session, open_session
from offload_pipeline.cli.work import Outcome, work_through

if TYPE_CHECKING:
    from offload_pipeline.offload.claims import Partition
    from offload_pipeline.offload.failures import Failure
    from offload_pipeline.offload.restore import RestoreResult


def register(app: typer.Typer) -> None:
    """Adds the command of this group."""
    app.command()(restore)


def restore(
    table: TableOption = None,
    tenant: TenantOption = None,
    primary_key: PrimaryKeyOption = None,
    as_json: JsonOption = False,
) -> int:
    """Put payloads back into their rows, and keep them there until they are written anew."""
    session = open_session(as_json=as_json)
    partitions, key = session.chosen(table, tenant, primary_key)

    def work(partition: "Partition", watch: Watch) -> Outcome:
        result = session.pipeline.restore(partition, session.run_id, key=key, progress=watch, announce=watch.paused)
        return Outcome(
            is_sound=result.is_sound,
            line=restored_line(result),
            details=[f"failed {one['primary_key']}: {one['problem']}" for one in _failed(result.failures, partition)],
            document=restored_document(result, partition),
            stopped_by=result.stopped_by,
        )

    def ahead(partition: "Partition") -> int | None:
        return session.pipeline.rows_to_restore(partition) if key is None and shows_progress() else None

    def left_behind() -> Outcome:
        return _rows_without_tenant(session, table) if tenant is None and key is None else Outcome(is_sound=True)

    return work_through(session, partitions, work, total_rows=ahead, afterwards=left_behind)


def _rows_without_tenant(session: Session, table: str | None) -> Outcome:
    """What a restore of everything cannot reach, and says aloud."""
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
    document = {"without_tenant": [{"table": one.name, "rows": rows} for one, rows in found]}
    return Outcome(is_sound=not found, document=document)


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
    found = [session.pipeline.held(partition) for partition in partitions]
    rows, payload_bytes = sum(one[0] for one in found), sum(one[1] for one in found)
    session.output.line(
        f"of restored rows, {format_rows(rows)} ({format_bytes(payload_bytes)}) would be held no longer"
    )
    return {"held_rows": rows, "held_bytes": payload_bytes}
