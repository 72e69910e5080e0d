from __future__ import annotations

import numpy as np
import pytest

from deltatap.analysis.compare import difference


def test_a_sample_does_not_differ_from_itself() -> None:
    values = np.random.default_rng(1).normal(100, 10, 200)
    found = difference(values, values, 0.5)
    assert found.value == 0
    assert not found.clear


def test_the_interval_of_a_shift_contains_the_shift() -> None:
    values = np.random.default_rng(1).normal(100, 10, 500)
    found = difference(values, np.random.default_rng(2).normal(130, 10, 500), 0.5)
    assert found.clear
    assert found.low is not None
    assert found.high is not None
    assert found.low < 30 < found.high
    assert found.high - found.low < 8


def test_the_difference_of_single_values_has_no_interval() -> None:
    found = difference(np.array([1.0]), np.array([2.0, 3.0]), 0.95)
    assert (found.low, found.high, found.clear) == (None, None, False)
    assert found.value == pytest.approx(1.95)


def test_about_95_percent_of_equal_samples_do_not_differ_clearly() -> None:
    generator = np.random.default_rng(5)
    clear = [difference(generator.exponential(1, 60), generator.exponential(1, 60), 0.5).clear for _ in range(1_000)]
    assert 0.01 <= np.mean(clear) <= 0.07
