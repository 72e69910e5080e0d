"""Real processes killed with SIGKILL: no row is lost or duplicated, and only the allowed number of calls repeats."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import yaml

from deltatap.delta.tables import quoted
from tests import prompts
from tests.jobs import FLUSH_S, finished, in_one_flush, kill, running, start, start_again, streaming_workers, wait_until
from tests.runs import journaled
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyspark.sql import SparkSession


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS, CONCURRENCY = 600, 32


def test_after_two_kills_every_request_has_one_row(
    spark: SparkSession,
    tables: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    prompts.write(spark, tables / "prompts", [(f"r{n:04d}", f"Prompt {n}?") for n in range(PROMPTS)])
    log = tmp_path / "log"
    with start_simulator("--ttft-ms", "150", "--itl-ms", "15", "--tokens", "60") as simulator:
        config = tmp_path / "config.yml"
        tree = prompts.config(
            tables, simulator.base_url, capture={"concurrency": CONCURRENCY}, state={"flush_s": FLUSH_S},
            spark={"master": "local-cluster[2,1,1024]"},
        )  # fmt: skip
        config.write_text(yaml.safe_dump(tree))

        first = start(config, log)
        wait_until(finished(simulator, 0.4 * PROMPTS), first, log)
        kill([first, *first.children(recursive=True)])  # driver, JVM, executors and Python workers
        assert simulator.counts()["finished"] < 0.7 * PROMPTS

        second = start(config, log)
        wait_until(finished(simulator, 0.7 * PROMPTS), second, log)
        victims = streaming_workers(second, simulator)
        assert victims, "no worker has an open stream"
        executors = running(second, "CoarseGrainedExecutorBackend")
        kill([next(each for each in executors if victims[0] in each.children(recursive=True))])
        assert second.wait(timeout=600) == 0, log.read_text()

        counts = simulator.counts()
        rows = (
            spark.table(quoted(str(tables / "captures")))
            .select("run_id", "request_id", "mode", "status", "text")
            .collect()
        )
        assert Counter(row["status"] for row in rows) == {"completed": PROMPTS}, log.read_text()
        assert len({row["request_id"] for row in rows}) == PROMPTS
        assert len({row["run_id"] for row in rows}) == 1, "the second start resumes the first run"
        allowed = 2 * (CONCURRENCY + in_one_flush(simulator))
        record_property("calls", f"{counts['calls']} for {PROMPTS} prompts, {allowed} more allowed")
        assert PROMPTS <= counts["calls"] <= PROMPTS + allowed
    assert not list((tables / "state").iterdir()), "a finished run leaves no state"


def test_a_kill_while_texts_are_checked_repeats_no_call(spark: SparkSession, tables: Path, tmp_path: Path) -> None:
    """All answers have ended, but the results of their last checks have not arrived."""
    prompts.write(spark, tables / "prompts", [(f"r{n:04d}", f"Prompt {n}?") for n in range(40)])
    sections = {"capture": {"concurrency": 40}, "moderation": {"every_chars": 10_000}, "state": {"flush_s": FLUSH_S}}
    with start_simulator("--ttft-ms", "50", "--speed", "4", "--moderation-ms", "60000") as simulator:
        config, log = tmp_path / "config.yml", tmp_path / "log"
        config.write_text(yaml.safe_dump(prompts.config(tables, simulator.base_url, **sections)))
        job = start(config, log)
        wait_until(lambda: len(journaled(tables)) == 40, job, log)
        kill([job, *job.children(recursive=True)])
        start_again(spark, tables, simulator, log, **sections)
        assert simulator.counts()["calls"] == 40
    rows = spark.table(quoted(str(tables / "captures"))).collect()
    assert {row["status"] for row in rows} == {"completed"}
    assert len({row["request_id"] for row in rows}) == len(rows) == 40


def test_a_suspended_worker_ends_with_its_job(spark: SparkSession, tables: Path, tmp_path: Path) -> None:
    prompts.write(spark, tables / "prompts", [(f"r{n:04d}", f"Prompt {n}?") for n in range(40)])
    with start_simulator("--ttft-ms", "2000") as simulator:
        config = tmp_path / "config.yml"
        tree = prompts.config(tables, simulator.base_url, capture={"concurrency": 8}, timeouts={"grace_s": 0})
        config.write_text(yaml.safe_dump(tree))
        log = tmp_path / "log"
        job = start(config, log)
        wait_until(finished(simulator, 8), job, log)
        wait_until(lambda: any((tables / "state").glob("*/journal/*.parquet")), job, log)
        (worker,) = streaming_workers(job, simulator)
        worker.suspend()
        job.terminate()
        assert job.wait(timeout=200) == 0, log.read_text()
        assert '"status": "stopped"' in log.read_text().splitlines()[-1]
        assert not worker.is_running()
    rows = spark.table(quoted(str(tables / "captures"))).collect()
    assert len({row["request_id"] for row in rows}) == len(rows) > 0
