"""What a backfill has ahead of it: counted and weighed for a dry run, counted or estimated for a progress bar."""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import Connection, sql

from offload_pipeline.database.connection import is_about_the_rows, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key
from offload_pipeline.offload.claims import Partition
from offload_pipeline.offload.packing import Compression, pack
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.offload.reservoir import Reservoir
from offload_pipeline.offload.stored import PAGE_ROWS
from offload_pipeline.offload.unseen import read_checkpoint

# Payloads of one table and about one size are alike: so many tell the ratio to a few percent, and are packed in a
# second or two. Few large ones may hold most of the bytes, so each size, to a factor of four, is a stratum.
SAMPLE_ROWS = 300
SAMPLE_BYTES = 64 * 1024 * 1024
BITS_OF_A_STRATUM = 2
# Index entries counted one by one for a progress bar; a tenant with more is estimated from random pages.
COUNTED_ROWS = 200_000
SAMPLED_PAGES = 2_000


@dataclass
class _Stratum:
    """Payloads of about one size."""

    payload_bytes: int = 0
    sample: Reservoir[tuple[Key, int]] = field(default_factory=lambda: Reservoir(SAMPLE_ROWS))

    def add(self, key: Key, payload_bytes: int) -> None:
        self.payload_bytes += payload_bytes
        self.sample.offer((key, payload_bytes))


@dataclass
class DryRun:
    """What a backfill would copy. `object_bytes` is estimated with the ratios that the `rows_sampled` have, by size."""

    rows: int = 0
    payload_bytes: int = 0
    object_bytes: int = 0
    rows_sampled: int = 0
    rows_too_large: int = 0
    """Above `max_object_bytes`: they would fail, and are in none of the other numbers."""

    def __iadd__(self, other: "DryRun") -> "DryRun":
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


