"""What is tried again and what ends a run at once: Dagster's retry policies repeat whatever is raised."""

import contextlib
from collections.abc import Iterator
from typing import Any

from dagster import Backoff, Config, Failure, Jitter, RetryPolicy
from pydantic import ValidationError

from offload_pipeline.errors import OffloadError, PermanentError, TransientError, UserError

# A store or database that comes back within minutes costs nobody a look; longer outages are the sensor's to repeat.
RETRY = RetryPolicy(max_retries=3, delay=20, backoff=Backoff.EXPONENTIAL, jitter=Jitter.PLUS_MINUS)


class LaunchConfig(Config):
    """What a launch may choose. Dagster knows the types, not the bounds: a value beyond them ends the run at once."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            name, problem = ".".join(map(str, found["loc"])), found["msg"].removeprefix("Value error, ")
            description = f"{name}: {problem[0].lower()}{problem[1:]}, not {found['input']!r}; launch it with another"
            raise Failure(description=description, allow_retries=False) from None


@contextlib.contextmanager
def no_retry_of_permanent_errors() -> Iterator[None]:
    """What will not pass, says so."""
    try:
        yield
    except (UserError, PermanentError) as error:
        if isinstance(error, TransientError):
            raise
        raise Failure(description=str(error), allow_retries=False) from error


def fail_if_stopped(stopped_by: OffloadError | None) -> None:
    """Raises Failure for what ended a pass early."""
    if stopped_by:
        raise Failure(description=f"stopped: {stopped_by}", allow_retries=isinstance(stopped_by, TransientError))
