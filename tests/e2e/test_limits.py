"""Rate limits with real Spark workers: the simulator enforces the limits and records how far the run uses them."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap.delta.tables import quoted
from tests import prompts
from tests.jobs import finished, kill, running, start, wait_until
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psutil
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PACE = ("--ttft-ms", "150", "--itl-ms", "10", "--tokens", "60")


def windows(events: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the minimum, median and maximum sum within any 60 seconds between the first and the last start."""
    first, last = events[0][0], events[-1][0]
    edges = [at for at, _ in events if at + 60 <= last]
    sums = [sum(amount for at, amount in events if edge <= at < edge + 60) for edge in (first, *edges)]
    return min(sums), statistics.median(sums), max(sums)


def job_of(folder: Path, base_url: str, **sections: Any) -> tuple[psutil.Popen, Path]:
    """Start a job on the prompts in a folder. Returns the job and its log."""
    config, log = folder / "config.yml", folder / "log"
    config.write_text(yaml.safe_dump(prompts.config(folder, base_url, **sections)))
    return start(config, log), log


def write_prompts(spark: SparkSession, folder: Path, count: int) -> None:
    folder.mkdir()
    prompts.write(spark, folder / "prompts", [(f"r{n:04d}", f"Prompt {n}?") for n in range(count)])


def completed_once(spark: SparkSession, folder: Path, count: int) -> bool:
    rows = spark.table(quoted(str(folder / "captures"))).where("status = 'completed'")
    return bool(rows.select("request_id").distinct().count() == rows.count() == count)


def test_requests_and_tokens_per_minute_are_used_and_never_exceeded(
    spark: SparkSession, tables: Path, record_property: Callable[[str, object], None]
) -> None:
    """Two jobs at the same time, each on its own endpoint, because both wait most of the time."""
    requests, tokens = tables / "requests", tables / "tokens"
    write_prompts(spark, requests, 400)
    write_prompts(spark, tokens, 640)
    with (
        start_simulator(*PACE, "--requests-per-minute", str(1.05 * 300)) as first,
        start_simulator(*PACE, "--tokens-per-minute", str(1.05 * 40_000)) as second,
    ):
        jobs = [
            job_of(
                requests, first.base_url, spark={"master": "local[2]"}, limits={"requests_per_minute": 300},
                capture={"concurrency": 16, "streams_per_worker": 16},
            ),
            job_of(
                tokens, second.base_url, spark={"master": "local[3]"}, limits={"tokens_per_minute": 40_000},
                capture={"concurrency": 32, "streams_per_worker": 16},
            ),
        ]  # fmt: skip
        for job, log in jobs:
            assert job.wait(timeout=600) == 0, log.read_text()
        used: list[tuple[str, int, list[tuple[float, Any]]]] = [
            ("requests", 300, [(call["started"], 1) for call in first.calls()]),
            ("tokens", 40_000, [(each["started"], each["usage"]["total_tokens"]) for each in second.calls() if each["usage"]]),
        ]  # fmt: skip
        refused = [call for each in (first, second) for call in each.calls() if call["http_status"] == 429]
    assert not refused
    for what, limit, events in used:
        least, median, most = windows(events)
        record_property(what, f"{least} to {most}, median {median}, of {limit} within any 60 s")
        assert most <= 1.05 * limit
        # Unit tests check in a simulation how far a limit is used. Here, a slow machine may use less of it.
        assert median >= limit / 2
    assert completed_once(spark, requests, 400)
    assert completed_once(spark, tokens, 640)


def test_a_limit_is_not_exceeded_when_an_executor_is_killed(
    spark: SparkSession, tables: Path, record_property: Callable[[str, object], None]
) -> None:
    limit, count, folder = 300, 400, tables / "killed"
    write_prompts(spark, folder, count)
    with start_simulator(*PACE, "--requests-per-minute", str(1.05 * limit)) as simulator:
        job, log = job_of(
            folder, simulator.base_url, spark={"master": "local-cluster[2,2,1024]"},
            limits={"requests_per_minute": limit}, capture={"concurrency": 48, "streams_per_worker": 16},
        )  # fmt: skip
        wait_until(finished(simulator, 0.4 * count), job, log)
        # Spark starts another executor, and new workers join. Parts wait until then.
        kill(running(job, "CoarseGrainedExecutorBackend")[:1])
        assert job.wait(timeout=600) == 0, log.read_text()
        calls = simulator.calls()
    least, median, most = windows([(call["started"], 1) for call in calls])
    record_property("windows", f"{least} to {most}, median {median}, of {limit} within any 60 s")
    assert not [call for call in calls if call["http_status"] == 429]
    assert most <= 1.05 * limit
    assert completed_once(spark, folder, count)
