"""Two runs beside one another: what differs in each metric's median and p95, and whether more than chance would.

Knows the bootstrap. Leaves the metrics to ``metrics.py`` and which rows count to ``analysis.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from deltatap.analysis.compute import counting_rows
from deltatap.analysis.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyspark.sql import SparkSession

    from deltatap.config import Settings

Values = np.ndarray[Any, np.dtype[np.float64]]
COMPARED = {"p50": 0.5, "p95": 0.95}
REPLICATES = 1_000
# So many rows of a run and mode at most: more make the interval narrower, and this slow.
ROWS = 5_000
_SEED = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A quantile of two samples, and second less first with its 95 % interval (None where a sample is too small)."""

    first: float
    second: float
    low: float | None
    high: float | None

    @property
    def value(self) -> float:
        """The second less the first."""
        return self.second - self.first

    @property
    def clear(self) -> bool:
        """Whether the interval holds no zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def difference(first: Values, second: Values, p: float) -> Difference:
    """The difference of a quantile, by the percentile bootstrap: both samples are drawn anew, each by itself.

    Below two values on either side there is no interval (Efron and Tibshirani, An Introduction to the Bootstrap, 13).
    """
    there = float(np.quantile(first, p)), float(np.quantile(second, p))
    if min(len(first), len(second)) < 2:  # noqa: PLR2004
        return Difference(*there, None, None)
    generator = np.random.default_rng(_SEED)
    drawn = [
        np.array([np.quantile(generator.choice(values, len(values)), p) for _ in range(REPLICATES)])
        for values in (first, second)
    ]
    low, high = np.quantile(drawn[1] - drawn[0], (0.025, 0.975))
    return Difference(*there, float(low), float(high))


def compare(spark: SparkSession, settings: Settings, first: str, second: str) -> dict[tuple[str, str, str], Difference]:
    """The differences of two runs, by mode, metric and quantile; only where both have values."""
    samples = [_samples(spark, settings, run_id) for run_id in (first, second)]
    return {
        (mode, name, quantile): difference(values, samples[1][mode, name], p)
        for (mode, name), values in samples[0].items()
        if (mode, name) in samples[1]
        for quantile, p in COMPARED.items()
    }


def _samples(spark: SparkSession, settings: Settings, run_id: str) -> Mapping[tuple[str, str], Values]:
    """A run's values that count, by mode and metric; of many rows a sample that is the same each time."""
    rows = counting_rows(spark, settings, run_id, ROWS).toArrow()
    modes = {mode: rows.filter(pc.equal(rows["mode"], mode)) for mode in ("stream", "complete")}
    return {
        (mode, metric.name): values
        for mode, its in modes.items()
        for metric in METRICS
        if len(values := its[metric.name].drop_null().to_numpy())
    }
