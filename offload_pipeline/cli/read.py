"""`offload get`: one payload, byte for byte, from wherever it is, or an address to GET it from."""

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from offload_pipeline.cli.exit_codes import DONE
from offload_pipeline.cli.options import JsonOption
from offload_pipeline.cli.output import to_json, write
from offload_pipeline.cli.session import Session, open_session
from offload_pipeline.errors import UserError

if TYPE_CHECKING:
    from offload_pipeline.offload.reader import ReadPayload


def register(app: typer.Typer) -> None:
    """Adds the command of this group. A key may begin with `-`, as negative numbers do."""
    app.command(context_settings={"ignore_unknown_options": True})(get)


def get(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table of offload.yaml.")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="The primary key; a,b for two columns.")],
    url: Annotated[
        bool, typer.Option("--url", help="Print an address to GET the gzipped payload from, instead of the payload.")
    ] = False,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="TIME", show_default=False, help="How long --url is good for; else 1h."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Print one payload, from its row or from storage, byte for byte."""
    if expires is not None and not url:
        raise UserError("--expires needs the address that it is for; add --url")
    session = open_session(as_json=as_json)
    if url:
        return _print_url(session, table, key, _duration(expires or "1h"))
    return _print_payload(session, table, key)


def _print_payload(session: Session, table: str, key: str) -> int:
    from offload_pipeline.offload.reader import PayloadReader

    with PayloadReader(session.pipeline) as reader:
        read = reader.get(table, key)
    if session.output.as_json:
        with session.pipeline.connect() as connection:
            payload_type = session.pipeline.table(connection, table).payload_type
        write(_document(table, key, read, payload_type))
    elif read.payload is not None:
        write(read.payload)
    return DONE


def _print_url(session: Session, table: str, key: str, expires_in: timedelta) -> int:
    from offload_pipeline.offload.reader import PayloadReader

    with PayloadReader(session.pipeline) as reader:
        address = reader.url(table, key, expires_in)
    session.output.line(address)
    expires_in_seconds = int(expires_in.total_seconds())
    session.output.document(
        {"table": table, "primary_key": key, "url": address, "expires_in_seconds": expires_in_seconds}
    )
    return DONE


def _duration(text: str) -> timedelta:
    from offload_pipeline.config import parse_duration

    try:
        found = parse_duration(text)
    except ValueError as error:
        raise UserError(f"--expires {error}") from None
    assert isinstance(found, timedelta)  # noqa: S101 - what a text becomes, or the error
    return found


def _document(table: str, key: str, read: "ReadPayload", payload_type: str) -> bytes:
    """JSON with the payload spliced in as it is: a parse would turn 1.10 or 1e400 into something else."""
    head = {
        "table": table,
        "primary_key": key,
        "source": read.source,
        "status": read.status,
        "object_key": read.object_key,
        "sha256": read.sha256,
        "size_bytes": None if read.payload is None else len(read.payload),
    }
    if read.payload is None:
        payload = b"null"
    elif payload_type == "text":
        payload = json.dumps(read.payload.decode(), ensure_ascii=False).encode()
    else:
        payload = read.payload
    return to_json(head).removesuffix(b"}") + b', "payload": ' + payload + b"}\n"
