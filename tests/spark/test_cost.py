"""The cost of a run with mixed outcomes equals, to the last digit, a sum over the simulator's records."""

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


def cost_of(call: dict[str, Any]) -> Decimal:
    """Compute a call's cost from its reported usage, or from tiktoken counts of its chunks; 0 without chunks."""
    usage = call["usage"]
    fault = call["fault"] or ""
    if call["streamed"] and fault.startswith("bad_json"):  # chunks after the invalid JSON do not count
        usage, call = None, {**call, "chunks": call["chunks"][: int(fault.partition("@")[2])]}
    if usage is None and "usage_each" not in fault:
        if not call["chunks"]:
            return Decimal(0)
        output_tokens = count_text("".join(text for _, text in call["chunks"]), "o200k_base")
        input_tokens = 7 + count_text(
            call["prompt"], "o200k_base"
        )  # 3 for the message, 1 for the role, 3 for the reply
        return (input_tokens * INPUT + output_tokens * OUTPUT) / MILLION
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    fresh = usage["prompt_tokens"] - cached
    cost: Decimal = fresh * INPUT + cached * CACHED + usage["completion_tokens"] * OUTPUT
    return cost / MILLION


@pytest.mark.slow
def test_the_cost_of_mixed_outcomes_matches_the_simulators_records(
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
    attempts = {"mode": "paired", "max_attempts": 2, "max_broken": 2}
    first, _ = capture(spark, tables, simulator, capture=attempts, **sections)
    # The same run resumes. It repeats requests without a final row and keeps the cost of their earlier calls.
    second, _ = capture(spark, tables, simulator, capture=attempts, **sections)
    assert second.row["requests"] > first.row["requests"]
    calls = defaultdict(list)
    for call in simulator.calls():
        calls[call["key"], "stream" if call["streamed"] else "complete"].append(call)
    total = Decimal(0)
    retried = 0
    for row in captured(spark, tables):
        made = calls[row["request_hash"], row["mode"]]
        if row["request_id"] == "free":
            assert row["cost_usd"] is None
            continue
        expected = [cost_of(call) for call in made]
        total += sum(expected)
        retried += len(made) > 1
        assert row["cost_usd"] == float(sum(expected)), (row["request_id"], row["request_model"])
        assert [retry["cost_usd"] for retry in row["retries"]] == [float(cost) for cost in expected[:-1]], row[
            "request_id"
        ]
    assert retried > 20
    assert total > 0
    (run,) = run_rows(spark, tables)
    assert Decimal(str(run["cost_usd"])) == total
    assert run["cost_usd"] == second.row["cost_usd"] == float(total)
