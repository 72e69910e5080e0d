"""What servers send in chat completions, as tables. Each stream is fed whole, byte by byte and cut at random."""

from __future__ import annotations

import json
import random
import time
from array import array
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.api.chat import ChatAccumulator
from deltatap.api.completions import CompletionsAccumulator
from deltatap.api.sse import SSEDecoder
from deltatap.model import Received, StreamError, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from deltatap.api.choices import ChoicesAccumulator

DONE = b"data: [DONE]\n\n"


def framed(events: Iterable[Any]) -> bytes:
    """Events as bytes. Bytes are already framed."""
    return b"".join(
        event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n" for event in events
    )


def read(reads: Iterable[bytes], accumulator: ChoicesAccumulator) -> Received:
    decoder = SSEDecoder()
    for number, data in enumerate(reads):
        for event in decoder.feed(data):
            accumulator.add(event.data, float(number), number, event.event)
    return accumulator.finish()


def receive(*events: Any, api: type[ChoicesAccumulator] = ChatAccumulator, choices: int = 1) -> Received:
    data = framed(events)
    whole = read([data], api(choices))
    cuts = sorted(random.Random(len(data)).randrange(len(data) + 1) for _ in range(9))  # noqa: S311 - not a secret
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    for reads in (pieces, [data[at : at + 1] for at in range(len(data))]):
        other = read(reads, api(choices))
        for name in set(Received.__dataclass_fields__) - {"chunks"}:
            assert getattr(other, name) == getattr(whole, name), name
        assert other.chunks.text == whole.chunks.text
    return whole


def receive_whole(answer: Any) -> Received:
    accumulator = ChatAccumulator()
    accumulator.add_whole(json.dumps(answer).encode())
    return accumulator.finish()


def delta(finish: Any = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def message(finish: Any = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": fields, "finish_reason": finish}]}


def beside(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, **fields}]}


def kinds(received: Received) -> str:
    return " ".join(chunk["kind"] for chunk in received.chunks.to_dicts())


def piece(name: Any = None, arguments: Any = None, **fields: Any) -> dict[str, Any]:
    given = {"name": name, "arguments": arguments}
    return {**fields, "function": {key: value for key, value in given.items() if value is not None}}


def tools(*pieces: Any, finish: Any = None) -> dict[str, Any]:
    return delta(finish, tool_calls=list(pieces))


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


