"""Whether memory, the journal and the landing's lag stay bounded: many prompts, simulated answers, all else real.

    .venv/bin/python -m bench.bounded [prompts]

A process captures a part as a Spark worker does, with a client that answers at once; this one plans with Spark,
publishes shares and lands, as the driver does. It prints what grew: resident memory, journal files, the lag from a
file's write to its rows in Delta.
"""

from __future__ import annotations

import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console
from rich.table import Table

from deltatap import plan, schedule, tables, worker
from deltatap.client import Call
from deltatap.config import load_settings
from deltatap.landing import Landing
from deltatap.local import local_session
from deltatap.prices import Prices
from deltatap.received import CONTENT, FINISH, Choice, Chunks, Received, Usage
from deltatap.state import Control, RunState
from deltatap.worker import CaptureTask, capture_part

if TYPE_CHECKING:
    from deltatap.prompts import Wire

PROMPTS = 1_000_000
PIECES = tuple(f"word{at} " for at in range(20))
SAMPLE_S = 2.0


class Instant:
    """Answers at once, in twenty chunks."""

    async def call(self, wire: Wire) -> Call:
        """An answer."""
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

    async def close(self) -> None:
        """Nothing to close."""


def work(folder: str) -> None:
    """The worker's process."""
    schedule.SPACING_S = 0.0
    worker.client_of = lambda *_: Instant()  # type: ignore[assignment]
    with (Path(folder) / "task.pickle").open("rb") as file:
        task: CaptureTask = pickle.load(file)  # noqa: S301 - ours, written a moment ago
    capture_part(task, 0)


def main(count: int) -> None:
    console = Console()
    spark = local_session("local[1]", app_name="bounded")
    with tempfile.TemporaryDirectory(prefix="bounded-") as name:
        folder = Path(name)
        settings = load_settings(
            {
                "prompts": {
                    "sql": f"SELECT concat('r', id) AS request_id, concat('Prompt ', id) AS prompt FROM range({count})",
                    "table": None,
                },
                "captures": {"table": str(folder / "captures")},
                "runs": {"table": str(folder / "runs")},
                "state": {"dir": str(folder / "state"), "flush_s": 1},
                "endpoint": {"api_key": None, "name": "instant"},
                "prices": None,
            }
        )
        tables.ensure(
            spark, settings.captures.table, tables.CAPTURES, tables.CAPTURES_PROPERTIES, tables.CAPTURES_CLUSTERED_BY
        )
        state = RunState(folder / "state" / "run")
        state.prepare()
        started = time.monotonic()
        plan.write(plan.owed(spark, settings, "run"), state.plan(1), 1, modes=1, seed="run")
        planned_s = time.monotonic() - started
        with (folder / "task.pickle").open("wb") as file:
            pickle.dump(CaptureTask(settings, Prices(), "run", state.folder, 1), file)
        figures = _run(
            count, Landing(spark, settings.captures.table, state, keep_interrupted=False, fresh=1), state, folder
        )
        rows = spark.table(tables.quoted(settings.captures.table))
        landed, unique = rows.count(), rows.select("request_id").distinct().count()
        files = spark.sql(f"DESCRIBE DETAIL {tables.quoted(settings.captures.table)}").collect()[0]["numFiles"]
    table = Table(title=f"{count:,} prompts")
    for column in ("what", "figure"):
        table.add_column(column)
    for what, figure in {
        "planning": f"{planned_s:.0f} s",
        **figures,
        "rows": f"{landed:,}, {unique:,} of them unique",
        "files in captures": f"{files:,}",
    }.items():
        table.add_row(what, figure)
    console.print(table)
    spark.stop()


def _run(count: int, landing: Landing, state: RunState, folder: Path) -> dict[str, str]:
    process = subprocess.Popen([sys.executable, "-m", "bench.bounded", "--work", str(folder)])
    samples: list[tuple[float, float, float, int]] = []
    lags: list[float] = []
    over = threading.Event()
    threads = [
        threading.Thread(target=_publish, args=(state, over)),
        threading.Thread(target=_watch, args=(psutil.Process(process.pid), state, samples, over)),
    ]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    try:
        while process.poll() is None or any(state.journal.glob("*.parquet")):
            oldest = min((path.stat().st_mtime for path in state.journal.glob("*.parquet")), default=None)
            landing.tick()
            if oldest is not None:
                lags.append(time.time() - oldest)
            time.sleep(0.2)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    took = time.monotonic() - started
    if process.returncode:
        sys.exit(f"the worker ended with {process.returncode}")
    early, late = samples[len(samples) // 4], samples[-1]
    return {
        "captured and landed": f"{took:.0f} s, {count / took:,.0f} rows/s",
        "worker's memory": f"{early[1]:.0f} MB after a quarter, {late[1]:.0f} MB at the end, "
        f"{max(sample[1] for sample in samples):.0f} MB at most",
        "driver's Python memory": f"{early[2]:.0f} MB after a quarter, {late[2]:.0f} MB at the end",
        "journal files": f"{max(sample[3] for sample in samples):,} at most",
        "landing's lag": f"{statistics.median(lags):.1f} s at the median, {max(lags):.1f} s at most",
    }


def _publish(state: RunState, over: threading.Event) -> None:
    beat = 0
    while not over.wait(0.3):
        beat += 1
        shares = {told.claim: 64 for told in state.heartbeats() if not told.ended}
        backlog = sum(1 for _ in state.journal.glob("*.parquet")) > 1000  # noqa: PLR2004 - as the driver has it
        state.publish(Control(1, beat, {} if backlog else shares))


def _watch(
    process: psutil.Process, state: RunState, samples: list[tuple[float, float, float, int]], over: threading.Event
) -> None:
    me = psutil.Process()
    while not over.wait(SAMPLE_S):
        try:
            theirs = process.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            return
        if not theirs:  # it has ended
            return
        files = sum(1 for _ in state.journal.glob("*.parquet"))
        samples.append((time.monotonic(), theirs, me.memory_info().rss / 2**20, files))
        print(
            json.dumps({"worker_mb": round(theirs), "driver_mb": round(samples[-1][2]), "journal_files": files}),
            file=sys.stderr,
        )


if __name__ == "__main__":
    if "--work" in sys.argv:
        work(sys.argv[-1])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else PROMPTS)
