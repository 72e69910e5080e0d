from __future__ import annotations

import io
import json
import re
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from deltatap.driver.estimate import Estimate, Lengths, count_tokens, estimate, with_savings
from deltatap.driver.estimate_text import show
from deltatap.prices import Prices
from deltatap.rates import Price

ROW: dict[str, Any] = {
    "model": "m", "mode": "stream", "requests": 10, "bad": 1, "input_tokens": 100, "bounded": 500,
    "unbounded": 0, "called": True, "tier": None, "reuses": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "earlier", "least", "most"),
    [
        ({}, Lengths(), 10, 500),
        ({"unbounded": 1}, Lengths(), 10, None),
        ({"unbounded": 1}, Lengths(7, 3.0, 80.0), 30, 800),
        ({}, Lengths(7, 3.0, 80.0), 30, 500),
        ({}, Lengths(7, 60.0, 80.0), 500, 500),
        ({"requests": 0, "bounded": None, "input_tokens": None}, Lengths(), 0, 0),
    ],
)
def test_output_is_bounded_by_earlier_answers_and_by_the_requests(
    row: dict[str, Any], earlier: Lengths, least: int, most: int | None
) -> None:
    found = estimate(ROW | row, earlier, Prices())
    assert (found.least_output, found.most_output, found.answers) == (least, most, earlier.answers)
    assert (found.least_usd, found.most_usd) == (None, None), "the model has no price"


def batch(*rows: tuple[str | None, dict[str, Any] | None]) -> pa.RecordBatch:
    bodies = [None if body is None else json.dumps(body) for _, body in rows]
    return pa.RecordBatch.from_pydict(
        {
            "model": pa.array([model for model, _ in rows], pa.string()),
            "mode": pa.array(["stream"] * len(rows), pa.string()),
            "called": pa.array([True] * len(rows)),
            "body": pa.array(bodies, pa.string()),
        }
    )


def body(text: str, **rest: Any) -> dict[str, Any]:
    return {"model": "mine", "messages": [{"role": "user", "content": text}], **rest}


def test_a_bad_row_has_no_tokens_and_n_multiplies_the_output() -> None:
    counted = count_tokens(
        batch(("mine", None), ("mine", body("Hi", max_tokens=5, n=3)), ("mine", body("Hi"))), "chat", "o200k_base"
    )
    rows = counted.to_pylist()
    assert [row["bad"] for row in rows] == [True, False, False]
    assert [row["most_output"] for row in rows] == [None, 15, None]
    assert rows[0]["input_tokens"] == 0 < rows[1]["input_tokens"] == rows[2]["input_tokens"]


def test_the_fallback_encoding_counts_the_tokens_of_an_unknown_model() -> None:
    text = "여기 시장에서 가장 신선한 생선을 팝니다"  # the two vocabularies differ most outside of English

    def tokens(model: str, encoding: str) -> int:
        return int(count_tokens(batch((model, body(text))), "chat", encoding)["input_tokens"][0].as_py())

    assert tokens("mine", "o200k_base") < tokens("mine", "cl100k_base")
    assert tokens("gpt-4o", "o200k_base") == tokens("gpt-4o", "cl100k_base"), "tiktoken knows this model"


def test_the_model_s_price_gives_the_cost() -> None:
    price = Price(model="m", input=Decimal(2), output=Decimal(10), date=date(2026, 1, 1), source="here")
    found = estimate(ROW, Lengths(), Prices((price,)))
    assert (found.least_usd, found.most_usd, found.tiers) == (Decimal("0.0003"), Decimal("0.0052"), ())


def test_service_tiers_have_costs_next_to_the_default_tier() -> None:
    prices = Prices(url="https://api.openai.com/v1", published=True)
    found = estimate({**ROW, "model": "gpt-5"}, Lengths(), prices)
    assert found.least_usd == Decimal("0.000225")
    assert [(tier, str(least)) for tier, least, _ in found.tiers] == [
        ("flex", "0.0001125"), ("priority", "0.00045"), ("batch", "0.0001125"),
    ]  # fmt: skip
    flex = estimate({**ROW, "model": "gpt-5", "tier": "flex", "unbounded": 1}, Lengths(), prices)
    assert (flex.least_usd, flex.tiers[0]) == (Decimal("0.0001125"), ("default", Decimal("0.000225"), None))
    out = io.StringIO()
    show(Console(file=out, width=80), [flex])
    assert "stream, flex: $0.00022 to unbounded with service_tier default" in out.getvalue()
    assert "stream, flex: $0.00011 to unbounded through a batch API, which deltatap does not use" in out.getvalue()


