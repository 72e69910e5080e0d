"""What people look at in a terminal: the runs, one request, the metrics of runs, two runs beside one another.

Knows how it is laid out. Leaves what is measured to ``analysis.py`` and ``comparison.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from deltatap.analysis.metrics import METRICS
from deltatap.delta import tables
from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pyspark.sql import Row, SparkSession
    from rich.console import Console

    from deltatap.analysis.compare import Difference
    from deltatap.config import Settings

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 60
_OUTPUT = ("content", "reasoning", "refusal", "tool_calls")
_LABELS = {metric.name: metric.label for metric in METRICS}


def newest_runs(spark: SparkSession, settings: Settings, most: int) -> list[Row]:
    """The newest runs on this captures table, newest first.

    Raises:
        ConfigError: when there is no runs table.
    """
    _there(spark, "runs", settings.runs.table)
    rows = spark.table(tables.quoted(settings.runs.table))
    mine = rows.where(rows["captures"] == settings.captures.table)
    return mine.orderBy(rows["started_at"].desc()).limit(most).collect()


def newest_capture(spark: SparkSession, settings: Settings, request_id: str, run_id: str | None) -> list[Row]:
    """A request's newest row in each mode, of one run or of any.

    Raises:
        ConfigError: when there is no captures table, or no such row in it.
    """
    _there(spark, "captures", settings.captures.table)
    rows = spark.table(tables.quoted(settings.captures.table))
    found = rows.where(rows["request_id"] == request_id)
    if run_id is not None:
        found = found.where(rows["run_id"] == run_id)
    newest: dict[str, Row] = {}
    for row in found.orderBy(rows["finished_at"].asc_nulls_first()).collect():
        newest[row["mode"]] = row
    if not newest:
        where = f" of run {run_id}" if run_id else ""
        raise ConfigError([f"captures.table: {settings.captures.table}: no row{where} has request_id {request_id}"])
    return [newest[mode] for mode in sorted(newest, reverse=True)]


def newest_answers(spark: SparkSession, settings: Settings, run_ids: Sequence[str], most: int) -> list[Row]:
    """The newest rows that were sent, of some runs or of all; oldest first.

    Raises:
        ConfigError: when there is no captures table, or no such run.
    """
    _there(spark, "captures", settings.captures.table)
    for run_id in run_ids:
        known_run(spark, settings, run_id)
    rows = spark.table(tables.quoted(settings.captures.table)).where("started_at IS NOT NULL")
    if run_ids:
        rows = rows.where(rows["run_id"].isin(*run_ids))
    return rows.orderBy(rows["finished_at"].desc_nulls_last()).limit(most).collect()[::-1]


def known_run(spark: SparkSession, settings: Settings, run_id: str) -> None:
    """Refuse a run that is not there.

    Raises:
        ConfigError: which names the newest ones.
    """
    runs = [row["run_id"] for row in newest_runs(spark, settings, 1_000)]
    if run_id not in runs:
        known = ", ".join(runs[:5]) or "none"
        raise ConfigError([f"runs.table: {settings.runs.table}: no run {run_id} on these captures; newest: {known}"])


def _there(spark: SparkSession, name: str, table: str) -> None:
    if not tables.exists(spark, table):
        raise ConfigError([f"{name}.table: {table}: there is no such Delta table; capture something first"])


def show_runs(console: Console, rows: Sequence[Row]) -> None:
    """Print runs."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True, min_width=22)
    table.add_column("status", min_width=9)
    table.add_column("started", no_wrap=True, min_width=11)
    for name in ("done", "broken", "failed", "USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["run_id"],
            row["status"],
            f"{row['started_at']:%m-%d %H:%M}",
            "" if row["completed"] is None else f"{row['completed']:,} of {row['owed'] or 0:,}",
            *("" if row[name] is None else f"{row[name]:,}" for name in ("interrupted", "failed")),
            "" if row["cost_usd"] is None else f"{row['cost_usd']:,.2f}",
        )
    console.print(table)
    for row in rows:
        if row["reason"]:
            console.print(f"{row['run_id']}: {escape(row['reason'])}", highlight=False, soft_wrap=True)


