"""One connection of a client, and its connection to the endpoint: passes requests and answers on, one after the other.

Each client connection has a connection of its own to the endpoint, opened at the first request. So `close`, keep-alive
and the end of a connection mean the same for the client as without deltatap. ``requests.py`` parses requests,
``forwarding.py`` rewrites heads, ``upstream.py`` passes answers on, ``recording.py`` makes rows of them.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING

from deltatap.api.registry import NAMES, specification
from deltatap.http.faults import internal_error
from deltatap.http.outcomes import FAILURES
from deltatap.http.redact import without_secrets
from deltatap.http.stream_socket import StreamSocket, prepare
from deltatap.model import INTERNAL_CUT, CaptureError, ConnectionTimes
from deltatap.record.forwarding import api_of, forwarded, is_chunked
from deltatap.record.outbox import Outbox
from deltatap.record.requests import End, Head, Part, RequestParser
from deltatap.record.upstream import Upstream

if TYPE_CHECKING:
    from deltatap.api.base import Api
    from deltatap.http.dial import Dialer
    from deltatap.record.forwarding import Target
    from deltatap.record.recorder import Recorder
    from deltatap.record.recording import Recording
    from deltatap.record.requests import Event
    from deltatap.record.upstream import Answer

# How much of a client's data waits here before the client has to wait.
_MAX_WAITING = 1024 * 1024
_REUSED = ConnectionTimes(reused=True)
_RESET = struct.pack("ii", 1, 0)
_STOPPED = CaptureError("cancelled", None, "the recording was stopped, and the grace period ended")
_LINGER_S = 2.0
_NO_SERVER = 502
_NO_CONNECTION: tuple[type[Exception], ...] = (*FAILURES, TimeoutError)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all sessions use.

    Attributes:
        target: the server that requests are passed on to.
        dialer: opens connections to it.
        connect_s: how long that may take.
        recorder: takes the exchanges.
        secrets: values that no message may contain.
    """

    target: Target
    dialer: Dialer
    connect_s: float
    recorder: Recorder
    secrets: frozenset[str] = field(default=frozenset(), repr=False)


class _Body(Enum):
    """What happens to the parts of a request's body."""

    WAIT = auto()
    PASS = auto()
    DISCARD = auto()


