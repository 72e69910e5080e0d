"""Change points of a series of numbers: where its level shifts, and stays shifted.

Works on arrays of numbers, one for each run, and knows nothing of runs. The same numbers always give the same result.

The method is binary segmentation with a permutation test. In a series without a change, every order of the numbers is
equally likely. So the series is split where the means of the two sides differ most, and the same is done with
:data:`SHUFFLES` shuffled copies. If almost no copy has such a difference, the split is a change point, and each side is
searched in the same way. A split does not find a level that lasts only for some runs. Where there is no split, a second
test compares each inner stretch with the rest (circular binary segmentation: Olshen, Venkatraman, Lucito and Wigler,
Biostatistics 5, 2004, 557-572). The test assumes no distribution, only that the noise of a run does not depend on the
run before. Hunter, which watches benchmarks of databases, also splits and tests each split (Fleming and others, ICPE
2023).

One extreme run must not hide a change. Before the test, a number far from the median of the five numbers around it is
replaced by this median (the Hampel filter: Davies and Gather, JASA 88, 1993, 782-792). docs/metrics.md has the measured
rates of false and of missed changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.analysis.bootstrap import Values

    _Test = Callable[[Values], tuple[Values, list[int]]]

# The smallest number of runs between two change points: one or two slow runs are not a change.
SHORTEST = 3
# With fewer numbers, no order of them is rare enough: 2 of the 462 choices of 5 out of 11 would be more than LEVELS[0].
FEWEST = 12
# How often a series without a change may show one: a split, and a stretch that comes and goes. Together 0.5 %.
LEVELS = (0.004, 0.001)
SHUFFLES = 9_999
_BATCH = 1_111
_SEED = 0
# The filter: how many numbers around one, and how many standard deviations are far.
_AROUND = 5
_FAR = 5
# The standard deviation of normal noise, in medians of the absolute difference of two numbers.
_DEVIATIONS = 1.4826 / 2**0.5
_ROUNDING = 1 + 1e-9


def change_points(values: Values) -> list[tuple[int, float]]:
    """The places at which a new level starts, first to last, each with the p-value of its test.

    Args:
        values: the series, oldest first. A series with fewer than :data:`FEWEST` numbers has no change point.
    """
    if len(values) < FEWEST:
        return []
    for test, level in zip((_split, _stretch), LEVELS, strict=True):
        p, places = _tested(_filtered(values), test, level)
        if p <= level:
            break
    else:
        return []
    found = [(place, p) for place in places]
    for start, end in zip([0, *places], [*places, len(values)], strict=True):
        found += [(start + place, its_p) for place, its_p in change_points(values[start:end])]
    return sorted(found)


def _filtered(values: Values) -> Values:
    """The numbers as differences from their mean, with single extreme ones replaced."""
    windows = np.lib.stride_tricks.sliding_window_view(values, _AROUND)
    place = np.clip(np.arange(len(values)) - _AROUND // 2, 0, len(windows) - 1)
    around = np.median(windows, axis=1)[place]
    # Differences of neighbors, because a change in level hardly affects them.
    far = _FAR * _DEVIATIONS * np.median(np.abs(np.diff(values)))
    filtered = np.where(np.abs(values - around) > far, around, values) if far else values
    centred: Values = filtered - filtered.mean()
    return centred


def _split(rows: Values) -> tuple[Values, list[int]]:
    """The largest sum of squares between the two sides of a split, in each row; and the split of the last row."""
    n = rows.shape[1]
    left = np.arange(SHORTEST, n - SHORTEST + 1)
    # The rows have mean 0, so the sum of one side gives both means.
    sums = np.cumsum(rows, axis=1)[:, left - 1]
    between = sums**2 * (n / (left * (n - left)))
    return between.max(axis=1), [int(left[between[-1].argmax()])]


def _stretch(rows: Values) -> tuple[Values, list[int]]:
    """The same for an inner stretch and the rest around it."""
    count, n = rows.shape
    sums = np.hstack([np.zeros((count, 1)), np.cumsum(rows, axis=1)])
    most, places = np.zeros(count), [SHORTEST, n - SHORTEST]
    for length in range(SHORTEST, n - 2 * SHORTEST + 1):
        inside = sums[:, SHORTEST + length : n - SHORTEST + 1] - sums[:, SHORTEST : n - SHORTEST - length + 1]
        between = inside**2 * (n / (length * (n - length)))
        if between[-1].max() > most[-1]:
            start = SHORTEST + int(between[-1].argmax())
            places = [start, start + length]
        most = np.maximum(most, between.max(axis=1))
    return most, places


def _tested(values: Values, test: _Test, level: float) -> tuple[float, list[int]]:
    """The share of shuffled copies whose statistic is as large, and the places where it is largest in the series.

    The share is 1.0 as soon as it is certain to exceed the level. This does not change which series are below it (Besag
    and Clifford, Biometrika 78, 1991, 301-304).
    """
    generator = np.random.default_rng(_SEED)
    (observed,), places = test(values[None])
    as_large = 1
    for _ in range(SHUFFLES // _BATCH):
        copies = generator.permuted(np.broadcast_to(values, (_BATCH, len(values))), axis=1)
        as_large += int(np.count_nonzero(test(copies)[0] * _ROUNDING >= observed))
        if as_large > level * (SHUFFLES + 1):
            return 1.0, places
    return as_large / (SHUFFLES + 1), places
