"""Tool calls in chat completions, as servers send them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.api.chat_events import DONE, delta, message, piece, receive, receive_whole, tools

if TYPE_CHECKING:
    from deltatap.model import Received

A, B = ("a", "add", '{"x":1}'), ("b", "mul", '{"x":2}')
Calls = list[tuple[str | None, str, str]]
ONE: Calls = [A]
TWO: Calls = [A, B]
NAMELESS: Calls = [(None, "add", '{"x":1}'), (None, "mul", '{"x":2}')]


def calls(received: Received) -> Calls:
    found = json.loads(received.choices[0].tool_calls or "[]") if received.choices else []
    return [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in found]


TOOL_CALLS: dict[str, tuple[list[Any], Calls]] = {
    "one index for all": ([tools(piece("add", '{"x":1}', index=0, id="a")), tools(piece("mul", '{"x":2}', index=0, id="b"))], TWO),
    "one index for all, in pieces": (
        [tools(piece("add", "", index=0, id="a")), tools(piece(None, '{"x":1}', index=0)),
         tools(piece("mul", "", index=0, id="b")), tools(piece(None, '{"x"', index=0)), tools(piece(None, ":2}", index=0))], TWO),
    "one index, no ids": ([tools(piece("add", '{"x":1}', index=0)), tools(piece("mul", '{"x":2}', index=0))], NAMELESS),
    "one index, no ids, one name": (
        [tools(piece("add", '{"x":1}', index=0)), tools(piece("add", '{"x":2}', index=0))], [(None, "add", '{"x":1}'), (None, "add", '{"x":2}')]),
    "one index in one event": ([tools(piece("add", '{"x":1}', index=0, id="a"), piece("mul", '{"x":2}', index=0, id="b"))], TWO),
    "no index": ([tools(piece("add", '{"x":1}', id="a")), tools(piece("mul", '{"x":2}', id="b"))], TWO),
    "no index, in one event": ([tools(piece("add", '{"x":1}', id="a"), piece("mul", '{"x":2}', id="b"))], TWO),
    "no index, in pieces": (
        [tools(piece("add", '{"x"', id="a")), tools(piece(None, ":1}")), tools(piece("mul", id="b")), tools(piece(None, '{"x":2}'))], TWO),
    "no index, the id in every piece": (
        [tools(piece("add", '{"x"', id="a")), tools(piece("mul", '{"x"', id="b")), tools(piece(None, ":1}", id="a"), piece(None, ":2}", id="b"))], TWO),
    "no index, no ids": ([tools(piece("add", '{"x":1}')), tools(piece("mul", '{"x":2}'))], NAMELESS),
    "no index, no ids, no arguments": ([tools(piece("f")), tools(piece("g"))], [(None, "f", ""), (None, "g", "")]),
    "no index, no ids, in one event": (
        [tools(piece("add", '{"x"'), piece("mul", '{"x"')), tools(piece(None, ":1}"), piece(None, ":2}"))], NAMELESS),
    "index null": ([tools(piece("add", '{"x":1}', index=None, id="a")), tools(piece("mul", '{"x":2}', index=None, id="b"))], TWO),
    "index as text": ([tools(piece("add", '{"x"', index="0", id="a")), tools(piece(None, ":1}", index="0"))], ONE),
    "index as a float": ([tools(piece("add", '{"x"', index=0.0, id="a")), tools(piece(None, ":1}", index=0))], ONE),
    "negative index": ([tools(piece("add", '{"x":1}', index=-1, id="a")), tools(piece("mul", '{"x":2}', index=-1, id="b"))], TWO),
    "odd indexes": (
        [tools(piece("add", '{"x":1}', index=[1], id="a")), tools(piece("mul", '{"x":2}', index=2**70, id="b"))], TWO),
    "index true": ([tools(piece("add", '{"x":1}', index=True, id="a")), tools(piece("mul", '{"x":2}', index=False, id="b"))], TWO),
    "indexes from 1": ([tools(piece("add", '{"x":1}', index=1, id="a")), tools(piece("mul", '{"x":2}', index=2, id="b"))], TWO),
    "the second first": ([tools(piece("mul", '{"x":2}', index=1, id="b")), tools(piece("add", '{"x":1}', index=0, id="a"))], TWO),
    "name and id in every piece": (
        [tools(piece("add", '{"x"', index=0, id="a")), tools(piece("add", ":1", index=0, id="a")), tools(piece("add", "}", index=0, id="a"))], ONE),
    "name in every piece, no id": ([tools(piece("add", '{"x"', index=0)), tools(piece("add", ":1}", index=0))], NAMELESS[:1]),
    "another name amid the arguments": (
        [tools(piece("add", '{"x"', index=0, id="a")), tools(piece("function", ":1}", index=0))], ONE),
    "name before the arguments, twice": ([tools(piece("add", "", index=0, id="a")), tools(piece("add", '{"x":1}', index=0, id="a"))], ONE),
    "name in pieces": (
        [tools(piece("a", "", index=0, id="a")), tools(piece("d", index=0)), tools(piece("d", index=0)), tools(piece(None, '{"x":1}', index=0))],
        ONE),
    "name in other pieces": (
        [tools(piece("get_", "", index=0, id="a")), tools(piece("time", index=0)), tools(piece(None, "{}", index=0))], [("a", "get_time", "{}")]),
    "growing name": (
        [tools(piece("get_", "", index=0, id="a")), tools(piece("get_time", "{}", index=0, id="a"))], [("a", "get_time", "{}")]),
    "empty name and id afterwards": (
        [tools(piece("add", "", index=0, id="a")), tools(piece("", '{"x":1}', index=0, id="", type=""))], ONE),
    "another id in every piece": (
        [tools(piece("add", "", index=0, id="a")), tools(piece(None, '{"x"', index=0, id="z")), tools(piece(None, ":1}", index=0, id="y"))], ONE),
    "the id comes late": ([tools(piece("add", '{"x"', index=0)), tools(piece(None, ":1}", index=0, id="a"))], ONE),
    "arguments as an object": ([tools(piece("add", {"x": 1}, index=0, id="a"))], ONE),
    "arguments as an empty object": ([tools(piece("f", {}, index=0, id="a"))], [("a", "f", "{}")]),
    "arguments as a list": ([tools(piece("f", [1], index=0, id="a"))], [("a", "f", "[1]")]),
    "arguments null": ([tools({"index": 0, "id": "a", "function": {"name": "f", "arguments": None}})], [("a", "f", "")]),
    "arguments as a number": ([tools(piece("f", 3, index=0, id="a"))], [("a", "f", "3")]),
    "arguments false": ([tools(piece("f", False, index=0, id="a"))], [("a", "f", "false")]),
    "an id as a number": ([tools(piece("f", "{}", index=0, id=7)), tools(piece(None, "", index=0, id=7))], [("7", "f", "{}")]),
    "an object for the list": ([delta(tool_calls=piece("f", "{}", index=0, id="a"))], [("a", "f", "{}")]),
    "an empty object before the arguments": ([tools(piece("add", {}, index=0, id="a")), tools(piece(None, '{"x":1}', index=0))], ONE),
    "all arguments again": (
        [tools(piece("add", '{"x"', index=0, id="a")), tools(piece(None, ":1}", index=0)), tools(piece("add", '{"x":1}', index=0, id="a"))], ONE),
    "all arguments again, no name": (
        [tools(piece("add", '{"x":1}', index=0, id="a")), tools(piece(None, '{"x": 1}', index=0)), tools(piece(None, {"x": 1}, index=0))], ONE),
    "growing arguments": ([tools(piece("add", '{"x"', index=0, id="a")), tools(piece(None, '{"x":1}', index=0))], ONE),
    "an object in an object": (
        [tools(piece("f", '{"a":', index=0, id="a")), tools(piece(None, '{"a":', index=0)), tools(piece(None, "1}}", index=0))], [("a", "f", '{"a":{"a":1}}')]),
    "a custom tool": (
        [tools({"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "{"}}), tools({"index": 0, "custom": {"input": "{x}"}})],
        [("a", "f", "{{x}")]),
    "no function around": ([tools({"index": 0, "id": "a", "name": "add", "arguments": '{"x":1}'})], ONE),
    "again in a message": ([tools(piece("add", '{"x":1}', index=0, id="a")), message("tool_calls", tool_calls=[piece("add", '{"x":1}', id="a")])], ONE),
    "again in a message without ids": (
        [tools(piece("add", '{"x":1}', index=0), piece("mul", '{"x":2}', index=1)),
         message("tool_calls", tool_calls=[piece("add", '{"x": 1}'), piece("mul", {"x": 2})])], NAMELESS),
    "more in a message": (
        [tools(piece("add", index=0, id="a")), message(tool_calls=[piece("add", '{"x":1}', id="a"), piece("mul", '{"x":2}', id="b")])], TWO),
    "a function call": (
        [delta(function_call={"name": "add", "arguments": ""}), delta(function_call={"arguments": '{"x"'}), delta(function_call={"arguments": ":1}"})],
        NAMELESS[:1]),
    "a function call with an object": ([delta(function_call={"name": "add", "arguments": {"x": 1}})], NAMELESS[:1]),
    "a function call beside the tool call": (
        [delta(function_call={"name": "add", "arguments": '{"x":1}'}, tool_calls=[piece("add", '{"x":1}', index=0, id="a")])], ONE),
    "half a surrogate pair": ([tools(piece("f", '{"\ud83d"', index=0, id="\udc00"))], [("\ufffd", "f", '{"\ufffd"')]),
    "no objects": ([delta(tool_calls=[3, None, "x", [], {"function": 3}]), delta(tool_calls={"a": 1}), delta(tool_calls="x")], [(None, "", "")]),
}  # fmt: skip


@pytest.mark.parametrize("name", TOOL_CALLS)
def test_tool_calls_are_told_apart_and_not_doubled(name: str) -> None:
    events, expected = TOOL_CALLS[name]
    received = receive(*events, delta("tool_calls"), DONE)
    assert calls(received) == expected
    assert received.finished
    spoken = "".join(chunk["text"] for chunk in received.chunks.to_dicts() if chunk["kind"] == "tool_calls")
    assert len(spoken) >= len("".join(name + arguments for _, name, arguments in expected)), "counted as output"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([piece("add", {"x": 1}, id="a")], ONE),
        ([piece("add", '{"x":1}', id="a"), piece("mul", '{"x":2}', id="b")], TWO),
        ([piece("add", '{"x":1}', id="a", index=0), piece("mul", '{"x":2}', id="b", index=0)], TWO),
        ([piece("f", '{"x":1}'), piece("f", '{"x":1}')], [(None, "f", '{"x":1}')] * 2),
        ([piece("f", {}, id="a")], [("a", "f", "{}")]),
    ],
)
def test_tool_calls_of_a_whole_answer(given: list[Any], expected: Any) -> None:
    assert calls(receive_whole(message("tool_calls", content=None, tool_calls=given))) == expected
