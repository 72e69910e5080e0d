"""Faults at every step of a run, with real processes: after each, every request has one completed row and was paid once.

What was in flight, and what had finished within a flush interval, may be paid for again; nothing else.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from deltatap.delta.tables import came_second, quoted
from tests import prompts
from tests.e2e.test_kills import in_one_flush, kill, running, start, start_again, talking, wait_until
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COUNT, CONCURRENCY = 120, 8
PATCHES = Path(__file__).parent / "python"
PACE = ("--ttft-ms", "150", "--itl-ms", "10", "--tokens", "40")


class Scene:
    """A prompts table, a configuration and a log, in a test's folder."""

    def __init__(self, session: SparkSession, folder: Path, simulator: Simulation, **sections: Any) -> None:
        self.spark, self.folder, self.simulator = session, folder, simulator
        self.sections = {"capture": {"concurrency": CONCURRENCY}, **sections}
        self.log = folder / "log"
        self.config = folder / "config.yml"
        self.state = folder / "state"
        prompts.write(session, folder / "prompts", [(f"r{n:03d}", f"Prompt {n}?") for n in range(COUNT)])
        self.config.write_text(yaml.safe_dump(prompts.config(folder, simulator.base_url, **self.sections)))

    def start(self, fault: str | None = None) -> psutil.Popen:
        """The job; with a fault, each of its Python processes loads it (tests/e2e/python)."""
        return start(self.config, self.log, {"PYTHONPATH": str(PATCHES), "FAULT": fault} if fault else None)

    def start_again(self) -> None:
        """The next start of the same job. It runs in this process, whose Spark session is ready."""
        start_again(self.spark, self.folder, self.simulator, self.log, **self.sections)

    def until(self, condition: Callable[[], object], job: psutil.Popen) -> None:
        wait_until(lambda: bool(condition()), job, self.log)

    def there(self, pattern: str) -> bool:
        return any(self.state.glob(pattern))

    def check(self, *, again: int) -> None:
        """The promises: one completed row each, and no more paid twice than allowed."""
        rows = self.spark.table(quoted(str(self.folder / "captures"))).where("status = 'completed'").collect()
        assert Counter(row["request_id"] for row in rows) == {f"r{n:03d}": 1 for n in range(COUNT)}, (
            self.log.read_text()
        )
        assert COUNT <= self.simulator.counts()["calls"] <= COUNT + again, self.log.read_text()
        sent = {call["key"]: call["texts"]["0"] for call in self.simulator.calls() if call["ended"] == "done"}
        assert {row["request_hash"]: row["text"] for row in rows} == sent
        assert not list(self.state.iterdir()), "a run that ended leaves no state"


def moments(scene: Scene) -> dict[str, Callable[[], object]]:
    """When a driver is killed."""
    return {
        "planning": lambda: scene.there("*/plan-*/parts"),
        "capture": lambda: scene.simulator.counts()["finished"] >= COUNT // 3,
        "flush": lambda: scene.there("*/journal/.*.tmp"),
        "landing": lambda: scene.there("*/checkpoint-*/offsets/0") and not scene.there("*/checkpoint-*/commits/0"),
        "closing": lambda: scene.simulator.counts()["finished"] == COUNT,
    }


@pytest.mark.parametrize("moment", ["planning", "capture", "flush", "landing", "closing"])
def test_the_driver_and_all_it_started_are_killed(spark: SparkSession, tables: Path, moment: str) -> None:
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        first = scene.start()
        scene.until(moments(scene)[moment], first)
        kill([first, *first.children(recursive=True)])
        scene.start_again()
        scene.check(again=CONCURRENCY + in_one_flush(simulator))


@pytest.mark.parametrize("moment", ["capture", "flush"])
def test_a_python_worker_is_killed(spark: SparkSession, tables: Path, moment: str) -> None:
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        job = scene.start()
        scene.until(moments(scene)[moment], job)
        scene.until(lambda: talking(job, simulator), job)
        kill(talking(job, simulator))
        assert job.wait(timeout=300) == 0, scene.log.read_text()
        assert "submitting it again" in scene.log.read_text()
        scene.check(again=CONCURRENCY + in_one_flush(simulator))


def test_a_python_worker_is_killed_while_it_plans(spark: SparkSession, tables: Path) -> None:
    """Nothing was paid yet: the run may fail, and the next start does it all. Landing and closing have no worker."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        job = scene.start()
        scene.until(lambda: running(job, "deltatap.spark.daemon"), job)
        kill(running(job, "deltatap.spark.daemon"))
        assert job.wait(timeout=300) in (0, 1), scene.log.read_text()
        if job.returncode:
            assert simulator.counts()["calls"] == 0
            scene.start_again()
        scene.check(again=0)


@pytest.mark.parametrize("moment", ["planning", "flush", "landing", "closing"])
def test_an_executor_is_killed(spark: SparkSession, tables: Path, moment: str) -> None:
    """The one that captures, where one does; test_kills.py has the same in mid-capture."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator, spark={"master": "local-cluster[2,1,1024]"})
        job = scene.start()
        scene.until(moments(scene)[moment], job)
        executors = running(job, "CoarseGrainedExecutorBackend")
        workers = talking(job, simulator)
        capturing = [each for each in executors if {*each.children(recursive=True)} & {*workers}]
        kill((capturing or executors)[:1])
        assert job.wait(timeout=300) == 0, scene.log.read_text()
        scene.check(again=CONCURRENCY + in_one_flush(simulator))


