"""Measures whether memory, the journal and the lag of landing stay bounded: many prompts, simulated answers.

    .venv/bin/python -m bench.bounded [prompts]

One process captures a part of the plan as a Spark worker does. Its client makes up answers in 50 ms, so about 2,500
captures end per second, four times as many as in a worker with 256 streams of 50 chunks/s. The main process plans with
Spark, publishes shares and lands, as the driver does. It prints resident memory, the number of journal files, and the
lag from the write of a journal file to its removal, when its rows are in Delta.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from bench.job import settings_in
from deltatap.delta import columns, tables
from deltatap.driver import owed as planning
from deltatap.driver import plan
from deltatap.driver.control import backlog
from deltatap.driver.landing import Landing
from deltatap.driver.merge import NewRows
from deltatap.messages import Control, OpenStream
from deltatap.model import CONTENT, FINISH, Call, Choice, Chunks, Received, Usage
from deltatap.prices import Prices
from deltatap.spark.session import local_session
from deltatap.state import RunState
from deltatap.worker import bootstrap, schedule
from deltatap.worker.attempt import CaptureTask, capture_part

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltatap.model import Wire

PROMPTS = 1_000_000
STREAMS, ANSWER_S = 128, 0.05
PIECES = tuple(f"word{at} " for at in range(20))
SAMPLE_S = 2.0


class Simulated:
    """A client whose answers have twenty chunks with invented times."""

    async def call(self, wire: Wire) -> Call:
        """Return an answer."""
        await asyncio.sleep(ANSWER_S)
        now = time.perf_counter()
        chunks = Chunks()
        for at, piece in enumerate(PIECES):
            chunks.append(100.0 + 10 * at, 10.0, piece, CONTENT, 0, at, at)
        chunks.append(300.0, 0.0, "stop", FINISH, 0, 20, 20)
        text = "".join(PIECES)
        received = Received(
            chunks, (Choice(0, text, "stop"),), Usage(20, 40, 60), "m", "id", output=True, finished=True
        )
        at_wall = time.time()
        return Call(at_wall, at_wall, now, 0.1, 90.0, 300.0, "req", received, "completed", None, 200, wire.body)

    def open_streams(self) -> list[OpenStream]:
        """The client shows no open streams."""
        return []

    async def close(self) -> None:
        """Do nothing."""


def work(folder: str) -> None:
    """Capture a part, in the worker's process."""
    schedule.SPACING_S = 0.0
    bootstrap.make_client = lambda *_: Simulated()  # type: ignore[assignment]
    with (Path(folder) / "task.pickle").open("rb") as file:
        task: CaptureTask = pickle.load(file)  # noqa: S301 - written by the main process
    capture_part(task, 0)


def main(count: int) -> None:
    console = Console()
    spark = local_session("local[1]", app_name="bounded")
    with tempfile.TemporaryDirectory(prefix="bounded-") as name:
        folder = Path(name)
        query = f"SELECT concat('r', id) AS request_id, concat('Prompt ', id) AS prompt FROM range({count})"
        settings = settings_in(
            folder, prompts={"sql": query, "table": None}, endpoint={"api_key": None, "name": "instant"}
        )
        tables.ensure(
            spark, settings.captures.table, columns.CAPTURES, columns.CAPTURES_PROPERTIES, columns.CAPTURES_CLUSTERED_BY
        )
        state = RunState(folder / "state" / "run")
        state.prepare()
        started = time.monotonic()
        with planning.owed_requests(spark, settings, "run") as owed:
            plan.write(owed, state.plan(1), 1, settings.capture, seed="run")
        planned_s = time.monotonic() - started
        with (folder / "task.pickle").open("wb") as file:
            pickle.dump(CaptureTask(settings, Prices(), "run", state.folder, 1), file)
        new_rows = NewRows(state, 1)
        landing = Landing(spark, settings.captures.table, state, keep_interrupted=False, new_rows=new_rows)
        figures = _run(count, landing, state, folder)
        rows = spark.table(tables.quoted(settings.captures.table))
        landed, unique = rows.count(), rows.select("request_id").distinct().count()
        detail = spark.sql(f"DESCRIBE DETAIL {tables.quoted(settings.captures.table)}").collect()[0]
    table = Table(title=f"{count:,} prompts")
    for column in ("figure", "value"):
        table.add_column(column)
    for what, figure in {
        "planning": f"{planned_s:.0f} s",
        **figures,
        "rows": f"{landed:,}, {unique:,} of them distinct",
        "captures": f"{detail['numFiles']:,} files, {detail['sizeInBytes'] / 2**20:,.0f} MB",
    }.items():
        table.add_row(what, figure)
    console.print(table)
    spark.stop()


