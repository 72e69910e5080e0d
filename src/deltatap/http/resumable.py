"""The answer to one request, possibly read by several calls: what has arrived, and where the next call resumes. Pure.

Knows the id of the response, the number of the last event, and everything that arrived before a break. Leaves sending
to ``client.py``, the events to ``api/``, and whether and when the next call is made to ``worker/resuming.py``.

A server that stores an answer (``capture.resume``) continues to generate it after the connection has broken. The next
call gets the events after the last one that arrived. All calls that read one answer count as one call: its times begin
with the first request, and chunks keep the times at which they first arrived.
"""

from __future__ import annotations

import copy
import math
import re
from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from deltatap.api.codes import UNFINISHED
from deltatap.http.gaps import without_gaps
from deltatap.model import KILLED, Resumed

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.api.accumulate import Accumulator
    from deltatap.model import Call, CaptureError, Outcome

# The error code of a call that asked for an answer that the server does not have.
EXPIRED = "expired"
# How a server refuses to stream an answer that it has (OpenAI, some minutes after the request), and how it refuses to
# read an answer at all: it has expired or is unknown, or the server cannot do that.
_UNSTREAMABLE = (400, 422)
_GONE = (*range(300, 400), 400, 404, 405, 410, 422, 501)
# Errors after which no call resumes the answer, and errors of a connection.
_FINAL = ("internal", "cancelled", "authentication", "quota", "content_policy", "permission")
_CONNECTION = ("connection", "timeout", "stream_interrupted")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:~=+-]{0,255}")
_SHORTEST_SECRET = 8


