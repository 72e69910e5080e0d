"""Prints the metrics of runs, and the comparison of two runs."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deltatap.analysis.metrics import METRICS, signed
from deltatap.analysis.uncounted import REASONS
from deltatap.prices import money
from deltatap.terminal.console import columns, fits, line
from deltatap.visible import json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.console import Console

    from deltatap.analysis.compare import Counted, Difference
    from deltatap.analysis.conditions import Outcome, Reached
    from deltatap.analysis.metrics import Metric

# The short names of the two runs in a comparison. Columns have them if the real names do not fit.
_RUNS = ("A", "B")
# The metrics that a comparison shows first, beginning with what a user waits for. The others follow.
_IMPORTANT = (
    "ttft_ms", "ttft_scheduled_ms", "ttfot_ms", "e2e_ms", "e2e_scheduled_ms", "tpot_ms", "itl_ms", "stall_ms",
    "tokens_per_s",
)  # fmt: skip
# Changes from here on are not shown in percent.
_MOST_PERCENT = 1_000
# Values from here on have no decimal; neither have changes from ten on.
_THOUSAND, _TEN = 999.95, 9.95
_METRICS = {metric.name: metric for metric in METRICS}


def show_metrics(console: Console, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows of ``metrics_by_run``: medians with their intervals, and p95."""
    for row in rows:
        title = f"run {row['run_id']}, {row['request_model']} at {row['endpoint']}, {row['mode']}: {row['rows']:,} rows"
        late = f", {row['late']:,} left out because the event loop ran late" if row["late"] else ""
        cached = row["cached_share"]
        hits = "" if cached is None else f", {cached:.1%} of the input tokens cached"
        line(console, f"{title}{late}{hits}", style="bold")
        table = Table()
        table.add_column("metric")
        for name in ("median", "95 % interval", "p95", "rows"):
            table.add_column(name, justify="right")
        for metric in METRICS:
            values = row[metric.name]
            if values["count"]:
                median = values["p50"]
                table.add_row(
                    f"{metric.title}, {metric.unit}",
                    f"{median['value']:,.1f}",
                    _interval(median["low"], median["high"]),
                    f"{values['p95']['value']:,.1f}",
                    f"{values['count']:,}",
                )
        gaps = row["inter_chunk_ms"]
        if gaps["count"]:
            median, p95 = f"{gaps['p50']:,.1f}", f"{gaps['p95']:,.1f}"
            # Outputs that arrived in the same socket read as an earlier one have no gap.
            merged = f", excluding {row['coalesced']:.1%} of the outputs" if row["coalesced"] else ""
            table.add_row("inter-chunk latency, ms", median, "", p95, f"{gaps['count']:,} gaps{merged}")
        if table.row_count:
            console.print(table)
        else:
            line(console, f"no latencies to show: {_why_none(row)}")
        if row["checked"]:
            line(console, f"moderation: {row['flagged']:,} of {row['checked']:,} checked answers are flagged")


def _why_none(row: Mapping[str, Any]) -> str:
    if not row["late"]:
        return "no request completed"
    return (
        f"the event loop ran late during all {row['late']:,} completed requests "
        f"(analysis.max_loop_lag_ms = {json.loads(row['settings'])['max_loop_lag_ms']:g})"
    )


def show_comparison(
    console: Console,
    names: tuple[str, str],
    differences: Mapping[tuple[str, str, str], Difference],
    counted: Mapping[str, Sequence[Counted]],
) -> None:
    """Print the differences between two runs, A and B. A change whose interval excludes zero has a mark.

    Args:
        console: to print to.
        names: of the two runs.
        differences: by mode, metric and quantile.
        counted: by mode, for each run: its rows, and those whose times do not count.
    """
    if not differences:
        console.print("nothing to compare: no mode has latencies in both runs", soft_wrap=True)
    for mode in dict.fromkeys(mode for mode, _, _ in differences):
        line(console, mode, style="bold")
        _show_mode(console, names, {key[1:]: found for key, found in differences.items() if key[0] == mode})
    if differences:
        how = (
            "change: B minus A, in % of A; without %: in the metric's unit, because it or its interval reaches 1,000 %"
        )
        line(console, how, style="dim")
        line(console, "interval: 95 % interval of the change, not of p50 or p95; *: excludes zero", style="dim")
    for mode, runs in counted.items():
        for name, run in zip(_RUNS, runs, strict=True):
            _show_left_out(console, f"{mode}, {name}", run)


def _show_mode(console: Console, names: tuple[str, str], differences: Mapping[tuple[str, str], Difference]) -> None:
    """Print the differences of one mode: a row for each metric, and below, which metrics have the same values."""
    measured, quantiles = ({key[at]: None for key in differences} for at in (0, 1))
    # The metrics with the same unit and the same values as shown.
    rows: dict[tuple[tuple[str, ...], ...], list[Metric]] = {}
    for name in dict.fromkeys((*_IMPORTANT, *_METRICS)):
        if name in measured:
            shown = (_cells(differences.get((name, quantile))) for quantile in quantiles)
            rows.setdefault(((_METRICS[name].unit,), *shown), []).append(_METRICS[name])
    labels = [_label(first) for first, *_ in rows.values()]
    cells_of = {quantile: [key[at] for key in rows] for at, quantile in enumerate(quantiles, start=1)}
    wide, narrow = _table(labels, cells_of, names, "\n"), _table(labels, cells_of, _RUNS)
    if table := next((table for table in (wide, narrow) if fits(console, table)), None):
        console.print(table)
    else:
        for quantile, cells in cells_of.items():
            console.print(_table(labels, {quantile: cells}, _RUNS))
    same = {first.label: ", ".join(each.title for each in others) for first, *others in rows.values() if others}
    _print_words(console, "; ".join(f"same values as {first}: {others}" for first, others in same.items()))


