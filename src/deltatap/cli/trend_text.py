"""The output of ``trend``: a table of runs for each series with marks at its changes, or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltatap.analysis.changes import FEWEST
from deltatap.analysis.facts import changed
from deltatap.analysis.metrics import METRICS
from deltatap.analysis.names import run_names
from deltatap.analysis.series import FEWEST_VALUES
from deltatap.program import program
from deltatap.terminal.console import columns, fits
from deltatap.visible import json_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from deltatap.analysis.conditions import Outcome
    from deltatap.analysis.facts import Changed
    from deltatap.analysis.series import Change, Point, Series

    Row = Mapping[str, Any]

_METRICS = {metric.name: metric for metric in METRICS}
_BARS = "▁▂▃▄▅▆▇█"
# Maximum number of runs to list at which something else changed, newest first.
_LISTED = 10
# With fewer values, the 95 % interval of p95 has no upper end.
_FEWEST_VALUES = {"p50": f"{FEWEST_VALUES} or more", "p95": "about 75 or more"}


def show_trend(console: Console, found: Iterable[Series], runs: Sequence[Row]) -> None:
    """Print the series: a table of runs, the changes, and other runs at which something else changed."""
    names = run_names(runs)
    for each in found:
        _show_table(console, each, names)
        unit = _METRICS[each.measure.metric].unit
        for change in each.changes:
            _line(console, f"* {_when(change)} {names[change.run_id]}: {change_text(change, unit)}", "bold")
            for what in change.with_it or ("nothing that deltatap records",):
                _line(console, f"    also changed: {what}")
        _show_other(console, each, names)
        if each.deciding < FEWEST:
            _line(
                console,
                f"no change points yet: {each.deciding} of {len(each.points)} runs have enough values "
                f"({_FEWEST_VALUES[each.measure.quantile]}), and at least {FEWEST} such runs are needed; compare two "
                f"runs with `{program()} compare`",
                "dim",
            )
        elif not each.changes:
            _line(console, f"no change in {each.deciding} runs", "dim")


def _show_table(console: Console, each: Series, names: Mapping[str, str]) -> None:
    metric = _METRICS[each.measure.metric]
    title = (
        f"{metric.label} {each.measure.quantile}, {metric.unit}: {each.request_model} at {each.endpoint}, {each.mode}"
    )
    _line(console, title, "bold")
    table = _table(each, names)
    if fits(console, table):
        console.print(table)
        return
    # A word of a label is too long for the table.
    console.print(_table(each, dict(zip(names, names, strict=True))))
    for point in each.points:
        if (name := names[point.run_id]) != point.run_id:
            console.print(f"{point.run_id}: {name}", markup=False, highlight=False)


def _table(each: Series, names: Mapping[str, str]) -> Table:
    """The runs of a series. Only the names of runs may wrap, between words."""
    table = columns()
    table.add_column("", no_wrap=True)
    table.add_column("started", no_wrap=True)
    table.add_column("run")
    for name in ("rows", each.measure.quantile, f"95 % interval of {each.measure.quantile}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    starts = {change.run_id for change in each.changes}
    other = {point.run_id for point, _ in other_facts(each)}
    bars = _bars(each.points)
    for point, bar in zip(each.points, bars, strict=True):
        mark = "*" if point.run_id in starts else "~" if point.run_id in other else ""
        table.add_row(
            mark,
            _when(point),
            names[point.run_id],
            f"{point.rows:,}",
            "" if point.value is None else f"{point.value:,.1f}",
            _ends(point.low, point.high) if point.decides else "too few",
            bar,
            style="dim" if not point.decides else "bold" if mark == "*" else None,
        )
    return table


def _show_other(console: Console, each: Series, names: Mapping[str, str]) -> None:
    """List the runs at which something else changed, except for change points."""
    starts = {change.run_id for change in each.changes}
    other = [(point, what) for point, what in other_facts(each) if point.run_id not in starts]
    for point, what in other[-_LISTED:]:
        _line(console, f"~ {_when(point)} {names[point.run_id]}: {', '.join(map(str, what))}", "dim")
    if len(other) > _LISTED:
        _line(console, f"~ and {len(other) - _LISTED} earlier runs; --json lists all", "dim")


def other_facts(each: Series) -> list[tuple[Point, tuple[Changed, ...]]]:
    """The runs at which a fact differs from the run before, each with the facts that differ."""
    pairs = zip(each.points, each.points[1:], strict=False)
    found = [(after, changed([before.facts], [after.facts])) for before, after in pairs if before.facts and after.facts]
    return [(point, what) for point, what in found if what]


def change_text(change: Change, unit: str) -> str:
    """A change as text: its size, the levels before and after it, and the number of runs."""
    found = change.difference
    share = f"{found.value / abs(found.first):+.1%}, " if found.first else ""
    interval = "" if found.low is None else f", 95 % interval of the difference {found.low:+,.1f} to {found.high:+,.1f}"
    levels = f"from {found.first:,.1f} ({change.before} runs) to {found.second:,.1f} {unit} ({change.after} runs)"
    return f"{share}{levels}{interval}"


def trend_json(found: Iterable[Series], runs: Sequence[Row], outcomes: Iterable[tuple[Outcome, Change]]) -> str:
    """The series, their changes and the outcomes of conditions, as JSON."""
    labels = {run["run_id"]: dict(run["labels"] or {}) for run in runs}
    return json_text(
        {
            "series": [_series(each, labels) for each in found],
            "conditions": [
                {
                    "condition": outcome.condition.text,
                    "mode": outcome.mode,
                    "run_id": change.run_id,
                    "holds": outcome.holds,
                }
                for outcome, change in outcomes
            ],
        },
        indent=2,
    )


def _series(each: Series, labels: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    other = {point.run_id: what for point, what in other_facts(each)}
    return {
        "endpoint": each.endpoint,
        "request_model": each.request_model,
        "mode": each.mode,
        "metric": each.measure.metric,
        "quantile": each.measure.quantile,
        "unit": _METRICS[each.measure.metric].unit,
        "runs": [
            {
                "run_id": point.run_id,
                "started_at": point.started_at.isoformat(),
                "labels": labels[point.run_id],
                "rows": point.rows,
                "value": point.value,
                "low": point.low,
                "high": point.high,
                "tested": point.decides,
                "changed": _changed(other.get(point.run_id, ())),
            }
            for point in each.points
        ],
        "changes": [
            {
                "run_id": change.run_id,
                "started_at": change.started_at.isoformat(),
                "runs_before": change.before,
                "runs_after": change.after,
                "before": change.difference.first,
                "after": change.difference.second,
                "difference": change.difference.value,
                "low": change.difference.low,
                "high": change.difference.high,
                "p": change.p,
                "changed": _changed(change.with_it),
            }
            for change in each.changes
        ],
    }


def _changed(found: Iterable[Changed]) -> list[dict[str, str]]:
    return [{"what": each.what, "before": each.before, "after": each.after} for each in found]


def _bars(points: Sequence[Point]) -> list[str]:
    """A bar for each value, scaled between the smallest and the largest value of the tested runs."""
    values = [point.value for point in points if point.decides and point.value is not None]
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    steps = (len(_BARS) - 1) / (highest - lowest) if highest > lowest else 0.0
    return [
        _BARS[round((point.value - lowest) * steps)] if point.decides and point.value is not None else ""
        for point in points
    ]


def _when(point: Point | Change) -> str:
    return f"{point.started_at:%Y-%m-%d %H:%M}"


def _ends(low: float | None, high: float | None) -> str:
    return f"{low:,.1f} to {high:,.1f}"


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