@dataclass(slots=True)
class Sample:
    """One sample: the share of captures that are done, memory in MB, and the number of journal files."""

    done: float
    worker: float
    python: float
    jvm: float
    files: int


def _run(count: int, landing: Landing, state: RunState, folder: Path) -> dict[str, str]:
    process = subprocess.Popen([sys.executable, "-m", "bench.bounded", "--work", str(folder)])
    samples: list[Sample] = []
    lags: list[float] = []
    over = threading.Event()
    threads = [
        threading.Thread(target=_publish, args=(state, over)),
        threading.Thread(target=_watch, args=(count, psutil.Process(process.pid), state, samples, over)),
    ]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    try:
        while process.poll() is None or any(state.journal.glob("*.parquet")):
            written = {path: path.stat().st_mtime for path in state.journal.glob("*.parquet")}
            landing.tick()
            now = time.time()
            lags += [now - at for path, at in written.items() if not path.exists()]
            time.sleep(1)
        landing.compact()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    elapsed_s = time.monotonic() - started
    if process.returncode:
        sys.exit(f"the worker ended with {process.returncode}")
    shown = [next(sample for sample in samples if sample.done >= share) for share in (0.1, 0.5)] + [samples[-1]]
    lag = np.percentile(lags, (50, 99, 100))
    return {
        "captured and landed": f"{elapsed_s:.0f} s, {count / elapsed_s:,.0f} rows/s",
        "memory of the worker": _memory(sample.worker for sample in shown),
        "memory of the driver's Python": _memory(sample.python for sample in shown),
        "memory of the driver's JVM": _memory(sample.jvm for sample in shown),
        "journal files": f"{max(sample.files for sample in samples):,} at most (goal: 2,000)",
        "landing's lag": f"p50 {lag[0]:.1f} s (goal: 15), p99 {lag[1]:.1f} s, {lag[2]:.1f} s at most",
    }


def _memory(figures: Iterable[float]) -> str:
    return ", ".join(f"{mb:.0f} MB at {at}" for at, mb in zip(("10 %", "50 %", "100 %"), figures, strict=True))


def _publish(state: RunState, over: threading.Event) -> None:
    beat = 0
    while not over.wait(0.5):
        beat += 1
        shares = {each.claim: STREAMS for each in state.heartbeats() if not each.ended}
        state.publish(Control(1, beat, {} if backlog(state) else shares))


def _watch(count: int, process: psutil.Process, state: RunState, samples: list[Sample], over: threading.Event) -> None:
    me = psutil.Process()
    (jvm,) = (child for child in me.children() if child.name() == "java")
    while not over.wait(SAMPLE_S):
        try:
            worker = process.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            return
        if not worker:  # it has ended
            return
        done = sum(sum(each.rows.values()) for each in state.heartbeats()) / count
        files = sum(1 for _ in state.journal.glob("*.parquet"))
        python, jvm_mb = me.memory_info().rss / 2**20, jvm.memory_info().rss / 2**20
        samples.append(Sample(done, worker, python, jvm_mb, files))
        print(json.dumps({name: round(value, 2) for name, value in asdict(samples[-1]).items()}), file=sys.stderr)


if __name__ == "__main__":
    if "--work" in sys.argv:
        work(sys.argv[-1])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else PROMPTS)
