"""The nouns: what is asked (Request, Wire), what came back (Received, Call, Capture), what went wrong (CaptureError).

Plain records that every package shares. This module knows no API, no socket, no clock and no Spark.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltatap.prices import Price


Mode = Literal["stream", "complete"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request to capture, or a bad row.

    Attributes:
        request_id: of the row, else the request's hash.
        request_hash: sha256, hex, of the body's compact UTF-8 JSON with sorted keys; of a bad row, of its source
            columns.
        model: the model asked for; None when a bad row names none.
        body: the JSON body without stream options, keys in the order given (JSON schemas mean something by theirs);
            None for a bad row.
        keep: the columns carried along.
        error: what is wrong with a bad row; None otherwise.
        source_hash: of the prompts row, as the plan has it; None where there is no plan.
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
    """What goes out for a request.

    Attributes:
        body: the JSON body.
        model: the model asked for.
        mode: whether the answer is streamed.
        choices: how many the body asks for.
        usage: whether the body asks for usage by stream options, which some servers refuse.
    """

    body: str
    model: str
    mode: Mode
    choices: int
    usage: bool = False


KINDS = ("role", "content", "reasoning", "refusal", "tool_calls", "finish", "usage", "empty", "error")
OUTPUT_KINDS = ("content", "reasoning", "refusal", "tool_calls")
ROLE, CONTENT, REASONING, REFUSAL, TOOL_CALLS, FINISH, USAGE, EMPTY, ERROR = range(len(KINDS))
NO_CHOICE = -1


class Chunks:
    """A stream's chunks as columns: one element per (event, choice, kind), in order.

    Attributes:
        ms: since the request was written.
        gap_ms: since the output before it of the same choice; NaN where there was none.
        utf8: what the elements brought, one after the other; of a finish its reason, of an error its data.
        end: where each element's ends in `utf8`.
        kind: index into KINDS.
        choice: index; NO_CHOICE where the element belongs to none.
        event: number of the server-sent event, from 0.
        read: number of the socket read, from 0; what has the same came together.
    """

    __slots__ = ("choice", "end", "event", "gap_ms", "kind", "ms", "read", "utf8")

    def __init__(self) -> None:
        self.ms = array("d")
        self.gap_ms = array("d")
        # Not a string each: of long answers at once they would be most of a worker's memory.
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
        self.ms.append(ms)
        self.gap_ms.append(gap_ms)
        self.utf8 += text.encode()
        self.end.append(len(self.utf8))
        self.kind.append(kind)
        self.choice.append(choice)
        self.event.append(event)
        self.read.append(read)

    @property
    def text(self) -> list[str]:
        """What each element brought."""
        starts = [0, *self.end]
        return [self.utf8[start:end].decode() for start, end in pairwise(starts)]

    def to_dicts(self) -> list[dict[str, Any]]:
        """The elements as the `chunks` column has them."""
        text = self.text
        return [
            {
                "ms": self.ms[at],
                "gap_ms": None if math.isnan(self.gap_ms[at]) else self.gap_ms[at],
                "text": text[at],
                "kind": KINDS[self.kind[at]],
                "choice": None if self.choice[at] == NO_CHOICE else self.choice[at],
                "event": self.event[at],
                "read": self.read[at],
            }
            for at in range(len(self))
        ]


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server counted; None for what it did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class StreamError:
    """An error that came in the stream, as the server named it.

    Attributes:
        type, code, message: as sent.
        client_status: the HTTP status of the client error that the API's words stand for; None if they do not.
    """

    type: str | None
    code: str | None
    message: str | None
    client_status: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: None for what did not come, tool_calls as JSON."""

    index: int
    text: str
    finish_reason: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    tool_calls: str | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """What a call received.

    Attributes:
        chunks: in order of arrival.
        choices: by index.
        usage: as reported; the last word counts.
        response_model, response_id, system_fingerprint, service_tier: as the server said them.
        content_filter: JSON of what filters said: Azure's results, Databricks' guardrails.
        logprobs: JSON of the log probabilities, by choice.
        moderation: JSON of the moderation that was asked for.
        done: whether the end was said: [DONE], the last event of Responses, the end of a whole answer.
        error: an error that came in the stream.
        protocol_error: what could not be understood; nothing after it counts.
        output: whether any output came that is not empty.
        finished: whether every choice asked for has its finish_reason.
        raw: every event's type and data, or the body of a whole answer; None when they are not kept.
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

    @property
    def text(self) -> str | None:
        """Of choice 0; None when no choice came."""
        return next((choice.text for choice in self.choices if choice.index == 0), None)

    @property
    def finish_reason(self) -> str | None:
        """Of choice 0."""
        return next((choice.finish_reason for choice in self.choices if choice.index == 0), None)


Status = Literal["completed", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one kind of error is handled.

    Attributes:
        again: within this run: ``never``, as an ``attempt`` (up to max_attempts), or ``waiting`` (until retry_for_s,
            not counted as an attempt, the whole run cools down).
        owed: whether the next run owes the request when nothing had arrived.
        stops_run: whether no other request can succeed either.
    """

    again: Literal["never", "attempt", "waiting"] = "never"
    owed: bool = True
    stops_run: bool = False


