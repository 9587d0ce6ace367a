"""Connections and transactions with the settings that make text forms repeatable and every wait bounded."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psycopg
from psycopg import Connection, errors
from psycopg.conninfo import conninfo_to_dict

from offload_pipeline.config import DatabaseConfig
from offload_pipeline.errors import DatabaseUnreachableError, TransientError, UserError

CONNECT_TIMEOUT_SECONDS = 10
# A batch holds claims while it talks to the store; a worker that hangs longer loses them.
IDLE_LIMIT = timedelta(minutes=10)
STATEMENT_LIMIT = timedelta(minutes=10)
# Long enough for an application's ordinary transaction, short enough not to queue others behind us.
LOCK_LIMIT = timedelta(seconds=5)

HOW_TO_BE_GRANTED = "grant it (offload doctor names the GRANT), or connect as a role that may"

# Pages are walked along an index that is in their order. Where statistics are older than the rows, the planner takes
# what lies ahead for a handful, and would read and sort all of it for every page. A sort that cannot be done without is
# priced at 10**10 before PostgreSQL 18, which alone would have each small statement compiled, for 200 ms.
PLANNER_SETTINGS = ("enable_bitmapscan", "enable_sort", "jit")

# Set in each transaction, not once per session: that also holds behind a transaction pooler.
_SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "idle_in_transaction_session_timeout": str(int(IDLE_LIMIT.total_seconds() * 1000)),
    "statement_timeout": str(int(STATEMENT_LIMIT.total_seconds() * 1000)),
    "lock_timeout": str(int(LOCK_LIMIT.total_seconds() * 1000)),
    **dict.fromkeys(PLANNER_SETTINGS, "off"),
}
_SET_LOCAL = "SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _SETTINGS.items())

# Not the row's fault: trying the rows one by one would only meet the same again, and use up their attempts.
_NOT_ABOUT_ROWS = (
    errors.AdminShutdown, errors.CannotConnectNow, errors.CrashShutdown, errors.DeadlockDetected, errors.DiskFull,
    errors.IdleInTransactionSessionTimeout, errors.InsufficientPrivilege, errors.LockNotAvailable, errors.OutOfMemory,
    errors.QueryCanceled, errors.ReadOnlySqlTransaction, errors.TooManyConnections, errors.UndefinedColumn,
    errors.UndefinedFunction, errors.UndefinedTable,
)  # fmt: skip


@dataclass(frozen=True)
class Database:
    """Where the tables are, and the schema of the bookkeeping tables."""

    url: str
    schema: str
    is_embedded: bool = field(default=False, kw_only=True)

    def connect(self) -> Connection:
        """A new autocommit connection. Raises UserError, in one line and without secrets, where there is none."""
        if "://" in self.url and self.url.partition("?")[0].count("@") > 1:
            # libpq would take a part of the password for the host, and say it aloud.
            raise UserError("database.url has more than one @; write one in a user name or password as %40")
        try:
            connection = psycopg.connect(
                self.url,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                application_name="offload_pipeline",
                # Named prepared statements do not survive a transaction pooler.
                prepare_threshold=None,
                client_encoding="UTF8",
                keepalives_idle=30,
            )
        except psycopg.ProgrammingError:
            raise UserError(
                "database.url is not a PostgreSQL URL; write postgresql://user@host:5432/database"
            ) from None
        except psycopg.OperationalError as error:
            reason = (str(error).strip().splitlines() or ["no answer"])[0].removeprefix("connection failed: ")
            raise DatabaseUnreachableError(
                f"cannot connect to {self.where()}: {reason}; check database.url and that the server runs"
            ) from None
        # Whatever the database's default: a claim must be followed by a younger snapshot, and xmin is the guard.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        connection.read_only = False
        return connection

    def where(self) -> str:
        """Host and database, for messages; never the password."""
        known = conninfo_to_dict(self.url)
        return f"PostgreSQL at {known.get('host', 'the local socket')}, database {known.get('dbname', 'of the user')}"


def open_database(config: DatabaseConfig, home: Path) -> Database:
    """The configured database; without a URL the embedded one in `home`, which this starts."""
    if config.url:
        return Database(config.url, config.schema_name)
    from offload_pipeline.database.embedded import embedded_url

    return Database(embedded_url(home / "postgres"), config.schema_name, is_embedded=True)


@contextlib.contextmanager
def transaction(connection: Connection) -> Iterator[Connection]:
    """One transaction with pinned text formats and bounded waits; rolls back on any exception."""
    with connection.transaction():
        connection.execute(_SET_LOCAL)
        yield connection


def plan_freely(connection: Connection) -> None:
    """For statements that are not ours, in the caller's transaction: plans as the server is configured."""
    for name in PLANNER_SETTINGS:
        connection.execute(f"SET LOCAL {name} TO DEFAULT")


def bound_statements(connection: Connection, limit: timedelta) -> None:
    """In the caller's transaction, what takes longer from here on raises QueryCanceled."""
    milliseconds = str(limit // timedelta(milliseconds=1))
    connection.execute("SELECT set_config('statement_timeout', %s, true)", [milliseconds])


def is_about_the_rows(error: psycopg.Error, connection: Connection) -> bool:
    """Whether a statement failed because of the rows in it, and not because of the server or the connection."""
    return not connection.closed and not isinstance(error, _NOT_ABOUT_ROWS)


@contextlib.contextmanager
def database_failures(subject: object = None) -> Iterator[None]:
    """What psycopg raises becomes a TransientError, in one line that begins with the subject, if there is one.

    A right that lacks becomes a UserError: no repetition grants it.
    """
    beginning = "" if subject is None else f"{subject}: "
    try:
        yield
    except errors.InsufficientPrivilege as error:
        raise UserError(f"{beginning}{server_message(error)}; {HOW_TO_BE_GRANTED}") from error
    except psycopg.Error as error:
        raise TransientError(f"{beginning}the database failed ({server_message(error)}); run it again") from error


def server_message(error: psycopg.Error) -> str:
    """What the server said, without the context lines."""
    return error.diag.message_primary or (str(error).strip().splitlines() or [type(error).__name__])[0]
