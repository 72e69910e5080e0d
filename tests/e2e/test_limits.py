"""Rate limits with real Spark workers: the simulator enforces the limits and records how far the run uses them."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap.delta.tables import quoted
from tests import prompts
from tests.e2e.test_kills import kill, running, start, wait_until
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PACE = ("--ttft-ms", "150", "--itl-ms", "10", "--tokens", "60")


def windows(events: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the minimum, median and maximum sum within any 60 seconds between the first and the last start."""
    first, last = events[0][0], events[-1][0]
    edges = [at for at, _ in events if at + 60 <= last]
    sums = [sum(amount for at, amount in events if edge <= at < edge + 60) for edge in (first, *edges)]
    return min(sums), statistics.median(sums), max(sums)


@pytest.mark.parametrize(("workers", "master"), [(1, "local[2]"), (4, "local-cluster[5,1,1024]")], ids=["1", "4"])
def test_requests_per_minute_are_used_and_never_exceeded(
    spark: SparkSession,
    tables: Path,
    tmp_path: Path,
    workers: int,
    master: str,
    record_property: Callable[[str, object], None],
) -> None:
    limit, count = 300, 400
    prompts.write(spark, tables / "prompts", [(f"r{n:04d}", f"Prompt {n}?") for n in range(count)])
    with start_simulator(*PACE, "--requests-per-minute", str(1.05 * limit)) as simulator:
        config, log = tmp_path / "config.yml", tmp_path / "log"
        tree = prompts.config(
            tables, simulator.base_url, spark={"master": master}, limits={"requests_per_minute": limit},
            capture={"concurrency": 16 * workers, "streams_per_worker": 16},
        )  # fmt: skip
        config.write_text(yaml.safe_dump(tree))
        job = start(config, log)
        if workers == 4:
            # Kill one executor. Spark starts another, and a new worker joins.
            wait_until(lambda: simulator.counts()["finished"] >= 0.4 * count, job, log)
            kill(running(job, "CoarseGrainedExecutorBackend")[:1])
        assert job.wait(timeout=600) == 0, log.read_text()
        calls = simulator.calls()
        refused = [call for call in calls if call["http_status"] == 429]
        least, median, most = windows([(call["started"], 1) for call in calls])
        record_property(
            "windows", f"{least} to {most}, median {median}, of {limit} within any 60 s, {len(refused)} refused"
        )
        assert not refused
        assert most <= 1.05 * limit
        # Unit tests check in a simulation how far a limit is used. Here, a slow machine may use less of it, and a part
        # waits until Spark has replaced the killed executor.
        assert workers > 1 or median >= limit / 2
    rows = spark.table(quoted(str(tables / "captures"))).where("status = 'completed'")
    assert rows.select("request_id").distinct().count() == rows.count() == count


def test_tokens_per_minute_are_used_and_never_exceeded(
    spark: SparkSession, tables: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    limit, count = 40_000, 640
    prompts.write(spark, tables / "prompts", [(f"r{n:04d}", f"Prompt {n}?") for n in range(count)])
    with start_simulator(*PACE, "--tokens-per-minute", str(1.05 * limit)) as simulator:
        config, log = tmp_path / "config.yml", tmp_path / "log"
        tree = prompts.config(
            tables, simulator.base_url, spark={"master": "local[3]"}, limits={"tokens_per_minute": limit},
            capture={"concurrency": 32, "streams_per_worker": 16},
        )  # fmt: skip
        config.write_text(yaml.safe_dump(tree))
        job = start(config, log)
        assert job.wait(timeout=600) == 0, log.read_text()
        calls = simulator.calls()
        used: list[tuple[float, Any]] = [
            (call["started"], call["usage"]["total_tokens"]) for call in calls if call["usage"] is not None
        ]
        least, median, most = windows(used)
        record_property("windows", f"{least} to {most}, median {median}, of {limit} within any 60 s")
        assert not [call for call in calls if call["http_status"] == 429]
        assert most <= 1.05 * limit
        # Unit tests check in a simulation how far a limit is used. Here, a slow machine may use less of it.
        assert median >= limit / 2
    assert spark.table(quoted(str(tables / "captures"))).where("status = 'completed'").count() == count
