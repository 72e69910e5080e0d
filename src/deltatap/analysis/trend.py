"""A metric over runs: its value and interval in each run, and where its level changed and what changed with it.

Reads runs and captures through a :class:`~deltatap.delta.reader.Reader`. ``changes.py`` finds the change points in
numbers, ``facts.py`` says what a run was captured with.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deltatap.analysis.changes import change_points
from deltatap.analysis.compare import COMPARED, Difference, difference
from deltatap.analysis.conditions import Outcome, parse
from deltatap.analysis.facts import SAID, Changed, changed, of_run, said
from deltatap.analysis.metrics import METRICS
from deltatap.analysis.names import series_key
from deltatap.analysis.queries import HAS_ROWS, newest_runs, require_table
from deltatap.analysis.sql import in_runs, measured_sql, quantile_sql
from deltatap.delta import tables
from deltatap.delta.reader import rows
from deltatap.errors import ConfigError
from deltatap.model import RunStatus
from deltatap.prompt_columns import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from deltatap.analysis.conditions import Condition
    from deltatap.analysis.facts import Facts
    from deltatap.config import Settings
    from deltatap.delta.reader import Reader

    Row = Mapping[str, Any]

# A run with fewer values is shown, but decides nothing.
FEWEST_VALUES = 20
# How many runs are looked through for those with the labels.
_RUNS = 10_000
_MODES = ("stream", "complete")


@dataclass(frozen=True, slots=True)
class Measure:
    """What a trend shows: a quantile of a metric, in one mode or (None) in each."""

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
        high: upper end, likewise.
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
        """Whether the run has enough values to say something about the level."""
        return self.rows >= FEWEST_VALUES and None not in (self.value, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Change:
    """A change point: the run from which the metric has a new level.

    Attributes:
        before: number of runs on the old level.
        after: number of runs on the new level.
        difference: between the medians of the runs' values on both levels, with its bootstrap interval.
        p: how often runs without a change would show one as large.
        with_it: what changed with it, between most runs before and most runs after.
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
        hint = did_you_mean(*difflib.get_close_matches(metric, names, 1)) or f"; metrics: {', '.join(names)}"
        raise ConfigError([f"METRIC {text}: metric {metric or 'without a name'} does not exist{hint}"])
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


def trend(reader: Reader, settings: Settings, measure: Measure, runs: Sequence[Row]) -> list[Series]:
    """The series of a measure over some runs (rows of ``runs``).

    Raises:
        ConfigError: there is no captures table, or no run has a value.
    """
    require_table(reader, "captures", settings.captures.table)
    found = series(measured_runs(reader, settings, measure, runs), runs, facts(reader, settings, runs), measure)
    if not found:
        raise ConfigError([f"captures.table: {settings.captures.table}: no value of {measure} in {len(runs):,} runs"])
    return found


def ended_runs(reader: Reader, settings: Settings, most: int, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The newest runs on the captures table that have ended, have rows and have these labels, oldest first."""
    only_if = f"{HAS_ROWS} AND status != '{RunStatus.RUNNING}'"
    found = newest_runs(reader, settings, _RUNS if labels else most, only_if)
    alike = [row for row in found if labels.items() <= dict(row["labels"] or {}).items()]
    return alike[:most][::-1]


def measured_runs(reader: Reader, settings: Settings, measure: Measure, runs: Sequence[Row]) -> list[dict[str, Any]]:
    """The measure in each run, endpoint, model and mode: number of values, and an estimate with its interval."""
    if not runs:
        return []
    captures = f"SELECT * FROM {tables.quoted(settings.captures.table)} WHERE {in_runs(run['run_id'] for run in runs)}"
    found = reader.query(
        f"""
        SELECT run_id, endpoint, request_model, mode, CAST(size(found) AS BIGINT) AS rows,
          {quantile_sql("found", COMPARED[measure.quantile])} AS estimate
        FROM (
          SELECT run_id, endpoint, request_model, mode,
            sort_array(collect_list(CASE WHEN counts THEN {measure.metric} END)) AS found
          FROM ({measured_sql(settings, captures)}) GROUP BY run_id, endpoint, request_model, mode
        )
        """
    )
    return rows(found)


def facts(reader: Reader, settings: Settings, runs: Sequence[Row]) -> dict[tuple[Any, ...], dict[str, str]]:
    """The facts of each run, endpoint, model and mode."""
    if not runs:
        return {}
    counted = reader.query(
        f"""
        SELECT run_id, endpoint, request_model, mode, {", ".join(SAID)}, count(*) AS rows
        FROM {tables.quoted(settings.captures.table)}
        WHERE {in_runs(run["run_id"] for run in runs)} AND status = 'completed' AND started_at IS NOT NULL
        GROUP BY run_id, endpoint, request_model, mode, {", ".join(SAID)}
        """
    )
    by_series: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows(counted):
        by_series.setdefault(series_key(row), []).append(row)
    of_runs = {run["run_id"]: of_run(run) for run in runs}
    return {key: said(its_rows) | of_runs[key[0]] for key, its_rows in by_series.items()}


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
