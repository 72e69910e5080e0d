"""The two connections of a session, to the client and to the server: forwards data at the reader's pace.

Knows sockets and the state of a request's body. ``requests.py`` parses the client's data, ``upstream.py`` the server's
data, and ``session.py`` decides what happens to each request.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from contextlib import suppress
from enum import Enum, auto
from typing import TYPE_CHECKING

from deltatap.http.stream_socket import StreamSocket, prepare
from deltatap.model import ConnectionTimes
from deltatap.record.outbox import Outbox
from deltatap.record.requests import End, Head, Part, RequestParser
from deltatap.record.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.http.dial import Dialer
    from deltatap.record.forwarding import Target
    from deltatap.record.requests import Event
    from deltatap.record.upstream import Answer

# Maximum number of a client's bytes that wait here; above it, the client is not read.
_MAX_WAITING = 1024 * 1024
# Maximum number of parts and requests that wait, however small they are. A client can send requests before it has the
# answers to earlier ones.
_MAX_EVENTS = 256
_REUSED = ConnectionTimes(reused=True)
_RESET = struct.pack("ii", 1, 0)
# How long a client may take to read the last bytes and to close its side.
_LINGER_S = 2.0


class Body(Enum):
    """Where the parts of a request's body go."""

    WAIT = auto()
    PASS = auto()
    DISCARD = auto()


