"""The command line: puts the command groups together, and turns whatever ends a command into an exit code.

Commands import the core when they run, not when they load, so that `--help` answers at once.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from offload_pipeline.cli import demo, doctor, install, offload, plan, read, restore, retention, status, verification
from offload_pipeline.cli.exit_codes import DONE, Ending, ending_of, refuse_what_is_not_utf8, terminable
from offload_pipeline.cli.output import Output

# In the order of the help text.
COMMAND_GROUPS = (demo, install, plan, offload, restore, verification, read, retention, status, doctor)

app = typer.Typer(
    name="offload",
    help="Moves large payloads out of rows into object storage, and proves it before it frees anything.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        Output(as_json=False).line(f"offload_pipeline {version('offload_pipeline')}")
        raise typer.Exit


@app.callback()
def _of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Moves large payloads out of rows into object storage, and proves it before it frees anything."""


for group in COMMAND_GROUPS:
    group.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Only a bug leaves a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        try:
            with terminable():
                return _run(given)
        except (Exception, KeyboardInterrupt) as error:
            ending = ending_of(error, given)
            if ending is None:
                raise
            return _end(ending, as_json="--json" in given)
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing may be written to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: list[str]) -> int:
    refuse_what_is_not_utf8(arguments)
    command = typer.main.get_command(app)
    try:
        with command.make_context("offload", list(arguments)) as context:
            code = command.invoke(context)
    except typer.Exit as finished:
        code = finished.exit_code
    sys.stdout.flush()
    return DONE if code is None else int(code)


def _end(ending: Ending, *, as_json: bool) -> int:
    output = Output(as_json=as_json)
    output.complain(ending.message)
    output.document({"error": {"class": ending.error_class, "message": ending.message}})
    sys.stdout.flush()
    return ending.code
