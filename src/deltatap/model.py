"""The records that all packages share: requests, received data, outcomes of calls, and a worker's jobs and captures.

This module uses no API, no socket, no clock and no Spark.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltatap.prices import Prices
    from deltatap.rates import Price


Mode = Literal["stream", "complete"]

# Requests


@dataclass(frozen=True, slots=True)
class Request:
    """A request to capture, or a bad row of the prompts table.

    Attributes:
        request_id: from the prompts row, or else the request's hash.
        request_hash: hex sha256 of the body's compact UTF-8 JSON with sorted keys; for a bad row, of its columns.
        model: the requested model; None if a bad row has no model.
        body: the JSON body, without what deltatap adds to stream; keys keep their order, which matters in JSON
            schemas. None for a bad row.
        keep: the columns that ``prompts.keep`` carries along.
        error: the problem of a bad row; None for a valid row.
        source_hash: the hash of the prompts row; None without a plan.
    """

    request_id: str
    request_hash: str
    model: str | None
    body: str | None
    keep: dict[str, str | None] | None
    error: str | None
    source_hash: int | None = None


@dataclass(frozen=True, slots=True)
class Wire:
    """The body to send for a request, and what the body asks for.

    Attributes:
        body: the JSON body.
        model: the requested model.
        mode: whether the answer is streamed.
        choices: the number of choices that the body requests.
        usage: whether stream options in the body request usage, which some servers refuse.
        resumable: whether the server stores the answer, so that a broken stream can be resumed.
    """

    body: str
    model: str
    mode: Mode
    choices: int
    usage: bool = False
    resumable: bool = False


# Responses

KINDS = ("role", "content", "reasoning", "refusal", "tool_calls", "finish", "usage", "empty", "error")
# The kinds that a model generates.
OUTPUT_KINDS = ("content", "reasoning", "refusal", "tool_calls")
ROLE, CONTENT, REASONING, REFUSAL, TOOL_CALLS, FINISH, USAGE, EMPTY, ERROR = range(len(KINDS))
NO_CHOICE = -1


class Chunks:
    """A stream's chunks as columns: one element per (event, choice, kind), in order of arrival.

    Attributes:
        ms: arrival, since the request was written; NaN when it was lost.
        gap_ms: since the previous output of the same choice; NaN when there is none.
        utf8: the texts of all elements, joined. The text of a finish is its reason; the text of an error is its data.
        end: where each element's text ends in `utf8`.
        kind: index into KINDS.
        choice: index of the choice; NO_CHOICE when the element belongs to none.
        event: number of the server-sent event, from 0.
        read: number of the socket read, from 0; elements with the same number arrived together.
    """

    __slots__ = ("choice", "end", "event", "gap_ms", "kind", "ms", "read", "utf8")

    def __init__(self) -> None:
        self.ms = array("d")
        self.gap_ms = array("d")
        # One buffer for all elements: with many long answers, separate strings would take most of a worker's memory.
        self.utf8 = bytearray()
        self.end = array("i")
        self.kind = array("b")
        self.choice = array("i")
        self.event = array("i")
        self.read = array("i")

    def __len__(self) -> int:
        return len(self.ms)

    def append(self, ms: float, gap_ms: float, text: str, kind: int, choice: int, event: int, read: int) -> None:
        """Add an element."""
        self.utf8 += text.encode()
        self.end.append(len(self.utf8))  # first, because an answer of 2 GiB raises OverflowError here
        self.ms.append(ms)
        self.gap_ms.append(gap_ms)
        self.kind.append(kind)
        self.choice.append(choice)
        self.event.append(event)
        self.read.append(read)

    @property
    def text(self) -> list[str]:
        """The text of each element."""
        starts = [0, *self.end]
        return [self.utf8[start:end].decode() for start, end in pairwise(starts)]

    def to_dicts(self, tokens: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The elements in the form of the `chunks` column.

        Args:
            tokens: the output tokens of each element; None if they have not been counted.
        """
        text = self.text
        return [
            {
                "ms": None if math.isnan(self.ms[at]) else self.ms[at],
                "gap_ms": None if math.isnan(self.gap_ms[at]) else self.gap_ms[at],
                "text": text[at],
                "kind": KINDS[self.kind[at]],
                "choice": None if self.choice[at] == NO_CHOICE else self.choice[at],
                "event": self.event[at],
                "read": self.read[at],
                "tokens": None if tokens is None else int(tokens[at]),
            }
            for at in range(len(self))
        ]


