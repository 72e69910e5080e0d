"""Faults at every step of a run, with real processes: afterwards, every request has exactly one completed row.

Only calls that were in flight, or that finished within one flush interval, may be paid for twice.
"""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from deltatap.delta.tables import is_conflict, quoted
from tests import prompts
from tests.jobs import finished, in_one_flush, kill, running, start, start_again, streaming_workers, wait_until
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COUNT, CONCURRENCY = 120, 8
IN_ROUNDS = {"concurrency": CONCURRENCY, "follow_s": 0.5}
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
        self.prompts: list[tuple[Any, ...]] = []
        self.add_prompts()
        self.config.write_text(yaml.safe_dump(prompts.config(folder, simulator.base_url, **self.sections)))

    def add_prompts(self) -> None:
        """Add the prompts of another run, and remember what there was before it."""
        known = len(self.prompts)
        self.finished_before = self.simulator.counts()["finished"]
        self.landed_before = {*(self.folder / "captures").glob("*.parquet")}
        self.prompts += [(f"r{n:03d}", f"Prompt {n}?") for n in range(known, known + COUNT)]
        prompts.write(self.spark, self.folder / "prompts", self.prompts)

    def start(self, fault: str | None = None) -> psutil.Popen:
        """Start the job. Each of its Python processes injects the fault (tests/e2e/python)."""
        return start(self.config, self.log, {"PYTHONPATH": str(PATCHES), "FAULT": fault} if fault else None)

    def start_and_reach(self, moment: str) -> psutil.Popen:
        """Start the job and wait until it reaches one of the moments."""
        job = self.start("visible-flush" if moment == "flush" else None)
        self.until(moments(self)[moment], job)
        return job

    def start_again(self) -> None:
        """Start the same job again, in this process because its Spark session is ready."""
        start_again(self.spark, self.folder, self.simulator, self.log, **self.sections)

    def until(self, condition: Callable[[], object], job: psutil.Popen) -> None:
        wait_until(lambda: bool(condition()), job, self.log)

    def looked(self, times: int) -> Callable[[], bool]:
        """A condition: this many rounds of `capture.follow_s` have ended."""
        return lambda: self.log.read_text().count("looking for new prompts") == times

    def exists(self, pattern: str) -> bool:
        return any(self.state.glob(pattern))

    def check(self, *, repeated: int) -> None:
        self.check_rows(repeated=repeated)
        self.check_state()

    def check_rows(self, *, repeated: int) -> None:
        """Check that every request has one completed row, and that at most ``repeated`` calls were repeated."""
        rows = self.spark.table(quoted(str(self.folder / "captures"))).where("status = 'completed'").collect()
        assert Counter(row["request_id"] for row in rows) == {row[0]: 1 for row in self.prompts}, self.log.read_text()
        count = len(self.prompts)
        assert count <= self.simulator.counts()["calls"] <= count + repeated, self.log.read_text()
        sent = {call["key"]: call["texts"]["0"] for call in self.simulator.calls() if call["ended"] == "done"}
        assert {row["request_hash"]: row["text"] for row in rows} == sent

    def check_state(self) -> None:
        assert not list(self.state.iterdir()), "a finished run leaves no state"


