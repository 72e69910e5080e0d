"""Events of a chat completions stream become what was received: texts, choices, usage, when each chunk came. Sans-IO.

Knows what OpenAI-compatible servers put into a chunk. Knows no sockets and no clock: a time and a read number come with
each event. Nothing that a server sends raises here: what cannot be understood is kept as a protocol error, what is
unknown is passed over, and what had arrived before stays. Leaves to ``outcomes.py`` whether it was enough.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from deltatap.received import (
    CONTENT,
    EMPTY,
    ERROR,
    FINISH,
    NO_CHOICE,
    REASONING,
    REFUSAL,
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


@dataclass(slots=True)
class _Growing:
    """A choice as it grows."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    last_output_ms: float = _NAN


class ChatAccumulator:
    """Takes the events of a chat completions stream. One accumulator a call.

    Args:
        choices: how many the request asked for (``n``).
    """

    __slots__ = (
        "_asked",
        "_choices",
        "_chunks",
        "_error",
        "_event",
        "_filters",
        "_halves",
        "_names",
        "_protocol_error",
        "_usage",
        "done",
    )

    def __init__(self, choices: int = 1) -> None:
        self.done = False
        self._asked = choices
        self._chunks = Chunks()
        self._choices: dict[int, _Growing] = {}
        self._event = -1
        self._halves = False
        self._usage: Usage | None = None
        self._names: dict[str, str] = {}
        self._filters: list[Any] = []
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
        if self.done or self._error is not None or self._protocol_error is not None:
            return
        if data == _DONE:
            self.done = True
            return
        self._event += 1
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            try:
                # orjson refuses half a surrogate pair, which servers that cut between UTF-16 units do send.
                chunk = _cleaned(json.loads(data))
                self._halves = True
            except (ValueError, RecursionError):
                self._fail(f"is no JSON ({error})", data)
                return
        if type(chunk) is not dict:
            self._fail("is no JSON object", data)
            return
        if event == "error" or chunk.get("error"):
            self._refuse(chunk, data, ms, read)
            return
        self._take(chunk, data, ms, read)

    def _take(self, chunk: dict[str, Any], data: bytes, ms: float, read: int) -> None:  # noqa: C901 - runs per chunk
        choices = chunk.get("choices")
        if choices is None:
            choices = ()
        elif type(choices) is not list:
            self._fail("has choices that are no list", data)
            return
        said = len(self._chunks)
        for choice in choices:
            if type(choice) is not dict:
                self._fail("has a choice that is no object", data)
                return
            self._choice(choice, ms, read)
        usage = chunk.get("usage")
        if type(usage) is dict:
            self._usage = _usage(usage)
            self._chunks.append(ms, _NAN, "", USAGE, NO_CHOICE, self._event, read)
        if len(self._chunks) == said:
            self._chunks.append(ms, _NAN, "", EMPTY, NO_CHOICE, self._event, read)
        if len(self._names) < len(_NAMES):
            for name in _NAMES:
                value = chunk.get(name)
                if type(value) is str and value:
                    self._names[name] = value
        if "prompt_filter_results" in chunk:
            self._filters.append({"prompt_filter_results": chunk["prompt_filter_results"]})

    def _choice(self, given: dict[str, Any], ms: float, read: int) -> None:  # noqa: C901, PLR0912 - runs per chunk
        index = given.get("index")
        if type(index) is not int or not 0 <= index < 2**31:
            index = 0
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Growing()
        chunks, event, said = self._chunks, self._event, len(self._chunks)
        delta = given.get("delta")
        if type(delta) is dict:
            role = delta.get("role")
            if type(role) is str and role:
                chunks.append(ms, ms - choice.last_output_ms, role, ROLE, index, event, read)
            reasoning = delta.get("reasoning_content") or delta.get("reasoning")
            if type(reasoning) is str and reasoning:
                self._output(choice, choice.reasoning, reasoning, REASONING, index, ms, read)
            content = delta.get("content")
            if type(content) is str and content:
                self._output(choice, choice.text, content, CONTENT, index, ms, read)
            if not content or len(delta) > 1:
                refusal = delta.get("refusal")
                if type(refusal) is str and refusal:
                    self._output(choice, choice.refusal, refusal, REFUSAL, index, ms, read)
                calls = delta.get("tool_calls")
                if type(calls) is list and calls:
                    self._tool_calls(choice, calls, index, ms, read)
        elif type(given.get("tool_calls")) is list:
            self._tool_calls(choice, given["tool_calls"], index, ms, read)
        finish = given.get("finish_reason")
        if type(finish) is str and finish:
            choice.finish_reason = finish
            chunks.append(ms, ms - choice.last_output_ms, finish, FINISH, index, event, read)
        if len(chunks) == said:
            chunks.append(ms, ms - choice.last_output_ms, "", EMPTY, index, event, read)
        if given.get("logprobs"):
            choice.logprobs.append(given["logprobs"])
        if given.get("content_filter_results"):
            self._filters.append({"index": index, "content_filter_results": given["content_filter_results"]})

    def _output(
        self, choice: _Growing, into: list[str], text: str, kind: int, index: int, ms: float, read: int
    ) -> None:
        shown = _SURROGATE.sub("\ufffd", text) if self._halves else text
        self._chunks.append(ms, ms - choice.last_output_ms, shown, kind, index, self._event, read)
        into.append(text)
        choice.last_output_ms = ms

    def _tool_calls(self, choice: _Growing, calls: list[Any], index: int, ms: float, read: int) -> None:
        fragments: list[str] = []
        for at, given in enumerate(calls):
            if type(given) is not dict:
                continue
            number = given.get("index")
            call = choice.tool_calls.setdefault(
                number if type(number) is int else at, {"id": None, "type": "function", "name": [], "arguments": []}
            )
            for key in ("id", "type"):
                if type(given.get(key)) is str and given[key]:
                    call[key] = given[key]
            function = given.get("function")
            if type(function) is dict:
                for key in ("name", "arguments"):
                    text = function.get(key)
                    if type(text) is str and text:
                        call[key].append(text)
                        fragments.append(text)
        if fragments:
            self._output(choice, [], "".join(fragments), TOOL_CALLS, index, ms, read)

    def _refuse(self, chunk: dict[str, Any], data: bytes, ms: float, read: int) -> None:
        given = chunk.get("error") or chunk
        error = given if type(given) is dict else {"message": given}
        self._error = StreamError(
            *(None if error.get(k) is None else str(error[k]) for k in ("type", "code", "message"))
        )
        self._chunks.append(ms, _NAN, data.decode("utf-8", "replace"), ERROR, NO_CHOICE, self._event, read)

    def _fail(self, what: str, data: bytes) -> None:
        shown = data[:_SHOWN].decode("utf-8", "replace")
        self._protocol_error = f"event {self._event} {what}: {shown}"

    def finish(self) -> Received:
        """What was received until now."""
        choices = tuple(_grown(index, choice) for index, choice in sorted(self._choices.items()))
        logprobs = {index: choice.logprobs for index, choice in sorted(self._choices.items()) if choice.logprobs}
        finished = [choice for choice in choices if choice.finish_reason is not None]
        return Received(
            chunks=self._chunks,
            choices=choices,
            usage=self._usage,
            response_model=self._names.get("model"),
            response_id=self._names.get("id"),
            system_fingerprint=self._names.get("system_fingerprint"),
            service_tier=self._names.get("service_tier"),
            content_filter=_json(self._filters) if self._filters else None,
            logprobs=_json([{"index": index, "logprobs": found} for index, found in logprobs.items()])
            if logprobs
            else None,
            done=self.done,
            error=self._error,
            protocol_error=self._protocol_error,
            output=any(choice.text or choice.reasoning or choice.refusal or choice.tool_calls for choice in choices),
            finished=len(finished) >= self._asked and len(finished) == len(choices),
        )


