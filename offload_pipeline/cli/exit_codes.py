"""How a command ends: its exit code, and the one line that says why. None of them ever holds a secret."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

import typer

from offload_pipeline.errors import OffloadError, StoreDeniedError, UserError

DONE = 0
UNSOUND = 1
MISTAKE = 2
INTERRUPTED = 130
TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, as systemd and Kubernetes send it; whatever ends in order at a Ctrl-C does so at this."""


@dataclass(frozen=True)
class Ending:
    """What is said and returned when a command did not come to its own end."""

    code: int
    error_class: str
    message: str


def ending_of(error: BaseException, arguments: Sequence[str]) -> Ending | None:
    """The ending that this exception stands for; None for a bug."""
    name = type(error).__name__
    if isinstance(error, Terminated):
        return Ending(TERMINATED, name, "terminated; nothing is lost, run it again")
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Ending(INTERRUPTED, name, "interrupted; nothing is lost, run it again")
    if isinstance(error, typer.TyperException):
        return Ending(MISTAKE, "UsageError", _usage(error, arguments))
    if isinstance(error, OffloadError):
        is_mistake = isinstance(error, UserError | StoreDeniedError)
        return Ending(MISTAKE if is_mistake else UNSOUND, name, one_line(str(error)))
    return _of_the_database(error)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside, the first SIGTERM raises Terminated, where nobody else handles it; child processes begin without this."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, _frame: FrameType | None) -> None:
    # `timeout` sends two, and the second must not disturb the orderly end. SIG_IGN would be inherited.
    signal.signal(number, lambda *_: None)
    raise Terminated


def refuse_what_is_not_utf8(arguments: Sequence[str]) -> None:
    """Raises UserError for an argument that no text in the database can equal."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"the argument {argument!a} is not UTF-8; write it in UTF-8") from None


def one_line(text: str) -> str:
    """The text with line ends and runs of white space made single spaces."""
    return " ".join(text.split())


def _usage(error: typer.TyperException, arguments: Sequence[str]) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else " ".join(["offload", *arguments[:1]])
    option = getattr(error, "option_name", None)
    if option and "No such option" in error.message:
        near = getattr(error, "possibilities", None) or []
        what = f"no option {option}" + "".join(f" (did you mean {name}?)" for name in near[:1])
    else:
        what, _, near = error.format_message().partition(". Did you mean ")
        what = what[0].lower() + what[1:].rstrip(".") + (f" (did you mean {near})" if near else "")
    # Typer has Pydantic check a choice, and passes its words on.
    return one_line(f"{what.replace('Value error, ', '')}; see {path} --help")


def _of_the_database(error: BaseException) -> Ending | None:
    """What PostgreSQL says while a command merely looks; the core translates what goes wrong as it works."""
    import psycopg  # only where something went wrong

    from offload_pipeline.database.connection import HOW_TO_BE_GRANTED
    from offload_pipeline.database.connection import server_message as said

    match error:
        case psycopg.errors.UndefinedTable():
            return Ending(MISTAKE, "UserError", f"{said(error)}; run: offload install")
        case psycopg.errors.InsufficientPrivilege():
            return Ending(MISTAKE, "UserError", f"{said(error)}; {HOW_TO_BE_GRANTED}")
        case psycopg.OperationalError():
            return Ending(UNSOUND, "TransientError", f"the database failed ({said(error)}); run it again")
        case _:
            return None
