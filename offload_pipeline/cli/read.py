"""`offload get`: one payload, byte for byte, from wherever it is."""

import hashlib
import json
from typing import TYPE_CHECKING, Annotated

import typer

from offload_pipeline.cli.exit_codes import DONE
from offload_pipeline.cli.options import JsonOption
from offload_pipeline.cli.output import to_json, write
from offload_pipeline.cli.session import Session, open_session
from offload_pipeline.errors import UserError

if TYPE_CHECKING:
    from offload_pipeline.database.table import Table
    from offload_pipeline.offload.reader import ReadPayload


def register(app: typer.Typer) -> None:
    """Adds the command of this group. A key may begin with `-`, as negative numbers do."""
    app.command(context_settings={"ignore_unknown_options": True})(get)


def get(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table of offload.yaml.")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="The primary key; a,b for two columns.")],
    as_json: JsonOption = False,
) -> int:
    """Print one payload, from its row or from storage, byte for byte."""
    session = open_session(as_json=as_json)
    found, read = _read(session, table, key)
    if as_json:
        write(_document(found, key, read))
    elif read.payload is not None:
        write(read.payload)
    return DONE


def _read(session: Session, name: str, key: str) -> tuple["Table", "ReadPayload"]:
    from psycopg import DataError

    from offload_pipeline.database.connection import server_message
    from offload_pipeline.offload.reader import get_payload

    with session.pipeline.connect() as connection:
        table = session.pipeline.table(connection, name)
        try:
            return table, get_payload(connection, session.pipeline.store, table, table.parse_key(key))
        except DataError as error:
            types = ", ".join(f"{column.name} {column.type}" for column in table.key_columns)
            raise UserError(f"{name}: {key!r} is no key ({server_message(error)}); the key is {types}") from None


def _document(table: "Table", key: str, read: "ReadPayload") -> bytes:
    """JSON with the payload spliced in as it is: a parse would turn 1.10 or 1e400 into something else."""
    head = {
        "table": table.name,
        "primary_key": key,
        "source": read.source,
        "status": read.status,
        "object_key": read.object_key,
        "sha256": None if read.payload is None else hashlib.sha256(read.payload).hexdigest(),
        "size_bytes": None if read.payload is None else len(read.payload),
    }
    if read.payload is None:
        payload = b"null"
    elif table.payload_type == "text":
        payload = json.dumps(read.payload.decode(), ensure_ascii=False).encode()
    else:
        payload = read.payload
    return to_json(head).removesuffix(b"}") + b', "payload": ' + payload + b"}\n"
