"""Captures in the driver's process, and rounds of `capture.follow_s`, with real Spark and Delta."""

from __future__ import annotations

import gc
import io
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from deltatap.delta.tables import quoted
from deltatap.driver.check_where import compute_of, shared_folder_problem
from deltatap.driver.follow import follow
from deltatap.driver.needs import preflight
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.runs import capture, captured, run_rows

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

IN_DRIVER = {"where": "driver", "concurrency": 16, "max_attempts": 2}


@pytest.mark.slow
def test_the_driver_captures_as_the_workers_do(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    faults = {"cut": "m!cut@2:1", "down": "m!500", "busy": "m!429=0.1:1", "bad": "m!400"}
    rows = [(f"r{n:02d}", f"Prompt {n}?") for n in range(30)] + [(name, "p", model) for name, model in faults.items()]
    prompts.write(spark, tables / "prompts", [*rows, ("empty", " ")])
    gc.unfreeze()
    interval = sys.getswitchinterval()
    ended, shown = capture(spark, tables, simulator, capture={**IN_DRIVER, "mode": "paired"})
    assert ended.row["status"] == "completed", shown
    found = captured(spark, tables)
    assert Counter((row["request_id"], row["mode"]) for row in found) == Counter(
        {(row[0], mode): 1 for row in [*rows, ("empty",)] for mode in ("stream", "complete")}
    )
    assert {row["request_id"] for row in found if row["status"] == "failed"} == {"down", "bad", "empty"}
    assert len({row["worker"] for row in found}) == 1
    assert simulator.counts()["calls"] == ended.row["requests"]
    assert (sys.getswitchinterval(), gc.get_freeze_count()) == (interval, 0)
    assert list((tables / "state").iterdir()) == []
    calls = simulator.counts()["calls"]
    # A run in Spark's workers continues where the one in the driver ended.
    ended, shown = capture(spark, tables, simulator, capture={"max_attempts": 2, "mode": "paired"})
    assert (ended.row["owed"], ended.row["failed"]) == (2, 2), shown
    assert simulator.counts()["calls"] == calls + 4


@pytest.mark.slow
def test_more_streams_than_one_process_holds_are_noted(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    prompts.write(spark, tables / "prompts", [("a", "p"), ("b", "p")])
    ended, _ = capture(spark, tables, simulator, capture={"where": "driver", "streams_per_worker": 2})
    assert ended.row["completed"] == 2
    (note,) = ended.notes
    assert note.startswith("the driver holds capture.streams_per_worker=2 streams (capture.where: driver): fewer ")


def test_check_sees_what_spark_has(spark: SparkSession, tmp_path: Path) -> None:
    found = compute_of(spark)
    assert (found.serverless, found.slots, found.here) == (False, 2, True)
    settings = load_settings({"state": {"dir": str(tmp_path / "state")}})
    assert shared_folder_problem(spark, settings) is None
    assert list((tmp_path / "state").iterdir()) == []
    (tmp_path / "file").touch()
    problem = shared_folder_problem(spark, load_settings({"state": {"dir": str(tmp_path / "file/state")}}))
    assert problem is not None
    assert "Spark cannot write to it" in problem


@pytest.mark.slow
def test_rounds_capture_new_and_changed_prompts_once(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    """A request that failed in one round is not sent again in the next one, but by the next run."""
    first = [("a", "one"), ("b", "two"), ("down", "p", "m!500"), ("bad", " ")]
    changed = [("a", "one"), ("b", "two, changed"), ("c", "three"), ("down", "p", "m!500"), ("bad", "fixed")]
    prompts.write(spark, tables / "prompts", first)
    settings = load_settings(
        prompts.config(
            tables, simulator.base_url, capture={**IN_DRIVER, "follow_s": 0.5, "owed": "all"}, budget={"requests": 20}
        )
    )
    console, ended = Console(file=io.StringIO(), width=200), list[dict[str, Any]]()

    def say(text: str) -> None:
        if "looking for new prompts" in text and len(ended) == 1:
            prompts.write(spark, tables / "prompts", changed)

    for each in follow(settings, spark, preflight(settings), console, say):
        ended.append(each.row)
        if len(ended) == 2:
            break
    assert [(row["status"], row["completed"], row["failed"]) for row in ended] == [
        ("completed", 2, 2),
        ("completed", 3, 0),
    ]
    assert {row["run_id"] for row in run_rows(spark, tables)} == {row["run_id"] for row in ended}
    calls = Counter(call["key"] for call in simulator.calls())
    hashes = {row["request_hash"]: row["request_id"] for row in captured(spark, tables)}
    assert Counter(hashes[key] for key in calls.elements()) == {"a": 1, "b": 2, "c": 1, "down": 2, "bad": 1}
    assert spark.table(quoted(str(tables / "captures"))).count() == 7
