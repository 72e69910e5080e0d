"""Responses: `POST /responses`. Pure.

Events are typed. The prompt is text or a list of items, and the system prompt is in `instructions`. There is one
choice, and a stream always reports usage.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from deltatap.api import prompt
from deltatap.api.accumulate import Accumulator, GrowingChoice, ToolCall
from deltatap.api.base import Api, json_schema
from deltatap.api.choices import openai_usage
from deltatap.api.frames import (
    MODERATION,
    SAFE,
    STREAM_ERROR,
    Answer,
    Frames,
    ParsedRequest,
    Piece,
    call_id,
    event,
    logprob,
)
from deltatap.api.input_tokens import InputTokens, count_messages, count_tools, without_rule
from deltatap.model import CONTENT, REASONING, REFUSAL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class ResponsesAccumulator(Accumulator):
    """Receives typed events. All output belongs to choice 0. A whole response is the object in `response.completed`."""

    __slots__ = ()
    PLAIN = "type"
    ANSWER = "output"

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
        else:  # queued, in_progress or cancelled: there is no output
            self._ended(answer)

    def _start(self, event: dict[str, Any]) -> None:
        if type(event.get("response")) is dict:
            self._identify(event["response"])

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

    def _call(self, choice: GrowingChoice, event: dict[str, Any]) -> ToolCall:
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
        """Keep a call that the server ran itself, which is complete now. Other calls have already arrived in pieces."""
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
        self._identify(response)
        if (usage := openai_usage(response.get("usage"))) is not None:
            self._used(usage)
        if response.get("moderation"):
            self._moderation = response["moderation"]
        if response.get("content_filters"):
            self._filters.append({"content_filters": response["content_filters"]})
        self.done = True

    def _failed(self, response: object, data: bytes) -> None:
        found = response if type(response) is dict else {}
        self._ended(found)
        self._refuse({"error": found.get("error") or {"message": "the response failed"}}, data)

    def _whole_output(self, choice: GrowingChoice, items: object) -> None:
        """The output of a whole response, or of a stream without deltas."""
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

    def _whole_part(self, choice: GrowingChoice, part: dict[str, Any], *, reasoning: bool) -> None:
        into, kind = (choice.reasoning, REASONING) if reasoning else (choice.text, CONTENT)
        self._output(choice, into, part.get("text"), kind)
        self._output(choice, choice.refusal, part.get("refusal"), REFUSAL)
        if part.get("logprobs"):
            choice.logprobs.append({"content": part["logprobs"]})

    # All other events repeat the content of these, or mark where a part starts and ends.
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
    """Whether the item is a call: function_call, custom_tool_call, web_search_call, mcp_call, …."""
    return str(item.get("type", "")).endswith("_call")


def _identify(call: ToolCall, item: dict[str, Any]) -> None:
    """Take id and type of a call that the client must answer (it has a call_id). Keep other calls as they were sent."""
    if type(item.get("call_id")) is str:
        call.id = item["call_id"]
        call.type = "custom" if item["type"] == "custom_tool_call" else "function"
    else:
        call.item = item


# For each kind of output: the name of its events, the index in them, and the field of the last one with all its text.
_EVENTS_OF: Mapping[str, tuple[str, dict[str, int], str]] = {
    "call": ("function_call_arguments", {}, "arguments"),
    "content": ("output_text", {"content_index": 0}, "text"),
    "reasoning": ("reasoning_summary_text", {"summary_index": 0}, "text"),
    "refusal": ("refusal", {"content_index": 0}, "refusal"),
}


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": []}


@dataclass(slots=True)
class ResponsesFrames(Frames):
    """Writes typed events. An item opens with the first piece of its kind and closes before the next item."""

    _sequence: int = -1
    _items: list[dict[str, Any]] = field(default_factory=list)
    _open: tuple[str, int] | None = None
    _text: str = ""

    def begin(self) -> list[bytes]:
        """The start of the response."""
        return [
            self._event(kind, response=self._response("in_progress"))
            for kind in ("response.created", "response.in_progress")
        ]

    def empty(self) -> list[bytes]:
        """An event that repeats the state."""
        return [self._event("response.in_progress", response=self._response("in_progress"))]

    def piece(self, choice: int, piece: Piece, finish: str | None = None) -> list[bytes]:  # noqa: ARG002 - there is one choice
        """The events that close the previous item and open this one, if necessary; then a delta."""
        of = (piece.kind if piece.kind != "arguments" else "call", piece.call)
        made = [] if of == self._open else [*self._close(), *self._opened(piece)]
        self._open = of
        if piece.kind == "call":
            return made
        self._text += piece.text
        name, index, _ = _EVENTS_OF[of[0]]
        more = {"logprobs": [logprob(piece.text)] if self.facts.logprobs else []} if piece.kind == "content" else {}
        return [*made, self._event(f"response.{name}.delta", **self._where(), **index, delta=piece.text, **more)]

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _opened(self, piece: Piece) -> list[bytes]:
        number = len(self._items)
        item = self._item(piece, number)
        self._items.append(item)
        made = [self._event("response.output_item.added", output_index=number, item=item)]
        if piece.kind in ("content", "refusal"):
            part = _part(piece.kind, "")
            made.append(self._event("response.content_part.added", **self._where(), content_index=0, part=part))
        return made

    def _item(self, piece: Piece, number: int) -> dict[str, Any]:
        facts = self.facts
        if piece.kind == "call":
            called = call_id(facts, piece.call)
            return {
                "id": f"fc_{facts.id}_{number}",
                "type": "function_call",
                "status": "in_progress",
                "call_id": called,
                "name": piece.text,
                "arguments": "",
            }
        if piece.kind == "reasoning":
            return {"id": f"rs_{facts.id}_{number}", "type": "reasoning", "summary": []}
        return {
            "id": f"msg_{facts.id}_{number}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        kind, item, text = self._open[0], self._items[-1], self._text
        self._text = ""
        if kind == "call":
            item |= {"arguments": text, "status": "completed"}
        elif kind == "reasoning":
            item["summary"] = [{"type": "summary_text", "text": text}]
        else:
            item |= {"content": [_part(kind, text)], "status": "completed"}
        name, index, complete = _EVENTS_OF[kind]
        return [
            self._event(f"response.{name}.done", **self._where(), **index, **{complete: text}),
            self._event("response.output_item.done", output_index=len(self._items) - 1, item=item),
        ]

    def finish(self, choice: int, reason: str) -> list[bytes]:  # noqa: ARG002 - the response's end has the reason
        """The end of the last item."""
        made = self._close()
        self._open = None
        return made

    def end(self, reason: str | None) -> list[bytes]:
        """The complete response, whose status and details are this API's finish_reason."""
        if reason is None:
            return []
        status = _status(reason)
        return [self._event(f"response.{status}", response=self._response(status, reason, self._items))]

    def error(self, *, named: bool) -> list[bytes]:
        """An error event, or a response that failed."""
        if named:
            return [self._event("error", code="server_error", message=STREAM_ERROR, param=None)]
        failed = {**self._response("failed"), "error": {"code": "server_error", "message": STREAM_ERROR}}
        return [self._event("response.failed", response=failed)]

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The response with the same items as a stream."""
        for piece in answers[0].pieces:
            self.piece(0, piece)
        self._close()
        if self.facts.logprobs:
            for item in self._items:
                for part in item.get("content", ()):
                    part["logprobs"] = [logprob(part.get("text", ""))]
        reason = answers[0].finish_reason
        return self._response(_status(reason), reason, self._items)

    def _response(self, status: str, reason: str = "", output: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        facts = self.facts
        details = {"reason": "max_output_tokens" if reason == "length" else reason} if status == "incomplete" else None
        made: dict[str, Any] = {
            "id": f"resp_{facts.id}",
            "object": "response",
            "created_at": facts.created,
            "status": status,
            "error": None,
            "incomplete_details": details,
            "model": facts.model,
            "output": list(output),
            "service_tier": "default",
            "usage": _responses_usage(facts.usage) if status in ("completed", "incomplete") else None,
        }
        if "moderation" in facts.traits and status == "completed":
            made["moderation"] = MODERATION
        if "filters" in facts.traits and status in ("completed", "incomplete"):
            made["content_filters"] = [{"source_type": "completion", "content_filter_results": SAFE}]
        return made

    def _event(self, kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - any JSON
        self._sequence += 1
        return event({"type": kind, "sequence_number": self._sequence, **fields}, kind)


def _status(reason: str) -> str:
    return "incomplete" if reason in ("length", "content_filter") else "completed"


def _responses_usage(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": given["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": given["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": given["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": given["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": given["total_tokens"],
    }


class Responses(Api):
    """Responses."""

    name = "responses"
    title = "the Responses API"
    path = "/responses"
    prompt_field = "input"
    system = "instructions"
    max_output_names = ("max_output_tokens",)
    end_mark = b""
    accumulator = ResponsesAccumulator
    frames = ResponsesFrames

    def prompt(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The input as text or as items, and the system prompt as instructions."""
        system = row.get("system")
        given = prompt.prompt_text(row) if row.get("messages") is None else prompt.messages(row, allow_items=True)
        return {"input": given, "instructions": system} if system else {"input": given}

    def count_input(self, body: Mapping[str, Any], model: str, encoding: str) -> InputTokens:
        """By the rules of chat completions, so always approximate."""
        given = body.get("input")
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given or []
        if body.get("instructions"):
            messages = [{"role": "system", "content": body["instructions"]}, *messages]
        counted = count_messages(messages, model, encoding) + count_tools(body.get("tools"), model, encoding)
        return counted + without_rule(body.get("text"), encoding) + InputTokens(0, approximate=True)

    def parse_request(self, body: Mapping[str, Any]) -> ParsedRequest:
        """Like the base class, but reasoning, the output format and log probabilities have other names."""
        reasoning, text = body.get("reasoning"), body.get("text")
        effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
        return replace(
            super().parse_request(body),
            reasoning=effort not in (None, "none"),
            schema=json_schema(text.get("format")) if isinstance(text, dict) else None,
            logprobs="message.output_text.logprobs" in (body.get("include") or ()),
        )


API = Responses()
