"""Calls with a body that the server reads late, and what a call says about its connection."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import uvloop

from deltatap.config import Timeouts
from deltatap.endpoint import Endpoint, Tls
from deltatap.http.client import EndpointClient
from deltatap.model import Call, Wire
from tests.calls import ANSWER, HI, OK, WIRE, chunk

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from tests.networks import Authority

    Serve = Callable[["Served"], None]

LARGE = Wire(json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 2**23}]}), "m", "stream", 1)


@dataclass
class Served:
    """A connection to the server, and whether the client has closed it."""

    socket: socket.socket
    closed: threading.Event = field(default_factory=threading.Event)

    def head(self) -> int:
        """Read a head, and nothing else. Returns the length of the body."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        return next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))

    def body(self, length: int) -> None:
        while length:
            length -= len(self.socket.recv(min(length, 2**16)))

    def until_closed(self) -> None:
        with suppress(OSError):
            while self.socket.recv(2**16):
                pass
        self.closed.set()


@contextmanager
def serving(serve: Serve, tls: ssl.SSLContext | None) -> Iterator[tuple[int, list[Served]]]:
    """A server with blocking sockets in threads of its own."""
    connections: list[Served] = []

    def handle(connected: socket.socket) -> None:
        with suppress(OSError):
            connected.settimeout(20)
            with connected if tls is None else tls.wrap_socket(connected, server_side=True) as stream:
                connections.append(Served(stream))
                serve(connections[-1])

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=handle, args=listening.accept()[:1]))
                threads[-1].start()

    listening = socket.create_server(("127.0.0.1", 0))
    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield listening.getsockname()[1], connections
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for thread in threads:
            thread.join()


@pytest.fixture(params=["http", "https"])
def calling(request: pytest.FixtureRequest, authority: Authority) -> Callable[..., Calling]:
    """Makes calls to a server, one after the other."""
    with_tls = request.param == "https"
    context = authority.serving("localhost") if with_tls else None

    def made(serve: Serve, *wires: Wire, cancel_on: threading.Event | None = None, **timeouts: float) -> Calling:
        async def talk(base_url: str) -> list[Call]:
            endpoint = Endpoint(base_url=base_url, api_key=None, tls=Tls(ca_file=authority.file))
            client = EndpointClient(endpoint, Timeouts(**timeouts))
            found = []
            try:
                for wire in wires:
                    task = asyncio.create_task(client.call(wire))
                    if cancel_on is not None:
                        assert await asyncio.to_thread(cancel_on.wait, 30)
                        task.cancel()
                    found.append(await task)
            finally:
                await client.close()
            return found

        with serving(serve, context) as (port, connections):
            return Calling(uvloop.run(talk(f"{request.param}://localhost:{port}/v1")), connections, with_tls=with_tls)

    return made


@dataclass
class Calling:
    made: list[Call]
    connections: list[Served]
    with_tls: bool


def test_upload_is_not_part_of_the_time_to_first_token(calling: Callable[..., Calling]) -> None:
    def late(served: Served) -> None:
        length = served.head()
        time.sleep(0.4)
        served.body(length)
        served.socket.sendall(ANSWER)
        served.body(served.head())
        served.socket.sendall(ANSWER)
        served.until_closed()

    found = calling(late, LARGE, WIRE, connect_s=0.3)
    first, second = found.made
    assert (first.status, second.status) == ("completed", "completed"), "a long upload is not a slow connection"
    opened = first.connection
    assert opened is not None
    assert opened.upload_ms is not None
    assert 400 < opened.upload_ms < first.dispatch_ms  # type: ignore[operator] # None fails, too
    assert first.received.chunks.ms[0] < 200
    assert opened.reused is False
    assert None not in (opened.dns_ms, opened.connect_ms)
    assert (opened.tls_ms is not None) is found.with_tls
    again = second.connection
    assert again is not None
    assert (again.reused, again.dns_ms, again.connect_ms, again.tls_ms) == (True, None, None, None)
    assert again.upload_ms is not None
    assert 0 <= again.upload_ms < 50


def test_server_may_answer_before_it_has_read_the_request(calling: Callable[..., Calling]) -> None:
    def early(served: Served) -> None:
        length = served.head()
        time.sleep(0.1)
        served.socket.sendall(OK + chunk(HI))
        if length > 100:
            time.sleep(0.1)
        served.socket.sendall(ANSWER.removeprefix(OK))
        served.until_closed()

    found = calling(early, LARGE, WIRE)
    first, second = found.made
    assert (first.status, second.status) == ("completed", "completed")
    assert first.received.text == "HiHi"
    assert first.connection is not None
    assert first.connection.upload_ms is not None
    assert first.connection.upload_ms > 50, "it ends with the answer"
    assert first.headers_ms == 0
    assert first.received.chunks.ms[0] == 0
    assert first.e2e_ms is not None
    assert 50 < first.received.chunks.ms[-1] <= first.e2e_ms
    assert len(found.connections) == 2, "nobody knows where the next request would begin"


@pytest.mark.parametrize("cancelled", [True, False])
def test_call_that_ends_during_the_upload_closes_its_connection(
    calling: Callable[..., Calling], *, cancelled: bool
) -> None:
    begun = threading.Event()

    def never(served: Served) -> None:
        served.head()
        begun.set()
        time.sleep(0.3)
        served.until_closed()

    found = calling(never, LARGE, first_byte_s=0.1) if not cancelled else calling(never, LARGE, cancel_on=begun)
    (made,) = found.made
    assert made.error is not None
    assert (made.status, made.error.type) == ("failed", "cancelled" if cancelled else "timeout")
    assert made.error.code == (None if cancelled else "first_byte")
    assert (made.dispatch_ms, made.e2e_ms) == (None, None), "the request was never written"
    assert made.connection is not None
    assert made.connection.upload_ms is None
    assert [served.closed.is_set() for served in found.connections] == [True]
