"""Measures the delay that ``deltatap record`` adds to chunks: ``python -m bench.record``.

The server writes its monotonic time into each chunk, and the client compares it with its own when it reads the chunk.
Server, proxy and client are three processes; the proxy records as always, but nothing lands.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.recording import recording

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

CHUNKS, GAP_S = 100, 0.02
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_BODY = json.dumps({"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}).encode()


def serve(ready: Connection) -> None:
    """Answer each request with a stream of chunks that contain the time at which they are written."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(_BODY))
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.write(_HEAD)
        for number in range(CHUNKS):
            await asyncio.sleep(GAP_S)
            finish = "stop" if number == CHUNKS - 1 else None
            content = f"{time.perf_counter_ns():020d} "
            event = {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]}
            data = b"data: " + json.dumps(event).encode() + b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        ready.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(main())


def proxy(port: int, ready: Connection) -> None:
    """Record until the main process sends a stop."""
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        with recording(f"http://127.0.0.1:{port}/v1", Path(folder)) as running:
            ready.send(running.port)
            ready.recv()
        late = [row["loop_lag_ms"] for row in running.rows]
        ready.send((len(running.rows), float(np.median(late))))


async def stream(port: int, delays: list[float], first: list[float]) -> None:
    """Read one stream; record the delay of each chunk, and the time until the answer began."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked = time.perf_counter()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(_BODY)}\r\n\r\n".encode()
    writer.write(head + _BODY)
    await reader.readuntil(b"\r\n\r\n")
    first.append((time.perf_counter() - asked) * 1e3)
    while data := await reader.read(65536):
        now = time.perf_counter_ns()
        delays += [(now - int(part[:20])) / 1e6 for part in data.split(b'"content": "')[1:]]
    writer.close()


async def load(port: int, streams: int) -> tuple[list[float], list[float]]:
    """Run streams concurrently; returns the delays of their chunks, and of their heads."""
    delays: list[float] = []
    first: list[float] = []

    async def later(number: int) -> None:
        await asyncio.sleep(number * GAP_S * 7 / streams % 1)
        await stream(port, delays, first)

    await asyncio.gather(*(later(number) for number in range(streams)))
    return delays, first


def shown(name: str, measured: tuple[list[float], list[float]]) -> float:
    """Print a line; returns the median."""
    delays, first = map(np.array, measured)
    p50, p90, p99 = np.percentile(delays, (50, 90, 99))
    head = np.median(first)
    print(f"{name:28} chunk p50 {p50:6.3f} ms  p90 {p90:6.3f} ms  p99 {p99:6.3f} ms   head p50 {head:6.3f} ms")
    return float(p50)


def main(streams: int) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    port = here.recv()
    to_proxy, from_proxy = context.Pipe()
    recorder = context.Process(target=proxy, args=(port, from_proxy))
    recorder.start()
    through = to_proxy.recv()
    added = []
    for turn in range(3):
        direct = shown(f"direct, {streams} streams", asyncio.run(load(port, streams)))
        added.append(shown(f"recorded, {streams} streams", asyncio.run(load(through, streams))) - direct)
        print(f"turn {turn + 1}: {added[-1]:.3f} ms later at the median")
    to_proxy.send("stop")
    rows, lag_ms = to_proxy.recv()
    recorder.join()
    server.terminate()
    print(f"{rows} rows, median loop_lag_ms {lag_ms:.1f}; added at the median: {np.median(added):.3f} ms")


if __name__ == "__main__":
    for count in [int(word) for word in sys.argv[1:]] or [1, 20, 100]:
        main(count)
