"""What the commands print: runs, one request, the summary and metrics of runs, the comparison of two runs.

Lays out rows. ``analysis`` reads and computes them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltatap.analysis.metrics import METRICS
from deltatap.model import OUTPUT_KINDS
from deltatap.prices import money

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deltatap.analysis.compare import Difference
    from deltatap.analysis.conditions import Outcome

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 50
# A generated run id fits into two lines of this width.
_HALF_ID = 11
_METRICS = {metric.name: metric for metric in METRICS}


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: names and messages can look like rich's markup."""
    return Console(markup=False, emoji=False, highlight=False, stderr=stderr)


def show_runs(
    console: Console,
    runs: Sequence[Mapping[str, Any]],
    good: Mapping[str, tuple[int, int]],
    slo: Mapping[str, float],
) -> None:
    """Print rows of ``runs``, and what ``queries.good_requests`` returns for the bounds of ``analysis.slo``."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True, min_width=22)
    table.add_column("status", min_width=9)
    table.add_column("started", min_width=10)
    for name in ("done", "broken", "failed", "USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in runs:
        table.add_row(
            row["run_id"],
            row["status"],
            f"{row['started_at']:%Y-%m-%d %H:%M}",
            "" if row["completed"] is None else f"{row['completed']:,}/{row['owed'] or 0:,}",
            *("" if row[name] is None else f"{row[name]:,}" for name in ("interrupted", "failed")),
            "" if row["cost_usd"] is None else money(row["cost_usd"]),
        )
    console.print(table)
    for row in runs:
        if row["reason"]:
            _line(console, f"{row['run_id']}: {row['reason']}")
    for row in runs:
        if row["labels"]:
            _line(console, f"{row['run_id']}: {', '.join(f'{name}={value}' for name, value in row['labels'].items())}")
    for row in runs:
        if row["run_id"] in good:
            _line(console, "{}: {:,}/{:,} requests good".format(row["run_id"], *good[row["run_id"]]))
    if good:
        bounds = ", ".join(f"{name} at most {bound:,.10g}" for name, bound in slo.items())
        _line(console, f"good: completed with {bounds} (analysis.slo)", style="dim")


def show_summary(
    console: Console, run: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]], times: Sequence[Mapping[str, Any]]
) -> None:
    """Print the summary of a run: its row of ``runs``, and what ``queries.summarize`` returns."""
    if not outcomes:
        _line(console, f"run {run['run_id']}: {run['status']}; it added no rows")
        return
    several_modes = len({outcome["mode"] for outcome in outcomes}) > 1
    counts = Table(title=f"run {run['run_id']}: {run['status']}", title_justify="left", title_style="bold")
    for name in ("mode", "status", "finish_reason or error")[not several_modes :]:
        counts.add_column(name)
    for name in ("rows", "retries"):
        counts.add_column(name, justify="right")
    for outcome in outcomes:
        cells = (outcome["mode"], outcome["status"], outcome["why"])[not several_modes :]
        counts.add_row(*cells, f"{outcome['rows']:,}", f"{outcome['retries'] or 0:,}")
    console.print(counts)
    quantiles = Table()
    quantiles.add_column("ms, completed rows")
    for name in ("p50", "p90", "p99"):
        quantiles.add_column(name, justify="right")
    columns = {"TTFT": "ttft_ms", "inter-chunk latency": "itl_ms", "end to end": "e2e_ms", "loop lag": "lag_ms"}
    for row in times:
        for name, column in columns.items():
            if row[column] is not None:
                label = f"{name}, {row['mode']}" if several_modes else name
                quantiles.add_row(label, *(f"{value:,.1f}" for value in row[column]))
    if quantiles.row_count:
        console.print(quantiles)
    _show_late(console, times)
    _show_examples(console, outcomes)
    cost = "no price" if run["cost_usd"] is None else f"${money(run['cost_usd'])}"
    tokens = f"{run['input_tokens']:,} input tokens, {run['output_tokens']:,} output tokens"
    _line(console, f"{run['requests']:,} call{'s' * (run['requests'] != 1)}, {tokens}, {cost}")


def _show_late(console: Console, times: Sequence[Mapping[str, Any]]) -> None:
    """Say why the report's latencies differ from those of the summary, if they do."""
    if late := sum(row["late"] for row in times):
        rows = f"{late:,} row{'s' * (late > 1)} ran on a late event loop (over {times[0]['max_loop_lag_ms']:g} ms)"
        left_out = f"report, compare and analyze leave {'them' if late > 1 else 'it'} out of the latencies"
        _line(console, f"{rows}; {left_out}: lower capture.concurrency, or use a machine that is less busy")


