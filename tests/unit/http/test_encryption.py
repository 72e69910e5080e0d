"""TLS without a socket, held against the server's side of OpenSSL; and against its `s_server` for what Python cannot do."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, cast

import httpx2
import pytest
import uvloop

from deltatap.endpoint import Tls
from deltatap.http.dial import Dialer
from deltatap.http.encryption import Encryption
from deltatap.http.stream_socket import StreamSocket
from deltatap.http.tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.networks import Authority

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Pair:
    """A client and a server that exchange bytes by hand."""

    def __init__(self, served: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
        self.client = Encryption(trusting, "localhost")
        self.received, self.sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = served.wrap_bio(self.received, self.sent, server_side=True)

    def shake_hands(self) -> None:
        data = b""
        while not self.client.handshake(data):
            self.to_server()
            with suppress(ssl.SSLWantReadError):
                self.server.do_handshake()
            data = self.sent.read()
        self.to_server()
        with suppress(ssl.SSLWantReadError):
            self.server.do_handshake()

    def to_server(self) -> None:
        self.received.write(self.client.outgoing())

    def serve(self, *records: bytes) -> bytes:
        for record in records:
            self.server.write(record)
        return self.sent.read()


@pytest.fixture(params=VERSIONS)
def pair(request: pytest.FixtureRequest, authority: Authority) -> Pair:
    served = authority.serving("localhost")
    served.maximum_version = request.param
    made = Pair(served, tls_context(Tls(ca_file=authority.file)))
    made.shake_hands()
    return made


@pytest.mark.parametrize("cut", ["whole", "bytes", "halves"])
def test_records_in_any_pieces(pair: Pair, cut: str) -> None:
    data = pair.serve(b"one", b"", b"two" * 20_000, b"three")
    size = {"whole": len(data), "bytes": 1, "halves": len(data) // 2}[cut]
    found = [pair.client.receive(data[at : at + size]) for at in range(0, len(data), size)]
    assert b"".join(found) == b"one" + b"two" * 20_000 + b"three"
    assert not pair.client.over
    if cut == "whole":
        assert len(found) == 1, "records of one read stay together"


def test_what_is_sent_is_taken_record_by_record(pair: Pair) -> None:
    rest, found = memoryview(b"x" * 40_000), b""
    while rest:
        taken = pair.client.send(rest)
        assert 0 < taken <= 16_384
        rest = rest[taken:]
        assert pair.client.pending
        pair.to_server()
        found += pair.server.read(2**16)
    assert found == b"x" * 40_000
    assert pair.client.send(b"") == 0


def test_the_close_notify_of_the_server_ends_it(pair: Pair) -> None:
    data = pair.serve(b"last")
    with suppress(ssl.SSLWantReadError):
        pair.server.unwrap()
    assert pair.client.receive(data + pair.sent.read()) == b"last"
    assert (pair.client.over, pair.client.failure) == (True, None)


def test_bytes_that_are_not_tls_fail_and_leave_an_alert(pair: Pair) -> None:
    data = pair.serve(b"good")
    assert pair.client.receive(data + b"\x17\x03\x03\x00\x20" + b"z" * 32) == b"good"
    assert pair.client.over
    assert isinstance(pair.client.failure, ssl.SSLError)
    assert pair.client.pending
    pair.to_server()
    with pytest.raises(ssl.SSLError, match="ALERT"):
        pair.server.read(10)


def test_handshake_that_fails_leaves_an_alert(authority: Authority) -> None:
    pair = Pair(authority.serving("other.example.org"), tls_context(Tls(ca_file=authority.file)))
    with pytest.raises(ssl.SSLCertVerificationError):
        pair.shake_hands()
    assert pair.client.pending


class Owner:
    """Collects what the client's end was told."""

    def __init__(self) -> None:
        self.data, self.ends, self.taken = b"", list[Exception | None](), list[float]()

    def received(self, data: bytes, stamp: int, now: float) -> None:
        assert stamp >= 0 < now
        self.data += data

    def lost(self, error: Exception | None) -> None:
        self.ends.append(error)

    def broke(self, error: BaseException) -> None:
        raise error


@pytest.mark.parametrize(
    ("version", "command"),
    [
        ("-tls1_3", b"K\n"),  # KeyUpdate, on both sides
        ("-tls1_2", b"r\n"),  # renegotiation
    ],
)
def test_new_keys_in_the_middle_of_an_upload(authority: Authority, version: str, command: bytes) -> None:
    certificate, key = authority.issue("localhost")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = ["openssl", "s_server", "-accept", str(port), "-cert", certificate, "-key", key, version]
    body = b"line of an upload\n" * 20_000

    out = bytearray()

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - callbacks of sockets set no event
            await asyncio.sleep(0.002)

    async def talk(say: Callable[[bytes], object]) -> None:
        dialer = Dialer(time.monotonic, None, tls_context(Tls(ca_file=authority.file)))
        opened = None
        while opened is None:
            with suppress(httpx2.ConnectError):
                opened = await dialer.open("localhost", port, tls=True)
        owner = Owner()
        stream = StreamSocket(opened.stream, owner, opened.encryption)
        try:
            for turn in range(1, 4):
                say(b"before\n")  # the server sees a command only where a read begins with it
                await until(lambda: owner.data.count(b"before") == turn)  # noqa: B023 - awaited at once
                say(command)
                stream.write(body, owner.taken.append)
                await until(lambda: out.count(b"SSL_do_handshake -> 1") == turn == len(owner.taken))  # noqa: B023 - awaited at once
            assert owner.ends == []
        finally:
            stream.abort()

    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as server:
        stdin, stdout = cast("IO[bytes]", server.stdin), cast("IO[bytes]", server.stdout)

        def collect() -> None:
            while data := stdout.read(2**16):
                out.extend(data)

        reading = threading.Thread(target=collect)
        reading.start()
        try:
            uvloop.run(asyncio.wait_for(talk(stdin.write), 20))
        finally:
            server.terminate()
            reading.join()