def test_a_slow_file_system_holds_up_nothing_but_itself(spark: SparkSession, tables: Path) -> None:
    """A flush takes ten seconds: streams go on meanwhile."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        job = scene.start("slow-fsync")
        scene.until(lambda: scene.there("*/journal/.*.tmp"), job)
        then = simulator.counts()["finished"]
        scene.until(lambda: simulator.counts()["finished"] >= then + COUNT // 2, job)
        assert not scene.there("*/journal/*.parquet"), "the first flush is not over"
        assert job.wait(timeout=300) == 0, scene.log.read_text()
        scene.check(again=0)


def test_the_clock_is_set(spark: SparkSession, tables: Path) -> None:
    """Forth and back by hours, every two seconds, for driver and workers: times and promises hold."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        assert scene.start("clock-steps").wait(timeout=300) == 0, scene.log.read_text()
        scene.check(again=0)
        rows = spark.table(quoted(str(tables / "captures"))).collect()
        for row in rows:
            assert 0 < row["ttft_ms"] < row["last_chunk_ms"] <= row["e2e_ms"] < 60_000
        days = {row["finished_at"].replace(minute=0, second=0, microsecond=0) for row in rows}
        assert len(days) > 1, "the clock was set while it ran"


def test_a_journal_file_is_cut_short(spark: SparkSession, tables: Path) -> None:
    """A file system that lost the end of a file: set aside, named, and its requests are owed again."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        first = scene.start()
        scene.until(moments(scene)["capture"], first)
        kill([first, *first.children(recursive=True)])
        files = list(scene.state.glob("*/journal/*.parquet"))
        for path in files[:1]:
            path.write_bytes(path.read_bytes()[:100])
        scene.start_again()
        rows = spark.table(quoted(str(tables / "captures"))).where("status = 'completed'")
        assert rows.count() == rows.select("request_id").distinct().count() == COUNT
        if files:
            assert files[0].name in scene.log.read_text()
            assert list(scene.state.glob("*/aside/*")), "kept for a person to look at"


def test_a_state_folder_that_takes_no_writes_for_a_while(spark: SparkSession, tables: Path) -> None:
    """As on a full disk: nothing that could not be kept is started, nothing that was paid for is lost."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        job = scene.start()
        scene.until(moments(scene)["capture"], job)
        (worker,) = talking(job, simulator)
        _, hard = worker.rlimit(psutil.RLIMIT_FSIZE)
        worker.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
        scene.until(lambda: simulator.stats()["open"] == 0, job)
        assert simulator.counts()["calls"] < COUNT
        worker.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        assert job.wait(timeout=300) == 0, scene.log.read_text()
        scene.check(again=0)


def test_another_writer_s_commits_conflict_with_ours(spark: SparkSession, tables: Path) -> None:
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        job = scene.start()
        captures = quoted(str(tables / "captures"))
        scene.until(moments(scene)["capture"], job)
        over = threading.Event()

        statements = (
            f"INSERT INTO {captures} (run_id, request_id, mode, status) VALUES ('other', 'x', 'stream', 'failed')",
            f"DELETE FROM {captures} WHERE run_id = 'other'",
            f"OPTIMIZE {captures}",
        )

        def meddle() -> None:
            for statement in cycle(statements):
                if over.is_set():
                    break
                try:
                    spark.sql(statement)
                except Exception as error:
                    if not came_second(error):  # ours comes first now and then, too
                        raise

        thread = threading.Thread(target=meddle)
        thread.start()
        try:
            assert job.wait(timeout=300) == 0, scene.log.read_text()
        finally:
            over.set()
            thread.join()
        spark.sql(f"DELETE FROM {captures} WHERE run_id = 'other'")
        scene.check(again=0)


def kept_port() -> str:
    """A free port that nobody is given by chance, so that it is still free when the endpoint comes back."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(first - 10_000, first), 100):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return str(port)
    raise OSError("no free port below the ephemeral ones")


def test_an_endpoint_that_is_down_for_a_minute(spark: SparkSession, tables: Path) -> None:
    """It goes away in mid-run and comes back on the same port; what failed meanwhile the next run completes."""
    port = kept_port()
    with start_simulator(*PACE, "--port", port) as simulator:
        scene = Scene(spark, tables, simulator, capture={"concurrency": CONCURRENCY, "max_attempts": 3})
        job = scene.start()
        scene.until(moments(scene)["capture"], job)
        paid = {call["key"] for call in simulator.calls() if call["ended"] == "done"}
    scene.until(lambda: "connection" in "".join(p.read_text() for p in scene.state.glob("*/workers/*.json")), job)
    time.sleep(60)
    with start_simulator(*PACE, "--port", port) as back:
        assert job.wait(timeout=300) in (0, 3), scene.log.read_text()
        scene.simulator = back
        scene.start_again()
        rows = spark.table(quoted(str(tables / "captures"))).where("status = 'completed'").collect()
        assert Counter(row["request_id"] for row in rows) == {f"r{n:03d}": 1 for n in range(COUNT)}, (
            scene.log.read_text()
        )
        twice = paid & {call["key"] for call in back.calls()}
        assert len(twice) <= CONCURRENCY, "but for what was in flight when it went"
