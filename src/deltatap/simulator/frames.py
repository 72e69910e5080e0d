"""The APIs' JSON around the simulator's texts: chunks as server-sent events, and the whole answer. Pure.

A class for each API, with the same methods; what one server says and another does not is a trait (``faults.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltatap.apis import Api
    from deltatap.simulator.answers import Answer, Piece

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
BAD_JSON = b'data: {"id": "chatcmpl-broken", "choices": [\n\n'
_FINGERPRINT = "fp_simulator"
_SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
_PROMPT_FILTERS = [{"prompt_index": 0, "content_filter_results": _SAFE}]
_MODERATION = {
    "input": {"type": "moderation_results", "model": "omni-moderation-latest", "results": [{"flagged": False}]},
    "output": {"type": "moderation_results", "model": "omni-moderation-latest", "results": [{"flagged": False}]},
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What all frames of one answer share.

    Attributes:
        id: of the completion or the response, without its prefix.
        created: seconds since the epoch.
        model: as it is answered.
        usage: in chat's words.
        with_usage: whether a stream tells it.
        logprobs: whether they are asked for.
        traits: of the server.
    """

    id: str
    created: int
    model: str
    usage: dict[str, Any]
    with_usage: bool
    logprobs: bool = False
    traits: Sequence[str] = ()