ODD: list[Any] = [True, None, [0], {}, -1, 2**40, "0", 0.0, "x", 0.5]
ANNOTATION = {"type": "url_citation", "url_citation": {"url": "https://example.com", "start_index": 0, "end_index": 2}}
# events: text, reasoning, kinds of the chunks
OUTPUT: dict[str, tuple[list[Any], str, str | None, str]] = {
    "the whole message again": ([delta(content="Hel"), delta(content="lo"), message("stop", role="assistant", content="Hello")], "Hello", None, "content content finish"),
    "the whole message again, but cut": ([delta(content="Hello "), message("stop", content="Hello")], "Hello ", None, "content finish"),
    "the whole message has more": ([delta(content="Hel"), message("stop", content="Hello")], "Hello", None, "content content finish"),
    "the whole message fills what is missing": (
        [delta(content="Hello"), message("stop", content="Hello", reasoning_content="hm")], "Hello", "hm", "content reasoning finish"),
    "only the whole message": ([message("stop", content="Hello", reasoning="hm")], "Hello", "hm", "content reasoning finish"),
    "growing messages": ([message(content="He"), message(content="Hello"), message("stop", content="Hello")], "Hello", None, "content content finish"),
    "messages in pieces": ([message(content="He"), message(content="llo"), message(content="He"), message("stop")], "HelloHe", None, "content content content finish"),
    "messages in pieces, then whole": ([message(content="He"), message(content="llo"), message("stop", content="Hello")], "Hello", None, "content content finish"),
    "pieces that start alike": ([message(content="a"), message(content="b"), message(content="ab c"), message("stop")], "abab c", None, "content content content finish"),
    "equal pieces": ([message(content="ha"), message(content="ha"), message("stop")], "haha", None, "content content finish"),
    "delta and message": ([{"choices": [{"delta": {"content": "Hi"}, "message": {"content": "Hi"}}]}], "Hi", None, "content"),
    "an empty delta and a message": ([{"choices": [{"delta": {"content": ""}, "message": {"content": "Hi"}}]}], "Hi", None, "content"),
    "both names of reasoning": ([delta(reasoning="hm", reasoning_content="hm"), delta(content="ok")], "ok", "hm", "reasoning content"),
    "one name, then the other": ([delta(reasoning="h"), delta(reasoning_content="m"), delta(content="ok")], "ok", "hm", "reasoning reasoning content"),
    "reasoning and its details": (
        [delta(content="", reasoning="hm", reasoning_details=[{"type": "reasoning.text", "text": "hm"}]), delta(content="ok")], "ok", "hm", "reasoning content"),
    "details before reasoning": ([delta(reasoning_details=[{"text": "hm"}], reasoning="hm")], "", "hm", "reasoning"),
    "only details": (
        [delta(reasoning_details=[{"type": "reasoning.text", "text": "h"}, {"type": "reasoning.summary", "summary": "m"}])], "", "hm", "reasoning"),
    "an object": ([delta(reasoning={"text": "hm"}), delta(content="ok")], "ok", "hm", "reasoning content"),
    "a list of reasoning": ([delta(reasoning_content=["h", "m"])], "", "hm", "reasoning"),
    "other names": ([delta(thinking="h"), delta(reasoning_text="m", thinking="m")], "", "hm", "reasoning reasoning"),
    "encrypted details": ([delta(reasoning_details=[{"type": "reasoning.encrypted", "data": "x"}])], "", None, "empty"),
    "encrypted details beside reasoning": ([delta(reasoning_details=[{"data": "x"}], reasoning="hm")], "", "hm", "reasoning"),
    "a list of texts": ([delta(content=["Hello", " world", 3, None])], "Hello world", None, "content content"),
    "a list of parts": ([delta(content=[{"type": "text", "text": "a"}, {"type": "output_text", "text": {"value": "b"}}])], "ab", None, "content content"),
    "a part": ([delta(content={"type": "text", "text": "a"})], "a", None, "content"),
    "parts of reasoning": (
        [delta(content=[{"type": "reasoning", "text": "a"}, {"type": "thinking", "thinking": "b"}, {"type": "thinking", "thinking": ["c", {"text": "d"}]},
                        {"type": "reasoning", "summary": [{"text": "e"}]}])], "", "abcde", "reasoning reasoning reasoning reasoning reasoning"),
    "an image": ([delta(content=[{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]), delta(images=[{"type": "image_url"}])], "", None, "empty empty"),
    "audio": ([delta(audio={"transcript": "Hi"}), delta(audio={"data": "AA"})], "Hi", None, "content empty"),
    "blank data": ([delta(content="Hi"), b"data:\n\n", b"data:    \n\n", b"data: \t\ndata:\n\n", b"data: null\n\n", delta("stop")], "Hi", None, "content finish"),
    "notices": (
        [b"event: ping\ndata: 2026-09-01T00:00:00Z\n\n", b"event: heartbeat\ndata: 5\n\n", b"event: status\ndata: [1]\n\n", delta(content="Hi"), b": x\n\n"],
        "Hi", None, "content"),
    "invalid UTF-8": ([b'data: {"choices": [{"delta": {"content": "a\xff"}}]}\n\n'], "a\ufffd", None, "content"),
    "half a surrogate pair as bytes": ([b'data: {"choices": [{"delta": {"content": "a\xed\xa0\xbd"}}]}\n\n'], "a\ufffd\ufffd\ufffd", None, "content"),
    "NaN": ([b'data: {"choices": [{"delta": {"content": "a"}, "logprobs": NaN}]}\n\n'], "a", None, "content"),
    "a digit without end": ([b'data: {"created": ' + b"9" * 5000 + b', "choices": [{"delta": {"content": "a"}}]}\n\n'], "a", None, "content"),
    "odd indexes of choices": (
        [{"choices": [{"index": index, "delta": {"content": "a"}} for index in ODD]}],
        "a" * 10, None, " ".join(["content"] * 10)),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUT)
def test_output_is_neither_doubled_nor_dropped(name: str) -> None:
    events, text, reasoning, expected = OUTPUT[name]
    received = receive(*events)
    assert (received.error, received.protocol_error) == (None, None)
    assert kinds(received) == expected
    assert (received.text or "", received.choices[0].reasoning) == (text, reasoning)
    assert "".join(chunk["text"] for chunk in received.chunks.to_dicts() if chunk["kind"] == "content") == text


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([delta(annotations=[ANNOTATION]), message("stop", annotations=[ANNOTATION])], [{"index": 0, "annotations": [ANNOTATION]}]),
        ([message("stop", content="Hi", annotations=[ANNOTATION])], [{"index": 0, "annotations": [ANNOTATION]}]),
        ([delta(content=[{"type": "text", "text": "Hi", "annotations": [ANNOTATION]}])], [{"index": 0, "annotations": [ANNOTATION]}]),
        ([{**delta(content="Hi"), "citations": ["u"]}, {**delta("stop"), "citations": ["u", "v"]}], [{"citations": ["u", "v"]}]),
        ([{**delta(content="Hi"), "citations": [], "search_results": [{"url": "u"}]}], [{"search_results": [{"url": "u"}]}]),
        ([delta(annotations="x\ud83d")], [{"index": 0, "annotations": ["x\ufffd"]}]),
        ([delta(content="Hi", annotations=[])], None),
    ],
)  # fmt: skip
def test_annotations_are_kept_once(events: list[Any], expected: Any) -> None:
    received = receive(*events)
    assert (received.annotations and json.loads(received.annotations)) == expected