def moments(scene: Scene) -> dict[str, Callable[[], object]]:
    """Return the condition for each moment of the latest run at which a process is killed."""

    def landed() -> bool:
        return bool({*(scene.folder / "captures").glob("*.parquet")} - scene.landed_before)

    return {
        "planning": lambda: scene.exists("*/plan-*/parts"),
        "capture": finished(scene.simulator, scene.finished_before + COUNT // 3),
        "flush": lambda: scene.exists("*/journal/.*.tmp"),
        # The merge has written its rows. The journal files are deleted after the commit.
        "landing": lambda: landed() and scene.exists("*/journal/*.parquet"),
        "closing": finished(scene.simulator, scene.finished_before + COUNT),
    }


@pytest.mark.parametrize("moment", ["planning", "capture", "flush", "landing", "closing"])
def test_kill_the_driver_and_its_children(spark: SparkSession, tables: Path, moment: str) -> None:
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        first = scene.start_and_reach(moment)
        kill([first, *first.children(recursive=True)])
        scene.start_again()
        scene.check(repeated=CONCURRENCY + in_one_flush(simulator))


def kill_in_rounds(scene: Scene, at: tuple[str, ...], victims: Callable[[psutil.Popen], list[psutil.Process]]) -> None:
    """Kill processes at each of these moments, in one job: each moment has a round of `capture.follow_s`."""
    job, repeated = scene.start("visible-flush"), 0
    for number, moment in enumerate(at, start=1):
        if number > 1:
            scene.add_prompts()
        scene.until(moments(scene)[moment], job)
        kill(victims(job))
        scene.until(scene.looked(number), job)
        repeated += CONCURRENCY + in_one_flush(scene.simulator)
        scene.check_rows(repeated=repeated)
    job.terminate()
    assert job.wait(timeout=300) == 0, scene.log.read_text()
    scene.check_state()


def test_kill_a_python_worker(spark: SparkSession, tables: Path) -> None:
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator, capture=IN_ROUNDS)

        def streaming(job: psutil.Popen) -> list[psutil.Process]:
            found: list[psutil.Process] = []

            def find() -> bool:
                found[:] = streaming_workers(job, simulator)
                return bool(found)

            scene.until(find, job)
            return found

        kill_in_rounds(scene, ("capture", "flush"), streaming)
        assert scene.log.read_text().count("submitting it again") == 2


def test_kill_a_python_worker_during_planning(spark: SparkSession, tables: Path) -> None:
    """No call is paid yet. If the run fails, the next start does all the work."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        job = scene.start()
        # The command line of the JVM has the module's name, too.
        scene.until(lambda: running(job, "-m deltatap.spark.daemon"), job)
        kill(running(job, "-m deltatap.spark.daemon"))
        assert job.wait(timeout=300) in (0, 1), scene.log.read_text()
        if job.returncode:
            assert simulator.counts()["calls"] == 0
            scene.start_again()
        scene.check(repeated=0)


@pytest.mark.timeout(1200)
def test_kill_an_executor(spark: SparkSession, tables: Path) -> None:
    """Kill the executor that captures, if one does. test_kills.py kills an executor in the middle of a capture."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator, capture=IN_ROUNDS, spark={"master": "local-cluster[2,1,1024]"})

        def capturing(job: psutil.Popen) -> list[psutil.Process]:
            executors = running(job, "CoarseGrainedExecutorBackend")
            workers = streaming_workers(job, simulator)
            found = [each for each in executors if {*each.children(recursive=True)} & {*workers}]
            return (found or executors)[:1]

        kill_in_rounds(scene, ("planning", "flush", "landing", "closing"), capturing)


def test_a_slow_file_system_does_not_delay_streams(spark: SparkSession, tables: Path) -> None:
    """A flush takes ten seconds, and streams continue meanwhile."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        job = scene.start("slow-fsync")
        scene.until(lambda: scene.exists("*/journal/.*.tmp"), job)
        scene.until(finished(simulator, simulator.counts()["finished"] + COUNT // 2), job)
        assert not scene.exists("*/journal/*.parquet"), "the first flush is still running"
        assert job.wait(timeout=300) == 0, scene.log.read_text()
        scene.check(repeated=0)


def test_clock_jumps_change_no_latency(spark: SparkSession, tables: Path) -> None:
    """The clocks of driver and workers jump by hours every two seconds. Latencies and guarantees hold."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        assert scene.start("clock-steps").wait(timeout=300) == 0, scene.log.read_text()
        scene.check(repeated=0)
        rows = spark.table(quoted(str(tables / "captures"))).collect()
        for row in rows:
            # On a busy machine, one read can deliver all output. Its chunks then share one time.
            reads = {chunk["read"] for chunk in row["chunks"] if chunk["kind"] == "content"}
            assert row["ttft_ms"] < row["last_chunk_ms"] or len(reads) == 1
            assert 0 < row["ttft_ms"] <= row["last_chunk_ms"] <= row["e2e_ms"] < 60_000
        days = {row["finished_at"].replace(minute=0, second=0, microsecond=0) for row in rows}
        assert len(days) > 1, "the clock changed during the run"


