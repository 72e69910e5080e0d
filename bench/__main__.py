"""``make bench``: what a chunk costs and how true the times are, beside floors measured in the same run.

About a minute. Everything runs on loopback: a simulator in one process, a client in another. The figures stand in
data/bench.json, too.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from openai._streaming import SSEDecoder as OpenAIDecoder
from openai.types.chat import ChatCompletionChunk
from rich.console import Console
from rich.table import Table

from deltatap.apis import ChatAccumulator
from deltatap.sse import SSEDecoder
from tests.simulation import Simulation, start_simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

OUT = Path("data/bench.json")
CHUNKS = 20_000
FRAME = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o-mini",'
    b'"service_tier":"default","system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"content":" hello"},'
    b'"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)


def decoding() -> dict[str, float]:
    """µs for a chunk without any network: the JSON alone, our decoder and accumulator, the openai client's."""

    def json_alone() -> None:
        for _ in range(CHUNKS):
            orjson.loads(FRAME[6:-2])

    def ours() -> None:
        decoder, accumulator = SSEDecoder(), ChatAccumulator()
        for at in range(CHUNKS):
            for event in decoder.feed(FRAME):
                accumulator.add(event.data, float(at), at, event.event)
        accumulator.finish()

    async def frames() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield FRAME

    async def theirs() -> None:
        async for event in OpenAIDecoder().aiter_bytes(frames()):
            ChatCompletionChunk.construct(**event.json())

    return {
        "JSON alone": _us(json_alone),
        "decoder and accumulator": _us(ours),
        "openai decoder and chunk": _us(lambda: asyncio.run(theirs())),
    }


def _us(work: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best / CHUNKS * 1e6


def client(name: str, simulator: Simulation, streams: int, requests: int) -> dict[str, Any]:
    """Run a client in a process of its own; what it measured."""
    simulator.reset()
    command = [sys.executable, "-m", "bench.clients", name, simulator.base_url, str(streams), str(requests)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def truth(measured: list[Any], simulator: Simulation) -> dict[str, float]:
    """How far our times are from when the simulator wrote each piece, in ms.

    When the request was written is not known to the simulator, so of TTFT the time from its arrival counts.
    """
    calls = {call["key"]: call for call in simulator.calls()}
    first, gaps, lags = [], [], []
    for key, ms, lag in measured:
        sent = [at * 1e3 for at, _ in calls[key]["chunks"]]
        first.append(abs(ms[0] - (sent[0] - calls[key]["started"] * 1e3)))
        gaps += [abs((b - a) - (d - c)) for a, b, c, d in zip(ms, ms[1:], sent, sent[1:], strict=False)]
        lags.append(lag)
    return {
        "TTFT error p50": _at(first, 0.5),
        "TTFT error p99": _at(first, 0.99),
        "gap error p50": _at(gaps, 0.5),
        "gap error p99": _at(gaps, 0.99),
        "loop lag p99": _at(lags, 0.99),
    }


def _at(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    console = Console()
    results: dict[str, Any] = {"µs a chunk, no network": decoding()}
    table = Table("µs a chunk, no network", "µs", "ratio to JSON alone")
    for name, us in results["µs a chunk, no network"].items():
        table.add_row(name, f"{us:.2f}", f"{us / results['µs a chunk, no network']['JSON alone']:.1f}")
    console.print(table)
    with start_simulator("--itl-ms", "20", "--sigma", "0", "--tokens", "100") as simulator:
        for streams in (64, 256):
            results[f"{streams} streams"] = _streams(console, simulator, streams)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(results, indent=1, ensure_ascii=False))
    console.print(f"the figures stand in {OUT}")


def _streams(console: Console, simulator: Simulation, streams: int) -> dict[str, Any]:
    found = {name: client(name, simulator, streams, 2 * streams) for name in ("floor", "plain")}
    mine = client("ours", simulator, streams, 2 * streams)
    late = simulator.stats()["late_ms"]
    table = Table(f"{streams} streams, 50 chunks/s each", "CPU µs a chunk", "ratio to the floor")
    names = {"floor": "aiohttp and orjson: the floor", "plain": "async for chunk in AsyncOpenAI"}
    for name, label in names.items():
        table.add_row(label, f"{found[name]['cpu_us']:.0f}", f"{found[name]['cpu_us'] / found['floor']['cpu_us']:.2f}")
    table.add_row("deltatap", f"{mine['cpu_us']:.0f}", f"{mine['cpu_us'] / found['floor']['cpu_us']:.2f}")
    console.print(table)
    errors = truth(mine["streams"], simulator)
    told = ", ".join(f"{name} {value:.1f} ms" for name, value in errors.items())
    console.print(
        f"deltatap against the simulator's record: {told} (the simulator itself: p99 {late['p99']:.1f} ms late)"
    )
    cpu = {"floor": found["floor"]["cpu_us"], "plain": found["plain"]["cpu_us"], "deltatap": mine["cpu_us"]}
    return {"cpu_us": cpu, **errors, "simulator late p99 ms": late["p99"]}


if __name__ == "__main__":
    main()