class Session:
    """Serves one client connection.

    Args:
        client: the connected socket.
        shared: what all sessions use.

    Attributes:
        busy: whether a request is open.
    """

    def __init__(self, client: socket.socket, shared: Shared) -> None:
        prepare(client)
        self._socket, self._shared = client, shared
        self._parser = RequestParser()
        self._events: deque[Event] = deque()
        self._waiting = 0
        self._news = asyncio.Event()
        self._left = self._over = self._reset = False
        self._client = StreamSocket(client, self)
        self._to_client = Outbox(self._client, self._pace_upstream)
        self._upstream: Upstream | None = None
        self._upstream_socket: StreamSocket | None = None
        self._to_upstream: Outbox | None = None
        self._body, self._chunked = _Body.WAIT, False
        self._recording: Recording | None = None
        self._answer: Answer | None = None
        self._request_over: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.busy = False

    async def run(self) -> None:
        """Serve until the client or the server closes the connection."""
        self._task = asyncio.current_task()
        try:
            if self._left:
                return
            while (head := await self._next_head()) is not None:
                self.busy = True
                go_on = await self._exchange(head)
                self.busy = False
                if not go_on or self._over:
                    break
            if self._parser.wrong is not None:
                self._refuse(400, self._parser.wrong)
            await self._finish()
        except asyncio.CancelledError:
            pass
        finally:
            self._client.abort()
            if self._upstream is not None:
                self._upstream.abort()

    def stop(self) -> None:
        """Close the connection if no request is open; otherwise after the open one."""
        self._over = True
        self._news.set()

    def cut(self) -> None:
        """End the open request now."""
        if self._task is not None:
            self._task.cancel()

    # The client's side.

    def received(self, data: bytes, _stamp: int, _now: float) -> None:
        """Take what the client sends."""
        events = self._parser.feed(data)
        self._events.extend(events)
        self._waiting += sum(len(event.data) for event in events if isinstance(event, Part))
        self._pump()
        self._pace_client()
        self._news.set()
        if self._parser.wrong is not None and self._body is not _Body.WAIT and self._task is not None:
            self._task.cancel()  # the rest of the request will not come

    def lost(self, _error: Exception | None) -> None:
        """The client has closed the connection."""
        self._left = True
        if self._answer is not None and self._answer.finished.done():
            self.stop()  # the client has read all of it
        elif self._task is not None:
            self._task.cancel()

    def broke(self, _error: BaseException) -> None:
        """Deltatap's own code has failed. The connection is closed."""
        self.lost(None)

    def _pace_client(self) -> None:
        open_ = self._upstream_socket is not None and not self._upstream_socket.closed
        full = open_ and self._to_upstream is not None and self._to_upstream.full
        self._client.pause(reading=not full and self._waiting <= _MAX_WAITING)

    def _pace_upstream(self) -> None:
        if self._upstream_socket is not None:
            self._upstream_socket.pause(reading=not self._to_client.full)

    async def _next_head(self) -> Head | None:
        """The next request; None at the end."""
        while not self._events and self._parser.wrong is None and not self._over:
            self._news.clear()
            await self._news.wait()
        if not self._events or self._over:
            return None
        event = self._events.popleft()
        return event if isinstance(event, Head) else None

    def _pump(self) -> None:
        """Take the parts of the open request's body that have arrived."""
        while self._body is not _Body.WAIT and self._events and not isinstance(self._events[0], Head):
            event = self._events.popleft()
            if isinstance(event, End):
                self._end_of_request()
                return
            if isinstance(event, Part):
                self._waiting -= len(event.data)
                if self._body is _Body.PASS and self._to_upstream is not None:
                    data = event.data
                    self._to_upstream.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
                if self._recording is not None:
                    self._recording.add(event.data)

    def _end_of_request(self) -> None:
        if self._body is _Body.PASS and self._to_upstream is not None and self._answer is not None:
            if self._chunked:
                self._to_upstream.write(b"0\r\n\r\n")
            self._to_upstream.then(self._answer.sent)
        self._body = _Body.WAIT
        if self._request_over is not None and not self._request_over.done():
            self._request_over.set_result(None)

    # One request.

    async def _exchange(self, head: Head) -> bool:
        """Pass a request and its answer on. Returns whether the connection can take another request."""
        shared, over = self._shared, asyncio.get_running_loop().create_future()
        api = api_of(head, shared.target.path)
        self._recording = recording = None if api is None else shared.recorder.begin(api, head)
        self._request_over, self._chunked = over, is_chunked(head)
        try:
            if head.method == "CONNECT":
                self._refuse(405, "CONNECT is not supported; use the URL of this proxy as a base URL")
                return False
            try:
                times = await self._connect()
            except _NO_CONNECTION as error:
                failure = self._unreachable(error)
                self._body = _Body.DISCARD
                self._pump()
                self._pace_client()
                await over
                self._record(failure)
                self._refuse(_NO_SERVER, failure.message, api)
                return True
            answer = self._pass_on(head, times)
            if recording is None:
                await answer.over()
            else:
                # A server can answer before the whole request has arrived.
                await asyncio.wait({over, answer.finished}, return_when=asyncio.FIRST_COMPLETED)
                self._record(await recording.read(answer))
            return await self._ended(answer, over)
        except asyncio.CancelledError:
            if recording is not None and not over.done():
                shared.recorder.drop(recording)
            elif recording is not None:
                self._record(recording.left() if self._left else _STOPPED)
            raise
        except Exception as fault:  # noqa: BLE001 - one connection's trouble is that connection's trouble
            request_id = "that is not recorded" if recording is None else recording.request_id
            self._record(internal_error(fault, request_id, INTERNAL_CUT, "pass the call on"))
            return False

    def _record(self, failure: CaptureError | None) -> None:
        """Record the end of the exchange, once."""
        if self._recording is not None:
            recording, self._recording = self._recording, None
            self._shared.recorder.end(recording, failure)

    async def _connect(self) -> ConnectionTimes:
        """Connect to the endpoint, unless the connection is open."""
        shared = self._shared
        if self._upstream_socket is not None and not self._upstream_socket.closed:
            return _REUSED
        to = shared.target
        async with asyncio.timeout(shared.connect_s):
            opened = await shared.dialer.open(to.host, to.port, tls=to.scheme == "https")
        self._upstream = upstream = Upstream(self._to_client.write, self._upstream_ended)
        self._upstream_socket = StreamSocket(opened.stream, upstream, opened.encryption)
        upstream.attach(self._upstream_socket)
        self._to_upstream = Outbox(self._upstream_socket, self._pace_client)
        return ConnectionTimes(False, opened.dns_ms, opened.connect_ms, opened.tls_ms)

    def _pass_on(self, head: Head, times: ConnectionTimes) -> Answer:
        """Send a request; parts of its body that are yet to come follow by themselves."""
        upstream, outbox, recording = self._upstream, self._to_upstream, self._recording
        if upstream is None or outbox is None:
            raise RuntimeError("not connected")
        wrote = _ignore if recording is None else recording.times.wrote
        self._answer = answer = upstream.begin(wrote, head.method, recorded=recording is not None)
        if recording is not None:
            recording.times.sending(times, time.perf_counter())
        outbox.write(forwarded(head, self._shared.target, recorded=recording is not None))
        self._body = _Body.PASS
        self._pump()
        self._pace_client()
        return answer

    def _upstream_ended(self, _error: Exception | None) -> None:
        """The server has closed its connection."""
        if self._body is _Body.PASS:
            self._body = _Body.DISCARD
            self._pump()
        self._pace_client()
        if not self.busy:
            self.stop()

    async def _ended(self, answer: Answer, over: asyncio.Future[None]) -> bool:
        """End an exchange whose answer has ended. Returns whether the connection can take another request."""
        reusable, reset = answer.reusable, answer.hides_break
        self._answer = None
        answer.close()
        if not over.done():  # the server did not wait for the body
            self._body = _Body.DISCARD
            self._pump()
            self._pace_client()
            await asyncio.wait({over}, timeout=_LINGER_S)
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._reset = True
        return reusable and over.done() and self._upstream_socket is not None and not self._upstream_socket.closed

    def _unreachable(self, error: Exception) -> CaptureError:
        """The error of a request that could not be passed on."""
        shared = self._shared
        why = f"not connected after {shared.connect_s:g} s" if isinstance(error, TimeoutError) else str(error)
        code = getattr(error, "code", None) or "unreachable"
        message = f"deltatap record cannot reach {shared.target.scheme}://{shared.target.netloc.decode()}: {why}"
        return without_secrets(CaptureError("connection", code, message), shared.secrets)

    def _refuse(self, status: int, message: str, api: Api | None = None) -> None:
        """Answer in the server's place."""
        error = (api or specification(NAMES[0])).error_body(status, "api_error", None, message)
        body = json.dumps(error).encode()
        phrase = HTTPStatus(status).phrase
        head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._to_client.write(head.encode() + body)

    async def _finish(self) -> None:
        """Send what is left to send, and wait a moment for the client to read it and to close its side."""
        if self._client.closed:
            return
        sent = asyncio.Event()
        self._to_client.then(lambda _: sent.set())
        await sent.wait()
        if not self._reset:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            await asyncio.sleep(_LINGER_S)


def _ignore(_at: float) -> None:
    """Nobody records when the request was written."""
