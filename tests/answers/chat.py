"""Chat completions: calls of tools, text that comes twice or in other forms, usage."""

from __future__ import annotations

from typing import Any

from tests.answers.case import (
    BEGUN,
    DONE,
    GOOD,
    HALF,
    HELLO,
    ROLE,
    STOP,
    WHOLE,
    WORLD,
    Case,
    broken,
    chunked,
    data,
    delta,
    good,
    replaced,
    sized,
    usage,
)

# Calls of tools


def call(index: object = 0, **more: Any) -> dict[str, Any]:
    """A part of a tool call; `index` None leaves the index out."""
    return {"type": "function", **({} if index is None else {"index": index}), **more}


def _tools(name: str, *parts: bytes, tools: tuple[tuple[str | None, str, str], ...], **more: Any) -> Case:
    return good(name, chunked(ROLE, *parts, delta("tool_calls"), DONE), **{"text": "", "tools": tools, **more})


def function(name: str, arguments: object) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


_ADD = ("call_1", "add", '{"a":1}')
_MUL = ("call_2", "mul", '{"a":2}')


def _two(*indexes: object) -> list[bytes]:
    return [
        delta(tool_calls=[call(index, id=id_, function=function(name, arguments))])
        for index, (id_, name, arguments) in zip(indexes, (_ADD, _MUL), strict=True)
    ]


TOOLS = [
    _tools("two calls with index 0 and their own ids", *_two(0, 0), tools=(_ADD, _MUL)),
    _tools("two calls without index", *_two(None, None), tools=(_ADD, _MUL)),
    _tools("two calls with index 0 and 1", *_two(0, 1), tools=(_ADD, _MUL)),
    _tools("two calls with index 1 and 2", *_two(1, 2), tools=(_ADD, _MUL)),
    _tools("two calls without index in one chunk",
           delta(tool_calls=[call(None, id=id_, function=function(name, arguments)) for id_, name, arguments in (_ADD, _MUL)]),
           tools=(_ADD, _MUL)),
    _tools("two calls with index 0 in one chunk",
           delta(tool_calls=[call(0, id=id_, function=function(name, arguments)) for id_, name, arguments in (_ADD, _MUL)]),
           tools=(_ADD, _MUL)),
    _tools("two calls whose index is null", *(replaced(each, b'"index": 0, "id"', b'"index": null, "id"') for each in _two(0, 0)),
           tools=(_ADD, _MUL)),
    _tools("arguments in pieces without index",
           delta(tool_calls=[call(None, id="call_1", function=function("add", ""))]),
           delta(tool_calls=[call(None, function={"arguments": '{"a"'})]), delta(tool_calls=[call(None, function={"arguments": ":1}"})]),
           tools=(_ADD,)),
    _tools("arguments in pieces with the id again",
           delta(tool_calls=[call(0, id="call_1", function=function("add", '{"a"'))]),
           delta(tool_calls=[call(0, id="call_1", function={"arguments": ":1}"})]), tools=(_ADD,)),
    _tools("arguments in pieces with id and name again",
           delta(tool_calls=[call(0, id="call_1", function=function("add", '{"a"'))]),
           delta(tool_calls=[call(0, id="call_1", function=function("add", ":1}"))]), tools=(_ADD,)),
    _tools("arguments in pieces with empty ids and names",
           delta(tool_calls=[call(0, id="call_1", function=function("add", '{"a"'))]),
           delta(tool_calls=[call(0, id="", function=function("", ":1}"))]), tools=(_ADD,)),
    _tools("arguments in pieces with a null id and name",
           delta(tool_calls=[call(0, id="call_1", function=function("add", '{"a"'))]),
           delta(tool_calls=[{**call(0, function={"name": None, "arguments": ":1}"}), "id": None}]), tools=(_ADD,)),
    _tools("interleaved pieces", *_two(0, 1), delta(tool_calls=[call(0, function={"arguments": " "})]), delta(tool_calls=[call(1, function={"arguments": " "})]),
           tools=((_ADD[0], _ADD[1], '{"a":1} '), (_MUL[0], _MUL[1], '{"a":2} '))),
    _tools("the same id for two calls", *(delta(tool_calls=[call(index, id="c", function=function(name, arguments))]) for index, (_, name, arguments) in enumerate((_ADD, _MUL))),
           tools=(("c", *_ADD[1:]), ("c", *_MUL[1:]))),
    _tools("the same id for two calls of a function", *(delta(tool_calls=[call(0, id="c", function=function("add", arguments))]) for arguments in ('{"a":1}', '{"a":2}')),
           tools=(("c", "add", '{"a":1}'), ("c", "add", '{"a":2}'))),
    _tools("no arguments yet, with the id again", *(delta(tool_calls=[call(0, id="c", function=function("add", arguments))]) for arguments in ("{}", '{"a":1}')),
           tools=(("c", "add", '{"a":1}'),)),
    _tools("another id in every piece", *(delta(tool_calls=[call(0, id=id_, function=function("add", piece))]) for id_, piece in (("a", '{"a"'), ("b", ":"), ("c", "1}"))),
           tools=(("a", "add", '{"a":1}'),)),
    _tools("parameters", delta(tool_calls=[call(0, id="c", function={"name": "add", "parameters": {"a": 1}})]), tools=(("c", "add", '{"a":1}'),)),
    _tools("arguments as an object", delta(tool_calls=[call(id="c1", function=function("bash", {"command": "ls"}))]),
           tools=(("c1", "bash", '{"command": "ls"}'),)),
    _tools("arguments as an empty object", delta(tool_calls=[call(id="c1", function=function("now", {}))]), tools=(("c1", "now", "{}"),)),
    _tools("arguments as a list", delta(tool_calls=[call(id="c1", function=function("f", [1, 2]))]), tools=(("c1", "f", "[1, 2]"),)),
    _tools("arguments that are null", delta(tool_calls=[call(id="c1", function=function("f", None))]), tools=(("c1", "f", ""),)),
    _tools("no arguments", delta(tool_calls=[call(id="c1", function={"name": "f"})]), tools=(("c1", "f", ""),)),
    good("arguments as an object in a whole answer",
          sized("200 OK", {"choices": [{"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [
              {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}, "finish_reason": "tool_calls"}]}),
          text="", tools=(("c", "f", '{"a": 1}'),)),
    _tools("text and a call", HELLO, WORLD, *_two(0, 1), tools=(_ADD, _MUL), text="Hello world"),
    broken("a call that is cut off", chunked(ROLE, _two(0, 0)[0], end=False), "stream_interrupted", text="", tools=(_ADD,)),
]  # fmt: skip

