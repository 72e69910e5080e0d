"""What an event means in each API: chat completions, legacy completions, Responses. Sans-IO: one table each.

Knows what OpenAI and the servers that are compatible with it put into a chunk, an event or a whole answer;
docs/endpoints.md names the sources. Leaves to ``accumulate.py`` what becomes of a text, a role, a finish, an error.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from deltatap.api.base import Accumulator, Growing, ToolCall
from deltatap.model import CONTENT, EMPTY, REASONING, REFUSAL, Api

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
PATHS: Mapping[Api, str] = {"chat": "/chat/completions", "completions": "/completions", "responses": "/responses"}
# Azure's filter results and Databricks' guardrails, as they stand in a chunk.
_FILTERS = frozenset(("prompt_filter_results", "input_guardrail", "output_guardrail"))
_CHOICE_FILTERS = ("content_filter_results", "content_filter_offsets")


class _Choices(Accumulator):
    """Chat and legacy completions: chunks with choices. A whole answer is one chunk with all of it.

    Attributes:
        FIELDS: what to do with a field of a choice's part.
    """

    __slots__ = ()
    FIELDS: ClassVar[Mapping[str, Callable[[Any, Growing, Any], None]]]

    @abstractmethod
    def _part(self, given: dict[str, Any]) -> object:
        """Where a choice has its output."""

    def _take(self, chunk: dict[str, Any], data: bytes, event: str) -> None:  # noqa: ARG002 - these events have no types
        choices = chunk.get("choices")
        if type(choices) is list:
            for given in choices:
                if type(given) is not dict:
                    self._fail("has a choice that is no object", data)
                    return
                self._take_choice(given)
        elif choices is not None:
            self._fail("has choices that are no list", data)
            return
        if chunk.get("usage"):
            self._used(chunk["usage"])
        self._said(chunk)
        if not _FILTERS.isdisjoint(chunk):
            self._filters += [{name: chunk[name]} for name in chunk if name in _FILTERS and chunk[name]]
        if chunk.get("moderation"):
            self._moderation = chunk["moderation"]

    def _take_whole(self, answer: dict[str, Any], data: bytes) -> None:
        self._take(answer, data, "")

    def _take_choice(self, given: dict[str, Any]) -> None:
        choice = self._choice(given.get("index"))
        kinds = self._chunks.kind
        said = len(kinds)
        part = self._part(given)
        if type(part) is dict:
            fields = self.FIELDS
            for name, value in part.items():
                if value and name in fields:
                    fields[name](self, choice, value)
        if given.get("finish_reason"):
            self._finish(choice, given["finish_reason"])
        if len(kinds) == said:
            self._mark(EMPTY, "", choice)
        if given.get("logprobs"):
            choice.logprobs.append(given["logprobs"])
        if given.get("content_filter_results") or given.get("content_filter_offsets"):
            said_so = {name: given[name] for name in _CHOICE_FILTERS if given.get(name)}
            self._filters.append({"index": choice.index, **said_so})

    def content(self, choice: Growing, value: object) -> None:
        """Text, or parts."""
        if type(value) is list:
            for part in value:
                self._content_part(choice, part)
        else:
            self._output(choice, choice.text, value, CONTENT)

    def _content_part(self, choice: Growing, part: object) -> None:
        """Content in parts: Mistral's thinking, Databricks' reasoning with its summary, text."""
        if type(part) is not dict:
            return
        self._output(choice, choice.text, part.get("text"), CONTENT)
        for name in ("thinking", "summary"):
            found = part.get(name)
            for inner in found if type(found) is list else [{"text": found}]:
                if type(inner) is dict:
                    self._output(choice, choice.reasoning, inner.get("text"), REASONING)


class ChatAccumulator(_Choices):
    """``POST /chat/completions``: ``choices[].delta``, or ``choices[].message`` of a whole answer."""

    __slots__ = ()

    def _part(self, given: dict[str, Any]) -> object:
        part = given.get("delta") or given.get("message")
        if type(part) is dict and part.get("reasoning_content"):
            # Servers that are changing the field's name send both, with the same text.
            part.pop("reasoning", None)
        return part

    def _refusal(self, choice: Growing, value: object) -> None:
        self._output(choice, choice.refusal, value, REFUSAL)

    def _reasoning(self, choice: Growing, value: object) -> None:
        self._output(choice, choice.reasoning, value, REASONING)

    def _tool_calls(self, choice: Growing, value: object) -> None:
        if type(value) is not list:
            return
        for at, given in enumerate(value):
            if type(given) is not dict:
                continue
            number = given.get("index")
            call = choice.tool_calls.setdefault(number if type(number) is int else at, ToolCall())
            for key in ("id", "type"):
                if type(given.get(key)) is str and given[key]:
                    setattr(call, key, given[key])
            # A custom tool has an input where a function has arguments.
            function = given.get("function") or given.get("custom")
            if type(function) is dict:
                self._called(choice, call, function.get("name"), function.get("arguments") or function.get("input"))

    def _function_call(self, choice: Growing, value: object) -> None:
        """What tool calls were called before there were tools: one function, without an id."""
        if type(value) is dict:
            call = choice.tool_calls.setdefault(0, ToolCall())
            self._called(choice, call, value.get("name"), value.get("arguments"))

    def _audio(self, choice: Growing, value: object) -> None:
        """Of spoken output the transcript is its text; the sound is in the raw events only."""
        if type(value) is dict:
            self._output(choice, choice.text, value.get("transcript"), CONTENT)

    FIELDS = {  # noqa: RUF012 - ClassVar in the base
        "role": Accumulator.role,
        "reasoning_content": _reasoning,
        "reasoning": _reasoning,
        "content": _Choices.content,
        "refusal": _refusal,
        "tool_calls": _tool_calls,
        "function_call": _function_call,
        "audio": _audio,
    }


class CompletionsAccumulator(_Choices):
    """``POST /completions``, the legacy API: ``choices[].text``."""

    __slots__ = ()

    def _part(self, given: dict[str, Any]) -> object:
        return given

    FIELDS = {"text": _Choices.content}  # noqa: RUF012 - ClassVar in the base


class ResponsesAccumulator(Accumulator):
    """``POST /responses``: typed events. All output is choice 0; a whole answer is what ``response.completed`` has."""

    __slots__ = ()

    def _take(self, chunk: dict[str, Any], data: bytes, event: str) -> None:
        type_ = str(chunk.get("type") or event)
        if type_ == "error":
            self._refuse(chunk, data)
        elif type_ == "response.failed":
            self._failed(chunk.get("response"), data)
        elif type_ in self.EVENTS:
            self.EVENTS[type_](self, chunk)

    def _take_whole(self, answer: dict[str, Any], data: bytes) -> None:
        status = answer.get("status")
        if status == "failed":
            self._failed(answer, data)
        elif status in (None, "completed", "incomplete"):
            self._end({"response": answer})
        else:  # queued, in_progress, cancelled: no answer
            self._ended(answer)

    def _start(self, event: dict[str, Any]) -> None:
        if type(event.get("response")) is dict:
            self._said(event["response"])

    def _text(self, event: dict[str, Any]) -> None:
        choice = self._choice()
        self._output(choice, choice.text, event.get("delta"), CONTENT)
        if event.get("logprobs"):
            choice.logprobs.append({"content": event["logprobs"]})

    def _refusal(self, event: dict[str, Any]) -> None:
        choice = self._choice()
        self._output(choice, choice.refusal, event.get("delta"), REFUSAL)

    def _reasoning(self, event: dict[str, Any]) -> None:
        choice = self._choice()
        self._output(choice, choice.reasoning, event.get("delta"), REASONING)

    def _arguments(self, event: dict[str, Any]) -> None:
        choice = self._choice()
        self._called(choice, self._call(choice, event), None, event.get("delta"))

    def _call(self, choice: Growing, event: dict[str, Any]) -> ToolCall:
        number = event.get("output_index")
        return choice.tool_calls.setdefault(number if type(number) is int else len(choice.tool_calls), ToolCall())

    def _item_added(self, event: dict[str, Any]) -> None:
        item = event.get("item")
        if type(item) is not dict:
            return
        choice = self._choice()
        if item.get("type") == "message":
            self.role(choice, item.get("role"))
        elif _is_call(item):
            call = self._call(choice, event)
            _identify(call, item)
            self._called(choice, call, item.get("name"), None)

    def _item_done(self, event: dict[str, Any]) -> None:
        """What a server ran itself is whole only now; the rest came in pieces before."""
        item = event.get("item")
        if type(item) is dict and _is_call(item):
            _identify(self._call(self._choice(), event), item)

    def _end(self, event: dict[str, Any]) -> None:
        response = event.get("response")
        if type(response) is not dict:
            response = {}
        choice = self._choice()
        if not (choice.text.tell() or choice.reasoning.tell() or choice.refusal.tell() or choice.tool_calls):
            self._whole_output(choice, response.get("output"))
        details = response.get("incomplete_details")
        reason = details.get("reason") if type(details) is dict else None
        self._finish(choice, reason or response.get("status") or "completed")
        self._ended(response)

    def _ended(self, response: dict[str, Any]) -> None:
        self._said(response)
        self._used(response.get("usage"))
        if response.get("moderation"):
            self._moderation = response["moderation"]
        if response.get("content_filters"):
            self._filters.append({"content_filters": response["content_filters"]})
        self.done = True

    def _failed(self, response: object, data: bytes) -> None:
        found = response if type(response) is dict else {}
        self._ended(found)
        self._refuse({"error": found.get("error") or {"message": "the response failed"}}, data)

    def _whole_output(self, choice: Growing, items: object) -> None:
        """Output that came in no pieces: of a whole answer, or of a server that sends no deltas."""
        for number, item in enumerate(items if type(items) is list else ()):
            if type(item) is not dict:
                continue
            if _is_call(item):
                call = choice.tool_calls.setdefault(number, ToolCall())
                _identify(call, item)
                self._called(choice, call, item.get("name"), item.get("arguments") or item.get("input"))
            self.role(choice, item.get("role"))
            for name in ("summary", "content"):
                parts = item.get(name)
                for part in parts if type(parts) is list else ():
                    if type(part) is dict:
                        self._whole_part(choice, part, reasoning=item.get("type") == "reasoning")

    def _whole_part(self, choice: Growing, part: dict[str, Any], *, reasoning: bool) -> None:
        into, kind = (choice.reasoning, REASONING) if reasoning else (choice.text, CONTENT)
        self._output(choice, into, part.get("text"), kind)
        self._output(choice, choice.refusal, part.get("refusal"), REFUSAL)
        if part.get("logprobs"):
            choice.logprobs.append({"content": part["logprobs"]})

    # Events that are not here bring nothing of their own: they start, repeat or end what others bring.
    EVENTS: ClassVar[Mapping[str, Callable[[Any, dict[str, Any]], None]]] = {
        "response.created": _start,
        "response.queued": _start,
        "response.in_progress": _start,
        "response.output_item.added": _item_added,
        "response.output_item.done": _item_done,
        "response.output_text.delta": _text,
        "response.audio.transcript.delta": _text,
        "response.refusal.delta": _refusal,
        "response.reasoning_summary_text.delta": _reasoning,
        "response.reasoning_text.delta": _reasoning,
        "response.function_call_arguments.delta": _arguments,
        "response.custom_tool_call_input.delta": _arguments,
        "response.mcp_call_arguments.delta": _arguments,
        "response.code_interpreter_call_code.delta": _arguments,
        "response.completed": _end,
        "response.incomplete": _end,
    }


def _is_call(item: dict[str, Any]) -> bool:
    """A function_call, custom_tool_call, web_search_call, mcp_call, …."""
    return str(item.get("type", "")).endswith("_call")


def _identify(call: ToolCall, item: dict[str, Any]) -> None:
    """Whose answer a client owes has a call_id, and is put into chat's words; what the server ran is kept as it is."""
    if type(item.get("call_id")) is str:
        call.id = item["call_id"]
        call.type = "custom" if item["type"] == "custom_tool_call" else "function"
    else:
        call.item = item


ACCUMULATORS: Mapping[Api, type[Accumulator]] = {
    "chat": ChatAccumulator,
    "completions": CompletionsAccumulator,
    "responses": ResponsesAccumulator,
}
