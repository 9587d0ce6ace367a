"""One partition after another: what copying, verifying and releasing have in common on the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from offload_pipeline.cli.exit_codes import DONE, MISTAKE, UNSOUND
from offload_pipeline.cli.output import Watch
from offload_pipeline.cli.session import Session
from offload_pipeline.errors import OffloadError, PermanentError, StoreDeniedError, TransientError

if TYPE_CHECKING:
    from offload_pipeline.offload.claims import Partition


@dataclass(frozen=True)
class Outcome:
    """What became of one partition. `stopped_by`: the store is down, or refuses, and would do so for the others too."""

    is_sound: bool
    line: str = ""
    details: list[str] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)
    stopped_by: OffloadError | None = None


def work_through(
    session: Session,
    partitions: Sequence["Partition"],
    work: Callable[["Partition", Watch], Outcome],
    *,
    total_rows: Callable[["Partition"], int | None] = lambda _partition: None,
    afterwards: Callable[[], Outcome] | None = None,
) -> int:
    """Works on every partition, says what became of each, and of what was done `afterwards`; returns the exit code.

    A partition that fails does not keep the others waiting; a store that refuses, a mistake of the user's like rights
    that lack, or is down, ends the run.
    """
    documents: list[dict[str, Any]] = []
    is_sound, is_denied = True, False
    for partition in partitions:
        with session.output.progress(str(partition), total_rows(partition)) as watch:
            outcome = _outcome(partition, work, watch)
        _say(session, partition, outcome)
        named = {"table": partition.table.name, "tenant": partition.tenant, "sound": outcome.is_sound}
        documents.append(named | outcome.document)
        is_sound = is_sound and outcome.is_sound
        if outcome.stopped_by:
            is_denied = isinstance(outcome.stopped_by, StoreDeniedError)
            break
    if not partitions:
        session.output.line("nothing to do")
    elif left := len(partitions) - len(documents):
        session.output.complain(f"stopped; partitions not tried: {left}")
    last = afterwards() if afterwards else Outcome(is_sound=True)
    for line in last.details:
        session.output.line(line)
    is_sound, is_denied = is_sound and last.is_sound, is_denied or isinstance(last.stopped_by, StoreDeniedError)
    document = {"run_id": session.run_id, "sound": is_sound, "partitions": documents}
    session.output.document(document | last.document)
    return MISTAKE if is_denied else DONE if is_sound else UNSOUND


def _outcome(partition: "Partition", work: Callable[["Partition", Watch], Outcome], watch: Watch) -> Outcome:
    try:
        return work(partition, watch)
    except StoreDeniedError:
        raise
    except (TransientError, PermanentError) as error:
        return Outcome(
            is_sound=False,
            line=f"failed: {str(error).removeprefix(f'{partition}: ')}",
            document={"error": {"class": type(error).__name__, "message": str(error)}},
        )


def _say(session: Session, partition: "Partition", outcome: Outcome) -> None:
    session.output.line(f"{partition}: {outcome.line}", style="" if outcome.is_sound else "red")
    for detail in outcome.details:
        session.output.line(f"  {detail}")
