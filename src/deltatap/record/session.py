"""One connection of a client: forwards its requests and their answers, one after the other, and records them.

Each client connection has a separate connection to the endpoint, opened at the first request. So `close`, keep-alive
and the end of a connection mean the same for the client as without deltatap. ``pair.py`` has the two connections,
``forwarding.py`` rewrites heads, ``recording.py`` makes rows.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from deltatap.api.registry import NAMES, specification
from deltatap.http.faults import internal_error
from deltatap.http.outcomes import FAILURES
from deltatap.http.redact import without_secrets
from deltatap.model import INTERNAL_CUT, CaptureError
from deltatap.record.forwarding import api_of, forwarded, is_chunked
from deltatap.record.pair import Pair

if TYPE_CHECKING:
    import socket

    from deltatap.api.base import Api
    from deltatap.http.dial import Dialer
    from deltatap.record.forwarding import Target
    from deltatap.record.recorder import Recorder
    from deltatap.record.recording import Recording
    from deltatap.record.requests import Head

_STOPPED = CaptureError("cancelled", None, "the recording was stopped, and the grace period ended")
_NO_CONNECTION: tuple[type[Exception], ...] = (*FAILURES, TimeoutError)
_NO_CONNECT = "CONNECT is not supported; use the URL of this proxy as a base URL"


@dataclass(frozen=True, slots=True)
class Shared:
    """The objects that all sessions share.

    Attributes:
        target: the server to which requests are forwarded.
        dialer: opens connections to it.
        connect_s: how long opening a connection may take.
        recorder: takes the exchanges.
        secrets: values that no message may contain.
    """

    target: Target
    dialer: Dialer
    connect_s: float
    recorder: Recorder
    secrets: frozenset[str] = field(default=frozenset(), repr=False)


class Session:
    """Serves one client connection.

    Args:
        client: the connected socket.
        shared: what all sessions use.
    """

    def __init__(self, client: socket.socket, shared: Shared) -> None:
        self._shared = shared
        self._pair = Pair(client, self._client_gone, self._server_gone)
        self._recording: Recording | None = None
        self._task: asyncio.Task[None] | None = None
        self._busy = self._over = False

    async def run(self) -> None:
        """Serve until the client or the server closes the connection."""
        self._task = asyncio.current_task()
        pair = self._pair
        try:
            while not pair.left and (head := await pair.next_head()) is not None:
                self._busy = True
                go_on = await self._exchange(head)
                self._busy = False
                if not go_on or self._over:
                    break
            if pair.wrong is not None:
                self._refuse(400, pair.wrong)
            await pair.flush()
        except asyncio.CancelledError:
            pass
        finally:
            pair.close()

    def stop(self) -> None:
        """Close the connection now, or after the open request."""
        self._over = True
        self._pair.end()

    def cut(self) -> None:
        """End the open request now."""
        if self._task is not None:
            self._task.cancel()

    def _client_gone(self) -> None:
        answer = self._pair.answer
        if answer is not None and answer.finished.done():
            self.stop()  # the client has read all of it
        else:
            self.cut()

    def _server_gone(self) -> None:
        if not self._busy:
            self.stop()

    async def _exchange(self, head: Head) -> bool:
        """Forward a request and its answer. Returns whether the connection can take another request."""
        recorder, pair = self._shared.recorder, self._pair
        api = api_of(head, self._shared.target.path)
        self._recording = recording = None if api is None else recorder.begin(api, head)
        pair.begin(None if recording is None else recording.add, chunked=is_chunked(head))
        try:
            return await self._passed_on(head, api, recording)
        except asyncio.CancelledError:
            if recording is not None and not pair.over.done():
                recorder.drop(recording)
            elif recording is not None:
                if pair.answer is not None:
                    await recording.read_rest(pair.answer)
                self._record(recording.left() if pair.left else _STOPPED)
            raise
        except Exception as fault:  # noqa: BLE001 - one connection's trouble is that connection's trouble
            request_id = "that is not recorded" if recording is None else recording.request_id
            self._record(internal_error(fault, request_id, INTERNAL_CUT, "forward the call"))
            return False

    async def _passed_on(self, head: Head, api: Api | None, recording: Recording | None) -> bool:
        shared, pair = self._shared, self._pair
        if head.method == "CONNECT":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, _NO_CONNECT)
            return False
        try:
            times = await pair.connect(shared.dialer, shared.target, shared.connect_s)
        except _NO_CONNECTION as error:
            failure = self._unreachable(error)
            pair.discard()
            await asyncio.wait({pair.over})  # which a cut does not cancel
            self._record(failure)
            self._refuse(HTTPStatus.BAD_GATEWAY, failure.message, api, bodiless=head.method == "HEAD")
            return True
        sent = forwarded(head, shared.target, recorded=recording is not None)
        if recording is None:
            answer = pair.send(sent, _ignore, head.method, recorded=False)
            await answer.over()
        else:
            recording.times.sending(times, time.perf_counter())
            answer = pair.send(sent, recording.times.wrote, head.method, recorded=True)
            # A server can answer before the whole request has arrived.
            await asyncio.wait({pair.over, answer.finished}, return_when=asyncio.FIRST_COMPLETED)
            self._record(await recording.read(answer))
        return await pair.end_answer(answer)

    def _record(self, failure: CaptureError | None) -> None:
        """Record the end of the exchange, once."""
        if self._recording is not None:
            recording, self._recording = self._recording, None
            self._shared.recorder.end(recording, failure)

    def _unreachable(self, error: Exception) -> CaptureError:
        """The error of a request that could not be forwarded."""
        shared = self._shared
        why = f"not connected after {shared.connect_s:g} s" if isinstance(error, TimeoutError) else str(error)
        code = getattr(error, "code", None) or "unreachable"
        message = f"deltatap record cannot reach {shared.target.scheme}://{shared.target.netloc.decode()}: {why}"
        return without_secrets(CaptureError("connection", code, message), shared.secrets)

    def _refuse(self, status: int, message: str, api: Api | None = None, *, bodiless: bool = False) -> None:
        """Answer instead of the server."""
        error = (api or specification(NAMES[0])).error_body(status, "api_error", None, message)
        body = json.dumps(error).encode()
        phrase = HTTPStatus(status).phrase
        head = f"HTTP/1.1 {status:d} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._pair.to_client.write(head.encode() + (b"" if bodiless else body))


def _ignore(_at: float) -> None:
    """Ignores the time at which the request was written."""
