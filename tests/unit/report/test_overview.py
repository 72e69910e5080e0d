"""The table of all series side by side, from rows in memory."""

from __future__ import annotations

from typing import Any, cast

from deltatap.report.overview import overview
from tests.unit.report.test_page import distribution, metrics_row


def test_each_series_has_a_row_and_each_value_a_column() -> None:
    none = distribution(0.0, count=0)
    metrics = [
        metrics_row(ttft_ms=distribution(1234.4), good=6),
        metrics_row(mode="complete", ttft_ms=none, tpot_ms=none, cost_usd=None),
        metrics_row(run_id="s", request_model="n", errors=None, cached_share=0.25),
    ]
    found = overview(cast("Any", metrics), {"r": "night=1", "s": "night=2"})
    assert found is not None
    assert found.keys == ("run", "model", "mode")
    assert [names for names, _ in found.rows] == [
        ("night=1", "m", "stream"),
        ("night=1", "m", "complete"),
        ("night=2", "n", "stream"),
    ]
    columns = dict(zip(found.heads, zip(*(values for _, values in found.rows), strict=True), strict=True))
    assert columns["completed"] == ("7 of 10",) * 3
    assert columns["failed calls"] == ("5", "5", "0")
    assert columns["TTFT p50"] == ("1,234", "", "20")
    assert columns["TPOT p50"] == ("20.0", "", "20.0")
    assert columns["good"] == ("6", "", "")
    assert columns["cached input"] == ("", "", "25.0%")
    assert columns["output tokens"] == ("2,000",) * 3
    assert columns["cost"] == ("$0.5000", "no price", "$0.5000")
    assert "flagged" not in columns, "a column without values"


def test_a_row_without_a_model_says_so() -> None:
    found = overview(cast("Any", [metrics_row(), metrics_row(request_model=None)]), {})
    assert found is not None
    assert [names for names, _ in found.rows] == [("m",), ("no model",)]


def test_one_run_and_model_needs_no_table() -> None:
    assert overview(cast("Any", [metrics_row(), metrics_row(mode="complete")]), {}) is None
    assert overview([], {}) is None
