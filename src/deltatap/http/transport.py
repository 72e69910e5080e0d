"""Sends requests: keeps idle connections, writes heads and bodies.

``dial.py`` opens connections, ``connection.py`` reads responses, ``watchdog.py`` limits every wait, ``client.py``
builds requests and reads answers.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2

from deltatap.http.connection import Connection, Response
from deltatap.http.dial import Dialer
from deltatap.http.parser import RefusedError, header_map
from deltatap.http.proxy import address
from deltatap.http.stream_socket import StreamSocket
from deltatap.http.tls import explained
from deltatap.http.watchdog import current
from deltatap.model import ConnectionTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.http.proxy import Proxy

# Most servers close an idle connection after a minute or more; a request sent at that moment is lost.
_IDLE_S = 15.0
_PROXY_AUTHENTICATION = 407
# For a response with an error status: how much of its body is kept, and how long reading it may take.
_MAX_ERROR_BYTES, _ERROR_S = 64 * 1024, 2.0
_FIRST_ERROR = 300

_Origin = tuple[str, str, int]
_REUSED = ConnectionTimes(reused=True)


@dataclass(frozen=True, slots=True)
class Kind:
    """The data that all requests of one kind share.

    Attributes:
        url: where they go.
        origin: scheme, host and port of the server.
        head: the request line and the headers, without the length of the body.
    """

    url: httpx2.URL
    origin: _Origin
    head: bytes


class Http1Transport:
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

    def kind(self, request: httpx2.Request) -> Kind:
        """The kind of a request: what it shares with all requests that differ from it only in their bodies.

        Raises:
            httpx2.LocalProtocolError: a header contains a line break.
        """
        return Kind(request.url, _origin(request.url), _head(request, self._forwarding(request.url.scheme)))

    async def send(self, kind: Kind, content: bytes | None) -> Response:
        """Send a request; return when the headers of its response arrive. The caller's watchdog limits the wait.

        Args:
            kind: of the request.
            content: its body; None for a request that has none.

        Raises:
            RefusedError: the response has an error status.
            httpx2.TransportError: the connection could not be opened, or it broke.
        """
        forwarding = self._forwarding(kind.origin[0])
        connection, times = await self._connection(kind.origin)
        watchdog = current.get()
        watchdog.sending(times, time.perf_counter())
        length = b"" if content is None else b"Content-Length: %d\r\n" % len(content)
        response = connection.send(b"".join((kind.head, length, b"\r\n", content or b"")), watchdog.wrote)
        try:
            if watchdog.written is None:
                watchdog.uploading()
            await response.head()
        except httpx2.TransportError as error:
            response.close()
            if (better := _explained(error, kind, fresh=not times.reused and forwarding is None)) is None:
                raise
            raise better from error
        except BaseException:
            response.close()
            raise
        if forwarding is not None and response.status == _PROXY_AUTHENTICATION:
            response.close()
            raise forwarding.failure(response.status, "Proxy Authentication Required", _server(kind.origin))
        if response.status >= _FIRST_ERROR:
            try:
                refusal = await response.start(_MAX_ERROR_BYTES, _ERROR_S)
            finally:
                response.close()
            raise RefusedError(str(kind.url), response.status, header_map(response.headers), refusal)
        return response

    def _forwarding(self, scheme: str) -> Proxy | None:
        """The proxy that forwards requests itself, which it does without TLS (RFC 9112, section 3.2.2)."""
        return self._proxy if scheme == "http" else None

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

    async def _connection(self, origin: _Origin) -> tuple[Connection, ConnectionTimes]:
        """A connection to a server, and the times of the steps that opened it."""
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


def _server(origin: _Origin) -> str:
    return address(*origin[1:])


def _explained(error: httpx2.TransportError, kind: Kind, *, fresh: bool) -> httpx2.TransportError | None:
    """If TLS may have caused the failure of a request without a response: the failure, with an explanation; else None.

    Args:
        error: the failure.
        kind: of the request.
        fresh: whether nothing else was sent over the connection to the server.
    """
    # With TLS 1.3, a server that refuses the client's certificate says so only after the handshake.
    if isinstance(error.__cause__, ssl.SSLError):
        return explained(error.__cause__, _server(kind.origin))
    if not fresh or not isinstance(error, httpx2.RemoteProtocolError):
        return None
    if kind.url.scheme == "http":
        return httpx2.RemoteProtocolError(f"{error}; if the server expects TLS, use https:// in endpoint.base_url")
    hint = "if the server requires a client certificate, check endpoint.tls.client_cert"
    return httpx2.RemoteProtocolError(f"{error}; {hint}")


def _head(request: httpx2.Request, proxy: Proxy | None = None) -> bytes:
    """The request line and the headers, without the length of the body.

    Args:
        request: the request.
        proxy: the proxy that forwards the request; None if it goes to the server itself.

    Raises:
        httpx2.LocalProtocolError: a header contains a line break.
    """
    target = request.url.raw_path
    headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"content-length"]
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