# Once output has arrived, `again` gives way to max_broken: a broken stream is paid for.
ERRORS: Mapping[str, ErrorKind] = {
    "invalid_request": ErrorKind(owed=False),
    "content_policy": ErrorKind(owed=False),
    "authentication": ErrorKind(stops_run=True),
    "permission": ErrorKind(stops_run=True),
    "not_found": ErrorKind(stops_run=True),
    "quota": ErrorKind(stops_run=True),
    "rate_limit": ErrorKind(again="waiting"),
    "timeout": ErrorKind(again="attempt"),
    "connection": ErrorKind(again="attempt"),
    "server": ErrorKind(again="attempt"),
    "stream_interrupted": ErrorKind(again="attempt"),
    "stream_error": ErrorKind(again="attempt"),
    "protocol": ErrorKind(again="attempt"),
    "cancelled": ErrorKind(),
}


@dataclass(frozen=True, slots=True)
class CaptureError:
    """The ``error`` column.

    Attributes:
        type: a key of :data:`ERRORS`.
        code: the API's code; for a time-out, which: connect, first_byte, idle or total.
        message: for people; holds no credentials.
        http_status: None when no response came.
        retry_after_s: what the server asked to wait, in seconds.
    """

    type: str
    code: str | None
    message: str
    http_status: int | None = None
    retry_after_s: float | None = None

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without anybody's doing."""
        return ERRORS[self.type].again != "never"


@dataclass(slots=True)
class Tries:
    """What one request has been through in this run so far."""

    attempts: int = 0
    broken: int = 0
    waits: int = 0
    mended: int = 0
    waiting_since: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """What one call brought. Times are in ms since the request was written, unless they say otherwise.

    Attributes:
        started_at: seconds since the epoch.
        ended_at: the same, by the monotonic clock's account of the call.
        started: monotonic seconds.
        dispatch_ms: from started to written; None when it was never written.
        headers_ms: the response's headers; None when none came.
        e2e_ms: the end of the stream or of the wait; None when the request was never written.
        server_request_id: the header x-request-id.
        received: what had arrived.
        status: of the call.
        error: None when it completed.
        http_status: of the response; None when none came.
        body: the JSON body that was sent.
        mended: whether the same request may go out again at once, since the client knows now what the server did not
            take: an expired token, or stream options.
        used_up_for_s: how long the server says that no request or no token is left.
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
    mended: bool = False
    used_up_for_s: float | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a request before it is sent.

    Attributes:
        input_tokens: as tiktoken counts them.
        most_output: how many tokens the output may have, by the request; None where it does not say.
        choices: how many it asks for.
        price: of the model; None where it has none.
    """

    input_tokens: int
    most_output: int | None
    choices: int
    price: Price | None


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way through a worker.

    Attributes:
        request: what was asked.
        wire: what to send; None for a bad row.
        mode: of the row.
        row: where it stands in its part or batch.
        earlier: the calls that the run made for it before this worker, as the ``retries`` column has them.
        planned: monotonic seconds.
        then: the same request in the other mode, to start when this one has ended.
        expected: what it is expected to use; None where nothing asks.
        calls: made here, oldest first.
        tries: what counts towards the limits.
    """

    request: Request
    wire: Wire | None
    mode: Mode
    row: int
    earlier: list[dict[str, object]]
    planned: float
    then: Job | None = None
    expected: Expected | None = None
    calls: list[Call] = field(default_factory=list)
    tries: Tries = field(default_factory=Tries)


@dataclass(frozen=True, slots=True)
class Capture:
    """A request's story, over as far as this worker goes.

    Attributes:
        job: the request and its calls; without any, ``error`` says why.
        error: why nothing was sent; None when something was.
        queued_ms: from planned to the first call's start; None when nothing was sent.
        loop_lag_ms: the event loop's worst delay during the last call.
    """

    job: Job
    error: CaptureError | None = None
    queued_ms: float | None = None
    loop_lag_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the whole run may use; None where there is no bound.

    Attributes:
        requests_per_minute, tokens_per_minute: in any sixty seconds.
        requests, tokens, cost_usd: in all, expected use of what is in flight included.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    requests: int | None = None
    tokens: int | None = None
    cost_usd: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return any(getattr(self, name) is not None for name in self.__slots__)


class RunStatus(StrEnum):
    """The status of a run, as the ``runs`` table stores it."""

    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    BUDGET_EXHAUSTED = "budget_exhausted"
    FAILED = "failed"
    DIED = "died"
