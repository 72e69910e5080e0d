"""Reading and writing real sockets: what uvloop's readers make difficult, plain and with TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import uvloop

from deltatap.endpoint import Tls
from deltatap.http.clock import wall_offset
from deltatap.http.encryption import Encryption
from deltatap.http.stream_socket import StreamSocket, keep_stamps_on, prepare
from deltatap.http.tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tests.networks import Authority

    Run = Callable[[Coroutine[None, None, None]], None]

LOOPS = [asyncio.run, uvloop.run]
RESET = struct.pack("ii", 1, 0)


class Peer:
    """The server's end, which the test moves by itself. Its sockets block."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext | None) -> None:
        self.socket = connected
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = None if context is None else context.wrap_bio(self._in, self._out, server_side=True)

    def shake_hands(self, client: Encryption) -> None:
        assert self.tls is not None
        done = False
        while not done:
            done = client.handshake(self._out.read())
            self._in.write(client.outgoing())
            with suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()

    def send(self, data: bytes) -> None:
        if self.tls is None:
            self.socket.sendall(data)
            return
        self.tls.write(data)
        self.socket.sendall(self._out.read())

    def receive(self) -> bytes:
        """What one read returns; empty at the end."""
        data = self.socket.recv(2**16)
        if self.tls is None:
            return data
        self._in.write(data)
        found = b""
        with suppress(ssl.SSLWantReadError):
            while data and (record := self.tls.read(2**16)):
                found += record
        return found if found or not data else self.receive()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.socket.close()