@dataclass(slots=True)
class TokenCounts:
    """The counts of output tokens that a server sends while an answer arrives, in order of arrival.

    Attributes:
        used_event, used: the event of each usage, and its number of output tokens so far.
        probed_event, probed_choice, probed: event and choice of log probabilities, and the number of their tokens.
    """

    used_event: array[int] = field(default_factory=lambda: array("i"))
    used: array[int] = field(default_factory=lambda: array("q"))
    probed_event: array[int] = field(default_factory=lambda: array("i"))
    probed_choice: array[int] = field(default_factory=lambda: array("i"))
    probed: array[int] = field(default_factory=lambda: array("i"))


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage that the server reports; None for each count that it leaves out.

    Attributes:
        input_tokens: all input tokens, including those read from a cache or written to it.
        output_tokens: all output tokens, including reasoning and both kinds of prediction tokens.
        cache_write_1h_tokens: the part of `cache_write_tokens` that is kept for an hour.
        citation_tokens: tokens of the sources that the server read (Perplexity); not part of the input.
        web_searches: the searches that the server ran and bills.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None
    image_input_tokens: int | None = None
    image_output_tokens: int | None = None
    citation_tokens: int | None = None
    web_searches: int | None = None


@dataclass(frozen=True, slots=True)
class StreamError:
    """An error event in the stream.

    Attributes:
        type, code, message: as the server sent them.
        client_status: the HTTP status that this error corresponds to; None unless the API identifies a client error.
    """

    type: str | None
    code: str | None
    message: str | None
    client_status: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of an answer. Fields that did not arrive are None; ``tool_calls`` is JSON."""

    index: int
    text: str
    finish_reason: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    tool_calls: str | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """The data that a call received.

    Attributes:
        chunks: in order of arrival.
        choices: by index.
        usage: the last one reported.
        response_model, response_id, system_fingerprint, service_tier: as the server sent them.
        content_filter: JSON of the results of filters (Azure) and guardrails (Databricks).
        logprobs: JSON of the log probabilities, by choice.
        moderation: JSON of the moderation results, when the request asked for them.
        done: whether the server marked the end: [DONE], the last event of Responses, or a whole answer's end.
        error: an error inside the stream or the whole answer, in any form; a finish_reason that names a failure.
        protocol_error: what could not be decoded; everything after it is ignored.
        output: whether any non-empty output arrived.
        finished: whether every requested choice has its finish_reason, and none of them names a failure.
        raw: type and data of every event, or the body of a whole answer; None unless kept.
        annotations: JSON of citations and other annotations, by choice, and of the sources of the whole answer.
        usage_final: whether the usage counts all output that arrived; False if output came after it.
        counts: the server's counts of output tokens in single events.
    """

    chunks: Chunks
    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    response_model: str | None = None
    response_id: str | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None
    content_filter: str | None = None
    logprobs: str | None = None
    moderation: str | None = None
    done: bool = False
    error: StreamError | None = None
    protocol_error: str | None = None
    output: bool = False
    finished: bool = False
    raw: tuple[tuple[str, bytes], ...] | None = None
    annotations: str | None = None
    usage_final: bool = True
    counts: TokenCounts = field(default_factory=TokenCounts)

    @property
    def text(self) -> str | None:
        """The text of choice 0; None when no choice arrived."""
        return next((choice.text for choice in self.choices if choice.index == 0), None)

    @property
    def finish_reason(self) -> str | None:
        """The finish_reason of choice 0."""
        return next((choice.finish_reason for choice in self.choices if choice.index == 0), None)


# Outcomes

Status = Literal["completed", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one kind of error is handled.

    Attributes:
        retry: retries within this run: ``never``, as an ``attempt`` (up to max_attempts), or ``waiting`` (until
            retry_for_s; does not count as an attempt, and the whole run cools down).
        owed: whether the next run owes the request if no output arrived.
        stops_run: whether no other request can succeed either.
        parks_model: whether it counts towards the breaker of the request's model.
    """

    retry: Literal["never", "attempt", "waiting"] = "never"
    owed: bool = True
    stops_run: bool = False
    parks_model: bool = False


