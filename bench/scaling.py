"""``make bench-scaling``: the load that 1, 2 and 4 workers handle, and the cost of journal and driver.

Each worker is a capture task on its own executor (Spark's ``local-cluster``) with 128 streams of 50 chunks/s.
One more executor lands. All processes, including the simulator, share the cores of this machine. If the cores are
fully used, the figures describe the machine and not the design; docs/scaling.md discusses this. ``python -m
bench.scaling 4`` measures 4 workers only. With ``--keep``, the figures replace those in the tables of docs/scaling.md.
The figures are also written to data/bench-scaling.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.page import with_table
from bench.processes import client, watched
from bench.simulators import CHUNKS_S, EVEN, TOKENS, simulating
from bench.truth import Measured, busy, errors, full
from deltatap.config import Bounds
from deltatap.driver.control import backlog
from deltatap.driver.pacer import Pacer
from deltatap.driver.progress import snapshot
from deltatap.messages import Control, Heartbeat
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation import Simulation
OUT, PAGE = Path("data/bench-scaling.json"), Path("docs/scaling.md")
WORKERS, STREAMS, ROUNDS = (1, 2, 4), 128, 8
KINDS = {
    "worker": "workers",
    "executor": "executors' JVMs",
    "jvm": "driver's JVM",
    "driver": "driver's Python",
    "simulator": "simulator",
}
BEATS, TURNS = (100, 1000), 20
_RUN_S = 240


def with_workers(workers: int, simulator: Simulation) -> dict[str, float]:
    """The complete job with this many workers."""
    simulator.reset()
    streams = workers * STREAMS
    found, watch = watched("bench.job", simulator.base_url, streams, ROUNDS * streams, workers, within_s=_RUN_S)
    calls = simulator.calls()
    spans = [(call["started"], call["chunks"][-1][0]) for call in calls]
    start, end = full(spans, streams)
    written = sum(start <= at <= end for call in calls for at, _ in call["chunks"])
    # Ideally, the chunks of a request take exactly the time for which the simulator is configured.
    ideal = streams * CHUNKS_S
    began, ended = min(at for at, _ in spans), max(at for _, at in spans)
    chunks = sum(len(call["chunks"]) for call in calls)
    truth = errors([Measured(*stream) for stream in found["streams"]], {call["key"]: call for call in calls})
    stats = simulator.stats()
    return {
        "chunks/s while all streams are open": written / (end - start),
        "share of the ideal": written / (end - start) / ideal,
        "open streams / ideal": busy(spans, streams),
        "requests/s": sum(start <= at <= end for _, at in spans) / (end - start),
        "TTFT error p50, ms": truth["TTFT error p50"],
        "TTFT error p99, ms": truth["TTFT error p99"],
        "gap error p99, ms": truth["gap error p99"],
        "loop lag p99, ms": truth["loop lag p99"],
        "simulator delay p99, ms": stats["late_ms"]["p99"],
        "CPU of the workers, µs per chunk": watch.spent("worker", began, ended) / chunks * 1e6,
        **{
            f"CPU of the {what}, cores": watch.spent(kind, began, ended) / (ended - began)
            for kind, what in KINDS.items()
        },
        "CPU in total, cores": watch.spent("", began, ended) / (ended - began),
        "maximum open streams": stats["most_open"],
        "maximum file descriptors of a worker": watch.descriptors[watch.busiest("worker")],
    }


def journal(simulator: Simulation) -> Iterator[tuple[str, float]]:
    """The size of a worker's journal, with one file per second."""
    requests = 4 * STREAMS
    found = client("worker", simulator, STREAMS, requests, _RUN_S)
    yield "journal, bytes per chunk", found["journal_bytes"] / found["chunks"]
    yield f"journal, bytes per capture of {TOKENS} chunks", found["journal_bytes"] / requests


def driver() -> Iterator[tuple[str, float]]:
    """The time of one driver turn on a local disk: read all heartbeats, compute permits, publish the control file.

    Requests per minute are limited, so that heartbeats list the starts of the last minute: one request per second.
    """
    recent = [[float(age), 1.0, 500.0] for age in range(60)]
    for count in BEATS:
        with tempfile.TemporaryDirectory(prefix="scaling-") as name:
            state, pacer = RunState(Path(name) / "run"), Pacer(Bounds(requests_per_minute=90.0 * count))
            state.prepare()
            for part in range(count):
                claim = f"{part:05d}-000001-{part:032x}"
                state.beat(Heartbeat(1, claim, 1, open=128, wants=256, next_tokens=500.0, recent=recent))
            took = [_turn(state, pacer, beat) for beat in range(TURNS)]
        for what, seconds in zip(
            ("read and aggregate", "compute permits", "publish"), zip(*took, strict=True), strict=True
        ):
            yield f"{count:,} heartbeats: {what}, ms", statistics.median(seconds) * 1e3


def _turn(state: RunState, pacer: Pacer, beat: int) -> tuple[float, float, float]:
    at = [time.perf_counter()]
    beats = state.heartbeats()
    snapshot(1_000_000, beats, 0.0)
    at.append(time.perf_counter())
    permits = pacer.turn(beat / 2, beats)
    at.append(time.perf_counter())
    shares = {} if backlog(state) else {each.claim: STREAMS for each in beats}
    state.publish(Control(1, beat, shares, permits=permits))
    at.append(time.perf_counter())
    read, compute, publish = (after - before for before, after in pairwise(at))
    return read, compute, publish


def main() -> None:
    console = Console()
    numbers = [int(number) for number in sys.argv[1:] if number.isdecimal()] or list(WORKERS)
    found: dict[str, dict[str, float]] = {}
    with simulating(*EVEN) as simulator:
        for number in numbers:
            with console.status(f"{number} workers"):
                found[str(number)] = with_workers(number, simulator)
        with console.status("journal, driver"):
            costs = {**dict(journal(simulator)), **dict(driver())}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"workers": found, "costs": costs}, indent=1, ensure_ascii=False) + "\n")
    page = PAGE.read_text()
    names = dict.fromkeys(figure for figures in found.values() for figure in figures)
    tables = {
        ("workers", *found): [[name, *(_shown(figures[name]) for figures in found.values())] for name in names],
        ("component", "measured"): [[name, _shown(value)] for name, value in costs.items()],
    }
    for head, rows in tables.items():
        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        page = with_table(page, head, rows)
    console.print(f"figures written to {OUT}")
    if "--keep" in sys.argv:
        PAGE.write_text(page)


def _shown(value: float) -> str:
    """Format a value with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


if __name__ == "__main__":
    main()
