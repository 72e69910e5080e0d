"""A server that a handler describes, and calls of the real client to it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltatap.config import Timeouts
from deltatap.endpoint import ApiKey, Endpoint
from deltatap.http.client import EndpointClient
from deltatap.model import Call, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from deltatap.http.credentials import Credential

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

KEY = "sk-test-4711-do-not-tell"
BODY = '{"model":"m","messages":[],"stream":true}'
WIRE = Wire(BODY, "m", "stream", 1)
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-request-id: req_1\r\n\r\n"
HI = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = Wire('{"model":"m","messages":[]}', "m", "complete", 1)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


ANSWER = OK + chunk(HI + STOP + DONE) + chunk(b"")


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head and the body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    return head, await reader.readexactly(length)


def call(
    handler: Handler,
    *,
    key: bool = False,
    seen: list[bytes] | None = None,
    timeouts: Timeouts | None = None,
    wire: Wire = WIRE,
    path: str = "/v1",
    **described: Any,
) -> Call:
    """Make a call to this handler. `seen` collects the head and the body of the request."""

    async def made() -> Call:
        async def reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head_and_body = await request(reader)
            if seen is not None:
                seen.extend(head_and_body)
            await handler(reader, writer)

        async with server(reading) as base_url:
            url = base_url.removesuffix("/v1") + path
            endpoint = Endpoint(base_url=url, **{"api_key": ApiKey(env="TEST_KEY") if key else None, **described})
            client = EndpointClient(endpoint, timeouts or Timeouts())
            try:
                return await asyncio.create_task(client.call(wire))
            finally:
                await client.close()

    return asyncio.run(made())


def calls(answers: Sequence[bytes], wires: Sequence[Wire], credential: Credential | None = None) -> Calls:
    """Make several calls with one client to a server that sends these answers. Returns calls and requests."""

    async def made() -> Calls:
        left, found = list(answers), Calls([], [], 0)

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.connections += 1
            with suppress(asyncio.IncompleteReadError, ConnectionResetError):
                while True:
                    found.requests.append(await request(reader))
                    writer.write(left.pop(0))

        async with server(handler) as base_url:
            endpoint = Endpoint(base_url=base_url, api_key=None)
            client = EndpointClient(endpoint, Timeouts(), credential=credential)
            try:
                for wire in wires:
                    found.made.append(await asyncio.create_task(client.call(wire)))
            finally:
                await client.close()
        return found

    return asyncio.run(made())


@dataclass
class Calls:
    made: list[Call]
    requests: list[tuple[bytes, bytes]]
    connections: int


def answering(*writes: bytes, linger: bool = False) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for data in writes:
            writer.write(data)
            await writer.drain()
        if linger:
            await reader.read()

    return handler


def refusal(status: str, body: bytes, *headers: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b" % (
        status.encode(), len(body), b"".join(h + b"\r\n" for h in headers), body,
    )  # fmt: skip


def refusing(status: str, body: bytes, *headers: bytes) -> Handler:
    return answering(refusal(status, body, *headers))
