"""OpenAI's JSON around the simulator's texts: chunks as server-sent events, and the whole answer. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltatap.simulator.answers import Answer

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
BAD_JSON = b'data: {"id": "chatcmpl-broken", "choices": [\n\n'
_FINGERPRINT = "fp_simulator"


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one completion."""

    id: str
    created: int
    model: str
    with_usage: bool

    def content(self, choice: int) -> tuple[bytes, bytes]:
        """What stands before and after a piece's JSON string: the rest of a frame is the same for all pieces."""
        before, after = self._delta(choice, {"content": "\0"}, None).split(rb'"\u0000"')
        return before, after

    def role(self, choice: int, content: str = "") -> bytes:
        """The first chunk of a choice."""
        return self._delta(choice, {"role": "assistant", "content": content, "refusal": None}, None)

    def finish(self, choice: int, reason: str) -> bytes:
        """The last chunk of a choice."""
        return self._delta(choice, {}, reason)

    def empty(self) -> bytes:
        """A chunk without choices."""
        return self._frame({"choices": []})

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk that carries the usage."""
        return self._frame({"choices": [], "usage": usage})

    def _delta(self, choice: int, delta: dict[str, Any], finish: str | None) -> bytes:
        return self._frame({"choices": [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}]})

    def _frame(self, more: dict[str, Any]) -> bytes:
        chunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": _FINGERPRINT,
            **more,
        }
        if self.with_usage:
            chunk.setdefault("usage", None)
        return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n".encode()

    def whole(self, answers: Sequence[Answer], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer that is not streamed."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": "".join(answer.pieces), "refusal": None},
                    "logprobs": None,
                    "finish_reason": answer.finish_reason,
                }
                for index, answer in enumerate(answers)
            ],
            "usage": usage,
            "service_tier": "default",
            "system_fingerprint": _FINGERPRINT,
        }


def usage(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """Usage as OpenAI reports it."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
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
