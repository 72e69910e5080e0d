"""The tables of metrics and of comparisons."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltatap import terminal
from deltatap.analysis.compare import Counted, Difference
from deltatap.analysis.conditions import evaluate, parse
from deltatap.analysis.metrics import METRICS
from tests.printing import printed

LONG_NAMES = ("20261121T063000-abc123, the night of the test", "20261121T073000-abc124")


def test_metrics_show_every_metric_that_has_values() -> None:
    estimate = {"value": 12.0, "low": None, "high": 14.5}
    values = {"count": 3, "p50": estimate, "p95": estimate}
    row: dict[str, Any] = {metric.name: values for metric in METRICS} | {"tpot_ms": values | {"count": 0}}
    row |= {"run_id": "r", "request_model": "m", "endpoint": "e", "mode": "stream", "rows": 4, "late": 1,
            "checked": 1200, "flagged": 7, "coalesced": 0.125, "cached_share": 0.25, "inter_chunk_ms": {"count": 7, "p50": 1.0, "p95": 2.0}}  # fmt: skip
    text = printed(terminal.show_metrics, [row])
    assert (
        "run r, m at e, stream: 4 rows, 1 left out because the event loop ran late, 25.0% of the input tokens cached"
        in text
    )
    assert all((metric.title in text) == (metric.name != "tpot_ms") for metric in METRICS)
    assert "… to 14.5" in text
    assert "output rate, tokens/s" in text
    assert "7 gaps, excluding 12.5% of the outputs" in text
    assert "moderation: 7 of 1,200 checked answers are flagged" in text


@pytest.mark.parametrize(
    ("late", "why"),
    [
        (12, "the event loop ran late during all 12 completed requests (analysis.max_loop_lag_ms = 50)"),
        (0, "no request completed"),
    ],
)
def test_metrics_without_values_say_why(late: int, why: str) -> None:
    none = {"count": 0, "p50": None, "p95": None}
    row: dict[str, Any] = {metric.name: none for metric in METRICS} | {"inter_chunk_ms": none}
    row |= {"run_id": "r" * 22, "request_model": "gpt-4o-mini", "endpoint": "https://api.openai.com/v1",
            "mode": "stream", "rows": 14, "late": late, "checked": 0, "cached_share": None, "settings": json.dumps({"max_loop_lag_ms": 50.0})}  # fmt: skip
    title, line = printed(terminal.show_metrics, [row], width=80).splitlines()
    assert title.startswith("run rrrrrr")
    assert line == f"no latencies to show: {why}"


def test_a_comparison_has_a_line_for_each_metric_with_both_quantiles_and_what_a_user_waits_for_first() -> None:
    found = {
        ("stream", "headers_ms", "p50"): Difference(1.0, 1.2, -0.04, 0.4),
        ("stream", "headers_ms", "p95"): Difference(2.0, 27.0, 24.0, 26.0),
        ("stream", "tokens_per_s", "p50"): Difference(46.0, 45.0, None, None),
        ("stream", "tokens_per_s", "p95"): Difference(0.0, 0.04, 0.0, 0.04),
        ("stream", "ttft_ms", "p50"): Difference(100.0, 130.0, 20.0, 40.0),
        ("stream", "ttft_ms", "p95"): Difference(12345.6, 12345.6, -1234.5, 1240.0),
        ("stream", "ttfot_ms", "p50"): Difference(100.0, 130.0, 20.0, 40.0),
        ("stream", "ttfot_ms", "p95"): Difference(12345.6, 12345.6, -1234.5, 1240.0),
        ("complete", "e2e_ms", "p95"): Difference(999.96, 950.0, -60.0, -40.0),
    }
    assert printed(terminal.show_comparison, LONG_NAMES, found, {}, width=80).splitlines() == [
        "stream",
        "metric, ms p50 A p50 B change  interval  p95 A  p95 B change interval",
        "TTFT       100.0 130.0 * +30%  +20…+40% 12,346 12,346   0.0% -10…+10%",
        "tokens/s    46.0  45.0  -2.2%              0.0    0.0    0.0  0.0…0.0",
        "TTFB         1.0   1.2   +20% -4.0…+40%    2.0   27.0  * +25  +24…+26",
        "same values as TTFT: time to first output token",
        "complete",
        "metric, ms p95 A p95 B  change   interval",
        "E2E        1,000 950.0 * -5.0% -6.0…-4.0%",
        "change: B minus A, in % of A; without %: in the metric's unit, because it or its interval reaches 1,000 %",
        "interval: 95 % interval of the change, not of p50 or p95; *: excludes zero",
    ]


@pytest.mark.parametrize(("width", "titles"), [(80, 1), (60, 2)])
def test_a_comparison_wraps_labels_between_words_and_shows_p95_below_p50_on_a_narrow_terminal(
    width: int, titles: int
) -> None:
    found = {("stream", "flagged_chars", p): Difference(112345.6, 123456.7, 10000.0, 12000.0) for p in ("p50", "p95")}
    shown = printed(terminal.show_comparison, LONG_NAMES, found, {}, width=width)
    table = shown[: shown.index("change: ")].splitlines()
    assert sum("metric" in row for row in table) == titles
    assert max(map(len, table)) <= width
    assert shown.count("112,346 123,457 * +9.9% +8.9…+11%") == 2
    words = {word for row in table for word in row.split()}
    assert {"seen", "before", "flag,", "characters"} <= words


def test_the_columns_of_a_comparison_have_the_names_of_the_runs_if_these_fit() -> None:
    found = {("stream", "ttft_ms", p): Difference(100.0, 130.0, 20.0, 40.0) for p in ("p50", "p95")}
    shown = printed(terminal.show_comparison, ("mon", "tue"), found, {}, width=80)
    assert [row.rstrip() for row in shown.splitlines()[1:4]] == [
        "             p50   p50                   p95   p95",
        "metric, ms   mon   tue change interval   mon   tue change interval",
        "TTFT       100.0 130.0 * +30% +20…+40% 100.0 130.0 * +30% +20…+40%",
    ]


def test_a_comparison_says_which_rows_are_left_out() -> None:
    counts = {
        "stream": [Counted(120, {"late": 80, "interrupted": 1}), Counted(1200, {"reused": 1160, "unsent": 6})],
        "complete": [Counted(5, {}), Counted(6, {"failed": 6})],
    }
    left_out = [
        "stream, A: 39 of 120 rows count in the latencies; left out: 1 interrupted, 80 on a late event loop",
        "stream, B: 34 of 1,200 rows count in the latencies; left out: 6 not sent (invalid prompt), 1,160 reused",
        "complete, B: 0 of 6 rows count in the latencies; left out: 6 failed",
    ]
    found = {("stream", "ttft_ms", "p50"): Difference(100.0, 130.0, 20.0, 40.0)}
    assert printed(terminal.show_comparison, LONG_NAMES, found, counts, width=80).splitlines()[-3:] == left_out
    nothing, *why = printed(terminal.show_comparison, LONG_NAMES, {}, counts).splitlines()
    assert nothing.startswith("nothing to compare")
    assert why == left_out


def test_a_comparison_as_json_has_units_and_the_outcomes_of_conditions() -> None:
    found = {("stream", "tokens_per_s", "p50"): Difference(100.0, 130.0, 20.0, 40.0),
             ("complete", "e2e_ms", "p95"): Difference(1.0, 1.0, None, None)}  # fmt: skip
    outcomes = evaluate(parse(["tokens_per_s.p50>+50%"]), found)
    assert json.loads(terminal.comparison_json("a", "b", found, outcomes)) == {
        "first": "a",
        "second": "b",
        "differences": [
            {"mode": "stream", "metric": "tokens_per_s", "quantile": "p50", "unit": "tokens/s", "first": 100.0,
             "second": 130.0, "difference": 30.0, "low": 20.0, "high": 40.0, "excludes_zero": True},
            {"mode": "complete", "metric": "e2e_ms", "quantile": "p95", "unit": "ms", "first": 1.0,
             "second": 1.0, "difference": 0.0, "low": None, "high": None, "excludes_zero": False},
        ],
        "conditions": [{"condition": "tokens_per_s.p50>+50%", "mode": "stream", "holds": False}],
        "runs": [],
    }  # fmt: skip
