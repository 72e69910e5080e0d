"""Opens connections: looks the name up, connects, asks the proxy for a tunnel, makes the TLS handshake; times each.

``proxy.py`` opens tunnels, ``tls.py`` says what a failed handshake means, ``transport.py`` keeps the connections.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2
from aiohappyeyeballs import start_connection

from deltatap.endpoint import Tls
from deltatap.http.encryption import Encryption
from deltatap.http.proxy import ProxyError, address, open_tunnel
from deltatap.http.stream_socket import keep_stamps_on, prepare
from deltatap.http.tls import TlsError, explained, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.http.proxy import Proxy

_DNS_S = 60.0
# RFC 8305, section 5: wait this long for one address before trying the next.
_NEXT_ADDRESS_S = 0.25
_READ = 64 * 1024

_Addresses = list[tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]]


@dataclass(frozen=True, slots=True)
class Opened:
    """A connected socket, and the times of the steps that opened it.

    Attributes:
        stream: the socket; does not block.
        encryption: after its handshake; None without TLS.
        dns_ms: the lookup of the name: of the server, or of the proxy. Almost 0 if the addresses were known.
        connect_ms: until the server, or the proxy and its tunnel, accepted the connection.
        tls_ms: the handshake; None without TLS.
    """

    stream: socket.socket
    encryption: Encryption | None
    dns_ms: float
    connect_ms: float
    tls_ms: float | None


class Dialer:
    """Opens connections to servers.

    Args:
        clock: monotonic seconds, for the age of DNS answers.
        proxy: the proxy on the way to every server; None if there is none.
        tls: the certificates. None: trust the system's authorities.
    """

    def __init__(self, clock: Callable[[], float], proxy: Proxy | None, tls: ssl.SSLContext | None) -> None:
        self._clock, self._proxy, self._tls = clock, proxy, tls
        keep_stamps_on()
        # For each host and port the addresses, with the time at which they expire.
        self._addresses: dict[tuple[str, int], tuple[_Addresses, float]] = {}

    async def open(self, host: str, port: int, *, tls: bool) -> Opened:
        """Connect to a server.

        Raises:
            ProxyError: the proxy refused or failed.
            TlsError: the TLS handshake failed; the message says what to do.
            httpx2.ConnectError: the connection could not be opened.
        """
        context = self._context() if tls else None  # it may read files
        started = time.perf_counter()
        stream, looked_up = await self._connect(host, port, tunnel=tls)
        connected = time.perf_counter()
        encryption = None
        try:
            if context is not None:
                encryption = Encryption(context, host)
                await _handshake(stream, encryption, address(host, port))
        except BaseException:
            stream.close()
            raise
        tls_ms = None if encryption is None else (time.perf_counter() - connected) * 1e3
        return Opened(stream, encryption, (looked_up - started) * 1e3, (connected - looked_up) * 1e3, tls_ms)

    async def _connect(self, host: str, port: int, *, tunnel: bool) -> tuple[socket.socket, float]:
        """Connect to the server; if there is a proxy, to the proxy, or through it with `tunnel`.

        Returns:
            The socket, and when the addresses were known, in monotonic seconds.
        """
        proxy = self._proxy
        to = (host, port) if proxy is None else (proxy.host, proxy.port)
        try:
            addresses = await self._resolve(*to)
            looked_up = time.perf_counter()
            stream = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S)
        except (OSError, UnicodeError) as error:  # a name that no host can have is a UnicodeError
            self._addresses.pop(to, None)  # the server may have moved
            if proxy is None:
                raise httpx2.ConnectError(f"{address(*to)}: {_why(error)}") from error
            raise ProxyError(f"cannot connect to {proxy}: {_why(error)}; check endpoint.proxy") from error
        try:
            prepare(stream)
            if proxy is not None and tunnel:
                await open_tunnel(stream, proxy, address(host, port))
        except BaseException:
            stream.close()
            raise
        return stream, looked_up

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


async def _handshake(stream: socket.socket, encryption: Encryption, server: str) -> None:
    """Make the TLS handshake.

    Raises:
        TlsError: it failed.
    """
    loop = asyncio.get_running_loop()
    data = b""
    try:
        while True:
            try:
                done = encryption.handshake(data)
            except ssl.SSLError:
                with suppress(OSError):  # an alert; the server may be gone, but the failure explains more
                    await loop.sock_sendall(stream, encryption.outgoing())
                raise
            if encryption.pending:
                await loop.sock_sendall(stream, encryption.outgoing())
            if done:
                return
            data = await loop.sock_recv(stream, _READ)
            if not data:
                raise ConnectionResetError
    except ssl.SSLError as error:
        raise explained(error, server) from error
    except ConnectionError as error:
        closed = f"{server} closed the connection during the TLS handshake"
        raise TlsError(f"{closed}; it may require a client certificate, endpoint.tls.client_cert") from error
    except OSError as error:
        raise httpx2.ConnectError(f"{server}: {_why(error)}") from error


def _why(error: OSError | UnicodeError) -> str:
    """The system's error message; asyncio replaces it with the address."""
    number = getattr(error, "errno", None) or 0
    return os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error) or type(error).__name__
