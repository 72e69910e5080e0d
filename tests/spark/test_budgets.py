"""Budgets and estimates with real Spark: how a run ends when a budget is used up, and what a dry run shows."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rich.console import Console

from deltatap import cli
from deltatap.driver.estimate import Estimate, Lengths, _earlier, estimate_run
from deltatap.driver.estimate_text import show
from deltatap.errors import ConfigError
from deltatap.prices import load_prices
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.captured import capture_row, empty_tables, used, write_captures
from tests.runs import capture, captured, run_rows

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

# Half the default spread, so that no answer is much longer than the earlier ones.
PACE = {
    "speed": 1,
    "ttft_ms": 100,
    "ttft_sigma": 0.2,
    "itl_ms": 2,
    "itl_sigma": 0.15,
    "tokens": 40,
    "tokens_sigma": 0.3,
}
COUNT, CONCURRENCY = 60, 4
PRICES = "- {model: 'gpt-4o-mini', input: 1, output: 2, date: 2026-01-01, source: here}\n"


def spent(rows: list[Any], what: str) -> float:
    if what == "requests":
        return sum(len(row["retries"]) + 1 for row in rows)
    if what == "tokens":
        return float(sum(row["usage_reported"]["total_tokens"] for row in rows))
    return float(sum(row["cost_usd"] for row in rows))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "budget"), [("requests", 25), ("tokens", 1_500), ("cost_usd", 0.0025)])
def test_a_budget_ends_the_run_and_the_next_completes_the_rest(
    spark: SparkSession, tables: Path, simulator: Simulation, name: str, budget: float
) -> None:
    prompts.write(spark, tables / "prompts", [(f"r{n:02d}", f"Prompt {n}?") for n in range(COUNT)])
    (tables / "prices.yml").write_text(PRICES)
    sections: dict[str, Any] = {"prices": str(tables / "prices.yml"), "capture": {"concurrency": CONCURRENCY}}
    first, _ = capture(spark, tables, simulator, budget={name: budget}, **sections)
    assert (first.row["status"], first.row["interrupted"]) == ("budget_exhausted", 0)
    used_up = f"budget.{name}: {budget:,} is used up"
    too_little = rf"budget\.{name}: [\d,.e-]+ of {budget:,} left, and the next request is expected to use [\d,.e-]+"
    assert first.row["reason"] == used_up or (name != "requests" and re.fullmatch(too_little, first.row["reason"]))
    rows = captured(spark, tables)
    assert {row["status"] for row in rows} == {"completed"}, "calls in flight run to completion"
    largest = max(spent([row], name) for row in rows)
    assert 0.7 * budget <= spent(rows, name) <= budget + CONCURRENCY * largest
    if name == "requests":
        assert simulator.counts()["calls"] == budget, "a request budget is exact"
    (run,) = run_rows(spark, tables)
    assert (run["requests"], run["completed"]) == (spent(rows, "requests"), len(rows))
    assert run["input_tokens"] + run["output_tokens"] == spent(rows, "tokens")
    assert run["cost_usd"] == pytest.approx(spent(rows, "cost_usd"), abs=1e-12)
    second, _ = capture(spark, tables, simulator, **sections)
    assert (second.row["status"], second.row["completed"]) == ("completed", COUNT - len(rows))
    assert simulator.counts()["calls"] == COUNT


@pytest.mark.slow
def test_a_runtime_budget_drains_the_run(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    rows = [(f"r{n}", f"p{n}", "gpt-4o-mini!drip@3") for n in range(4)]
    prompts.write(spark, tables / "prompts", [*rows, *((f"s{n}", f"q{n}") for n in range(4))])
    ended, _ = capture(
        spark, tables, simulator, budget={"runtime_s": 12}, timeouts={"grace_s": 1}, capture={"concurrency": 8}
    )
    assert (ended.row["status"], ended.row["reason"]) == ("budget_exhausted", "budget.runtime_s: 12 s have passed")
    assert (ended.row["completed"], ended.row["interrupted"]) == (4, 4), "partial answers are kept"
    again, _ = capture(
        spark, tables, simulator, capture={"limit": 1}, timeouts={"idle_s": 1, "total_s": 1, "first_byte_s": 1}
    )
    assert again.row["owed"] == 1, "an interrupted request is owed again"


@pytest.mark.slow
def test_a_cost_budget_without_a_price_is_refused(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    prompts.write(spark, tables / "prompts", [("a", "x", "mystery"), ("b", "y")])
    (tables / "prices.yml").write_text(PRICES)
    sections: dict[str, Any] = {"prices": str(tables / "prices.yml"), "budget": {"cost_usd": 1}}
    with pytest.raises(ConfigError, match=r"budget\.cost_usd: no price for model mystery"):
        capture(spark, tables, simulator, **sections)
    with pytest.raises(ConfigError, match=r"budget\.cost_usd: model gpt-9 has no price"):
        capture(spark, tables, simulator, **sections, endpoint={"model": "gpt-9"})
    assert simulator.counts()["calls"] == 0


@pytest.mark.slow
def test_a_dry_run_estimates_the_owed_requests_without_a_call(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    rows = [
        ("a", "Hi", None, '{"max_tokens": 100}'),
        ("b", "Hi", None, '{"max_tokens": 50, "n": 2}'),
        ("c", "Hi", "mystery"),
        ("d", " "),
    ]
    prompts.write(spark, tables / "prompts", rows)
    (tables / "prices.yml").write_text(PRICES)
    sections: dict[str, Any] = {"prices": str(tables / "prices.yml")}
    settings = load_settings(prompts.config(tables, simulator.base_url, **sections))
    prices = load_prices(settings.prices)
    known, mystery = estimate_run(spark, settings, prices)
    assert (known.model, known.requests, known.bad, known.input_tokens) == ("gpt-4o-mini", 2, 1, 16)
    assert (known.least_output, known.most_output) == (2, 200)
    assert (str(known.least_usd), str(known.most_usd)) == ("0.00002", "0.000416")
    assert (mystery.requests, mystery.most_output, mystery.least_usd) == (1, None, None)
    assert simulator.counts()["calls"] == 0
    assert sorted(path.name for path in tables.iterdir()) == ["prices.yml", "prompts"], "a dry run creates no table"
    capture(spark, tables, simulator, **sections, capture={"limit": 2})
    found = estimate_run(spark, load_settings(prompts.config(tables, simulator.base_url, **sections)), prices)
    assert sum(one.requests for one in found) == 1


def test_the_output_of_a_dry_run(
    spark: SparkSession, tables: Path, simulator: Simulation, capsys: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    one = Estimate("m", "stream", 1200, 3, 9600, 1200, None, None, None, 0)
    show(Console(file=out, width=120), [one])
    assert "1,200 to unbounded" in out.getvalue()
    assert "no price" in out.getvalue()
    assert "no request limits its output" in out.getvalue()
    assert spark is not None
    prompts.write(spark, tables / "prompts", [("a", "Hi")])
    tree = prompts.config(tables, simulator.base_url)
    (tables / "c.yml").write_text(yaml.safe_dump(tree))
    assert cli.run(cli.capture, tables / "c.yml", dry_run=True) == 0
    assert "what a run would capture (no call was made)" in capsys.readouterr().out
    assert simulator.counts()["calls"] == 0


def test_tokens_of_an_answer_whose_server_reports_zero(spark: SparkSession, tables: Path) -> None:
    settings = empty_tables(spark, tables)
    zero = capture_row("one", "a", usage_reported=used(0, 0), usage_tiktoken=("o200k_base", 9, 5, 14, False))
    write_captures(spark, settings, zero | {"endpoint": settings.endpoint.label})
    assert _earlier(spark, settings, zero["request_model"]) == Lengths(1, 5.0, 5.0)