class Pair:
    """The connections. The client's is open from the start, the server's from :meth:`connect` on.

    Args:
        client: the connected socket.
        gone: called when the client has closed its connection, or will not send the rest of a request.
        server_gone: called when the server has closed its connection.

    Attributes:
        left: whether the client has closed its connection.
        wrong: why the client's data is not valid HTTP/1.1; None while it is valid.
        over: done when the open request has arrived completely.
        answer: the answer to the open request, once the request was sent.
    """

    def __init__(self, client: socket.socket, gone: Callable[[], None], server_gone: Callable[[], None]) -> None:
        prepare(client)
        self._socket, self._gone, self._server_gone = client, gone, server_gone
        self._parser = RequestParser()
        self._events: deque[Event] = deque()
        self._waiting = 0
        self._news = asyncio.Event()
        self._ending = self._reset = False
        self._client = StreamSocket(client, self)
        self.to_client = Outbox(self._client, self._pace_server)
        self._upstream: Upstream | None = None
        self._server: StreamSocket | None = None
        self._to_server: Outbox | None = None
        self._body, self._chunked = Body.WAIT, False
        self._copy: Callable[[bytes], None] | None = None
        self.left = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answer: Answer | None = None

    @property
    def wrong(self) -> str | None:
        """Why the client's data is not valid HTTP/1.1; None while it is valid."""
        return self._parser.wrong

    @property
    def connected(self) -> bool:
        """Whether the server's connection is open."""
        return self._server is not None and not self._server.closed

    # The client's side.

    def received(self, data: bytes, _stamp: int, _now: float) -> None:
        """Take what the client sends."""
        events = self._parser.feed(data)
        self._events.extend(events)
        self._waiting += sum(len(event.data) for event in events if isinstance(event, Part))
        self._pump()
        self._news.set()

    def lost(self, _error: Exception | None) -> None:
        """The client has closed the connection."""
        self.left = True
        self._gone()

    def broke(self, _error: BaseException) -> None:
        """Close the connection, because deltatap's own code has failed."""
        self.lost(None)

    def end(self) -> None:
        """Take no more requests."""
        self._ending = True
        self._news.set()

    async def next_head(self) -> Head | None:
        """The head of the next request; None if there is none."""
        while not self._events and self.wrong is None and not self._ending:
            self._news.clear()
            await self._news.wait()
        if not self._events or self._ending:
            return None
        event = self._events.popleft()
        return event if isinstance(event, Head) else None

    def begin(self, copy: Callable[[bytes], None] | None, *, chunked: bool) -> None:
        """Begin with a request. Its body waits until it is forwarded or discarded.

        Args:
            copy: also gets the parts of the body.
            chunked: whether the body comes in chunks.
        """
        self._copy, self._chunked = copy, chunked
        self.over = asyncio.get_running_loop().create_future()

    def discard(self) -> None:
        """Read the rest of the request's body, and discard it."""
        if not self.over.done():
            self._body = Body.DISCARD
        self._pump()

    def _pump(self) -> None:
        """Take the parts of the open request's body that have arrived."""
        while self._body is not Body.WAIT and self._events and not isinstance(self._events[0], Head):
            event = self._events.popleft()
            if isinstance(event, Part):
                self._take(event.data)
            elif isinstance(event, End):
                self._take_end()
        if self.wrong is not None and self._body is not Body.WAIT:  # the rest of the body will not arrive
            if self._upstream is not None:
                self._upstream.abort()  # now: an answer must not pass before the session ends
            self._gone()
        self._pace_client()

    def _take(self, data: bytes) -> None:
        self._waiting -= len(data)
        if self._body is Body.PASS and self._to_server is not None:
            self._to_server.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        if self._copy is not None:
            self._copy(data)

    def _take_end(self) -> None:
        if self._body is Body.PASS and self._to_server is not None and self.answer is not None:
            if self._chunked:
                self._to_server.write(b"0\r\n\r\n")
            self._to_server.then(self.answer.sent)
        self._body = Body.WAIT
        self.over.set_result(None)

    # The server's side.

    async def connect(self, dialer: Dialer, to: Target, within_s: float) -> ConnectionTimes:
        """Connect to the server, unless its connection is open.

        Raises:
            TimeoutError, httpx2.TransportError: the server cannot be reached.
        """
        if self.connected:
            return _REUSED
        async with asyncio.timeout(within_s):
            opened = await dialer.open(to.host, to.port, tls=to.scheme == "https")
        self._upstream = upstream = Upstream(self.to_client.write, self._server_ended)
        self._server = StreamSocket(opened.stream, upstream, opened.encryption)
        upstream.attach(self._server)
        self._to_server = Outbox(self._server, self._pace_client)
        return ConnectionTimes(False, opened.dns_ms, opened.connect_ms, opened.tls_ms)

    def send(self, head: bytes, wrote: Callable[[float], None], method: str, *, recorded: bool) -> Answer:
        """Send the head of a request; the parts of its body follow as they arrive.

        Args:
            head: as the server gets it.
            wrote: gets the monotonic time at which the whole request was written.
            method: of the request.
            recorded: whether the answer is recorded.
        """
        if self._upstream is None or self._to_server is None:
            raise RuntimeError("not connected")
        self.answer = answer = self._upstream.begin(wrote, method, recorded=recorded)
        self._to_server.write(head)
        self._body = Body.PASS
        self._pump()
        return answer

    async def end_answer(self, answer: Answer) -> bool:
        """End a request whose answer has ended. Returns whether the connections can take another one."""
        reusable, self._reset = answer.reusable, answer.hides_break
        self.answer = None
        answer.close()
        connected = self.connected
        if not self.over.done():
            if self._upstream is not None:
                self._upstream.abort()  # the server would take the next request for the rest of this body
            self.discard()
            await asyncio.wait({self.over}, timeout=_LINGER_S)
        return reusable and self.over.done() and connected

    def _server_ended(self, _error: Exception | None) -> None:
        if self._body is Body.PASS:
            self.discard()
        self._pace_client()
        self._server_gone()

    # Both sides.

    def _pace_client(self) -> None:
        full = self.connected and self._to_server is not None and self._to_server.full
        much = self._waiting > _MAX_WAITING or len(self._events) > _MAX_EVENTS
        self._client.pause(reading=not full and not much)

    def _pace_server(self) -> None:
        if self._server is not None:
            self._server.pause(reading=not self.to_client.full)

    async def flush(self) -> None:
        """Send the remaining bytes, and wait a moment for the client to read them and to close its side."""
        if self._client.closed:
            return
        sent = asyncio.Event()
        self.to_client.then(lambda _: sent.set())
        await sent.wait()
        if self._reset:
            # The answer broke off, and only a reset makes this visible to the client.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        else:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            await asyncio.sleep(_LINGER_S)

    def close(self) -> None:
        """Close both connections now."""
        self._client.abort()
        if self._upstream is not None:
            self._upstream.abort()