# The same text twice, and text in other forms

_FULL = {"id": "x", "object": "chat.completion", "model": "m-1", "usage": WHOLE["usage"]}
DOUBLED = [
    good("the full message in the last chunk",
          chunked(*BEGUN, data({**_FULL, "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello world"}}]})),
          usage={"output_tokens": 2}),
    good("the full message beside the last delta",
          chunked(*BEGUN, data({**_FULL, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello world"}}]}), DONE)),
    good("the full message in every chunk", chunked(*(
        data({"choices": [{"index": 0, "delta": {"content": piece}, "message": {"role": "assistant", "content": so_far}, "finish_reason": finish}]})
        for piece, so_far, finish in (("Hello", "Hello", None), (" world", "Hello world", None), ("", "Hello world", "stop"))), DONE)),
    good("only a message", chunked(data({**_FULL, "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello world"}}]}), DONE)),
    good("a list of texts", chunked(ROLE, delta(content=["Hello", " world"]), STOP, DONE)),
    good("a list of a text and a part", chunked(ROLE, delta(content=["Hello", {"type": "text", "text": " world"}]), STOP, DONE)),
    good("an empty list", chunked(ROLE, delta(content=[]), HELLO, WORLD, STOP, DONE)),
    good("a list of texts in a whole answer",
          sized("200 OK", {**WHOLE, "choices": [{"index": 0, "message": {"content": ["Hello", " world"]}, "finish_reason": "stop"}]}), mode="complete"),
    good("usage and citations in the full message",
          chunked(*BEGUN, data({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "Hello world", "usage": WHOLE["usage"], "citations": ["u"]}}]}), DONE),
          usage={"input_tokens": 9}, columns={"annotations": '[{"index":0,"annotations":["u"]}]'}),
    good("text of legacy completions", chunked(*(data({"choices": [{"index": 0, "text": text, "finish_reason": end}]}) for text, end in (("Hello", None), (" world", "stop"))), DONE)),
    good("all text again, as in legacy completions", chunked(*BEGUN, data({"choices": [{"index": 0, "delta": {}, "text": "Hello world", "finish_reason": "stop"}]}), DONE)),
    good("all text again, as the message", chunked(*BEGUN, data({"choices": [{"index": 0, "message": "Hello world", "finish_reason": "stop"}]}), DONE)),
    good("a delta that is the text", chunked(ROLE, *(data({"choices": [{"index": 0, "delta": text}]}) for text in ("Hello", " world")), STOP, DONE)),
    good("a message that is the text", sized("200 OK", {"choices": [{"index": 0, "message": "Hello world", "finish_reason": "stop"}]})),
    good("content that is decoded JSON", chunked(ROLE, delta(content={"answer": 1}), STOP, DONE), text='{"answer":1}'),
    good("a chat completion for legacy completions", chunked(*GOOD), api="completions"),
    good("a surrogate pair in two chunks",
          chunked(ROLE, replaced(HELLO, b"Hello", b"Hello" + HALF), replaced(WORLD, b" world", b"\\ude42 world"), STOP, DONE), text="Hello🙂 world"),
    good("the finish_reason twice", chunked(*BEGUN, STOP, STOP, DONE), columns={"finish_reason": "stop"}),
]  # fmt: skip