WORDS = StreamError(None, "502", "gone")
FAULT = {"code": 502, "message": "gone"}
# events: the error, text, finish_reason
ERRORS: dict[str, tuple[list[Any], StreamError, str | None, str | None]] = {
    "an error": ([{"error": FAULT}], WORDS, None, None),
    "an error after output": ([delta(content="Hi"), {"error": FAULT}], WORDS, "Hi", None),
    "text beside it": ([{"error": FAULT, **delta("error", content="Hi")}], WORDS, "Hi", "error"),
    "text after it": ([{"error": FAULT}, delta("stop", content="Hi")], WORDS, "Hi", "stop"),
    "an error in a choice": ([delta(content="Hi"), beside(error=FAULT, finish_reason="error")], WORDS, "Hi", "error"),
    "an error in a delta": ([delta(content="Hi"), delta(error=FAULT)], WORDS, "Hi", None),
    "an error in a choice without a reason": ([beside(error="gone")], StreamError(None, None, "gone"), "", None),
    "a reason, then words": ([delta("error", content="Hi"), {"error": FAULT}], WORDS, "Hi", "error"),
    "a code, then words": ([{"error": "", "code": 424}, {"error": FAULT}], WORDS, None, None),
    "two errors": ([{"error": FAULT}, {"error": "more"}], WORDS, None, None),
    "vllm": ([delta(content="Hi"), {"object": "error", "message": "gone", "code": 502}], WORDS, "Hi", None),
    "detail": ([{"detail": "gone"}], StreamError(None, None, "gone"), None, None),
    "a list": ([[{"error": FAULT}]], WORDS, None, None),
    "the field error": ([delta(content="Hi"), b'error: {"code":502,"message":"gone"}\n\n'], WORDS, "Hi", None),
    "an event of type error": ([b'event: error\ndata: {"message":"gone","code":502}\n\n'], WORDS, None, None),
    "an event of type error with a reason": ([b'event: error\ndata: {"reason":"gone"}\n\n'], StreamError(None, None, "gone"), None, None),
    "an event of type error with words": ([b"event: error\ndata: gone\n\n"], StreamError(None, None, "gone"), None, None),
    "an event of type error with text": ([b'event: error\ndata: "gone"\n\n'], StreamError(None, None, "gone"), None, None),
    "an event of type error with a list": ([b'event: error\ndata: ["gone"]\n\n'], StreamError(None, None, "gone"), None, None),
    "groq": ([delta(content="Hi"), {**delta(), "x_groq": {"error": "over_capacity"}}], StreamError(None, None, "over_capacity"), "Hi", None),
    "minimax beside output": (
        [{**delta(content="Hi"), "base_resp": {"status_code": 1027, "status_msg": "gone"}}], StreamError(None, "1027", "gone"), "Hi", None),
    "minimax without output": (
        [{"choices": None, "base_resp": {"status_code": 1008, "status_msg": "gone"}}], StreamError(None, "1008", "gone", 402), None, None),
    **{
        reason: ([delta(content="Hi"), delta(reason)], StreamError(None, reason, f"the finish_reason is {reason}"), "Hi", reason)
        for reason in (
            "error", "ERROR", "network_error", "server_error", "internal_error", "engine_error", "abort", "aborted", "timeout", "timed_out",
            "TIMEOUT", "cancelled", "canceled", "USER_CANCEL", "failed", "insufficient_system_resource", "MALFORMED_FUNCTION_CALL",
            "malformed_model_output", "malformed_tool_use", "UNEXPECTED_TOOL_CALL", "engine_overloaded", "error: the worker died",
        )
    },
    "sglang's object": ([delta({"type": "abort", "message": "x"})], StreamError(None, "abort", "the finish_reason is abort"), "", "abort"),
    "a failure is not taken back": ([delta("error"), delta("stop")], StreamError(None, "error", "the finish_reason is error"), "", "stop"),
    "the provider's reason": (
        [beside(finish_reason="stop", native_finish_reason="network_error")],
        StreamError(None, "network_error", "the finish_reason is network_error"), "", "stop"),
    "the provider's reason of one empty choice": (
        [{"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"},
                      {"index": 1, "delta": {}, "finish_reason": "stop", "native_finish_reason": "MALFORMED_FUNCTION_CALL"}]}],
        StreamError(None, "MALFORMED_FUNCTION_CALL", "the finish_reason is MALFORMED_FUNCTION_CALL"), "a", "stop"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_inside_a_200_is_an_error_in_every_form(name: str) -> None:
    events, error, text, reason = ERRORS[name]
    received = receive(*events, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 40}}, DONE)
    assert received.error == error
    assert (received.text, received.finish_reason) == (text, reason)
    assert received.usage == Usage(9, 40)
    assert received.protocol_error is None
    assert received.done
    assert kinds(received).count("error") <= 2


