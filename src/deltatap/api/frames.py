"""The frames of the simulator and the replay: the records that all APIs share, and how an event becomes bytes. Pure.

Each API's module turns these records into its own JSON, in a subclass of `framing.Frames`. `simulator/` decides which
answer is sent, and when.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Kind = Literal["content", "reasoning", "refusal", "call", "arguments"]

DONE = b"data: [DONE]\n\n"
SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
MODERATION = {
    side: {"type": "moderation_results", "model": "omni-moderation-latest", "results": [{"flagged": False}]}
    for side in ("input", "output")
}
STREAM_ERROR = "The server had an error in mid-stream."


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """What a request asks for, in the same form for every API.

    Attributes:
        choices: number of answers.
        max_output: maximum number of tokens per answer; None if the request sets no maximum.
        tools: name and JSON schema of each tool that may be called.
        several_calls: whether one answer may call several tools.
        reasoning: whether reasoning is requested.
        schema: the JSON schema that the text must match; None for plain text.
        stop: sequences that end the text.
        echo: the prompt, if the text must begin with it.
        logprobs: whether log probabilities are requested.
        usage: whether a stream reports usage.
    """

    choices: int = 1
    max_output: int | None = None
    tools: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    several_calls: bool = True
    reasoning: bool = False
    schema: Mapping[str, Any] | None = None
    stop: tuple[str, ...] = ()
    echo: str | None = None
    logprobs: bool = False
    usage: bool = False


class Piece(NamedTuple):
    """A piece of an answer.

    Attributes:
        kind: the kind of output. The text of `call` is the name of the called tool.
        text: complete characters. A token that is not valid UTF-8 on its own is joined with the next token.
        call: number of the tool call, from 0.
        id, type: of the tool call, if a captured answer is replayed.
        sent: the call as the server sent it, if the server executed it.
    """

    kind: Kind
    text: str
    call: int = 0
    id: str | None = None
    type: str = "function"
    sent: Mapping[str, Any] | None = None


class Frame(NamedTuple):
    """A frame of a captured answer.

    Attributes:
        ms: when it is due, since the request was written.
        data: the bytes.
        outputs: the number of captured chunks with output that it completes.
    """

    ms: float
    data: bytes
    outputs: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of an answer.

    Attributes:
        pieces: in the order in which they are sent.
        tokens: number of tokens in the pieces.
        reasoning_tokens: number of reasoning tokens among them.
        waits_s: seconds to wait before each piece; the first is the time to the first token.
        finish_reason: stop, length, tool_calls or content_filter; in a replayed answer, as the API calls it,
            or empty if there is none.
        index: of the choice; None if it is the answer's place in the list.
    """

    pieces: tuple[Piece, ...]
    tokens: int
    reasoning_tokens: int
    waits_s: tuple[float, ...]
    finish_reason: str
    index: int | None = None

    def text(self, kind: Kind = "content") -> str:
        """All text of one kind."""
        return "".join(piece.text for piece in self.pieces if piece.kind == kind)

    def calls(self) -> list[tuple[Piece, str]]:
        """Each tool call: the piece with its name, and its arguments."""
        found = {piece.call: piece for piece in self.pieces if piece.kind == "call"}
        return [(piece, self._arguments(number)) for number, piece in sorted(found.items())]

    def _arguments(self, call: int) -> str:
        return "".join(piece.text for piece in self.pieces if piece.kind == "arguments" and piece.call == call)


@dataclass(frozen=True, slots=True)
class Facts:
    """The values that all frames of one response share.

    Attributes:
        id: the id of the response, without the API's prefix.
        created: seconds since the epoch.
        model: name of the model that answers.
        usage: with the field names of chat completions.
        with_usage: whether the stream reports usage.
        logprobs: whether log probabilities are sent.
        traits: the quirks of the simulated server.
        response_id: the complete id of a response that is replayed.
        fingerprint, tier: `system_fingerprint` and `service_tier`; None leaves them out.
    """

    id: str
    created: int
    model: str
    usage: dict[str, Any]
    with_usage: bool
    logprobs: bool = False
    traits: Sequence[str] = ()
    response_id: str | None = None
    fingerprint: str | None = "fp_simulator"
    tier: str | None = "default"

    def named(self) -> dict[str, Any]:
        """The fields of a response that identify the server's configuration."""
        fields = {"service_tier": self.tier, "system_fingerprint": self.fingerprint}
        return {name: value for name, value in fields.items() if value is not None}


def event(data: Mapping[str, Any], kind: str = "") -> bytes:
    """A server-sent event with JSON data."""
    named = f"event: {kind}\n" if kind else ""
    return f"{named}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def call_id(facts: Facts, piece: Piece) -> str:
    """The id of a tool call."""
    return piece.id or f"call_{facts.id}_{piece.call}"


def logprob(text: str) -> dict[str, Any]:
    """The log probability of a token."""
    return {"token": text, "logprob": -0.25, "bytes": list(text.encode()), "top_logprobs": []}


def usage(
    input_tokens: int, output_tokens: int, reasoning_tokens: int = 0, traits: Sequence[str] = ()
) -> dict[str, Any]:
    """Usage with the field names of chat completions. The trait `details` fills every field."""
    detailed = "details" in traits
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": input_tokens // 2 if detailed else 0, "audio_tokens": 3 * detailed},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens, "audio_tokens": 2 * detailed},
    }


def openai_error(kind: str | None, code: str | None, message: str | None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
