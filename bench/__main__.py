"""``make bench``: what a chunk costs, how true the times are, how busy the slots, each with its goal and a floor.

Some ten minutes. Everything runs on loopback: a simulator in one process, a client in another. Ratios count: floor and
rival are measured in the same run. The figures stand in data/bench.json, too; ``bench/last.json`` holds the last
committed ones, which a ratio is shown beside. ``python -m bench --keep`` makes this run's the last ones, in
docs/performance.md, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench.decoding import decoding
from bench.figure import Figure, as_table
from bench.page import with_table
from bench.processes import watched
from bench.truth import Measured, busy, errors
from tests.simulation import Simulation, start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OUT, LAST, PAGE = Path("data/bench.json"), Path(__file__).parent / "last.json", Path("docs/performance.md")
HEAD = ("figure", "measured", "goal", "")
STREAMS, REQUESTS = 256, 1024
EVEN = ("--itl-ms", "20", "--sigma", "0", "--tokens", "100")
# As lengths are in production: the median 60, the longest of 5,000 some forty times that.
HEAVY_TAILED = ("--itl-ms", "20", "--tokens", "60", "--sigma", "1.7")


def capturing() -> Iterator[Figure]:
    """CPU of a worker's whole work for a chunk, 256 streams with 50 chunks a second each, beside floor and rival."""
    with start_simulator(*EVEN) as simulator:
        cost = {}
        for name in ("floor", "plain", "plain-aiohttp", "worker"):
            found = _client(name, simulator)
            cost[name] = found["cpu_us"] * found["chunks"] / sum(len(call["chunks"]) for call in simulator.calls())
        whole = _errors(found, simulator)
        yield Figure("aiohttp, a split, orjson: the floor", cost["floor"], "µs CPU a chunk")
        yield Figure("async for chunk in AsyncOpenAI", cost["plain"], "µs CPU a chunk")
        yield Figure("the same over aiohttp on uvloop", cost["plain-aiohttp"], "µs CPU a chunk")
        yield Figure("a worker's whole work", cost["worker"], "µs CPU a chunk")
        yield Figure("a worker to the floor", cost["worker"] / cost["floor"], "ratio", most=1.5)
        yield Figure("AsyncOpenAI's loop to a worker", cost["plain"] / cost["worker"], "ratio", least=4)
        yield Figure("over aiohttp on uvloop to a worker", cost["plain-aiohttp"] / cost["worker"], "ratio")
        for part in ("journal", "tokens", "input"):
            without = _errors(_client(f"worker-{part}", simulator), simulator)
            for name in ("TTFT error p50", "gap error p99"):
                yield Figure(f"{name} without {part} to with", without[name] / whole[name], "ratio", 1.2, 0.8)


def the_job(streams: int, requests: int, *, goals: bool) -> Iterator[Figure]:
    """The whole job on ``local[2]``, against the simulator's record."""
    with start_simulator(*EVEN) as simulator:
        found, watch = watched("bench.job", simulator.base_url, streams, requests)
        calls = simulator.calls()
        told, late = _errors(found, simulator), simulator.stats()["late_ms"]
    most = {"TTFT error p50": 2.0, "TTFT error p99": 25.0, "gap error p99": 5.0, "gaps invented or lost": 0.0}
    for name, value in told.items():
        unit = "" if "lost" in name else "ratio" if "correlation" in name else "ms"
        yield Figure(f"{streams} streams: {name}", value, unit, most=most.get(name) if goals else None)
    yield Figure(f"{streams} streams: the simulator itself late p99", late["p99"], "ms")
    spans = [(call["started"], call["chunks"][-1][0]) for call in calls]
    open_ = busy(spans, streams)
    yield Figure(f"{streams} streams: streams open to the ideal", open_, "ratio", least=0.9 if goals else None)
    if not goals:
        return
    yield Figure("session ready to first request", min(at for at, _ in spans) - found["ready"], "s", most=5)
    yield Figure("last chunk to the run closed", found["closed"] - max(at for _, at in spans), "s", most=10)
    yield Figure("memory of a worker", max(watch.mb[watch.busiest("worker")]), "MB", most=300)


def slots() -> Iterator[Figure]:
    """Heavy-tailed lengths, 5,000 requests: whether a slot waits for others, and what landing takes beside capture."""
    with start_simulator(*HEAVY_TAILED) as simulator:
        _, watch = watched("bench.job", simulator.base_url, STREAMS, 5000)
        spans = [(call["started"], call["chunks"][-1][0]) for call in simulator.calls()]
    yield Figure("slots busy, heavy-tailed lengths", busy(spans, STREAMS), "ratio", least=0.95)
    during = min(at for at, _ in spans), max(at for _, at in spans)
    capture, spark = watch.spent("worker", *during), watch.spent("jvm", *during)
    yield Figure("CPU of the workers meanwhile", capture, "s")
    yield Figure("CPU of Spark, which lands, meanwhile", spark, "s")
    yield Figure("landing's CPU to capture's", spark / capture, "ratio", most=0.1)


def demo() -> Iterator[Figure]:
    """What ``make demo`` takes when all is set up and nothing is owed; run from the checkout, as it is."""
    command = [sys.executable, "-m", "deltatap.demo"]
    subprocess.run(command, capture_output=True, check=True)
    started = time.monotonic()
    subprocess.run(command, capture_output=True, check=True)
    yield Figure("make demo, again", time.monotonic() - started, "s", most=60)


def _client(name: str, simulator: Simulation) -> dict[str, Any]:
    return _run("bench.clients", simulator, STREAMS, REQUESTS, name)


def _run(module: str, simulator: Simulation, streams: int, requests: int, *names: str) -> dict[str, Any]:
    """Run a client in a process of its own; what it measured."""
    simulator.reset()
    command = [sys.executable, "-m", module, *names, simulator.base_url, str(streams), str(requests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _errors(found: dict[str, Any], simulator: Simulation) -> dict[str, float]:
    calls = {call["key"]: call for call in simulator.calls()}
    return errors([Measured(*stream) for stream in found["streams"]], calls)


def main() -> None:
    console = Console()
    last = json.loads(LAST.read_text()) if LAST.exists() else {}
    figures: list[Figure] = []
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "A chunk, no network": decoding,
        f"A worker: {STREAMS} streams, 50 chunks/s each, {REQUESTS:,} requests": capturing,
        f"The whole job: {STREAMS} streams, 50 chunks/s each, {REQUESTS:,} requests": lambda: the_job(
            STREAMS, REQUESTS, goals=True
        ),
        "Beyond one core": lambda: (figure for n in (512, 1024) for figure in the_job(n, 2 * n, goals=False)),
        "Slots: 5,000 requests": slots,
        "make demo": demo,
    }
    for title, measure in parts.items():
        with console.status(title):
            found = list(measure())
        console.print(as_table(title, found, last))
        figures += found
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps([asdict(figure) for figure in figures], indent=1, ensure_ascii=False))
    console.print(f"the figures stand in {OUT}")
    if "--keep" in sys.argv:
        kept = {figure.what: round(figure.value, 3) for figure in figures if figure.unit == "ratio"}
        LAST.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        met = {True: "met", False: "missed", None: ""}
        rows = [(each.what, f"{each.value:,.2f} {each.unit}".strip(), each.goal, met[each.met]) for each in figures]
        PAGE.write_text(with_table(PAGE.read_text(), HEAD, rows))


if __name__ == "__main__":
    main()
