"""DDL that never makes the application queue: a short lock_timeout, growing pauses, and a loud end."""

import random
import time
from collections.abc import Sequence

from psycopg import Connection, errors, sql

from offload_pipeline.errors import TransientError, UserError

ATTEMPTS = 20
FIRST_LOCK_TIMEOUT_MS = 100
LAST_LOCK_TIMEOUT_MS = 1000
# Between attempts the queue behind the lock drains.
PAUSE_SECONDS = (0.1, 0.5)


def run_under_short_locks(connection: Connection, statements: Sequence[sql.Composed]) -> None:
    """Runs all statements in one transaction, giving way to the application at each lock it cannot get at once.

    Raises TransientError after 20 attempts, UserError for a missing privilege; nothing is half done in either case.
    """
    for attempt in range(ATTEMPTS):
        timeout = min(LAST_LOCK_TIMEOUT_MS, FIRST_LOCK_TIMEOUT_MS * (attempt + 1))
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = {timeout}")
                connection.execute("SET LOCAL TimeZone = 'UTC'")
                for statement in statements:
                    connection.execute(statement)
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            time.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - jitter, not a secret
        except errors.InsufficientPrivilege as error:
            raise UserError(f"{error.diag.message_primary}; run install as the owner of the table") from None
        else:
            return
    raise TransientError(f"the table stayed locked through {ATTEMPTS} attempts; end the long transaction, then repeat")


def run_concurrently(connection: Connection, statement: sql.Composed) -> None:
    """Runs one CONCURRENTLY statement, which waits for old transactions but blocks nobody, without time limits.

    Raises TransientError after a deadlock, UserError for a missing privilege; an invalid index may be left, which
    the next install replaces.
    """
    connection.execute("SET lock_timeout = 0")
    connection.execute("SET statement_timeout = 0")
    try:
        connection.execute(statement)
    except errors.DeadlockDetected:
        raise TransientError("the application's locks and ours met in a deadlock; repeat the command") from None
    except errors.InsufficientPrivilege as error:
        raise UserError(f"{error.diag.message_primary}; run install as the owner of the table") from None
    finally:
        # Behind a pooler the session goes on to serve the application.
        if not connection.closed:
            connection.execute("RESET lock_timeout")
            connection.execute("RESET statement_timeout")