# The one table of outcomes. Once output has arrived, max_broken limits the retries instead, because output is paid for.
ERRORS: Mapping[str, ErrorKind] = {
    "invalid_request": ErrorKind(owed=False),
    "content_policy": ErrorKind(owed=False),
    "authentication": ErrorKind(stops_run=True),
    "wrong_url": ErrorKind(stops_run=True),
    "quota": ErrorKind(stops_run=True),
    "permission": ErrorKind(parks_model=True),
    "not_found": ErrorKind(parks_model=True),
    "rate_limit": ErrorKind(retry="waiting"),
    "timeout": ErrorKind(retry="attempt"),
    "connection": ErrorKind(retry="attempt"),
    "server": ErrorKind(retry="attempt"),
    "stream_interrupted": ErrorKind(retry="attempt"),
    "stream_error": ErrorKind(retry="attempt"),
    "protocol": ErrorKind(retry="attempt"),
    "cancelled": ErrorKind(),
    # deltatap itself could not handle the request or its answer; the codes are those of INTERNAL_*.
    "internal": ErrorKind(owed=False),
}
# The codes of `internal`: the answer had ended, so the request is never sent and paid for again; the answer was cut;
# the request was never sent.
INTERNAL_COMPLETE, INTERNAL_CUT, INTERNAL_REQUEST = "complete", "cut", "request"


@dataclass(frozen=True, slots=True)
class CaptureError:
    """The ``error`` column.

    Attributes:
        type: a key of :data:`ERRORS`.
        code: the API's code; for a timeout, its kind: connect, first_byte, idle or total.
        message: for people; contains no credentials.
        http_status: None when no response arrived.
        retry_after_s: the delay that the server requested, in seconds.
    """

    type: str
    code: str | None
    message: str
    http_status: int | None = None
    retry_after_s: float | None = None

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without a change."""
        return ERRORS[self.type].retry != "never"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a moderation: whether a text is flagged, and in which categories."""

    flagged: bool
    categories: tuple[str, ...] = ()


@dataclass(slots=True)
class Tries:
    """The failures of one request in this run; see ``worker/retry.py``.

    Attributes:
        attempts: calls that failed before any output.
        broken: calls that were interrupted after output.
        waits: calls that hit a rate limit.
        resent: calls that the client corrected.
        failing_since: monotonic seconds of the first failure.
    """

    attempts: int = 0
    broken: int = 0
    waits: int = 0
    resent: int = 0
    failing_since: float | None = None


# The sources of the arrival times of chunks.
Clock = Literal["kernel", "process"]


@dataclass(frozen=True, slots=True)
class ConnectionTimes:
    """The ``connection`` column: the steps before the answer. Times are in ms; None for a step that was skipped.

    Attributes:
        reused: whether the connection had been opened for an earlier call; then nothing was looked up or opened.
        dns_ms: looking the name up; about 0 if the addresses were known.
        connect_ms: opening the connection, including a proxy's tunnel.
        tls_ms: the TLS handshake.
        upload_ms: from the first byte written until the send buffer had taken the last; None if it never did.
    """

    reused: bool
    dns_ms: float | None = None
    connect_ms: float | None = None
    tls_ms: float | None = None
    upload_ms: float | None = None


# The outcomes of a break: the stream was resumed; the whole answer was read; the server had no such answer, or the
# connection broke before the first event, so the request was sent again.
Outcome = Literal["stream", "whole", "expired", "unseen"]
# The error type of a break if the process that read the stream was killed.
KILLED = "killed"


