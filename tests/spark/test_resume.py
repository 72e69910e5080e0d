"""Broken streams are resumed, not paid for again: whole runs against the simulator, which counts POSTs and GETs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.analysis.sql import measured_sql
from deltatap.delta.tables import quoted
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.runs import capture, captured

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

PROMPTS = 40
RESUME: dict[str, dict[str, Any]] = {"endpoint": {"api": "responses"}, "capture": {"resume": True, "concurrency": 8}}


def sections(**changes: Any) -> dict[str, Any]:
    capture = {**RESUME["capture"], **changes.pop("capture", {})}
    return {"endpoint": {"name": "sim", "api_key": None, **RESUME["endpoint"]}, "capture": capture, **changes}


def run(spark: SparkSession, folder: Path, simulator: Simulation, **changes: Any) -> tuple[Any, str]:
    made = sections(**changes)
    made["endpoint"]["base_url"] = simulator.base_url
    return capture(spark, folder, simulator, **made)


def texts(simulator: Simulation) -> dict[str, str]:
    """The texts that the simulator generated, by response id."""
    return {call["response_id"]: call["texts"].get("0", "") for call in simulator.calls() if call["method"] == "POST"}


@pytest.mark.slow
def test_cut_streams_are_resumed(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    prompts.write(spark, tables / "prompts", [(f"r{n:03d}", f"Prompt {n}?") for n in range(PROMPTS)])
    simulator.restore(tokens=30, ttft_ms=20, itl_ms=2, speed=1)
    places = {f"cut@{place}": 0.12 for place in (1, 2, 3, 5, 8, 13, 21)}
    simulator.change(faults={**places, "cut_first": 0.05}, in_a_row=3)
    ended, shown = run(spark, tables, simulator)
    assert ended.row["status"] == "completed", shown
    assert "the provider stores every streamed answer" in shown
    rows = captured(spark, tables)
    assert Counter(row["status"] for row in rows) == {"completed": PROMPTS}
    generated, calls = texts(simulator), simulator.calls()
    assert all(row["text"] == generated[row["response_id"]] for row in rows)
    counts = simulator.counts()["by_key"]
    first = Counter(call["key"] for call in calls if call["fault"] == "cut_first" and call["method"] == "POST")
    assert {key: each["calls"] for key, each in counts.items()} == {key: 1 + first[key] for key in counts}
    assert sum(each.get("gets", 0) for each in counts.values()) > PROMPTS / 2
    marks = Counter(mark["outcome"] for row in rows for mark in row["resumed"] or ())
    assert marks["unseen"] == first.total()
    assert set(marks) <= {"stream", "unseen"}
    assert f"{marks['stream']} broken streams were resumed (capture.resume)" in shown
    for row in rows:
        events = [chunk["event"] for chunk in row["chunks"]]
        assert events == sorted(events)
        assert "".join(chunk["text"] for chunk in row["chunks"] if chunk["kind"] == "content") == row["text"]
        assert row["usage_reported"]["output_tokens"] == row["usage_tiktoken"]["output_tokens"]
    # The gap of a break does not count.
    settings = load_settings(prompts.config(tables, simulator.base_url))
    measured = spark.sql(measured_sql(settings, f"SELECT * FROM {quoted(str(tables / 'captures'))}"))
    assert measured.where("counts").count() == PROMPTS


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "outcome", "posts"), [("keep_s", "expired", 2), ("stream_s", "whole", 1)])
def test_an_answer_that_cannot_be_streamed_any_more(
    spark: SparkSession, tables: Path, simulator: Simulation, setting: str, outcome: str, posts: int
) -> None:
    prompts.write(spark, tables / "prompts", [("a", "Prompt a?", "gpt-4o-mini!cut@9:1")])
    simulator.change(**{setting: 0.0})
    ended, shown = run(spark, tables, simulator, prices=None)
    assert ended.row["status"] == "completed", shown
    (row,) = captured(spark, tables)
    assert row["status"] == "completed"
    assert [mark["outcome"] for mark in row["resumed"]] == [outcome]
    (counts,) = simulator.counts()["by_key"].values()
    assert counts["calls"] == posts
    assert row["text"] == texts(simulator)[row["response_id"]]
    settings = load_settings(prompts.config(tables, simulator.base_url))
    measured = spark.sql(measured_sql(settings, f"SELECT * FROM {quoted(str(tables / 'captures'))}"))
    assert measured.where("counts").count() == (outcome == "expired")


@pytest.mark.slow
def test_background_without_resume_is_refused_before_anything_is_sent(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    rows = [("a", "Prompt a?", None, '{"background": true}'), ("b", "Prompt b?")]
    prompts.write(spark, tables / "prompts", rows)
    ended, _ = run(spark, tables, simulator, capture={"resume": False})
    assert ended.row["failed"] == 1
    found = {row["request_id"]: row for row in captured(spark, tables)}
    assert found["a"]["error"]["type"] == "invalid_request"
    assert "params.background: use capture.resume: true" in found["a"]["error"]["message"]
    assert simulator.counts()["calls"] == 1
    # With resume, the same prompt is sent.
    ended, shown = run(spark, tables, simulator)
    assert (ended.row["owed"], ended.row["completed"]) == (1, 1), shown
    assert simulator.counts()["calls"] == 2
