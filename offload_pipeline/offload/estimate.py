"""From a sample to the whole table: totals, and the range each would lie in nine times out of ten. No database here.

Pages are the sampling unit, not rows: the rows of a page were written together and are alike. The table is cut into
slices of equal length and pages are drawn at random in each, so that sizes that grow with time fall evenly into the
sample; of the rows on those pages, some payloads are read whole, larger ones more likely (Särndal, Swensson, Wretman:
Model Assisted Survey Sampling, 1992, ch. 9, two-phase sampling). Ranges are percentiles of a bootstrap that draws pages
anew within each slice (Efron, Tibshirani: An Introduction to the Bootstrap, 1993, ch. 13; Rao, Wu: JASA 83, 1988).
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Draws = NDArray[np.float64]
"""An estimate and, behind it, its bootstrap replicates: arithmetic on two of them keeps what they have in common."""

SLICES = 30
PAGES_PER_SLICE = 10
REPLICATES = 1000
# Of the normal distribution: one tenth of the mass lies outside, half of it on each side.
Z = 1.645
# Where fewer pages, or payloads, show a thing, the bootstrap knows too little of it; rare things count as Poisson's do.
RARE = 10


@dataclass(frozen=True)
class Range:
    """`value` with its 90 % range; all three equal: counted, not estimated. `high` None: the sample cannot tell."""

    value: float
    low: float
    high: float | None

    @property
    def is_exact(self) -> bool:
        """Counted, not estimated."""
        return self.low == self.value == self.high


@dataclass(frozen=True)
class PageChoice:
    """Chosen pages (0-based, ascending) of a table's, and how many pages each of them stands for."""

    pages: NDArray[np.int64]
    weights: Floats
    total: int

    @property
    def is_whole(self) -> bool:
        """Every page is in it."""
        return len(self.pages) == self.total


def choose_pages(total: int, rng: np.random.Generator) -> PageChoice:
    """`SLICES` × `PAGES_PER_SLICE` of `total` pages, each slice's at random; all of them where there are no more."""
    if total <= SLICES * PAGES_PER_SLICE:
        return PageChoice(np.arange(total), np.ones(total), total)
    edges = np.arange(SLICES + 1) * total // SLICES
    drawn = [
        np.sort(rng.choice(end - start, PAGES_PER_SLICE, replace=False)) + start
        for start, end in itertools.pairwise(edges)
    ]
    weights = np.repeat(np.diff(edges) / PAGES_PER_SLICE, PAGES_PER_SLICE)
    return PageChoice(np.concatenate(drawn), weights, total)


def choose_rows(
    sizes: Floats, most_rows: int, most_bytes: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Floats]:
    """Which rows to read whole, and with which probability each was chosen; at most so many rows and, about, bytes.

    Systematic sampling (Madow 1949) with a probability that grows with the size, as totals ask for, mixed with an
    equal one, so that no row of a rare kind gets an enormous weight (Hesterberg 1995).
    """
    wish = sizes + max(float(sizes.mean()), 1.0) if len(sizes) else sizes
    chance = np.ones(len(sizes))
    if len(sizes) > most_rows or sizes.sum() > most_bytes:
        low, high = 0.0, 1.0 / float(wish.min())
        for _ in range(50):
            middle = (low + high) / 2
            chance = np.minimum(1.0, middle * wish)
            fits = chance.sum() <= most_rows and (chance * sizes).sum() <= most_bytes
            low, high = (middle, high) if fits else (low, middle)
        # One row at least, however large.
        chance = np.maximum(np.minimum(1.0, low * wish), 1.0 / len(sizes))
    steps = np.floor(np.concatenate([[0.0], np.cumsum(chance)]) + rng.random())
    # A chance of one is a whole step; rounding must not lose it.
    chosen = np.flatnonzero((np.diff(steps) > 0) | (chance >= 1.0))
    return chosen, chance[chosen]


