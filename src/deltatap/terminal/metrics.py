"""Prints the metrics of runs, and the comparison of two runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deltatap.analysis.metrics import METRICS, signed
from deltatap.analysis.uncounted import REASONS
from deltatap.prices import money
from deltatap.terminal.console import line
from deltatap.visible import json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.console import Console

    from deltatap.analysis.compare import Counted, Difference
    from deltatap.analysis.conditions import Outcome, Reached

# A generated run id fits into two lines of this width.
_HALF_ID = 11
# Columns of a comparison: the two runs, and the difference in percent.
_RUNS, _SHARE = (1, 2), 4
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
    first: str,
    second: str,
    differences: Mapping[tuple[str, str, str], Difference],
    counted: Mapping[str, Sequence[Counted]],
) -> None:
    """Print the differences between two runs. A difference whose interval excludes zero has a mark.

    Args:
        console: to print to.
        first: the first run.
        second: the second run.
        differences: by mode, metric and quantile.
        counted: by mode, for each run: its rows, and those whose times do not count.
    """
    if not differences:
        console.print("nothing to compare: no mode has latencies in both runs", soft_wrap=True)
        _show_left_out(console, (first, second), counted)
        return
    for mode in dict.fromkeys(mode for mode, _, _ in differences):
        line(console, mode, style="bold")
        of_mode = {(name, quantile): found for (at, name, quantile), found in differences.items() if at == mode}
        console.print(_comparison(first, second, of_mode, console.width))
    line(console, f"difference: {second} minus {first}; *: its interval excludes zero", style="dim")
    _show_left_out(console, (first, second), counted)


def _comparison(first: str, second: str, differences: Mapping[tuple[str, str], Difference], width: int) -> Table:
    """Print the differences of one mode, also in percent if the width allows it."""
    rows = [
        [
            f"{_METRICS[name].label} {quantile}, {_METRICS[name].unit}",
            f"{found.first:,.1f}",
            f"{found.second:,.1f}",
            f"{'* ' if found.clear else ''}{signed(found.value)}",
            f"{signed(100 * found.value / abs(found.first))}%" if found.first else "",
            _interval(found.low, found.high, signed),
        ]
        for (name, quantile), found in differences.items()
    ]
    # Each column, with its title first. Long run ids may wrap.
    columns = [
        list(column) for column in zip(("metric", first, second, "difference", "", "95 % interval"), *rows, strict=True)
    ]
    folded = [[column[0][:_HALF_ID], *column[1:]] if at in _RUNS else column for at, column in enumerate(columns)]
    widths = [1 + max(map(len, column)) for column in folded]
    if sum(widths) > width:
        del columns[_SHARE], widths[_SHARE]
    fits = sum(widths) <= width
    table = Table(box=None, padding=(0, 1, 0, 0))
    for at, (title, *_) in enumerate(columns):
        if at in _RUNS:
            table.add_column(title, justify="right", overflow="fold", min_width=_HALF_ID)
        else:
            table.add_column(title, justify="right" if at else "left", no_wrap=fits or at > 0)
    for cells in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*cells)
    return table


def _show_left_out(console: Console, names: Sequence[str], counted: Mapping[str, Sequence[Counted]]) -> None:
    """Say how many rows of each run are left out of the latencies, and why."""
    for mode, runs in counted.items():
        for name, run in zip(names, runs, strict=True):
            if left_out := sum(run.left_out.values()):
                whys = ", ".join(
                    f"{run.left_out[why]:,} {said}" for why, said in REASONS.items() if why in run.left_out
                )
                times = f"{run.rows - left_out:,} of {run.rows:,} rows count in the latencies"
                line(console, f"{mode}, {name}: {times}; left out: {whys}", style="dim")


def show_counts(
    console: Console,
    names: Mapping[str, str],
    counts: Iterable[Mapping[str, Any]],
    good: Mapping[str, tuple[int, int]],
) -> None:
    """Print a line for each run: its rows by status, retries, good requests and cost.

    Args:
        console: to print to.
        names: of the runs, by their ids.
        counts: from ``queries.counts_of``.
        good: from ``queries.good_requests``.
    """
    for row in counts:
        facts = [f"{row[name]:,} {name}" for name in ("completed", "interrupted", "failed") if row[name]]
        facts.append(f"{row['retries']:,} {'retry' if row['retries'] == 1 else 'retries'}")
        if row["run_id"] in good:
            count, sent = good[row["run_id"]]
            facts.append(f"{count:,}/{sent:,} requests good ({count / sent:.1%})")
        if row["cost_usd"] is not None:
            facts.append(f"${money(row['cost_usd'])}")
        line(console, f"{names[row['run_id']]}: {', '.join(facts)}")


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