_NAMES = ("model", "id", "system_fingerprint", "service_tier")


def _grown(index: int, choice: _Growing) -> Choice:
    calls = [
        {
            "id": call["id"],
            "type": call["type"],
            "function": {"name": _joined(call["name"]), "arguments": _joined(call["arguments"])},
        }
        for _, call in sorted(choice.tool_calls.items())
    ]
    return Choice(
        index=index,
        text=_joined(choice.text),
        finish_reason=choice.finish_reason,
        refusal=_joined(choice.refusal) or None,
        reasoning=_joined(choice.reasoning) or None,
        tool_calls=_json(calls) if calls else None,
    )


def _joined(pieces: list[str]) -> str:
    """The whole text; halves of a surrogate pair that came in two pieces become one character again."""
    text = "".join(pieces)
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _usage(given: dict[str, Any]) -> Usage:
    prompt = given.get("prompt_tokens_details")
    completion = given.get("completion_tokens_details")
    return Usage(
        input_tokens=_count(given.get("prompt_tokens")),
        output_tokens=_count(given.get("completion_tokens")),
        total_tokens=_count(given.get("total_tokens")),
        cached_input_tokens=_count(prompt.get("cached_tokens")) if type(prompt) is dict else None,
        reasoning_tokens=_count(completion.get("reasoning_tokens")) if type(completion) is dict else None,
    )


def _count(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None


_TEXTS = frozenset(("content", "reasoning_content", "reasoning", "refusal", "name", "arguments"))


def _cleaned(value: Any, key: str = "") -> Any:  # noqa: ANN401 - any JSON
    """Without halves of surrogate pairs, but for texts that come in pieces: the next may bring the other half."""
    if type(value) is str:
        return value if key in _TEXTS else _SURROGATE.sub("\ufffd", value)
    if type(value) is list:
        return [_cleaned(item) for item in value]
    if type(value) is dict:
        return {_cleaned(name): _cleaned(item, name) for name, item in value.items()}
    return value


def _json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits, half a surrogate pair
        return json.dumps(value)
