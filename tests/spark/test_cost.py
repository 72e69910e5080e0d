"""What a run of mixed outcomes costs, against a sum made by hand from what the simulator sent, to the last digit."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.tokens import count_text
from tests import prompts
from tests.runs import capture, captured, run_rows

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

PACE = {"tokens": 30}
INPUT, CACHED, OUTPUT = Decimal("0.15"), Decimal("0.075"), Decimal("0.6")
PRICES = f"- {{model: 'gpt-4o-mini*', input: {INPUT}, cached_input: {CACHED}, output: {OUTPUT}, date: 2026-01-01, source: here}}\n"
MILLION = 1_000_000
FAULTS = (
    "", "", "", "details", "no_usage", "usage_each", "content_filter", "length", "429=0.1:1", "cut@7:1", "cut@7", "cut@3:1!details",
    "500:1!cut@5:1", "error_event@4:1", "bad_json@6", "no_end@2:1!no_usage", "500", "400", "content_policy", "reasoning+details", "refusal",
    "late_filters", "usage_with_finish", "no_stream_options",
)  # fmt: skip


def paid(call: dict[str, Any]) -> Decimal:
    """A call by hand: what was reported, else what tiktoken counts of what arrived; nothing for what brought nothing."""
    usage = call["usage"]
    fault = call["fault"] or ""
    if call["streamed"] and fault.startswith("bad_json"):  # what comes after it does not count
        usage, call = None, {**call, "chunks": call["chunks"][: int(fault.partition("@")[2])]}
    if usage is None and "usage_each" not in fault:
        if not call["chunks"]:
            return Decimal(0)
        tokens = count_text("".join(text for _, text in call["chunks"]), "o200k_base")
        asked = 7 + count_text(call["prompt"], "o200k_base")  # 3 for the message, 1 for the role, 3 for the reply
        return (asked * INPUT + tokens * OUTPUT) / MILLION
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    fresh = usage["prompt_tokens"] - cached
    cost: Decimal = fresh * INPUT + cached * CACHED + usage["completion_tokens"] * OUTPUT
    return cost / MILLION


@pytest.mark.slow
def test_the_cost_of_mixed_outcomes_is_the_sum_made_by_hand(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    rows = [
        (f"r{n:03d}", f"Prompt {n}, please.", f"gpt-4o-mini!{fault}" if fault else None)
        for n, fault in enumerate(FAULTS * 3)
    ]
    rows += [("free", "Something.", "llama-3"), ("bad", " ", None)]
    prompts.write(spark, tables / "prompts", rows)
    (tables / "prices.yml").write_text(PRICES)
    sections: dict[str, Any] = {"prices": str(tables / "prices.yml"), "run": {"id": "mixed"}, "request": {}}
    tries = {"mode": "paired", "max_attempts": 2, "max_broken": 2}
    first, _ = capture(spark, tables, simulator, capture=tries, **sections)
    # The same run goes on: what is not final is called again, and its earlier calls stay on the bill.
    second, _ = capture(spark, tables, simulator, capture=tries, **sections)
    assert second.row["requests"] > first.row["requests"]
    calls = defaultdict(list)
    for call in simulator.calls():
        calls[call["key"], "stream" if call["streamed"] else "complete"].append(call)
    total = Decimal(0)
    several = 0
    for row in captured(spark, tables):
        made = calls[row["request_hash"], row["mode"]]
        if row["request_id"] == "free":
            assert row["cost_usd"] is None
            continue
        by_hand = [paid(call) for call in made]
        total += sum(by_hand)
        several += len(made) > 1
        assert row["cost_usd"] == float(sum(by_hand)), (row["request_id"], row["request_model"])
        assert [retry["cost_usd"] for retry in row["retries"]] == [float(cost) for cost in by_hand[:-1]], row[
            "request_id"
        ]
    assert several > 20
    assert total > 0
    (run,) = run_rows(spark, tables)
    assert Decimal(str(run["cost_usd"])) == total
    assert run["cost_usd"] == second.row["cost_usd"] == float(total)