class Estimator:
    """Totals of one table. `page_of_row` holds positions in `choice.pages`; `candidates` are the rows that may move."""

    def __init__(
        self, choice: PageChoice, page_of_row: NDArray[np.int64], candidates: NDArray[np.int64], stored_bytes: Floats,
        measured: NDArray[np.int64], chance: Floats, rng: np.random.Generator,
    ) -> None:  # fmt: skip
        """`candidates` index rows; `measured` indexes candidates, as does `stored_bytes`, each chosen with `chance`."""
        self._choice, self._page_of_row, self._candidates = choice, page_of_row, candidates
        self._stored, self._measured, self._chance = stored_bytes, measured, chance
        self._page_of_measured = page_of_row[candidates[measured]]
        self._measured_weights = choice.weights[self._page_of_measured] / chance
        read = len(choice.pages) / choice.total if choice.total else 1.0
        seen = float(stored_bytes[measured].sum() / stored_bytes.sum()) if stored_bytes.sum() else 1.0
        # What was read cannot be wrong: the error shrinks with what is left (finite population correction).
        self._unread = float(np.sqrt(1 - read))
        self._unmeasured = 0.0 if len(measured) == len(candidates) else float(np.sqrt(1 - read * min(seen, 1.0)))
        self._unmeasured = max(self._unmeasured, self._unread)
        self._page_draws = _resampled_pages(choice, rng)
        self._row_draws = (
            _resampled(len(measured), rng) if choice.is_whole else self._page_draws[:, self._page_of_measured]
        )

    @property
    def is_exact(self) -> bool:
        """Every page was read, and every payload that may move."""
        return self._unmeasured == 0.0

    def total(self, per_row: Floats) -> Draws:
        """Of something known of every row on the chosen pages."""
        sums = np.bincount(self._page_of_row, per_row, len(self._choice.pages)) * self._choice.weights
        return _shrunk(self._page_draws @ sums, self._unread)

    def total_of_measured(self, per_row: Floats, *, in_proportion_to_size: bool) -> Draws:
        """Of something known of the measured rows alone: a ratio to what is known of all candidates (Hájek).

        The ratio is to their stored bytes, or to their number.
        """
        known = np.zeros(len(self._page_of_row))
        known[self._candidates] = self._stored if in_proportion_to_size else 1.0
        sums = np.bincount(self._page_of_row, known, len(self._choice.pages)) * self._choice.weights
        of_measured = known[self._candidates[self._measured]] * self._measured_weights
        ratio = _divided(self._row_draws @ (per_row * self._measured_weights), self._row_draws @ of_measured)
        return _shrunk((self._page_draws @ sums) * ratio, self._unmeasured)

    def range_of(self, draws: Draws) -> Range:
        """The percentiles of the replicates, moved outwards where these lie askew, and for a small sample."""
        value, low, high = float(draws[0]), *(float(limit) for limit in np.percentile(draws[1:], [5, 95]))
        shift = _skew_shift(draws[1:])
        stretch = _small_sample(len(self._measured) if self._choice.is_whole else len(self._choice.pages))
        below = max(value - low, 0.0) * stretch - min(shift, 0.0)
        above = max(high - value, 0.0) * stretch + max(shift, 0.0)
        floor = 0.0 if draws.min() >= 0 else -np.inf
        return Range(value, max(floor, value - below), value + above)

    def range_of_measured(self, draws: Draws, shows: NDArray[np.bool_]) -> Range:
        """As `range_of`, wider where few of the measured rows show what was totalled; `shows` has an entry for each."""
        found = self.range_of(draws)
        if self.is_exact:
            return found
        if self._choice.is_whole:
            return _at_least_poisson(found, int(shows.sum()), len(self._measured))
        return _at_least_poisson(found, self._pages_with(self._page_of_measured[shows]), len(self._choice.pages))

    def rows_that(self, are: NDArray[np.bool_]) -> Range:
        """How many rows of the table are such; `are` has one entry for each row on the chosen pages."""
        found = self.range_of(self.total(are.astype(np.float64)))
        if self._choice.is_whole:
            return found
        found = _at_least_poisson(found, self._pages_with(self._page_of_row[are]), len(self._choice.pages))
        return self._with_bound(found, self._rows_for_each_page())

    def measured_rows_that(self, are: NDArray[np.bool_]) -> Range:
        """How many rows of the table are such; `are` has one entry for each measured row."""
        draws = self.total_of_measured(are.astype(np.float64), in_proportion_to_size=False)
        known = float(self._choice.weights[self._page_of_row[self._candidates]].sum())
        is_partly_measured = len(self._measured) < len(self._candidates)
        rows = known / max(len(self._measured), 1) if is_partly_measured else 0.0
        return self._with_bound(self.range_of_measured(draws, are), max(rows, self._rows_for_each_page()))

    def _rows_for_each_page(self) -> float:
        return 0.0 if self._choice.is_whole else self._choice.total / len(self._choice.pages)

    def _with_bound(self, found: Range, rows_for_each: float) -> Range:
        """None of n that were looked at is such: at most 3/n of them all are (Hanley, Lippman-Hand: JAMA 249, 1983)."""
        return found if found.high is not None else Range(found.value, found.low, _poisson_range(0)[1] * rows_for_each)

    def _pages_with(self, pages: NDArray[np.int64]) -> int:
        return len(np.unique(pages))


