"""How a call reaches the socket and how long it may take: the openai client's transport, and a watchdog.

Knows how to connect, which connections are free, and which wait has been too long. Leaves HTTP to ``http1.py``, and to
``client.py`` what is sent and what comes back.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

import httpx2
from aiohappyeyeballs import start_connection

from deltatap.http.connection import Connection, Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from deltatap.config import Timeouts
    from deltatap.model import Mode

# Where a response of the transport has its own, which is read directly.
RESPONSE = "deltatap_response"

# The watchdog of the call that the running task makes.
current: ContextVar[Watchdog] = ContextVar("current")

# Servers close what is idle, mostly after a minute or more; a request that meets the closing is lost.
_IDLE_S = 15.0
_NAMES_S = 60.0
# RFC 8305, section 5: how long the next address waits for the one before.
_NEXT_ADDRESS_S = 0.25

_Addresses = list[tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]]


class _Body(httpx2.AsyncByteStream):
    """A response's body for the client, which reads errors, and lists of models."""

    def __init__(self, response: Response) -> None:
        self.response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces: list[bytes] = []

        def keep(data: bytes, _now: float) -> bool:
            pieces.append(data)
            return False

        await self.response.read(keep)
        yield b"".join(pieces)

    async def aclose(self) -> None:
        self.response.close()


class Http1Transport(httpx2.AsyncBaseTransport):
    """Sends the openai client's requests over connections of its own, as many as there are requests at once."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, str, int], list[Connection]] = {}
        self._addresses: dict[tuple[str, int], tuple[float, _Addresses]] = {}
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send; return as soon as the headers are there. Nothing here times out: the caller watches.

        Raises:
            httpx2.TransportError: no connection was to be had, or it broke off.
        """
        head = b"".join(
            (
                f"{request.method} ".encode(),
                request.url.raw_path,
                b" HTTP/1.1\r\n",
                *(part for name, value in request.headers.raw for part in (name, b": ", value, b"\r\n")),
            )
        )
        if head.count(b"\n") != len(request.headers.raw) + 1 or head.count(b"\r") != head.count(b"\n"):
            raise httpx2.LocalProtocolError("a header of the request holds a line's end")
        connection = await self._connection(request.url)
        response = connection.send(b"%b\r\n%b" % (head, request.content))
        current.get().wrote(time.perf_counter())
        try:
            await response.head()
        except BaseException:
            response.close()
            raise
        # The stream is for the client; ours is read from the response itself, with nothing between.
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions={RESPONSE: response},
            request=request,
        )

    async def _connection(self, url: httpx2.URL) -> Connection:
        port = url.port or (443 if url.scheme == "https" else 80)
        origin = url.scheme, url.host, port
        idle = self._idle.setdefault(origin, [])
        while idle:
            connection = idle.pop()
            if connection.usable and time.monotonic() - connection.idle_since < _IDLE_S:
                return connection
            connection.abort()

        def released(connection: Connection) -> None:
            if self._closed:
                connection.abort()
            else:
                idle.append(connection)

        loop = asyncio.get_running_loop()
        tls = self._context() if url.scheme == "https" else None
        try:
            stream = await start_connection(await self._resolve(url.host, port), happy_eyeballs_delay=_NEXT_ADDRESS_S)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            _, connection = await loop.create_connection(
                lambda: Connection(released),
                sock=stream,
                ssl=tls,
                server_hostname=url.host if tls is not None else None,
            )
        except OSError as error:
            raise httpx2.ConnectError(f"{url.host}:{port}: {error}") from error
        return connection

    async def _resolve(self, host: str, port: int) -> _Addresses:
        """A name's addresses; many connections are opened at once, so they are asked for once a minute."""
        until, addresses = self._addresses.get((host, port), (0.0, []))
        if time.monotonic() > until:
            addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[assignment]
            self._addresses[host, port] = time.monotonic() + _NAMES_S, addresses
        return addresses

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    async def aclose(self) -> None:
        """Close all connections that are idle; the others close with their responses."""
        self._closed = True
        for connection in [connection for idle in self._idle.values() for connection in idle]:
            connection.abort()
        self._idle.clear()


class Watchdog:
    """Knows when a call's request was written and when it last brought something; ends a call that waits too long.

    Re-arms when what is waited for changes, and when its timer fires: so a read costs one assignment.
    """

    def __init__(self, timeouts: Timeouts, started: float, mode: Mode) -> None:
        self.written: float | None = None
        self.last_read: float | None = None
        self.fired: str | None = None
        self._timeouts, self._started = timeouts, started
        # Of a whole answer the first byte comes when all of it has been generated.
        self._first_byte_s = timeouts.first_byte_s if mode == "stream" else timeouts.total_s
        self._handle: asyncio.Handle | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call needs a task to end")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._arm()
        return self

    def __exit__(self, *exc: object) -> None:
        self._disarm()

    def wrote(self, at: float) -> None:
        """The request was written to the socket."""
        self.written = at
        self._arm()

    def first_read(self, at: float) -> None:
        """The answer's first bytes are there; later reads set `last_read`."""
        self.last_read = at
        self._arm()

    def due(self) -> tuple[float, str]:
        """When, in monotonic seconds, the call has waited too long, and for what."""
        timeouts = self._timeouts
        if self.last_read is not None:
            stage = (self.last_read + timeouts.idle_s, "idle")
        elif self.written is not None:
            stage = (self.written + self._first_byte_s, "first_byte")
        else:
            stage = (self._started + timeouts.connect_s, "connect")
        return min(stage, (self._started + timeouts.total_s, "total"))

    def _arm(self) -> None:
        self._disarm()
        when, what = self.due()
        wait = when - time.perf_counter()
        if wait <= 0:
            self.fired = what
            self._task.cancel()
        else:
            self._handle = self._loop.call_later(wait, self._arm)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
