"""The progress of one call: reads the answer into the accumulator, then gives the call's status and error.

An exception in deltatap's own code becomes the ``internal`` error of this call; the output that arrived is kept.
``client.py`` sends the request, ``connection.py`` reads the socket, ``outcomes.py`` translates errors.
"""

from __future__ import annotations

import asyncio
from array import array
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import httpx2

from deltatap.api.body import AnswerBody
from deltatap.api.values import bounded, clean
from deltatap.errors import ProtocolError
from deltatap.http.clock import as_read
from deltatap.http.connection import Moment
from deltatap.http.faults import internal_error, is_fault
from deltatap.http.outcomes import conclude
from deltatap.http.parser import header_map
from deltatap.model import INTERNAL_COMPLETE, INTERNAL_CUT, Chunks, Received

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deltatap.api.accumulate import Accumulator
    from deltatap.api.base import Api
    from deltatap.http.connection import Response, Sink
    from deltatap.http.parser import RefusedError
    from deltatap.http.watchdog import Watchdog
    from deltatap.model import CaptureError, Clock, Mode, Status

_END_S = 0.5
# How much is kept of an answer that deltatap cannot handle.
_MAX_REST_BYTES = 16 * 2**20
# The starts of the names of headers that say how fast and where an answer was generated. cf-ray ends with a data
# center.
_ABOUT_TIMING = (
    "x-ratelimit-", "ratelimit", "anthropic-ratelimit-", "server-timing", "openai-processing-ms", "openai-version",
    "x-envoy-upstream-service-time", "x-ms-region", "x-inference-", "cf-ray",
)  # fmt: skip
_MAX_HEADERS, _MAX_HEADER = 32, 256


class Watch(Protocol):
    """Checks an answer while it arrives, and may cut it. Its methods are quick and never raise."""

    @property
    def cut(self) -> CaptureError | None:
        """Why the watch has cancelled the call's task; None if it has not."""

    def begin(self, chunks: Chunks, written: float) -> None:
        """Take the chunks (the list grows), and the time when the request was written, in monotonic seconds."""

    def arrived(self) -> None:
        """Check the chunks that have arrived."""