def _at_least_poisson(found: Range, shows: int, units: int) -> Range:
    """What few units show is known no better than their number is; what none shows has no upper limit here."""
    if found.high is None or shows >= min(RARE, units / 2) > 0:
        return found
    if shows == 0:
        return Range(found.value, found.low, None)
    fewest, most = _poisson_range(shows)
    return Range(found.value, min(found.low, found.value * fewest / shows), max(found.high, found.value * most / shows))


def _resampled_pages(choice: PageChoice, rng: np.random.Generator) -> Draws:
    """How often each page is drawn: once in the estimate itself, then as it comes, anew in each slice."""
    pages = len(choice.pages)
    if choice.is_whole:
        return np.ones((1 + REPLICATES, pages))
    # One fewer than there are: as many would vary a tenth less than the sample itself does (Rao, Wu 1988).
    draws, chances = PAGES_PER_SLICE - 1, np.full(PAGES_PER_SLICE, 1 / PAGES_PER_SLICE)
    drawn = rng.multinomial(draws, chances, size=(REPLICATES, SLICES)).reshape(REPLICATES, pages)
    return np.vstack([np.ones(pages), drawn * (PAGES_PER_SLICE / draws)])


def _resampled(count: int, rng: np.random.Generator) -> Draws:
    if count == 0:
        return np.ones((1 + REPLICATES, 0))
    return np.vstack([np.ones(count), rng.multinomial(count, np.full(count, 1 / count), size=REPLICATES)])


def _divided(numerator: Draws, denominator: Draws) -> Draws:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _shrunk(draws: Draws, factor: float) -> Draws:
    shrunk: Draws = draws[0] + (draws - draws[0]) * factor
    return shrunk


def _skew_shift(replicates: Draws) -> float:
    """How far percentile limits lie from those of the bootstrap-t (Hall: Annals of Statistics 16, 1988).

    A sample that misses the few largest payloads also underrates how much it may have missed.
    """
    deviation = float(replicates.std())
    if deviation <= 1e-12 * abs(float(replicates.mean())):
        return 0.0
    skewness = float((((replicates - replicates.mean()) / deviation) ** 3).mean())
    return deviation * skewness * (Z**2 + 2) / 6


def _small_sample(units: int) -> float:
    """Student's t over the normal quantile, to the first term of its Cornish-Fisher expansion."""
    freedom = max(units - 1, 1)
    return float(1 + (Z**2 + 1) / (4 * freedom))


def _poisson_range(count: int) -> tuple[float, float]:
    """The 90 % limits of a Poisson mean after `count` (Garwood 1936), by Wilson and Hilferty's approximation."""
    most = (count + 1) * (1 - 1 / (9 * (count + 1)) + Z / (3 * (count + 1) ** 0.5)) ** 3
    fewest = count * (1 - 1 / (9 * count) - Z / (3 * count**0.5)) ** 3 if count else 0.0
    return max(fewest, 0.0), most
