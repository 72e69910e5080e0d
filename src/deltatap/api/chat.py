"""Chat completions: `POST /chat/completions`. Pure.

Output is in `choices[].delta` of a chunk, or in `choices[].message` of a whole response. docs/endpoints.md names the
sources for what the servers send.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltatap.api import prompt
from deltatap.api.accumulate import Accumulator, GrowingChoice, ToolCall
from deltatap.api.choices import ChoicesAccumulator, ChoicesApi, ChoicesFrames
from deltatap.api.frames import Answer, ParsedRequest, Piece, call_id, logprob
from deltatap.api.input_tokens import InputTokens, count_messages, count_tools, without_rule
from deltatap.model import CONTENT, REASONING, REFUSAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_REPLAYED_FIELDS = {"content": "content", "reasoning": "reasoning_content", "refusal": "refusal"}


class ChatAccumulator(ChoicesAccumulator):
    """Receives chat completions."""

    __slots__ = ()

    def _part(self, given: dict[str, Any]) -> object:
        part = given.get("delta") or given.get("message")
        if type(part) is dict and part.get("reasoning_content"):
            # Some servers send the same text under the old and the new name of the field.
            part.pop("reasoning", None)
        return part

    def _refusal(self, choice: GrowingChoice, value: object) -> None:
        self._output(choice, choice.refusal, value, REFUSAL)

    def _reasoning(self, choice: GrowingChoice, value: object) -> None:
        self._output(choice, choice.reasoning, value, REASONING)

    def _tool_calls(self, choice: GrowingChoice, value: object) -> None:
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

    def _function_call(self, choice: GrowingChoice, value: object) -> None:
        """The predecessor of tool calls: one function, without an id."""
        if type(value) is dict:
            call = choice.tool_calls.setdefault(0, ToolCall())
            self._called(choice, call, value.get("name"), value.get("arguments"))

    def _audio(self, choice: GrowingChoice, value: object) -> None:
        """Take the transcript of spoken output as text. The sound is only in the raw events."""
        if type(value) is dict:
            self._output(choice, choice.text, value.get("transcript"), CONTENT)

    FIELDS = {  # noqa: RUF012 - ClassVar in the base
        "role": Accumulator.role,
        "reasoning_content": _reasoning,
        "reasoning": _reasoning,
        "content": ChoicesAccumulator.content,
        "refusal": _refusal,
        "tool_calls": _tool_calls,
        "function_call": _function_call,
        "audio": _audio,
    }


@dataclass(slots=True)
class ChatFrames(ChoicesFrames):
    """Writes `chat.completion.chunk` and `chat.completion`."""

    prefix = "chatcmpl"
    kind = "chat.completion.chunk"
    whole_kind = "chat.completion"

    def role(self, choice: int, content: str = "") -> list[bytes]:
        """The role, usually with an empty content."""
        return [self._choice(choice, {"role": "assistant", "content": content, "refusal": None})]

    def _output(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"delta": delta}

    def _delta(self, piece: Piece) -> dict[str, Any]:
        traits = self.facts.traits
        if piece.kind == "arguments":
            return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.text}}]}
        if piece.kind == "call":
            call = {"index": piece.call, **_call(call_id(self.facts, piece.call), piece.text, "")}
            return {"tool_calls": [call]}
        if piece.kind == "reasoning":
            if "content_parts" in traits:
                return {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": piece.text}]}]}
            return {_reasoning_field(traits): piece.text}
        if piece.kind == "content" and "content_parts" in traits:
            return {"content": [{"type": "text", "text": piece.text}]}
        return {piece.kind: piece.text}

    def _logprobs(self, texts: Sequence[str]) -> dict[str, Any] | None:
        return {"content": [logprob(text) for text in texts], "refusal": None} if self.facts.logprobs else None

    def _whole_output(self, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text() or None,
            "refusal": answer.text("refusal") or None,
        }
        if reasoning := answer.text("reasoning"):
            message[_reasoning_field(self.facts.traits)] = reasoning
        if calls := answer.calls():
            message["tool_calls"] = [
                _call(call_id(self.facts, number), name, arguments) for number, (name, arguments) in enumerate(calls)
            ]
        return {"message": message}


def _reasoning_field(traits: Sequence[str]) -> str:
    return "reasoning" if "reasoning_field" in traits else "reasoning_content"


def _call(id_: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


class Chat(ChoicesApi):
    """Chat completions."""

    name = "chat"
    title = "chat completions"
    path = "/chat/completions"
    prompt_field = "messages"
    max_output_names = ("max_completion_tokens", "max_tokens")
    accumulator = ChatAccumulator
    frames = ChatFrames

    def prompt(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The messages. The system prompt is the first message."""
        messages = prompt.messages(row)
        system = row.get("system")
        return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}

    def count_input(self, body: Mapping[str, Any], model: str, encoding: str) -> InputTokens:
        """By OpenAI's published rules."""
        form = body.get("response_format")
        plain = form is None or (isinstance(form, dict) and form.get("type") == "text")
        return (
            count_messages(body["messages"], model, encoding)
            + count_tools(body.get("tools"), model, encoding)
            + without_rule(body.get("functions"), encoding)
            # Plain text costs nothing. There is no published rule for JSON and its schema.
            + (InputTokens() if plain else without_rule(form, encoding))
        )

    def parse_request(self, body: Mapping[str, Any]) -> ParsedRequest:
        """Like the base class, but the messages must be a list."""
        if not isinstance(body["messages"], list):
            raise TypeError("messages is not a list")
        return super().parse_request(body)

    def _replayed_output(self, row: Mapping[str, Any], chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        for chunk in chunks:
            kind = chunk["kind"]
            if kind == "role":
                delta |= {"role": "assistant", "content": ""}
            elif kind == "tool_calls":
                delta |= _replayed_calls(row, chunk)
            elif kind in _REPLAYED_FIELDS:
                delta[_REPLAYED_FIELDS[kind]] = chunk["text"]
        return {"delta": delta}

    def _replayed_whole_output(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice["text"], "refusal": choice["refusal"]}
        if choice["reasoning"]:
            message["reasoning_content"] = choice["reasoning"]
        if choice["tool_calls"]:
            message["tool_calls"] = json.loads(choice["tool_calls"])
        return {"message": message}


def _replayed_calls(row: Mapping[str, Any], chunk: Mapping[str, Any]) -> dict[str, Any]:
    """All tool calls of a choice, at its first tool_calls chunk. A row does not say which call a chunk belongs to."""
    of_choice = [each for each in row["chunks"] if each["kind"] == "tool_calls" and each["choice"] == chunk["choice"]]
    if chunk is not of_choice[0]:
        return {}
    found = next((choice["tool_calls"] for choice in row["choices"] if choice["index"] == chunk["choice"]), None)
    calls = json.loads(found) if found else []
    return {"tool_calls": [{**call, "index": at} for at, call in enumerate(calls)]}


API = Chat()
