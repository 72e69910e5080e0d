from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatap.analysis.compare import difference
from deltatap.look import sparkline


def test_the_same_sample_differs_by_nothing() -> None:
    values = np.random.default_rng(1).normal(100, 10, 200)
    found = difference(values, values, 0.5)
    assert found.value == 0
    assert not found.clear


def test_a_shift_is_found_and_its_interval_holds_it() -> None:
    values = np.random.default_rng(1).normal(100, 10, 500)
    found = difference(values, np.random.default_rng(2).normal(130, 10, 500), 0.5)
    assert found.clear
    assert found.low is not None
    assert found.high is not None
    assert found.low < 30 < found.high
    assert found.high - found.low < 8


def test_of_single_values_there_is_no_interval() -> None:
    found = difference(np.array([1.0]), np.array([2.0, 3.0]), 0.95)
    assert (found.low, found.high, found.clear) == (None, None, False)
    assert found.value == pytest.approx(1.95)


def test_intervals_hold_the_truth_in_some_95_of_100() -> None:
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(100):
        found = difference(generator.exponential(1, 60), generator.exponential(1, 60), 0.5)
        held += not found.clear
    assert held >= 88


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 80))
def test_a_sparkline_has_its_width_and_shows_each_chunk(times: list[float], width: int) -> None:
    line = sparkline(times, width)
    bars = line.split("│")[1]
    assert len(bars) == width
    assert "█" in bars
    assert f"{len(times):,} chunks" in line


def test_without_chunks_there_is_no_sparkline() -> None:
    assert sparkline([]) == ""
