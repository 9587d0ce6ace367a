"""Deletions that may still be on their way: a request without an answer can be carried out long after.

The same payload written again has the same object key, and a deletion asked for before would take the new object. So
a deletion is announced before the store is asked, and withdrawn when the store has answered; without an answer, nobody
trusts an object under that key for an hour.
"""

from collections.abc import Sequence
from datetime import timedelta

from psycopg import Connection

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import bookkeeping_names
from offload_pipeline.errors import StoreUnavailableError

# No client, proxy or server keeps a request for longer.
LINGERING = timedelta(hours=1)


def announce(connection: Connection, schema: str, object_keys: Sequence[str]) -> None:
    """Commits what is about to be deleted; `connection` is in no transaction."""
    names, bound = bookkeeping_names(schema), {"object_keys": list(object_keys), "lingering": LINGERING}
    with transaction(connection):
        # And with it every commit before it: a crash could bring back a row that nobody saw when the object was judged.
        connection.execute(statement("offload/restore", "commit_to_disk"))
        connection.execute(statement("offload/deletions", "forget", names), bound)
        connection.execute(statement("offload/deletions", "announce", names), bound)


def withdraw(connection: Connection, schema: str, object_keys: Sequence[str]) -> None:
    """No request is on its way any more, or none was sent; in the caller's transaction."""
    connection.execute(
        statement("offload/deletions", "withdraw", bookkeeping_names(schema)), {"object_keys": list(object_keys)}
    )


def announced(connection: Connection, schema: str, object_keys: Sequence[str]) -> set[str]:
    """Those of these objects that a deletion on its way may still take."""
    if not object_keys:
        return set()
    rows = connection.execute(
        statement("offload/deletions", "announced", bookkeeping_names(schema)),
        {"object_keys": list(object_keys), "lingering": LINGERING},
    )
    return {key for (key,) in rows}


def not_yet(object_key: str) -> StoreUnavailableError:
    """What is said of such an object."""
    return StoreUnavailableError(
        f"{object_key} was to be deleted less than an hour ago, which may still be carried out; it is tried again"
    )
