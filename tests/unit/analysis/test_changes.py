"""Change points in numbers whose levels are known."""

from __future__ import annotations

import numpy as np
import pytest

from deltatap.analysis.changes import FEWEST, LEVELS, change_points
from tests.nightly import NIGHTS, times_of_nights

SEEDS = range(20)


def medians(seed: int, shift: float = 0.0, **places: int) -> np.ndarray:
    return np.median(times_of_nights(seed, shift, **places), axis=1)


def levels(*runs: tuple[int, float], seed: int = 1) -> np.ndarray:
    """A series of stretches of runs with a level each, and noise of 1 %."""
    level = np.concatenate([np.full(count, value) for count, value in runs])
    return level * np.exp(0.01 * np.random.default_rng(seed).normal(size=len(level)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shift_of_10_percent_in_30_nights_of_200_prompts_is_found_where_it_is(seed: int) -> None:
    near = [p for place, p in change_points(medians(seed, 0.1)) if abs(place - NIGHTS // 2) <= 2]
    assert len(near) == 1
    assert near[0] <= LEVELS[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_in_30_nights_without_a_shift_no_change_is_found(seed: int) -> None:
    assert change_points(medians(seed)) == []


def test_of_200_series_without_a_shift_few_have_a_change_and_most_with_one_do() -> None:
    """The rate of false changes is that of the test; docs/metrics.md has the rates of more seeds."""
    assert sum(bool(change_points(medians(1_000 + seed))) for seed in range(200)) <= 4
    shifted = [change_points(medians(1_000 + seed, 0.1)) for seed in range(100)]
    assert sum(map(bool, shifted)) >= 97
    assert sum(len(found) > 1 for found in shifted) <= 4


@pytest.mark.parametrize(
    ("runs", "places"),
    [
        ([(10, 100), (10, 110), (10, 130)], [10, 20]),
        ([(10, 100), (6, 110), (14, 100)], [10, 16]),
        ([(26, 100), (4, 110)], [26]),
        ([(4, 110), (26, 100)], [4]),
        ([(12, 100), (12, 90), (12, 100), (12, 95)], [12, 24, 36]),
        ([(7, 100), (7, 200)], [7]),
        ([(20, 100)], []),
        ([(15, 100), (1, 300), (14, 100)], []),
        ([(15, 100), (2, 300), (13, 100)], []),
        ([(28, 100), (2, 200)], []),
    ],
    ids=["two steps", "comes and goes", "at the end", "at the start", "four levels", "few runs", "none", "one slow run", "two slow runs", "too new"],
)  # fmt: skip
def test_levels_are_told_apart(runs: list[tuple[int, float]], places: list[int]) -> None:
    assert [place for place, _ in change_points(levels(*runs))] == places


def test_a_slow_run_does_not_hide_a_change() -> None:
    values = levels((15, 100), (15, 110))
    values[[4, 22]] = 5_000
    assert [place for place, _ in change_points(values)] == [15]


def test_with_too_few_runs_no_change_is_found() -> None:
    half = FEWEST // 2
    assert [place for place, _ in change_points(levels((half, 100), (half, 200)))] == [half]
    assert change_points(levels((half, 100), (half - 1, 200))) == []
    assert change_points(np.array([])) == []


def test_equal_numbers_have_no_change_and_one_step_of_equal_numbers_is_found() -> None:
    assert change_points(np.full(30, 5.0)) == []
    assert [place for place, _ in change_points(np.repeat([5.0, 6.0], [22, 8]))] == [22]


def test_the_same_numbers_give_the_same_result() -> None:
    values = medians(3, 0.1)
    assert change_points(values) == change_points(values.copy())
    assert [place for place, _ in change_points(values * 1e-3)] == [place for place, _ in change_points(values)]
