"""A captured answer in one form for all APIs, so that a row can be replayed through any of them. Pure.

These are the records. `from_row.py` makes them from a row, and each API's frames turn them into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from deltatap.api.codes import names_failure
from deltatap.api.refusal import find_error
from deltatap.api.values import bounded, decode
from deltatap.model import StreamError

if TYPE_CHECKING:
    from deltatap.api.frames import Answer, Facts, Piece
_MESSAGE_CHARS = 500


class Part(NamedTuple):
    """The part of an event that belongs to one choice and has one kind.

    Attributes:
        kind: of the chunk, as in `captures.chunks`; `failed` is an error that no chunk has, `silent` calls
            without a text, which have no chunk.
        choice: index of the choice; None if the chunk belongs to none.
        text: the finish_reason, the data of an error, or the output tokens so far if a later usage follows.
        pieces: the output.
    """

    kind: str
    choice: int | None
    text: str = ""
    pieces: tuple[Piece, ...] = ()


class Event(NamedTuple):
    """The parts of one event, and when it arrived, in ms."""

    ms: float
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured answer, in the terms of the API through which it is replayed.

    Attributes:
        facts: what all frames share.
        events: in order of arrival. An answer that was not streamed has its events at its end.
        answers: the choices.
        completed: whether the answer is complete.
        same: whether the answer is replayed through the API that it was captured from.
        typed: whether the events of that API have types.
        error: the error inside the answer.
    """

    facts: Facts
    events: tuple[Event, ...]
    answers: tuple[Answer, ...]
    completed: bool
    same: bool
    typed: bool
    error: StreamError | None = None

    def ends(self, reason: str | None) -> bool:
        """Whether the stream has an event that ends the answer."""
        return self.completed or (reason is not None and names_failure(reason))

    def next_output(self, at: int) -> str:
        """The kind of the next output after an event; empty if there is none."""
        return next((part.kind for event in self.events[at:] for part in event.parts if part.pieces), "")

    def error_frame(self, data: str) -> bytes:
        """An event with an error, as the server sent it. A row does not have the event's type, which is one line."""
        try:
            value = decode(data.encode())
        except ValueError:
            value = None
        type_ = value.get("type") if self.typed and isinstance(value, dict) else None
        known = isinstance(type_, str) and type_.isprintable()
        name = type_ if known else "" if find_error(value) is not None else "error"
        lines = "".join(f"data: {line}\n" for line in data.split("\n"))
        return (f"event: {name}\n" * bool(name) + lines + "\n").encode()

    def looped(self, times: int, ms: float) -> Captured:
        """The answer with its texts repeated. Each repetition starts this many ms after the previous one."""
        texts = [at for at, event in enumerate(self.events) if any(_is_text(part) for part in event.parts)]
        if not texts or times < 2:  # noqa: PLR2004 - nothing to repeat
            return self
        first, last = texts[0], texts[-1] + 1
        again = [
            Event(event.ms + number * ms, tuple(filter(_is_text, event.parts)))
            for number in range(1, times)
            for event in self.events[first:last]
            if any(map(_is_text, event.parts))
        ]
        later = [event._replace(ms=event.ms + (times - 1) * ms) for event in self.events[last:]]
        return replace(self, events=(*self.events[:last], *again, *later))


def _is_text(part: Part) -> bool:
    return bool(part.pieces) and part.kind != "tool_calls"


def error_in(data: str) -> StreamError:
    """The error in the data of an event or a body."""
    try:
        value = decode(data.encode())
    except ValueError:
        value = data
    response = value.get("response") if isinstance(value, dict) else None
    if isinstance(response, dict) and response.get("error"):
        value = {"error": response["error"]}  # the response's status is not the error's type
    found = find_error(value) or find_error({"error": value})
    return found or StreamError(None, None, bounded(data, _MESSAGE_CHARS))
