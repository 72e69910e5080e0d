"""Series of runs: a metric in each run, where its level changed, what else changed there, and conditions on changes.

Works on records and reads no tables. ``changes.py`` finds the change points in numbers, ``facts.py`` says what a run
was captured with, ``trend.py`` reads the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deltatap.analysis.changes import change_points
from deltatap.analysis.compare import COMPARED, Difference, difference
from deltatap.analysis.conditions import Outcome, did_you_mean_metric, parse
from deltatap.analysis.facts import Changed, changed
from deltatap.analysis.metrics import METRICS
from deltatap.analysis.names import series_key
from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from deltatap.analysis.conditions import Condition
    from deltatap.analysis.facts import Facts

    Row = Mapping[str, Any]

# A run with fewer values is shown, but not tested.
FEWEST_VALUES = 20
_MODES = ("stream", "complete")


@dataclass(frozen=True, slots=True)
class Measure:
    """The measure of a trend: a quantile of a metric, in one mode or (None) in each."""

    metric: str
    quantile: str
    mode: str | None = None

    def __str__(self) -> str:
        return ".".join(filter(None, (self.mode, self.metric, self.quantile)))


@dataclass(frozen=True, slots=True)
class Point:
    """A run of a series.

    Attributes:
        rows: number of values; a row whose times do not count has none.
        value: the quantile; None without values.
        low: lower end of its 95 % interval; None if there are too few values.
        high: its upper end.
        facts: what the run was captured with.
    """

    run_id: str
    started_at: datetime
    rows: int
    value: float | None
    low: float | None
    high: float | None
    facts: Facts

    @property
    def decides(self) -> bool:
        """Whether the run has enough values to count for the level."""
        return self.rows >= FEWEST_VALUES and None not in (self.value, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Change:
    """A change point: the first run at which the metric has a new level.

    Attributes:
        before: number of runs at the old level.
        after: number of runs at the new level.
        difference: between the medians of the runs' values on both levels, with its bootstrap interval.
        p: how often runs without a change would show one as large.
        with_it: the facts that changed at the same run: those of most runs before, and those of most runs after.
    """

    run_id: str
    started_at: datetime
    before: int
    after: int
    difference: Difference
    p: float
    with_it: tuple[Changed, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """The runs of one endpoint, model and mode, oldest first, and the changes of a measure in them."""

    endpoint: str | None
    request_model: str | None
    mode: str
    measure: Measure
    points: tuple[Point, ...]
    changes: tuple[Change, ...]

    @property
    def deciding(self) -> int:
        """Number of runs with enough values."""
        return sum(point.decides for point in self.points)


def parse_measure(text: str) -> Measure:
    """Parse ``[MODE.]METRIC[.p50 or .p95]``.

    Raises:
        ConfigError: the text is not such a name, or the metric does not exist.
    """
    parts = text.strip().split(".")
    quantile = parts.pop() if parts[-1] in COMPARED else "p50"
    metric, *mode = reversed(parts) if parts else [""]
    names = [each.name for each in METRICS]
    if len(mode) > 1 or any(name not in _MODES for name in mode):
        raise ConfigError([f"METRIC {text}: expected [stream. or complete.]METRIC[.p50 or .p95], such as ttft_ms.p50"])
    if metric not in names:
        why = f"metric {metric or 'without a name'} does not exist{did_you_mean_metric(metric)}"
        raise ConfigError([f"METRIC {text}: {why}"])
    return Measure(metric, quantile, *mode)


def conditions_on(measure: Measure, texts: Iterable[str]) -> list[Condition]:
    """Parse conditions on a measure: as in ``compare``, or without the name.

    Raises:
        ConfigError: with every condition that cannot be parsed, or that is on another measure.
    """
    conditions = parse(f"{measure}{text.strip()}" if text.lstrip()[:1] in ("<", ">") else text for text in texts)
    shown = (measure.metric, measure.quantile)
    others = [
        each
        for each in conditions
        if (each.metric, each.quantile) != shown or (each.mode or measure.mode) != (measure.mode or each.mode)
    ]
    if others:
        raise ConfigError([f"--fail-if {each.text}: expected a condition on {measure}" for each in others])
    return conditions


def labels_of(texts: Iterable[str]) -> dict[str, str]:
    """Parse labels.

    Raises:
        ConfigError: a text is not ``NAME=VALUE``.
    """
    parts = {text: text.partition("=") for text in texts}
    if problems := [
        f"--label {text}: expected NAME=VALUE" for text, (name, equals, _) in parts.items() if not name or not equals
    ]:
        raise ConfigError(problems)
    return {name: value for name, _, value in parts.values()}


def series(
    measured: Iterable[Row], runs: Sequence[Row], known: Mapping[tuple[Any, ...], Facts], measure: Measure
) -> list[Series]:
    """The series of measured runs that have a value, with their changes.

    Args:
        measured: rows of :func:`measured_runs`.
        runs: rows of ``runs``, oldest first.
        known: the facts by run, endpoint, model and mode.
        measure: what was measured.
    """
    by_series: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in measured:
        if measure.mode in (None, row["mode"]):
            by_series.setdefault(series_key(row)[1:], {})[row["run_id"]] = row
    made = []
    for key, its_rows in by_series.items():
        endpoint, model, mode = key
        points = tuple(
            _point(run, its_rows[run["run_id"]], known.get((run["run_id"], *key), {}))
            for run in runs
            if run["run_id"] in its_rows
        )
        if any(point.rows for point in points):
            made.append(Series(endpoint, model, mode, measure, points, changes(points)))
    return sorted(made, key=lambda each: (each.endpoint or "", each.request_model or "", each.mode != "stream"))


def _point(run: Row, measured: Row, its_facts: Facts) -> Point:
    value, low, high = (measured["estimate"][name] for name in ("value", "low", "high"))
    return Point(run["run_id"], run["started_at"], measured["rows"], value, low, high, its_facts)


def changes(points: Sequence[Point]) -> tuple[Change, ...]:
    """The changes in a series, oldest first. Only runs with enough values decide."""
    deciding = [point for point in points if point.decides]
    values = np.array([point.value for point in deciding], dtype=float)
    found = change_points(values)
    places = [0, *(place for place, _ in found), len(deciding)]
    made = []
    for (place, p), start, end in zip(found, places, places[2:], strict=False):
        made.append(
            Change(
                deciding[place].run_id,
                deciding[place].started_at,
                place - start,
                end - place,
                difference(values[start:place], values[place:end], 0.5),
                p,
                changed(
                    [point.facts for point in deciding[start:place]], [point.facts for point in deciding[place:end]]
                ),
            )
        )
    return tuple(made)


def new_changes(found: Series, newest: int) -> list[Change]:
    """The changes that start in the newest runs of a series."""
    new = {point.run_id for point in found.points[-newest:]}
    return [change for change in found.changes if change.run_id in new]


def judged(conditions: Iterable[Condition], found: Iterable[Series], newest: int) -> list[tuple[Outcome, Change]]:
    """The outcome of each condition for each change in the newest runs. Changes that are older have no outcome."""
    return [
        (Outcome(condition, each.mode, change.difference), change)
        for condition in conditions
        for each in found
        if condition.mode in (None, each.mode)
        for change in new_changes(each, newest)
    ]
