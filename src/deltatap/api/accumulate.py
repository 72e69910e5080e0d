"""Accumulates what a call receives: text, choices, usage, identifiers, and the time of each chunk. Sans-IO.

The base class knows how events become chunks and how a stream ends. Each API's module has a subclass that knows what
an event means. There are no sockets and no clocks here: each event comes with its time and the number of its socket
read. Nothing that a server sends raises an exception. An event that cannot be parsed becomes a protocol error, and
everything received before it is kept. After an error that the server reports, text and usage still count. Unknown
fields are ignored. `http/outcomes.py` derives the call's outcome.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import orjson

from deltatap.api.codes import STATUSES, names_failure
from deltatap.api.growing import GrowingChoice
from deltatap.api.refusal import find_error
from deltatap.api.values import bounded, clean, decode, joined, to_index, to_json
from deltatap.model import (
    CONTENT,
    EMPTY,
    ERROR,
    FINISH,
    KINDS,
    NO_CHOICE,
    OUTPUT_KINDS,
    REASONING,
    REFUSAL,
    ROLE,
    TOOL_CALLS,
    USAGE,
    Chunks,
    Received,
    StreamError,
    TokenCounts,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deltatap.api.alike import Alike
    from deltatap.api.growing import Text, ToolCall

_DONE = b"[DONE]"
# Variants of [DONE] that servers send, and the prefix that some servers repeat.
_DONE_FORMS = re.compile(rb'"?\[?done\]?"?', re.IGNORECASE)
_PREFIX = re.compile(rb"(?:\s*data:)+")
_NAN = math.nan
_SHOWN = 80
_OUTPUT = frozenset(KINDS.index(kind) for kind in OUTPUT_KINDS)
_NO_REASON = ("null", "none")
_ERROR_EVENTS = ("error", "exception", "failed", "failure")
_STATUS_OVERLOADED = 529
_STATUS_INVALID = 400
# The lists of log probabilities, one item for each token: in chat completions, and in legacy completions.
_PROBED = ("content", "refusal", "tokens")
_LESSONS = 8
_NAMES = ("model", "id", "system_fingerprint", "service_tier")


class Accumulator(ABC):
    """Receives the events of a stream, or a whole response. Use one accumulator per call.

    Args:
        choices: number of choices that the request asks for.
        keep_raw: keep the bytes of every event.

    Attributes:
        PLAIN: the field of every event that is not an error. An event without it is checked for an error of any form.
        ANSWER: the field that a whole answer has.
        EVENTS: the types of events that the API knows. An event of another type need not be JSON.
        STATUSES: the HTTP status that an error in a stream corresponds to, by the error's code or type in lower case.
            A code or type that is not listed is a server error.
        done: whether the end of the response was received.
        sequence: the number that the server gave to the last event; None if it gives none.
    """

    PLAIN: ClassVar[str] = "choices"
    ANSWER: ClassVar[str] = "choices"
    EVENTS: ClassVar[Mapping[str, Callable[[Any, dict[str, Any]], None]]] = {}
    STATUSES: ClassVar[Mapping[str, int]] = STATUSES

    __slots__ = (
        "_alike",
        "_annotations",
        "_asked",
        "_choices",
        "_chunks",
        "_counts",
        "_error",
        "_event",
        "_filters",
        "_halves",
        "_lessons",
        "_moderation",
        "_ms",
        "_names",
        "_output_came",
        "_protocol_error",
        "_raw",
        "_read",
        "_usage",
        "_usage_at",
        "_whole",
        "done",
        "sequence",
    )

    def __init__(self, choices: int = 1, *, keep_raw: bool = False) -> None:
        self.done = False
        self.sequence: int | None = None
        self._asked = choices
        self._raw: list[tuple[str, bytes]] | None = [] if keep_raw else None
        self._chunks = Chunks()
        self._counts = TokenCounts()
        self._choices: dict[int, GrowingChoice] = {}
        self._ms = 0.0
        self._read = 0
        self._event = -1
        self._whole = False
        self._halves = False
        # How to take a chunk that differs from an earlier one only in its text, and how many more chunks may be
        # compared to learn this. The number is bounded, because some servers change each chunk.
        self._alike: Alike | None = None
        self._lessons = _LESSONS
        self._output_came = False
        self._usage: Usage | None = None
        self._usage_at = 0
        self._names: dict[str, str] = {}
        self._filters: list[Any] = []
        self._annotations: dict[str, Any] = {}
        self._moderation: Any = None
        self._error: StreamError | None = None
        self._protocol_error: str | None = None

    @property
    def chunks(self) -> Chunks:
        """The chunks that have arrived. More are added to them."""
        return self._chunks

    def add(self, data: bytes, ms: float, read: int, event: str = "") -> None:
        """Add one event.

        Args:
            data: the event's data, from the SSE decoder.
            ms: when the event was read, in ms since the request was written.
            read: number of the socket read that returned it, from 0.
            event: the event's type; empty if the server sent none.
        """
        if self._raw is not None:
            self._raw.append((event, data))
        if self.done or self._protocol_error is not None:
            return
        if data == _DONE:
            self.done = True
            return
        self._event += 1
        self._ms = ms
        self._read = read
        kinds = self._chunks.kind
        before = len(kinds)
        try:
            if self._alike is not None and not event and (text := self._alike.around.text(data)):
                self._alike.take(self, self._alike.choice, text)
                if len(kinds) == before:
                    self._mark(EMPTY, "", self._alike.choice)
                return
            chunk = self._object(data, event)
            if chunk is None:
                return
            if not chunk.get(self.PLAIN) or "error" in chunk or event == "error":
                self._check(chunk, data, event)
            self._take(chunk, data, event)
            if len(kinds) == before:
                self._mark(EMPTY)
        except OverflowError:
            self._fail("makes the answer larger than 2 GiB", data)

    def add_whole(self, data: bytes) -> None:
        """Add the body of a response that is not streamed. It has no chunks."""
        if self._raw is not None:
            self._raw.append(("", data))
        self._whole = self.done = True
        self._event = 0
        answer = self._object(data, "")
        if answer is None:
            return
        if not answer.get(self.ANSWER) or "error" in answer:
            self._check(answer, data)
        self._take_whole(answer, data)

    def end_of_text(self, size: int) -> tuple[int, str]:
        """The number of characters of choice 0 that have arrived, and the last of them, at most this many.

        Counts the text, or else the reasoning, the refusal or the last tool call.
        """
        choice = self._choices.get(0)
        if choice is None:
            return 0, ""
        call = choice.last_call
        texts = (choice.text, choice.reasoning, choice.refusal, *(() if call is None else (call.arguments, call.name)))
        found = next((text for text in texts if text.tell()), choice.text)
        return found.tell(), found.end(size)

    @property
    def response_id(self) -> str | None:
        """The id of the response; None while it is unknown."""
        return self._names.get("id")

    @property
    def size(self) -> int:
        """The number of chunks so far."""
        return len(self._chunks)

    def read_on(self) -> None:
        """Prepare for the rest of the answer, after a break. The error that ended it early no longer counts."""
        self._error = self._protocol_error = None

    def add_refusal(self, data: bytes) -> None:
        """Keep the result of the content filter that refused the request. Azure puts the result into the error."""
        try:
            body = decode(data)
        except ValueError:
            return
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

    def _object(self, data: bytes, event: str) -> dict[str, Any] | None:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            # A server that cuts text between UTF-16 units sends half a surrogate pair, which orjson refuses.
            self._halves = True
            try:
                value = decode(_PREFIX.sub(b"", data, count=1))
            except ValueError as error:
                self._undecoded(data, event, error)
                return None
        if type(value) is dict:
            return value
        self._no_object(value, data, event)
        return None

    def _undecoded(self, data: bytes, event: str, error: ValueError) -> None:
        """Handle data that is not JSON. Blank data, and notices such as `event: ping`, have no content to receive."""
        text = _PREFIX.sub(b"", data, count=1).strip()
        if text == _DONE or (_DONE_FORMS.fullmatch(text) and not self._notice(event)):
            self.done = True
        elif self._names_error(event):
            self._refuse(text.decode("utf-8", "replace"), data)
        elif self._whole or (text and not self._notice(event)):
            self._fail(f"is not valid JSON ({error})", data)

    def _no_object(self, value: object, data: bytes, event: str) -> None:
        """Handle JSON that is not an object. Gemini sends errors, and native events, in a list."""
        if type(value) is str and _DONE_FORMS.fullmatch(data.strip()):
            self.done = True
        elif self._names_error(event) or find_error(value) is not None:
            self._refuse(value, data)
        elif _are_events(value, self.PLAIN):
            for item in cast("list[dict[str, Any]]", value):
                self._take(item, data, event)
        elif self._whole or (value is not None and not self._notice(event)):
            self._fail("is not a JSON object", data)

    def _notice(self, event: str) -> bool:
        """Whether the type of an event is one that the API does not know."""
        return event not in ("", "message") and event not in self.EVENTS

    def _names_error(self, event: str) -> bool:
        return event.lower() in _ERROR_EVENTS

    def _choice(self, index: object = 0) -> GrowingChoice:
        if type(index) is not int or not 0 <= index < 2**31:
            index = to_index(index) or 0
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = GrowingChoice(index)
        return choice

    def _output(self, choice: GrowingChoice, into: Text | None, text: object, kind: int) -> None:
        """Add a piece of output. Empty text, or a value that is not text, adds nothing."""
        if type(text) is not str or not text:
            return
        if self._halves:
            text = clean(text) if into is None else self._joined(choice, text, kind)
            if not text:
                return
        ms = self._ms
        self._chunks.append(ms, ms - choice.last_output_ms, text, kind, choice.index, self._event, self._read)
        if into is not None:
            into.write(text)
        choice.last_output_ms = ms
        self._output_came = True

    def _joined(self, choice: GrowingChoice, text: str, kind: int) -> str:
        """The text with the half of a surrogate pair that came before it, without the half at its end."""
        text = choice.halves.pop(kind, "") + text
        if "\ud800" <= text[-1] <= "\udbff":
            choice.halves[kind], text = text[-1], text[:-1]
        return joined(text)

    def _end_halves(self, choice: GrowingChoice) -> None:
        """Add the halves of surrogate pairs that were never completed."""
        into = {CONTENT: choice.text, REASONING: choice.reasoning, REFUSAL: choice.refusal}
        for kind in list(choice.halves):
            del choice.halves[kind]
            self._output(choice, into[kind], "\ufffd", kind)

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
        return clean(text) if self._halves else text

    def role(self, choice: GrowingChoice, role: object) -> None:
        """Add the role of a choice."""
        if type(role) is str and role:
            self._mark(ROLE, role, choice)

    def _finish(self, choice: GrowingChoice, reason: object) -> None:
        if type(reason) is dict:  # SGLang's own form
            reason = reason.get("type")
        if type(reason) is str and reason and reason.lower() not in _NO_REASON:
            self._end_halves(choice)
            choice.finish_reason = self._valid(reason)
            self._mark(FINISH, reason, choice)
            if names_failure(reason):
                choice.failure = choice.finish_reason

    def _probed(self, choice: GrowingChoice, given: object) -> None:
        """Keep log probabilities, and the number of tokens that they are for."""
        choice.logprobs.append(given)
        if type(given) is dict:
            lists = [found for name in _PROBED if type(found := given.get(name)) is list]
            self._counts.probed_event.append(self._event)
            self._counts.probed_choice.append(choice.index)
            self._counts.probed.append(sum(map(len, lists)))

    def annotate(self, choice: GrowingChoice, annotations: object) -> None:
        """Keep annotations, for example the URLs that a text cites."""
        for annotation in annotations if type(annotations) is list else [annotations]:
            choice.annotations[to_json(annotation)] = None

    def _identify(self, names: dict[str, Any]) -> None:
        """Keep the model, the id, the fingerprint and the service tier. Most events repeat them."""
        if len(self._names) < len(_NAMES):
            for name in _NAMES:
                value = names.get(name)
                if type(value) is str and value and value != self._names.get(name):
                    self._names[name] = self._valid(value)
                    self._alike = None  # later chunks would name the earlier model again

    def _used(self, usage: Usage) -> None:
        """Keep the usage. A later report replaces an earlier one, unless it has lost the count: some end with zeros."""
        if usage.output_tokens is not None:
            self._counts.used_event.append(self._event)
            self._counts.used.append(usage.output_tokens)
        known = self._usage
        if known is None or usage.output_tokens or not known.output_tokens:
            empty = not (usage.input_tokens or usage.output_tokens or usage.total_tokens)
            self._usage = known if empty and known is not None else usage
        self._mark(USAGE)
        self._usage_at = len(self._chunks)

    def _check(self, chunk: dict[str, Any], data: bytes, event: str = "") -> None:
        """Keep the error that an event consists of, or has next to its output. A notice can have a message, too."""
        if self._names_error(event) or find_error(chunk, plain=not self._notice(event)) is not None:
            self._refuse(chunk, data)

    def _refuse(self, value: object, data: bytes) -> None:
        """Keep an error of any form. The first error with a message counts."""
        error = find_error(value) or find_error({"error": value}) or StreamError(None, None, None)
        if self._error is None or (self._error.message is None and error.message is not None):
            self._error = replace(error, client_status=self._status(error.code, error.type))
        chunks = self._chunks
        if not chunks or chunks.kind[-1] != ERROR or chunks.event[-1] != self._event:
            self._mark(ERROR, data.decode("utf-8", "replace"))

    def _status(self, *marks: str | None) -> int | None:
        """The client error (4xx) or overload that an error's code or type corresponds to. None for any other error."""
        given = [mark.lower() for mark in marks if mark]
        statuses = [self.STATUSES.get(mark) or (int(mark) if mark.isdecimal() else 0) for mark in given]
        known = [status for status in statuses if 400 <= status < 600]  # noqa: PLR2004 - errors
        # Some gateways write `invalid_request_error` next to any code.
        if len(known) > 1 and known[0] != _STATUS_INVALID:
            known = [status for status in known if status != _STATUS_INVALID]
        return next((status for status in known if status < 500 or status == _STATUS_OVERLOADED), None)  # noqa: PLR2004 - client errors

    def _failure(self, choices: list[GrowingChoice]) -> StreamError | None:
        """The error that a finish_reason names."""
        reason = next((reason for choice in choices if (reason := choice.failed()) is not None), None)
        if reason is None:
            return None
        return StreamError(None, reason, f"the finish_reason is {reason}", self._status(reason))

    def _fail(self, what: str, data: bytes) -> None:
        shown = "".join(
            char if char.isprintable() else "\ufffd" for char in data[: 4 * _SHOWN].decode("utf-8", "replace")
        )
        where = "the response" if self._whole else f"event {self._event}"
        self._protocol_error = f"{where} {what}: {bounded(shown, _SHOWN)}"

    def _usage_final(self) -> bool:
        """Whether no output came after the usage, and the usage has counted the output."""
        if self._usage is None or self._whole:
            return True
        later = self._chunks.kind[self._usage_at :]
        counted = self._usage.output_tokens != 0 or not self._output_came
        return counted and _OUTPUT.isdisjoint(later) and not self._usage_of_one_choice()

    def _usage_of_one_choice(self) -> bool:
        """Whether the usage may be that of one of several choices: vLLM can add it to each of their chunks."""
        if len(self._choices) == 1 or all(choice.finish_reason is not None for choice in self._choices.values()):
            return False
        chunks, at = self._chunks, self._usage_at - 1
        same = [kind for kind, event in zip(chunks.kind, chunks.event, strict=True) if event == chunks.event[at]]
        return not _OUTPUT.isdisjoint(same)

    def finish(self) -> Received:
        """The data received so far."""
        growing = [choice for _, choice in sorted(self._choices.items())]
        for choice in growing:
            self._end_halves(choice)
        choices = tuple(choice.to_choice() for choice in growing)
        logprobs = [{"index": choice.index, "logprobs": choice.logprobs} for choice in growing if choice.logprobs]
        annotations: list[Any] = [
            {"index": choice.index, "annotations": [orjson.Fragment(text) for text in choice.annotations]}
            for choice in growing
            if choice.annotations
        ]
        annotations += [{name: value} for name, value in self._annotations.items()]
        finished = [choice for choice in growing if choice.finish_reason is not None and choice.failed() is None]
        return Received(
            chunks=Chunks() if self._whole else self._chunks,
            choices=choices,
            usage=self._usage,
            usage_final=self._usage_final(),
            response_model=self._names.get("model"),
            response_id=self._names.get("id"),
            system_fingerprint=self._names.get("system_fingerprint"),
            service_tier=self._names.get("service_tier"),
            content_filter=to_json(self._filters) if self._filters else None,
            logprobs=to_json(logprobs) if logprobs else None,
            annotations=to_json(annotations) if annotations else None,
            moderation=to_json(self._moderation) if self._moderation else None,
            done=self.done,
            error=self._error or self._failure(growing),
            protocol_error=self._protocol_error,
            output=self._output_came,
            finished=len(finished) >= self._asked and len(finished) == len(choices),
            raw=None if self._raw is None else tuple(self._raw),
            counts=self._counts,
        )


def _are_events(value: object, plain: str) -> bool:
    """Whether the value is a list of events, at least one of which is not an error."""
    dicts = type(value) is list and all(type(item) is dict for item in value)
    return dicts and any(item.get(plain) for item in cast("list[dict[str, Any]]", value))
