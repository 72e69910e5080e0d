"""Framing by hand-fed bytes; connecting, the pool and TLS over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import time
import zlib
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import httpx2
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from deltatap.config import Timeouts
from deltatap.http.connection import Connection, Response
from deltatap.http.transport import RESPONSE, Http1Transport, Watchdog, current

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


END = chunk(b"")
HELLO = CHUNKED + chunk(b"hello") + chunk(b" world") + END


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and only says that it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closing = b"", False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


class Exchange:
    """A request and its response on a connection without a socket."""

    def __init__(self) -> None:
        self.wire, self.free = Wire(), list[Connection]()
        self.connection = Connection(self.free.append)
        self.connection.connection_made(self.wire)
        self.response = self.connection.send(b"POST / HTTP/1.1\r\n\r\n")
        self.body = b""

    def got(self, data: bytes, _now: float) -> bool:
        self.body += data
        return False

    async def whole(self, *reads: bytes, lost: Exception | None = None, eof: bool = False) -> Response:
        """All reads come before anybody waits, then the connection's end if it is to end."""
        for data in reads:
            self.connection.data_received(data)
        if eof or lost is not None:
            self.connection.connection_lost(lost)
        await self.response.head()
        await self.response.read(self.got)
        return self.response


def answered(*reads: bytes, lost: Exception | None = None, eof: bool = False) -> tuple[Response, bytes]:
    async def talk() -> tuple[Response, bytes]:
        exchange = Exchange()
        return await exchange.whole(*reads, lost=lost, eof=eof), exchange.body

    return asyncio.run(talk())


@given(st.lists(st.integers(1, len(HELLO) - 1), max_size=8))
def test_the_body_is_the_same_wherever_the_reads_cut(cuts: list[int]) -> None:
    edges = sorted({0, len(HELLO), *cuts})
    response, body = answered(*(HELLO[a:b] for a, b in pairwise(edges)))
    assert (response.status, body, response.complete, response.keep_alive) == (200, b"hello world", True, True)


def test_a_read_is_handed_over_once_with_its_time_before_anybody_else_runs() -> None:
    async def talk() -> None:
        exchange = Exchange()
        reads: list[tuple[bytes, float]] = []

        def keep(data: bytes, now: float) -> bool:
            reads.append((data, now))
            return False

        exchange.connection.data_received(CHUNKED + chunk(b"a") + chunk(b"b"))
        head_at = time.perf_counter()
        await exchange.response.head()
        assert exchange.response.began <= head_at
        reading = asyncio.ensure_future(exchange.response.read(keep))
        await asyncio.sleep(0)
        before = time.perf_counter()
        exchange.connection.data_received(chunk(b"c") + chunk(b"d"))
        assert [data for data, _ in reads] == [b"ab", b"cd"], "in the moment that it comes"
        assert reads[0][1] == exchange.response.began
        assert before <= reads[1][1] <= time.perf_counter()
        exchange.connection.data_received(END)
        await reading

    asyncio.run(talk())


@pytest.mark.parametrize(
    ("head", "body", "alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", b"hello", False),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"hi", True),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"hi", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", b"hi", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    ],
)
def test_heads_and_lengths(head: bytes, body: bytes, *, alive: bool) -> None:
    response, came = answered(head + body)
    assert (came, response.complete, response.keep_alive) == (body, True, alive)
    assert not any(name == b"Link" for name, _ in response.headers)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    response, body = answered(b"HTTP/1.1 200 OK\r\n\r\nall", b" of it", eof=True)
    assert (body, response.complete, response.keep_alive) == (b"all of it", True, False)


@pytest.mark.parametrize("name", [b"gzip", b"deflate"])
def test_what_a_server_compresses_unasked_is_undone(name: bytes) -> None:
    packed = gzip.compress(b"hello") if name == b"gzip" else zlib.compress(b"hello")
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (name, len(packed))
    response, body = answered(*(bytes([byte]) for byte in head + packed))
    assert body == b"hello"
    assert [name for name, _ in response.headers] == [b"Content-Length"]


