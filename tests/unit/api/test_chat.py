"""What servers send in chat completions, as tables: output, finish_reason, thoughts, and odd forms of events."""

from __future__ import annotations

import json
import time
from array import array
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.api.chat import ChatAccumulator
from deltatap.api.completions import CompletionsAccumulator
from deltatap.model import StreamError
from tests.unit.api.chat_events import (
    HI,
    beside,
    delta,
    framed,
    kinds,
    message,
    piece,
    read,
    receive,
    receive_whole,
    tools,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


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
