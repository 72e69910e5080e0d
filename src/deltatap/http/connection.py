"""One HTTP/1.1 connection: delivers a response's body to its reader inside the callback that reads the socket.

No task wakes up for a chunk and nothing waits in a queue, which halves the cost of a chunk. ``stream_socket.py`` reads
the socket, ``clock.py`` says when a read arrived, ``parser.py`` does the framing. Owns no socket. Errors are those of
httpx2, which ``outcomes.py`` translates.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

import httpx2

from deltatap.http.clock import ArrivalClock
from deltatap.http.parser import ResponseParser, State

if TYPE_CHECKING:
    from collections.abc import Callable

    # Takes the part of the body that one read of the socket returned, and the times at which this part arrived and was
    # read, both in monotonic seconds. Returns True to stop reading.
    Sink = Callable[[bytes, float, float], bool]


class Moment(NamedTuple):
    """Monotonic seconds of a read: when it arrived according to the kernel, and when the process read it."""

    arrived: float
    read: float


class Stream(Protocol):
    """What a connection writes to: see :class:`~deltatap.http.stream_socket.StreamSocket`."""

    @property
    def closed(self) -> bool:
        """Whether it is closed."""

    @property
    def sending(self) -> bool:
        """Whether something is still to be sent."""

    def write(self, data: bytes, taken: Callable[[float], None]) -> None:
        """Send some data; `taken` is called with the monotonic time at which the send buffer accepted all of it."""

    def abort(self) -> None:
        """Close now."""


class Response:
    """The response to one request. Wait for its head, then read its body.

    Attributes:
        clock: says when reads arrived.
        began: the read that completed the head; None until then.
        ended: the read that completed the body, or the end of the connection; None until then.
    """

    __slots__ = ("_connection", "_fault", "_parser", "_sink", "_unread", "_waiter", "_wrote", "began", "clock", "ended")

    def __init__(self, connection: Connection, wrote: Callable[[float], None]) -> None:
        """Begin with the request.

        Args:
            connection: that sends it.
            wrote: gets the monotonic time at which the request was written.
        """
        self.began: Moment | None = None
        self.ended: Moment | None = None
        self.clock = ArrivalClock()
        self.clock.start(time.perf_counter())  # a server may send before the request is written
        self._connection = connection
        self._wrote: Callable[[float], None] | None = wrote
        self._parser = ResponseParser()
        self._unread: deque[tuple[bytes, float, float]] = deque()
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._fault: BaseException | None = None

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

        def keep(data: bytes, *_: float) -> bool:
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

    def written(self, at: float) -> None:
        """Record when the request was written, in monotonic seconds."""
        if (wrote := self._wrote) is not None:
            self._wrote = None
            self.clock.start(at)
            wrote(at)

    def feed(self, data: bytes, stamp: int, now: float) -> None:
        """Handle the data of one read of the socket.

        Args:
            data: the bytes.
            stamp: the kernel's, in ns since the epoch; 0 if it gave none.
            now: monotonic seconds, taken after the read.
        """
        at = self.clock.at(stamp, now)
        parser = self._parser
        body = parser.feed(data)
        if self.began is None:
            self.written(at)  # a server may answer before it has read the whole request
            if parser.status:
                self.began = Moment(at, now)
                self._wake()
        if body:
            if self._sink is None:
                self._unread.append((body, at, now))
            else:
                self._deliver(self._sink, body, at, now)
        if not parser.open:
            self.ended = self.ended or Moment(at, now)
            self._wake()
            if parser.state is State.FAILED:
                self._connection.abort()

    def lost(self, error: Exception | None) -> None:
        """Handle the end of the connection; `error` is None when the server closed it."""
        now = time.perf_counter()
        self.ended = self.ended or Moment(now, now)
        self._parser.end(error)
        self._wake()

    def broke(self, error: BaseException) -> None:
        """Let `head` or `read` raise an exception of deltatap's own code."""
        self._fault = error
        self._wake(error)

    def _taken(self, sink: Sink, body: bytes, at: float, now: float) -> bool:
        """Pass a part of the body on; True if the sink needs no more."""
        return any(sink(piece, at, now) for piece in self._parser.decoded(body))

    def _deliver(self, sink: Sink, body: bytes, at: float, now: float) -> None:
        try:
            if self._taken(sink, body, at, now):
                self._wake()
        except Exception as error:  # noqa: BLE001 - the sink's own, which `read` raises
            self._wake(error)
            self._connection.abort()

    async def _wait(self) -> None:
        if self._fault is not None:
            raise self._fault
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self, error: BaseException | None = None) -> None:
        """Let `head` or `read` return, or raise `error`."""
        self._sink = None
        if self._waiter is not None and not self._waiter.done():
            if error is None:
                self._waiter.set_result(None)
            else:
                self._waiter.set_exception(error)


class Connection:
    """One connection, one request at a time. Attach a stream before use."""

    def __init__(self, released: Callable[[Connection], None]) -> None:
        """Open nothing yet.

        Args:
            released: takes the connection back when it can be reused.
        """
        self._released = released
        self._response: Response | None = None
        self._stream: Stream | None = None

    def attach(self, stream: Stream) -> None:
        """Use a stream, which passes its data to :meth:`received`."""
        self._stream = stream

    @property
    def usable(self) -> bool:
        """Whether the connection is open and has no request in flight."""
        return (
            self._response is None and self._stream is not None and not self._stream.closed and not self._stream.sending
        )

    def send(self, request: bytes, wrote: Callable[[float], None]) -> Response:
        """Write a request: head and body.

        Args:
            request: the bytes.
            wrote: gets the monotonic time at which the send buffer had taken the last byte, or at which the server
                answered, if that was earlier. That may be before this method returns.

        Raises:
            httpx2.WriteError: the connection is closed.
        """
        if self._stream is None or not self.usable:
            raise httpx2.WriteError("the connection is closed")
        self._response = response = Response(self, wrote)
        try:
            self._stream.write(request, response.written)
        except BaseException:
            self.abort()
            raise
        return response

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
        if self._stream is not None:
            self._stream.abort()

    def received(self, data: bytes, stamp: int, now: float) -> None:
        """Handle one read: its plaintext, the kernel's stamp, and monotonic seconds."""
        if self._response is not None:
            self._response.feed(data, stamp, now)
        else:  # no request is waiting for it
            self.abort()

    def lost(self, error: Exception | None) -> None:
        """Handle the end of the connection: what broke it, or None if the server closed it."""
        if self._response is not None:
            self._response.lost(error)

    def broke(self, error: BaseException) -> None:
        """Handle an exception of deltatap's own code. The stream is closed."""
        if self._response is not None:
            self._response.broke(error)
