"""Jobs in processes of their own: starts, watches and kills them."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.runs import capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

CHECKOUT = Path(__file__).parents[1]
FLUSH_S = 0.5

_started: list[psutil.Popen] = []


def start(config: Path, log: Path, env: dict[str, str] | None = None, *, job: str = "capture") -> psutil.Popen:
    """Start one of the jobs, with more environment variables. The fixture ``jobs_end`` ends it after the test."""
    with log.open("ab") as out:
        command = [sys.executable, str(CHECKOUT / f"jobs/{job}.py"), "--config", str(config)]
        process = psutil.Popen(
            command, cwd=config.parent, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
    _started.append(process)
    return process


def end_all() -> None:
    """Kill the jobs that still run, so that a failed test does not disturb the next one."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            kill([process, *process.children(recursive=True)])
        process.wait()


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


def in_one_flush(simulator: Simulation) -> int:
    """Return the most answers that ended within two flush intervals: one of waiting, and one for the write."""
    ends = sorted(call["chunks"][-1][0] for call in simulator.calls() if call["ended"] == "done")
    return max(sum(1 for end in ends if at <= end < at + 2 * FLUSH_S) for at in ends)


def finished(simulator: Simulation, count: float) -> Callable[[], bool]:
    """A condition: the simulator has sent this many whole answers."""
    return lambda: bool(simulator.counts()["finished"] >= count)
