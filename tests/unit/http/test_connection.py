"""Delivery on a connection, without a socket."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import TYPE_CHECKING

import httpx2
import pytest

from deltatap.http.connection import Connection
from deltatap.http.parser import ResponseParser
from tests.calls import chunk

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = chunk(b"")
HELLO = CHUNKED + chunk(b"hello") + chunk(b" world") + END


class FakeStream:
    """Takes every request at once. Records whether the connection was closed."""

    sending = False

    def __init__(self) -> None:
        self.closed = False

    def write(self, data: bytes, taken: Callable[[float], None]) -> None:
        assert data
        taken(time.perf_counter())

    def abort(self) -> None:
        self.closed = True


class Exchange:
    """A request and its response on a connection without a socket."""

    def __init__(self) -> None:
        self.stream, self.pool, self.written = FakeStream(), list[Connection](), list[float]()
        self.connection = Connection(self.pool.append)
        self.connection.attach(self.stream)
        self.response = self.connection.send(b"POST / HTTP/1.1\r\n\r\n", self.written.append)
        self.body = b""

    def receive(self, data: bytes) -> None:
        self.connection.received(data, 0, time.perf_counter())

    def keep(self, data: bytes, *_: float) -> bool:
        self.body += data
        return False

    async def read(self) -> None:
        await self.response.head()
        await self.response.read(self.keep)


def test_nothing_arrives_before_the_request_begins() -> None:
    class Slow(FakeStream):
        """Takes no request."""

        def write(self, data: bytes, taken: Callable[[float], None]) -> None:
            """Take nothing: the upload goes on."""

    began = time.perf_counter()
    connection, stream, written, seen = Connection(lambda _: None), Slow(), list[float](), list[float]()
    connection.attach(stream)
    response = connection.send(b"POST / HTTP/1.1\r\n\r\n", written.append)
    # The server refused the connection a second ago, but the event loop was late.
    connection.received(HELLO, time.time_ns() - 1_000_000_000, time.perf_counter())

    def keep(_: bytes, at: float, now: float) -> bool:
        seen.extend((at, now))
        return False

    asyncio.run(response.read(keep))
    assert response.clock.kernel
    assert [began, *written, *seen] == sorted([began, *written, *seen])
    assert len(written) == 1


def test_each_read_is_delivered_once_with_its_time_inside_the_callback() -> None:
    async def talk() -> None:
        exchange = Exchange()
        reads: list[tuple[bytes, float]] = []

        def keep(data: bytes, at: float, now: float) -> bool:
            assert at == now, "there is no stamp"
            reads.append((data, at))
            return False

        exchange.receive(CHUNKED + chunk(b"a") + chunk(b"b"))
        head_at = time.perf_counter()
        await exchange.response.head()
        began = exchange.response.began
        assert began is not None
        assert began.arrived == began.read <= head_at
        reading = asyncio.ensure_future(exchange.response.read(keep))
        await asyncio.sleep(0)
        before = time.perf_counter()
        exchange.receive(chunk(b"c") + chunk(b"d"))
        assert [data for data, _ in reads] == [b"ab", b"cd"]
        assert reads[0][1] == began.read
        assert before <= reads[1][1] <= time.perf_counter()
        exchange.receive(END)
        await reading

    asyncio.run(talk())


@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.parametrize(
    ("reads", "kept", "message"),
    [
        ([], b"", "the server closed the connection before it responded"),
        ([CHUNKED + chunk(b"hel")], b"hel", "the server closed the connection in the middle of the response"),
        ([CHUNKED + chunk(b"hel") + b"zz\r\n"], b"hel", "not valid HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n\x0ba"], b"", "content-encoding br was not requested"),
        ([b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8babc"], b"", "content-encoding is broken"),
    ],
)
def test_failed_response_delivers_what_arrived_and_closes_the_connection(
    reads: list[bytes], kept: bytes, message: str, *, waiting: bool
) -> None:
    async def talk() -> None:
        exchange = Exchange()
        reading = asyncio.ensure_future(exchange.read())
        if waiting:
            await asyncio.sleep(0)
        for data in reads:
            exchange.receive(data)
            if waiting:
                await asyncio.sleep(0)
        assert exchange.stream.closed is ("not valid HTTP" in message), "at once"
        exchange.connection.lost(None)
        with pytest.raises(httpx2.TransportError, match=message):
            await reading
        assert exchange.body == kept
        exchange.response.close()
        assert exchange.pool == []

    asyncio.run(talk())


def test_reset_fails_with_the_systems_message() -> None:
    async def talk() -> None:
        exchange = Exchange()
        exchange.receive(CHUNKED)
        exchange.connection.lost(ConnectionResetError(104, "Connection reset by peer"))
        with pytest.raises(httpx2.ReadError, match="reset by peer"):
            await exchange.read()

    asyncio.run(talk())


def test_body_without_a_length_ends_with_the_connection() -> None:
    async def talk() -> None:
        exchange = Exchange()
        exchange.receive(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        reading = asyncio.ensure_future(exchange.read())
        await asyncio.sleep(0)
        assert not reading.done()
        exchange.connection.lost(None)
        await reading
        assert (exchange.body, exchange.response.complete) == (b"all of it", True)

    asyncio.run(talk())


@pytest.mark.parametrize("waiting", [True, False])
def test_reader_can_stop_and_resume(*, waiting: bool) -> None:
    async def talk() -> None:
        exchange = Exchange()
        exchange.receive(CHUNKED)
        stopping = exchange.response.read(lambda data, *_: data == b"enough")
        if waiting:
            reading = asyncio.ensure_future(stopping)
            await asyncio.sleep(0)
            exchange.receive(chunk(b"enough"))
            exchange.receive(chunk(b"more"))
            await reading
        else:
            exchange.receive(chunk(b"enough"))
            exchange.receive(chunk(b"more"))
            await stopping
        assert not exchange.response.complete
        exchange.receive(END)
        await exchange.response.read(exchange.keep)
        assert (exchange.body, exchange.response.complete) == (b"more", True)

    asyncio.run(talk())


def test_error_in_the_sink_is_raised_and_closes_the_connection() -> None:
    async def talk() -> None:
        exchange = Exchange()
        exchange.receive(CHUNKED)

        def refuse(*_: object) -> bool:
            raise ValueError("too much")

        reading = asyncio.ensure_future(exchange.response.read(refuse))
        await asyncio.sleep(0)
        exchange.receive(chunk(b"x"))
        with pytest.raises(ValueError, match="too much"):
            await reading
        assert exchange.stream.closed

    asyncio.run(talk())


@pytest.mark.parametrize(
    ("reads", "reused"),
    [
        ([HELLO], True),
        ([HELLO, b"HTTP/1.1 200 OK\r\n\r\n"], False),
        ([HELLO + HELLO], False),
        ([HELLO + b"HTTP/1"], False),
        ([HELLO[:-5]], False),
        ([HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)], False),
    ],
)
def test_connection_is_reused_only_after_a_complete_response_without_extra_bytes(
    reads: list[bytes], *, reused: bool
) -> None:
    async def talk() -> None:
        exchange = Exchange()
        for data in reads:
            exchange.receive(data)
        await exchange.response.head()
        assert not exchange.connection.usable, "one request at a time"
        exchange.response.close()
        exchange.response.close()
        assert exchange.pool == ([exchange.connection] if reused else [])
        assert exchange.stream.closed is not reused
        if reused:
            exchange.receive(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            assert exchange.stream.closed, "no request was waiting for this response"
            with pytest.raises(httpx2.WriteError):
                exchange.connection.send(b"", print)

    asyncio.run(talk())


def test_response_is_freed_without_a_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parser(ResponseParser):
        """Has weak references, which slots exclude."""

    async def exchange_once() -> weakref.ref[object]:
        exchange = Exchange()
        exchange.receive(HELLO)
        await exchange.read()
        exchange.response.close()
        return weakref.ref(exchange.response._parser)

    monkeypatch.setattr("deltatap.http.connection.ResponseParser", Parser)
    gc.disable()
    try:
        assert asyncio.run(exchange_once())() is None
    finally:
        gc.enable()
