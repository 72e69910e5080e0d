"""The openai client's transport: connects, keeps idle connections, writes requests.

``connection.py`` reads responses, ``watchdog.py`` limits every wait, ``client.py`` builds requests and reads answers.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import TYPE_CHECKING

import httpx2
from aiohappyeyeballs import start_connection

from deltatap.http.connection import Connection, Response
from deltatap.http.watchdog import current

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# The key in an httpx2 response's extensions under which the transport puts its own `Response`.
RESPONSE = "deltatap_response"

# Most servers close an idle connection after a minute or more; a request sent at that moment is lost.
_IDLE_S = 15.0
_DNS_S = 60.0
# RFC 8305, section 5: wait this long for one address before trying the next.
_NEXT_ADDRESS_S = 0.25

_Origin = tuple[str, str, int]
_Addresses = list[tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]]


class _Body(httpx2.AsyncByteStream):
    """A response's body as the openai client reads it: error bodies and lists of models."""

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
    """Sends requests over HTTP/1.1, one connection for each request in flight.

    Args:
        clock: monotonic seconds, for the age of idle connections and of DNS answers.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # For each origin the idle connections, each with the time at which it became idle.
        self._idle: dict[_Origin, list[tuple[Connection, float]]] = {}
        # For each host and port the addresses, with the time at which they expire.
        self._addresses: dict[tuple[str, int], tuple[_Addresses, float]] = {}
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; return when the headers of its response arrive. The caller's watchdog limits the wait.

        Raises:
            httpx2.TransportError: the connection could not be opened, or it broke.
        """
        head = _head(request)
        connection = await self._connection(request.url)
        response = connection.send(b"%b\r\n%b" % (head, request.content))
        current.get().wrote(time.perf_counter())
        try:
            await response.head()
        except BaseException:
            response.close()
            raise
        # The openai client reads error bodies through `stream`. `client.py` reads `Response` directly, without layers.
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions={RESPONSE: response},
            request=request,
        )

    async def aclose(self) -> None:
        """Close the idle connections now; the others close with their responses."""
        self._closed = True
        for idle in self._idle.values():
            for connection, _ in idle:
                connection.abort()
        self._idle.clear()

    async def _connection(self, url: httpx2.URL) -> Connection:
        origin = url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
        idle = self._idle.setdefault(origin, [])
        while idle:
            connection, since = idle.pop()
            if connection.usable and self._clock() - since < _IDLE_S:
                return connection
            connection.abort()
        return await self._connect(origin)

    async def _connect(self, origin: _Origin) -> Connection:
        scheme, host, port = origin
        tls = self._context() if scheme == "https" else None
        try:
            addresses = await self._resolve(host, port)
            stream = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(lambda connection: self._release(origin, connection)),
                sock=stream,
                ssl=tls,
                server_hostname=None if tls is None else host,
            )
        except OSError as error:
            raise httpx2.ConnectError(f"{host}:{port}: {error}") from error
        return connection

    def _release(self, origin: _Origin, connection: Connection) -> None:
        if self._closed:
            connection.abort()
        else:
            self._idle.setdefault(origin, []).append((connection, self._clock()))

    async def _resolve(self, host: str, port: int) -> _Addresses:
        """Look a name up at most once a minute, since many connections open at once."""
        addresses, expires = self._addresses.get((host, port), ([], float("-inf")))
        if self._clock() >= expires:
            addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[assignment]
            self._addresses[host, port] = addresses, self._clock() + _DNS_S
        return addresses

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def _head(request: httpx2.Request) -> bytes:
    """The request line and the headers.

    Raises:
        httpx2.LocalProtocolError: a header contains a line break.
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
        raise httpx2.LocalProtocolError("a request header contains a line break")
    return head
