"""The figures and texts of the report: the tiles, the errors by kind, and the rows left out.

``data.py`` reads the rows, and ``page.html.j2`` lays out what this module decides.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltatap.analysis.compare import OF_ONE_RUN, Counted, doubts
from deltatap.analysis.metrics import METRICS
from deltatap.analysis.names import series_key
from deltatap.analysis.uncounted import reason
from deltatap.prices import by_model, money
from deltatap.report.overview import overview

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltatap.config import Analysis
    from deltatap.report.data import Gathered

    Row = Mapping[str, Any]

_LABELS = {metric.name: metric.label for metric in METRICS}


@dataclass(frozen=True, slots=True)
class Card:
    """A key figure at the top of the page."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    """The message of an error, from the server or from deltatap, and how often they occurred.

    Attributes:
        count: failed calls and refused prompts with these words.
        examples: some of the rows, as run_id, request_id and mode.
    """

    http_status: int | None
    code: str | None
    message: str | None
    count: int
    examples: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """An error type.

    Attributes:
        calls: failed calls, including retried calls.
        rows: rows that ended with this error.
        words: the most frequent words, most frequent first.
        more: number of other words.
    """

    type: str
    calls: int
    rows: int
    words: tuple[Words, ...]
    more: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows of a run that the time metrics leave out for one reason, and what to do about it."""

    run_id: str
    rows: int
    why: str
    advice: str


def cards(gathered: Gathered) -> list[Card]:
    """The tiles: sums over all series, and the figures of each mode if ``overview.py`` makes no table of them."""
    metrics = gathered.metrics
    rows, completed = _sum(metrics, "rows"), _sum(metrics, "completed")
    failed_calls = sum(count for row in metrics for count in (row["errors"] or {}).values())
    outcome = f"{_sum(metrics, 'interrupted'):,} interrupted, {_sum(metrics, 'failed'):,} failed"
    made = [
        Card("completed", f"{completed:,} of {rows:,}", outcome),
        Card("calls", f"{_sum(metrics, 'requests'):,}", f"{failed_calls:,} failed, including retried calls"),
    ]
    if overview(metrics, {}) is None:
        made += _by_mode(metrics, gathered)
    tokens = f"{_sum(metrics, 'input_tokens'):,} input tokens; retried calls not counted"
    made.append(Card("output tokens", f"{_sum(metrics, 'output_tokens'):,}", tokens))
    made.append(_cost(metrics))
    return made


def _by_mode(metrics: Sequence[Row], gathered: Gathered) -> list[Card]:
    """Median times, goodput and more of each mode of one run and model."""
    made = []
    unsent = _unsent(gathered.uncounted)
    for row in metrics:
        series = row["mode"] if len(metrics) > 1 else row["request_model"]
        name, label = ("ttft_ms", "TTFT") if row["mode"] == "stream" else ("e2e_ms", "E2E")
        times = row[name]
        if times["count"]:
            median = f"{times['p50']['value']:,.0f} ms"
            made.append(Card(f"median {label}", median, f"p95 {times['p95']['value']:,.0f} ms; {series}"))
        if row["mode"] == "stream" and row["tpot_ms"]["count"]:
            tpot = row["tpot_ms"]["p50"]["value"]
            rate = f"{1000 / tpot:,.0f} tokens/s per stream; " if tpot else ""
            made.append(Card("median TPOT", f"{tpot:,.1f} ms", f"{rate}{series}"))
        size, burst = row["tokens_per_chunk"], row["burstiness"]
        if row["mode"] == "stream" and size["count"]:
            together = ""
            if burst["count"]:
                together = f"{burst['p50']['value']:,.0f} % of tokens arrive together with the token before; "
            made.append(Card("tokens per chunk", f"{size['p50']['value']:,.1f}", f"{together}{series}"))
        made += _cached(row, series)
        made += _goodput(row, gathered.analysis, series, row["rows"] - unsent[series_key(row)])
        made += _flagged(row, series)
    return made


def _cached(row: Row, series: str) -> list[Card]:
    """The share of input read from the provider's cache, and TTFT with and without; none if nothing was cached."""
    if not row["cached_share"]:
        return []
    medians = [
        f"median TTFT {row[name]['p50']['value']:,.0f} ms {what}"
        for name, what in (("ttft_cached_ms", "with cached input"), ("ttft_uncached_ms", "without"))
        if row[name]["count"]
    ]
    return [Card("cached input", f"{row['cached_share']:.1%}", "; ".join([", ".join(medians) or "no TTFT", series]))]


def _cost(metrics: Sequence[Row]) -> Card:
    """The cost, and that of each model if there are several."""
    models: dict[str, float | None] = {}
    for row in metrics:
        model, cost = row["request_model"] or "no model", row["cost_usd"]
        models[model] = models.get(model) if cost is None else cost + (models.get(model) or 0)
    costs = [cost for cost in models.values() if cost is not None]
    if not costs:
        return Card("cost", "no price")
    included = "retried calls included"
    detail = f"{by_model(list(models.items()))}; {included}" if len(models) > 1 else included
    return Card("cost", f"${money(sum(costs))}", detail)


def _sum(metrics: Sequence[Row], name: str) -> int:
    return sum(row[name] or 0 for row in metrics)


def _unsent(uncounted: Sequence[Row]) -> Counter[tuple[Any, ...]]:
    """Rows without a call, by series: reused answers and invalid prompts. They say nothing about the endpoint."""
    counted: Counter[tuple[Any, ...]] = Counter()
    for row in uncounted:
        if not row["started"]:
            counted[series_key(row)] += row["rows"]
    return counted


