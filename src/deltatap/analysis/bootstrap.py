"""Bootstrap intervals of quantiles, for one sample or for the difference of two.

Works on arrays of numbers. The callers decide which values to compare.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Values = np.ndarray[Any, np.dtype[np.float64]]

REPLICATES = 1_000
_SEED = 0


def interval(p: float, values: Values, minus: Values | None = None) -> tuple[float | None, float | None]:
    """The 95 % percentile-bootstrap interval of a quantile, or of its difference between two samples.

    The same input always gives the same interval. A sample of fewer than two values gives none (Efron and Tibshirani,
    An Introduction to the Bootstrap, chapter 13).

    Args:
        p: the quantile, from 0 to below 1.
        values: the sample.
        minus: the sample to subtract; the two are resampled independently.
    """
    samples = [values] if minus is None else [values, minus]
    if min(map(len, samples)) < 2:  # noqa: PLR2004
        return None, None
    generator = np.random.default_rng(_SEED)
    drawn = [resampled_quantiles(sample, p, generator) for sample in samples]
    low, high = np.quantile(drawn[0] if minus is None else drawn[0] - drawn[1], (0.025, 0.975))
    return float(low), float(high)


def resampled_quantiles(values: Values, p: float, generator: np.random.Generator) -> Values:
    """The quantile of each of :data:`REPLICATES` resamples, without drawing the resamples.

    A resample picks n positions of the sorted sample uniformly. The k-th smallest position is ``floor(n * U)``, where U
    is the k-th smallest of n uniform numbers: U has the distribution Beta(k, n - k + 1), and the numbers above U are
    uniform between U and 1 (David and Nagaraja, Order Statistics, chapter 2). The quantile is interpolated between the
    two nearest values, as in numpy.
    """
    ordered, n = np.sort(values), len(values)
    k = int(p * (n - 1))
    lower = generator.beta(k + 1, n - k, REPLICATES)
    upper = lower + (1 - lower) * generator.beta(1, n - k - 1, REPLICATES)
    below, above = (ordered[np.minimum(n * u, n - 1).astype(int)] for u in (lower, upper))
    found: Values = below + (p * (n - 1) - k) * (above - below)
    return found
