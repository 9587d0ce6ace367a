"""One connection that several threads take turns on, for short transactions of a reader or writer that lives long."""

import threading
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg import Connection, errors

from offload_pipeline.database.connection import (
    HOW_TO_BE_GRANTED,
    Database,
    is_about_the_rows,
    server_message,
    transaction,
)
from offload_pipeline.errors import TransientError, UserError

Result = TypeVar("Result")


class SharedConnection:
    """Opened when first needed, and again when it broke. Never held while the store is asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = threading.Lock()
        self._connection: Connection | None = None

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """One transaction; a connection found broken is replaced, and the work done once more.

        Raises TransientError or UserError for what the server or the installation lacks. What the rows or values are
        to blame for stays a psycopg.Error.
        """
        with self._turn:
            try:
                return self._work(work)
            except psycopg.Error as error:
                if self._connection is not None and is_about_the_rows(error, self._connection):
                    raise
                raise _as_our_own(error) from error

    def close(self) -> None:
        """Ends the connection; a later `run` opens another."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _work(self, work: Callable[[Connection], Result]) -> Result:
        is_fresh = self._connection is None
        try:
            return self._in_transaction(work)
        except psycopg.OperationalError:
            if is_fresh or self._connection is None or not self._connection.closed:
                raise
            return self._in_transaction(work)

    def _in_transaction(self, work: Callable[[Connection], Result]) -> Result:
        if self._connection is None or self._connection.closed:
            self._connection = self._database.connect()
        with transaction(self._connection) as connection:
            return work(connection)


def _as_our_own(error: psycopg.Error) -> TransientError | UserError:
    said = server_message(error)
    if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn):
        return UserError(f"{said}; run: offload install")
    if isinstance(error, errors.InsufficientPrivilege):
        return UserError(f"{said}; {HOW_TO_BE_GRANTED}")
    return TransientError(f"the database failed ({said}); try again")
