"""Reads a metric over runs from runs and captures, or from ``metrics_by_run``, for its trend.

``series.py`` finds the changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltatap.analysis.compare import COMPARED
from deltatap.analysis.facts import SAID, of_run, said
from deltatap.analysis.metrics import METRICS
from deltatap.analysis.names import series_key
from deltatap.analysis.queries import HAS_ROWS, captures_sql, newest_runs, require_table
from deltatap.analysis.series import Measure, series
from deltatap.analysis.sql import in_runs, measured_sql, quantile_sql
from deltatap.delta import tables
from deltatap.delta.reader import rows
from deltatap.errors import ConfigError
from deltatap.model import RunStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deltatap.analysis.series import Change, Series
    from deltatap.config import Settings
    from deltatap.delta.reader import Reader

    Row = Mapping[str, Any]

# How many runs are searched for runs with the labels.
_RUNS = 10_000
# How many runs the table metrics_changes covers, newest first.
_COVERED = 100


def trend(reader: Reader, settings: Settings, measure: Measure, runs: Sequence[Row]) -> list[Series]:
    """The series of a measure over some runs (rows of ``runs``).

    Raises:
        ConfigError: there is no captures table, or no run has a value.
    """
    require_table(reader, "captures", settings.captures.table)
    found = series_over(reader, settings, measure, runs)
    if not found:
        raise ConfigError([f"captures.table: {settings.captures.table}: no value of {measure} in {len(runs):,} runs"])
    return found


def series_over(reader: Reader, settings: Settings, measure: Measure, runs: Sequence[Row]) -> list[Series]:
    """The series of a measure over some runs; empty if no run has a value."""
    return series(measured_runs(reader, settings, measure, runs), runs, facts(reader, settings, runs), measure)


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
    captures = captures_sql(reader, settings, in_runs(run["run_id"] for run in runs))
    (metric,) = (each for each in METRICS if each.name == measure.metric)
    found = reader.query(
        f"""
        SELECT run_id, endpoint, request_model, mode, CAST(size(found) AS BIGINT) AS rows,
          {quantile_sql("found", COMPARED[measure.quantile])} AS estimate
        FROM (
          SELECT run_id, endpoint, request_model, mode,
            sort_array(collect_list(CASE WHEN {metric.rows} THEN {metric.name} END)) AS found
          FROM ({measured_sql(settings, captures)}) GROUP BY run_id, endpoint, request_model, mode
        )
        """
    )
    return rows(found)


def facts(reader: Reader, settings: Settings, runs: Sequence[Row]) -> dict[tuple[Any, ...], dict[str, str]]:
    """The facts of each run, endpoint, model and mode."""
    if not runs:
        return {}
    called = "status = 'completed' AND started_at IS NOT NULL"
    captures = captures_sql(reader, settings, f"{in_runs(run['run_id'] for run in runs)} AND {called}")
    said_sql = ", ".join(f"{sql} AS {name}" for name, sql in SAID.items())
    columns = ", ".join(("run_id", "endpoint", "request_model", "mode", *SAID))
    counted = reader.query(
        f"""
        SELECT {columns}, count(*) AS rows
        FROM (SELECT run_id, endpoint, request_model, mode, {said_sql} FROM ({captures})) GROUP BY {columns}
        """
    )
    by_series: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows(counted):
        by_series.setdefault(series_key(row), []).append(row)
    of_runs = {run["run_id"]: of_run(run) for run in runs}
    return {key: said(its_rows) | of_runs[key[0]] for key, its_rows in by_series.items()}


def changes_table(reader: Reader, settings: Settings, by_run: str) -> list[dict[str, Any]]:
    """The rows of ``metrics_changes``: the changes of every metric in the newest runs.

    Args:
        reader: reads the tables.
        settings: name the tables.
        by_run: the table ``metrics_by_run``.
    """
    runs = ended_runs(reader, settings, _COVERED, {})
    if not runs:
        return []
    names = ", ".join(metric.name for metric in METRICS)
    computed = rows(
        reader.query(
            f"""
            SELECT run_id, endpoint, request_model, mode, {names} FROM {tables.quoted(by_run)}
            WHERE {in_runs(run["run_id"] for run in runs)}
            """
        )
    )
    known = facts(reader, settings, runs)
    return [
        _row(each, change)
        for metric in METRICS
        for quantile in COMPARED
        for each in series(_estimates(computed, metric.name, quantile), runs, known, Measure(metric.name, quantile))
        for change in each.changes
    ]


def _estimates(computed: Iterable[Row], metric: str, quantile: str) -> list[dict[str, Any]]:
    """Rows of ``metrics_by_run`` as :func:`measured_runs` returns them."""
    return [{**row, "rows": row[metric]["count"], "estimate": row[metric][quantile]} for row in computed]


def _row(found: Series, change: Change) -> dict[str, Any]:
    levels = change.difference
    return {
        "endpoint": found.endpoint,
        "request_model": found.request_model,
        "mode": found.mode,
        "metric": found.measure.metric,
        "quantile": found.measure.quantile,
        "run_id": change.run_id,
        "started_at": change.started_at,
        "runs_before": change.before,
        "runs_after": change.after,
        "before": levels.first,
        "after": levels.second,
        "difference": {"value": levels.value, "low": levels.low, "high": levels.high},
        "p": change.p,
        "changed": [{"what": each.what, "before": each.before, "after": each.after} for each in change.with_it],
    }