NO_REASONS: list[Any] = ["null", "None", "NULL", "", None, 3, [], False, {"type": None}]


@pytest.mark.parametrize(
    ("event", "finished", "reason"),
    [
        *((delta(reason), True, reason) for reason in ("stop", "length", "content_filter", "tool_calls", "eos", "SAFETY", "error_toxic", "sensitive", "other")),
        *((delta(reason), False, None) for reason in NO_REASONS),
        (beside(finish_reason="stop", native_finish_reason="STOP"), True, "stop"),
        ({"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop", "native_finish_reason": "network_error"}]}, True, "stop"),
        ({"choices": [{"delta": {}, "finish_reason": "stop", "native_finish_reason": ["error"]}]}, True, "stop"),
        (delta("error"), False, "error"),
    ],
)  # fmt: skip
def test_which_reasons_are_an_end(event: Any, *, finished: bool, reason: str | None) -> None:
    received = receive(event)
    assert (received.finished, received.finish_reason) == (finished, reason)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ({"error": FAULT}, WORDS, None),
        ({"code": "InvalidParameter", "message": "gone"}, StreamError(None, "InvalidParameter", "gone", 400), None),
        ([{"error": FAULT}], WORDS, None),
        ({**message("error", content="Hi"), "error": FAULT}, WORDS, "Hi"),
        (message("error", content="Hi"), StreamError(None, "error", "the finish_reason is error"), "Hi"),
        ({"choices": [{"message": {"content": "Hi"}, "error": FAULT, "finish_reason": "stop"}]}, WORDS, "Hi"),
        ({**message("stop", content="Hi"), "base_resp": {"status_code": 1, "status_msg": "gone"}}, StreamError(None, "1", "gone"), "Hi"),
        ({**message("stop", content="Hi"), "error": None, "message": "fine", "code": 200}, None, "Hi"),
    ],
)  # fmt: skip
def test_an_error_inside_a_whole_answer(answer: Any, error: StreamError | None, text: str | None) -> None:
    received = receive_whole(answer)
    assert (received.error, received.text, received.protocol_error) == (error, text, None)


@pytest.mark.parametrize(
    ("code", "type_", "status"),
    [
        (429, None, 429),
        ("429", None, 429),
        (429.0, None, 429),
        (424, None, 424),
        (498, None, 498),
        (529, None, 529),
        (500, None, None),
        (503, "rate_limit_error", 429),
        (500, "invalid_request_error", None),
        (529, "invalid_request_error", 529),
        (400, "rate_limit_error", 400),
        (None, "RESOURCE_EXHAUSTED", 429),
        ("1008", None, 402),
        ("x", "Invalid_Request_Error", 400),
        ("9" * 5000, None, None),
        ([429], None, None),
        (True, None, None),
        (None, {"a": 1}, None),
    ],
)
def test_the_status_that_an_error_stands_for(code: Any, type_: Any, status: int | None) -> None:
    error = receive({"error": {"code": code, "type": type_, "message": "x"}}).error
    assert error is not None
    assert error.client_status == status


