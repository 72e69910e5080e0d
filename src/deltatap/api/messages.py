"""Anthropic's Messages API: `POST /messages`. Pure.

Events are typed. Output comes in content blocks: text, thinking, tool use. There is one choice, the system prompt is in
`system`, `max_tokens` is required, and a stream always reports usage. Sources: Anthropic's documentation, "Messages",
"Streaming messages", "Prompt caching", "Vision" and "Errors".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

from deltatap.api import prompt
from deltatap.api.accumulate import Accumulator
from deltatap.api.base import Api, json_schema
from deltatap.api.frames import STREAM_ERROR, Answer, ParsedRequest, Piece, event
from deltatap.api.growing import ToolCall
from deltatap.api.input_tokens import InputTokens, count_messages, image_size, without_rule
from deltatap.api.typed import TypedFrames
from deltatap.api.values import clean, count, decode, joined, to_index, to_json
from deltatap.model import CONTENT, REASONING, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deltatap.model import Received, StreamError

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_TOOLS = ("tool_use", "server_tool_use", "mcp_tool_use")
_USAGE = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
_USAGE_DETAILS = (
    ("output_tokens_details", "thinking_tokens"),
    ("cache_creation", "ephemeral_1h_input_tokens"),
    ("server_tool_use", "web_search_requests"),
)
# The iterations of a call that its model made.
_ITERATIONS = ("compaction", "message")


class MessagesAccumulator(Accumulator):
    """Receives typed events, or a whole message. All output belongs to choice 0.

    Tool calls are converted to those of chat completions. A call that the server ran itself is kept as it was sent.
    """

    __slots__ = ("_blocks", "_ended", "_inputs", "_last", "_last_call", "_next", "_numbers", "_reported")
    PLAIN = "type"
    ANSWER = "content"
    STATUSES: ClassVar[Mapping[str, int]] = {
        **Accumulator.STATUSES,
        **{name: status for status, name in _ERRORS.items()},
    }

    def __init__(self, choices: int = 1, *, keep_raw: bool = False) -> None:
        super().__init__(choices, keep_raw=keep_raw)
        self._blocks: dict[int, dict[str, Any]] = {}
        # The block that an index refers to now. Some servers use an index twice, or send none.
        self._numbers: dict[int, int] = {}
        self._last = self._next = 0
        self._last_call: ToolCall | None = None
        self._ended: set[int] = set()
        self._inputs: dict[int, object] = {}
        self._reported: dict[str, Any] = {}

    def _take(self, chunk: dict[str, Any], data: bytes, event: str) -> None:
        type_ = chunk.get("type")
        if type(type_) is not str or not type_:
            type_ = event
        take = self.EVENTS.get(type_)
        if take is not None:
            take(self, chunk)
        elif type_ == "error" or type_ in self.STATUSES:
            self._refuse(chunk, data)

    def _take_whole(self, answer: dict[str, Any], data: bytes) -> None:  # noqa: ARG002 - the data is decoded
        if self._error is not None and "content" not in answer:  # then there is no message, but perhaps usage
            self._identify(answer)
            self._report(answer.get("usage"))
            return
        self._start({"message": answer})
        content = answer.get("content")
        if type(content) is str:
            content = [{"type": "text", "text": content}]
        for index, block in enumerate(content if type(content) is list else ()):
            self._block({"index": index, "content_block": block})
            self._block_end({"index": index})
        self._end(answer)
        self._report(answer.get("usage"))

    def finish(self) -> Received:
        """The data received so far."""
        self._add_inputs()
        calls = [each for choice in self._choices.values() for each in choice.tool_calls.items()]
        for number, call in calls:
            if call.item is not None:
                if call.arguments.tell():
                    call.item = {**call.item, "input": _decoded(call.arguments.getvalue())}
            elif not call.arguments.tell() and (self.done or number in self._ended):
                call.arguments.write("{}")
        return super().finish()

    def _start(self, chunk: dict[str, Any]) -> None:
        message = chunk.get("message")
        if type(message) is not dict:
            return
        self._identify(message)
        self.role(self._choice(), message.get("role"))
        if not self._whole:
            self._report(message.get("usage"), complete=False)

    def _block(self, chunk: dict[str, Any]) -> None:
        """A content block starts. It can already have content, and in a whole message it has all of its content."""
        block = chunk.get("content_block")
        if type(block) is not dict:
            return
        choice, number = self._choice(), self._opened(chunk, block)
        type_ = block.get("type")
        if type_ == "text":
            self._output(choice, choice.text, block.get("text"), CONTENT)
            if block.get("citations"):
                self.annotate(choice, block["citations"])
        elif type_ == "thinking":
            self._output(choice, choice.reasoning, block.get("thinking"), REASONING)
        elif type_ in _TOOLS:
            call = self._last_call = choice.tool_calls.setdefault(number, ToolCall())
            if type_ != "tool_use":
                call.item = block
            elif type(block.get("id")) is str:
                call.id = block["id"]
            self._inputs[number] = block.get("input")
            self._called(choice, call, None if call.name.tell() else block.get("name"), None)

    def _opened(self, chunk: dict[str, Any], block: dict[str, Any]) -> int:
        """The number of a block that starts: its index, or the next number if another block has that index."""
        index = to_index(chunk.get("index"))
        number = self._next if index is None else self._numbers.get(index, index)
        known, id_ = self._blocks.get(number), block.get("id")
        if known is not None and not (type(id_) is str and known.get("id") == id_):
            number = self._next
        if index is not None:
            self._numbers[index] = number
        self._last, self._next = number, max(self._next, number + 1)
        self._blocks[number] = block
        return number

    def _number(self, chunk: dict[str, Any]) -> int:
        """The number of the block that an event is about; without an index, that is the last one."""
        index = to_index(chunk.get("index"))
        return self._last if index is None else self._numbers.get(index, index)

    def _delta(self, chunk: dict[str, Any]) -> None:
        delta = chunk.get("delta")
        if type(delta) is not dict:
            return
        choice = self._choice()
        type_ = delta.get("type")
        if type_ == "text_delta":
            self._output(choice, choice.text, delta.get("text"), CONTENT)
        elif type_ == "thinking_delta":
            self._output(choice, choice.reasoning, delta.get("thinking"), REASONING)
        elif type_ == "input_json_delta":
            call = choice.tool_calls.get(self._number(chunk))
            if call is None and self._number(chunk) in self._blocks:
                call = self._last_call  # the block with this number is not a tool
            if call is None:
                call = self._last_call = choice.tool_calls[self._number(chunk)] = ToolCall()
            self._called(choice, call, None, _encoded(delta.get("partial_json")))
        elif type_ == "citations_delta" and delta.get("citation"):
            self.annotate(choice, delta["citation"])
        elif type_ in (None, *_DELTAS):
            self._untyped(chunk, delta)

    def _untyped(self, chunk: dict[str, Any], delta: dict[str, Any]) -> None:
        """Take a delta by the name of its field, because its type is missing or unknown."""
        for type_, name in _DELTAS.values():
            if name in delta:
                self._delta({**chunk, "delta": {"type": type_, name: delta[name]}})

    def _block_end(self, chunk: dict[str, Any]) -> None:
        """A content block ends, so the input of a tool is complete."""
        number = self._number(chunk)
        self._ended.add(number)
        self._add_input(number)

    def _add_input(self, number: int) -> None:
        """Add the input that a tool's block started with, if no delta has repeated it."""
        given, call = self._inputs.pop(number, None), self._choice().tool_calls.get(number)
        if given and call is not None and not call.arguments.tell():
            self._called(self._choice(), call, None, _encoded(given))

    def _add_inputs(self) -> None:
        for number in list(self._inputs):
            self._add_input(number)
        self._inputs.clear()  # a dict that was large is slow to iterate, even without items

    def _message_delta(self, chunk: dict[str, Any]) -> None:
        self._add_inputs()
        delta = chunk.get("delta")
        if type(delta) is dict:
            self._end(delta)
        self._report(chunk.get("usage"))

    def _end(self, message: dict[str, Any]) -> None:
        self._finish(self._choice(), message.get("stop_reason"))
        if message.get("stop_details"):
            self._filters.append({"stop_details": message["stop_details"]})

    def _stop(self, chunk: dict[str, Any]) -> None:  # noqa: ARG002 - same signature for every event
        self.done = True

    def _report(self, usage: object, *, complete: bool = True) -> None:
        """Convert usage to OpenAI's definition: input tokens include those read from a cache and written to it."""
        if type(usage) is not dict:
            return
        # Fast mode has separate prices, like a service tier.
        fast = usage.get("speed") == "fast"
        self._identify({"service_tier": "fast" if fast else usage.get("service_tier")})
        self._remember(usage, complete=complete)
        fresh, written, read, output = (self._reported.get(name) for name in _USAGE)
        inputs = None if fresh is None else count(fresh + (written or 0) + (read or 0))
        self._used(
            Usage(
                input_tokens=inputs,
                output_tokens=output,
                total_tokens=None if inputs is None or output is None else count(inputs + output),
                cached_input_tokens=read,
                reasoning_tokens=self._reported.get("thinking_tokens"),
                cache_write_tokens=written,
                cache_write_1h_tokens=self._reported.get("ephemeral_1h_input_tokens"),
                web_searches=self._reported.get("web_search_requests"),
            )
        )

    def _remember(self, usage: dict[str, Any], *, complete: bool) -> None:
        """Keep the counts. They are cumulative; a later event can omit some, and some servers end with zeros."""
        for name, tokens in _counts(usage).items():
            # The number of output tokens at the start of a message is a placeholder.
            known = complete or name != "output_tokens"
            if known and tokens is not None and (tokens or not self._reported.get(name)):
                self._reported[name] = tokens

    # Other events, such as ping, have no content.
    EVENTS: ClassVar[Mapping[str, Callable[[Any, dict[str, Any]], None]]] = {
        "message_start": _start,
        "content_block_start": _block,
        "content_block_delta": _delta,
        "content_block_stop": _block_end,
        "message_delta": _message_delta,
        "message_stop": _stop,
    }


