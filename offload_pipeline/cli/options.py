"""The options that several commands share, so that they read the same everywhere."""

from typing import Annotated

import typer

TableOption = Annotated[
    str | None,
    typer.Option("--table", metavar="TABLE", show_default=False, help="One table of offload.yaml; else all."),
]
TenantOption = Annotated[
    str | None,
    typer.Option("--tenant", metavar="TENANT", show_default=False, help="One tenant; else all."),
]
PrimaryKeyOption = Annotated[
    str | None,
    typer.Option("--primary-key", metavar="KEY", show_default=False, help="One row of --table; a,b for two columns."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
