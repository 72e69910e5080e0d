"""The tiles, the errors by kind and the rows left out, from rows in memory."""

from __future__ import annotations

from typing import Any

import pytest

from deltatap.analysis.metrics import METRICS
from deltatap.config import Analysis, Slo
from deltatap.report.cards import Words, cards, kinds, left_out
from tests.unit.report.test_page import (
    distribution,
    failure,
    gathered,
    left,
    metrics_row,
)


def test_the_tiles_of_a_run_sum_over_its_series() -> None:
    metrics = [metrics_row(), metrics_row(mode="complete", e2e_ms=distribution(900.0), cost_usd=None)]
    found = cards(gathered(metrics=metrics))
    assert {(card.label, card.value): card.detail for card in found} == {
        ("completed", "14 of 20"): "4 interrupted, 2 failed",
        ("calls", "24"): "10 failed, including retried calls",
        ("median TTFT", "20 ms"): "p95 20 ms; stream",
        ("median TPOT", "20.0 ms"): "50 tokens/s per stream; stream",
        ("tokens per chunk", "20.0"): "20 % of tokens arrive together with the token before; stream",
        ("median E2E", "900 ms"): "p95 900 ms; complete",
        ("output tokens", "4,000"): "200 input tokens; retried calls not counted",
        ("cost", "$0.5000"): "retried calls included",
    }


def test_a_series_with_checked_texts_has_the_share_of_flagged_ones() -> None:
    none = distribution(0.0, count=0)
    metrics = [
        metrics_row(checked=8, flagged=1, flagged_chars=distribution(1234.0), partial_checks=distribution(2.5)),
        metrics_row(mode="complete", checked=3, flagged=0, flagged_chars=none, partial_checks=none),
    ]
    found = cards(gathered(metrics=metrics))
    first, second = (card for card in found if card.label == "flagged")
    assert first.value == "12.5 %"
    assert first.detail.startswith(
        "1 of 8 checked answers; a reader had seen 1,234 characters (median); partial checks:"
    )
    assert "partial checks: 2.5 per answer, 20 ms, plus 20 ms at the end; " in first.detail
    assert second.value == "0.0 %"
    assert second.detail.startswith("0 of 3 checked answers; ")
    assert "complete" in second.detail


def test_the_cost_of_several_models_is_that_of_each() -> None:
    metrics = [metrics_row(request_model="a", cost_usd=0.5), metrics_row(request_model="b", cost_usd=2.0)]
    metrics += [
        metrics_row(request_model="a", mode="complete", cost_usd=0.25),
        metrics_row(request_model="c", cost_usd=None),
    ]
    found = cards(gathered(metrics=metrics))
    assert [(card.value, card.detail) for card in found if card.label == "cost"] == [
        ("$2.7500", "b $2.0000, a $0.7500, c no price; retried calls included")
    ]


def test_the_tiles_of_several_runs_are_the_totals() -> None:
    metrics = [metrics_row(), metrics_row(run_id="s", completed=3, cost_usd=0.25)]
    assert [(card.label, card.value) for card in cards(gathered(metrics=metrics))] == [
        ("completed", "10 of 20"),
        ("calls", "24"),
        ("output tokens", "4,000"),
        ("cost", "$0.7500"),
    ]


def goodput(slo: Slo, uncounted: int = 0, **values: Any) -> list[tuple[str, str]]:
    analysis = Analysis(slo=slo)
    unsent = (
        [left(rows=1, status="failed", started=False), left(rows=uncounted - 1, started=False)] if uncounted else []
    )
    found = cards(gathered(metrics=[metrics_row(**values)], analysis=analysis, uncounted=unsent))
    return [(card.value, card.detail) for card in found if card.label == "goodput"]


