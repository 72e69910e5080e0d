"""The Responses API: what deltas, the ends of texts, parts and items, and the complete response bring, only once."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatap.api.responses import ResponsesAccumulator
from deltatap.http.outcomes import conclude
from deltatap.model import Usage
from tests.responses import (
    ARGUMENTS,
    added,
    arguments,
    arguments_done,
    call,
    completed,
    done,
    event,
    function,
    joined,
    message,
    received,
    sse,
    text,
    text_done,
    thought,
    tools,
)
from tests.unit.api.test_transcripts import receive

EMPTY_CALL = function(arguments="")
# What arrives, and what it gives: text, reasoning, refusal and calls.
OUTPUT: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "text only at its end": ([text_done("Hi"), completed(message("Hi"))], {"text": "Hi"}),
    "text only in its part": (
        [event("content_part.done", content_index=0, part={"type": "output_text", "text": "Hi"}), completed()],
        {"text": "Hi"},
    ),
    "text only in its item": ([done(message("Hi", " you")), completed()], {"text": "Hi you"}),
    "text only in the complete response": ([completed(message("Hi"))], {"text": "Hi"}),
    "text only when its item starts": ([added(message("Hi")), completed()], {"text": "Hi"}),
    "text only when its part starts": (
        [event("content_part.added", content_index=0, part={"type": "output_text", "text": "Hi"}), completed()],
        {"text": "Hi"},
    ),
    "text only in output_text": ([completed(output_text="Hi")], {"text": "Hi"}),
    "text everywhere": (
        [added(message("Hi")), text("H"), text("i"), text_done("Hi"), done(message("Hi")), completed(message("Hi"), output_text="Hi")],
        {"text": "Hi"},
    ),
    "the end of the text only at its end": ([text("Hel"), text_done("Hello"), completed(message("Hello"))], {"text": "Hello"}),
    "the end of the text only in the complete response": ([text("Hel"), completed(message("Hello"))], {"text": "Hello"}),
    "a second text only at its end": ([text("A"), text_done("A"), text_done("B", 1), completed(message("A"), message("B"))], {"text": "AB"}),
    "a second equal text only at its end": ([text("A"), text_done("A"), text_done("A", 1), completed(message("A"), message("A"))], {"text": "AA"}),
    "a second equal text only at its end, and no complete output": ([text("A"), text_done("A"), text_done("A", 1), completed()], {"text": "AA"}),
    "an item with another number": (
        [text("A", item_id="m1"), text("B", 1, item_id="m2"), done(message("A", id_="m1"), 5), completed()], {"text": "AB"},
    ),
    "the end of a text without places": ([text("H", None), text("e", None), text_done("Hello", None), completed()], {"text": "Hello"}),
    "a call without ids and with another number": ([arguments(ARGUMENTS, 3), completed(function())], {"tools": [call()]}),
    "two calls of the server without ids at one place": (
        [done({"type": "web_search_call"}), done({"type": "file_search_call"}), completed()],
        {"tools": [{"type": "web_search_call"}, {"type": "file_search_call"}]},
    ),
    "a second part only in the complete response": ([text("A", content_index=0), completed(message("A", "B"))], {"text": "AB"}),
    "the first of two texts only in the complete response": ([text("B", 1), completed(message("A"), message("B"))], {"text": "BA"}),
    "reasoning, then text only at its end": (
        [event("reasoning_summary_text.delta", delta="think"), text_done("Hi", 1), completed(thought("think"), message("Hi"))],
        {"text": "Hi", "reasoning": "think"},
    ),
    "reasoning only at its end": (
        [event("reasoning_summary_text.done", summary_index=0, text="think"), completed(thought("think"))], {"reasoning": "think"},
    ),
    "reasoning text only at its end": ([event("reasoning_text.done", content_index=0, text="think"), completed()], {"reasoning": "think"}),
    "reasoning only in its part": (
        [event("reasoning_summary_part.done", summary_index=0, part={"type": "summary_text", "text": "think"}), completed()],
        {"reasoning": "think"},
    ),
    "reasoning only in its item": ([done(thought("a", "b")), text("Hi", 1), completed(thought("a", "b"), message("Hi"))], {"text": "Hi", "reasoning": "ab"}),
    "reasoning as text here and as a summary there": (
        [event("reasoning_text.delta", content_index=0, delta="think"), completed(thought("think"))], {"reasoning": "think"},
    ),
    "refusal only at its end": ([event("refusal.done", refusal="No"), completed()], {"refusal": "No"}),
    "refusal only in the complete response": (
        [completed({"type": "message", "content": [{"type": "refusal", "refusal": "No"}]})], {"refusal": "No"},
    ),
    "refusal once": (
        [event("refusal.delta", delta="No"), event("refusal.done", refusal="No"),
         completed({"type": "message", "content": [{"type": "refusal", "refusal": "No"}]})],
        {"refusal": "No"},
    ),
    "text without places": ([text("Hi", None), text_done("Hi", None), completed(thought("t"), message("Hi"))], {"text": "Hi", "reasoning": "t"}),
    "text with ids instead of places": (
        [text("A", None, item_id="m1"), text("B", None, item_id="m2"), text_done("A", None, item_id="m1"), text_done("BC", None, item_id="m2"),
         completed(message("A", id_="m1"), message("BC", id_="m2"))],
        {"text": "ABC"},
    ),
    "every place is 0": (
        [event("reasoning_summary_text.delta", delta="t"), text("Hi"), text_done("Hi"), done(message("Hi"), 1), completed(thought("t"), message("Hi"))],
        {"text": "Hi", "reasoning": "t"},
    ),
    "two parts at one place": ([text("A"), text("B"), text_done("AB"), completed(message("A", "B"))], {"text": "AB"}),
    "one part at two places": ([text("A", content_index=0), text("B", content_index=1), completed(message("AB"))], {"text": "AB"}),
    "the complete response without reasoning": (
        [event("reasoning_summary_text.delta", delta="t"), text("Hi", 1), completed(message("Hi"))], {"text": "Hi", "reasoning": "t"},
    ),
    "the complete response without white space": ([text("\n\nHi"), text_done("\n\nHi"), completed(thought("t"), message("Hi"))], {"text": "\n\nHi", "reasoning": "t"}),
    "arguments only at their end": (
        [added(EMPTY_CALL), arguments_done(ARGUMENTS), done(function()), completed(function())], {"tools": [call()]},
    ),
    "arguments only in the item": ([added(EMPTY_CALL), done(function()), completed(function())], {"tools": [call()]}),
    "arguments only when the item starts": ([added(function()), completed()], {"tools": [call()]}),
    "arguments when the item starts, and in deltas": ([added(function()), arguments(ARGUMENTS), completed(function())], {"tools": [call()]}),
    "empty arguments when the item starts": ([added(function(arguments="{}")), arguments(ARGUMENTS), done(function())], {"tools": [call()]}),
    "the end of the arguments only at their end": ([added(EMPTY_CALL), arguments(ARGUMENTS[:5]), arguments_done(ARGUMENTS)], {"tools": [call()]}),
    "arguments as an object": ([added(EMPTY_CALL), done(function(arguments={"city": "Paris"})), completed()], {"tools": [call()]}),
    "arguments as an object at their end": ([added(EMPTY_CALL), arguments_done({"city": "Paris"}), completed()], {"tools": [call()]}),
    "a call only in its item": ([done(function()), completed(function())], {"tools": [call()]}),
    "a call only in the complete response": ([completed(function())], {"tools": [call()]}),
    "text, then a call only in its item": (
        [text("Let me look."), done(function(), 1), completed(message("Let me look."), function())], {"text": "Let me look.", "tools": [call()]},
    ),
    "text, then a call only in the complete response": (
        [text("Let me look."), completed(message("Let me look."), function())], {"text": "Let me look.", "tools": [call()]},
    ),
    "a call, then text only at its end": (
        [added(EMPTY_CALL), arguments(ARGUMENTS), text_done("Hi", 1), completed(function(), message("Hi"))], {"text": "Hi", "tools": [call()]},
    ),
    "a call, then text only in the complete response": (
        [added(EMPTY_CALL), arguments(ARGUMENTS), completed(function(), message("Hi"))], {"text": "Hi", "tools": [call()]},
    ),
    "pieces of a call without its start": ([arguments(ARGUMENTS, item_id="fc_1"), completed(function())], {"tools": [call()]}),
    "two calls, the first only in the complete response": (
        [done(function("g", "{}", 2), 1), completed(function(), function("g", "{}", 2))], {"tools": [call(), call("g", "{}", 2)]},
    ),
    "two calls at one place": (
        [added(EMPTY_CALL), arguments(ARGUMENTS, item_id="fc_1"), done(function()), added(function("g", "", 2)), arguments("{}", item_id="fc_2"),
         done(function("g", "{}", 2)), completed(function(), function("g", "{}", 2))],
        {"tools": [call(), call("g", "{}", 2)]},
    ),
    "a call whose item comes twice": (
        [added(EMPTY_CALL), arguments(ARGUMENTS), done(function()), added(EMPTY_CALL), done(function()), completed(function())], {"tools": [call()]},
    ),
    "two calls without places": (
        [added(EMPTY_CALL, None), arguments(ARGUMENTS, None), done(function(), None), added(function("g", "", 2), None), arguments("{}", None),
         done(function("g", "{}", 2), None), completed(message("x"), function(), function("g", "{}", 2))],
        {"text": "x", "tools": [call(), call("g", "{}", 2)]},
    ),
    "two calls with the same name": (
        [added(EMPTY_CALL), arguments("1"), added(function(arguments="", number=2), 1), arguments("2", 1),
         completed(function(arguments="1"), function(arguments="2", number=2))],
        {"tools": [call(given="1"), call(given="2", number=2)]},
    ),
    "a complete response with other item ids": (
        [added(EMPTY_CALL), arguments(ARGUMENTS), done(function()), completed(thought("t"), {**function(), "id": "other"})],
        {"reasoning": "t", "tools": [call()]},
    ),
    "a call without call_id": (
        [added({"type": "function_call", "id": "call_1", "name": "f", "arguments": ""}), arguments(ARGUMENTS), completed()], {"tools": [call()]},
    ),
    "a function in the item": (
        [added({"type": "function_call", "id": "call_1", "name": "f", "arguments": "{}", "function": {"name": "f", "arguments": {"a": 1}}}),
         done({"type": "function_call", "id": "call_1", "name": "f", "arguments": "{}", "function": {"name": "f", "arguments": {"a": 1}}}), completed()],
        {"tools": [call(given='{"a":1}')]},
    ),
    "only a function in the item": (
        [done({"type": "tool_call", "call_id": "call_1", "function": {"name": "f", "arguments": ARGUMENTS}}), completed()], {"tools": [call()]},
    ),
    "a function that is no object": ([done(function(function=3)), completed()], {"tools": [call()]}),
    "a custom tool only in its item": (
        [done({"type": "custom_tool_call", "call_id": "call_1", "name": "g", "input": "x"}), completed()], {"tools": [call("g", "x", type_="custom")]},
    ),
    "a custom tool's input only at its end": (
        [added({"type": "custom_tool_call", "call_id": "call_1", "name": "g", "input": ""}), event("custom_tool_call_input.done", input="x"), completed()],
        {"tools": [call("g", "x", type_="custom")]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUT)
def test_output_arrives_once(name: str) -> None:
    events, expected = OUTPUT[name]
    found = received(*events)
    (choice,) = found.choices
    assert choice.text == expected.get("text", "")
    assert choice.reasoning == expected.get("reasoning")
    assert choice.refusal == expected.get("refusal")
    assert tools(found) == expected.get("tools", [])
    for kind in ("content", "reasoning", "refusal"):
        assert joined(found, kind) == (choice.text if kind == "content" else getattr(choice, kind) or "")
    if events[-1]["type"] == "response.completed":
        assert conclude(found, None) == ("completed", None)
        assert found.usage == Usage(9, 20, 29)


@settings(deadline=None)  # a busy machine exceeds the default deadline
@given(name=st.sampled_from(sorted(OUTPUT)), cuts=st.lists(st.integers(0, 3000), max_size=20))
def test_cuts_make_no_difference(name: str, cuts: list[int]) -> None:
    data = sse(OUTPUT[name][0])
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    pieces = [data[start:end] for start, end in pairwise(places)]
    whole = receive("responses", [data])
    for reads in (pieces, [data[at : at + 1] for at in range(len(data))]):
        assert receive("responses", reads).choices == whole.choices


@pytest.mark.parametrize("name", [name for name in OUTPUT if OUTPUT[name][0][-1]["type"] == "response.completed"])
def test_a_whole_response_has_the_same_output_as_its_last_event(name: str) -> None:
    last = OUTPUT[name][0][-1]
    accumulator = ResponsesAccumulator()
    accumulator.add_whole(json.dumps(last["response"]).encode())
    assert accumulator.finish().choices == received(last).choices


@pytest.mark.parametrize("kind", ["response.output_text.delta", ""])
@pytest.mark.parametrize("type_", ["response.output_text.delta", "", None, 3, [], {}])
def test_the_type_is_in_the_data_or_beside_it(kind: str, type_: Any) -> None:
    accumulator = ResponsesAccumulator()
    accumulator.add(json.dumps({"type": type_, "delta": "Hi"}).encode(), 1.0, 0, kind)
    named = kind or type_ == "response.output_text.delta"
    assert accumulator.finish().text == ("Hi" if named else None)


ODD = [None, True, -1, 2**70, 1.5, "0", [], {}, [[1]], {"a": 1}, "\ud83d"]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_places_lose_nothing(odd: Any) -> None:
    found = received(
        added(EMPTY_CALL, odd), arguments(ARGUMENTS, odd, item_id=odd), done(function(), odd),
        text("Hi", odd, content_index=odd, item_id=odd), text_done("Hi", odd, content_index=odd, item_id=odd),
        event("reasoning_summary_text.done", odd, text="t", summary_index=odd, item_id=odd),
        completed(thought("t"), function(), message("Hi")),
    )  # fmt: skip
    (choice,) = found.choices
    assert (choice.text, choice.reasoning, tools(found)) == ("Hi", "t", [call()])


def test_log_probabilities_are_kept_once() -> None:
    whole = message("Hello")
    whole["content"][0]["logprobs"] = [{"token": "Hello"}]
    found = received(
        text("Hel", logprobs=[{"token": "Hel"}]), text_done("Hello", logprobs=[{"token": "Hello"}]), completed(whole)
    )
    assert json.loads(found.logprobs or "") == [{"index": 0, "logprobs": [{"content": [{"token": "Hel"}]}]}]
    found = received(text_done("Hello", logprobs=[{"token": "Hello"}]), completed(whole))
    assert json.loads(found.logprobs or "") == [{"index": 0, "logprobs": [{"content": [{"token": "Hello"}]}]}]


def test_annotations_are_kept_once() -> None:
    cited = {"type": "url_citation", "url": "https://example.com", "title": "x", "start_index": 0, "end_index": 2}
    noted = message("Hi")
    noted["content"][0]["annotations"] = [cited, {"type": "file_path", "file_id": "f", "index": 0}]
    found = received(text("Hi"), event("output_text.annotation.added", annotation=cited), done(noted), completed(noted))
    assert json.loads(found.annotations or "") == [{"index": 0, "annotations": noted["content"][0]["annotations"]}]
    assert json.loads(received(completed(noted)).annotations or "") == json.loads(found.annotations or "")


def test_repeated_texts_are_compared_in_linear_time() -> None:
    started = time.process_time()
    found = received(*(each for at in range(30_000) for each in (text("x", at), text_done("xy", at))))
    assert found.text == "xy" * 30_000
    assert time.process_time() - started < 4


def test_a_large_output_is_compared_in_linear_time() -> None:
    texts = [str(number) for number in range(3000)]
    calls = [function(f"f{number}", "{}", number) for number in range(3000)]
    found = received(*(text_done(each, at) for at, each in enumerate(texts)), completed(message(*texts), *calls))
    assert found.text == "".join(texts)
    assert len(tools(found)) == 3000
