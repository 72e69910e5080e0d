"""The openai client's transport: keeps idle connections, writes requests.

``dial.py`` opens connections, ``connection.py`` reads responses, ``watchdog.py`` limits every wait, ``client.py``
builds requests and reads answers.
"""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

import httpx2

from deltatap.http.connection import Connection, Response
from deltatap.http.dial import Dialer
from deltatap.http.parser import RefusedError
from deltatap.http.proxy import address
from deltatap.http.stream_socket import StreamSocket
from deltatap.http.tls import explained
from deltatap.http.watchdog import current
from deltatap.model import ConnectionTimes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from deltatap.http.proxy import Proxy

# The key in an httpx2 response's extensions under which the transport puts its own `Response`.
RESPONSE = "deltatap_response"

# Most servers close an idle connection after a minute or more; a request sent at that moment is lost.
_IDLE_S = 15.0
_PROXY_AUTHENTICATION = 407
# For a response with an error status: how much of its body is kept, and how long reading it may take.
_MAX_ERROR_BYTES, _ERROR_S = 64 * 1024, 2.0
_MAX_LIST_BYTES = 64 * 2**20
_FIRST_ERROR = 300

_Origin = tuple[str, str, int]
_REUSED = ConnectionTimes(reused=True)


class _Body(httpx2.AsyncByteStream):
    """A response's body as the openai client reads it: lists of models."""

    def __init__(self, response: Response) -> None:
        self.response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces: list[bytes] = []
        size = 0

        def keep(data: bytes, *_: float) -> bool:
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
        self._clock, self._proxy = clock, proxy
        self._dialer = Dialer(clock, proxy, tls)
        # For each origin the idle connections, each with the time at which it became idle.
        self._idle: dict[_Origin, list[tuple[Connection, float]]] = {}
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
        connection, times = await self._connection(request.url)
        watchdog = current.get()
        watchdog.sending(times, time.perf_counter())
        response = connection.send(b"%b\r\n%b" % (head, request.content), watchdog.wrote)
        try:
            if watchdog.written is None:
                watchdog.uploading()
            await response.head()
        except httpx2.TransportError as error:
            response.close()
            if (better := _explained(error, request.url, fresh=not times.reused and forwarding is None)) is None:
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
        connection, _ = await self._connect(origin)
        self._release(origin, connection)

    async def aclose(self) -> None:
        """Close the idle connections now; the others close with their responses."""
        self._closed = True
        for idle in self._idle.values():
            for connection, _ in idle:
                connection.abort()
        self._idle.clear()

    async def _connection(self, url: httpx2.URL) -> tuple[Connection, ConnectionTimes]:
        """A connection to the URL's server, and what opening it took."""
        origin = _origin(url)
        idle = self._idle.setdefault(origin, [])
        while idle:
            connection, since = idle.pop()
            if connection.usable and self._clock() - since < _IDLE_S:
                return connection, _REUSED
            connection.abort()
        return await self._connect(origin)

    async def _connect(self, origin: _Origin) -> tuple[Connection, ConnectionTimes]:
        scheme, host, port = origin
        opened = await self._dialer.open(host, port, tls=scheme == "https")
        connection = Connection(lambda connection: self._release(origin, connection))
        connection.attach(StreamSocket(opened.stream, connection, opened.encryption))
        return connection, ConnectionTimes(False, opened.dns_ms, opened.connect_ms, opened.tls_ms)

    def _release(self, origin: _Origin, connection: Connection) -> None:
        if self._closed:
            connection.abort()
        else:
            self._idle.setdefault(origin, []).append((connection, self._clock()))


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