def _label(metric: Metric) -> str:
    return metric.label if metric.unit in ("ms", metric.label) else f"{metric.label}, {metric.unit}"


def _table(
    labels: Sequence[str],
    cells_of: Mapping[str, Sequence[tuple[str, ...]]],
    runs: tuple[str, str],
    between: str = " ",
) -> Table:
    """A table with a row for each label and columns for each quantile. Only the labels may wrap, between words."""
    table = columns()
    table.add_column("metric, ms")
    for quantile in cells_of:
        for title in (*(f"{quantile}{between}{run}" for run in runs), "change", "interval"):
            table.add_column(title, justify="right", no_wrap=True)
    for label, *cells in zip(labels, *cells_of.values(), strict=True):
        table.add_row(label, *(cell for its in cells for cell in its))
    return table


def _cells(found: Difference | None) -> tuple[str, ...]:
    """A difference as cells: both values, the change and its interval."""
    if found is None:
        return ("", "", "", "")
    parts = [found.value, *(end for end in (found.low, found.high) if end is not None)]
    scale = 100 / abs(found.first) if found.first else math.inf
    if in_percent := all(abs(part) * scale < _MOST_PERCENT for part in parts if part):
        parts = [part * scale if part else 0.0 for part in parts]
    change, *ends = (_change(part) for part in parts)
    unit = "%" if in_percent else ""
    interval = f"{'…'.join(ends)}{unit}" if ends else ""
    return _value(found.first), _value(found.second), f"{'* ' if found.clear else ''}{change}{unit}", interval


def _value(value: float) -> str:
    return f"{value:,.1f}" if abs(value) < _THOUSAND else f"{value:,.0f}"


def _change(value: float) -> str:
    """A signed number: below 10, with one decimal."""
    return signed(value) if abs(value) < _TEN else f"{value:+,.0f}"


def _show_left_out(console: Console, whose: str, run: Counted) -> None:
    """Say how many rows of a run are left out of the latencies, and why."""
    if left_out := sum(run.left_out.values()):
        whys = ", ".join(f"{run.left_out[why]:,} {said}" for why, said in REASONS.items() if why in run.left_out)
        times = f"{run.rows - left_out:,} of {run.rows:,} rows count in the latencies"
        line(console, f"{whose}: {times}; left out: {whys}", style="dim")


def show_counts(
    console: Console,
    names: Mapping[str, str],
    counts: Iterable[Mapping[str, Any]],
    good: Mapping[str, tuple[int, int]],
) -> None:
    """Print what A and B are: the name of each run, its rows by status, retries, good requests and cost.

    Args:
        console: to print to.
        names: of the runs, by their ids.
        counts: of the runs A and B, from ``queries.counts_of``.
        good: from ``queries.good_requests``.
    """
    for run, row in zip(_RUNS, counts, strict=True):
        facts = [f"{row[name]:,} {name}" for name in ("completed", "interrupted", "failed") if row[name]]
        facts.append(f"{row['retries']:,} {'retry' if row['retries'] == 1 else 'retries'}")
        if row["run_id"] in good:
            count, sent = good[row["run_id"]]
            facts.append(f"{count:,}/{sent:,} requests good ({count / sent:.1%})")
        if row["cost_usd"] is not None:
            facts.append(f"${money(row['cost_usd'])}")
        _print_words(console, f"{run}: {names[row['run_id']]}: {', '.join(facts)}")


def _print_words(console: Console, text: str) -> None:
    """Print a text that wraps between words, so that names stay whole."""
    if text:
        console.print(text, markup=False, highlight=False)


def comparison_json(
    first: str,
    second: str,
    differences: Mapping[tuple[str, str, str], Difference],
    outcomes: Sequence[Outcome | Reached],
    counts: Iterable[Mapping[str, Any]] = (),
    good: Mapping[str, tuple[int, int]] | None = None,
) -> str:
    """The comparison of two runs as JSON: the differences, the outcomes of conditions, and the counts of each run."""
    return json_text(
        {
            "first": first,
            "second": second,
            "differences": [
                {
                    "mode": mode,
                    "metric": name,
                    "quantile": quantile,
                    "unit": _METRICS[name].unit,
                    "first": found.first,
                    "second": found.second,
                    "difference": found.value,
                    "low": found.low,
                    "high": found.high,
                    "excludes_zero": found.clear,
                }
                for (mode, name, quantile), found in differences.items()
            ],
            "conditions": [
                {"condition": each.condition.text, "mode": each.mode, "holds": each.holds} for each in outcomes
            ],
            "runs": [
                {**row, **dict(zip(("good", "sent"), (good or {}).get(row["run_id"], (None, None)), strict=True))}
                for row in counts
            ],
        },
        indent=2,
    )


def _interval(low: float | None, high: float | None, shown: Callable[[float], str] = "{:,.1f}".format) -> str:
    ends = ["…" if end is None else shown(end) for end in (low, high)]
    return "" if low is None and high is None else " to ".join(ends)
