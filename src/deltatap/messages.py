"""The messages between driver and workers: Control and Permit go to the workers, Heartbeat goes to the driver.

Plain records, and the times and limits that both sides must agree on. ``state.py`` knows the files that carry the
messages, ``driver/pacer.py`` issues permits, and ``worker/link.py`` acts on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# How often each side writes its message and reads the other's.
POLL_S = 0.5
# A worker starts no requests while the driver's last new message is older than this. This time is shorter than the
# lease, so if the driver's machine is suspended, its workers stop before another driver can take over.
STALE_S = 15.0
# After this long without a new message, a worker stops.
LOST_S = 300.0
# The window of the rate limits.
MINUTE_S = 60.0
# A permit expires after this time: in the worker by the worker's clock, in the driver at its next turn.
PERMIT_S = 1.0
# A permit covers a request of up to this multiple of the permit's expected tokens.
TOLERATED = 1.5


@dataclass(frozen=True, slots=True)
class Permit:
    """How many requests a worker may start in total, counted from the worker's own start.

    Attributes:
        requests: the highest request number that is permitted.
        void: permits up to this number are no longer valid.
        tokens: the expected tokens of each permitted request.
        checks_only: whether only calls of moderation may use it, because the budget covers no request.
    """

    requests: int = 0
    void: int = 0
    tokens: float = 0.0
    checks_only: bool = False


@dataclass(frozen=True, slots=True)
class Control:
    """The driver's message to its workers.

    Attributes:
        epoch: the lease's epoch; workers of an older epoch stop.
        beat: increases with each message; without a new message for STALE_S, a worker starts no requests.
        shares: the number of streams that each claim may hold open; 0 for a claim that is not listed.
        cool_s: no worker starts a request for this many seconds.
        stop: why no more requests start; None while the run is active.
        grace_s: seconds that open streams may continue after a stop.
        permits: by claim; None when the run has no limits.
        mean_output_tokens: the mean over the latest captures of all workers; None before the first.
        begins_at: when the schedule of ``capture.arrivals`` begins, in seconds since the epoch; None while that is not
            decided, or without a schedule.
    """

    epoch: int
    beat: int
    shares: Mapping[str, int] = field(default_factory=dict)
    cool_s: float = 0.0
    stop: str | None = None
    grace_s: float = 0.0
    permits: Mapping[str, Permit] | None = None
    mean_output_tokens: float | None = None
    begins_at: float | None = None


@dataclass(frozen=True, slots=True)
class KeptStream:
    """A stream that the provider stores (``capture.resume``), for the worker that resumes it after a kill.

    Attributes:
        request_id, request_hash, mode, endpoint: identify the request.
        started_at: when the request was sent, in seconds since the epoch.
        response_id: None while no event has arrived.
        sequence: the number of the last event; None without a number.
    """

    request_id: str
    request_hash: str
    mode: str
    endpoint: str
    started_at: float
    response_id: str | None = None
    sequence: int | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The values that identify the request."""
        return self.endpoint, self.request_id, self.request_hash, self.mode


@dataclass(frozen=True, slots=True)
class Refusal:
    """A server's refusal that other requests will meet as well.

    Attributes:
        type, message: of the error.
        model: the requested model.
        request_id: the server's, or else ours.
    """

    type: str
    message: str
    model: str
    request_id: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message} (model {self.model}, request_id {self.request_id})"


@dataclass(frozen=True, slots=True)
class Parked:
    """A model that refuses every request, so that a worker starts no more of them.

    Attributes:
        refusal: the last one.
        requests: how many requests the worker has not sent for this reason.
    """

    refusal: Refusal
    requests: int = 0


@dataclass(frozen=True, slots=True)
class OpenStream:
    """An open stream, as ``deltatap watch`` shows it.

    Attributes:
        request_id, model, mode: of the request.
        open_s: seconds since the request started.
        chars: how many characters of choice 0 have arrived.
        text: the last characters that have arrived, without secrets.
    """

    request_id: str
    model: str
    mode: str
    open_s: float
    chars: int
    text: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker's message to its driver. Counts start at zero when the worker starts.

    Attributes:
        epoch: the plan's epoch.
        claim: the attempt's name.
        beat: increases with each message.
        open: streams that are open, and answers whose texts are still being checked.
        requests: calls made.
        rows: finished captures, by status.
        uncalled: rows without a call: invalid prompts, reused answers.
        errors: failed calls of finished rows, by error type, including retried calls.
        input_tokens, output_tokens, cost_usd: of the calls of finished rows.
        ttft_ms: the median of the latest captures.
        loop_lag_ms: the event loop's longest delay in the last seconds.
        cool_s: seconds until the server accepts calls again, according to the responses to this worker. Cool-downs
            that the driver passed on do not count; otherwise they would never end.
        fatal: why no request can succeed.
        too_long: the server's request to wait longer than any request may wait, in one line; None if it made none.
        parked: the models that refuse every request.
        succeeded: whether any call has received output or completed.
        waits_s: seconds until this worker may start a request; 0 if something else holds it back.
        waits_for: what it is waiting for, as text.
        ended: whether the worker has finished.
        at: when the heartbeat was written, in seconds since the epoch.
        wants: the number of requests and checks that could start now if they were permitted.
        checks: how many of them are calls of moderation, which no budget counts.
        next_tokens, next_usd: the expected use of the next request.
        used: the highest permit number that is used or void.
        recent: the starts within the last minute, in groups of (age in seconds, requests, tokens).
        spent_tokens, spent_usd: use of the calls that have ended.
        in_flight_tokens, in_flight_usd: expected use of the open calls.
        limited: the number of 429 responses.
        mean_output_tokens: per choice, over the latest calls; None before the first.
        streams: some of the open streams, the oldest first.
    """

    epoch: int
    claim: str
    beat: int
    open: int = 0
    requests: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    uncalled: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    ttft_ms: float | None = None
    loop_lag_ms: float = 0.0
    cool_s: float = 0.0
    fatal: str | None = None
    too_long: str | None = None
    parked: Sequence[Parked] = ()
    succeeded: bool = False
    waits_s: float = 0.0
    waits_for: str | None = None
    ended: bool = False
    at: float = 0.0
    wants: int = 0
    checks: int = 0
    next_tokens: float = 0.0
    next_usd: float = 0.0
    used: int = 0
    recent: Sequence[Sequence[float]] = field(default_factory=list)
    spent_tokens: float = 0.0
    spent_usd: float = 0.0
    in_flight_tokens: float = 0.0
    in_flight_usd: float = 0.0
    limited: int = 0
    mean_output_tokens: float | None = None
    streams: Sequence[OpenStream] = ()

    @property
    def part(self) -> str:
        """The number of the claimed part, with leading zeros."""
        return self.claim.split("-")[0]
