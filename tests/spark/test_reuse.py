"""Identical requests are called once, within a run and over runs, and their rows say so."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap import cli
from tests import prompts
from tests.runs import capture, captured, run_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

PRICED = "- {model: gpt-4o-mini, input: 1, cached_input: 1, output: 10, date: 2026-01-01, source: here}\n"


@pytest.fixture
def small_files(spark: SparkSession) -> Iterator[None]:
    """The session splits files after three rows. Otherwise, requests that belong together would be in several parts."""
    spark.conf.set("spark.sql.files.maxRecordsPerFile", 3)
    yield
    spark.conf.unset("spark.sql.files.maxRecordsPerFile")


@pytest.mark.slow
@pytest.mark.usefixtures("small_files")
def test_identical_requests_are_called_once(
    spark: SparkSession, tables: Path, simulator: Simulation, capsys: pytest.CaptureFixture[str]
) -> None:
    modes = 2
    (tables / "prices.yml").write_text(PRICED)
    sections: dict[str, Any] = {
        "capture": {"reuse": True, "mode": "paired"}, "prices": str(tables / "prices.yml"), "prompts": {"keep": ["model"]},
    }  # fmt: skip
    rows: list[tuple[Any, ...]] = [(f"r{n:02d}", f"Prompt {n % 3}?", None, None) for n in range(12)]
    rows.append(("bad", " ", None, None))
    prompts.write(spark, tables / "prompts", rows)
    (tables / "c.yml").write_text(yaml.safe_dump(prompts.config(tables, simulator.base_url, **sections)))
    assert cli.run(cli.capture, tables / "c.yml", dry_run=True) == 0
    assert capsys.readouterr().out.count("capture.reuse saves 9 calls, and $") == modes
    ended, _ = capture(spark, tables, simulator, **sections)
    assert (ended.row["completed"], ended.row["requests"], ended.row["owed"]) == (12 * modes, 3 * modes, 13 * modes)
    # A retry is a call, too: if the machine is too slow for a timeout, this says so.
    assert [row["retries"] for row in captured(spark, tables) if row["retries"]] == []
    assert simulator.counts()["calls"] == 3 * modes
    check(spark, tables, called=3, reused=9, modes=modes)

    # The next run reuses answers of the first one, and calls only what is new.
    rows += [("s0", "Prompt 0?", None, None), ("s1", "Prompt 0?", "gpt-4o-mini", None), ("new", "Other?", None, None)]
    prompts.write(spark, tables / "prompts", rows)
    ended, shown = capture(spark, tables, simulator, **sections)
    assert (ended.row["completed"], ended.row["requests"], ended.row["owed"]) == (3 * modes, modes, 3 * modes)
    assert f"{2 * modes} requests reuse answers of earlier rows" in shown
    assert simulator.counts()["calls"] == 4 * modes
    check(spark, tables, called=4, reused=11, modes=modes)
    costs = [row["cost_usd"] for row in run_rows(spark, tables)]
    assert sum(costs) == pytest.approx(sum(row["cost_usd"] or 0 for row in captured(spark, tables)))
    ended, shown = capture(spark, tables, simulator, **sections)
    assert (ended.row["owed"], simulator.counts()["calls"]) == (0, 4 * modes)


def check(spark: SparkSession, tables: Path, *, called: int, reused: int, modes: int) -> None:
    rows = [row for row in captured(spark, tables) if row["status"] == "completed"]
    own = {(row["request_id"], row["mode"]): row for row in rows if row["reused_from"] is None}
    others = [row for row in rows if row["reused_from"] is not None]
    assert (len(own), len(others)) == (called * modes, reused * modes)
    assert max(Counter((row["request_id"], row["mode"]) for row in rows).values()) == 1
    for row in others:
        source = own[row["reused_from"]["request_id"], row["mode"]]
        assert row["reused_from"]["run_id"] == source["run_id"]
        for name in ("text", "finish_reason", "request_hash", "response_model", "choices"):
            assert row[name] == source[name], name
        assert (row["cost_usd"], row["chunks"], row["ttft_ms"], row["started_at"]) == (0.0, [], None, None)
        assert (row["usage_reported"], row["usage_tiktoken"], row["retries"]) == (None, None, [])
    assert all(row["cost_usd"] > 0 and row["chunks"] for row in own.values() if row["mode"] == "stream")