def _show_examples(console: Console, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Name a request of each kind that did not complete."""
    examples = {(row["status"], row["why"]): row["example"] for row in outcomes if row["status"] != "completed"}
    for (status, why), request_id in examples.items():
        _line(console, f"{status}, {why}: for example request {request_id}; `deltatap show` has the details")


def show_capture(console: Console, row: Mapping[str, Any]) -> None:
    """Print one row of ``captures``: its outcome, when its chunks arrived, its times, its text."""
    model = row["response_model"] or row["request_model"]
    error = row["error"]
    why = row["finish_reason"] or (error["type"] if error else "")
    outcome = f"  {row['mode']}  {row['status']} ({why})  {model}  run {row['run_id']}"
    console.print(Text.assemble((row["request_id"], "bold"), outcome), soft_wrap=True)
    if error:
        kind = " ".join(filter(None, (error["type"], error["code"])))
        _line(console, f"{kind}: {error['message'] or ''}", style="red")
    if "reused_from" in row and (reused := row["reused_from"]):  # tables of older versions lack the column
        _line(console, f"the answer of request {reused['request_id']} in run {reused['run_id']}, reused without a call")
    for at, call in enumerate(row["retries"] or (), 1):
        received = f"{len(call['text'] or ''):,} characters received"
        _line(console, f"call {at}: {call['error_type']}, {received}", style="yellow")
    _line(console, sparkline([chunk["ms"] for chunk in row["chunks"] or () if chunk["kind"] in OUTPUT_KINDS]))
    columns = {"TTFT": "ttft_ms", "per token": "tpot_ms", "end to end": "e2e_ms", "loop lag": "loop_lag_ms"}
    facts = [f"{name} {row[column]:,.1f} ms" for name, column in columns.items() if row[column] is not None]
    if usage := row["usage_reported"] or row["usage_tiktoken"]:
        source = "reported" if row["usage_reported"] else "counted by tiktoken"
        facts.append(f"{usage['input_tokens']:,} input + {usage['output_tokens']:,} output tokens ({source})")
    if row["cost_usd"] is not None:
        facts.append(f"${money(row['cost_usd'])}")
    _line(console, ", ".join(facts))
    for choice in row["choices"] or ():
        for name in ("reasoning", "refusal", "tool_calls", "text"):
            if choice[name]:
                of_choice = f" of choice {choice['index']}" if len(row["choices"]) > 1 else ""
                console.print(f"\n{name}{of_choice}", style="dim", highlight=False)
                console.print(choice[name], markup=False, highlight=False, soft_wrap=True)


def sparkline(times: Sequence[float], width: int = _WIDTH) -> str:
    """A line of bars with the number of chunks over time, from the request to the last chunk; empty without chunks.

    Args:
        times: of the chunks, in ms since the request was written.
        width: number of bars.
    """
    if not times:
        return ""
    end = max(times) or 1.0
    counts = [0] * width
    for at in times:
        counts[min(width - 1, int(at / end * width))] += 1
    highest = max(counts)
    bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // highest)] for count in counts)
    return f"│{bars}│ {len(times):,} chunks in {end / 1000:,.2f} s"


def show_metrics(console: Console, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows of ``metrics_by_run``: medians with their intervals, and p95."""
    for row in rows:
        title = f"run {row['run_id']}, {row['request_model']} at {row['endpoint']}, {row['mode']}: {row['rows']:,} rows"
        late = f", {row['late']:,} left out because the event loop ran late" if row["late"] else ""
        _line(console, f"{title}{late}", style="bold")
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
            table.add_row("inter-chunk latency, ms", median, "", p95, f"{gaps['count']:,} gaps")
        if table.row_count:
            console.print(table)
        else:
            _line(console, f"no latencies to show: {_why_none(row)}")


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
    counted: Mapping[str, Sequence[tuple[int, int]]],
) -> None:
    """Print the differences between two runs. A difference whose interval excludes zero has a mark.

    Args:
        console: to print to.
        first: the first run.
        second: the second run.
        differences: by mode, metric and quantile.
        counted: by mode, for each run: how many rows have times that count, and how many rows there are.
    """
    if not differences:
        console.print("nothing to compare: there is no mode in which both runs completed a request")
        return
    for mode in dict.fromkeys(mode for mode, _, _ in differences):
        table = Table(title=mode, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
        table.add_column("metric", no_wrap=True)
        for name in (first, second):
            table.add_column(name, justify="right", overflow="fold", min_width=_HALF_ID)
        for name in ("difference", "95 % interval"):
            table.add_column(name, justify="right", no_wrap=True)
        for (of_mode, name, quantile), found in differences.items():
            if of_mode == mode:
                table.add_row(
                    f"{_METRICS[name].label} {quantile}, {_METRICS[name].unit}",
                    f"{found.first:,.1f}",
                    f"{found.second:,.1f}",
                    f"{'* ' if found.clear else ''}{found.value:+,.1f}",
                    _interval(found.low, found.high, signed=True),
                )
        console.print(table)
    _line(console, f"difference: {second} minus {first}; *: its interval excludes zero", style="dim")
    for mode, runs in counted.items():
        if any(counting < every for counting, every in runs):
            share = " and ".join(f"{counting:,} of {every:,}" for counting, every in runs)
            why = "the others are not completed, are reused, or ran on a late event loop"
            _line(console, f"{mode}: the times of {share} rows count; {why}", style="dim")


def comparison_json(
    first: str,
    second: str,
    differences: Mapping[tuple[str, str, str], Difference],
    outcomes: Sequence[Outcome],
) -> str:
    """The comparison of two runs as JSON: the differences, and the outcomes of conditions."""
    return json.dumps(
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
        },
        indent=2,
        ensure_ascii=False,
    )


def _interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    ends = ["…" if end is None else f"{end:+,.1f}" if signed else f"{end:,.1f}" for end in (low, high)]
    return "" if low is None and high is None else " to ".join(ends)


def _line(console: Console, text: str, style: str | None = None) -> None:
    """Print one line without wrapping it or coloring its numbers; print nothing for an empty text."""
    if text:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
