"""The cost of a chunk without network: JSON only, deltatap's decoder and accumulator, and the openai client's."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import orjson
from openai._streaming import SSEDecoder as OpenAIDecoder
from openai.types.chat import ChatCompletionChunk

from bench.figure import Figure
from deltatap.api.chat import ChatAccumulator
from deltatap.api.sse import SSEDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

CHUNKS = 20_000
FRAME = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o-mini",'
    b'"service_tier":"default","system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"content":" hello"},'
    b'"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)


def decoding() -> Iterator[Figure]:
    """µs per chunk and MB/s. Each figure is the best of three."""
    floor, deltatap, openai = _us(_json_only), _us(_deltatap), _us(lambda: asyncio.run(_openai()))
    yield Figure("JSON only", floor, "µs per chunk")
    yield Figure("decoder and accumulator", deltatap, "µs per chunk")
    yield Figure("openai: decoder and chunk object", openai, "µs per chunk")
    yield Figure("decoder and accumulator / JSON only", deltatap / floor, "ratio")
    yield Figure("openai / deltatap", openai / deltatap, "ratio")
    yield Figure("decoder", len(FRAME) / _us(_decoder), "MB/s")
    yield Figure("openai: decoder", len(FRAME) / _us(lambda: asyncio.run(_openai_decoder())), "MB/s")


def _json_only() -> None:
    for _ in range(CHUNKS):
        orjson.loads(FRAME[6:-2])


def _deltatap() -> None:
    decoder, accumulator = SSEDecoder(), ChatAccumulator()
    for at in range(CHUNKS):
        for event in decoder.feed(FRAME):
            accumulator.add(event.data, float(at), at, event.event)
    accumulator.finish()


def _decoder() -> None:
    decoder = SSEDecoder()
    for _ in range(CHUNKS):
        decoder.feed(FRAME)


async def _frames() -> AsyncIterator[bytes]:
    for _ in range(CHUNKS):
        yield FRAME


async def _openai_decoder() -> None:
    async for _ in OpenAIDecoder().aiter_bytes(_frames()):
        pass


async def _openai() -> None:
    async for event in OpenAIDecoder().aiter_bytes(_frames()):
        ChatCompletionChunk.construct(**event.json())


def _us(work: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best / CHUNKS * 1e6