def test_a_truncated_journal_file_is_set_aside(spark: SparkSession, tables: Path) -> None:
    """The file system lost the end of a file. The run sets the file aside, names it, and repeats its requests."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        first = scene.start_and_reach("capture")
        kill([first, *first.children(recursive=True)])
        files = list(scene.state.glob("*/journal/*.parquet"))
        for path in files[:1]:
            path.write_bytes(path.read_bytes()[:100])
        scene.start_again()
        rows = spark.table(quoted(str(tables / "captures"))).where("status = 'completed'")
        assert rows.count() == rows.select("request_id").distinct().count() == COUNT
        if files:
            assert files[0].name in scene.log.read_text()
            assert list(scene.state.glob("*/aside/*")), "damaged files are kept for inspection"


def test_a_state_folder_that_is_temporarily_not_writable(spark: SparkSession, tables: Path) -> None:
    """As on a full disk: no call starts that could not be journaled, and no paid call is lost."""
    with start_simulator(*PACE) as simulator:
        scene = Scene(spark, tables, simulator)
        job = scene.start_and_reach("capture")
        # The worker pauses after the first failed write. Until then, few calls start.
        simulator.change(pace={"ttft_ms": 2000})
        (worker,) = streaming_workers(job, simulator)
        _, hard = worker.rlimit(psutil.RLIMIT_FSIZE)
        worker.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
        scene.until(lambda: simulator.stats()["open"] == 0, job)
        assert simulator.counts()["calls"] < COUNT
        simulator.change(pace={"ttft_ms": 150})
        worker.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        assert job.wait(timeout=300) == 0, scene.log.read_text()
        scene.check(repeated=0)


def test_conflicting_commits_of_another_writer(spark: SparkSession, tables: Path) -> None:
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

        def write_conflicts() -> None:
            for statement in cycle(statements):
                if over.is_set():
                    break
                try:
                    spark.sql(statement)
                except Exception as error:
                    if not is_conflict(error):  # sometimes the run's commit wins
                        raise

        thread = threading.Thread(target=write_conflicts)
        thread.start()
        try:
            assert job.wait(timeout=300) == 0, scene.log.read_text()
        finally:
            over.set()
            thread.join()
        spark.sql(f"DELETE FROM {captures} WHERE run_id = 'other'")
        scene.check(repeated=0)


def port_that_stays_free() -> str:
    """Return a free port outside the ephemeral range, so that it stays free until the endpoint comes back."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(first - 10_000, first), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return str(port)
    raise OSError("no free port below the ephemeral range")


def test_an_endpoint_that_is_down_for_a_minute(spark: SparkSession, tables: Path) -> None:
    """The endpoint stops during the run and comes back on the same port. The next run completes the failed requests."""
    port = port_that_stays_free()
    with start_simulator(*PACE, "--port", port) as simulator:
        scene = Scene(spark, tables, simulator, capture={"concurrency": CONCURRENCY, "max_attempts": 3})
        job = scene.start_and_reach("capture")
        paid = {call["key"] for call in simulator.calls() if call["ended"] == "done"}
    scene.until(lambda: "connection" in "".join(p.read_text() for p in scene.state.glob("*/workers/*.json")), job)
    with suppress(psutil.TimeoutExpired):  # it may give up all requests before the minute is over
        job.wait(timeout=60)
    with start_simulator(*PACE, "--port", port) as back:
        assert job.wait(timeout=300) in (0, 3), scene.log.read_text()
        scene.simulator = back
        scene.start_again()
        rows = spark.table(quoted(str(tables / "captures"))).where("status = 'completed'").collect()
        assert Counter(row["request_id"] for row in rows) == {f"r{n:03d}": 1 for n in range(COUNT)}, (
            scene.log.read_text()
        )
        twice = paid & {call["key"] for call in back.calls()}
        assert len(twice) <= CONCURRENCY, "only calls in flight when the endpoint stopped are paid twice"
