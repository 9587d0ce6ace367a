"""Back-pressure: work in bulk pauses, between its transactions, until the database has caught up."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

from psycopg import Connection, errors

from offload_pipeline.config import BackPressureConfig
from offload_pipeline.database.connection import server_message, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table

LOOK_EVERY_SECONDS = 1.0
# A vacuum of a large table, one against wraparound, or one slowed down by its cost delay may take days.
PATIENCE_WITH_A_VACUUM = timedelta(minutes=10)

Announce = Callable[[str | None], None]
"""Called with the reason when work pauses, and with None when it goes on."""

# A role without the privilege, or a service that lacks the view: no reason to stop.
_NOT_TO_BE_KNOWN = (
    errors.FeatureNotSupported, errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState,
    errors.UndefinedColumn, errors.UndefinedFunction, errors.UndefinedObject, errors.UndefinedTable,
)  # fmt: skip

log = logging.getLogger(__name__)


def announce_nothing(_reason: str | None) -> None:
    """For callers that nobody watches."""


class BackPressure:
    """What the workers of one pass share: whoever asks, the database is looked at once a second at most.

    Autovacuum holds work up for half of the time at worst: nobody waits for a vacuum that is older than `patience`, no
    pause lasts longer than that, and after each the work goes on for as long as it paused, whatever autovacuum does.
    """

    def __init__(
        self, policy: BackPressureConfig, table: Table, announce: Announce = announce_nothing,
        patience: timedelta = PATIENCE_WITH_A_VACUUM,
    ) -> None:  # fmt: skip
        self._policy, self._table, self._announce, self._patience = policy, table, announce, patience
        looks = {
            "max_replica_lag_bytes": (policy.max_replica_lag_bytes is not None, self._replica_lag),
            "max_wal_files_waiting": (policy.max_wal_files_waiting is not None, self._wal_files_waiting),
            "pause_for_autovacuum": (policy.pause_for_autovacuum, self._autovacuum),
        }
        self._looks = {option: look for option, (is_on, look) in looks.items() if is_on}
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._paused_by: str | None = None
        self._vacuum_since: float | None = None
        self._undisturbed_until = float("-inf")

    def wait(self, connection: Connection, stopping: threading.Event | None = None) -> None:
        """Returns when there is nothing to wait for, or when `stopping` is set. To be called outside transactions.

        Raises psycopg.Error when the database fails.
        """
        stopping = stopping or threading.Event()
        while not stopping.is_set() and self._is_paused(connection):
            stopping.wait(LOOK_EVERY_SECONDS)

    def _is_paused(self, connection: Connection) -> bool:
        with self._lock:
            if self._looks and time.monotonic() - self._looked_at >= LOOK_EVERY_SECONDS:
                self._turn_to(*self._look(connection))
                self._looked_at = time.monotonic()
            return self._paused_by is not None

    def _turn_to(self, option: str | None, reason: str | None) -> None:
        """Says it once: a second later only the numbers in the reason are others."""
        if option != self._paused_by:
            self._paused_by = option
            self._announce(reason)

    def _look(self, connection: Connection) -> tuple[str | None, str | None]:
        for option, look in list(self._looks.items()):
            try:
                with transaction(connection):
                    reason = look(connection)
            except _NOT_TO_BE_KNOWN as error:
                self._heed_no_more(option, server_message(error))
            else:
                if reason is not None:
                    return option, reason
        return None, None

    def _heed_no_more(self, option: str, cause: str) -> None:
        del self._looks[option]
        _warn_once(f"back_pressure.{option} is not heeded ({cause}); GRANT pg_monitor to this role, or switch it off")

    def _replica_lag(self, connection: Connection) -> str | None:
        found = self._ask(connection, "replica_lag")
        if found is None:
            return None
        is_visible, name, bytes_behind = found
        if not is_visible:
            self._heed_no_more("max_replica_lag_bytes", "the positions of replicas are hidden")
        most = self._policy.max_replica_lag_bytes
        if bytes_behind is None or most is None or bytes_behind <= most:
            return None
        return f"replica {name!r} is {bytes_behind:,} bytes behind, max_replica_lag_bytes is {most:,}"

    def _wal_files_waiting(self, connection: Connection) -> str | None:
        is_archiving, may_list = self._ask(connection, "archiving")
        if not is_archiving:
            return None
        found = self._ask(connection, "wal_files_listed" if may_list else "wal_files_reckoned")
        most = self._policy.max_wal_files_waiting
        if found is None or most is None or found[0] <= most:
            return None
        return f"{found[0]:,} WAL files wait to be archived, max_wal_files_waiting is {most:,}"

    def _autovacuum(self, connection: Connection) -> str | None:
        relation = self._table.names()["relation"].as_string(connection)
        is_visible, vacuumed = self._ask(connection, "autovacuum", relation=relation, patience=self._patience)
        if not is_visible:
            self._heed_no_more("pause_for_autovacuum", "what autovacuum works on is hidden")
        return f"autovacuum works on {vacuumed}" if self._is_worth_waiting(is_vacuumed=vacuumed is not None) else None

    def _is_worth_waiting(self, *, is_vacuumed: bool) -> bool:
        now = time.monotonic()
        if self._vacuum_since is None and is_vacuumed and now >= self._undisturbed_until:
            self._vacuum_since = now
        if self._vacuum_since is None:
            return False
        paused = now - self._vacuum_since
        if not is_vacuumed or paused >= self._patience.total_seconds():
            self._vacuum_since, self._undisturbed_until = None, now + paused
        return self._vacuum_since is not None

    def _ask(self, connection: Connection, name: str, **bound: object) -> Any:
        return connection.execute(statement("database/back_pressure", name), bound or None).fetchone()


@cache
def _warn_once(text: str) -> None:
    log.warning(text)
