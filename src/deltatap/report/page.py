"""Puts cards, charts and tables into the template of the page, and writes one file that needs no other file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from deltatap.analysis.compare import Difference, compare
from deltatap.analysis.metrics import METRICS
from deltatap.analysis.queries import newest_runs, require_run
from deltatap.errors import ConfigError
from deltatap.prices import money
from deltatap.report.charts import charts, in_script, labels, series_key
from deltatap.report.data import ROWS, Gathered, gather
from deltatap.setting_types import URI

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deltatap.config import Settings
    from deltatap.delta.reader import Reader


@dataclass(frozen=True, slots=True)
class Card:
    """A key figure at the top of the page."""

    label: str
    value: str
    detail: str = ""


def write_report(reader: Reader, settings: Settings, run_ids: Sequence[str], path: Path) -> list[str]:
    """Write the report.

    Args:
        reader: reads the tables.
        settings: the names of the tables, and the analysis settings.
        run_ids: the runs to report on. If empty, the newest run that has rows.
        path: the file to write; its folder is created.

    Returns:
        The runs in the report.

    Raises:
        ConfigError: there is no such run, no run has rows, or the file cannot be written.
    """
    _make_folder(path)
    for run_id in run_ids:
        require_run(reader, settings, run_id)
    if not run_ids:
        newest = [row["run_id"] for row in newest_runs(reader, settings, 20) if _rows(row)]
        if not newest:
            raise ConfigError([f"runs.table: {settings.runs.table}: no run has rows yet; capture something first"])
        run_ids = newest[:1]
    gathered = gather(reader, settings, run_ids)
    differences = compare(reader, settings, run_ids[0], run_ids[1]) if len(run_ids) > 1 else {}
    path.write_text(render(gathered, run_ids, differences), encoding="utf-8")
    return list(run_ids)


def _make_folder(path: Path) -> None:
    """Create the folder of the page, before the queries take their time."""
    problem = ""
    if URI.match(str(path)):
        problem = "expected a path on this machine or under /Volumes"
    elif path.is_dir():
        problem = "expected a file, found a folder"
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"its folder cannot be made: {error.strerror}"
    if problem:
        raise ConfigError([f"{path}: {problem}"])


def _rows(run: Mapping[str, Any]) -> int:
    return sum(run[name] or 0 for name in ("completed", "interrupted", "failed"))


def render(gathered: Gathered, run_ids: Sequence[str], differences: dict[tuple[str, str, str], Difference]) -> str:
    """The HTML of the page."""
    environment = Environment(loader=PackageLoader("deltatap", "report"), autoescape=True, trim_blocks=True)
    environment.filters["ms"] = lambda value: "…" if value is None else f"{value:,.1f}"
    streams = [
        {
            "id": stream.request_id, "why": stream.why, "status": stream.status, "error": stream.error,
            "chunks": [[ms, text, kind] for ms, text, kind in stream.chunks],
            "end": stream.e2e_ms or (stream.chunks[-1][0] if stream.chunks else 0), "wholeMs": stream.whole_ms,
            "whole": stream.whole, "paired": stream.paired,
        }
        for stream in gathered.streams
    ]  # fmt: skip
    return environment.get_template("page.html.j2").render(
        run_ids=run_ids,
        runs=gathered.runs,
        metrics=gathered.metrics,
        defined=METRICS,
        labels={metric.name: metric.label for metric in METRICS},
        cards=cards(gathered),
        charts=charts(gathered),
        paired=gathered.paired,
        differences=differences,
        streams=gathered.streams,
        streams_json=in_script(json.dumps(streams)),
        slowest=gathered.slowest,
        broken=gathered.broken,
        sampled=gathered.rows.num_rows < gathered.total,
        shown=gathered.rows.num_rows,
        most=ROWS,
        total=gathered.total,
        plotly=get_plotlyjs(),
    )


def cards(gathered: Gathered) -> list[Card]:
    """The key figures: outcomes, calls, median times, tokens and cost."""
    metrics = gathered.metrics
    rows, completed = sum(row["rows"] for row in metrics), sum(row["completed"] for row in metrics)
    interrupted, failed = sum(row["interrupted"] for row in metrics), sum(row["failed"] for row in metrics)
    failed_calls = sum(count for row in metrics for count in (row["errors"] or {}).values())
    made = [
        Card("completed", f"{completed:,} of {rows:,}", f"{interrupted:,} interrupted, {failed:,} failed"),
        Card(
            "calls", f"{sum(row['requests'] for row in metrics):,}", f"{failed_calls:,} failed, including retried calls"
        ),
    ]
    names = labels(gathered)
    for row in metrics[:4]:
        series = names[series_key(row)] if len(metrics) > 1 else row["request_model"]
        name, label = ("ttft_ms", "TTFT") if row["mode"] == "stream" else ("e2e_ms", "E2E")
        times = row[name]
        if times["count"]:
            median = f"{times['p50']['value']:,.0f} ms"
            made.append(Card(f"median {label}", median, f"p95 {times['p95']['value']:,.0f} ms; {series}"))
        if row["mode"] == "stream" and row["tpot_ms"]["count"]:
            tpot = row["tpot_ms"]["p50"]["value"]
            rate = f"{1000 / tpot:,.0f} tokens/s per stream; " if tpot else ""
            made.append(Card("median TPOT", f"{tpot:,.1f} ms", f"{rate}{series}"))
    output_tokens = sum(row["output_tokens"] or 0 for row in metrics)
    input_tokens = sum(row["input_tokens"] or 0 for row in metrics)
    made.append(Card("output tokens", f"{output_tokens:,}", f"{input_tokens:,} input tokens; last call per row only"))
    costs = [row["cost_usd"] for row in metrics if row["cost_usd"] is not None]
    made.append(Card("cost", f"${money(sum(costs))}" if costs else "no price", "retries included" if costs else ""))
    late = sum(row["late"] for row in metrics)
    if late:
        made.append(Card("left out of the latencies", f"{late:,} rows", "the worker's event loop ran late"))
    return made