def _goodput(row: Row, analysis: Analysis, series: str, of: int) -> list[Card]:
    """The tile of a series with the bounds of analysis.slo that apply to it; none if no bound applies."""
    applied = [f"{_LABELS[name]} ≤ {bound:,g} ms" for name, bound in analysis.slo.bounds.items() if row[name]["count"]]
    if row["good"] is None or not applied or not of:
        return []
    rate = "" if row["good_per_s"] is None else f"; {row['good_per_s']:,.2f}/s"
    # Rounding must not claim that all answers are good.
    share = "100 %" if row["good"] == of else f"{min(100 * row['good'] / of, 99.9):.1f} %"
    return [
        Card(
            "goodput", share, f"{row['good']:,} of {of:,} sent requests within {' and '.join(applied)}{rate}; {series}"
        )
    ]


def _flagged(row: Row, series: str) -> list[Card]:
    """The tile of a series with checked texts: the share of flagged texts, and the time of partial checks."""
    if not row["checked"]:
        return []
    detail = f"{row['flagged']:,} of {row['checked']:,} checked answers"
    if row["flagged_chars"]["count"]:
        detail += f"; a reader had seen {row['flagged_chars']['p50']['value']:,.0f} characters (median)"
    more, last = row["partial_checks"], row["last_check_ms"]
    if more["count"]:
        took = f"{row['partial_checks_ms']['mean']:,.0f} ms, plus {last['mean']:,.0f} ms at the end"
        detail += f"; partial checks: {more['mean']:,.1f} per answer, {took}"
    return [Card("flagged", f"{100 * row['flagged'] / row['checked']:.1f} %", f"{detail}; {series}")]


def kinds(failures: Sequence[Row]) -> list[Kind]:
    """Errors by type, the most frequent first.

    Args:
        failures: rows of ``data.failures_sql``, which limits the words and the examples.
    """
    by_type: dict[str, list[Row]] = {}
    for row in failures:
        by_type.setdefault(row["type"], []).append(row)
    made = []
    for type_, rows in by_type.items():
        words: dict[int, list[Row]] = {}
        for row in sorted(rows, key=lambda row: (row["place"], row["example"])):
            words.setdefault(row["place"], []).append(row)
        said = tuple(
            Words(
                same[0]["http_status"],
                same[0]["code"],
                same[0]["message"],
                same[0]["same"],
                tuple((row["run_id"], row["request_id"], row["mode"]) for row in same),
            )
            for same in words.values()
        )
        made.append(Kind(type_, rows[0]["calls"], rows[0]["rows"], said, rows[0]["kinds"] - len(said)))
    return sorted(made, key=lambda kind: (-kind.rows, -kind.calls, kind.type))


def busy_machine(busy: Mapping[tuple[str, str], Counted], runs: Mapping[str, str]) -> list[str]:
    """Warnings about a busy machine, in the words of ``deltatap compare``.

    Args:
        busy: as ``compare.busy`` returns it.
        runs: the names of the runs by id.
    """
    modes = sorted({mode for mode, _ in busy}, reverse=True)
    counted = {mode: [busy.get((mode, run_id), Counted(0, {})) for run_id in runs] for mode in modes}
    if len(runs) > 1:
        return doubts(list(runs.values()), counted)
    # Whole answers have no TTFT, and their other times are exact.
    return doubts(list(runs.values()), {mode: its for mode, its in counted.items() if mode == "stream"}, OF_ONE_RUN)


def left_out(uncounted: Sequence[Row], analysis: Analysis) -> list[LeftOut]:
    """Why rows are left out of the time metrics, by run; in each run, the reason with the most rows first.

    Args:
        uncounted: rows of ``uncounted.uncounted_sql``.
        analysis: the settings that decide which rows count.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in uncounted:
        found.setdefault((row["run_id"], reason(row)), []).append(row)
    made = [
        LeftOut(run_id, sum(row["rows"] for row in rows), *_advice(why, rows, analysis))
        for (run_id, why), rows in found.items()
    ]
    runs = list(dict.fromkeys(row["run_id"] for row in uncounted))
    return sorted(made, key=lambda each: (runs.index(each.run_id), -each.rows, each.why))


def _advice(why: str, rows: Sequence[Row], analysis: Analysis) -> tuple[str, str]:
    """Why the rows are left out, and what to do about it."""
    if why == "late":
        lag = max(row["lag_ms"] for row in rows)
        bound = analysis.max_loop_lag_ms or 0
        return (
            f"A worker's event loop ran up to {lag:,.0f} ms late (more than {bound:g} ms), which distorts the times.",
            (
                "Lower capture.concurrency or give the workers more CPU, then capture again with capture.owed=all. "
                "To count these rows anyway, set analysis.max_loop_lag_ms to null."
            ),
        )
    return {
        "lost": (
            "A broken answer was read again (capture.resume), so the times of its chunks are lost.",
            "Nothing is wrong with the text. To measure these requests, capture again with capture.owed=all.",
        ),
        "interrupted": (
            "The call ended early, after some output had arrived.",
            "See Errors for the cause. Start the capture again to send the requests that are still owed.",
        ),
        "failed": (
            "The call failed without output.",
            "See Errors for the cause. The next run sends the requests that may succeed; fix the others.",
        ),
        "unsent": (
            "The request was not sent, because something is wrong with the prompt or its parameters.",
            "See Errors for the problem. Fix these prompts, load them again and start the capture again.",
        ),
        "reused": (
            "The answer of an identical request was reused, so there are no times.",
            "Nothing to fix. To call every request, set capture.reuse to false.",
        ),
    }[why]