@dataclass(slots=True, eq=False)
class Resumable:
    """The state of one answer across all calls that read it. Belongs to the event loop; other threads only read it.

    Attributes:
        kept: whether the server stores the answer.
        changed: called when a call begins, and when the id of the response has arrived.
        secrets: what no URL and no file may contain.
        given_id: the id, if it arrived before the current call.
        started_at: when the first request was sent, in seconds since the epoch; None before.
        lost: whether the times of some events are lost.
        arrived: everything that had arrived before the last break; None if that is nothing, or lost.
        live: the accumulator of the current call.
        written: when the first request was written, in monotonic seconds; not a number if that is lost.
        late_ms, kernel: of the reads before the last break, as in ``reading.py``.
        first, call: the first and the last call so far; None before they have ended.
        why: the error of the call that broke; None without a break.
        whole: whether only the whole answer can be read, not its stream.
        pending: whether the server has said that the answer is not finished.
        progress: whether the last call has received anything new.
        expired: whether the server no longer has the answer.
        breaks: the number of chunks before each break.
        marks: the breaks so far, for the ``resumed`` column.
        stale, since, reads: number of calls in a row without a new event, when the first of them ended, and number of
            calls that resumed the answer; for ``resuming.py``.
    """

    kept: bool = True
    changed: Callable[[], None] | None = None
    secrets: frozenset[str] = frozenset()
    given_id: str | None = None
    started_at: float | None = None
    lost: bool = False
    arrived: Accumulator | None = None
    live: Accumulator | None = None
    written: float | None = None
    late_ms: array[float] = field(default_factory=lambda: array("d"))
    kernel: bool = True
    first: Call | None = None
    call: Call | None = None
    why: str | None = None
    whole: bool = False
    pending: bool = False
    progress: bool = False
    expired: bool = False
    breaks: list[int] = field(default_factory=list)
    marks: list[Resumed] = field(default_factory=list)
    stale: int = 0
    since: float | None = None
    reads: int = 0

    @classmethod
    def after_kill(cls, response_id: str | None, started_at: float) -> Resumable:
        """The answer that a killed process was reading. Without an id, the request has to be sent again."""
        answer = cls()
        if response_id is None:
            answer.marks.append(Resumed(started_at, None, KILLED, "unseen"))
        else:
            answer.given_id, answer.started_at, answer.why = response_id, started_at, KILLED
            answer.lost, answer.written = True, math.nan
        return answer

    @property
    def response_id(self) -> str | None:
        """The id of the response, if a URL can contain it; None while it is unknown."""
        found = (None if self.live is None else self.live.response_id) or self.given_id
        if found is None or not _ID.fullmatch(found):
            return None
        secret = any(len(each) >= _SHORTEST_SECRET and each in found for each in self.secrets)
        return None if secret else found

    @property
    def sequence(self) -> int | None:
        """The number of the last event that has arrived."""
        return None if self.live is None else self.live.sequence

    @property
    def after(self) -> int | None:
        """The number of the last event before the break. None: the next call reads from the start."""
        return None if self.arrived is None else self.arrived.sequence

    @property
    def unfinished(self) -> bool:
        """Whether the server may still have something that has not arrived."""
        if not self.kept or self.expired or self.response_id is None:
            return False
        if self.call is not None and self.call.error is None:
            return False
        return self.pending or self.live is None or not self.live.done

    @property
    def readable(self) -> bool:
        """Whether the next call resumes the answer. After some errors, no call of this worker does."""
        error = None if self.call is None else self.call.error
        if error is None or (self.call is not None and self.call.resend):
            return self.unfinished
        total = (error.type, error.code) == ("timeout", "total")
        return self.unfinished and error.type not in _FINAL and not total

    def begin(self, fresh: Accumulator, now: float) -> Accumulator:
        """Begin a call. Returns the accumulator of its events.

        Args:
            fresh: an empty one.
            now: seconds since the epoch.
        """
        if self.started_at is None:
            self.started_at = now
        self.given_id = self.response_id
        if self.arrived is not None and self.arrived.sequence is None:
            # Events without numbers arrive again from the start.
            self.arrived, self.lost, self.written = None, True, math.nan
            self.breaks.clear()
        if self.arrived is None:
            self.late_ms = array("d")
            self.live = fresh
        else:
            self.live = copy.deepcopy(self.arrived)
            self.live.read_on()
        if self.changed is not None:
            self.changed()
        return self.live

    def interrupt(self, late_ms: array[float], *, kernel: bool) -> None:
        """Keep what has arrived if the answer has not ended. Call it before the accumulator is finished.

        Args:
            late_ms: of all reads.
            kernel: whether all times are the kernel's.
        """
        live, before = self.live, self.after
        if live is None or not self.kept:
            return
        self.progress = live.done or (live.sequence is not None and (before is None or live.sequence > before))
        if not live.done and live.size and (self.progress or self.arrived is None):
            self.arrived, self.late_ms, self.kernel = copy.deepcopy(live), array("d", late_ms), kernel

    def ended(self, call: Call, asked: int | None, *, reading: bool) -> Call:
        """The call that stands for all calls so far.

        Args:
            call: the last one, with everything that has arrived.
            asked: the number of the event after which the call resumed the answer.
            reading: whether the call resumed the answer; False if it sent the request.
        """
        code = None if call.error is None else call.error.code
        self.pending = code in UNFINISHED and self.live is not None and self.live.done
        if self.pending:
            self.whole = self.kept = True
            self.progress = False
        one = self._read(call, asked) if reading else self._sent(call)
        if one.error is not None and self.why is None:
            self.why = code if self.pending else one.error.type
        if self.arrived is not None and self.progress and self.readable_after(one):
            self.breaks.append(self.arrived.size)
        return replace(one, resumed=tuple(self.marks))

    def readable_after(self, call: Call) -> bool:
        """Whether the call after this one can resume the answer."""
        self.call = call
        return self.readable

    def _sent(self, call: Call) -> Call:
        """The call that sent the request."""
        error = call.error
        if (
            self.kept
            and error is not None
            and error.type in _CONNECTION
            and call.e2e_ms is not None
            and call.http_status in (None, 200)
            and self.response_id is None
        ):
            self.marks.append(Resumed(call.ended_at, None, error.type, "unseen"))
        self.first = call
        if self.written is None and self.first.dispatch_ms is not None:
            self.written = call.started + self.first.dispatch_ms / 1e3
        return call

    def _read(self, call: Call, asked: int | None) -> Call:
        """The call that stands for the calls before a break and one after it."""
        self.reads += 1
        error = self._refused(call)
        outcome: Outcome = "expired" if self.expired else "whole" if self.whole else "stream"
        lost = self.lost or self.whole
        if self.why is not None and (self.expired or self.progress):
            self.marks.append(Resumed(call.started_at, asked, self.why, outcome, lost and not self.expired))
            self.why = None
        received = replace(call.received, chunks=without_gaps(call.received.chunks, self.breaks))
        call, first = replace(call, error=error, received=received), self.first
        if first is None:
            return replace(
                call,
                started_at=call.started_at if self.started_at is None else self.started_at,
                dispatch_ms=None,
                headers_ms=None,
                e2e_ms=None,
                connection=None,
            )
        return replace(
            call,
            started_at=first.started_at,
            started=first.started,
            dispatch_ms=first.dispatch_ms,
            headers_ms=first.headers_ms,
            e2e_ms=None if lost else call.e2e_ms,
            connection=first.connection,
            server_request_id=first.server_request_id or call.server_request_id,
            server_timing=first.server_timing or call.server_timing,
        )

    def _refused(self, call: Call) -> CaptureError | None:
        """The error of a call that resumed the answer. A refusal to resume it is not an error of the request."""
        error, status = call.error, call.http_status
        if error is None or status is None or error.type in _FINAL:
            return error
        if status in _UNSTREAMABLE and not self.whole:
            self.whole = True
            return replace(error, type="stream_interrupted", code="unstreamable")
        if status in _GONE:
            self.expired = True
            why = f"the response {self.response_id} has expired, or the server does not know it: {error.message}"
            return replace(error, type="stream_interrupted", code=EXPIRED, message=why)
        return error
