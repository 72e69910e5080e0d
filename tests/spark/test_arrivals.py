"""An open loop with real Spark: requests start on their schedule, and metrics are given from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deltatap.analysis.compute import analyze
from deltatap.config import Arrivals
from deltatap.settings_loading import load_settings
from deltatap.worker.arrivals import due_times
from tests import prompts
from tests.runs import capture, captured

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

COUNT = 40
SCHEDULE: dict[str, Any] = {"per_second": 20, "seed": 7}
PACE = {"speed": 1, "ttft_ms": 120, "ttft_sigma": 0, "itl_ms": 1, "tokens": 3}


@pytest.mark.slow
def test_requests_start_on_their_schedule_and_late_starts_count(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    rows = [(f"r{n:02d}", f"Prompt {n}?") for n in range(COUNT)] + [("bad", " ")]
    prompts.write(spark, tables / "prompts", rows)
    # The model answers a request in about 125 ms, so one stream cannot hold 20 requests a second: starts are late.
    sections: dict[str, Any] = {
        "capture": {"arrivals": SCHEDULE, "concurrency": 1},
        "analysis": {"slo": {"ttft_ms": 300}, "max_loop_lag_ms": None},
    }
    ended, output = capture(spark, tables, simulator, **sections)
    assert (ended.row["completed"], ended.row["failed"]) == (COUNT, 1)
    assert "arrivals: poisson, 20 per second (seed 7), about 2 s for 40 requests" in output
    rows_by_start = sorted((row for row in captured(spark, tables) if row["started_at"]), key=lambda r: r["started_at"])
    late_s = np.array([row["scheduled_ms"] for row in rows_by_start]) / 1e3
    assert (late_s >= 0).all()
    assert late_s[-1] > 1, "the last request waited for the stream"
    starts = np.array([row["started_at"].timestamp() for row in rows_by_start])
    due = due_times(Arrivals(**SCHEDULE), [COUNT], 0)
    offsets = starts - late_s - due
    assert np.ptp(offsets) < 0.02, "starts minus delays are the schedule"
    (metrics,) = analyze(spark, load_settings(prompts.config(tables, simulator.base_url, **sections)))
    by_hand = [row["scheduled_ms"] + row["dispatch_ms"] + row["ttft_ms"] for row in rows_by_start]
    assert np.isclose(metrics["ttft_scheduled_ms"]["p50"]["value"], np.median(by_hand))
    assert metrics["ttft_ms"]["p50"]["value"] < 300 < metrics["ttft_scheduled_ms"]["p50"]["value"]
    assert metrics["good"] == sum(value <= 300 for value in by_hand), "goodput is measured from the schedule"
