"""What a run came to, in one table for people: counts, times, tokens and cost, from ``captures``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from deltatap.delta import tables

if TYPE_CHECKING:
    from pyspark.sql import Row, SparkSession
    from rich.console import Console

    from deltatap.config import Settings

_OUTPUT = "kind IN ('content', 'reasoning', 'refusal', 'tool_calls')"


_TIMES = {"TTFT": "ttft_ms", "inter-chunk latency": "itl_ms", "end to end": "e2e_ms", "loop lag": "lag_ms"}


def summarize(spark: SparkSession, settings: Settings, run_id: str) -> tuple[list[Row], list[Row]]:
    """The run's rows counted by mode, status and finish_reason, and its times by mode."""
    captures = tables.quoted(settings.captures.table)
    outcomes = spark.sql(
        f"""
        SELECT mode, status, coalesce(finish_reason, error.type) AS why, count(*) AS rows, sum(size(retries)) AS retries
        FROM {captures} WHERE run_id = '{run_id}' GROUP BY ALL ORDER BY mode DESC, status, rows DESC
        """
    ).collect()
    figures = spark.sql(
        f"""
        WITH run AS (SELECT * FROM {captures} WHERE run_id = '{run_id}'),
        gaps AS (
          SELECT mode, percentile(chunk.gap_ms, array(0.5, 0.9, 0.99)) AS itl_ms
          FROM run LATERAL VIEW explode(chunks) AS chunk WHERE chunk.{_OUTPUT} GROUP BY mode
        )
        SELECT mode, percentile(ttft_ms, array(0.5, 0.9, 0.99)) AS ttft_ms, any_value(itl_ms) AS itl_ms,
          percentile(e2e_ms, array(0.5, 0.9, 0.99)) AS e2e_ms, percentile(loop_lag_ms, array(0.5, 0.9, 0.99)) AS lag_ms
        FROM run LEFT JOIN gaps USING (mode) GROUP BY mode ORDER BY mode DESC
        """
    ).collect()
    return outcomes, figures


def show(console: Console, outcomes: list[Row], figures: list[Row], row: dict[str, Any]) -> None:
    """Print the summary of a run."""
    if not outcomes:
        console.print(f"run {row['run_id']}: {row['status']}, no rows", highlight=False)
        return
    several = len({outcome["mode"] for outcome in outcomes}) > 1
    counts = Table(title=f"run {row['run_id']}: {row['status']}", title_justify="left", title_style="bold")
    for name in ("mode", "status", "finish_reason or error")[not several :]:
        counts.add_column(name)
    for name in ("rows", "calls tried again"):
        counts.add_column(name, justify="right")
    for outcome in outcomes:
        told = (outcome["mode"], outcome["status"], outcome["why"])[not several :]
        counts.add_row(*told, f"{outcome['rows']:,}", f"{outcome['retries'] or 0:,}")
    console.print(counts)
    times = Table()
    times.add_column("ms")
    for name in ("p50", "p90", "p99"):
        times.add_column(name, justify="right")
    for figure in figures:
        for name, column in _TIMES.items():
            if figure[column] is not None:
                shown = f"{name}, {figure['mode']}" if several else name
                times.add_row(shown, *(f"{value:,.1f}" for value in figure[column]))
    if times.row_count:
        console.print(times)
    cost = "no price" if row["cost_usd"] is None else f"${row['cost_usd']:,.4f}"
    used = f"{row['input_tokens']:,} input tokens, {row['output_tokens']:,} output tokens"
    console.print(
        f"{row['requests']:,} calls, {used}, {cost}",
        highlight=False,
        soft_wrap=True,
    )