class Frames(Protocol):
    """What an API's answer is made of; a list has a frame for each event."""

    def begin(self) -> list[bytes]:
        """Before the first piece."""
        ...

    def role(self, choice: int, content: str = "") -> list[bytes]:
        """The first of a choice."""
        ...

    def piece(self, choice: int, piece: Piece, finish: str | None = None) -> list[bytes]:
        """A piece; with a finish, where a server sends it with the last one."""
        ...

    def empty(self) -> list[bytes]:
        """One that brings nothing."""
        ...

    def finish(self, choice: int, answer: Answer, reason: str) -> list[bytes]:
        """The end of a choice."""
        ...

    def end(self, answers: Sequence[Answer], reason: str) -> list[bytes]:
        """The end of all."""
        ...

    def error(self, *, named: bool) -> list[bytes]:
        """An error in mid-stream."""
        ...

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The answer that is not streamed."""
        ...


@dataclass(slots=True)
class ChatFrames:
    """``chat.completion.chunk`` and ``chat.completion``."""

    facts: Facts
    prefix: str = "chatcmpl"
    kind: str = "chat.completion.chunk"
    whole_kind: str = "chat.completion"
    _around: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def begin(self) -> list[bytes]:
        """Azure's word on the prompt comes first, in a frame without choices."""
        if "filters" not in self.facts.traits:
            return []
        return [self._frame({"choices": [], "prompt_filter_results": _PROMPT_FILTERS})]

    def role(self, choice: int, content: str = "") -> list[bytes]:
        """The role, mostly with an empty content."""
        return [self._choice(choice, {"role": "assistant", "content": content, "refusal": None})]

    def piece(self, choice: int, piece: Piece, finish: str | None = None) -> list[bytes]:
        """A delta. Content is the hot path: all but the text is the same for all pieces."""
        facts = self.facts
        if piece.kind == "content" and finish is None and not facts.logprobs and not facts.traits:
            if choice not in self._around:
                before, after = self._choice(choice, {"content": "\0"}).split(rb'"\u0000"')
                self._around[choice] = (before, after)
            before, after = self._around[choice]
            return [before + json.dumps(piece.text, ensure_ascii=False).encode() + after]
        return [self._choice(choice, self._delta(piece), finish, piece.text)]

    def _delta(self, piece: Piece) -> dict[str, Any]:
        traits = self.facts.traits
        if piece.kind in ("call", "arguments"):
            if piece.kind == "arguments":
                return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.text}}]}
            function = {"name": piece.text, "arguments": ""}
            return {
                "tool_calls": [
                    {
                        "index": piece.call,
                        "id": _call_id(self.facts, piece.call),
                        "type": "function",
                        "function": function,
                    }
                ]
            }
        if piece.kind == "reasoning":
            if "content_parts" in traits:
                summary = [{"type": "summary_text", "text": piece.text}]
                return {"content": [{"type": "reasoning", "summary": summary}]}
            return {"reasoning" if "reasoning_field" in traits else "reasoning_content": piece.text}
        if piece.kind == "content" and "content_parts" in traits:
            return {"content": [{"type": "text", "text": piece.text}]}
        return {piece.kind: piece.text}

    def empty(self) -> list[bytes]:
        """A chunk without choices."""
        return [self._frame({"choices": []})]

    def finish(self, choice: int, answer: Answer, reason: str) -> list[bytes]:  # noqa: ARG002 - Responses needs it
        """The finish_reason, alone or with usage; Azure's late word after it."""
        traits = self.facts.traits
        made = []
        if "finish_with_content" not in traits:
            more = {"usage": self.facts.usage} if "usage_with_finish" in traits else {}
            made.append(self._choice(choice, {}, reason, more=more))
        if "late_filters" in traits:
            offsets = {"check_offset": 0, "start_offset": 0, "end_offset": 99}
            late = {
                "index": choice,
                "finish_reason": None,
                "content_filter_results": _SAFE,
                "content_filter_offsets": offsets,
            }
            made.append(self._frame({"choices": [late]}))
        return made

    def end(self, answers: Sequence[Answer], reason: str) -> list[bytes]:  # noqa: ARG002 - Responses needs it
        """The moderation, then the usage, each in a chunk without choices."""
        facts = self.facts
        made = [self._frame({"choices": [], "moderation": _MODERATION})] if "moderation" in facts.traits else []
        if facts.with_usage and "usage_with_finish" not in facts.traits:
            made.append(self._frame({"choices": [], "usage": facts.usage}))
        return made

    def error(self, *, named: bool) -> list[bytes]:
        """An error object as data."""
        return [
            _event(
                error("server_error", "server_error", "The server had an error in mid-stream."),
                "error" if named else "",
            )
        ]

    def _choice(
        self, index: int, delta: dict[str, Any], finish: str | None = None, text: str = "", more: Mapping[str, Any] = {}
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(text), "finish_reason": finish}
        if "filters" in self.facts.traits:
            choice["content_filter_results"] = _SAFE
        return self._frame({"choices": [choice], **more})

    def _logprobs(self, text: str) -> dict[str, Any] | None:
        if not text or not self.facts.logprobs:
            return None
        return {"content": [_logprob(text)], "refusal": None}

    def _frame(self, more: dict[str, Any]) -> bytes:
        facts = self.facts
        chunk: dict[str, Any] = {
            "id": f"{self.prefix}-{facts.id}",
            "object": self.kind,
            "created": facts.created + 0.5 if "float_created" in facts.traits else facts.created,
            "model": facts.model,
            "service_tier": "default",
            "system_fingerprint": _FINGERPRINT,
            **more,
        }
        if "no_id" in facts.traits:
            del chunk["id"]
        if facts.with_usage:
            chunk.setdefault("usage", facts.usage if "usage_each" in facts.traits else None)
        return _event(chunk)

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The message of each choice."""
        facts = self.facts
        made: dict[str, Any] = {
            "id": f"{self.prefix}-{facts.id}",
            "object": self.whole_kind,
            "created": facts.created,
            "model": facts.model,
            "choices": [self._whole_choice(index, answer) for index, answer in enumerate(answers)],
            "usage": facts.usage,
            "service_tier": "default",
            "system_fingerprint": _FINGERPRINT,
        }
        if "filters" in facts.traits:
            made["prompt_filter_results"] = _PROMPT_FILTERS
        if "moderation" in facts.traits:
            made["moderation"] = _MODERATION
        if "no_id" in facts.traits:
            del made["id"]
        return made

    def _whole_choice(self, index: int, answer: Answer) -> dict[str, Any]:
        facts = self.facts
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text() or None,
            "refusal": answer.text("refusal") or None,
        }
        if reasoning := answer.text("reasoning"):
            message["reasoning" if "reasoning_field" in facts.traits else "reasoning_content"] = reasoning
        if calls := answer.calls():
            message["tool_calls"] = [
                {"id": _call_id(facts, number), "type": "function", "function": {"name": name, "arguments": arguments}}
                for number, (name, arguments) in enumerate(calls)
            ]
        choice = {
            "index": index,
            "message": message,
            "logprobs": {"content": [_logprob(piece.text) for piece in answer.pieces]} if facts.logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        if {"filters", "late_filters"} & set(facts.traits):
            choice["content_filter_results"] = _SAFE
        return choice


@dataclass(slots=True)
class CompletionsFrames(ChatFrames):
    """``text_completion``, streamed and whole: chunks of chat but for the choice, which has a text."""

    prefix: str = "cmpl"
    kind: str = "text_completion"
    whole_kind: str = "text_completion"

    def role(self, choice: int, content: str = "") -> list[bytes]:  # noqa: ARG002 - this API knows no roles
        """Nothing."""
        return []

    def _choice(
        self, index: int, delta: dict[str, Any], finish: str | None = None, text: str = "", more: Mapping[str, Any] = {}
    ) -> bytes:
        said = delta.get("content", "")
        choice = {"text": said, "index": index, "logprobs": self._logprobs(text), "finish_reason": finish}
        if "filters" in self.facts.traits:
            choice["content_filter_results"] = _SAFE
        return self._frame({"choices": [choice], **more})

    def _logprobs(self, text: str) -> dict[str, Any] | None:
        if not text or not self.facts.logprobs:
            return None
        return {"tokens": [text], "token_logprobs": [-0.25], "top_logprobs": [{text: -0.25}], "text_offset": [0]}

    def _whole_choice(self, index: int, answer: Answer) -> dict[str, Any]:
        text = answer.text()
        choice: dict[str, Any] = {"text": text, "index": index, "logprobs": self._logprobs(text)}
        if {"filters", "late_filters"} & set(self.facts.traits):
            choice["content_filter_results"] = _SAFE
        return {**choice, "finish_reason": answer.finish_reason}


@dataclass(slots=True)
class ResponsesFrames:
    """The typed events of Responses; items open with the first piece of their kind and close before the next."""

    facts: Facts
    _sequence: int = -1
    _items: list[dict[str, Any]] = field(default_factory=list)
    _open: tuple[str, int] | None = None
    _text: str = ""

    def begin(self) -> list[bytes]:
        """The response as it starts."""
        return [
            self._event(kind, response=self._response("in_progress"))
            for kind in ("response.created", "response.in_progress")
        ]

    def role(self, choice: int, content: str = "") -> list[bytes]:  # noqa: ARG002 - an item's start says it
        """Nothing."""
        return []

    def empty(self) -> list[bytes]:
        """A repetition."""
        return [self._event("response.in_progress", response=self._response("in_progress"))]

    def piece(self, choice: int, piece: Piece, finish: str | None = None) -> list[bytes]:  # noqa: ARG002 - as chat's
        """A delta, with what opens its item and closes the one before."""
        of = (piece.kind if piece.kind != "arguments" else "call", piece.call)
        made = [] if of == self._open else [*self._close(), *self._opened(piece)]
        self._open = of
        if piece.kind == "call":
            return made
        self._text += piece.text
        where = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        if piece.kind == "arguments":
            return [*made, self._event("response.function_call_arguments.delta", **where, delta=piece.text)]
        if piece.kind == "reasoning":
            return [
                *made,
                self._event("response.reasoning_summary_text.delta", **where, summary_index=0, delta=piece.text),
            ]
        if piece.kind == "refusal":
            return [*made, self._event("response.refusal.delta", **where, content_index=0, delta=piece.text)]
        probabilities = [_logprob(piece.text)] if self.facts.logprobs else []
        return [
            *made,
            self._event(
                "response.output_text.delta", **where, content_index=0, delta=piece.text, logprobs=probabilities
            ),
        ]

    def _opened(self, piece: Piece) -> list[bytes]:
        number = len(self._items)
        item = self._item(piece, number)
        self._items.append(item)
        made = [self._event("response.output_item.added", output_index=number, item=item)]
        if piece.kind in ("content", "refusal"):
            part = (
                {"type": "refusal", "refusal": ""}
                if piece.kind == "refusal"
                else {"type": "output_text", "text": "", "annotations": []}
            )
            made.append(
                self._event(
                    "response.content_part.added", item_id=item["id"], output_index=number, content_index=0, part=part
                )
            )
        return made

    def _item(self, piece: Piece, number: int) -> dict[str, Any]:
        facts = self.facts
        if piece.kind == "call":
            call_id = _call_id(facts, piece.call)
            return {
                "id": f"fc_{facts.id}_{number}",
                "type": "function_call",
                "status": "in_progress",
                "call_id": call_id,
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
        kind, number = self._open[0], len(self._items) - 1
        item, text = self._items[-1], self._text
        self._text = ""
        where = {"item_id": item["id"], "output_index": number}
        if kind == "call":
            item |= {"arguments": text, "status": "completed"}
            made = [self._event("response.function_call_arguments.done", **where, arguments=text)]
        elif kind == "reasoning":
            item["summary"] = [{"type": "summary_text", "text": text}]
            made = [self._event("response.reasoning_summary_text.done", **where, summary_index=0, text=text)]
        elif kind == "refusal":
            item |= {"content": [{"type": "refusal", "refusal": text}], "status": "completed"}
            made = [self._event("response.refusal.done", **where, content_index=0, refusal=text)]
        else:
            item |= {"content": [{"type": "output_text", "text": text, "annotations": []}], "status": "completed"}
            made = [self._event("response.output_text.done", **where, content_index=0, text=text)]
        return [*made, self._event("response.output_item.done", output_index=number, item=item)]

    def finish(self, choice: int, answer: Answer, reason: str) -> list[bytes]:  # noqa: ARG002 - as chat's
        """The last item closes."""
        made = self._close()
        self._open = None
        return made

    def end(self, answers: Sequence[Answer], reason: str) -> list[bytes]:  # noqa: ARG002 - as chat's
        """The whole response once more."""
        status = _status(reason)
        return [self._event(f"response.{status}", response=self._response(status, reason, self._items))]

    def error(self, *, named: bool) -> list[bytes]:
        """An error event, or a response that failed."""
        message = "The server had an error in mid-stream."
        if named:
            return [self._event("error", code="server_error", message=message, param=None)]
        failed = {**self._response("failed"), "error": {"code": "server_error", "message": message}}
        return [self._event("response.failed", response=failed)]

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The response, its items as a stream would have left them."""
        for piece in answers[0].pieces:
            self.piece(0, piece)
        self._close()
        if self.facts.logprobs:
            for item in self._items:
                for part in item.get("content", ()):
                    part["logprobs"] = [_logprob(part.get("text", ""))]
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
            made["moderation"] = _MODERATION
        if "filters" in facts.traits and status in ("completed", "incomplete"):
            made["content_filters"] = [{"source_type": "completion", "content_filter_results": _SAFE}]
        return made

    def _event(self, kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - any JSON
        self._sequence += 1
        return _event({"type": kind, "sequence_number": self._sequence, **fields}, kind)


FRAMES: Mapping[Api, type[ChatFrames | ResponsesFrames]] = {
    "chat": ChatFrames,
    "completions": CompletionsFrames,
    "responses": ResponsesFrames,
}


def _event(data: dict[str, Any], kind: str = "") -> bytes:
    named = f"event: {kind}\n" if kind else ""
    return f"{named}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _status(reason: str) -> str:
    return "incomplete" if reason in ("length", "content_filter") else "completed"


def _call_id(facts: Facts, number: int) -> str:
    return f"call_{facts.id}_{number}"


def _logprob(text: str) -> dict[str, Any]:
    return {"token": text, "logprob": -0.25, "bytes": list(text.encode()), "top_logprobs": []}


def usage(
    input_tokens: int, output_tokens: int, reasoning_tokens: int = 0, traits: Sequence[str] = ()
) -> dict[str, Any]:
    """Usage as OpenAI's chat reports it."""
    detailed = "details" in traits
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": input_tokens // 2 if detailed else 0, "audio_tokens": 3 * detailed},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens, "audio_tokens": 2 * detailed},
    }


def _responses_usage(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": given["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": given["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": given["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": given["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": given["total_tokens"],
    }


def error(kind: str, code: str | None, message: str) -> dict[str, Any]:
    """An error as OpenAI reports it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def reshaped(frame: bytes, *, newline: bytes) -> bytes:
    """The frame with other line ends."""
    return frame.replace(b"\n", newline)


def fragments(frame: bytes) -> list[bytes]:
    """The frame cut into three, one cut inside a character that has several bytes, where it has any."""
    continued = (at for at, byte in enumerate(frame) if byte >> 6 == 0b10)  # noqa: PLR2004 - UTF-8's mark
    inside = next(continued, len(frame) // 2)
    first = min(8, inside)
    return [piece for piece in (frame[:first], frame[first:inside], frame[inside:]) if piece]