def _counts(usage: dict[str, Any]) -> dict[str, int | None]:
    """The counts of a whole call: those of its iterations include the compaction of the context, the others do not.

    Source: platform.claude.com/docs/en/build-with-claude/compaction. Iterations of other models are left out.
    """
    given: dict[str, object] = {name: usage.get(name) for name in _USAGE}
    for holder, name in _USAGE_DETAILS:
        details = usage.get(holder)
        given[name] = details.get(name) if type(details) is dict else None
    counts = {name: count(value) for name, value in given.items()}
    iterations = usage.get("iterations")
    parts = [
        _counts({**each, "iterations": None})
        for each in (iterations if type(iterations) is list else ())
        if type(each) is dict and each.get("type") in _ITERATIONS
    ]
    for name, known in counts.items():
        if total := count(sum(part[name] or 0 for part in parts)):
            counts[name] = max(total, known or 0)
    return counts


def _encoded(given: object) -> object:
    """The input of a tool as JSON, with spaces, as models write it. Text is JSON already."""
    if type(given) not in (dict, list):
        return given
    try:
        return json.dumps(given, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return to_json(given)


def _decoded(arguments: str) -> Any:  # noqa: ANN401 - any JSON
    """A tool's input; the text itself if it is not valid JSON."""
    try:
        return decode(clean(joined(arguments or "{}")).encode())
    except ValueError:
        return arguments


_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_BLOCK_OF = {"content": "text", "refusal": "text", "reasoning": "thinking", "call": "tool_use", "arguments": "tool_use"}
# The type of a block's deltas, and the delta's field with the text.
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


@dataclass(slots=True)
class MessagesFrames(TypedFrames):
    """Writes typed events. A block opens with the first piece of its kind and closes before the next block."""

    _blocks: list[dict[str, Any]] = field(default_factory=list)
    _open: tuple[str, int] | None = None
    _type: str = ""
    _text: str = ""
    _refused: bool = False

    def begin(self) -> list[bytes]:
        """The message without content."""
        usage = {**self._usage(), "output_tokens": 1}
        return [_event("message_start", message={**self._message(None), "usage": usage})]

    def empty(self) -> list[bytes]:
        """A ping."""
        return [_event("ping")]

    def piece(self, choice: int, piece: Piece, finish: str | None = None) -> list[bytes]:  # noqa: ARG002 - see `end`
        """The events that close the previous block and open this one, if necessary; then a delta."""
        self._refused = self._refused or piece.kind == "refusal"
        type_ = _BLOCK_OF[piece.kind]
        made = [] if (type_, piece.call) == self._open else [*self._close(), *self._opened(type_, piece)]
        self._open = (type_, piece.call)
        if piece.kind == "call":
            return made
        self._text += piece.text
        kind, name = _DELTAS[type_]
        return [*made, self._block_event("delta", delta={"type": kind, name: piece.text})]

    def _block_event(self, what: str, **fields: Any) -> bytes:  # noqa: ANN401 - any JSON
        return _event(f"content_block_{what}", index=len(self._blocks) - 1, **fields)

    def _opened(self, type_: str, piece: Piece) -> list[bytes]:
        more: dict[str, Any] = {"text": ""}
        if type_ == "tool_use":
            id_ = piece.id or f"toolu_{self.facts.id}_{piece.call}"
            more = {"id": id_, "name": piece.text, "input": {}} if piece.sent is None else {**piece.sent, "input": {}}
        elif type_ == "thinking":
            more = {"thinking": "", "signature": ""}
        self._type = type_
        self._blocks.append({"type": type_, **more})
        opened = self._block_event("start", content_block=self._blocks[-1])
        return [opened, *(self.empty() if len(self._blocks) == 1 else ())]

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        block, made = self._blocks[-1], []
        if self._type == "tool_use":
            block["input"] = _decoded(self._text)
        else:
            block[self._type] = self._text
        if self._type == "thinking":
            block["signature"] = "c2ln"
            made.append(self._block_event("delta", delta={"type": "signature_delta", "signature": "c2ln"}))
        self._open, self._text = None, ""
        return [*made, self._block_event("stop")]

    def finish(self, choice: int, reason: str) -> list[bytes]:  # noqa: ARG002 - the message's end has the reason
        """The end of the last block."""
        return self._close()

    def end(self, reason: str | None) -> list[bytes]:
        """The stop_reason with the usage, and the end of the message."""
        if reason is None:
            return []
        delta = {"stop_reason": self._stop_reason(reason), "stop_sequence": None}
        return [_event("message_delta", delta=delta, usage=self._usage()), _event("message_stop")]

    def error(self, *, named: bool) -> list[bytes]:  # noqa: ARG002 - this API always names the event
        """An error event."""
        return [_event("error", error={"type": "api_error", "message": STREAM_ERROR})]

    def refuse(self, error: StreamError) -> list[bytes]:
        """An error event."""
        return [_event("error", error=_error(error))]

    def whole_error(self, body: dict[str, Any], error: StreamError) -> dict[str, Any]:
        """A message with an error."""
        return {**body, "error": _error(error)}

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The message with the same blocks as a stream."""
        for piece in answers[0].pieces if answers else ():
            self.piece(0, piece)
        self._close()
        message = self._message(self._stop_reason(answers[0].finish_reason if answers else ""))
        return {**message, "content": self._blocks, "usage": self._usage()}

    def _stop_reason(self, reason: str) -> str | None:
        if self.facts.response_id is not None:
            return reason or None
        return "refusal" if self._refused else _STOP_REASONS.get(reason, reason)

    def _message(self, stop_reason: str | None) -> dict[str, Any]:
        facts = self.facts
        id_ = f"msg_{facts.id}" if facts.response_id is None else facts.response_id
        made = {"id": id_, "type": "message", "role": "assistant", "model": facts.model, "content": []}
        return {**made, "stop_reason": stop_reason, "stop_sequence": None}

    def _usage(self) -> dict[str, Any]:
        """The usage. This API always reports it, so counts that are not known are 0."""
        facts = self.facts
        inputs, outputs = (facts.usage.get(f"{name}_tokens_details") or {} for name in ("prompt", "completion"))
        read, written = inputs.get("cached_tokens"), inputs.get("cache_write_tokens")
        made: dict[str, Any] = {
            "input_tokens": max(0, facts.usage.get("prompt_tokens", 0) - (read or 0) - (written or 0)),
            "output_tokens": facts.usage.get("completion_tokens", 0),
        }
        if read is not None or written is not None:
            made |= {"cache_creation_input_tokens": written or 0, "cache_read_input_tokens": read or 0}
        if inputs.get("cache_write_1h_tokens") is not None:
            made["cache_creation"] = {"ephemeral_1h_input_tokens": inputs["cache_write_1h_tokens"]}
        if facts.usage.get("num_search_queries") is not None:
            made["server_tool_use"] = {"web_search_requests": facts.usage["num_search_queries"]}
        if outputs.get("reasoning_tokens") is not None:
            made["output_tokens_details"] = {"thinking_tokens": outputs["reasoning_tokens"]}
        return {**made, "service_tier": "standard" if facts.response_id is None else facts.tier}


def _error(error: StreamError) -> dict[str, Any]:
    return {"type": error.code or error.type or "api_error", "message": error.message}


def _event(kind: str, **fields: Any) -> bytes:  # noqa: ANN401 - any JSON
    return event({"type": kind, **fields}, kind)


class Messages(Api):
    """Anthropic's Messages API."""

    name = "messages"
    provider = "anthropic"
    title = "the Messages API"
    path = "/messages"
    models_path = "/models?limit=1000"
    prompt_field = "messages"
    system = "system"
    # The smallest limit of any Claude model, so every model accepts this value.
    defaults: ClassVar[Mapping[str, Any]] = {"max_tokens": 4096}
    max_output_names = ("max_tokens",)
    key_header = "x-api-key"
    key_prefix = ""
    headers: ClassVar[Mapping[str, str]] = {"anthropic-version": "2023-06-01"}
    request_id_headers = ("request-id", "x-request-id")
    end_mark = b""
    says = frozenset(("content", "reasoning", "tool_calls"))
    call_types = frozenset(("function",))
    finish_reasons: ClassVar[Mapping[str, str]] = {
        "end_turn": "stop",
        "stop_sequence": "stop",
        "max_tokens": "length",
        "model_context_window_exceeded": "length",
        "tool_use": "tool_calls",
        "refusal": "content_filter",
    }
    accumulator = MessagesAccumulator
    frames = MessagesFrames

    def prompt(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The messages, and the system prompt: the column `system`, then system messages at the start."""
        messages = prompt.messages(row)
        leading = list(takewhile(lambda message: message["role"] in ("system", "developer"), messages))
        if len(leading) == len(messages):
            raise prompt.BadPromptError("no prompt: messages has only a system prompt")
        given = [prompt.parts(row["system"])] if row.get("system") else []
        system = [*given, *(message["content"] for message in leading)]
        made: dict[str, Any] = {"messages": messages[len(leading) :]}
        if all(isinstance(text, str) for text in system):
            return {**made, "system": "\n\n".join(system)} if system else made
        blocks = ([{"type": "text", "text": text}] if isinstance(text, str) else text for text in system)
        return {**made, "system": [block for its in blocks for block in its]}

    def count_input(self, body: Mapping[str, Any], model: str, encoding: str) -> InputTokens:
        """Counted by the rules of chat completions, so always approximate."""
        messages = list(body["messages"])
        if body.get("system"):
            messages.insert(0, {"role": "system", "content": body["system"]})
        counted = count_messages(_without_data(messages), model, encoding)
        return (
            counted + without_rule(body.get("tools"), encoding) + InputTokens(_image_tokens(messages), approximate=True)
        )

    def parse_request(self, body: Mapping[str, Any]) -> ParsedRequest:
        """Like the base class, except that most parameters have other names."""
        if not isinstance(body["messages"], list):
            raise TypeError("messages is not a list")
        thinking, choice = body.get("thinking") or {}, body.get("tool_choice") or {}
        parsed = super().parse_request(body)
        return replace(
            parsed,
            tools=() if choice.get("type") == "none" else parsed.tools,
            several_calls=not choice.get("disable_parallel_tool_use"),
            reasoning=thinking.get("type") in ("enabled", "adaptive"),
            schema=json_schema((body.get("output_config") or {}).get("format")),
            stop=tuple(text for text in body.get("stop_sequences") or () if isinstance(text, str)),
        )

    def refusal(self, status: int, code: str | None, message: str) -> dict[str, Any]:
        """Like the base class, but the type is the code."""
        body = self.error_body(status, "", None, message)
        return body if code is None else {**body, "error": {**body["error"], "type": code}}

    def sent(self, call: Mapping[str, Any]) -> tuple[str, str]:
        """Name and input of a call that the server executed."""
        given = call.get("input")
        return str(call.get("name") or ""), str(_encoded(given)) if given else ""

    def tool(self, tool: Any) -> tuple[str, Mapping[str, Any]]:  # noqa: ANN401 - any JSON
        """Name and JSON schema of a tool."""
        return str(tool.get("name")), tool.get("input_schema") or {}

    def error_body(self, status: int, kind: str, code: str | None, message: str) -> dict[str, Any]:  # noqa: ARG002
        """An error in Anthropic's form; its type follows from the status."""
        type_ = _ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004
        return {"type": "error", "error": {"type": type_, "message": message}, "request_id": None}


def _without_data(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """The value without the base64 text of images and documents, which is not counted as text."""
    if isinstance(value, list):
        return [_without_data(item) for item in value]
    if isinstance(value, dict):
        if value.get("type") in ("image", "document") and isinstance(value.get("source"), dict):
            return {"type": "text", "text": ""}
        return {key: _without_data(item) for key, item in value.items()}
    return value


def _image_tokens(value: Any) -> int:  # noqa: ANN401 - any JSON
    """The tokens of all images: width times height over 750; 1,600 if the size is unknown."""
    if isinstance(value, list):
        return sum(_image_tokens(item) for item in value)
    if not isinstance(value, dict):
        return 0
    source = value.get("source")
    if value.get("type") != "image" or not isinstance(source, dict):
        return sum(_image_tokens(item) for item in value.values())
    size = image_size(f"data:{source.get('media_type')};base64,{source.get('data')}")
    return 1600 if size is None else round(size[0] * size[1] / 750)


API = Messages()