def show_capture(console: Console, row: Row) -> None:
    """Print one row of captures: what it came to, when its chunks came, its text."""
    model = row["response_model"] or row["request_model"]
    why = row["finish_reason"] or (row["error"]["type"] if row["error"] else "")
    console.print(
        f"[bold]{escape(row['request_id'])}[/bold]  {row['mode']}  {row['status']} ({escape(why)})  "
        f"{escape(str(model))}  run {row['run_id']}",
        highlight=False,
        soft_wrap=True,
    )
    if row["error"]:
        told = f"{row['error']['type']} {row['error']['code'] or ''}: {row['error']['message'] or ''}"
        console.print(escape(told), style="red", highlight=False, soft_wrap=True)
    for at, call in enumerate(row["retries"] or (), 1):
        told = f"call {at}: {call['error_type']}, {len(call['text'] or ''):,} characters received"
        console.print(told, style="yellow", highlight=False)
    if line := sparkline([chunk["ms"] for chunk in row["chunks"] or () if chunk["kind"] in _OUTPUT]):
        console.print(line, highlight=False)
    times = {"TTFT": "ttft_ms", "per token": "tpot_ms", "end to end": "e2e_ms", "our loop's lag": "loop_lag_ms"}
    shown = [f"{name} {row[column]:,.1f} ms" for name, column in times.items() if row[column] is not None]
    usage = row["usage_reported"] or row["usage_tiktoken"]
    if usage:
        whose = "reported" if row["usage_reported"] else "by tiktoken"
        shown.append(f"{usage['input_tokens']:,} + {usage['output_tokens']:,} tokens {whose}")
    if row["cost_usd"] is not None:
        shown.append(f"${row['cost_usd']:,.6f}")
    console.print(", ".join(shown), highlight=False, soft_wrap=True)
    for choice in row["choices"] or ():
        for name in ("reasoning", "refusal", "tool_calls", "text"):
            if choice[name]:
                several = f" of choice {choice['index']}" if len(row["choices"]) > 1 else ""
                console.print(f"\n[dim]{name}{several}[/dim]", highlight=False)
                console.print(choice[name], markup=False, highlight=False, soft_wrap=True)


def sparkline(times: Sequence[float], width: int = _WIDTH) -> str:
    """How many chunks came when, from the request's start to the last one; empty without any."""
    if not times:
        return ""
    end = max(times) or 1.0
    counts = [0] * width
    for at in times:
        counts[min(width - 1, int(at / end * width))] += 1
    most = max(counts)
    bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)
    return f"│{bars}│ {len(times):,} chunks in {end / 1000:,.2f} s"


def show_metrics(console: Console, rows: Iterable[Row]) -> None:
    """Print rows of metrics_by_run: medians with their intervals, p95 behind them."""
    for row in rows:
        told = (
            f"run {row['run_id']}, {row['request_model']} at {row['endpoint']}, {row['mode']}: {row['rows']:,} rows; ms"
        )
        late = f", {row['late']:,} left out since our event loop ran late" if row["late"] else ""
        table = Table(title=f"{escape(told)}{late}", title_justify="left", title_style="bold")
        table.add_column("metric")
        for name in ("median", "95 % interval", "p95", "rows"):
            table.add_column(name, justify="right")
        for metric in METRICS:
            times = row[metric.name]
            if times["count"]:
                middle = times["p50"]
                table.add_row(
                    metric.title,
                    f"{middle['value']:,.1f}",
                    _interval(middle["low"], middle["high"]),
                    f"{times['p95']['value']:,.1f}",
                    f"{times['count']:,}",
                )
        gaps = row["inter_chunk_ms"]
        if gaps["count"]:
            table.add_row(
                "inter-chunk latency", f"{gaps['p50']:,.1f}", "", f"{gaps['p95']:,.1f}", f"{gaps['count']:,} gaps"
            )
        console.print(table)


def show_comparison(
    console: Console, first: str, second: str, differences: Mapping[tuple[str, str, str], Difference]
) -> None:
    """Print what differs between two runs; bold where chance alone would hardly have done it."""
    if not differences:
        console.print("the runs have no metric in common: no mode in which both completed a request")
        return
    console.print(f"first: {first}\nsecond: {second}", highlight=False)
    for mode in dict.fromkeys(mode for mode, _, _ in differences):
        table = Table(title=f"{mode}: second less first, in ms", title_justify="left", title_style="bold")
        table.add_column("metric")
        for name in ("first", "second", "difference", "95 % interval"):
            table.add_column(name, justify="right", no_wrap=True)
        for (its_mode, metric, quantile), found in differences.items():
            if its_mode == mode:
                table.add_row(
                    f"{_LABELS[metric]} {quantile}",
                    f"{found.first:,.1f}",
                    f"{found.second:,.1f}",
                    f"{found.value:+,.1f}",
                    _interval(found.low, found.high, signed=True),
                    style="bold" if found.clear else None,
                )
        console.print(table)
    console.print("bold: the interval does not hold zero", style="dim")


def _interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    shown: list[Any] = ["…" if end is None else f"{end:+,.1f}" if signed else f"{end:,.1f}" for end in (low, high)]
    return "" if low is None and high is None else " to ".join(shown)
