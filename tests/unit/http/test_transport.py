"""Connecting, the pool of connections and TLS, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from deltatap.config import Timeouts
from deltatap.http.transport import Http1Transport, Kind
from deltatap.http.watchdog import Watchdog, current
from tests.calls import chunk
from tests.unit.http.test_connection import CHUNKED, END, HELLO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    listening = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request of a connection with the client's port."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        await reader.readexactly(length)
        writer.write(CHUNKED + chunk(str(writer.get_extra_info("peername")[1]).encode()) + END)


async def ask(transport: Http1Transport, url: str, **headers: str) -> bytes:
    watchdog = Watchdog(Timeouts(), time.perf_counter(), "stream")
    current.set(watchdog)
    with watchdog:
        made = await transport.send(kind(transport, url, **headers), b"{}")
        assert watchdog.written is not None
        assert made.began is not None
        assert watchdog.written <= made.began.arrived
        body = bytearray()

        def keep(data: bytes, *_: float) -> bool:
            body.extend(data)
            return False

        try:
            await made.read(keep)
        finally:
            made.close()
    return bytes(body)


def kind(transport: Http1Transport, url: str, **headers: str) -> Kind:
    return transport.kind(httpx2.Request("POST", url, headers=headers))


@asynccontextmanager
async def pool(clock: Callable[[], float] = time.monotonic) -> AsyncIterator[Http1Transport]:
    """A transport that closes its connections even if the test fails; the server waits for that."""
    transport = Http1Transport(clock)
    try:
        yield transport
    finally:
        await transport.aclose()


def on_uvloop(work: Coroutine[None, None, None]) -> None:
    uvloop.run(work)


class Clock:
    """Virtual time, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pool_reuses_connections_and_opens_one_for_each_request_in_flight() -> None:
    async def talk() -> None:
        async with server(hello) as port, pool() as transport:
            url = f"http://127.0.0.1:{port}/"
            one = {await ask(transport, url) for _ in range(3)}
            assert len(one) == 1
            many = await asyncio.gather(*(ask(transport, url) for _ in range(5)))
            assert len(set(many)) == 5
            assert one < set(many)

    on_uvloop(talk())


def test_connection_idle_for_15_seconds_is_closed_not_reused() -> None:
    ended = asyncio.Event()

    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await hello(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            ended.set()
            writer.close()

    async def talk() -> None:
        clock = Clock()
        async with server(until_closed) as port, pool(clock) as transport:
            url = f"http://127.0.0.1:{port}/"
            first = await ask(transport, url)
            clock.now = 14.0
            assert await ask(transport, url) == first
            clock.now = 29.0
            assert not ended.is_set()
            assert await ask(transport, url) != first
            await asyncio.wait_for(ended.wait(), 20)

    on_uvloop(talk())


def test_closed_transport_closes_every_connection() -> None:
    ends: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(HELLO)
        with suppress(ConnectionResetError):
            await reader.read()
        ends.put_nowait(b"")
        writer.close()

    async def talk() -> None:
        async with server(answer) as port, pool() as transport:
            url = f"http://127.0.0.1:{port}/"
            current.set(Watchdog(Timeouts(), time.perf_counter(), "stream"))
            with current.get():
                open_ = await transport.send(kind(transport, url), b"{}")
                await ask(transport, url)
                await transport.aclose()
                await asyncio.wait_for(ends.get(), 5)
                open_.close()
                await asyncio.wait_for(ends.get(), 5)

    on_uvloop(talk())


def test_host_name_is_resolved_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + END)
        writer.close()

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        lookups: list[object] = []

        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            lookups.append(host)
            await asyncio.sleep(0)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        clock = Clock()
        async with server(close) as port, pool(clock) as transport:
            url = f"http://somewhere.test:{port}/"
            for _ in range(3):
                await ask(transport, url)
            clock.now = 59.0
            await ask(transport, url)
            assert lookups == ["somewhere.test"]
            clock.now = 60.0
            await ask(transport, url)
            assert len(lookups) == 2

    asyncio.run(talk())


def test_connection_that_the_server_closed_is_not_reused() -> None:
    ended = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(HELLO)
        writer.write_eof()
        assert await reader.read() == b"", "the client saw the end and closed the connection"
        ended.set()
        writer.close()

    async def talk() -> None:
        async with server(once) as port, pool() as transport:
            url = f"http://127.0.0.1:{port}/"
            assert await ask(transport, url) == b"hello world"
            await ended.wait()
            assert await ask(transport, url) == b"hello world"

    on_uvloop(talk())


def test_tls_certificates_and_host_names_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)

    async def talk() -> None:
        async with server(hello, served) as port:
            distrusting = Http1Transport()
            with pytest.raises(httpx2.ConnectError, match="is not signed by a trusted authority"):
                await ask(distrusting, f"https://localhost:{port}/")
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            trusting = Http1Transport()
            assert len({await ask(trusting, f"https://localhost:{port}/") for _ in range(2)}) == 1
            with pytest.raises(httpx2.ConnectError, match=r"127\.0\.0\.1"):
                await ask(trusting, f"https://127.0.0.1:{port}/")
            await trusting.aclose()

    on_uvloop(talk())


def test_connection_error_names_host_and_port() -> None:
    async def talk() -> None:
        async with server(hello) as port:
            pass
        with pytest.raises(httpx2.ConnectError, match=rf"127\.0\.0\.1:{port}: Connection refused"):
            await ask(Http1Transport(), f"http://127.0.0.1:{port}/")
        with pytest.raises(httpx2.ConnectError, match=r"nowhere\.invalid:80: "):
            await ask(Http1Transport(), "http://nowhere.invalid/")

    on_uvloop(talk())


def test_header_with_a_line_break_is_not_sent() -> None:
    async def talk() -> None:
        with pytest.raises(httpx2.LocalProtocolError):
            await ask(Http1Transport(), "http://127.0.0.1:1/", key="a\r\nb: c")

    on_uvloop(talk())


def test_cancelled_request_closes_its_connection() -> None:
    requested, closed = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        requested.set()
        assert await reader.read() == b""
        closed.set()
        writer.close()

    async def talk() -> None:
        async with server(silent) as port:
            asking = asyncio.ensure_future(ask(Http1Transport(), f"http://127.0.0.1:{port}/"))
            await asyncio.wait_for(requested.wait(), 20)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.wait_for(closed.wait(), 20)

    on_uvloop(talk())
