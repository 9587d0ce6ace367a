"""The application that runs beside a backfill counts what it has to wait for."""

import psycopg
import pytest

from benchmarks.updater import watch_lock_waits


def test_a_wait_for_a_row_that_is_longer_than_50_ms_is_counted(database_url: str) -> None:
    with (
        psycopg.connect(database_url, autocommit=True) as holder,
        psycopg.connect(database_url, autocommit=True) as waiter,
    ):
        holder.execute("CREATE TABLE rows (id integer)")
        holder.execute("INSERT INTO rows VALUES (1)")
        waits = watch_lock_waits(waiter)
        waiter.execute("UPDATE rows SET id = 1")
        assert not waits
        waiter.execute("SET lock_timeout = '1s'")
        with holder.transaction():
            holder.execute("UPDATE rows SET id = 1")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                waiter.execute("UPDATE rows SET id = 1")
        assert len(waits) == 1
