"""The APIs' JSON around the simulator's texts: chunks as server-sent events, and the whole answer. Pure.

A class for each API, with the same methods; what one server says and another does not is a trait (``faults.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltatap.simulator.answers import Answer, Piece

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
BAD_JSON = b'data: {"id": "chatcmpl-broken", "choices": [\n\n'
_FINGERPRINT = "fp_simulator"
SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
_PROMPT_FILTERS = [{"prompt_index": 0, "content_filter_results": SAFE}]
MODERATION = {
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
                        "id": call_id(self.facts, piece.call),
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
                "content_filter_results": SAFE,
                "content_filter_offsets": offsets,
            }
            made.append(self._frame({"choices": [late]}))
        return made

    def end(self, answers: Sequence[Answer], reason: str) -> list[bytes]:  # noqa: ARG002 - Responses needs it
        """The moderation, then the usage, each in a chunk without choices."""
        facts = self.facts
        made = [self._frame({"choices": [], "moderation": MODERATION})] if "moderation" in facts.traits else []
        if facts.with_usage and "usage_with_finish" not in facts.traits:
            made.append(self._frame({"choices": [], "usage": facts.usage}))
        return made

    def error(self, *, named: bool) -> list[bytes]:
        """An error object as data."""
        return [
            event(
                error("server_error", "server_error", "The server had an error in mid-stream."),
                "error" if named else "",
            )
        ]

    def _choice(
        self, index: int, delta: dict[str, Any], finish: str | None = None, text: str = "", more: Mapping[str, Any] = {}
    ) -> bytes:
        choice = self._of(index, delta, finish, text)
        if "filters" in self.facts.traits:
            choice["content_filter_results"] = SAFE
        return self._frame({"choices": [choice], **more})

    def _of(self, index: int, delta: dict[str, Any], finish: str | None, text: str) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": self._logprobs(text), "finish_reason": finish}

    def _logprobs(self, text: str) -> dict[str, Any] | None:
        if not text or not self.facts.logprobs:
            return None
        return {"content": [logprob(text)], "refusal": None}

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
        return event(chunk)

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
            made["moderation"] = MODERATION
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
                {"id": call_id(facts, number), "type": "function", "function": {"name": name, "arguments": arguments}}
                for number, (name, arguments) in enumerate(calls)
            ]
        choice = {
            "index": index,
            "message": message,
            "logprobs": {"content": [logprob(piece.text) for piece in answer.pieces]} if facts.logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        if {"filters", "late_filters"} & set(facts.traits):
            choice["content_filter_results"] = SAFE
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

    def _of(self, index: int, delta: dict[str, Any], finish: str | None, text: str) -> dict[str, Any]:
        said = delta.get("content", "")
        return {"text": said, "index": index, "logprobs": self._logprobs(text), "finish_reason": finish}

    def _logprobs(self, text: str) -> dict[str, Any] | None:
        if not text or not self.facts.logprobs:
            return None
        return {"tokens": [text], "token_logprobs": [-0.25], "top_logprobs": [{text: -0.25}], "text_offset": [0]}

    def _whole_choice(self, index: int, answer: Answer) -> dict[str, Any]:
        text = answer.text()
        choice: dict[str, Any] = {"text": text, "index": index, "logprobs": self._logprobs(text)}
        if {"filters", "late_filters"} & set(self.facts.traits):
            choice["content_filter_results"] = SAFE
        return {**choice, "finish_reason": answer.finish_reason}


def event(data: dict[str, Any], kind: str = "") -> bytes:
    """A server-sent event with JSON."""
    named = f"event: {kind}\n" if kind else ""
    return f"{named}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def call_id(facts: Facts, number: int) -> str:
    """The id of a tool call."""
    return f"call_{facts.id}_{number}"


def logprob(text: str) -> dict[str, Any]:
    """A token's log probability."""
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