def used(*counts: Any, **more: Any) -> dict[str, Any]:
    return {
        "choices": [],
        "usage": dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), counts, strict=False)) | more,
    }


HI = delta(content="Hi")
USAGES: dict[str, tuple[list[Any], Usage | None, bool]] = {
    "at the end": ([HI, used(9, 2, 11)], Usage(9, 2, 11), True),
    "none": ([HI], None, True),
    "beside the last output": ([{**HI, "usage": {"prompt_tokens": 9, "completion_tokens": 2}}], Usage(9, 2), True),
    "the last of several": ([HI, used(9, 1, 10), HI, used(9, 2, 11)], Usage(9, 2, 11), True),
    "output after it": ([HI, used(9, 1, 10), HI], Usage(9, 1, 10), False),
    "only a finish after it": ([HI, used(9, 1, 10), delta("stop")], Usage(9, 1, 10), True),
    "zeros after a count": ([HI, used(9, 2, 11), used(0, 0, 0)], Usage(9, 2, 11), True),
    "no output tokens after a count": ([HI, used(9, 2, 11), used(9, 0, 9)], Usage(9, 2, 11), True),
    "nothing after a count": ([HI, used(9, 2, 11), used()], Usage(9, 2, 11), True),
    "zeros after an input": ([used(9, 0, 9), HI, used(0, 0, 0)], Usage(9, 0, 9), False),
    "zeros before a count": ([used(0, 0, 0), HI, used(9, 2, 11)], Usage(9, 2, 11), True),
    "only zeros": ([HI, used(0, 0, 0)], Usage(0, 0, 0), False),
    "zeros and no output": ([used(9, 0, 9), delta("stop")], Usage(9, 0, 9), True),
    "null": ([HI, {"choices": [], "usage": None}], None, True),
    "a list": ([HI, {"choices": [], "usage": [1]}], None, True),
    "in a choice": ([HI, beside(finish_reason="stop", usage={"prompt_tokens": 9, "completion_tokens": 2})], Usage(9, 2), True),
    "in a choice without a reason": ([HI, beside(usage={"prompt_tokens": 9, "completion_tokens": 2})], Usage(9, 2), True),
    "in a delta": ([HI, delta("stop", usage={"prompt_tokens": 9, "completion_tokens": 2})], Usage(9, 2), True),
    "groq": ([HI, {**delta("stop"), "x_groq": {"id": "r", "usage": {"prompt_tokens": 9, "completion_tokens": 2}}}], Usage(9, 2), True),
    "groq twice": ([HI, {**delta("stop"), "usage": {"prompt_tokens": 9, "completion_tokens": 2}, "x_groq": {"usage": None}}], Usage(9, 2), True),
    "cached tokens outside": ([HI, used(99, 2, 101, cached_tokens=90)], Usage(99, 2, 101, 90), True),
    "deepseek": ([HI, used(99, 2, 101, prompt_cache_hit_tokens=90)], Usage(99, 2, 101, 90), True),
    "cached tokens twice": ([HI, used(99, 2, 101, cached_tokens=90, prompt_tokens_details={"cached_tokens": 0})], Usage(99, 2, 101, 90), True),
    "xai": ([HI, used(32, 9, 135, completion_tokens_details={"reasoning_tokens": 94})], Usage(32, 103, 135, None, 94), True),
    "portkey": ([HI, used(50, 503, 100553, cache_read_input_tokens=99000, cache_creation_input_tokens=1000)], Usage(100050, 503, 100553, 99000, cache_write_tokens=1000), True),
    "databricks": ([HI, used(99, 2, 101, cache_read_input_tokens=90, cache_creation_input_tokens=0)], Usage(99, 2, 101, 90, cache_write_tokens=0), True),
    "audio only in the total": ([HI, used(3, 41, 419, prompt_tokens_details={"audio_tokens": 375})], Usage(378, 41, 419, audio_input_tokens=375), True),
    "xai with a cache": ([HI, used(32, 9, 135, prompt_tokens_details={"cached_tokens": 8}, completion_tokens_details={"reasoning_tokens": 94})], Usage(32, 103, 135, 8, 94), True),
    "perplexity": ([HI, used(33, 7, 40, citation_tokens=2, reasoning_tokens=73)], Usage(33, 80, 40, None, 73, citation_tokens=2), True),
    "perplexity, little reasoning": ([HI, used(33, 7, 40, citation_tokens=2, reasoning_tokens=5)], Usage(33, 12, 40, None, 5, citation_tokens=2), True),
    "perplexity, reasoning in the total": ([HI, used(33, 7, 45, citation_tokens=2, reasoning_tokens=5)], Usage(33, 12, 45, None, 5, citation_tokens=2), True),
    "reasoning beyond the total": ([HI, used(9, 2, 11, completion_tokens_details={"reasoning_tokens": 73})], Usage(9, 2, 11, None, 73), True),
    "reasoning apart, without a total": ([HI, used(9, 2, None, completion_tokens_details={"reasoning_tokens": 73})], Usage(9, 75, None, None, 73), True),
    "the total is too small": ([HI, used(9, 5, 9)], Usage(9, 5, 9), True),
    "the total is less than the input": ([HI, used(9, None, 5)], Usage(9, None, 5), True),
    "no output tokens": ([HI, used(9, None, 20)], Usage(9, 11, 20), True),
    "only a total": ([HI, used(None, None, 20)], Usage(None, None, 20), True),
    "floats": ([HI, used(9.0, 2.0, 11.0)], Usage(9, 2, 11), True),
    "no numbers of tokens": ([HI, used(9.5, -1, True)], Usage(), True),
    "text": ([HI, used("9", "2", "11")], Usage(), True),
    "without end": ([HI, used(10**9 + 1, float("inf"), float("nan"))], Usage(), True),
    "2**63": ([HI, used(2**63 - 1, 2**64, 1)], Usage(None, None, 1), True),
    "details that are no objects": ([HI, used(9, 2, 11, prompt_tokens_details=[1], completion_tokens_details="x")], Usage(9, 2, 11), True),
}  # fmt: skip


