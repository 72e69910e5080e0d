"""``make bench``: the cost of a chunk, the accuracy of the latencies and the use of the slots, with goals and a floor.

Takes about six minutes. Everything runs on loopback: a simulator in one process, a client in another. The load is
scaled to the machine: it has as many streams as the floor serves with 40 % of a core and, for the accuracy, as many as
a worker serves with 60 % of a core. Compare ratios, not absolute figures. The floor and the worker take turns, and a
ratio is the median of those of each turn. The figures are also written to data/bench.json. ``bench/last.json`` has the
last committed ratios, which are shown next to the new ones. With ``python -m bench --keep``, this run's figures replace
those in bench/last.json and docs/performance.md.
"""

from __future__ import annotations

import json
import statistics
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
from bench.simulators import CHUNKS_S, plain, secure, simulating
from bench.truth import Measured, busy, errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.simulation import Simulation

OUT, LAST, PAGE = Path("data/bench.json"), Path(__file__).parent / "last.json", Path("docs/performance.md")
HEAD = ("figure", "measured", "goal", "")
# Answer lengths as in production: the median is 60, and the longest of 5,000 is about forty times as long.
HEAVY_TAILED = ("--itl-ms", "20", "--tokens", "60", "--sigma", "1.7")
# The share of a core that the floor, or a worker, should use; and how many streams the simulator can serve.
FLOOR_SHARE, WORKER_SHARE, MOST = 0.4, 0.6, 512
# For the first guess of the load.
_FEW, _TURNS = 96, 3
# The job with 5,000 requests.
STREAMS = 256


class Costs:
    """CPU in µs per chunk of each client, measured in turns.

    Attributes:
        streams: as many as keep :data:`FLOOR_SHARE` of a core busy with the floor.
    """

    def __init__(self, simulator: Simulation) -> None:
        self._simulator = simulator
        self._us: dict[str, list[float]] = {}
        self.streams = _FEW
        self.streams = streams_of(self._cost("floor", 1), FLOOR_SHARE)

    def take_turns(self, names: Sequence[str], turns: int, rounds: int) -> None:
        """Measure each client once in each turn. A stream makes a number of requests, one after the other."""
        for _ in range(turns):
            for name in names:
                self._us.setdefault(name, []).append(self._cost(name, rounds))

    def _cost(self, name: str, rounds: int) -> float:
        found = client(name, self._simulator, self.streams, rounds * self.streams)
        return float(found["cpu_us"] * found["chunks"] / sum(len(call["chunks"]) for call in self._simulator.calls()))

    def of(self, name: str) -> float:
        """The median cost of a client."""
        return statistics.median(self._us[name])

    def ratio(self, name: str, other: str) -> float:
        """The median of the ratios of two clients that took turns.

        If they had different numbers of turns, the ratio of medians.
        """
        ours, theirs = self._us[name], self._us[other]
        if len(ours) != len(theirs):
            return self.of(name) / self.of(other)
        return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def streams_of(us: float, share: float) -> int:
    """The number of streams that keep this share of a core busy, at a cost per chunk."""
    return max(8, min(MOST, round(share * 1e6 / us / CHUNKS_S)))


def capturing(*, tls: bool) -> Iterator[Figure]:
    """CPU per chunk of a complete worker, a floor and other clients; then the accuracy of a worker's times."""
    over = "TLS: " if tls else ""
    with (secure if tls else plain)() as simulator:
        costs = Costs(simulator)
        costs.take_turns(("floor", "worker"), _TURNS, 2)
        costs.take_turns(("plain",) if tls else ("plain", "plain-aiohttp"), 1, 1)
        yield Figure(f"{over}streams, for {FLOOR_SHARE:.0%} of a core with the floor", costs.streams, "")
        yield Figure(f"{over}floor: aiohttp, split, orjson", costs.of("floor"), "µs CPU per chunk")
        yield Figure(f"{over}AsyncOpenAI: async for chunk", costs.of("plain"), "µs CPU per chunk")
        yield Figure(f"{over}worker, complete", costs.of("worker"), "µs CPU per chunk")
        yield Figure(f"{over}worker / floor", costs.ratio("worker", "floor"), "ratio", most=1.15)
        yield Figure(f"{over}AsyncOpenAI / worker", costs.ratio("plain", "worker"), "ratio", least=5)
        if not tls:
            fast = costs.ratio("plain-aiohttp", "worker")
            yield Figure("AsyncOpenAI over aiohttp and uvloop / worker", fast, "ratio")
        streams = streams_of(costs.of("worker"), WORKER_SHARE)
        yield Figure(f"{over}streams, for {WORKER_SHARE:.0%} of a core with a worker", streams, "")
        for name, how in (("worker", ""), ("worker-stalled", "stalls of 50 ms: ")):
            found = _errors(client(name, simulator, streams, 2 * streams), simulator)
            yield from accuracy(over + how, found)


def accuracy(where: str, found: dict[str, float]) -> Iterator[Figure]:
    """The errors of a worker's times, with their goals, and the share of chunks that are left out."""
    for name, most in (
        ("TTFT error p50", 0.3),
        ("TTFT error p99", 3.0),
        ("gap error p50", None),
        ("gap error p99", 0.5),
    ):
        yield Figure(f"{where}{name}", found[name], "ms", most=most)
    yield Figure(f"{where}chunks in shared reads, left out", found["chunks in shared reads"], "%")
    yield Figure(f"{where}extra or missing gaps", found["extra or missing gaps"], "", most=0)


def job() -> Iterator[Figure]:
    """The complete job on ``local[2]``: 5,000 requests with heavy-tailed lengths."""
    with simulating(*HEAVY_TAILED) as simulator:
        found, watch = watched("bench.job", simulator.base_url, STREAMS, 5000)
        spans = [(call["started"], call["chunks"][-1][0]) for call in simulator.calls()]
        truth, late = _errors(found, simulator), simulator.stats()["late_ms"]
    for name in ("TTFT error p50", "TTFT error p99", "gap error p99", "chunks in shared reads", "loop lag p99"):
        yield Figure(f"job: {name}", truth[name], "%" if "shared" in name else "ms")
    yield Figure("job: extra or missing gaps", truth["extra or missing gaps"], "", most=0)
    yield Figure("job: simulator delay p99", late["p99"], "ms")
    yield Figure("busy slots, heavy-tailed lengths", busy(spans, STREAMS), "ratio", least=0.95)
    yield Figure("from session ready to first request", min(at for at, _ in spans) - found["ready"], "s", most=3.8)
    yield Figure("from last chunk to run closed", found["closed"] - max(at for _, at in spans), "s", most=3.3)
    yield Figure("worker memory", max(watch.mb[watch.busiest("worker")]), "MB", most=300)
    during = min(at for at, _ in spans), max(at for _, at in spans)
    capture, spark = watch.spent("worker", *during), watch.spent("jvm", *during)
    yield Figure("CPU of the workers during capture", capture, "s")
    yield Figure("CPU of Spark, including landing, during capture", spark, "s")
    yield Figure("CPU of Spark / workers", spark / capture, "ratio", most=0.3)


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
        "One worker": lambda: capturing(tls=False),
        "One worker over TLS": lambda: capturing(tls=True),
        f"The complete job: {STREAMS} streams, 5,000 requests": job,
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
