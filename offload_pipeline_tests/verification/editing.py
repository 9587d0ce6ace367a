"""What tests do to rows and objects behind the project's back, and what verification has written down."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import Installation


def payloads(count: int, first: int = 0) -> list[str]:
    """Different contents of the same size."""
    return [large_payload(200, seed) for seed in range(first, first + count)]


@contextlib.contextmanager
def past_the_trigger(notices: Installation) -> Iterator[None]:
    """Statements in one transaction for which no trigger of the table fires, as in a replica or a careless repair."""
    with notices.connection.transaction():
        notices.connection.execute("SET LOCAL session_replication_role = replica")
        yield


def edit_row(notices: Installation, key: Any, assignment: str, *values: Any) -> None:
    """Past the trigger."""
    with past_the_trigger(notices):
        notices.execute(f"UPDATE {{table}} SET {assignment} WHERE id = %s", *values, key)  # noqa: S608 - the test's own


def state(notices: Installation, column: str, tenant: str = "acme") -> Any:
    """A column of the partition's line in `payload_offload_state`."""
    row = notices.connection.execute(
        f"SELECT {column} FROM payload_offload_state WHERE tenant_id = %s",  # noqa: S608 - the test's own
        (tenant,),
    ).fetchone()
    assert row is not None
    return row[0]


def gate(notices: Installation, tenant: str = "acme") -> datetime | None:
    """`verified_through`."""
    found: datetime | None = state(notices, "verified_through", tenant)
    return found
