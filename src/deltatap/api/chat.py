"""Chat completions: `POST /chat/completions`. Pure.

Output is in `choices[].delta` of a chunk, or in `choices[].message` of a whole response. docs/endpoints.md names the
sources for what the servers send.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

from deltatap.api import prompt
from deltatap.api.accumulate import Accumulator
from deltatap.api.alike import Alike, around
from deltatap.api.choices import RARE, ChoicesAccumulator, ChoicesApi, ChoicesFrames
from deltatap.api.frames import Answer, ParsedRequest, Piece, call_id, logprob
from deltatap.api.growing import GrowingChoice, Text, ToolCall
from deltatap.api.input_tokens import InputTokens, count_messages, count_tools, without_rule
from deltatap.api.values import decode, to_index, to_json
from deltatap.model import CONTENT, REASONING, REFUSAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Longer arguments are not compared as values: a stream of a million pieces would parse them a million times.
_LONGEST_PARSED = 64 * 1024
_TEXTS = (CONTENT, REASONING, REFUSAL)
_TEXT_FIELDS = ("content", "refusal", "reasoning_content", "reasoning")
# The tags around Gemini's thoughts.
_THOUGHT, _THOUGHT_END = "<thought>", "</thought>"


class ChatAccumulator(ChoicesAccumulator):
    """Receives chat completions."""

    __slots__ = ()

    def _take(self, chunk: dict[str, Any], data: bytes, event: str) -> None:
        super()._take(chunk, data, event)
        if self._lessons and not event and not self._whole and self._chunks and self._chunks.kind[-1] in _TEXTS:
            self._lessons -= 1
            self._learn(chunk, data)

    def _learn(self, chunk: dict[str, Any], data: bytes) -> None:
        """Find out how to take chunks like this one without decoding them, if it contains only one text."""
        if not data.startswith(b"{") or chunk.get("usage") or "error" in chunk or not RARE.isdisjoint(chunk):
            return
        choices = chunk.get("choices")
        if type(choices) is not list or len(choices) != 1 or type(choice := choices[0]) is not dict:
            return
        delta = choice.get("delta")
        if type(delta) is not dict or any(choice[name] for name in choice if name not in ("index", "delta")):
            return
        fields = [name for name in delta if delta[name]]
        if len(fields) != 1 or fields[0] not in _TEXT_FIELDS or type(text := delta[fields[0]]) is not str:
            return
        if found := around(data, text, lambda other, text: _with_text(other, fields[0], text)):
            self._alike = Alike(found, self._choice(choice.get("index")), self.FIELDS[fields[0]])

    def _part(self, choice: GrowingChoice, given: dict[str, Any]) -> object:
        part = self._new_part(choice, given)
        if type(part) is dict and (choice.thinks or "extra_content" in part):
            part = _without_thoughts(choice, part)
            if choice.thinks:
                self._alike = None  # the next text may begin with the tag that ends the thoughts
        return part

    def _new_part(self, choice: GrowingChoice, given: dict[str, Any]) -> object:
        delta, message = given.get("delta"), given.get("message")
        if type(message) is not dict or not message:
            if type(delta) is dict and delta:
                return delta
            # Some servers send text in the place of an object, or in the field of legacy completions.
            if text := _text(delta):
                return {"content": text}
            if not (text := _text(message) or _text(given.get("text"))):
                return None
            message = {"content": text}
        finished = bool(given.get("finish_reason"))
        if type(delta) is not dict or not delta:
            return self._rest(choice, message, finished=finished)
        # The same text is in both, or one of them is empty.
        others = {name: value for name, value in message.items() if not delta.get(name)}
        return delta | self._rest(choice, others, finished=finished)

    def _rest(self, choice: GrowingChoice, message: dict[str, Any], *, finished: bool) -> dict[str, Any]:
        """The parts of a message that have not arrived yet.

        Some servers repeat the whole message at the end of a stream.
        """
        if self._whole or (isnan(choice.last_output_ms) and not choice.tool_calls):
            choice.messages = "growing"
            return message
        intos = {
            "content": choice.text,
            "refusal": choice.refusal,
            "reasoning_content": choice.reasoning,
            "reasoning": choice.reasoning,
            "reasoning_text": choice.reasoning,
            "thinking": choice.reasoning,
            "reasoning_details": choice.reasoning,
        }
        rest = {}
        for name, value in message.items():
            if name in intos:
                rest[name] = self._rest_of_text(choice, intos[name], value, finished=finished)
            elif name != "role" and (name != "audio" or not choice.text.tell()):
                rest[name] = value
        return rest

    def _rest_of_text(self, choice: GrowingChoice, into: Text, value: object, *, finished: bool) -> object:
        if not into.tell():
            return value
        if type(value) is not str or (choice.messages == "pieces" and not finished):
            return value if choice.messages else None
        size = into.tell()
        longer = len(value) > size or (len(value) == size and (finished or not choice.messages))
        if longer and value.startswith(into.getvalue()):
            return value[size:]
        if choice.messages:
            choice.messages = "pieces"
            return value
        return None

    def _refusal(self, choice: GrowingChoice, value: object) -> None:
        self._output(choice, choice.refusal, value, REFUSAL)

    def _reasoning(self, choice: GrowingChoice, value: object) -> None:
        """Take reasoning: text, or OpenRouter's parts with a text or a summary. Encrypted parts are in `raw` only.

        Some servers send the same text under several names in one event.
        """
        text = value if type(value) is str else "".join(_texts(value))
        if text and choice.reasoned != self._event:
            choice.reasoned = self._event
            self._output(choice, choice.reasoning, text, REASONING)

    def _tool_calls(self, choice: GrowingChoice, value: object) -> None:
        pieces = value if type(value) is list else [value]
        for at, given in enumerate(pieces):
            if type(given) is not dict:
                continue
            # A custom tool has an input where a function has arguments.
            function = given.get("function") or given.get("custom")
            if type(function) is not dict:
                function = given
            name, arguments = function.get("name"), function.get("arguments")
            if arguments is None:
                arguments = function.get("input", function.get("parameters"))
            if arguments is not None and type(arguments) is not str:
                arguments = to_json(arguments)
            index = to_index(given.get("index"))
            if index is None and len(pieces) > 1:
                index = at
            id_ = given.get("id")
            id_ = str(id_) if type(id_) is int else _text(id_)
            call = _call_of(choice, index, id_, _text(name), _text(arguments))
            call.type = _text(given.get("type")) or call.type
            self._called(choice, call, _rest_of_name(call, name), _rest_of_arguments(call, arguments))

    def _function_call(self, choice: GrowingChoice, value: object) -> None:
        """The predecessor of tool calls: one function, without an id."""
        self._tool_calls(choice, [{"index": 0, "function": value}])

    def _audio(self, choice: GrowingChoice, value: object) -> None:
        """Take the transcript of spoken output as text. The sound is only in the raw events."""
        if type(value) is dict:
            self._output(choice, choice.text, value.get("transcript"), CONTENT)

    def _used_of_choice(self, choice: GrowingChoice, value: object) -> None:  # noqa: ARG002 - the signature of FIELDS
        self._report(value)

    def _refused(self, choice: GrowingChoice, value: object) -> None:  # noqa: ARG002 - the signature of FIELDS
        self._refuse({"error": value}, to_json(value).encode())

    FIELDS = {  # noqa: RUF012 - ClassVar in the base
        "role": Accumulator.role,
        "reasoning_content": _reasoning,
        "reasoning": _reasoning,
        "reasoning_text": _reasoning,
        "thinking": _reasoning,
        "reasoning_details": _reasoning,
        "content": ChoicesAccumulator.content,
        "refusal": _refusal,
        "tool_calls": _tool_calls,
        "function_call": _function_call,
        "audio": _audio,
        "annotations": Accumulator.annotate,
        "citations": Accumulator.annotate,
        "usage": _used_of_choice,
        "error": _refused,
    }


def _without_thoughts(choice: GrowingChoice, part: dict[str, Any]) -> dict[str, Any]:
    """The part with Gemini's thoughts as reasoning.

    Gemini sends them as content, with a mark next to it, and its own API also puts tags around them: the first one in
    the first thought, the last one in the first text after them, or, in a whole answer, between thoughts and text.
    """
    text, extra = part.get("content"), part.get("extra_content")
    google = extra.get("google") if type(extra) is dict else None
    if type(text) is not str or not text:
        return part
    if type(google) is dict and google.get("thought") is True:
        thought, end, text = text.removeprefix(_THOUGHT).partition(_THOUGHT_END)
        choice.thinks = not end
        return {**part, "reasoning": thought, "content": text}
    if choice.thinks:
        choice.thinks = False
        return {**part, "content": text.removeprefix(_THOUGHT_END)}
    return part


def _call_of(choice: GrowingChoice, index: int | None, id_: str, name: str, arguments: str) -> ToolCall:
    """The tool call that a piece belongs to: found by id or index, otherwise the last one; or a new call.

    Servers leave out the index, send the same index for every call, or repeat id and name in every piece.
    """
    calls = choice.calls
    call = calls.get(id_) if id_ else None
    if call is not None and _is_new(call, call.id, name, arguments, indexed=True):
        call = None  # all calls have this id
    if call is None:
        call = choice.last_call if index is None else calls.get(index)
        if call is None or _is_new(call, id_, name, arguments, indexed=index is not None):
            call = ToolCall()
            key = len(choice.tool_calls) if index is None else index
            # Calls are listed by index; further calls with the same index follow.
            choice.tool_calls[key if key not in choice.tool_calls else 2**31 + len(choice.tool_calls)] = call
    if index is not None:
        calls[index] = call
    if id_:
        calls[id_] = call
        call.id = call.id or id_
    choice.last_call = call
    return call


def _is_new(call: ToolCall, id_: str | None, name: str, arguments: str, *, indexed: bool) -> bool:
    """Whether a piece with the place of this call starts another call. A piece without a name never does."""
    if not name:
        return False
    other = bool(id_ and call.id and id_ != call.id)
    if not call.arguments.tell():
        return other or (not indexed and call.name.getvalue() not in ("", name))
    named = name == call.name.getvalue()
    if named and not arguments.startswith("{"):
        # Some servers make up an id for every piece.
        return other and not (arguments and indexed and _arrived(call) is None)
    if other:
        return True
    value = _arrived(call)
    if named and value == "{}" and id_ == call.id is not None:
        return False  # the arguments follow
    return value is not None and not (named and value == _parsed(arguments))


def _rest_of_name(call: ToolCall, name: object) -> str | None:
    """The new part of a name. Some servers stream the name in pieces, others repeat it in every piece of the call."""
    if type(name) is not str or not name:
        return None
    size = call.name.tell()
    if size and call.arguments.tell():
        return None
    return name if size > len(name) else name.removeprefix(call.name.getvalue())


def _rest_of_arguments(call: ToolCall, arguments: object) -> str | None:
    """The new part of arguments.

    Some servers repeat all arguments at the end. An object can begin only where a value can.
    """
    if type(arguments) is not str:
        return None
    size = call.arguments.tell()
    long = size > max(len(arguments), _LONGEST_PARSED)
    if not arguments.startswith("{") or not size or long or call.type != "function":
        return arguments
    known = call.arguments.getvalue()
    if known.rstrip().endswith((":", "[", ",")):
        return arguments
    if arguments.startswith(known):
        return arguments[len(known) :]
    value = _parsed(known)
    if value == "{}":
        call.arguments = Text()
        return arguments
    return None if value is not None and value == _parsed(arguments) else arguments


def _arrived(call: ToolCall) -> str | None:
    return None if call.arguments.tell() > _LONGEST_PARSED else _parsed(call.arguments.getvalue())


def _parsed(arguments: str) -> str | None:
    """Complete arguments without differences in white space; None if they are incomplete or long."""
    if len(arguments) > _LONGEST_PARSED or not arguments.rstrip().endswith("}"):
        return None
    try:
        return to_json(decode(arguments.encode("utf-8", "replace")))
    except ValueError:
        return None


def _texts(value: object) -> Iterator[str]:
    """The texts of parts of reasoning."""
    for part in value if type(value) is list else [value]:
        found = (part.get("text"), part.get("summary")) if type(part) is dict else (part,)
        yield from (text for text in found if type(text) is str)


def _with_text(chunk: dict[str, Any], field: str, text: str) -> dict[str, Any]:
    chunk["choices"][0]["delta"][field] = text
    return chunk


def _text(value: object) -> str:
    return value if type(value) is str else ""


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
            return {"tool_calls": [{"index": piece.call, **self._call(piece, "")}]}
        if piece.kind == "reasoning":
            if "content_parts" in traits:
                return {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": piece.text}]}]}
            return {_reasoning_field(traits): piece.text}
        if piece.kind == "content" and "content_parts" in traits:
            return {"content": [{"type": "text", "text": piece.text}]}
        return {piece.kind: piece.text}

    def _call(self, piece: Piece, arguments: str) -> dict[str, Any]:
        if piece.sent is not None:
            return dict(piece.sent)
        id_ = call_id(self.facts, piece) if self.facts.response_id is None else piece.id
        if piece.type == "custom":
            return {"id": id_, "type": "custom", "custom": {"name": piece.text, "input": arguments}}
        return {"id": id_, "type": piece.type, "function": {"name": piece.text, "arguments": arguments}}

    def _start(self) -> dict[str, Any]:
        return {"role": "assistant", "content": ""}

    def _add(self, delta: dict[str, Any], piece: Piece) -> None:
        """Add a piece to a delta. The name and the first arguments of a call are in one object."""
        calls = delta.get("tool_calls")
        if piece.kind != "arguments" or not calls or calls[-1]["index"] != piece.call:
            added = self._delta(piece)
            delta |= (
                {**added, "tool_calls": [*calls, *added["tool_calls"]]} if calls and "tool_calls" in added else added
            )
        elif "custom" in calls[-1]:
            calls[-1]["custom"]["input"] += piece.text
        else:
            calls[-1]["function"]["arguments"] += piece.text

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
            message["tool_calls"] = [self._call(piece, arguments) for piece, arguments in calls]
        return {"message": message}


def _reasoning_field(traits: Sequence[str]) -> str:
    return "reasoning" if "reasoning_field" in traits else "reasoning_content"


class Chat(ChoicesApi):
    """Chat completions."""

    name = "chat"
    openai_type = "chat_completions"
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
        """Counted by OpenAI's published rules."""
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


API = Chat()