def test_a_long_input_has_the_rates_of_one_request_not_of_their_sum() -> None:
    prices = Prices(url="https://api.openai.com/v1", published=True)
    row = {**ROW, "model": "gpt-5.4", "requests": 100, "input_tokens": 1_000_000}
    assert estimate(row, Lengths(), prices).least_usd == Decimal("2.5015")
    assert estimate({**row, "requests": 1}, Lengths(), prices).least_usd == Decimal("5.0000225")


def test_the_savings_of_reuse_are_shown_next_to_the_estimate() -> None:
    first, again = {**ROW, "requests": 6}, {**ROW, "requests": 4, "bad": 0, "bounded": None, "called": False}
    assert with_savings([first, again], reuses=True) == [first, again]
    saved, every = with_savings([first, again], reuses=False)
    assert (saved["requests"], saved["called"], saved["reuses"]) == (4, False, False)
    assert (every["requests"], every["bounded"], every["input_tokens"], every["called"]) == (10, 500, 200, True)
    out = io.StringIO()
    show(Console(file=out, width=80), [estimate(row, Lengths(3, 1.0, 9.0), Prices()) for row in (every, saved)])
    assert "stream: capture.reuse would save 4 calls" in out.getvalue()


def test_an_estimate_fits_into_80_columns_with_the_whole_model() -> None:
    model = "gpt-4o-mini-2024-07-18-with-a-long-name"
    out = io.StringIO()
    found = [
        Estimate(model, "complete", 12_000, 3, 1_234_567, 12_000, 5_120_000, Decimal("0.3"), Decimal("51.2"), 0),
        Estimate(model, "stream", 2, 0, 16, 2, None, Decimal("0.0000036"), None, 0),
        Estimate("free", "stream", 1, 0, 8, 1, 9, None, None, 4),
        Estimate("free", "stream", 7, 0, 8, 1, 9, Decimal("0.1"), Decimal("0.2"), 4, called=False),
    ]
    show(Console(file=out, width=80), found)
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert f"{model} (input and output in tokens)" in lines
    assert "complete 12,000 3 1,234,567 12,000 to 5,120,000 $0.3000 to $51.2000" in lines
    assert "stream 2 0 16 2 to unbounded $0.0000036 to unbounded" in lines
    assert "stream 1 0 8 1 to 9 no price" in lines
    assert "stream: capture.reuse saves 7 calls, and $0.1000 to $0.2000" in lines
    assert lines[-2:] == [
        "total: 12,003 requests, $0.3000 to unbounded, without the models that have no price",
        "to bound the run, set budget.tokens",
    ]


@pytest.mark.parametrize(
    ("row", "earlier", "why"),
    [
        (
            {},
            Lengths(7, 3.0, 80.0),
            "10th to the 90th percentile of 7 earlier answers, at most the limit of each request$",
        ),
        ({"unbounded": 1}, Lengths(7, 3.0, 80.0), "10th to the 90th percentile of 7 earlier answers$"),
        ({}, Lengths(1, 3.0, 3.0), "output as long as the only earlier answer, at most"),
        ({}, Lengths(), "no earlier answers from this model: output from one token to the limit of each request$"),
        (
            {"unbounded": 1},
            Lengths(),
            "no earlier answers from this model, and no request limits its output\nto bound the run, set budget",
        ),
        (
            {},
            Lengths(elsewhere=("[azure]", "b")),
            r"\(only endpoints with another endpoint.name do: \[azure\], b\)",
        ),
    ],
)
def test_the_line_below_says_what_bounds_the_output(row: dict[str, Any], earlier: Lengths, why: str) -> None:
    out = io.StringIO()
    show(Console(file=out, width=80), [estimate(ROW | row, earlier, Prices())])
    assert re.search(why, out.getvalue().rstrip())


def test_nothing_owed_is_one_sentence() -> None:
    out = io.StringIO()
    show(Console(file=out, width=80), [])
    assert out.getvalue() == "nothing is owed: every request has a final row; no call was made\n"
