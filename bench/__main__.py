"""``make bench``: the cost of a chunk, the accuracy of the latencies and the use of the slots, with goals and a floor.

Takes about ten minutes. Everything runs on loopback: a simulator in one process, a client in another. Compare ratios,
not absolute figures, because the floor and the other clients are measured in the same run. The figures are also
written to data/bench.json. ``bench/last.json`` has the last committed ratios, which are shown next to the new ones.
With ``python -m bench --keep``, this run's figures replace those in bench/last.json and docs/performance.md.
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
from bench.processes import client, watched
from bench.truth import Measured, busy, errors
from tests.simulation import Simulation, start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OUT, LAST, PAGE = Path("data/bench.json"), Path(__file__).parent / "last.json", Path("docs/performance.md")
HEAD = ("figure", "measured", "goal", "")
STREAMS, REQUESTS = 256, 1024
EVEN = ("--itl-ms", "20", "--sigma", "0", "--tokens", "100")
# Answer lengths as in production: the median is 60, and the longest of 5,000 is about forty times as long.
HEAVY_TAILED = ("--itl-ms", "20", "--tokens", "60", "--sigma", "1.7")


def capturing() -> Iterator[Figure]:
    """CPU per chunk of a complete worker, a floor and other clients. 256 streams of 50 chunks/s each."""
    with start_simulator(*EVEN) as simulator:
        cost = {}
        for name in ("floor", "plain", "plain-aiohttp", "worker"):
            found = client(name, simulator, STREAMS, REQUESTS)
            cost[name] = found["cpu_us"] * found["chunks"] / sum(len(call["chunks"]) for call in simulator.calls())
        whole = _errors(found, simulator)
        yield Figure("floor: aiohttp, split, orjson", cost["floor"], "µs CPU per chunk")
        yield Figure("AsyncOpenAI: async for chunk", cost["plain"], "µs CPU per chunk")
        yield Figure("AsyncOpenAI over aiohttp and uvloop", cost["plain-aiohttp"], "µs CPU per chunk")
        yield Figure("worker, complete", cost["worker"], "µs CPU per chunk")
        yield Figure("worker / floor", cost["worker"] / cost["floor"], "ratio", most=1.5)
        yield Figure("AsyncOpenAI / worker", cost["plain"] / cost["worker"], "ratio", least=4)
        yield Figure("AsyncOpenAI over aiohttp and uvloop / worker", cost["plain-aiohttp"] / cost["worker"], "ratio")
        for part in ("journal", "tokens", "input"):
            without = _errors(client(f"worker-{part}", simulator, STREAMS, REQUESTS), simulator)
            for name in ("TTFT error p50", "gap error p99"):
                yield Figure(f"{name} without {part} to with", without[name] / whole[name], "ratio", 1.2, 0.8)


def the_job(streams: int, requests: int, *, goals: bool) -> Iterator[Figure]:
    """The complete job on ``local[2]``, compared with the simulator's record."""
    with start_simulator(*EVEN) as simulator:
        found, watch = watched("bench.job", simulator.base_url, streams, requests)
        calls = simulator.calls()
        found_errors, late = _errors(found, simulator), simulator.stats()["late_ms"]
    most = {"TTFT error p50": 2.0, "TTFT error p99": 25.0, "gap error p99": 5.0, "extra or missing gaps": 0.0}
    for name, value in found_errors.items():
        unit = "" if "missing" in name else "ratio" if "correlation" in name else "ms"
        yield Figure(f"{streams} streams: {name}", value, unit, most=most.get(name) if goals else None)
    yield Figure(f"{streams} streams: simulator delay p99", late["p99"], "ms")
    spans = [(call["started"], call["chunks"][-1][0]) for call in calls]
    open_ = busy(spans, streams)
    yield Figure(f"{streams} streams: open streams / ideal", open_, "ratio", least=0.9 if goals else None)
    if not goals:
        return
    yield Figure("from session ready to first request", min(at for at, _ in spans) - found["ready"], "s", most=5)
    yield Figure("from last chunk to run closed", found["closed"] - max(at for _, at in spans), "s", most=10)
    yield Figure("worker memory", max(watch.mb[watch.busiest("worker")]), "MB", most=300)


def slots() -> Iterator[Figure]:
    """5,000 requests with heavy-tailed lengths: how busy the slots are, and the CPU of landing during capture."""
    with start_simulator(*HEAVY_TAILED) as simulator:
        _, watch = watched("bench.job", simulator.base_url, STREAMS, 5000)
        spans = [(call["started"], call["chunks"][-1][0]) for call in simulator.calls()]
    yield Figure("busy slots, heavy-tailed lengths", busy(spans, STREAMS), "ratio", least=0.95)
    during = min(at for at, _ in spans), max(at for _, at in spans)
    capture, spark = watch.spent("worker", *during), watch.spent("jvm", *during)
    yield Figure("CPU of the workers during capture", capture, "s")
    yield Figure("CPU of Spark, including landing, during capture", spark, "s")
    yield Figure("CPU of Spark / workers", spark / capture, "ratio", most=0.1)


def demo() -> Iterator[Figure]:
    """The duration of ``make demo`` when everything is set up and nothing is owed, in this checkout."""
    command = [sys.executable, "-m", "deltatap.demo"]
    subprocess.run(command, capture_output=True, check=True)
    started = time.monotonic()
    subprocess.run(command, capture_output=True, check=True)
    yield Figure("make demo, second run", time.monotonic() - started, "s", most=60)


def _errors(found: dict[str, Any], simulator: Simulation) -> dict[str, float]:
    calls = {call["key"]: call for call in simulator.calls()}
    return errors([Measured(*stream) for stream in found["streams"]], calls)


def main() -> None:
    console = Console()
    last = json.loads(LAST.read_text()) if LAST.exists() else {}
    figures: list[Figure] = []
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "One chunk, no network": decoding,
        f"One worker: {STREAMS} streams, 50 chunks/s each, {REQUESTS:,} requests": capturing,
        f"The complete job: {STREAMS} streams, 50 chunks/s each, {REQUESTS:,} requests": lambda: the_job(
            STREAMS, REQUESTS, goals=True
        ),
        "More load than one core handles": lambda: (
            figure for n in (512, 1024) for figure in the_job(n, 2 * n, goals=False)
        ),
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
    console.print(f"figures written to {OUT}")
    if "--keep" in sys.argv:
        kept = {figure.what: round(figure.value, 3) for figure in figures if figure.unit == "ratio"}
        LAST.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        met = {True: "met", False: "missed", None: ""}
        rows = [(each.what, f"{each.value:,.2f} {each.unit}".strip(), each.goal, met[each.met]) for each in figures]
        PAGE.write_text(with_table(PAGE.read_text(), HEAD, rows))


if __name__ == "__main__":
    main()