@pytest.mark.parametrize("name", USAGES)
def test_usage(name: str) -> None:
    events, usage, final = USAGES[name]
    received = receive(*events)
    assert (received.usage, received.usage_final) == (usage, final)


def of_choice(index: int, tokens: int | None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 9, "completion_tokens": tokens}}
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}], **usage}


@pytest.mark.parametrize(
    ("events", "final"),
    [
        ([of_choice(0, 50, content="a"), of_choice(1, 5, content="b")], False),
        ([of_choice(0, 50, content="a"), of_choice(1, 5, content="b"), used(9, 55, 64)], True),
        ([of_choice(0, None, "stop", content="a"), of_choice(1, 55, "stop", content="b")], True),
        ([of_choice(0, 50, content="a")], True),
    ],
)
def test_the_usage_of_one_of_several_choices_is_not_that_of_the_call(events: list[Any], *, final: bool) -> None:
    assert receive(*events).usage_final is final


def thought(text: str, *, mark: object = True) -> dict[str, Any]:
    return {"content": text, "extra_content": {"google": {"thought": mark}}}


@pytest.mark.parametrize(
    ("deltas", "reasoning", "text"),
    [
        ([thought("<thought>I "), thought("think"), {"content": "</thought>An"}, {"content": "swer"}], "I think", "Answer"),
        ([thought("I "), thought("think"), {"content": "An"}, {"content": "swer </thought>"}], "I think", "Answer </thought>"),
        ([{"content": "x"}, {"content": "y"}, thought("<thought>z"), {"content": "</thought>a"}], "z", "xya"),
        ([{"content": "<thought>"}, thought("x", mark=False)], None, "<thought>x"),
        ([{"content": "a", "extra_content": [1]}, {"content": "b", "extra_content": {"google": 1}}], None, "ab"),
    ],
)  # fmt: skip
def test_the_thoughts_of_gemini_are_reasoning(deltas: list[Any], reasoning: str | None, text: str) -> None:
    received = receive(*({"choices": [{"index": 0, "delta": each}]} for each in deltas))
    assert (received.choices[0].reasoning, received.text) == (reasoning, text)


