"""`offload expire` and `offload gc`: what comes to its end. Both only report until told to delete."""

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from offload_pipeline.cli.exit_codes import DONE, MISTAKE, UNSOUND
from offload_pipeline.cli.options import JsonOption, TableOption, TenantOption
from offload_pipeline.cli.retention_results import (
    erased_document,
    erased_lines,
    expired_document,
    expired_line,
    garbage_document,
    garbage_lines,
    listed_document,
    listed_line,
)
from offload_pipeline.cli.session import Session, open_session
from offload_pipeline.cli.work import Outcome, work_through
from offload_pipeline.errors import OffloadError, PermanentError, StoreDeniedError, TransientError

if TYPE_CHECKING:
    from offload_pipeline.cli.output import Watch
    from offload_pipeline.offload.claims import Partition
    from offload_pipeline.retention.passes import Retention

DeleteOption = Annotated[bool, typer.Option("--delete", help="Do it; without this, only say what would be done.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this group."""
    for command in (expire, gc):
        app.command()(command)


def expire(
    table: TableOption = None, tenant: TenantOption = None, delete: DeleteOption = False, as_json: JsonOption = False
) -> int:
    """Give up payloads past their table's object_retention, and delete their objects after the grace."""
    session = open_session(as_json=as_json)
    retention = _retention(session)
    with session.pipeline.connect() as connection:
        partitions = retention.expirable(connection, table, tenant)
        if tenant is not None and not partitions:
            session.refuse_unknown(connection, retention.tables(connection, table), tenant)

    def work(partition: "Partition", watch: "Watch") -> Outcome:
        result = retention.expire(partition, session.run_id, delete=delete, progress=watch)
        return Outcome(
            is_sound=not result.rows_failed,
            line=expired_line(result, partition, delete=delete),
            document=expired_document(result),
        )

    def objects() -> Outcome:
        try:
            result = retention.delete_expired(session.run_id, table=table, tenant=tenant, delete=delete)
        except StoreDeniedError:
            raise
        except (TransientError, PermanentError) as error:
            document = {"class": type(error).__name__, "message": str(error)}
            return Outcome(is_sound=False, details=[f"objects: failed: {error}"], document={"error": document})
        grace = session.pipeline.config.retention.grace
        return Outcome(
            is_sound=not result.objects_failed and not result.stopped_by,
            details=[listed_line(result, grace, delete=delete), *([] if delete else [_how("offload expire")])],
            document={"delete": delete, "objects": listed_document(result)},
            stopped_by=result.stopped_by,
        )

    return work_through(session, partitions, work, afterwards=objects)


def gc(
    context: typer.Context,
    table: TableOption = None,
    tenant: TenantOption = None,
    delete: DeleteOption = False,
    max_orphan_share: Annotated[
        float | None,
        typer.Option(
            "--max-orphan-share",
            metavar="SHARE",
            min=0,
            max=1,
            show_default=False,
            help="Leave a table alone of which more look orphaned; else retention.max_orphan_share.",
        ),
    ] = None,
    erase_tenant: Annotated[
        str | None,
        typer.Option(
            "--erase-tenant",
            metavar="TENANT",
            show_default=False,
            help="Instead: everything that the store has of this tenant, whatever its age.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Look for objects that no row names, and delete those past the grace."""
    if erase_tenant is not None and (table, tenant, max_orphan_share) != (None, None, None):
        raise typer.BadParameter("erases the tenant in every table; leave the others out", context,
                                 param_hint="--erase-tenant with --table, --tenant or --max-orphan-share")  # fmt: skip
    session = open_session(as_json=as_json)
    if erase_tenant is not None:
        return _erase(session, erase_tenant, delete=delete)
    with session.output.progress("listing objects", None) as watch:
        result = _retention(session).collect_garbage(
            session.run_id, table=table, tenant=tenant, delete=delete, max_orphan_share=max_orphan_share,
            progress=watch,
        )  # fmt: skip
    if tenant is not None and not any(found.objects for found in result.tables.values()):
        _refuse_unknown(session, table, tenant)
    is_sound = not result.has_failed and not (delete and result.stopped)
    for line, is_loud in garbage_lines(result, delete=delete):
        session.output.line(line, style="red" if is_loud else "")
    if not delete:
        session.output.line(_how("offload gc"))
    session.output.document({"run_id": session.run_id, "sound": is_sound, "delete": delete} | garbage_document(result))
    return _code(result.stopped_by, is_sound=is_sound)


def _erase(session: Session, tenant: str, *, delete: bool) -> int:
    with session.output.progress(f"erasing {tenant!r}", None) as watch:
        result = _retention(session).erase(tenant, session.run_id, delete=delete, progress=watch)
    if result.is_empty:
        _refuse_unknown(session, None, tenant, erased=True)
    is_sound = not delete or result.is_complete
    for line in erased_lines(result, tenant, delete=delete):
        session.output.line(line)
    if not delete:
        session.output.line(_how(f"offload gc --erase-tenant {shlex.quote(tenant)}"))
    elif not is_sound:
        session.output.complain("not complete; run it again")
    head = {"run_id": session.run_id, "sound": is_sound, "delete": delete, "tenant": tenant}
    session.output.document(head | erased_document(result))
    return _code(result.stopped_by, is_sound=is_sound)


def _code(stopped_by: OffloadError | None, *, is_sound: bool) -> int:
    if isinstance(stopped_by, StoreDeniedError):
        return MISTAKE
    return DONE if is_sound else UNSOUND


def _refuse_unknown(session: Session, table: str | None, tenant: str, *, erased: bool = False) -> None:
    """For a tenant of whom nothing was found, not even strays; but repeating an erasure is no mistake (`erased`)."""
    from offload_pipeline.offload.unknown_tenant import was_erased

    with session.pipeline.connect() as connection:
        tables = _retention(session).tables(connection, table)
        if not (erased and was_erased(connection, tables, tenant)):
            session.refuse_unknown(connection, tables, tenant)


def _how(command: str) -> str:
    return f"nothing was changed; to do it: {command} --delete"


def _retention(session: Session) -> "Retention":
    from offload_pipeline.retention.passes import Retention

    return Retention(session.pipeline)
