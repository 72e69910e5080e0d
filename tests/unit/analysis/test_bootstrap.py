from __future__ import annotations

import numpy as np
import pytest

from deltatap.analysis.bootstrap import interval, resampled_quantiles


@pytest.mark.parametrize("p", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("count", [2, 3, 40])
def test_resampled_quantiles_have_the_distribution_of_an_ordinary_bootstrap(count: int, p: float) -> None:
    values = np.random.default_rng(3).lognormal(5, 1, count)
    generator = np.random.default_rng(0)
    direct = np.concatenate([resampled_quantiles(values, p, generator) for _ in range(20)])
    ordinary = np.quantile(generator.choice(values, (20_000, count)), p, axis=1)
    # Both are mostly mixtures of a few values, so compare distribution functions, not quantiles.
    at = np.quantile(values, np.linspace(0, 1, 9))
    shares = [np.searchsorted(np.sort(each), at + 1e-9) / len(each) for each in (direct, ordinary)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_an_interval_is_the_same_every_time_and_does_not_depend_on_the_order() -> None:
    values = np.random.default_rng(1).normal(100, 10, 200)
    assert interval(0.5, values) == interval(0.5, values) == interval(0.5, values[::-1])


def test_95_percent_of_intervals_contain_the_true_median() -> None:
    samples = np.random.default_rng(7).exponential(1.0, (1_000, 101))
    found = [interval(0.5, sample) for sample in samples]
    held = np.mean([low <= np.log(2) <= high for low, high in found if low is not None and high is not None])
    assert 0.93 <= held <= 0.97


def test_a_sample_of_one_value_has_no_interval() -> None:
    assert interval(0.5, np.array([1.0])) == (None, None)
    assert interval(0.5, np.array([1.0, 2.0]), np.array([1.0])) == (None, None)
    assert interval(0.5, np.array([])) == (None, None)