def test_the_thoughts_of_gemini_in_a_whole_answer_are_reasoning() -> None:
    message = thought("<thought>I think</thought>Answer")
    received = receive_whole({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    assert (received.choices[0].reasoning, received.text) == ("I think", "Answer")


@pytest.mark.parametrize(("indices", "texts"), [((None, None), ["a", "b"]), ((0, 0), ["a", "b"]), ((1, 0), ["b", "a"])])
def test_choices_without_numbers_of_their_own_are_numbered(indices: tuple[Any, Any], texts: list[str]) -> None:
    accumulator = ChatAccumulator(2)
    choices = [
        {"index": at, "message": {"content": text}, "finish_reason": "stop"}
        for at, text in zip(indices, "ab", strict=True)
    ]
    accumulator.add_whole(json.dumps({"choices": choices}).encode())
    assert [choice.text for choice in accumulator.finish().choices] == texts


def test_choices_in_a_stream_are_numbered_only_without_numbers_of_their_own() -> None:
    accumulator = ChatAccumulator(2)
    for pieces in ([(None, "A"), (None, "B")], [(1, "b"), (1, "c")], [(0, "a")]):
        choices = [{"index": at, "delta": {"content": text}} for at, text in pieces]
        accumulator.add(json.dumps({"choices": choices}).encode(), 0.0, 0)
    assert [choice.text for choice in accumulator.finish().choices] == ["Aa", "Bbc"]


def test_a_whole_answer_with_an_error_and_without_choices_keeps_its_usage() -> None:
    received = receive_whole(
        {"id": "r", "model": "m", "error": {"message": "x", "code": 500}, **used(10, 5, 15), "choices": None}
    )
    assert received.error is not None
    assert (received.usage, received.response_id, received.response_model) == (Usage(10, 5, 15), "r", "m")


def test_legacy_completions() -> None:
    def choice(text: Any, finish: Any = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}

    texts = [choice(text) for text in ("a", None, "", ["b", {"text": "c"}], 3)]
    received = receive(*texts, choice(None, "stop"), api=CompletionsAccumulator)
    assert (received.text, received.finish_reason, received.finished) == ("abc", "stop", True)
    failed = receive(choice("a"), choice("", "error"), api=CompletionsAccumulator)
    assert failed.error == StreamError(None, "error", "the finish_reason is error")


@pytest.mark.parametrize(
    "event", [b"data: {\n\n", b"event: message\ndata: {\n\n", b"data: 3\n\n", b"data: []\n\n", b'data: "x"\n\n']
)
def test_untyped_data_that_is_no_object_is_a_protocol_error(event: bytes) -> None:
    received = receive(HI, event, HI)
    assert (received.protocol_error or "").startswith("event 1 ")
    assert received.text == "Hi"


@pytest.mark.parametrize(
    "data",
    [b"data:[DONE]\n\n", b"data:  [DONE] \n\n", b"data: [DONE]\t\ndata:\n\n", b"event: message\ndata: [DONE]\n\n"],
)
def test_the_end_mark_can_have_blanks(data: bytes) -> None:
    received = receive(HI, data, HI)
    assert (received.done, received.text, received.protocol_error) == (True, "Hi", None)


def test_an_answer_that_exceeds_32_bits_keeps_what_fits() -> None:
    accumulator = ChatAccumulator()
    accumulator._chunks.end = array("b")  # 127 bytes instead of 2 GiB
    for number in range(40):
        accumulator.add(json.dumps(delta(content="12345")).encode(), 0.0, number)
    received = accumulator.finish()
    assert "2 GiB" in (received.protocol_error or "")
    assert received.text == "".join(received.chunks.text) == "12345" * 25


@pytest.mark.parametrize(
    "events",
    [
        [tools(*[piece("f", '{"x":1}', index=0, id=f"{number}") for number in range(30_000)])],
        [tools(*[piece("f", '{"x":1}') for _ in range(30_000)])],
        [
            tools(piece("f", '{"x":"', index=0, id="a")),
            *[tools(piece("f", "word ", index=0, id="a")) for _ in range(30_000)],
        ],
        [message(content="word ") for _ in range(20_000)],
        [each for _ in range(20_000) for each in (delta(content="word word "), message(content="x"))],
        [tools(piece(None, "{" + "x" * 40, index=0)) for _ in range(30_000)],
        [tools(piece("f", "", index=0)) for _ in range(30_000)],
        [delta(annotations=[{"url": number} for number in range(50_000)])],
        [delta(content=[{"type": "text", "text": "a"}] * 50_000)],
    ],
)
def test_long_streams_take_linear_time(events: Sequence[Any]) -> None:
    data = framed(events)
    started = time.process_time()
    read([data], ChatAccumulator())
    assert time.process_time() - started < 4
