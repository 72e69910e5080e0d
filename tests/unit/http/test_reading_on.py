"""The real client resumes answers over real sockets: a server stores an answer and cuts its connections at any byte."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from deltatap.api.frames import Facts, Piece, usage
from deltatap.api.registry import specification
from deltatap.config import Timeouts
from deltatap.endpoint import Endpoint
from deltatap.http.client import EndpointClient
from deltatap.http.resumable import Resumable
from deltatap.model import Call, Wire
from tests.calls import OK, chunk, request, server

if TYPE_CHECKING:
    from collections.abc import Sequence

WIRE = Wire('{"model":"m","input":"x","stream":true,"background":true,"store":true}', "m", "stream", 1, resumable=True)
WORDS = ["Hello", ", ", "wörld", " 東京", " 🙂", " and", " more", ".\n\n", "End"]
REFUSAL = b"HTTP/1.1 %s x\r\ncontent-length: 2\r\n\r\n{}"


def frames() -> list[bytes]:
    made = specification("responses").frames(Facts("sim1", 1, "m", usage(3, len(WORDS)), with_usage=True))
    found = made.begin()
    for word in WORDS:
        found += made.piece(0, Piece("content", word))
    return [*found, *made.finish(0, "stop"), *made.end("stop")]


FRAMES = frames()


@dataclass
class Kept:
    """Serves one answer. Each connection is cut after a number of bytes; None: not at all."""

    cuts: Sequence[int | None]
    requests: list[str] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.split(b"\r\n")[0].decode()
        if line.startswith("POST"):
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        cut = self.cuts[min(len(self.requests), len(self.cuts) - 1)]
        self.requests.append(line)
        after = parse_qs(urlsplit(line.split(" ")[1]).query).get("starting_after", ["-1"])[0]
        data = OK + b"".join(chunk(frame) for frame in FRAMES[int(after) + 1 :]) + chunk(b"")
        writer.write(data if cut is None else data[:cut])
        await writer.drain()


async def read(kept: Kept, calls: int) -> tuple[Resumable, Call]:
    async with server(kept) as base_url:
        client = EndpointClient(Endpoint(base_url=base_url, api="responses", api_key=None), Timeouts())
        answer = Resumable()
        try:
            made = await asyncio.create_task(client.call(WIRE, "r", answer=answer))
            for _ in range(calls):
                if made.error is not None and answer.readable:
                    made = await asyncio.create_task(client.call(WIRE, "r", answer=answer))
        finally:
            await client.close()
    return answer, made


def test_whatever_bytes_are_cut_the_answer_is_sent_once_and_equals_the_unbroken_one() -> None:
    chance = random.Random(7)  # noqa: S311 - places, not secrets
    size = len(OK) + sum(len(chunk(frame)) for frame in FRAMES)
    first_event = len(OK) + len(chunk(FRAMES[0]))

    async def all_of() -> None:
        _, unbroken = await read(Kept([None]), 0)
        assert unbroken.status == "completed"
        assert unbroken.received.text == "".join(WORDS)
        for _ in range(150):
            breaks = chance.randint(1, 3)
            cuts: list[int | None] = [chance.randint(first_event, size - 1)]
            cuts += [chance.randint(0, size - 1) for _ in range(breaks - 1)]
            kept = Kept([*cuts, None])
            _, call = await read(kept, 4)
            assert call.status == "completed", (cuts, call.error)
            assert call.received.choices == unbroken.received.choices, cuts
            assert call.received.usage == unbroken.received.usage
            assert call.received.chunks.text == unbroken.received.chunks.text
            assert list(call.received.chunks.event) == list(unbroken.received.chunks.event)
            assert [line.split(" ")[0] for line in kept.requests].count("POST") == 1
            ms = list(call.received.chunks.ms)
            assert ms == sorted(ms)
            assert ms[0] >= 0
            assert call.e2e_ms is not None
            assert call.e2e_ms >= ms[-1]
            assert list(call.received.chunks.read) == sorted(call.received.chunks.read)

    asyncio.run(all_of())


def test_a_request_that_resumes_an_answer_has_its_id_the_number_of_the_last_event_and_no_body() -> None:
    cut = len(OK) + sum(len(chunk(frame)) for frame in FRAMES[:7])
    kept = Kept([cut, None])
    answer, call = asyncio.run(read(kept, 1))
    assert kept.requests == [
        "POST /v1/responses HTTP/1.1",
        "GET /v1/responses/resp_sim1?stream=true&starting_after=6 HTTP/1.1",
    ]
    assert call.body == WIRE.body
    assert answer.reads == 1
    assert [(mark.after, mark.error_type, mark.outcome) for mark in call.resumed] == [
        (6, "stream_interrupted", "stream")
    ]


def test_an_answer_is_resumed_after_a_refused_key_was_renewed() -> None:
    class Key:
        def __init__(self) -> None:
            self.current: str | None = "first-token"
            self.known = frozenset({"first-token", "second-token"})

        def token(self) -> str:
            return self.current or ""

        def refused(self, token: str) -> bool:
            self.current = "second-token"
            return "first" in token

    cut = len(OK) + sum(len(chunk(frame)) for frame in FRAMES[:7])
    seen: list[str] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head.split("\r\n")[0].split(" ")[0])
        if seen[-1] == "POST":
            writer.write((OK + b"".join(chunk(frame) for frame in FRAMES))[:cut])
        elif "first-token" in head:
            writer.write(REFUSAL % b"401")
        else:
            writer.write(OK + b"".join(chunk(frame) for frame in FRAMES[7:]) + chunk(b""))
        await writer.drain()

    async def made() -> Call:
        async with server(handler) as base_url:
            endpoint = Endpoint(base_url=base_url, api="responses", api_key=None)
            client = EndpointClient(endpoint, Timeouts(), credential=Key())  # type: ignore[arg-type]
            answer = Resumable()
            try:
                for _ in range(3):
                    call = await asyncio.create_task(client.call(WIRE, "r", answer=answer))
            finally:
                await client.close()
            return call

    call = asyncio.run(made())
    assert seen == ["POST", "GET", "GET"]
    assert (call.status, call.received.text) == ("completed", "".join(WORDS))


def test_the_id_of_an_answer_is_reported_once_and_while_the_answer_still_arrives() -> None:
    """Otherwise, a killed worker would not know which answers to resume."""
    reported: list[str | None] = []

    async def made() -> Call:
        identified = asyncio.Event()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request(reader)
            writer.write(OK + chunk(FRAMES[0]))
            async with asyncio.timeout(20):
                await identified.wait()
            for frame in FRAMES[1:]:
                writer.write(chunk(frame))
                await writer.drain()
            writer.write(chunk(b""))

        def changed() -> None:
            reported.append(answer.response_id)
            if answer.response_id is not None:
                identified.set()

        answer = Resumable(changed=changed)
        async with server(handler) as base_url:
            client = EndpointClient(Endpoint(base_url=base_url, api="responses", api_key=None), Timeouts())
            try:
                return await asyncio.create_task(client.call(WIRE, "r", answer=answer))
            finally:
                await client.close()

    assert asyncio.run(made()).status == "completed"
    assert reported == [None, "resp_sim1"], "when the call began, and when the id arrived"
