"""Transactions older than a look at the rows: one of them may hold, yet unseen, a pointer to what looks orphaned.

A table restored from a dump in one long transaction does, or `INSERT … SELECT` from a row that is gone since. Once they
have ended, another look sees what they wrote; whoever began later found nothing to take the pointer from.
"""

import time
from datetime import timedelta

from psycopg import Connection

from offload_pipeline.database.statements import statement
from offload_pipeline.errors import TransientError

PATIENCE = timedelta(minutes=1)
_LOOK_AGAIN_SECONDS = 0.5


def wait_for_older_transactions(connection: Connection, patience: timedelta = PATIENCE) -> TransientError | None:
    """Until all that are open now have ended; what to say where they outlast the patience.

    `connection` is in no transaction. Sessions that only sit in one, and have not written, do not count.
    """
    moment = connection.execute(statement("retention/garbage", "moment")).fetchone()
    assert moment is not None  # noqa: S101 - one line of values returns one row
    bound = dict(zip(("since", "next_transaction"), moment, strict=True))
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        found = connection.execute(statement("retention/garbage", "older_transactions"), bound).fetchone()
        if found is None or not found[0]:
            return None
        if time.monotonic() >= deadline:
            return TransientError(
                f"transactions open since before the last look at the rows: {found[0]}; they may hold a pointer to "
                "what looks orphaned: end them, then run it again"
            )
        time.sleep(_LOOK_AGAIN_SECONDS)