@dataclass(slots=True)
class Reading:
    """The progress of a call; it remains available when the call fails.

    Attributes:
        api: the API that was called.
        accumulator: the answer, as far as it has arrived.
        request_id: of the row.
        watch: checks the answer; None if nothing does.
        token: the token that the request was sent with.
        refused: the response, if the status is an error.
        incoming: the response, if the status is a success.
        received_headers: of `incoming`, by their names in lower case.
        ended: when the last event or byte of the answer arrived.
        clock: the clock that the times come from, once the call is concluded.
        late_ms: how long after its arrival each read happened, by the number of the read.
        fault: the exception in deltatap's own code.
        rest: the bytes of the answer that arrived after the fault.
        written: when the first request was written, if this call resumes an answer; NaN if this time is lost.
        kernel: whether the times of all earlier reads are the kernel's.
        identified: called once, when the id of the response is known.
    """

    api: Api
    accumulator: Accumulator
    request_id: str
    watch: Watch | None = None
    token: str | None = None
    refused: RefusedError | None = None
    incoming: Response | None = None
    received_headers: Mapping[str, str] = field(default_factory=dict)
    ended: Moment | None = None
    clock: Clock = "process"
    late_ms: array[float] = field(default_factory=lambda: array("d"))
    fault: BaseException | None = None
    rest: bytearray = field(default_factory=bytearray)
    written: float | None = None
    kernel: bool = True
    identified: Callable[[], None] | None = None

    @property
    def http_status(self) -> int | None:
        """The status of the response; None if there is none."""
        if self.refused is not None:
            return self.refused.status
        return None if self.incoming is None else self.incoming.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the response; empty if there is none."""
        return self.received_headers if self.refused is None else self.refused.headers

    @property
    def server_request_id(self) -> str | None:
        """The id that the server gave to the request."""
        found = (self.headers.get(name) for name in self.api.request_id_headers)
        return next((clean(request_id) for request_id in found if request_id), None)

    @property
    def server_timing(self) -> tuple[tuple[str, str], ...]:
        """The headers about rate limits, timing and the server's region, with their lower-case names."""
        about = [each for each in self.headers.items() if each[0].startswith(_ABOUT_TIMING)][:_MAX_HEADERS]
        return tuple({bounded(name, _MAX_HEADER): bounded(value, _MAX_HEADER) for name, value in about}.items())

    async def read(self, incoming: Response, watchdog: Watchdog) -> None:
        """Read the answer to its end.

        Raises:
            ProtocolError: it is not an answer.
            httpx2.TransportError: the connection broke.
        """
        self.incoming, accumulator = incoming, self.accumulator
        self.received_headers = header_map(incoming.headers)
        body = AnswerBody(accumulator, self.headers.get("content-type", ""))
        written = (watchdog.written or 0.0) if self.written is None else self.written
        late_ms = self.late_ms
        first = reads = len(late_ms)

        def take(data: bytes, at: float, now: float) -> bool:
            nonlocal reads
            watchdog.last_read = now
            if reads == first:
                watchdog.first_read(now)
            if self.fault is not None:
                self.rest += data[: _MAX_REST_BYTES - len(self.rest)]
                return False
            try:
                late_ms.append((now - at) * 1e3)
                body.feed(data, (at - written) * 1e3, reads)
            except ProtocolError:
                raise
            except BaseException as fault:
                if not is_fault(fault):
                    raise
                self.fault = fault
                self.rest += data[:_MAX_REST_BYTES]
                return False
            reads += 1
            return self._taken(at, now)

        try:
            await incoming.read(take if self.watch is None else _watched(take, self.watch, accumulator.chunks, written))
        except BaseException:
            # The failure is already known. The output that arrived still counts.
            self._end(body, complete=False)
            raise
        self.ended = self.ended or incoming.ended
        self._end(body, complete=True)
        if not incoming.complete:
            await _read_to_end(incoming)

    def _taken(self, at: float, now: float) -> bool:
        """Record the result of a read; returns whether the answer has ended."""
        accumulator = self.accumulator
        if self.identified is not None and accumulator.response_id is not None:
            self.identified()
            self.identified = None
        if accumulator.done:
            self.ended = Moment(at, now)
        return accumulator.done

    def _end(self, body: AnswerBody, *, complete: bool) -> None:
        if self.fault is not None:
            return
        try:
            body.end(complete=complete)
        except ProtocolError:
            if complete:
                raise
        except BaseException as fault:
            if not is_fault(fault):
                raise
            self.fault = fault

    def settled(self) -> bool:
        """Whether all times are the kernel's. Call it when the response has ended."""
        return self.kernel and self.incoming is not None and self.incoming.clock.settled()

    def seconds(self, moment: Moment | None) -> float | None:
        """A moment by the clock of the call, in monotonic seconds. Call it when the call is concluded."""
        if moment is None:
            return None
        return moment.arrived if self.clock == "kernel" else moment.read

    def concluded(self, failure: CaptureError | None, mode: Mode) -> tuple[Received, Status, CaptureError | None]:
        """The answer as received, the call's status and its error.

        Args:
            failure: what ended the call early; None when the answer ended.
            mode: whether the answer was to be streamed; a whole answer has no chunks.
        """
        received = Received(Chunks())
        if self.settled():
            self.clock = "kernel"
        try:
            if self.refused is not None:
                self.accumulator.add_refusal(self.refused.body)
            received = self.accumulator.finish()
            if self.clock == "process":
                as_read(received.chunks, self.late_ms)
            status, error = conclude(received, failure)
        except BaseException as fault:  # noqa: BLE001 - logged, or else raised again
            status, error = "interrupted", self._internal(fault, failure)
        else:
            if self.fault is not None:
                status, error = "interrupted", self._internal(self.fault, failure)
                received = replace(received, raw=(*(received.raw or ()), ("", bytes(self.rest))))
        if mode == "complete":
            received = replace(received, chunks=Chunks())
        return received, status, error

    def _internal(self, fault: BaseException, failure: CaptureError | None) -> CaptureError:
        code = INTERNAL_COMPLETE if failure is None else INTERNAL_CUT
        return internal_error(fault, self.request_id, code, "handle the answer")


def _watched(sink: Sink, watch: Watch, chunks: Chunks, written: float) -> Sink:
    """A sink that also lets the watch check the chunks that have arrived."""
    watch.begin(chunks, written)

    def take(data: bytes, at: float, now: float) -> bool:
        over = sink(data, at, now)
        watch.arrived()
        return over

    return take


async def _read_to_end(incoming: Response) -> None:
    """After [DONE], wait briefly for the end of the body: then the connection can be reused."""
    with suppress(TimeoutError, httpx2.TransportError):
        async with asyncio.timeout(_END_S):
            await incoming.read(lambda *_: False)
