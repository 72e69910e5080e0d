"""Clients that read many streams at once, from the cheapest that there can be to the plain one that people write.

Each is a process of its own: ``python -m bench.clients NAME BASE_URL STREAMS REQUESTS`` prints one line of JSON with
its CPU time, and what it measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pandas as pd
import uvloop
from openai import AsyncOpenAI, DefaultAioHttpClient

from deltatap.config import load_settings
from deltatap.prices import Prices
from deltatap.udf import capture_batches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MODEL = "gpt-4o-mini"
_APART_S = 0.003


async def _spread(streams: int, requests: int, one: Callable[[int], Awaitable[int]]) -> list[int]:
    """Run the requests, so many at once, their first ones started a little apart."""
    waiting = iter(range(requests))
    results: list[int] = []

    async def worker(number: int) -> None:
        await asyncio.sleep(number * _APART_S)
        results.extend([await one(request) for request in waiting])

    await asyncio.gather(*(worker(number) for number in range(streams)))
    return results


def _body(number: int) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": f"p{number}"}], "stream": True}


async def floor(base_url: str, streams: int, requests: int) -> list[int]:
    """aiohttp, a split at blank lines, orjson: the least that a Python client must do."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(number: int) -> int:
            times: list[float] = []
            rest = b""
            async with session.post(f"{base_url}/chat/completions", json=_body(number)) as response:
                async for data in response.content.iter_any():
                    *frames, rest = (rest + data).split(b"\n\n")
                    found = [
                        frame for frame in frames if frame != b"data: [DONE]" and orjson.loads(frame[6:])["choices"]
                    ]
                    times += [time.perf_counter()] * len(found)
            return len(times)

        return await _spread(streams, requests, one)


async def plain(base_url: str, streams: int, requests: int) -> list[int]:
    """What people write: ``async for chunk in`` the openai client, over aiohttp."""
    http_client = DefaultAioHttpClient(timeout=600)
    async with AsyncOpenAI(base_url=base_url, api_key="x", http_client=http_client, max_retries=0) as client:

        async def one(number: int) -> int:
            body = _body(number)
            stream: Any = await client.chat.completions.create(**body)
            return len([time.perf_counter() async for chunk in stream if chunk.choices])

        return await _spread(streams, requests, one)


def ours(base_url: str, streams: int, requests: int) -> list[Any]:
    """The worker's whole work for a chunk: read, decode, accumulate, time, count tokens, build Arrow."""
    settings = load_settings(
        {
            "endpoint": {"base_url": base_url, "api_key": None, "include_usage": False, "model": MODEL},
            "request": {},
            "capture": {"concurrency": streams},
        }
    )
    batches = iter([pd.Series([f"p{number}" for number in range(requests)])])
    found = pd.concat(capture_batches(batches, settings, Prices(), max_requests=requests))
    columns = (found[name].tolist() for name in ("request_hash", "chunks", "loop_lag_ms"))
    return [
        (key, [chunk["ms"] for chunk in chunks if chunk["kind"] == "content"], lag)
        for key, chunks, lag in zip(*columns, strict=True)
    ]


def main() -> None:
    name, base_url, streams, requests = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    started = time.process_time()
    measured: list[Any] = []
    if name == "ours":
        measured = ours(base_url, streams, requests)
        chunks = sum(len(times) for _, times, _ in measured)
    else:
        chunks = sum(uvloop.run({"floor": floor, "plain": plain}[name](base_url, streams, requests)))
    cpu_s = time.process_time() - started
    print(
        json.dumps(
            {
                "chunks": chunks,
                "cpu_us": cpu_s / chunks * 1e6,
                "streams": measured,
            }
        )
    )


if __name__ == "__main__":
    main()
