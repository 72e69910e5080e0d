"""What a call received: its chunks as columns, its choices, usage and names, and what went wrong in the stream.

Knows no API and no sockets. They are filled by ``accumulate.py``, judged by ``outcomes.py``, timed by ``timing.py`` and
written by ``rows.py``.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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
    """An error that came in the stream, as the server named it."""

    type: str | None
    code: str | None
    message: str | None


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
