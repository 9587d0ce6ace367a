"""What offloading a table would save, forecast from a bounded sample, before or after anything is installed."""

import contextlib
import json
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import psycopg
from psycopg import Connection, IsolationLevel, errors

from offload_pipeline.database.connection import Database, server_message, transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Table
from offload_pipeline.errors import TransientError, UserError
from offload_pipeline.offload.estimate import Estimator, choose_pages, choose_rows
from offload_pipeline.offload.forecast import Forecast, Measured, Sampled, assemble
from offload_pipeline.offload.packing import Compression, pack
from offload_pipeline.offload.progress import Progress, no_progress
from offload_pipeline.offload.sampling import SampledPayload, leaves, lz4_sizes, read_payloads, read_rows
from offload_pipeline.storage.keys import object_key

# What is read of one table at most, beside its pages (`estimate.SLICES` × `PAGES_PER_SLICE`): a few seconds' work.
MOST_PAYLOADS = 2000
MOST_STORED_BYTES = 32 * 1024 * 1024
# A look must not hold a snapshot for long, and with it vacuum.
STATEMENT_LIMIT = timedelta(seconds=60)
# Size, hash and moment as PostgreSQL stores them; status and object key come on top, each with a byte for its length.
POINTER_BYTES = 8 + 65 + 8


@dataclass(frozen=True)
class PlanOptions:
    """How payloads would be packed, named and verified; the same seed draws the same sample from an unchanged table."""

    compression: Compression
    store_url: str
    verification_sample_rows: int
    seed: int = 1


def forecast_table(
    database: Database, table: Table, options: PlanOptions, progress: Progress = no_progress
) -> Forecast:
    """Reads a few hundred pages and at most `MOST_PAYLOADS` payloads in one snapshot, and leaves nothing behind.

    Raises UserError where the role may not read the table, TransientError when the database fails or takes too long.
    """
    with contextlib.closing(database.connect()) as connection:
        # One snapshot, in which a row stays where it is; and a standby takes no transaction that says it will write.
        connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, None
        try:
            with connection.transaction(force_rollback=True), transaction(connection):
                limit_ms = STATEMENT_LIMIT // timedelta(milliseconds=1)
                connection.execute(statement("offload/plan", "stay_modest"), {"limit_ms": limit_ms})
                return _forecast(connection, table, options, progress)
        except errors.InsufficientPrivilege as error:
            raise UserError(
                f"{table.name}: {server_message(error)}; grant SELECT on it, or connect as a role that may read it"
            ) from None
        except psycopg.Error as error:
            raise TransientError(
                f"{table.name}: no sample could be taken ({server_message(error)}); run it again"
            ) from error


def _forecast(connection: Connection, table: Table, options: PlanOptions, progress: Progress) -> Forecast:
    rng = np.random.default_rng(options.seed)
    found = leaves(connection, table)
    choice = choose_pages(sum(leaf.pages for leaf in found), rng)
    rows = read_rows(connection, table, found, choice)
    candidates = np.flatnonzero(rows.may_move(table))
    stored = rows.stored_bytes[candidates]
    wanted, chance = choose_rows(stored, MOST_PAYLOADS, MOST_STORED_BYTES, rng)

    places = [rows.places[index] for index in candidates[wanted]]
    at_place = dict(zip(places, stored[wanted], strict=True))
    measured = {}
    for one in read_payloads(connection, table, found, places):
        measured[one.place] = _measure(table, options, one, at_place[one.place])
        progress(1, len(one.payload))
    is_read = np.array([place in measured for place in places], dtype=np.bool_)
    read = [place for place in places if place in measured]

    estimator = Estimator(choice, rows.pages, candidates, stored, wanted[is_read], chance[is_read], rng)
    payload_bytes = sum(one.payload_bytes for one in measured.values())
    sampled = Sampled(
        len(choice.pages), choice.total, len(rows.places), len(read), payload_bytes, len(places) - len(read)
    )
    lz4 = lz4_sizes(connection, table, found, [place for place in read if measured[place].moves])
    in_order = lz4 if isinstance(lz4, str) else [lz4.get(place, 0) for place in read]
    of_payloads = [measured[place] for place in read]
    return assemble(table, found, sampled, rows, of_payloads, in_order, estimator, options.verification_sample_rows)


def _measure(table: Table, options: PlanOptions, one: SampledPayload, stored_bytes: float) -> Measured:
    config, size = table.config, len(one.payload)
    if config.threshold_bytes and size <= config.threshold_bytes:
        return Measured(one.tenant, size, stored_bytes)
    if config.max_object_bytes is not None and size > config.max_object_bytes:
        return Measured(one.tenant, size, stored_bytes, is_too_large=True)
    packed = pack(one.payload, options.compression)
    key = object_key(
        config.key_template,
        tenant=one.tenant,
        table=config.name,
        primary_key=[str(part) for part in one.key],
        sha256=packed.sha256,
    )
    left = POINTER_BYTES + len(key) + 1 + len("copied" if config.after_copy == "keep" else "in_storage") + 1
    if config.after_copy == "reference":
        left += _reference_bytes(key, size, packed.sha256, options.store_url)
    return Measured(one.tenant, size, stored_bytes, len(packed.data), left, moves=True)


def _reference_bytes(key: str, payload_bytes: int, sha256: str, store_url: str) -> int:
    """About what `storage_ref` occupies; in jsonb, offsets take the place of this text's quotes and colons."""
    moved_at = "2026-01-01T00:00:00.000000+00:00"
    return len(
        json.dumps({
            "payload_type": "storage_ref", "storage_path": key, "size_bytes": payload_bytes, "sha256": sha256,
            "moved_at": moved_at, "url": f"{store_url.rstrip('/')}/{key}",
        })
    )  # fmt: skip
