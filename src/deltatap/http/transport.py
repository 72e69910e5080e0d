"""The openai client's transport: connects, keeps idle connections, writes requests.

``connection.py`` reads responses, ``watchdog.py`` limits every wait, ``client.py`` builds requests and reads answers.
``proxy.py`` opens tunnels, ``tls.py`` says what a failed handshake means.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING

import httpx2
from aiohappyeyeballs import start_connection

from deltatap.endpoint import Tls
from deltatap.http.connection import Connection, Response
from deltatap.http.parser import RefusedError
from deltatap.http.proxy import ProxyError, address, open_tunnel
from deltatap.http.tls import TlsError, explained, tls_context
from deltatap.http.watchdog import current

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from deltatap.http.proxy import Proxy

# The key in an httpx2 response's extensions under which the transport puts its own `Response`.
RESPONSE = "deltatap_response"

# Most servers close an idle connection after a minute or more; a request sent at that moment is lost.
_IDLE_S = 15.0
_DNS_S = 60.0
# RFC 8305, section 5: wait this long for one address before trying the next.
_NEXT_ADDRESS_S = 0.25
_PROXY_AUTHENTICATION = 407
# For a response with an error status: how much of its body is kept, and how long reading it may take.
_MAX_ERROR_BYTES, _ERROR_S = 64 * 1024, 2.0
_MAX_LIST_BYTES = 64 * 2**20
_FIRST_ERROR = 300

_Origin = tuple[str, str, int]
_Addresses = list[tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]]


class _Body(httpx2.AsyncByteStream):
    """A response's body as the openai client reads it: lists of models."""

    def __init__(self, response: Response) -> None:
        self.response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces: list[bytes] = []
        size = 0

        def keep(data: bytes, _now: float) -> bool:
            nonlocal size
            pieces.append(data)
            size += len(data)
            return size > _MAX_LIST_BYTES

        await self.response.read(keep)
        yield b"".join(pieces)

    async def aclose(self) -> None:
        self.response.close()


class Http1Transport(httpx2.AsyncBaseTransport):
    """Sends requests over HTTP/1.1, one connection for each request in flight.

    Args:
        clock: monotonic seconds, for the age of idle connections and of DNS answers.
        proxy: the proxy on the way to every server; None if there is none.
        tls: the certificates. None: trust the system's authorities.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        proxy: Proxy | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._clock, self._proxy, self._tls = clock, proxy, tls
        # For each origin the idle connections, each with the time at which it became idle.
        self._idle: dict[_Origin, list[tuple[Connection, float]]] = {}
        # For each host and port the addresses, with the time at which they expire.
        self._addresses: dict[tuple[str, int], tuple[_Addresses, float]] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; return when the headers of its response arrive. The caller's watchdog limits the wait.

        Raises:
            RefusedError: the response has an error status.
            httpx2.TransportError: the connection could not be opened, or it broke.
        """
        # Without TLS, the proxy itself forwards the request (RFC 9112, section 3.2.2).
        forwarding = self._proxy if request.url.scheme == "http" else None
        head = _head(request, forwarding)
        connection, fresh = await self._connection(request.url)
        response = connection.send(b"%b\r\n%b" % (head, request.content))
        current.get().wrote(time.perf_counter())
        try:
            await response.head()
        except httpx2.TransportError as error:
            response.close()
            if (better := _explained(error, request.url, fresh=fresh and forwarding is None)) is None:
                raise
            raise better from error
        except BaseException:
            response.close()
            raise
        if forwarding is not None and response.status == _PROXY_AUTHENTICATION:
            response.close()
            raise forwarding.failure(response.status, "Proxy Authentication Required", _server(request.url))
        if response.status >= _FIRST_ERROR:
            try:
                body = await response.start(_MAX_ERROR_BYTES, _ERROR_S)
            finally:
                response.close()
            raise RefusedError(str(request.url), response.status, httpx2.Headers(response.headers), body)
        # The openai client reads lists of models through `stream`. `client.py` reads `Response` without layers.
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions={RESPONSE: response},
            request=request,
        )

    async def reach(self, url: httpx2.URL) -> None:
        """Connect to a server, and keep the connection for the first request.

        Raises:
            httpx2.TransportError: the connection could not be opened.
        """
        origin = _origin(url)
        self._release(origin, await self._connect(origin))

    async def aclose(self) -> None:
        """Close the idle connections now; the others close with their responses."""
        self._closed = True
        for idle in self._idle.values():
            for connection, _ in idle:
                connection.abort()
        self._idle.clear()

    async def _connection(self, url: httpx2.URL) -> tuple[Connection, bool]:
        """A connection to the URL's server, and whether it is new."""
        origin = _origin(url)
        idle = self._idle.setdefault(origin, [])
        while idle:
            connection, since = idle.pop()
            if connection.usable and self._clock() - since < _IDLE_S:
                return connection, False
            connection.abort()
        return await self._connect(origin), True

    async def _connect(self, origin: _Origin) -> Connection:
        scheme, host, port = origin
        tls = self._context() if scheme == "https" else None
        server = address(host, port)
        stream = await self._open(host, port, tunnel=tls is not None)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(lambda connection: self._release(origin, connection)),
                sock=stream,
                ssl=tls,
                server_hostname=None if tls is None else host,
            )
        except ssl.SSLError as error:
            raise explained(error, server) from error
        except OSError as error:
            if tls is None or not isinstance(error, ConnectionError):
                raise httpx2.ConnectError(f"{server}: {_why(error)}") from error
            closed = f"{server} closed the connection during the TLS handshake"
            raise TlsError(f"{closed}; it may require a client certificate, endpoint.tls.client_cert") from error
        return connection

    async def _open(self, host: str, port: int, *, tunnel: bool) -> socket.socket:
        """Open a connection to the server; if there is a proxy, to the proxy, or through it with `tunnel`."""
        proxy = self._proxy
        to = (host, port) if proxy is None else (proxy.host, proxy.port)
        try:
            stream = await start_connection(await self._resolve(*to), happy_eyeballs_delay=_NEXT_ADDRESS_S)
        except (OSError, UnicodeError) as error:  # a name that no host can have is a UnicodeError
            if proxy is None:
                raise httpx2.ConnectError(f"{address(*to)}: {_why(error)}") from error
            raise ProxyError(f"cannot connect to {proxy}: {_why(error)}; check endpoint.proxy") from error
        try:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if proxy is not None and tunnel:
                await open_tunnel(stream, proxy, address(host, port))
        except BaseException:
            stream.close()
            raise
        return stream

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
            self._tls = tls_context(Tls())
        return self._tls