def test_goodput_names_the_bounds_that_apply() -> None:
    assert goodput(Slo()) == []
    both = Slo(ttft_ms=200, e2e_ms=1500)
    values: dict[str, Any] = {"good": 6, "good_per_s": 2.5}
    assert goodput(both, **values) == [
        ("60.0 %", "6 of 10 sent requests within TTFT ≤ 200 ms and E2E ≤ 1,500 ms; 2.50/s; m")
    ]
    no_ttft: dict[str, Any] = {"mode": "complete", "ttft_ms": distribution(0.0, 0)}
    assert goodput(both, **values, **no_ttft) == [("60.0 %", "6 of 10 sent requests within E2E ≤ 1,500 ms; 2.50/s; m")]
    assert goodput(Slo(ttft_ms=200), **values, **no_ttft) == []
    assert goodput(Slo(e2e_ms=1), good=6, good_per_s=None) == [("60.0 %", "6 of 10 sent requests within E2E ≤ 1 ms; m")]


def test_goodput_is_a_share_of_the_rows_that_were_called() -> None:
    assert goodput(Slo(e2e_ms=1), 4, good=6, good_per_s=None)[0] == (
        "100 %",
        "6 of 6 sent requests within E2E ≤ 1 ms; m",
    )
    assert goodput(Slo(e2e_ms=1), rows=9999, good=9998, good_per_s=None)[0][0] == "99.9 %"


def test_errors_are_grouped_by_type_and_words() -> None:
    first = {"type": "server", "calls": 9, "rows": 3, "kinds": 5}
    rows = [
        failure(**first, place=2, same=1, message="b", code="c", request_id="q3"),
        failure(**first, place=1, same=2, message="a", example=2, request_id="q2"),
        failure(**first, place=1, same=2, message="a", request_id="q1"),
        failure(type="rate_limit", calls=2, rows=0, message=None, http_status=429),
        failure(type="invalid_request", calls=0, rows=7),
    ]
    found = kinds(rows)
    assert [(kind.type, kind.rows, kind.calls, kind.more) for kind in found] == [
        ("invalid_request", 7, 0, 0),
        ("server", 3, 9, 3),
        ("rate_limit", 0, 2, 0),
    ]
    assert found[1].words == (
        Words(500, None, "a", 2, (("r", "q1", "stream"), ("r", "q2", "stream"))),
        Words(500, "c", "b", 1, (("r", "q3", "stream"),)),
    )


@pytest.mark.parametrize(
    ("row", "why", "advice"),
    [
        (left(late=True, lag_ms=80.0), "event loop", "capture.concurrency"),
        (left(status="interrupted"), "ended early", "Start the capture again"),
        (left(status="failed"), "without output", "requests that may succeed"),
        (left(status="failed", started=False), "was not sent", "Fix these prompts"),
        (left(started=False), "identical request", "capture.reuse"),
    ],
)
def test_each_reason_says_what_to_do(row: dict[str, object], why: str, advice: str) -> None:
    [found] = left_out([row], Analysis())
    assert (found.run_id, found.rows) == ("r", 1)
    assert why in found.why
    assert advice in found.advice


def test_rows_are_left_out_by_run_and_reason() -> None:
    rows = [
        left(status="failed"),
        left(rows=3, late=True, lag_ms=60.0),
        left(rows=4, late=True, lag_ms=90.0, mode="complete"),
        left(run_id="s", rows=9),
    ]
    rows[-1]["started"] = False
    found = left_out(rows, Analysis())
    assert [(each.run_id, each.rows) for each in found] == [("r", 7), ("r", 1), ("s", 9)]
    assert "up to 90 ms" in found[0].why


def test_the_bounds_of_goodput_are_metrics() -> None:
    assert set(Slo.model_fields) <= {metric.name for metric in METRICS}


def test_chunks_that_a_late_loop_merged_have_a_size_but_no_burstiness() -> None:
    none = distribution(0.0, count=0)
    none.p50.value = None
    found = cards(gathered(metrics=[metrics_row(burstiness=none)]))
    assert [card.detail for card in found if card.label == "tokens per chunk"] == ["m"]
