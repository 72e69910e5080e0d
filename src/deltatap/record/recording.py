"""The record of one request and its answer: the row's request, the reading of the answer, and the finished capture.

Knows how a client's request becomes a row, and how an exchange ends: with the answer, with an error, because the client
disconnected, or because the recording stopped. ``reading.py`` of ``http/`` reads the answer, ``session.py`` passes
bytes on, ``recorder.py`` takes the capture.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import httpx2

from deltatap.api.codes import UNFINISHED
from deltatap.api.values import clean, decode
from deltatap.errors import ProtocolError
from deltatap.http.faults import internal_error, is_fault
from deltatap.http.outcomes import FAILURES, error_of, retry_after_s
from deltatap.http.parser import RefusedError, header_map
from deltatap.http.reading import Reading
from deltatap.http.redact import without_secrets
from deltatap.http.watchdog import Watchdog
from deltatap.model import INTERNAL_CUT, Call, Capture, CaptureError, Job, Request, Wire
from deltatap.prompts import request_hash_of
from deltatap.record.forwarding import secrets_in, secrets_in_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.api.base import Api
    from deltatap.config import Timeouts
    from deltatap.model import Mode
    from deltatap.record.upstream import Answer

# A larger request is forwarded, and its row has no body.
MAX_BODY_BYTES = 64 * 2**20
# How much is kept of the body of an error.
_MAX_ERROR_BYTES = 64 * 1024
_FIRST_ERROR = 300
_CLIENT = CaptureError("cancelled", "client", "the client closed the connection before the answer was complete")
_IN_BACKGROUND = (
    "the server generates the answer in the background; deltatap does not record how the application gets it later"
)


class Times(Watchdog):
    """The times of an exchange. The client decides how long it may take, so nothing is cancelled."""

    def _arm(self) -> None:
        """Wait for nothing."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in the form of a row.

    Attributes:
        request: of the row.
        wire: the body that was sent; None if it is not a valid request.
        mode: None if the body cannot be read.
        text: of the body.
        secrets: the credentials in the body.
    """

    request: Request
    wire: Wire | None
    mode: Mode | None
    text: str
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def of(cls, api: Api, request_id: str, body: bytes | None, digest: str, deployment: str | None) -> Asked:
        """Read a body. A body that is not valid JSON is not kept; the server's error explains the problem.

        Args:
            api: that was called.
            request_id: of the row.
            body: None if it was too large.
            digest: the SHA-256 of the body.
            deployment: the model that the path names.
        """
        try:
            value = None if body is None else decode(body)
            text = "" if body is None else body.decode()
        except ValueError:  # UnicodeDecodeError, too
            value, text = None, ""
        if not isinstance(value, dict):
            unread = Request(request_id, digest, deployment, None, None, None)
            # The server's error can quote the body.
            secrets = secrets_in_text("" if body is None else body.decode("utf-8", "replace"))
            return cls(unread, None, None, text, secrets)
        secrets = secrets_in(value)
        mode: Mode = "stream" if value.get("stream") is True else "complete"
        named = value.get("model")
        model = clean(named) if isinstance(named, str) and named else deployment
        try:
            digest = request_hash_of(value)
            choices = api.choices(value)
        except (ValueError, TypeError, RecursionError, OverflowError):
            return cls(Request(request_id, digest, model, None, None, None), None, mode, text, secrets)
        wire = Wire(text, model or "", mode, choices, usage=False)
        return cls(Request(request_id, digest, model, text, None, None), wire, mode, text, secrets)


@dataclass(slots=True, eq=False)
class Recording:
    """One request of a client, and its answer.

    Attributes:
        api: that was called.
        request_id: created for the row.
        secrets: the values that the row must not contain. The request's body can add some.
        url: that was called, without its query, for messages.
        deployment: the model that the path names.
        timeouts: of the settings; only for messages.
        keep_raw: whether to keep the bytes of every event.
        wall: seconds since the epoch.
        times: when the request was written.
        reading: the answer so far; None until the whole request has arrived.
        asked: the request, once it has arrived.
    """

    api: Api
    request_id: str
    secrets: frozenset[str]
    url: str
    deployment: str | None
    timeouts: Timeouts
    keep_raw: bool = False
    wall: Callable[[], float] = time.time
    started: float = field(default_factory=time.perf_counter)
    started_at: float = 0.0
    times: Times = field(init=False)
    reading: Reading | None = None
    asked: Asked | None = None
    _body: bytearray | None = field(default_factory=bytearray)
    _hash: Any = field(default_factory=sha256)
    _refusal: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.started_at = self.wall()
        self.times = Times(self.timeouts, self.started, "stream")

    @property
    def mode(self) -> Mode:
        """The mode of the request. If its body cannot be read, the type of the answer decides."""
        if self.asked is not None and self.asked.mode is not None:
            return self.asked.mode
        answered = "" if self.reading is None else self.reading.headers.get("content-type", "")
        return "stream" if answered.lower().startswith("text/event-stream") else "complete"

    def add(self, data: bytes) -> None:
        """Add a part of the request's body."""
        self._hash.update(data)
        if self._body is not None:
            self._body += data
            if len(self._body) > MAX_BODY_BYTES:
                self._body = None

    def complete(self) -> Reading:
        """The request has arrived. Returns the reading of the answer."""
        body = None if self._body is None else bytes(self._body)
        self._body = None
        digest = self._hash.hexdigest()
        self.asked = asked = Asked.of(self.api, self.request_id, body, digest, self.deployment)
        self.secrets |= asked.secrets
        choices = 1 if asked.wire is None else asked.wire.choices
        accumulator = self.api.accumulator(choices, keep_raw=self.keep_raw)
        self.reading = Reading(self.api, accumulator, self.request_id)
        return self.reading

    async def read(self, answer: Answer) -> CaptureError | None:
        """Read the answer to its end. Returns why it ended early; None if it ended. Never cuts the client's answer."""
        reading = self.reading or self.complete()
        try:
            await answer.head()
            if answer.status >= _FIRST_ERROR:
                raise await self._refused(answer, reading)  # noqa: TRY301 - as any other failure
            await reading.read(answer, self.times)
            if answer.undecodable is not None:
                raise answer.undecodable  # noqa: TRY301 - the same
        except FAILURES as failure:
            await answer.over()
            return error_of(failure, reading.http_status, self.wall())
        except BaseException as fault:
            if not is_fault(fault):
                raise
            await answer.over()
            return internal_error(fault, self.request_id, INTERNAL_CUT, "read the answer")
        await answer.over()
        return None

    async def read_rest(self, answer: Answer) -> None:
        """Read the part of an answer that has arrived when the exchange is cut. Never waits for more."""
        if self.reading is None or self.reading.incoming is None:  # otherwise, it was read as it arrived
            answer.lost(ConnectionResetError("the exchange was cut"))
            await self.read(answer)

    async def _refused(self, answer: Answer, reading: Reading) -> RefusedError | httpx2.TransportError:
        """The error of a response with an error status, with the start of its body.

        The reading has the error from the start, because the exchange can be cut before the body has arrived.
        """
        body = self._refusal
        reading.refused = refused = RefusedError(self.url, answer.status, header_map(answer.headers), b"")

        def keep(data: bytes, *_: float) -> bool:
            body.extend(data[: _MAX_ERROR_BYTES - len(body)])
            return False

        try:
            await answer.read(keep)
        except httpx2.TransportError as error:
            if not body:
                return error
        finally:
            refused.body = bytes(body)
        return refused

    def left(self) -> CaptureError:
        """The error of a request whose client has closed the connection."""
        return _CLIENT

    def captured(self, failure: CaptureError | Exception | None, row: int, loop_lag_ms: float) -> Capture:
        """The finished capture, without secrets.

        Args:
            failure: what ended the exchange early; None if the answer ended.
            row: the number of the row.
            loop_lag_ms: the event loop's longest delay during the exchange.
        """
        reading, over = self.reading or self.complete(), time.perf_counter()
        if isinstance(failure, Exception):
            known = isinstance(failure, FAILURES)
            failure = error_of(failure if known else ProtocolError(str(failure)), None, self.wall())
        asked, times = self.asked, self.times
        if asked is None:
            raise RuntimeError("the request is complete by now")
        if failure is not None and reading.refused is not None and failure.http_status is None:
            wait_s = retry_after_s(reading.headers, self.wall())
            failure = replace(failure, http_status=reading.http_status, retry_after_s=wait_s)
        received, status, error = reading.concluded(failure, self.mode)
        if error is not None and failure is None and error.code in UNFINISHED:
            error = replace(error, message=_IN_BACKGROUND)
        began = None if reading.incoming is None else reading.seconds(reading.incoming.began)
        ended = reading.seconds(reading.ended) or over
        call = Call(
            started_at=self.started_at,
            ended_at=self.started_at + ended - self.started,
            started=self.started,
            dispatch_ms=_ms(self.started, times.written),
            headers_ms=_ms(times.written, began),
            e2e_ms=_ms(times.written, ended),
            server_request_id=reading.server_request_id,
            server_timing=reading.server_timing,
            received=received,
            status=status,
            error=error,
            http_status=reading.http_status,
            body=asked.text,
            clock=reading.clock,
            connection=times.connection,
        )
        clean = without_secrets(asked, self.secrets)
        job = Job(clean.request, clean.wire, self.mode, row, [], planned=self.started)
        job.calls.append(without_secrets(call, self.secrets))
        return Capture(job, queued_ms=0.0, loop_lag_ms=loop_lag_ms)


def _ms(since: float | None, at: float | None) -> float | None:
    return None if since is None or at is None else (at - since) * 1e3