# Usage

_MORE = {
    "prompt_tokens": 32,
    "completion_tokens": 9,
    "total_tokens": 135,
    "completion_tokens_details": {"reasoning_tokens": 94},
}
USAGES = [
    good("usage in a choice", chunked(*BEGUN, data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop",
          "usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}}]}), DONE),
          usage={"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500}),
    good("usage in x_groq", chunked(*BEGUN, data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
          "x_groq": {"id": "r", "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}}}), DONE),
          usage={"input_tokens": 9, "output_tokens": 2}),
    good("cached tokens at the top", chunked(*BEGUN, STOP, usage(2989, 5, cached_tokens=2989), DONE),
          usage={"input_tokens": 2989, "cached_input_tokens": 2989}),
    good("cached tokens in details", chunked(*BEGUN, STOP, usage(2989, 5, prompt_tokens_details={"cached_tokens": 2000}), DONE),
          usage={"cached_input_tokens": 2000}),
    good("reasoning tokens that are not in the output tokens", chunked(*BEGUN, STOP, data({"choices": [], "usage": _MORE}), DONE),
          usage={"input_tokens": 32, "output_tokens": 103, "total_tokens": 135, "reasoning_tokens": 94}),
    good("reasoning tokens that are in the output tokens", chunked(*BEGUN, STOP, usage(32, 103, completion_tokens_details={"reasoning_tokens": 94}), DONE),
          usage={"input_tokens": 32, "output_tokens": 103, "total_tokens": 135, "reasoning_tokens": 94}),
    good("zeros after a count", chunked(*BEGUN, STOP, usage(9, 2), usage(0, 0), DONE), usage={"input_tokens": 9, "output_tokens": 2}),
    good("nulls after a count", chunked(*BEGUN, STOP, usage(9, 2), data({"choices": [], "usage": None}), DONE), usage={"input_tokens": 9}),
    good("a growing count", chunked(ROLE, HELLO, usage(9, 1), WORLD, usage(9, 2), STOP, DONE), usage={"input_tokens": 9, "output_tokens": 2}),
    good("two names for a count", chunked(*BEGUN, STOP, data({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": None, "input_tokens": 0, "output_tokens": 2}}), DONE),
          usage={"input_tokens": 9, "output_tokens": 2}),
    good("only the input", chunked(*BEGUN, STOP, data({"choices": [], "usage": {"prompt_tokens": 9}}), DONE),
          usage={"input_tokens": 9, "output_tokens": None}),
    good("usage without choices", chunked(*BEGUN, STOP, data({"usage": WHOLE["usage"]}), DONE), usage={"input_tokens": 9}),
    good("usage before the text", chunked(ROLE, usage(9, 2), HELLO, WORLD, STOP, DONE), usage={"input_tokens": 9}),
    broken("a stale count of a broken stream",
            chunked(ROLE, usage(9, 1), delta(content="one two three four five six seven eight nine ten"), end=False, then="reset"),
            "stream_interrupted", text="one two three four five six seven eight nine ten"),
]  # fmt: skip
