"""Ranges hold the truth about as often as they say, whatever the sizes are like and wherever the large ones lie."""

from collections.abc import Callable

import numpy as np
import pytest

from offload_pipeline.offload.estimate import (
    PAGES_PER_SLICE,
    SLICES,
    Estimator,
    Floats,
    PageChoice,
    choose_pages,
    choose_rows,
)

SEEDS = 100
# Of a 90 % range over 100 samples, chance alone leaves 6 % either way; skewed sizes cost some more.
FEWEST_HITS = 0.8
Pages = Callable[[np.random.Generator], Floats]


def of_pages(choice: PageChoice, rng: np.random.Generator) -> Estimator:
    """One row a page, every row measured."""
    pages = np.arange(len(choice.pages))
    return Estimator(choice, pages, pages, np.ones(len(pages)), pages, np.ones(len(pages)), rng)


@pytest.mark.parametrize(
    "population",
    [
        pytest.param(lambda rng: rng.normal(100, 10, 5000), id="alike"),
        pytest.param(lambda rng: rng.lognormal(0, 1, 2000), id="skewed"),
        pytest.param(lambda rng: np.linspace(0, 1, 3000) ** 3 * rng.lognormal(0, 0.3, 3000), id="growing"),
        pytest.param(lambda _: np.where(np.arange(4000) // 100 % 5 == 0, 50.0, 1.0), id="in clusters"),
        pytest.param(lambda rng: rng.lognormal(0, 0.5, 310), id="nearly all pages read"),
    ],
)
def test_nine_ranges_in_ten_hold_the_total_of_all_pages(population: Pages) -> None:
    pages = population(np.random.default_rng(20))
    hits, errors = 0, []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        choice = choose_pages(len(pages), rng)
        estimator = of_pages(choice, rng)
        found = estimator.range_of(estimator.total(pages[choice.pages]))
        assert found.high is not None
        hits += found.low <= pages.sum() <= found.high
        errors.append(found.value / pages.sum() - 1)
    assert hits >= FEWEST_HITS * SEEDS, f"{hits} of {SEEDS}"
    assert abs(np.mean(errors)) < 3 * np.std(errors) / SEEDS**0.5 + 1e-9, "the estimate leans to one side"


def test_growing_sizes_are_known_better_from_slices_than_from_pages_anywhere() -> None:
    pages = np.linspace(1, 100, 3000)
    sliced, anywhere = [], []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        choice = choose_pages(len(pages), rng)
        sliced.append(float((pages[choice.pages] * choice.weights).sum()))
        anywhere.append(float(pages[rng.choice(3000, len(choice.pages), replace=False)].sum()) * 10)
    assert np.std(sliced) < np.std(anywhere) / 5


@pytest.mark.parametrize("total", [0, 1, 299, 300])
def test_few_pages_are_all_chosen(total: int) -> None:
    choice = choose_pages(total, np.random.default_rng(1))
    assert choice.is_whole
    assert choice.pages.tolist() == list(range(total))


@pytest.mark.parametrize("total", [301, 450, 10_007])
def test_many_pages_are_sampled_each_slice_alike_and_no_page_twice(total: int) -> None:
    choice = choose_pages(total, np.random.default_rng(1))
    assert len(set(choice.pages.tolist())) == SLICES * PAGES_PER_SLICE
    assert (np.diff(choice.pages) > 0).all()
    assert choice.weights.sum() == pytest.approx(total)
    per_slice = np.histogram(choice.pages, np.arange(SLICES + 1) * total // SLICES)[0]
    assert set(per_slice.tolist()) == {PAGES_PER_SLICE}


@pytest.mark.parametrize("sizes", [[1.0] * 5000, [1e9], [1.0, 1e9], [0.0] * 3000, list(range(1, 4000))])
def test_payloads_are_chosen_within_rows_and_about_within_bytes(sizes: list[float]) -> None:
    array, rng = np.array(sizes, dtype=np.float64), np.random.default_rng(3)
    chosen, chance = choose_rows(array, 100, 20_000, rng)
    assert 1 <= len(chosen) <= 102
    assert len(set(chosen.tolist())) == len(chosen)
    assert ((chance > 0) & (chance <= 1)).all()
    assert array[chosen].sum() <= 20_000 + array.max()


def test_what_fits_is_chosen_whole() -> None:
    chosen, chance = choose_rows(np.arange(100.0), 100, 5000, np.random.default_rng(3))
    assert chosen.tolist() == list(range(100))
    assert set(chance.tolist()) == {1.0}


def test_rows_are_chosen_as_often_as_their_chance_says() -> None:
    sizes = np.random.default_rng(5).lognormal(0, 2, 400)
    times, chances = np.zeros(400), np.zeros(400)
    for seed in range(2000):
        chosen, chance = choose_rows(sizes, 60, 10**9, np.random.default_rng(seed))
        times[chosen] += 1
        chances[chosen] = chance
    seen = times > 0
    assert np.abs(times[seen] / 2000 - chances[seen]).max() < 0.05


def test_totals_of_measured_payloads_are_in_proportion_to_what_is_known_of_all() -> None:
    sizes = np.random.default_rng(5).lognormal(8, 1.5, 3000)
    true, estimates, hits = float((3 * sizes + 7).sum()), [], 0
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        measured, chance = choose_rows(sizes, 200, 10**9, rng)
        whole = PageChoice(np.arange(10), np.ones(10), 10)
        estimator = Estimator(whole, np.arange(3000) % 10, np.arange(3000), sizes, measured, chance, rng)
        draws = estimator.total_of_measured(3 * sizes[measured] + 7, in_proportion_to_size=True)
        found = estimator.range_of_measured(draws, np.ones(len(measured), dtype=np.bool_))
        assert found.high is not None
        estimates.append(found.value)
        hits += found.low <= true <= found.high
    assert np.mean(estimates) == pytest.approx(true, rel=0.001)
    assert hits >= FEWEST_HITS * SEEDS


def test_what_no_page_of_the_sample_shows_has_a_limit_in_rows_and_none_in_bytes() -> None:
    rng = np.random.default_rng(1)
    choice = choose_pages(30_000, rng)
    estimator = of_pages(choice, rng)
    none = np.zeros(300, dtype=np.bool_)
    found = estimator.rows_that(none)
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(3.0 / 300 * 30_000, rel=0.02), "the rule of three"
    nothing = estimator.total_of_measured(np.zeros(300), in_proportion_to_size=True)
    assert estimator.range_of_measured(nothing, none).high is None


def test_what_few_pages_show_has_a_range_as_wide_as_a_count_of_so_few() -> None:
    rng = np.random.default_rng(1)
    estimator = of_pages(choose_pages(30_000, rng), rng)
    two = np.arange(300) < 2
    found = estimator.rows_that(two)
    assert found.value == 200
    assert found.high is not None
    assert found.low <= 0.36 * 100
    assert found.high >= 6.2 * 100, "Garwood's 90 % limits after two are 0.355 and 6.296"
