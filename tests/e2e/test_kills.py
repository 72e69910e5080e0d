"""Real processes killed with SIGKILL: no row is lost or duplicated, and only the allowed number of calls repeats."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from deltatap import cli
from deltatap.delta.tables import quoted
from tests import prompts
from tests.runs import capture
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHECKOUT = Path(__file__).parents[2]
PROMPTS = 600
CONCURRENCY = 32
FLUSH_S = 0.5


def start(config: Path, log: Path, env: dict[str, str] | None = None) -> psutil.Popen:
    with log.open("ab") as out:
        command = [sys.executable, str(CHECKOUT / "jobs/capture.py"), "--config", str(config)]
        return psutil.Popen(command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **(env or {})})


def start_again(spark: SparkSession, folder: Path, simulator: Simulation, log: Path, **sections: Any) -> None:
    """Run the job again to completion, in this process because that saves the start of a JVM."""
    ended, shown = capture(spark, folder, simulator, **sections)
    with log.open("a") as out:
        out.write(shown)
    assert ended.row["status"] == "completed", log.read_text()


def wait_until(condition: Callable[[], bool], job: psutil.Popen, log: Path) -> None:
    """Wait for a condition while the job is running."""
    while not condition():
        assert job.poll() is None, log.read_text()
        time.sleep(0.05)


def finished(simulator: Simulation, share: float) -> Callable[[], bool]:
    return lambda: simulator.counts()["finished"] >= share * PROMPTS


def kill(processes: list[psutil.Process]) -> None:
    for action in (psutil.Process.suspend, psutil.Process.kill):  # suspend all first: none may react to a kill
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it has ended by itself
                action(process)
    psutil.wait_procs(processes, timeout=30)


def running(job: psutil.Popen, text: str) -> list[psutil.Process]:
    """Return the job's processes whose command line contains a text."""
    found = []
    for process in job.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if text in " ".join(process.cmdline()):
                found.append(process)
    return found


def streaming_workers(job: psutil.Popen, simulator: Simulation) -> list[psutil.Process]:
    """Return the Python workers that have open streams."""
    port = int(simulator.base_url.rpartition(":")[2].partition("/")[0])
    return [
        process
        for process in running(job, "deltatap.spark.daemon")
        if any(link.raddr[1:] == (port,) for link in process.net_connections())
    ]


def journaled(folder: Path) -> set[tuple[int, int]]:
    """Return part and row of each capture in the journal, held ones included."""
    files = [path for suffix in ("held", "parquet") for path in (folder / "state").glob(f"*/journal/*.{suffix}")]
    found: set[tuple[int, int]] = set()
    for path in files:
        with suppress(FileNotFoundError):
            rows = pq.read_table(path, columns=["part", "row"], partitioning=None).to_pylist()
            found |= {(row["part"], row["row"]) for row in rows}
    return found


def in_one_flush(simulator: Simulation) -> int:
    """Return the most answers that ended within two flush intervals: one of waiting, and one for the write."""
    ends = sorted(call["chunks"][-1][0] for call in simulator.calls() if call["ended"] == "done")
    return max(sum(1 for end in ends if at <= end < at + 2 * FLUSH_S) for at in ends)


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
        wait_until(finished(simulator, 0.4), first, log)
        kill([first, *first.children(recursive=True)])  # driver, JVM, executors and Python workers
        assert simulator.counts()["finished"] < 0.7 * PROMPTS

        second = start(config, log)
        wait_until(finished(simulator, 0.7), second, log)
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
        wait_until(finished(simulator, 8 / PROMPTS), job, log)
        wait_until(lambda: any((tables / "state").glob("*/journal/*.parquet")), job, log)
        (worker,) = streaming_workers(job, simulator)
        worker.suspend()
        job.terminate()
        assert job.wait(timeout=200) == 0, log.read_text()
        assert '"status": "stopped"' in log.read_text().splitlines()[-1]
        assert not worker.is_running()
    rows = spark.table(quoted(str(tables / "captures"))).collect()
    assert len({row["request_id"] for row in rows}) == len(rows) > 0


def test_a_second_start_during_a_run_is_refused(
    spark: SparkSession, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts.write(spark, tables / "prompts", [(f"r{n:04d}", f"Prompt {n}?") for n in range(40)])
    with start_simulator("--ttft-ms", "3000") as simulator:
        config = tmp_path / "config.yml"
        config.write_text(yaml.safe_dump(prompts.config(tables, simulator.base_url, capture={"concurrency": 8})))
        log = tmp_path / "log"
        first = start(config, log)
        wait_until(lambda: simulator.counts()["calls"] > 0, first, log)
        assert cli.run(cli.capture, config) == cli.CONFIGURATION
        shown = capsys.readouterr().out
        assert "another run is active" in shown
        assert f"pid {first.pid}" in shown
        assert first.wait(timeout=300) == 0, log.read_text()
        assert simulator.counts()["calls"] == 40
