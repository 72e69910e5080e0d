"""Clients that read many streams at once, from the cheapest possible client to the plain loop of most programs.

Each client is a process: ``python -m bench.clients NAME BASE_URL STREAMS REQUESTS [CA_FILE]`` prints one line of JSON
with its CPU time and what it measured. ``worker`` is the complete work of a Spark worker, without Spark. The event loop
of ``worker-stalled`` stops for 50 ms at random, once a second on average. ``worker-moderated`` and ``worker-patterns``
check the texts while they arrive.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx2
import orjson
import pyarrow.parquet as pq
import uvloop
from openai import AsyncOpenAI, DefaultAioHttpClient, DefaultAsyncHttpxClient

from deltatap.prices import Prices
from deltatap.prompts import build_request
from deltatap.settings_loading import load_settings
from deltatap.worker.bootstrap import context_of, running_engine
from deltatap.worker.jobs import job_of
from deltatap.worker.journal import JournalWriter, warm_up

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from deltatap.config import Settings
    from deltatap.model import Job

MODEL = "gpt-4o-mini"
STALL_S, STALLS_APART_S = 0.05, 1.0
_APART_S = 0.003
# A check after every 100 characters: an answer of the bench has about 450.
MODERATION: dict[str, Any] = {
    "worker-moderated": {"every_chars": 100},
    "worker-patterns": {"every_chars": 100, "patterns": [r"(?i)\bforbidden\b", r"\d{3}-\d{4}"]},
}


async def _spread(streams: int, requests: int, one: Callable[[int], Awaitable[int]]) -> list[int]:
    """Run the requests with a number of streams at once. The first ones start a few ms apart."""
    waiting = iter(range(requests))
    results: list[int] = []

    async def worker(number: int) -> None:
        await asyncio.sleep(number * _APART_S)
        results.extend([await one(request) for request in waiting])

    await asyncio.gather(*(worker(number) for number in range(streams)))
    return results


def _body(number: int) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": f"p{number}"}], "stream": True}


async def floor(base_url: str, streams: int, requests: int, ca_file: str | None) -> list[int]:
    """aiohttp, a split at blank lines, and orjson: the minimum that a Python client must do."""
    connector = aiohttp.TCPConnector(limit=0, ssl=_trusting(ca_file) or True)
    async with aiohttp.ClientSession(connector=connector) as session:

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


def _trusting(ca_file: str | None) -> ssl.SSLContext | None:
    return None if ca_file is None else ssl.create_default_context(cafile=ca_file)


async def plain(base_url: str, streams: int, requests: int, ca_file: str | None) -> list[int]:
    """The plain loop: ``async for chunk in`` a stream of the openai client with its default transport."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    verify = _trusting(ca_file) or True
    return await _plain(base_url, streams, requests, DefaultAsyncHttpxClient(timeout=600, limits=limits, verify=verify))


async def plain_aiohttp(base_url: str, streams: int, requests: int, _ca_file: str | None) -> list[int]:
    """The same loop over aiohttp and on uvloop, for more speed."""
    return await _plain(base_url, streams, requests, DefaultAioHttpClient(timeout=600))


async def _plain(base_url: str, streams: int, requests: int, http_client: httpx2.AsyncClient) -> list[int]:
    async with AsyncOpenAI(base_url=base_url, api_key="x", http_client=http_client, max_retries=0) as client:

        async def one(number: int) -> int:
            body = _body(number)
            stream: Any = await client.chat.completions.create(**body)
            return len([time.perf_counter() async for chunk in stream if chunk.choices])

        return await _spread(streams, requests, one)


def worker(
    name: str, base_url: str, streams: int, requests: int, ca_file: str | None
) -> tuple[float, float, list[Any], int]:
    """The complete work of a worker: build, read, decode, accumulate, time, count tokens, build Arrow, write.

    Returns its CPU time and the wall time in seconds, what it measured, and the size of the journal in bytes. The times
    start after everything that a worker loads once is loaded.
    """
    endpoint = {"base_url": base_url, "api_key": None, "include_usage": False, "model": MODEL}
    settings = load_settings(
        {
            "endpoint": {**endpoint, "tls": {"ca_file": ca_file}},
            "request": {},
            "capture": {"concurrency": streams},
            "moderation": MODERATION.get(name),
        }
    )
    context = context_of(settings, Prices(), "bench", 0)
    warm_up(context)
    with tempfile.TemporaryDirectory() as folder:
        journal = JournalWriter(Path(folder), "bench", context, plan=1, part=0, flush_s=settings.state.flush_s)
        engine = running_engine(settings, None, journal.put, look_ahead=2 * streams + 128, share=streams)
        with journal, engine as running:
            started, began = time.process_time(), time.perf_counter()
            if name == "worker-stalled":
                _stall(vars(running)["_loop"])
            for number in range(requests):
                running.submit(_job(number, settings))
            running.join()
            wall_s = time.perf_counter() - began
        cpu_s = time.process_time() - started
        found = pq.read_table(folder, columns=["request_hash", "chunks", "loop_lag_ms"], partitioning=None).to_pylist()
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return cpu_s, wall_s, [measured(row["request_hash"], row["chunks"], row["loop_lag_ms"]) for row in found], size


def measured(key: str, chunks: list[dict[str, Any]], lag_ms: float) -> tuple[str, list[float], float, list[int]]:
    """The fields of :class:`bench.truth.Measured` of one row."""
    content = [chunk for chunk in chunks if chunk["kind"] == "content"]
    return key, [chunk["ms"] for chunk in content], lag_ms, [chunk["read"] for chunk in content]


def _stall(loop: asyncio.AbstractEventLoop) -> None:
    """Stop an event loop now and then."""
    pauses = random.Random(0)  # noqa: S311 - not a secret

    def stall() -> None:
        time.sleep(STALL_S)
        loop.call_later(pauses.expovariate(1 / STALLS_APART_S), stall)

    loop.call_soon_threadsafe(stall)


def _job(number: int, settings: Settings) -> Job:
    request = build_request({"prompt": f"p{number}"}, api="chat", model=MODEL, defaults={}, keep=())
    return job_of(request, number, [], settings, "stream")


def main() -> None:
    name, base_url, streams, requests = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    ca_file = next(iter(sys.argv[5:]), None)
    found: list[Any] = []
    journal_bytes, wall_s = 0, 0.0
    if name.startswith("worker"):
        cpu_s, wall_s, found, journal_bytes = worker(name, base_url, streams, requests, ca_file)
        chunks = sum(len(times) for _, times, *_ in found)
    else:
        started = time.process_time()
        if name == "plain":
            chunks = sum(asyncio.run(plain(base_url, streams, requests, ca_file)))
        else:
            client = {"floor": floor, "plain-aiohttp": plain_aiohttp}[name]
            chunks = sum(uvloop.run(client(base_url, streams, requests, ca_file)))
        cpu_s = time.process_time() - started
    cpu_us = cpu_s / chunks * 1e6
    made = {"chunks": chunks, "cpu_us": cpu_us, "wall_s": wall_s, "journal_bytes": journal_bytes, "streams": found}
    print(json.dumps(made))


if __name__ == "__main__":
    main()
