"""``make bench-scaling``: what 1, 2 and 4 workers carry, and what journal and driver cost beside them.

Each worker is a capture task on an executor of its own (Spark's ``local-cluster``) with 128 streams of 50 chunks a
second; one executor more is there for landing. All of it, the simulator included, shares this machine's cores: beyond
what they carry, figures are the machine's and not the design's. docs/scaling.md says what follows and what does not.
``python -m bench.scaling 4`` measures with 4 workers only. The figures stand in data/bench-scaling.json, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bench.processes import Watch, spent
from bench.truth import Measured, busy, errors, full
from deltatap.driver import backlog
from deltatap.progress import snapshot
from deltatap.state import Control, Heartbeat, RunState
from tests.simulation import Simulation, start_simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

OUT = Path("data/bench-scaling.json")
WORKERS, STREAMS, ROUNDS = (1, 2, 4), 128, 8
TTFT_S, GAP_S, TOKENS = 0.2, 0.02, 100
EVEN = ("--ttft-ms", f"{TTFT_S * 1e3:g}", "--itl-ms", f"{GAP_S * 1e3:g}", "--sigma", "0", "--tokens", f"{TOKENS}")
BEATS, TURNS = (100, 1000), 20
_RUN_S = 240


def with_workers(workers: int, simulator: Simulation) -> dict[str, float]:
    """The whole job with so many workers."""
    simulator.reset()
    streams = workers * STREAMS
    found, watch = _job(simulator, streams, ROUNDS * streams, workers)
    calls = simulator.calls()
    spans = [(call["started"], call["chunks"][-1][0]) for call in calls]
    start, end = full(spans, streams)
    written = sum(start <= at <= end for call in calls for at, _ in call["chunks"])
    # Undisturbed, a stream is a request's chunks in the time that the simulator means to take for them.
    ideal = streams * TOKENS / (TTFT_S + (TOKENS - 1) * GAP_S)
    began, ended = min(at for at, _ in spans), max(at for _, at in spans)
    whole = spent(watch.samples, began, ended)
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
        "CPU of the workers, µs a chunk": _of("worker", whole) / chunks * 1e6,
        "CPU of the driver's JVM, cores": _of("jvm", whole) / (ended - began),
        "CPU of the executors' JVMs, cores": _of("executor", whole) / (ended - began),
        "CPU of the driver's Python, cores": _of("driver", whole) / (ended - began),
        "streams open, most": stats["most_open"],
        "file descriptors of a worker, most": max(
            count for name, count in watch.descriptors.items() if name.startswith("worker")
        ),
    }


def _job(simulator: Simulation, streams: int, requests: int, workers: int) -> tuple[dict[str, Any], Watch]:
    command = [sys.executable, "-m", "bench.job", simulator.base_url, *map(str, (streams, requests, workers))]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)

        def name(each: psutil.Process) -> str:
            if each.pid == process.pid:
                return "driver"
            if each.name() == "java":
                return "jvm" if each.ppid() == process.pid else "executor"
            return "worker"

        with process, Watch(process.pid, name) as watch:
            try:
                out, _ = process.communicate(timeout=_RUN_S)
            except subprocess.TimeoutExpired:
                process.terminate()
                raise
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command[1:])} ended with {process.returncode}:\n{said.read()}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found, watch


def _of(kind: str, cpu_s: dict[str, float]) -> float:
    return sum(seconds for name, seconds in cpu_s.items() if name.startswith(kind))


def journal(simulator: Simulation) -> Iterator[tuple[str, float]]:
    """What a worker writes, files of a second each."""
    simulator.reset()
    requests = 4 * STREAMS
    command = [sys.executable, "-m", "bench.clients", "worker", simulator.base_url, str(STREAMS), str(requests)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=_RUN_S).stdout)
    yield "journal, bytes a chunk", found["journal_bytes"] / found["chunks"]
    yield f"journal, bytes a capture of {TOKENS} chunks", found["journal_bytes"] / requests


def driver() -> Iterator[tuple[str, float]]:
    """What the driver's turn takes on a local disk: to read all heartbeats, to add them up, to tell the shares."""
    for count in BEATS:
        with tempfile.TemporaryDirectory(prefix="scaling-") as name:
            state = RunState(Path(name) / "run")
            state.prepare()
            for part in range(count):
                state.beat(Heartbeat(1, f"{part:05d}-000001-{part:032x}", 1, open=256, rows={"completed": 1000}))
            reading, telling = 0.0, 0.0
            for beat in range(TURNS):
                started = time.perf_counter()
                beats = state.heartbeats()
                snapshot(1_000_000, beats, 0.0)
                read = time.perf_counter()
                shares = {} if backlog(state) else {told.claim: 256 for told in beats}
                state.publish(Control(1, beat, shares))
                reading, telling = reading + read - started, telling + time.perf_counter() - read
        yield f"{count:,} heartbeats: read and added up, ms", reading / TURNS * 1e3
        yield f"{count:,} heartbeats: shares told, ms", telling / TURNS * 1e3


def main() -> None:
    console = Console()
    numbers = [int(number) for number in sys.argv[1:]] or list(WORKERS)
    found: dict[str, dict[str, float]] = {}
    with start_simulator(*EVEN) as simulator:
        for number in numbers:
            with console.status(f"{number} workers"):
                found[str(number)] = with_workers(number, simulator)
        with console.status("journal, driver"):
            costs = {**dict(journal(simulator)), **dict(driver())}
    table = Table("workers", *found, title=f"{STREAMS} streams a worker, 50 chunks/s each", title_justify="left")
    for figure in found[str(numbers[0])]:
        table.add_row(figure, *(f"{figures[figure]:,.2f}" for figures in found.values()))
    console.print(table)
    table = Table("beside them", "measured")
    for figure, value in costs.items():
        table.add_row(figure, f"{value:,.1f}")
    console.print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"workers": found, "costs": costs}, indent=1, ensure_ascii=False) + "\n")
    console.print(f"the figures stand in {OUT}")


if __name__ == "__main__":
    main()