def _origin(url: httpx2.URL) -> _Origin:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _server(url: httpx2.URL) -> str:
    return address(*_origin(url)[1:])


def _explained(error: httpx2.TransportError, url: httpx2.URL, *, fresh: bool) -> httpx2.TransportError | None:
    """The failure of a request that has no response, in other words if TLS may be the cause; else None.

    Args:
        error: the failure.
        url: of the request.
        fresh: whether nothing else was sent over the connection to the server.
    """
    # With TLS 1.3, a server that refuses the client's certificate says so only after the handshake.
    if isinstance(error.__cause__, ssl.SSLError):
        return explained(error.__cause__, _server(url))
    if not fresh or not isinstance(error, httpx2.RemoteProtocolError):
        return None
    if url.scheme == "http":
        return httpx2.RemoteProtocolError(f"{error}; if the server expects TLS, use https:// in endpoint.base_url")
    hint = "if the server requires a client certificate, check endpoint.tls.client_cert"
    return httpx2.RemoteProtocolError(f"{error}; {hint}")


def _why(error: OSError | UnicodeError) -> str:
    """The system's words; asyncio replaces them with the address."""
    number = getattr(error, "errno", None) or 0
    return os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error) or type(error).__name__


def _head(request: httpx2.Request, proxy: Proxy | None = None) -> bytes:
    """The request line and the headers.

    Args:
        request: the request.
        proxy: the proxy that forwards the request; None if it goes to the server itself.

    Raises:
        httpx2.LocalProtocolError: a header contains a line break.
    """
    target, headers = request.url.raw_path, request.headers.raw
    if proxy is not None:
        target = b"http://%b%b" % (request.url.netloc, target)
        if proxy.credentials is not None:
            headers = [*headers, (b"Proxy-Authorization", proxy.credentials.encode())]
    head = b"".join(
        (
            f"{request.method} ".encode(),
            target,
            b" HTTP/1.1\r\n",
            *(part for name, value in headers for part in (name, b": ", value, b"\r\n")),
        )
    )
    if head.count(b"\n") != len(headers) + 1 or head.count(b"\r") != head.count(b"\n"):
        raise httpx2.LocalProtocolError("a request header contains a line break")
    return head
