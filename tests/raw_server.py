"""A server on loopback that answers each request with given bytes, cut into given pieces, and then ends as told.

It knows HTTP just well enough to find the end of a request. What it answers is the test's business: `choose` gets each
request and returns an :class:`Answer`. It counts requests, so a test sees what was called twice.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# After an answer: wait for the next request (as servers do that do not announce a close), close, reset the connection, send nothing more, or repeat the last piece.
Then = Literal["keep", "close", "reset", "stall", "repeat"]
Cut = Literal["whole", "bytes", "random"]
# Sent byte by byte, a large answer would take longer than all others together.
_MAX_PIECES = 3_000


@dataclass(frozen=True)
class Answer:
    """The bytes of a response in the pieces that are sent, and what happens afterwards."""

    pieces: tuple[bytes, ...]
    then: Then = "close"

    @property
    def data(self) -> bytes:
        """All bytes."""
        return b"".join(self.pieces)

    def cut(self, how: Cut, seed: int = 0) -> Answer:
        """The same bytes in one piece, one byte at a time, or cut at random places."""
        data = self.data
        if self.then == "repeat" or how == "whole":
            return self
        if how == "bytes" and len(data) <= _MAX_PIECES:
            places = list(range(1, len(data)))
        else:
            chosen = random.Random(seed)  # noqa: S311 - a reproducible cut
            places = sorted(chosen.sample(range(1, len(data)), min(chosen.randint(1, 40), len(data) - 1)))
        ends = [0, *places, len(data)]
        return replace(self, pieces=tuple(data[a:b] for a, b in pairwise(ends)))


@dataclass(frozen=True)
class Asked:
    """A request: its path, its headers with lower-case names, its JSON body, and how often its prompt was asked before.

    `prompt` is the text of the last message, or the `input` or `prompt` of other APIs.
    """

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    prompt: str
    before: int


@dataclass
class RawServer:
    """What the server was asked, in order.

    Attributes:
        base_url: ends in ``/v1``.
        asked: all requests.
    """

    base_url: str = ""
    asked: list[Asked] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    def calls(self, prompt: str) -> int:
        """How many requests had this prompt."""
        return self._counts.get(prompt, 0)

    def note(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Asked:
        """Record a request."""
        prompt = _prompt_of(body)
        before = self._counts.get(prompt, 0)
        self._counts[prompt] = before + 1
        self.asked.append(Asked(path, headers, body, prompt, before))
        return self.asked[-1]


@contextmanager
def raw_server(choose: Callable[[Asked], Answer]) -> Iterator[RawServer]:
    """Serve in a thread of its own until the context ends; `choose` runs on that thread."""
    server, loop = RawServer(), asyncio.new_event_loop()
    ready = threading.Event()

    async def serve() -> None:
        over = asyncio.Event()
        open_ones: set[asyncio.Task[None]] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            open_ones.add(task)
            try:
                with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    while await _exchange(reader, writer, choose, server):
                        pass
            finally:
                open_ones.discard(task)
                writer.close()

        listening = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=512, limit=2**24)
        server.base_url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        server_stop.append(lambda: loop.call_soon_threadsafe(over.set))
        ready.set()
        await over.wait()
        # The handler of a connection that was accepted just now has not begun, and needs the server to be open.
        while asyncio.all_tasks() - {asyncio.current_task()}:
            for task in open_ones:
                task.cancel()
            await asyncio.sleep(0)
        listening.close()
        await asyncio.sleep(0)  # the last connections close

    server_stop: list[Callable[[], object]] = []
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="raw-server", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        server_stop[0]()
        thread.join()
        loop.close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choose: Callable[[Asked], Answer], server: RawServer
) -> bool:
    """Answer one request. False when the connection must end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1")
    line, *rest = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest if each)}
    body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
    answer = choose(server.note(line.split(" ")[1], headers, body))
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.transport.set_write_buffer_limits(0)
    for piece in answer.pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)  # the client reads meanwhile
    match answer.then:
        case "repeat":
            while True:
                writer.write(answer.pieces[-1])
                await writer.drain()
        case "stall":
            await reader.read()  # until the client gives up
        case "reset":
            # A reset discards what the client has not read yet.
            while _unread(connection.getpeername()[1]):  # noqa: ASYNC110 - the kernel sends no event
                await asyncio.sleep(0.001)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        case _:
            pass
    return answer.then == "keep"


def _unread(port: int) -> bool:
    """Whether the owner of this port has bytes to read (proc_net_tcp(5): the second half of the queues)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(int(line[1].split(":")[1], 16) == port and int(line[4].split(":")[1], 16) for line in lines)


def _prompt_of(body: dict[str, Any]) -> str:
    given = body["messages"][-1]["content"] if body.get("messages") else body.get("input") or body.get("prompt")
    return given if isinstance(given, str) else json.dumps(given)
