"""A run, its exact costs, and its reconciliation with the simulator's record."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from deltatap import cli
from deltatap.analysis.facts import prices_of
from deltatap.prices import DEFAULT_FILE
from tests import prompts
from tests.runs import capture, captured, run_rows

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation


def usage_export(calls: list[dict[str, Any]], day: int) -> str:
    """OpenAI's usage export of the simulator's calls: by model, as its API returns it."""
    results: dict[str, dict[str, Any]] = {}
    for call in calls:
        usage = call["usage"]
        if usage is None:
            continue
        found = results.setdefault(
            call["model"],
            {"object": "organization.usage.completions.result", "model": call["model"], "num_model_requests": 0,
             "input_tokens": 0, "input_cached_tokens": 0, "output_tokens": 0},
        )  # fmt: skip
        found["num_model_requests"] += 1
        found["input_tokens"] += usage["prompt_tokens"]
        found["input_cached_tokens"] += usage["prompt_tokens_details"]["cached_tokens"]
        found["output_tokens"] += usage["completion_tokens"]
    return json.dumps({"object": "page", "data": [{"start_time": day, "results": list(results.values())}]})


@pytest.mark.slow
def test_a_run_reconciles_with_what_the_server_served(
    spark: SparkSession, tables: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ("gpt-4o-mini", "gpt-4.1")
    rows = [(f"r{number:02d}", f"Prompt {number}, please.", models[number % 2]) for number in range(30)]
    prompts.write(spark, tables / "prompts", rows)
    tagged = {"metadata": {"run": "{run_id}"}}
    sections: dict[str, Any] = {"run": {"id": "march"}, "request": {}, "endpoint": tagged, "prices": DEFAULT_FILE}
    config = prompts.config(tables, simulator.base_url, **sections)
    ended, _ = capture(spark, tables, simulator, **sections)
    found = captured(spark, tables)
    assert ended.row["completed"] == 30
    bodies = [json.loads(row["request"]) for row in found]
    assert all(body["metadata"] == {"run": "march"} for body in bodies), "the run's id is sent, and not hashed"
    for row in found:
        parts = row["cost"].asDict().values()
        assert sum(parts) == Decimal(str(row["cost_usd"])), row["request_id"]
        assert "genai-prices" in json.loads(row["price"])["source"]
    (run,) = run_rows(spark, tables)
    total = sum(Decimal(str(row["cost_usd"])) for row in found)
    assert (Decimal(str(run["cost_usd"])), len(prices_of(run.asDict()))) == (total, 2)

    (tables / "config.json").write_text(json.dumps(config))
    day = int(min(row["started_at"] for row in found).timestamp()) // 86_400 * 86_400
    honest, wrong = tables / "usage.json", tables / "wrong.json"
    calls = simulator.calls()
    honest.write_text(usage_export(calls, day))
    served = [call for call in calls if call["usage"]]
    less = next(call for call in served if call["model"] == "gpt-4.1")
    other = next(call for call in served if call["model"] == "gpt-4o-mini")
    more = {
        **other,
        "usage": {**other["usage"], "completion_tokens": other["usage"]["completion_tokens"] + 9},
    }
    wrong.write_text(usage_export([more, *(call for call in served if call is not less and call is not other)], day))
    monkeypatch.chdir(tables)

    def reconciled(path: Path) -> tuple[int, str]:
        words = ["reconcile", str(path), "--run", "march", "--config", str(tables / "config.json")]
        result = CliRunner().invoke(cli.app, words, env={"COLUMNS": "100", "TERM": "dumb"})
        return result.exit_code, result.output

    code, output = reconciled(honest)
    assert (code, "captures and bill are equal" in output) == (0, True), output
    code, output = reconciled(wrong)
    assert code == 3, output
    assert "gpt-4o-mini: other output tokens, the bill has +9 output tokens" in output
    assert "gpt-4.1: missing in the bill: 1 call" in output
