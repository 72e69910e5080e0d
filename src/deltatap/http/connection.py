"""An HTTP/1.1 connection that hands over what the socket brought in the moment that it comes.

Between the socket and who reads there is llhttp (httptools) and nothing else: no task is woken for a chunk and nothing
waits in a queue, which is half of what a chunk costs elsewhere; and a read's time is taken when it is made. Knows
framing, and whether a connection can be used again. Leaves connecting to ``transport.py``; errors are httpx2's, which
the openai client knows.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import TYPE_CHECKING

import httptools
import httpx2

if TYPE_CHECKING:
    from collections.abc import Callable

    # Takes what a read of the socket brought of the body, and when, in monotonic seconds; true when it has enough.
    Sink = Callable[[bytes, float], bool]

_MAX_HEAD_BYTES = 256 * 1024
_OK = 200


class Response:
    """What comes back for one request: its head once it is there, and its body to whoever reads.

    Attributes:
        status: of the response, 0 until it is there.
        headers: raw, without a content-encoding that is undone here.
        began: monotonic seconds of the read that completed the head.
        complete: whether the body has come to its end.
    """

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.began = 0.0
        self.complete = False
        self.keep_alive = False
        self._connection = connection
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._pieces: list[bytes] = []
        self._unread: list[tuple[bytes, float]] = []
        self._until_eof = False
        self._inflate: Callable[[bytes], bytes] | None = None
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None

    async def head(self) -> None:
        """Wait for status and headers.

        Raises:
            httpx2.TransportError: none came, or no HTTP.
        """
        if not self.status:
            await self._wait()

    async def read(self, sink: Sink) -> None:
        """Hand the body over as it comes, until it ends or `sink` has enough.

        Raises:
            httpx2.TransportError: the connection broke off, or what came is no HTTP.
            Exception: whatever `sink` raises; the connection is closed then.
        """
        unread, self._unread = self._unread, []
        for at, (data, now) in enumerate(unread):
            if sink(data, now):
                self._unread = unread[at + 1 :]
                return
        if not self.complete or self._failure is not None:
            self._sink = sink
            try:
                await self._wait()
            finally:
                self._sink = None

    def close(self) -> None:
        """Give the connection back where it can be used again, close it where not."""
        self._parser = None  # it holds our callbacks, so only the garbage's collection would find us
        self._connection.release(self)

    def feed(self, data: bytes) -> None:
        """What one read of the socket brought."""
        now = time.perf_counter()
        if self.complete or self._parser is None:  # nobody asked for more
            self.keep_alive = False
            return
        headless, failure = not self.status, None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keep_alive = False
            ours = error.__context__
            failure = ours if isinstance(ours, httpx2.TransportError) else _strange(f"it is no HTTP: {error}")
        if headless and self.status:
            self.began = now
            self._over()
        if self._pieces:
            self._hand_over(now)
        if self.complete:
            self._over()
        elif failure is not None:
            self._over(failure)

    def lost(self, error: Exception | None) -> None:
        """The connection is closed."""
        if self.complete or self._failure is not None:
            return
        if error is not None:
            self._over(httpx2.ReadError(str(error) or type(error).__name__))
        elif self.status and self._until_eof:
            self.complete = True
            self._over()
        else:
            where = "in the middle of its answer" if self.status else "without an answer"
            self._over(httpx2.RemoteProtocolError(f"the server closed the connection {where}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Httptools' callback."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise _strange(f"its headers exceed {_MAX_HEAD_BYTES:,} bytes")
        if not self.complete:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Httptools' callback; what is provisional (1xx) is passed over."""
        if self._parser is None or self.complete or (status := self._parser.get_status_code()) < _OK:
            return
        self.status = status
        told = {name.lower(): value.strip().lower() for name, value in self.headers}
        self._until_eof = b"content-length" not in told and b"chunked" not in told.get(b"transfer-encoding", b"")
        encoding = told.get(b"content-encoding", b"identity")
        if encoding in {b"gzip", b"x-gzip", b"deflate"}:
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS + 32).decompress
            self.headers = [(name, value) for name, value in self.headers if name.lower() != b"content-encoding"]
        elif encoding != b"identity":
            raise _strange(f"content-encoding {encoding.decode('latin1')} was not asked for")

    def on_body(self, data: bytes) -> None:
        """Httptools' callback, once for each piece of the body in what was read."""
        if not self.complete:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Httptools' callback."""
        if not self.status:
            self.headers.clear()
            return
        self.keep_alive = not self.complete and self._parser is not None and self._parser.should_keep_alive()
        self.complete = True

    def _hand_over(self, now: float) -> None:
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        try:
            if self._inflate is not None and not (data := self._inflate(data)):
                return
            if self._sink is None:
                self._unread.append((data, now))
            elif self._sink(data, now):
                self._over()
        except zlib.error as error:
            self._over(_strange(f"its content-encoding is broken: {error}"))
        except Exception as error:  # noqa: BLE001 - the reader's own, who gets it from `read`
            self._over(error)

    async def _wait(self) -> None:
        if self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._failure is not None:
            raise self._failure

    def _over(self, failure: Exception | None = None) -> None:
        """What was waited for is there, or will never be."""
        if failure is not None:
            self._failure, self.keep_alive = self._failure or failure, False
            self._connection.abort()
        self._sink = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, released: Callable[[Connection], None]) -> None:
        """Nothing is open yet.

        Args:
            released: takes the connection when it can be used again.
        """
        self.idle_since = 0.0
        self._released = released
        self._response: Response | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def usable(self) -> bool:
        """Whether it is open, and nothing is under way."""
        return self._transport is not None and not self._transport.is_closing() and self._response is None

    def send(self, request: bytes) -> Response:
        """Write a request, its head and its body.

        Raises:
            httpx2.WriteError: the connection is closed.
        """
        if self._transport is None or not self.usable:
            raise httpx2.WriteError("the connection is closed")
        self._response = Response(self)
        self._transport.write(request)
        return self._response

    def release(self, response: Response) -> None:
        """The response is done with, whole or not."""
        if self._response is not response:
            return
        self._response = None
        if response.complete and response.keep_alive and self.usable:
            self.idle_since = time.monotonic()
            self._released(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once; what was not read is lost."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's callback."""
        self._transport = transport  # type: ignore[assignment] # that of a stream socket reads and writes

    def data_received(self, data: bytes) -> None:
        """Asyncio's callback."""
        if self._response is not None:
            self._response.feed(data)
        else:  # to no request
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's callback."""
        self._transport = None
        if self._response is not None:
            self._response.lost(exc)


def _strange(what: str) -> httpx2.RemoteProtocolError:
    return httpx2.RemoteProtocolError(f"the server's answer cannot be read: {what}")
