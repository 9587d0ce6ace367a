"""A table's forecast: what is still to be moved, what it would become, and how sure each figure is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offload_pipeline.database.table import Table
from offload_pipeline.offload.estimate import Draws, Estimator, Floats, Range
from offload_pipeline.offload.sampling import Leaf, SampledRows

# A bytea's own header; what gzip has packed, PostgreSQL does not pack again.
BYTEA_HEADER_BYTES = 4
MOVED_STATES = ("copied", "in_storage", "expired")
NONE = Range(0, 0, 0)


@dataclass(frozen=True)
class Sampled:
    """What was read. `payload_bytes`: canonical bytes of all `payloads`, also of those that turned out small."""

    pages: int
    pages_total: int
    rows: int
    payloads: int
    payload_bytes: int
    unreadable: int


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk now, dead rows and free space included; TOAST with its index."""

    heap_bytes: int
    toast_bytes: int
    index_bytes: int


@dataclass(frozen=True)
class Requests:
    """To the object store, for moving what is still to be moved in one pass per tenant; by the estimate's value."""

    put: int
    get_read_back: int
    get_end: int
    get_sample: int


@dataclass(frozen=True)
class Forecast:
    """One table. A range holds the truth nine times out of ten; `is_exact`: every page and payload was read.

    `payload_bytes`: canonical bytes of the rows to move. `database_bytes`: what those payloads occupy in heap and TOAST
    (`pg_column_size`), and would occupy with lz4 or as gzip in a bytea column. `left_bytes`: pointers, references, and,
    with `after_copy: keep`, the payloads. `freed_bytes`: their difference, room for new rows, not a smaller file.
    """

    table: str
    relation: str
    is_installed: bool
    threshold_bytes: int
    after_copy: str
    is_exact: bool
    sizes: Sizes
    sampled: Sampled
    rows: Range
    rows_in_statistics: int | None
    rows_by_state: dict[str, Range]
    rows_without_tenant: Range
    rows_too_large: Range
    rows_to_move: Range
    payload_bytes: Range
    object_bytes: Range
    compression_ratio: Range
    database_bytes: Range
    lz4_bytes: Range | None
    no_lz4_because: str | None
    gzip_in_row_bytes: Range
    left_bytes: Range
    freed_bytes: Range
    all_payloads_database_bytes: Range
    requests: Requests
    foreign_partitions: list[str]


@dataclass(frozen=True)
class Measured:
    """One payload that was read. `object_bytes`, and `left_bytes` that its row would keep, are 0 where it stays."""

    tenant: str
    payload_bytes: int
    stored_bytes: float
    object_bytes: int = 0
    left_bytes: int = 0
    moves: bool = False
    is_too_large: bool = False


def assemble(
    table: Table, found: Sequence[Leaf], sampled: Sampled, rows: SampledRows, measured: Sequence[Measured],
    lz4: Sequence[int] | str, estimator: Estimator, verification_sample_rows: int,
) -> Forecast:  # fmt: skip
    """`measured` and `lz4` are in the order of the estimator's measured rows; `lz4` may be why there is none."""
    config, totals = table.config, _Totals(estimator, measured)
    payload, objects, stored = (totals.bytes_of(name) for name in ("payload_bytes", "object_bytes", "stored_bytes"))
    left = totals.per_row(totals.column("left_bytes")) + (stored if config.after_copy == "keep" else 0)
    gzip_in_row = objects + totals.per_row(np.full(len(measured), BYTEA_HEADER_BYTES, dtype=np.float64))
    to_move = _whole(estimator.measured_rows_that(totals.moves))
    known = [leaf.rows_in_statistics for leaf in found if leaf.rows_in_statistics is not None]
    return Forecast(
        table=config.name,
        relation=config.relation,
        is_installed=table.is_installed,
        threshold_bytes=config.threshold_bytes,
        after_copy=config.after_copy,
        is_exact=estimator.is_exact,
        sizes=Sizes(*(sum(getattr(leaf, name) for leaf in found) for name in Sizes.__dataclass_fields__)),
        sampled=sampled,
        rows=_whole(estimator.range_of(estimator.total(np.ones(len(rows.places))))),
        rows_in_statistics=sum(known) if known else None,
        rows_by_state=_rows_by_state(rows, estimator) if table.is_installed else {},
        rows_without_tenant=_whole(estimator.rows_that(~rows.has_tenant)),
        rows_too_large=NONE if config.max_object_bytes is None
            else _whole(estimator.measured_rows_that(totals.column("is_too_large") > 0)),
        rows_to_move=to_move,
        payload_bytes=totals.range_of(payload),
        object_bytes=totals.range_of(objects),
        compression_ratio=_rounded(estimator.range_of(_ratio(payload, objects)), 2),
        database_bytes=totals.range_of(stored),
        lz4_bytes=None if isinstance(lz4, str) else totals.range_of(totals.in_proportion(np.array(lz4, np.float64))),
        no_lz4_because=lz4 if isinstance(lz4, str) else None,
        gzip_in_row_bytes=totals.range_of(gzip_in_row),
        left_bytes=totals.range_of(left),
        freed_bytes=totals.range_of(stored - left),
        all_payloads_database_bytes=_whole(estimator.range_of(estimator.total(rows.stored_bytes))),
        requests=_requests(int(to_move.value), measured, verification_sample_rows),
        foreign_partitions=[f"{leaf.schema}.{leaf.name}" for leaf in found if leaf.is_foreign],
    )  # fmt: skip


class _Totals:
    """Totals over the rows that would move, from those of them that were measured."""

    def __init__(self, estimator: Estimator, measured: Sequence[Measured]) -> None:
        self._estimator, self._measured = estimator, measured
        self.moves = np.array([one.moves for one in measured], dtype=np.bool_)

    def column(self, name: str) -> Floats:
        return np.array([getattr(one, name) for one in self._measured], dtype=np.float64)

    def bytes_of(self, name: str) -> Draws:
        return self.in_proportion(self.column(name))

    def in_proportion(self, values: Floats) -> Draws:
        """Of something that grows with the stored size."""
        return self._estimator.total_of_measured(values * self.moves, in_proportion_to_size=True)

    def per_row(self, values: Floats) -> Draws:
        """Of something that is much the same for every row."""
        return self._estimator.total_of_measured(values * self.moves, in_proportion_to_size=False)

    def range_of(self, draws: Draws) -> Range:
        return _whole(self._estimator.range_of_measured(draws, self.moves))


def _rows_by_state(rows: SampledRows, estimator: Estimator) -> dict[str, Range]:
    states: dict[str, NDArray[np.bool_]] = {
        "never_seen": rows.states == "never_seen",
        "inline": rows.states == "inline",
        "pending": rows.states == "pending_move",
        "moved": np.isin(rows.states, MOVED_STATES),
    }
    return {name: _whole(estimator.rows_that(are)) for name, are in states.items()}


def _requests(objects: int, measured: Sequence[Measured], sample_rows: int) -> Requests:
    tenants = len({one.tenant for one in measured if one.moves})
    return Requests(put=objects, get_read_back=objects, get_end=objects, get_sample=min(objects, sample_rows * tenants))


def _ratio(payload: Draws, objects: Draws) -> Draws:
    return np.divide(payload, objects, out=np.zeros_like(payload), where=objects > 0)


def _whole(found: Range) -> Range:
    return _rounded(found, None)


def _rounded(found: Range, digits: int | None) -> Range:
    high = None if found.high is None else round(found.high, digits)
    return Range(round(found.value, digits), round(found.low, digits), high)