@pytest.mark.parametrize(
    ("reads", "kept", "said"),
    [
        ([], b"", "closed the connection without an answer"),
        ([b"HTTP/1.1 200 OK\r\n"], b"", "closed the connection without an answer"),
        ([CHUNKED + chunk(b"hel")], b"hel", "closed the connection in the middle of its answer"),
        ([CHUNKED + b"10\r\nhel"], b"hel", "closed the connection in the middle of its answer"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel"], b"hel", "in the middle of its answer"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], b"", "it is no HTTP"),
        ([CHUNKED + chunk(b"hel") + b"zz\r\n"], b"hel", "it is no HTTP"),
        ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"], b"", "it is no HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n"], b"", "content-encoding br was not asked for"),
        (
            [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"],
            b"",
            "content-encoding is broken",
        ),
        ([b"HTTP/1.1 200 OK\r\n" + b"a: %b\r\n" % (b"x" * 1000) * 300], b"", "headers exceed 262,144 bytes"),
    ],
)
def test_what_breaks_off_keeps_what_had_come(reads: list[bytes], kept: bytes, said: str) -> None:
    async def talk() -> bytes:
        exchange = Exchange()
        with pytest.raises(httpx2.TransportError, match=said):
            await exchange.whole(*reads, eof=True)
        assert not exchange.response.keep_alive
        return exchange.body

    assert asyncio.run(talk()) == kept


def test_a_reset_is_told_as_it_was() -> None:
    with pytest.raises(httpx2.ReadError, match="reset by peer"):
        answered(CHUNKED, lost=ConnectionResetError(104, "Connection reset by peer"))


def test_who_has_enough_is_not_kept_waiting_and_can_read_on() -> None:
    async def talk() -> None:
        exchange = Exchange()
        exchange.connection.data_received(CHUNKED + chunk(b"enough"))
        await exchange.response.read(lambda data, _: data == b"enough")
        assert not exchange.response.complete
        exchange.connection.data_received(chunk(b"more") + END)
        await exchange.response.read(exchange.got)
        assert (exchange.body, exchange.response.complete) == (b"more", True)

    asyncio.run(talk())


def test_the_readers_own_error_is_its_own_and_closes_the_connection() -> None:
    async def talk() -> None:
        exchange = Exchange()
        exchange.connection.data_received(CHUNKED)

        def refuse(*_: object) -> bool:
            raise ValueError("too much")

        reading = asyncio.ensure_future(exchange.response.read(refuse))
        await asyncio.sleep(0)
        exchange.connection.data_received(chunk(b"x"))
        with pytest.raises(ValueError, match="too much"):
            await reading
        assert exchange.wire.closing

    asyncio.run(talk())


@pytest.mark.parametrize(
    ("reads", "reused"),
    [
        ([HELLO], True),
        ([HELLO, b"HTTP/1.1 200 OK\r\n\r\n"], False),
        ([HELLO + HELLO], False),
        ([HELLO[:-5]], False),
        ([HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)], False),
    ],
)
def test_a_connection_is_used_again_only_after_a_whole_answer_and_nothing_more(
    reads: list[bytes], *, reused: bool
) -> None:
    async def talk() -> None:
        exchange = Exchange()
        for data in reads:
            exchange.connection.data_received(data)
        await exchange.response.head()
        exchange.response.close()
        exchange.response.close()
        assert exchange.free == ([exchange.connection] if reused else [])
        assert exchange.wire.closing is not reused
        if reused:
            exchange.connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            assert exchange.wire.closing, "an answer to nothing"
            with pytest.raises(httpx2.WriteError):
                exchange.connection.send(b"")

    asyncio.run(talk())


@asynccontextmanager
async def server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    listening = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request of a connection with the connection's own port."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        await reader.readexactly(length)
        writer.write(CHUNKED + chunk(str(writer.get_extra_info("peername")[1]).encode()) + END)


async def ask(transport: Http1Transport, url: str, **headers: str) -> bytes:
    watchdog = Watchdog(Timeouts(), time.perf_counter(), "stream")
    current.set(watchdog)
    with watchdog:
        made = await transport.handle_async_request(httpx2.Request("POST", url, headers=headers, content=b"{}"))
        assert watchdog.written is not None
        assert watchdog.written <= made.extensions[RESPONSE].began
        body = await made.aread()
        await made.aclose()
    return body


def on_uvloop(work: Coroutine[None, None, None]) -> None:
    uvloop.run(work)


def test_connections_are_used_again_and_as_many_as_there_are_requests_at_once() -> None:
    async def talk() -> None:
        async with server(hello) as port:
            transport, url = Http1Transport(), f"http://127.0.0.1:{port}/"
            one = {await ask(transport, url) for _ in range(3)}
            assert len(one) == 1
            many = await asyncio.gather(*(ask(transport, url) for _ in range(5)))
            assert len(set(many)) == 5
            assert one < set(many)
            await transport.aclose()

    on_uvloop(talk())


def test_a_connection_that_the_server_closed_meanwhile_is_not_used() -> None:
    ended = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(HELLO)
        writer.write_eof()
        assert await reader.read() == b"", "the client has seen the end, and closed it, too"
        ended.set()
        writer.close()

    async def talk() -> None:
        async with server(once) as port:
            transport, url = Http1Transport(), f"http://127.0.0.1:{port}/"
            assert await ask(transport, url) == b"hello world"
            await ended.wait()
            assert await ask(transport, url) == b"hello world"
            await transport.aclose()

    on_uvloop(talk())


def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
            strict = Http1Transport()
            with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
                await ask(strict, f"https://localhost:{port}/")
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            knowing = Http1Transport()
            assert len({await ask(knowing, f"https://localhost:{port}/") for _ in range(2)}) == 1
            with pytest.raises(httpx2.ConnectError, match=r"127\.0\.0\.1"):
                await ask(knowing, f"https://127.0.0.1:{port}/")
            await knowing.aclose()

    on_uvloop(talk())


def test_what_cannot_be_reached_is_named() -> None:
    async def talk() -> None:
        async with server(hello) as port:
            pass
        with pytest.raises(httpx2.ConnectError, match=rf"127\.0\.0\.1:{port}: .*111"):
            await ask(Http1Transport(), f"http://127.0.0.1:{port}/")
        with pytest.raises(httpx2.ConnectError, match=r"nowhere\.invalid:80: "):
            await ask(Http1Transport(), "http://nowhere.invalid/")

    on_uvloop(talk())


def test_a_header_with_a_line_end_is_not_sent() -> None:
    async def talk() -> None:
        with pytest.raises(httpx2.LocalProtocolError):
            await ask(Http1Transport(), "http://127.0.0.1:1/", key="a\r\nb: c")

    on_uvloop(talk())


def test_who_stops_waiting_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        assert await reader.read() == b""
        closed.set()
        writer.close()

    async def talk() -> None:
        async with server(silent) as port:
            asking = asyncio.ensure_future(ask(Http1Transport(), f"http://127.0.0.1:{port}/"))
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.wait_for(closed.wait(), 20)

    on_uvloop(talk())
