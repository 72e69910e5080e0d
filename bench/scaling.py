"""``make bench-scaling``: what 1, 2 and 4 workers carry, and what journal and driver cost beside them.

Each worker is a capture task on an executor of its own (Spark's ``local-cluster``) with 128 streams of 50 chunks a
second; one executor more is there for landing. All of it, the simulator included, shares this machine's cores: beyond
what they carry, figures are the machine's and not the design's. docs/scaling.md says what follows and what does not.
``python -m bench.scaling 4`` measures with 4 workers only; with ``--keep`` the tables of docs/scaling.md get what was
measured. The figures stand in data/bench-scaling.json, too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.page import with_table
from bench.processes import watched
from bench.truth import Measured, busy, errors, full
from deltatap.driver.control import backlog
from deltatap.driver.pacer import Pacer
from deltatap.driver.progress import snapshot
from deltatap.messages import Control, Heartbeat
from deltatap.model import Bounds
from deltatap.state import RunState
from tests.simulation import Simulation, start_simulator

if TYPE_CHECKING:
    from collections.abc import Iterator
OUT, PAGE = Path("data/bench-scaling.json"), Path("docs/scaling.md")
WORKERS, STREAMS, ROUNDS = (1, 2, 4), 128, 8
TTFT_S, GAP_S, TOKENS = 0.2, 0.02, 100
EVEN = ("--ttft-ms", f"{TTFT_S * 1e3:g}", "--itl-ms", f"{GAP_S * 1e3:g}", "--sigma", "0", "--tokens", f"{TOKENS}")
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
    """The whole job with so many workers."""
    simulator.reset()
    streams = workers * STREAMS
    found, watch = watched("bench.job", simulator.base_url, streams, ROUNDS * streams, workers, within_s=_RUN_S)
    calls = simulator.calls()
    spans = [(call["started"], call["chunks"][-1][0]) for call in calls]
    start, end = full(spans, streams)
    written = sum(start <= at <= end for call in calls for at, _ in call["chunks"])
    # Undisturbed, a stream is a request's chunks in the time that the simulator means to take for them.
    ideal = streams * TOKENS / (TTFT_S + (TOKENS - 1) * GAP_S)
    began, ended = min(at for at, _ in spans), max(at for _, at in spans)
    chunks = sum(len(call["chunks"]) for call in calls)
    truth = errors([Measured(*stream) for stream in found["streams"]], {call["key"]: call for call in calls})
    stats = simulator.stats()
    return {
        "chunks/s while all streams are open": written / (end - start),
        "share of the ideal": written / (end - start) / ideal,
        "streams open to the ideal": busy(spans, streams),
        "requests/s": sum(start <= at <= end for _, at in spans) / (end - start),
        "TTFT error p50, ms": truth["TTFT error p50"],
        "TTFT error p99, ms": truth["TTFT error p99"],
        "gap error p99, ms": truth["gap error p99"],
        "loop lag p99, ms": truth["loop lag p99"],
        "the simulator itself late p99, ms": stats["late_ms"]["p99"],
        "CPU of the workers, µs a chunk": watch.spent("worker", began, ended) / chunks * 1e6,
        **{
            f"CPU of the {what}, cores": watch.spent(kind, began, ended) / (ended - began)
            for kind, what in KINDS.items()
        },
        "CPU of all, cores": watch.spent("", began, ended) / (ended - began),
        "streams open, most": stats["most_open"],
        "file descriptors of a worker, most": watch.descriptors[watch.busiest("worker")],
    }


def journal(simulator: Simulation) -> Iterator[tuple[str, float]]:
    """What a worker writes, files of a second each."""
    simulator.reset()
    requests = 4 * STREAMS
    command = [sys.executable, "-m", "bench.clients", "worker", simulator.base_url, str(STREAMS), str(requests)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=_RUN_S).stdout)
    yield "journal, bytes a chunk", found["journal_bytes"] / found["chunks"]
    yield f"journal, bytes a capture of {TOKENS} chunks", found["journal_bytes"] / requests


def driver() -> Iterator[tuple[str, float]]:
    """What the driver's turn takes on a local disk: read and add up all heartbeats, deal out permits, tell the workers.

    Requests a minute are limited, so that heartbeats tell what has started within the last one: a request a second.
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
        for what, seconds in zip(("read and added up", "permits", "told"), zip(*took, strict=True), strict=True):
            yield f"{count:,} heartbeats: {what}, ms", statistics.median(seconds) * 1e3


def _turn(state: RunState, pacer: Pacer, beat: int) -> tuple[float, float, float]:
    at = [time.perf_counter()]
    beats = state.heartbeats()
    snapshot(1_000_000, beats, 0.0)
    at.append(time.perf_counter())
    permits = pacer.turn(beat / 2, beats)
    at.append(time.perf_counter())
    shares = {} if backlog(state) else {told.claim: STREAMS for told in beats}
    state.publish(Control(1, beat, shares, permits=permits))
    at.append(time.perf_counter())
    read, dealt, told = (after - before for before, after in pairwise(at))
    return read, dealt, told


def main() -> None:
    console = Console()
    numbers = [int(number) for number in sys.argv[1:] if number.isdecimal()] or list(WORKERS)
    found: dict[str, dict[str, float]] = {}
    with start_simulator(*EVEN) as simulator:
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
        ("beside them", "measured"): [[name, _shown(value)] for name, value in costs.items()],
    }
    for head, rows in tables.items():
        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        page = with_table(page, head, rows)
    console.print(f"the figures stand in {OUT}")
    if "--keep" in sys.argv:
        PAGE.write_text(page)


def _shown(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


if __name__ == "__main__":
    main()
