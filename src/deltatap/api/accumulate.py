"""Accumulates what a call receives: text, choices, usage, identifiers, and the time of each chunk. Sans-IO.

The base class knows how events become chunks and how a stream ends. Each API's module has a subclass that knows what
an event means. There are no sockets and no clocks here: each event comes with its time and the number of its socket
read. Nothing that a server sends raises an exception. An event that cannot be parsed becomes a protocol error, and
everything received before it is kept. Unknown fields are ignored. `http/outcomes.py` derives the call's outcome.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from deltatap.model import (
    EMPTY,
    ERROR,
    FINISH,
    NO_CHOICE,
    ROLE,
    TOOL_CALLS,
    USAGE,
    Choice,
    Chunks,
    Received,
    StreamError,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_DONE = b"[DONE]"
_NAN = math.nan
_SHOWN = 80
_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMES = ("model", "id", "system_fingerprint", "service_tier")


@dataclass(slots=True)
class ToolCall:
    """A tool call while its pieces arrive. For a call that the server ran itself, `item` is the call as it was sent."""

    id: str | None = None
    type: str = "function"
    name: StringIO = field(default_factory=StringIO)
    arguments: StringIO = field(default_factory=StringIO)
    item: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The call in the form of chat completions."""
        if self.item is not None:
            return self.item
        function = {"name": _joined(self.name), "arguments": _joined(self.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


@dataclass(slots=True)
class GrowingChoice:
    """A choice while its pieces arrive."""

    index: int
    text: StringIO = field(default_factory=StringIO)
    reasoning: StringIO = field(default_factory=StringIO)
    refusal: StringIO = field(default_factory=StringIO)
    tool_calls: dict[int, ToolCall] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    last_output_ms: float = _NAN

    def to_choice(self) -> Choice:
        """The choice as received so far."""
        calls = [call.to_dict() for _, call in sorted(self.tool_calls.items())]
        return Choice(
            index=self.index,
            text=_joined(self.text),
            finish_reason=self.finish_reason,
            refusal=_joined(self.refusal) or None,
            reasoning=_joined(self.reasoning) or None,
            tool_calls=to_json(calls) if calls else None,
        )


class Accumulator(ABC):
    """Receives the events of a stream, or a whole response. Use one accumulator per call.

    Args:
        choices: number of choices that the request asks for.
        keep_raw: keep the bytes of every event.

    Attributes:
        STATUSES: the HTTP status that an error in a stream corresponds to, by the error's code or type. A code or
            type that is not listed is a server error.
        done: whether the end of the response was received.
    """

    STATUSES: ClassVar[Mapping[str, int]] = {
        "rate_limit_exceeded": 429,
        "invalid_prompt": 400,
        "invalid_request_error": 400,
        "invalid_api_key": 401,
        "model_not_found": 404,
    }

    __slots__ = (
        "_asked",
        "_choices",
        "_chunks",
        "_error",
        "_event",
        "_filters",
        "_halves",
        "_moderation",
        "_ms",
        "_names",
        "_output_came",
        "_protocol_error",
        "_raw",
        "_read",
        "_usage",
        "_whole",
        "done",
    )

    def __init__(self, choices: int = 1, *, keep_raw: bool = False) -> None:
        self.done = False
        self._asked = choices
        self._raw: list[tuple[str, bytes]] | None = [] if keep_raw else None
        self._chunks = Chunks()
        self._choices: dict[int, GrowingChoice] = {}
        self._ms = 0.0
        self._read = 0
        self._event = -1
        self._whole = False
        self._halves = False
        self._output_came = False
        self._usage: Usage | None = None
        self._names: dict[str, str] = {}
        self._filters: list[Any] = []
        self._moderation: Any = None
        self._error: StreamError | None = None
        self._protocol_error: str | None = None

    def add(self, data: bytes, ms: float, read: int, event: str = "") -> None:
        """Add one event.

        Args:
            data: the event's data, from the SSE decoder.
            ms: when the event was read, in ms since the request was written.
            read: number of the socket read that brought it, from 0.
            event: the event's type; empty if the server sent none.
        """
        if self._raw is not None:
            self._raw.append((event, data))
        if self.done or self._error is not None or self._protocol_error is not None:
            return
        if data == _DONE:
            self.done = True
            return
        self._event += 1
        self._ms = ms
        self._read = read
        chunk = self._object(data)
        if chunk is None:
            return
        kinds = self._chunks.kind
        before = len(kinds)
        if event == "error" or chunk.get("error"):
            self._refuse(chunk, data)
        else:
            self._take(chunk, data, event)
        if len(kinds) == before:
            self._mark(EMPTY)

    def add_whole(self, data: bytes) -> None:
        """Add the body of a response that is not streamed. It has no chunks."""
        if self._raw is not None:
            self._raw.append(("", data))
        self._whole = self.done = True
        self._event = 0
        answer = self._object(data)
        if answer is None:
            return
        if answer.get("error"):
            self._refuse(answer, data)
        else:
            self._take_whole(answer, data)

    def add_refusal(self, body: object) -> None:
        """Keep the result of the content filter that refused the request. Azure puts the result into the error."""
        error = body.get("error", body) if type(body) is dict else None
        inner = error.get("innererror") if type(error) is dict else None
        found = inner.get("content_filter_result") if type(inner) is dict else None
        if found:
            self._filters.append({"content_filter_result": found})

    @abstractmethod
    def _take(self, chunk: dict[str, Any], data: bytes, event: str) -> None:
        """Take one event of this API."""

    @abstractmethod
    def _take_whole(self, answer: dict[str, Any], data: bytes) -> None:
        """Take a whole response of this API."""

    def _object(self, data: bytes) -> dict[str, Any] | None:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            try:
                # A server that cuts text between UTF-16 units sends half a surrogate pair, which orjson refuses.
                value = json.loads(data)
                self._halves = True
            except (ValueError, RecursionError):
                self._fail(f"is not valid JSON ({error})", data)
                return None
        if type(value) is not dict:
            self._fail("is not a JSON object", data)
            return None
        return value

    def _choice(self, index: object = 0) -> GrowingChoice:
        if type(index) is not int or not 0 <= index < 2**31:
            index = 0
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = GrowingChoice(index)
        return choice

    def _output(self, choice: GrowingChoice, into: StringIO | None, text: object, kind: int) -> None:
        """Add a piece of output. Empty text, or a value that is not text, adds nothing."""
        if type(text) is not str or not text:
            return
        ms = self._ms
        self._chunks.append(
            ms, ms - choice.last_output_ms, self._valid(text), kind, choice.index, self._event, self._read
        )
        if into is not None:
            into.write(text)
        choice.last_output_ms = ms
        self._output_came = True

    def _called(self, choice: GrowingChoice, call: ToolCall, name: object, arguments: object) -> None:
        """Add a piece of a tool call: one chunk, with a name, with arguments or with both."""
        pieces = []
        for into, text in ((call.name, name), (call.arguments, arguments)):
            if type(text) is str and text:
                into.write(text)
                pieces.append(text)
        self._output(choice, None, "".join(pieces), TOOL_CALLS)

    def _mark(self, kind: int, text: str = "", choice: GrowingChoice | None = None) -> None:
        """Add a chunk without output."""
        gap = _NAN if choice is None else self._ms - choice.last_output_ms
        index = NO_CHOICE if choice is None else choice.index
        self._chunks.append(self._ms, gap, self._valid(text), kind, index, self._event, self._read)

    def _valid(self, text: str) -> str:
        """The text without halves of surrogate pairs, which UTF-8 cannot encode."""
        return _SURROGATE.sub("\ufffd", text) if self._halves else text

    def role(self, choice: GrowingChoice, role: object) -> None:
        """Add the role of a choice."""
        if type(role) is str and role:
            self._mark(ROLE, role, choice)

    def _finish(self, choice: GrowingChoice, reason: object) -> None:
        if type(reason) is str and reason:
            choice.finish_reason = self._valid(reason)
            self._mark(FINISH, reason, choice)

    def _identify(self, names: dict[str, Any]) -> None:
        """Keep the model, the id, the fingerprint and the service tier. Most events repeat them."""
        if len(self._names) < len(_NAMES):
            for name in _NAMES:
                value = names.get(name)
                if type(value) is str and value:
                    self._names[name] = self._valid(value)

    def _used(self, usage: Usage) -> None:
        """Keep the usage. A later report replaces an earlier one."""
        self._usage = usage
        self._mark(USAGE)

    def _refuse(self, chunk: dict[str, Any], data: bytes) -> None:
        given = chunk.get("error") or chunk
        error = given if type(given) is dict else {"message": given}
        type_, code, message = (
            None if error.get(key) is None else self._valid(str(error[key])) for key in ("type", "code", "message")
        )
        self._error = StreamError(type_, code, message, self._status(code, type_))
        self._mark(ERROR, data.decode("utf-8", "replace"))

    def _status(self, *marks: str | None) -> int | None:
        """The client error (4xx) that an error's code or type corresponds to. None for any other error."""
        statuses = [int(mark) if mark.isdecimal() else self.STATUSES.get(mark, 0) for mark in marks if mark]
        return next((status for status in statuses if 400 <= status < 500), None)  # noqa: PLR2004 - client errors

    def _fail(self, what: str, data: bytes) -> None:
        shown = data[:_SHOWN].decode("utf-8", "replace")
        where = "the response" if self._whole else f"event {self._event}"
        self._protocol_error = f"{where} {what}: {shown}"

    def finish(self) -> Received:
        """The data received so far."""
        growing = [choice for _, choice in sorted(self._choices.items())]
        choices = tuple(choice.to_choice() for choice in growing)
        logprobs = [{"index": choice.index, "logprobs": choice.logprobs} for choice in growing if choice.logprobs]
        finished = [choice for choice in choices if choice.finish_reason is not None]
        return Received(
            chunks=Chunks() if self._whole else self._chunks,
            choices=choices,
            usage=self._usage,
            response_model=self._names.get("model"),
            response_id=self._names.get("id"),
            system_fingerprint=self._names.get("system_fingerprint"),
            service_tier=self._names.get("service_tier"),
            content_filter=to_json(self._filters) if self._filters else None,
            logprobs=to_json(logprobs) if logprobs else None,
            moderation=to_json(self._moderation) if self._moderation else None,
            done=self.done,
            error=self._error,
            protocol_error=self._protocol_error,
            output=self._output_came,
            finished=len(finished) >= self._asked and len(finished) == len(choices),
            raw=None if self._raw is None else tuple(self._raw),
        )


def to_json(value: object) -> str:
    """Compact JSON of a decoded JSON value."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits, half a surrogate pair
        return json.dumps(value)


def _joined(pieces: StringIO) -> str:
    """The whole text; two halves of a surrogate pair become one character again."""
    text = pieces.getvalue()
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def count(value: object) -> int | None:
    """The value if it is a number of tokens that fits into 64 bits."""
    return value if type(value) is int and abs(value) < 2**63 else None
