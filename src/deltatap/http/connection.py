"""One HTTP/1.1 connection: delivers a response's body to its reader inside the callback that reads the socket.

No task wakes up for a chunk and nothing waits in a queue, which halves the cost of a chunk; each read is timed when it
happens. ``parser.py`` does the framing, ``transport.py`` opens connections. Errors are httpx2's, which the openai
client understands.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx2

from deltatap.http.parser import ResponseParser, State

if TYPE_CHECKING:
    from collections.abc import Callable

    # Takes the part of the body that one read of the socket returned, and the time of the read in monotonic seconds.
    # Returns True to stop reading.
    Sink = Callable[[bytes, float], bool]


class Response:
    """The response to one request. Wait for its head, then read its body.

    Attributes:
        began: monotonic seconds of the read that completed the head; 0 until then.
    """

    __slots__ = ("_connection", "_parser", "_sink", "_unread", "_waiter", "began")

    def __init__(self, connection: Connection) -> None:
        self.began = 0.0
        self._connection = connection
        self._parser = ResponseParser()
        self._unread: deque[tuple[bytes, float]] = deque()
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def status(self) -> int:
        """The HTTP status; 0 until the head is complete."""
        return self._parser.status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The raw headers, without a content-encoding that is already decoded."""
        return self._parser.headers

    @property
    def complete(self) -> bool:
        """Whether the whole body arrived."""
        return self._parser.complete

    @property
    def reusable(self) -> bool:
        """Whether the connection can take another request after this response."""
        return self._parser.state is State.REUSABLE

    async def head(self) -> None:
        """Wait for status and headers.

        Raises:
            httpx2.TransportError: the connection broke, or the server does not speak HTTP.
        """
        if self._parser.state is State.HEAD:
            await self._wait()
        if not self.status and self._parser.failure is not None:
            raise self._parser.failure

    async def read(self, sink: Sink) -> None:
        """Pass the body to `sink` as it arrives, until the body ends or `sink` returns True.

        Raises:
            httpx2.TransportError: the connection broke, or the response is not valid HTTP.
            Exception: anything that `sink` raises; this closes the connection.
        """
        while self._unread:
            if self._taken(sink, *self._unread.popleft()):
                return
        if self._parser.open:
            self._sink = sink
            try:
                await self._wait()
            finally:
                self._sink = None
        if self._parser.failure is not None:
            raise self._parser.failure

    async def start(self, most: int, wait_s: float) -> bytes:
        """Read the start of the body: at most this many bytes, in at most this many seconds. Never fails."""
        body = bytearray()

        def keep(data: bytes, _now: float) -> bool:
            body.extend(data)
            return len(body) >= most

        with suppress(TimeoutError, httpx2.TransportError):
            async with asyncio.timeout(wait_s):
                await self.read(keep)
        return bytes(body[:most])

    def close(self) -> None:
        """Return the connection to the pool if it can be reused; close it otherwise."""
        self._parser.close()
        self._connection.release(self)

    def feed(self, data: bytes) -> None:
        """Handle what one read of the socket returned."""
        now = time.perf_counter()
        parser = self._parser
        body = parser.feed(data)
        if not self.began and parser.status:
            self.began = now
            self._wake()
        if body:
            if self._sink is None:
                self._unread.append((body, now))
            else:
                self._deliver(self._sink, body, now)
        if not parser.open:
            self._wake()
            if parser.state is State.FAILED:
                self._connection.abort()

    def lost(self, error: Exception | None) -> None:
        """Handle the end of the connection; `error` is None when the server closed it."""
        self._parser.end(error)
        self._wake()

    def _taken(self, sink: Sink, body: bytes, now: float) -> bool:
        """Pass a part of the body on; True if the sink needs no more."""
        return any(sink(piece, now) for piece in self._parser.decoded(body))

    def _deliver(self, sink: Sink, body: bytes, now: float) -> None:
        try:
            if self._taken(sink, body, now):
                self._wake()
        except Exception as error:  # noqa: BLE001 - the sink's own, which `read` raises
            self._wake(error)
            self._connection.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self, error: Exception | None = None) -> None:
        """Let `head` or `read` return, or raise `error`."""
        self._sink = None
        if self._waiter is not None and not self._waiter.done():
            if error is None:
                self._waiter.set_result(None)
            else:
                self._waiter.set_exception(error)


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, released: Callable[[Connection], None]) -> None:
        """Open nothing yet.

        Args:
            released: takes the connection back when it can be reused.
        """
        self._released = released
        self._response: Response | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def usable(self) -> bool:
        """Whether the connection is open and has no request in flight."""
        return self._transport is not None and not self._transport.is_closing() and self._response is None

    def send(self, request: bytes) -> Response:
        """Write a request: head and body.

        Raises:
            httpx2.WriteError: the connection is closed.
        """
        if self._transport is None or not self.usable:
            raise httpx2.WriteError("the connection is closed")
        self._response = Response(self)
        self._transport.write(request)
        return self._response

    def release(self, response: Response) -> None:
        """End the exchange, whether or not the response is complete."""
        if self._response is not response:
            return
        self._response = None
        if response.reusable and self.usable:
            self._released(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close now and discard unread data."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio callback."""
        self._transport = transport  # type: ignore[assignment] # a stream socket's transport reads and writes

    def data_received(self, data: bytes) -> None:
        """Asyncio callback."""
        if self._response is not None:
            self._response.feed(data)
        else:  # no request is waiting for it
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio callback."""
        self._transport = None
        if self._response is not None:
            self._response.lost(exc)
