"""An application in a process of its own: `python -m benchmarks.updater DATABASE_URL TABLE TENANT RATE`.

Updates rows of the tenant by primary key, so many a second, until it is told to stop, and prints a line for each
update: how many seconds after it was due it was committed. One that is late makes those behind it no less due. Every
tenth writes the payload as well. Each wait for a lock that lasts longer than 50 ms is counted by PostgreSQL itself.
"""

import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import IO, cast

import psycopg

from benchmarks.payloads import payloads
from benchmarks.worker import REPOSITORY

PAYLOAD_BYTES = 8_000
ONE_PAYLOAD_IN = 10
DIFFERENT_PAYLOADS = 100
LOCK_WAIT = "50ms"
# The server says so, to this client as well, of any wait that takes longer than its deadlock_timeout.
_WATCH_LOCKS = {"log_lock_waits": "on", "deadlock_timeout": LOCK_WAIT, "client_min_messages": "log"}
_WAITING = "still waiting for"


@dataclass(frozen=True)
class Updates:
    """Seconds that each update took from the moment it was due, and the waits for locks of more than 50 ms."""

    seconds: Sequence[float]
    lock_waits: int


class Updater:
    """Works from its making to `stop`."""

    def __init__(self, database_url: str, table: str, tenant: str, rate: int) -> None:
        # As on a machine of its own: Linux shares processor time by session, and each backend of PostgreSQL is one.
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, the module below
            [sys.executable, "-m", __name__, database_url, table, tenant, str(rate)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        cast("IO[str]", self._process.stdout).readline()

    def stop(self) -> Updates:
        """Ends it. Raises CalledProcessError where an update failed."""
        printed, _ = self._process.communicate()
        if self._process.returncode:
            raise subprocess.CalledProcessError(self._process.returncode, self._process.args)
        *lines, waits = printed.splitlines()
        return Updates([float(line) for line in lines], int(waits))


def watch_lock_waits(connection: psycopg.Connection) -> list[str]:
    """Gives a list that grows by what the server says of each lock that this session waits for longer than 50 ms."""
    waits: list[str] = []

    def note(said: psycopg.errors.Diagnostic) -> None:
        if said.message_primary and _WAITING in said.message_primary:
            waits.append(said.message_primary)

    for setting, value in _WATCH_LOCKS.items():
        connection.execute("SELECT set_config(%s, %s, false)", [setting, value])
    connection.add_notice_handler(note)
    return waits


def _update(database_url: str, table: str, tenant: str, rate: int) -> None:
    chance = Random(1)  # noqa: S311 - which rows
    texts = list(islice(payloads(PAYLOAD_BYTES), DIFFERENT_PAYLOADS))
    title = f"UPDATE {table} SET title = %s WHERE id = %s"  # noqa: S608 - our own names
    whole = f"UPDATE {table} SET title = %s, payload = %s WHERE id = %s"  # noqa: S608 - our own names
    with psycopg.connect(database_url, autocommit=True, prepare_threshold=0) as connection:
        select_keys = f"SELECT id FROM {table} WHERE tenant_id = %s"  # noqa: S608 - our own names
        keys = [key for (key,) in connection.execute(select_keys, [tenant])]
        waits = watch_lock_waits(connection)
        seconds: list[float] = []
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        begun = time.perf_counter()
        while not _is_stopped(due := begun + len(seconds) / rate):
            key, number = chance.choice(keys), len(seconds)
            if number % ONE_PAYLOAD_IN:
                connection.execute(title, [f"title {number}", key])
            else:
                connection.execute(whole, [f"title {number}", chance.choice(texts), key])
            seconds.append(time.perf_counter() - due)
    sys.stdout.write("".join(f"{one:.6f}\n" for one in seconds) + f"{len(waits)}\n")


def _is_stopped(due: float) -> bool:
    """Waits until the next update is due; True if told to stop meanwhile."""
    told, _, _ = select.select([sys.stdin], [], [], max(0.0, due - time.perf_counter()))
    return bool(told)


if __name__ == "__main__":
    _update(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