@dataclass(frozen=True, slots=True)
class Resumed:
    """A break of a stream that the server stores, and its outcome: an element of the ``resumed`` column.

    Attributes:
        at: when the next call started, in seconds since the epoch.
        after: the sequence number of the last event before the break; None if there is none, or if its text was lost.
        error_type: the error of the call that broke; :data:`KILLED` if the process was killed.
        outcome: how deltatap continued after the break.
        times_lost: whether the times of events were lost.
    """

    at: float
    after: int | None
    error_type: str
    outcome: Outcome
    times_lost: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """The result of one call. Times are in ms since the request was written, unless noted.

    Attributes:
        started_at: seconds since the epoch.
        ended_at: seconds since the epoch; started_at plus the monotonic duration.
        started: monotonic seconds.
        dispatch_ms: from started to written; None when the request was never written.
        headers_ms: arrival of the response's headers; None when none arrived.
        e2e_ms: end of the stream, or of the wait for it; None when the request was never written.
        server_request_id: the header x-request-id.
        received: the data that arrived before the end.
        status: of the call.
        error: None when the call completed.
        http_status: of the response; None when none arrived.
        body: the JSON body that was sent.
        resend: whether to resend the request at once, because the client has corrected what the server refused: an
            expired token, or stream options.
        used_up_for_s: seconds until requests and tokens are available again, according to the server; None while some
            are left.
        clock: the source of the times of arrival.
        connection: None if there was none.
        server_timing: the response headers about rate limits, timing and region, as names and values.
        resumed: the breaks after which this answer was resumed. All calls that read one answer count as one call, whose
            times begin with the first.
    """

    started_at: float
    ended_at: float
    started: float
    dispatch_ms: float | None
    headers_ms: float | None
    e2e_ms: float | None
    server_request_id: str | None
    received: Received
    status: Status
    error: CaptureError | None
    http_status: int | None
    body: str = ""
    resend: bool = False
    used_up_for_s: float | None = None
    clock: Clock = "process"
    connection: ConnectionTimes | None = None
    server_timing: tuple[tuple[str, str], ...] = ()
    resumed: tuple[Resumed, ...] = ()


# Jobs and captures


@dataclass(frozen=True, slots=True)
class Expected:
    """A request's expected use, as known before it is sent.

    Attributes:
        input_tokens: as tiktoken counts them.
        max_output: the request's maximum of output tokens per choice; None if it sets no maximum.
        choices: the number of requested choices.
        price: of the model and the requested service tier; None when unknown.
        prices: used to find the price of the model and the tier that answer; None: `price` applies to every answer.
    """

    input_tokens: int
    max_output: int | None
    choices: int
    price: Price | None
    prices: Prices | None = None


@dataclass(slots=True, eq=False)
class Job:
    """A request that a worker processes.

    Attributes:
        request: the request.
        wire: what to send; None for a bad row.
        mode: of the row.
        row: its position in the part or batch.
        earlier: calls that the run made for this request before this worker got it, in the form of the ``retries``
            column.
        planned: when the worker received the job, in monotonic seconds.
        then: the same request in the other mode; it starts after this job has ended.
        alike: identical requests in the same mode, which use this job's answer. If it fails, one of them is sent.
        expected: its expected use; None when the run has no limits and no budgets.
        fault: why deltatap cannot send it; None if it can.
        due_s: when its first call is due, in seconds since the schedule of ``capture.arrivals`` began; None: at once.
        calls: made by this worker, oldest first.
        tries: its failures so far.
    """

    request: Request
    wire: Wire | None
    mode: Mode
    row: int
    earlier: list[dict[str, object]]
    planned: float
    then: Job | None = None
    alike: deque[Job] = field(default_factory=deque)
    expected: Expected | None = None
    fault: CaptureError | None = None
    due_s: float | None = None
    calls: list[Call] = field(default_factory=list)
    tries: Tries = field(default_factory=Tries)


@dataclass(frozen=True, slots=True)
class Capture:
    """A request that this worker has finished.

    Attributes:
        job: the request and its calls.
        error: why no call was made; None if a call was made.
        queued_ms: from planned to the first call's start; None without a call.
        loop_lag_ms: the event loop's longest delay during the last call; None without a call.
        reused: the capture of an identical request, if its answer is used; None if the job has called.
        scheduled_ms: from the scheduled time to the last call's start; None if the job was not scheduled.
        partial_moderation: JSON of the checks of the last call's text; None if it was not checked.
    """

    job: Job
    error: CaptureError | None = None
    queued_ms: float | None = None
    loop_lag_ms: float | None = None
    reused: Capture | None = None
    scheduled_ms: float | None = None
    partial_moderation: str | None = None

    @property
    def completed(self) -> bool:
        """Whether a call of the job completed."""
        return bool(self.job.calls) and self.job.calls[-1].status == "completed"

    @property
    def with_copies(self) -> list[Capture]:
        """This capture and, if it completed, those of the identical requests, which use its answer."""
        return [self, *(Capture(job, reused=self) for job in (self.job.alike if self.completed else ()))]


class RunStatus(StrEnum):
    """The status of a run, as the ``runs`` table stores it."""

    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    BUDGET_EXHAUSTED = "budget_exhausted"
    FAILED = "failed"
    DIED = "died"
