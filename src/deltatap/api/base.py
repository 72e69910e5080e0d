"""What a call receives grows here: texts, choices, usage, names, when each chunk came. Sans-IO, the same for all APIs.

Knows how events become elements and how they end. Knows no sockets and no clock: a time and a read number come with
each event. Nothing that a server sends raises here: what cannot be understood is kept as a protocol error, what is
unknown is passed over, and what had arrived before stays. What an event means is its API's: one table each, in
``apis.py``. Leaves to ``outcomes.py`` whether it was enough.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

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

_DONE = b"[DONE]"
_NAN = math.nan
_SHOWN = 80
_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMES = ("model", "id", "system_fingerprint", "service_tier")


@dataclass(slots=True)
class ToolCall:
    """A tool call as it grows; `item` is one that a server ran itself, as it said it."""

    id: str | None = None
    type: str = "function"
    name: StringIO = field(default_factory=StringIO)
    arguments: StringIO = field(default_factory=StringIO)
    item: dict[str, Any] | None = None

    def grown(self) -> dict[str, Any]:
        """As chat completions have it."""
        if self.item is not None:
            return self.item
        function = {"name": _joined(self.name), "arguments": _joined(self.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


@dataclass(slots=True)
class Growing:
    """A choice as it grows."""

    index: int
    text: StringIO = field(default_factory=StringIO)
    reasoning: StringIO = field(default_factory=StringIO)
    refusal: StringIO = field(default_factory=StringIO)
    tool_calls: dict[int, ToolCall] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    last_output_ms: float = _NAN

    def grown(self) -> Choice:
        """The choice as it stands."""
        calls = [call.grown() for _, call in sorted(self.tool_calls.items())]
        return Choice(
            index=self.index,
            text=_joined(self.text),
            finish_reason=self.finish_reason,
            refusal=_joined(self.refusal) or None,
            reasoning=_joined(self.reasoning) or None,
            tool_calls=to_json(calls) if calls else None,
        )


class Accumulator(ABC):
    """Takes the events of a stream, or a whole answer. One accumulator a call; a subclass for each API.

    Args:
        choices: how many the request asked for (``n``).
        keep_raw: whether every event's bytes are kept.
    """

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
        self._choices: dict[int, Growing] = {}
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
        """One event's data.

        Args:
            data: as decoded by the SSE decoder.
            ms: when it was read, since the request was written.
            read: the number of the socket read that brought it.
            event: the event's type; most servers name none.
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
        said = len(kinds)
        if event == "error" or chunk.get("error"):
            self._refuse(chunk, data)
        else:
            self._take(chunk, data, event)
        if len(kinds) == said:
            self._mark(EMPTY)

    def add_whole(self, data: bytes) -> None:
        """The body of an answer that is not streamed. It has no chunks."""
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
        """What a refused request's body says of the filter that refused it, as Azure's does."""
        error = body.get("error", body) if type(body) is dict else None
        inner = error.get("innererror") if type(error) is dict else None
        found = inner.get("content_filter_result") if type(inner) is dict else None
        if found:
            self._filters.append({"content_filter_result": found})

    @abstractmethod
    def _take(self, chunk: dict[str, Any], data: bytes, event: str) -> None:
        """What an event means; the API's."""

    @abstractmethod
    def _take_whole(self, answer: dict[str, Any], data: bytes) -> None:
        """What a whole answer means; the API's."""

    def _object(self, data: bytes) -> dict[str, Any] | None:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            try:
                # orjson refuses half a surrogate pair, which servers that cut between UTF-16 units do send.
                value = _cleaned(json.loads(data))
                self._halves = True
            except (ValueError, RecursionError):
                self._fail(f"is no JSON ({error})", data)
                return None
        if type(value) is not dict:
            self._fail("is no JSON object", data)
            return None
        return value

    def _choice(self, index: object = 0) -> Growing:
        if type(index) is not int or not 0 <= index < 2**31:
            index = 0
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = Growing(index)
        return choice

    def _output(self, choice: Growing, into: StringIO | None, text: object, kind: int) -> None:
        """A piece of output; nothing for an empty one and for what is no text."""
        if type(text) is not str or not text:
            return
        shown = _SURROGATE.sub("\ufffd", text) if self._halves else text
        ms = self._ms
        self._chunks.append(ms, ms - choice.last_output_ms, shown, kind, choice.index, self._event, self._read)
        if into is not None:
            into.write(text)
        choice.last_output_ms = ms
        self._output_came = True

    def _called(self, choice: Growing, call: ToolCall, name: object, arguments: object) -> None:
        """A piece of a tool call: one element, whatever it brings."""
        pieces = []
        for into, text in ((call.name, name), (call.arguments, arguments)):
            if type(text) is str and text:
                into.write(text)
                pieces.append(text)
        self._output(choice, None, "".join(pieces), TOOL_CALLS)

    def _mark(self, kind: int, text: str = "", choice: Growing | None = None) -> None:
        """An element that is no output."""
        gap = _NAN if choice is None else self._ms - choice.last_output_ms
        index = NO_CHOICE if choice is None else choice.index
        self._chunks.append(self._ms, gap, text, kind, index, self._event, self._read)

    def role(self, choice: Growing, role: object) -> None:
        """Who speaks."""
        if type(role) is str and role:
            self._mark(ROLE, role, choice)

    def _finish(self, choice: Growing, reason: object) -> None:
        if type(reason) is str and reason:
            choice.finish_reason = reason
            self._mark(FINISH, reason, choice)

    def _said(self, names: dict[str, Any]) -> None:
        """Who answered, under which id; the first word counts, and most events repeat it."""
        if len(self._names) < len(_NAMES):
            for name in _NAMES:
                value = names.get(name)
                if type(value) is str and value:
                    self._names[name] = value

    def _used(self, given: object) -> None:
        """Usage, in the words of chat completions or of Responses; the last word counts."""
        if type(given) is not dict:
            return
        cached = _detail(given, "prompt_tokens_details", "input_tokens_details")
        output = _detail(given, "completion_tokens_details", "output_tokens_details")
        self._usage = Usage(
            input_tokens=_count(given.get("prompt_tokens", given.get("input_tokens"))),
            output_tokens=_count(given.get("completion_tokens", given.get("output_tokens"))),
            total_tokens=_count(given.get("total_tokens")),
            # DeepSeek's word for it stands beside the tokens.
            cached_input_tokens=_count(cached.get("cached_tokens", given.get("prompt_cache_hit_tokens"))),
            reasoning_tokens=_count(output.get("reasoning_tokens")),
            audio_input_tokens=_count(cached.get("audio_tokens")),
            audio_output_tokens=_count(output.get("audio_tokens")),
        )
        self._mark(USAGE)

    def _refuse(self, chunk: dict[str, Any], data: bytes) -> None:
        given = chunk.get("error") or chunk
        error = given if type(given) is dict else {"message": given}
        self._error = StreamError(
            *(None if error.get(key) is None else str(error[key]) for key in ("type", "code", "message"))
        )
        self._mark(ERROR, data.decode("utf-8", "replace"))

    def _fail(self, what: str, data: bytes) -> None:
        shown = data[:_SHOWN].decode("utf-8", "replace")
        where = "the answer" if self._whole else f"event {self._event}"
        self._protocol_error = f"{where} {what}: {shown}"

    def finish(self) -> Received:
        """What was received until now."""
        growing = [choice for _, choice in sorted(self._choices.items())]
        choices = tuple(choice.grown() for choice in growing)
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
    """Compact JSON of what came as JSON."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits, half a surrogate pair
        return json.dumps(value)


def _joined(pieces: StringIO) -> str:
    """The whole text; halves of a surrogate pair that came in two pieces become one character again."""
    text = pieces.getvalue()
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _detail(usage: dict[str, Any], *names: str) -> dict[str, Any]:
    found = next((usage[name] for name in names if usage.get(name)), None)
    return found if type(found) is dict else {}


def _count(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None


_TEXTS = frozenset(
    ("content", "reasoning_content", "reasoning", "refusal", "name", "arguments", "text", "delta", "transcript")
)


def _cleaned(value: Any, key: str = "") -> Any:  # noqa: ANN401 - any JSON
    """Without halves of surrogate pairs, but for texts that come in pieces: the next may bring the other half."""
    if type(value) is str:
        return value if key in _TEXTS else _SURROGATE.sub("\ufffd", value)
    if type(value) is list:
        return [_cleaned(item) for item in value]
    if type(value) is dict:
        return {_cleaned(name): _cleaned(item, name) for name, item in value.items()}
    return value