def dry_run(
    connection: Connection, partition: Partition, compression: Compression, max_attempts: int,
    *, unseen: bool = True, resume: bool = True, progress: Progress = no_progress,
) -> DryRun:  # fmt: skip
    """Counts page by page what a backfill would copy, and packs a sample of it. Reads every payload; writes nothing.

    Each page is a short transaction of its own, so that no old snapshot holds vacuum back.
    """
    found = DryRun()
    strata: dict[int, _Stratum] = defaultdict(_Stratum)
    most = partition.table.config.max_object_bytes
    for rows_passed, page in _pages(connection, partition, max_attempts, unseen=unseen, resume=resume):
        for key, payload_bytes in page:
            if most is not None and payload_bytes > most:
                found.rows_too_large += 1
                continue
            found.rows += 1
            found.payload_bytes += payload_bytes
            strata[payload_bytes.bit_length() // BITS_OF_A_STRATUM].add(key, payload_bytes)
        progress(rows_passed, sum(payload_bytes for _, payload_bytes in page))
    for stratum in strata.values():
        rows, ratio = _pack_some(connection, partition, compression, stratum.sample.kept, 1 / len(strata))
        found.rows_sampled += rows
        found.object_bytes += round(stratum.payload_bytes * ratio)
    return found


def rows_ahead(connection: Connection, partition: Partition, *, unseen: bool, resume: bool = True) -> int:
    """Rows that a pass would go through, small ones included; beyond `COUNTED_ROWS` an estimate. Cheap either way."""
    ahead = _count_or_estimate(connection, partition, "is_pending", None)
    if unseen:
        cursor, is_complete = _start(connection, partition, resume=resume)
        ahead += 0 if is_complete else _count_or_estimate(connection, partition, "is_unseen", cursor)
    return ahead


def _pages(
    connection: Connection, partition: Partition, max_attempts: int, *, unseen: bool, resume: bool
) -> Iterator[tuple[int, list[tuple[Key, int]]]]:
    """Rows gone through, and of those the keys and payload bytes that would be copied."""
    table = partition.table
    cursor, is_complete = _start(connection, partition, resume=resume)
    while unseen and not is_complete and (page := _page(connection, partition, "unseen_page", cursor, max_attempts)):
        keys = [table.key_in(row) for row in page]
        with transaction(connection):
            measured = _measure(connection, partition, keys)
        yield len(keys), measured
        cursor = keys[-1]
    cursor = None
    while page := _page(connection, partition, "pending_page", cursor, max_attempts):
        found = [(table.key_in(row), row[-1]) for row in page]
        yield len(found), found
        cursor = found[-1][0]


def _start(connection: Connection, partition: Partition, *, resume: bool) -> tuple[Key | None, bool]:
    if not resume:
        return None, False
    with transaction(connection):
        return read_checkpoint(connection, partition)


def _page(
    connection: Connection, partition: Partition, name: str, cursor: Key | None, max_attempts: int
) -> list[tuple[Any, ...]]:
    table = partition.table
    parameters = {**partition.parameters(), **table.cursor_parameters(cursor)}
    with transaction(connection):
        return connection.execute(
            statement("offload/ahead", name, table.names(cursor)),
            {**parameters, "page_rows": PAGE_ROWS, "max_attempts": max_attempts},
        ).fetchall()


def _pack_some(
    connection: Connection, partition: Partition, compression: Compression, sample: list[tuple[Key, int]], share: float
) -> tuple[int, float]:
    """How many were packed, of this share of all, and object bytes over payload bytes among them."""
    rows = payload_bytes = object_bytes = 0
    for key, size in random.sample(sample, len(sample)):
        if rows and (rows >= SAMPLE_ROWS * share or payload_bytes + size > SAMPLE_BYTES * share):
            break
        for payload in _read(connection, partition, key):
            packed = pack(payload, compression)
            rows, payload_bytes = rows + 1, payload_bytes + packed.payload_bytes
            object_bytes += len(packed.data)
    return rows, object_bytes / payload_bytes if payload_bytes else 0.0


def _read(connection: Connection, partition: Partition, key: Key) -> list[bytes]:
    """The canonical bytes; none where the row is gone, or cannot be printed: the copy would record its failure."""
    table = partition.table
    try:
        with transaction(connection), connection.cursor(binary=True) as cursor:
            cursor.execute(
                statement("offload/claim", "fetch_claimed", table.names()),
                {**partition.parameters(), **table.key_parameters([key])},
            )
            return [payload for _, _, payload in cursor]
    except psycopg.Error as error:
        if not is_about_the_rows(error, connection):
            raise
        return []


def _count_or_estimate(connection: Connection, partition: Partition, condition: str, cursor: Key | None) -> int:
    table = partition.table
    names = table.names(cursor)
    names["is_ahead"] = statement("offload/ahead", condition, names)
    bound = {**partition.parameters(), **table.cursor_parameters(cursor), "most": COUNTED_ROWS}
    with transaction(connection):
        counted = _one(connection, "count_up_to", names, bound)
        if counted < COUNTED_ROWS:
            return counted
        pages = _one(connection, "pages", names, {"relation": names["relation"].as_string(connection)})
        percent = min(100.0, 100.0 * SAMPLED_PAGES / max(pages, 1))
        return max(counted, _one(connection, "estimate", names, bound | {"percent": percent}))


def _one(connection: Connection, name: str, names: dict[str, sql.Composable], bound: Mapping[str, object]) -> int:
    found = connection.execute(statement("offload/ahead", name, names), bound).fetchone()
    assert found is not None  # noqa: S101 - an aggregate returns one row
    return int(found[0])


def _measure(connection: Connection, partition: Partition, keys: list[Key]) -> list[tuple[Key, int]]:
    """Never-seen keys above the threshold with their payload bytes; 0 bytes for what cannot be measured.

    Within the caller's transaction.
    """
    if not keys:
        return []
    try:
        with connection.transaction():
            return _sizes(connection, partition, keys)
    except psycopg.Error as error:
        if not is_about_the_rows(error, connection):
            raise
        if len(keys) == 1:
            return [(keys[0], 0)]
        return [found for key in keys for found in _measure(connection, partition, [key])]


def _sizes(connection: Connection, partition: Partition, keys: list[Key]) -> list[tuple[Key, int]]:
    table = partition.table
    rows = connection.execute(
        statement("offload/ahead", "measure", table.names()),
        {
            **partition.parameters(),
            **table.key_parameters(keys),
            "threshold_bytes": table.config.threshold_bytes,
        },
    )
    return [(keys[position - 1], size) for position, size in rows]