class Ends:
    """Both ends of a connection, and what the client's end was told."""

    def __init__(self, contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            connected, _ = listening.accept()
        keep_stamps_on()
        prepare(client)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        encryption = None if contexts is None else Encryption(contexts[1], "localhost")
        self.peer = Peer(connected, None if contexts is None else contexts[0])
        if encryption is not None:
            self.peer.shake_hands(encryption)
        self.fd = client.fileno()
        self.reads: list[tuple[bytes, int, float]] = []
        self.ends: list[Exception | None] = []
        self.faults: list[BaseException] = []
        self.taken: list[float] = []
        self.then: Callable[[], None] = lambda: None
        self.stream = StreamSocket(client, self, encryption)

    def received(self, data: bytes, stamp: int, now: float) -> None:
        self.reads.append((data, stamp, now))
        self.then()

    def lost(self, error: Exception | None) -> None:
        self.ends.append(error)

    def broke(self, error: BaseException) -> None:
        self.faults.append(error)

    @property
    def data(self) -> bytes:
        return b"".join(data for data, _, _ in self.reads)

    def write(self, data: bytes) -> None:
        self.stream.write(data, self.taken.append)


@pytest.fixture(params=["plain", "tls"])
def connect(request: pytest.FixtureRequest, authority: Authority) -> Callable[[], Ends]:
    contexts = None
    if request.param == "tls":
        contexts = authority.serving("localhost"), tls_context(Tls(ca_file=authority.file))
    return lambda: Ends(contexts)


@contextmanager
def open_ends(connect: Callable[[], Ends]) -> Iterator[Ends]:
    ends = connect()
    try:
        yield ends
    finally:
        ends.stream.abort()
        ends.peer.socket.close()


async def until(condition: Callable[[], object], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - callbacks of sockets set no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize("size", [5, 100_000])
@pytest.mark.parametrize("late", [True, False])
def test_data_before_a_reset_is_not_lost(connect: Callable[[], Ends], run: Run, size: int, *, late: bool) -> None:
    async def talk() -> None:
        with open_ends(connect) as ends:
            ends.peer.send(b"x" * size)
            if late:
                await until(lambda: len(ends.data) == size)
            ends.peer.reset()
            await until(lambda: ends.ends)
            assert len(ends.data) == size
            assert isinstance(ends.ends[0], ConnectionResetError)
            assert len(ends.ends) == 1
            assert ends.stream.closed

    run(talk())


@pytest.mark.parametrize("run", LOOPS)
def test_an_owner_that_raises_is_called_once(connect: Callable[[], Ends], run: Run) -> None:
    async def talk() -> None:
        with open_ends(connect) as ends:

            def refuse() -> None:
                raise ValueError("no")

            ends.then = refuse
            ends.peer.send(b"a")
            await until(lambda: ends.faults)
            with suppress(OSError):
                ends.peer.send(b"b")
            await asyncio.sleep(0.02)
            assert len(ends.reads) == 1
            assert [str(fault) for fault in ends.faults] == ["no"]
            assert (ends.ends, ends.stream.closed) == ([], True)

    run(talk())


@pytest.mark.parametrize("run", LOOPS)
def test_the_next_socket_with_the_same_number_is_watched(connect: Callable[[], Ends], run: Run) -> None:
    async def talk() -> None:
        numbers = set()
        for turn in range(30):
            with open_ends(connect) as ends:
                numbers.add(ends.fd)
                ends.then = ends.stream.abort if turn % 3 == 0 else lambda: None
                ends.write(b"question")
                assert ends.peer.receive() == b"question"
                ends.peer.send(b"answer")
                await until(lambda: ends.reads)
                assert ends.stream.closed is (turn % 3 == 0)
                if turn % 3 == 1:
                    ends.peer.socket.close()
                    await until(lambda: ends.ends)
                    assert ends.ends == [None]
        assert len(numbers) < 15, "numbers are used again"

    run(talk())


@pytest.mark.parametrize("run", LOOPS)
def test_an_end_without_close_notify_is_an_end(connect: Callable[[], Ends], run: Run) -> None:
    async def talk() -> None:
        with open_ends(connect) as ends:
            ends.peer.send(b"all")
            ends.peer.socket.shutdown(socket.SHUT_WR)
            await until(lambda: ends.ends)
            assert (ends.data, ends.ends, ends.stream.closed) == (b"all", [None], True)
            assert ends.peer.socket.recv(10) == b"", "the client closed its end, too"

    run(talk())


@pytest.mark.parametrize("run", LOOPS)
def test_a_body_larger_than_the_send_buffer_is_sent_as_the_peer_reads(connect: Callable[[], Ends], run: Run) -> None:
    body = bytes(range(256)) * 2**15  # 8 MB

    async def talk() -> None:
        with open_ends(connect) as ends:
            ends.write(body)
            await asyncio.sleep(0.02)
            assert ends.stream.sending
            assert ends.taken == []
            ends.peer.socket.setblocking(False)
            found = bytearray()
            while len(found) < len(body):
                with suppress(BlockingIOError):
                    found += ends.peer.receive()
                await asyncio.sleep(0)
                if ends.taken and len(found) < len(body) - 2**23 / 2:
                    pytest.fail("half of the body was in the send buffer")
            assert found == body
            await until(lambda: ends.taken)
            assert not ends.stream.sending
            ends.peer.socket.setblocking(True)
            ends.write(b"next")
            assert ends.peer.receive() == b"next"

    run(talk())


@pytest.mark.parametrize("run", LOOPS)
def test_closing_in_the_middle_of_a_write(connect: Callable[[], Ends], run: Run) -> None:
    async def talk() -> None:
        with open_ends(connect) as ends:
            ends.write(b"x" * 2**23)
            await asyncio.sleep(0.01)
            ends.stream.abort()
            ends.stream.abort()
            assert not ends.stream.sending
            received = 0
            with suppress(ConnectionResetError):
                while data := ends.peer.receive():
                    received += len(data)
            assert 0 < received < 2**20, "little is in the send buffer"
            await asyncio.sleep(0.01)
            assert (ends.taken, ends.ends, ends.faults) == ([], [], [])

    run(talk())


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize("resets", [True, False])
def test_an_answer_before_the_end_of_the_upload_is_read(connect: Callable[[], Ends], run: Run, *, resets: bool) -> None:
    async def talk() -> None:
        with open_ends(connect) as ends:
            ends.write(b"x" * 2**23)
            ends.peer.send(b"413")
            if resets:
                ends.peer.reset()
            else:
                ends.peer.socket.close()  # with unread data: this resets, too
            await until(lambda: ends.ends)
            assert (ends.data, ends.taken) == (b"413", [])
            assert isinstance(ends.ends[0], ConnectionError)

    run(talk())


@pytest.mark.parametrize("run", LOOPS)
def test_a_late_event_loop_does_not_change_the_stamps(connect: Callable[[], Ends], run: Run) -> None:
    async def talk() -> None:
        with open_ends(connect) as ends:
            sent = []
            for _ in range(3):
                sent.append(time.perf_counter())
                ends.peer.send(b"x" * 100)
                time.sleep(0.05)  # noqa: ASYNC251 - the loop is late
                await until(lambda: len(ends.reads) == len(sent))
            offset = wall_offset()
            for at, (_, stamp, now) in zip(sent, ends.reads, strict=True):
                arrived = (stamp - offset) / 1e9
                assert at - 0.001 < arrived < at + 0.04
                assert now >= at + 0.05

    run(talk())


@pytest.mark.parametrize("run", LOOPS)
def test_much_data_is_read_in_turns(connect: Callable[[], Ends], run: Run) -> None:
    body = bytes(range(256)) * 2**12

    async def talk() -> None:
        with open_ends(connect) as ends:
            sending = asyncio.get_running_loop().run_in_executor(None, ends.peer.send, body)
            await until(lambda: len(ends.data) >= len(body))
            await sending
            assert ends.data == body
            assert ends.ends == []

    run(talk())
