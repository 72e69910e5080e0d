from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatap.api.chat import ChatAccumulator
from deltatap.api.registry import specification
from deltatap.model import OUTPUT_KINDS, Received, StreamError, Usage


def receive(*events: Any, choices: int = 1) -> Received:
    """Receive each event in its own socket read, 10 ms apart. Bytes are not encoded again."""
    accumulator = ChatAccumulator(choices)
    for read, event in enumerate(events):
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        accumulator.add(data, 10.0 * (read + 1), read)
    return accumulator.finish()


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


def elements(received: Received) -> list[tuple[Any, ...]]:
    return [(c["kind"], c["choice"], c["text"], c["gap_ms"], c["event"]) for c in received.chunks.to_dicts()]


def test_a_plain_stream() -> None:
    received = receive(
        {"id": "c-1", "model": "gpt-4o-mini-2024", "system_fingerprint": "fp", "service_tier": "default",
         **delta(role="assistant", content="")},
        delta(content="Hel"),
        delta(content="lo"),
        delta(finish="stop"),
        {"choices": [], "usage": {
            "prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 1}}},
        b"[DONE]",
        delta(content="never"),
    )  # fmt: skip
    assert elements(received) == [
        ("role", 0, "assistant", None, 0),
        ("content", 0, "Hel", None, 1),
        ("content", 0, "lo", 10.0, 2),
        ("finish", 0, "stop", 10.0, 3),
        ("usage", None, "", None, 4),
    ]
    assert (received.text, received.finish_reason) == ("Hello", "stop")
    assert received.usage == Usage(9, 2, 11, 4, 1)
    assert (received.response_id, received.response_model) == ("c-1", "gpt-4o-mini-2024")
    assert (received.system_fingerprint, received.service_tier) == ("fp", "default")
    assert received.done
    assert received.finished
    assert received.output


CASES: dict[str, tuple[list[Any], list[tuple[Any, ...]]]] = {
    "role with content": ([delta(role="assistant", content="Hi")], [("role", 0, "assistant", None, 0), ("content", 0, "Hi", None, 0)]),
    "finish with the last content": ([delta(content="Hi", finish="stop")], [("content", 0, "Hi", None, 0), ("finish", 0, "stop", 0.0, 0)]),
    "reasoning_content": ([delta(reasoning_content="hm")], [("reasoning", 0, "hm", None, 0)]),
    "reasoning": ([delta(reasoning="hm"), delta(content="ok")], [("reasoning", 0, "hm", None, 0), ("content", 0, "ok", 10.0, 1)]),
    "refusal": ([delta(refusal="no", content=None)], [("refusal", 0, "no", None, 0)]),
    "no choices": ([{"choices": []}], [("empty", None, "", None, 0)]),
    "nothing in it": ([delta()], [("empty", 0, "", None, 0)]),
    "usage beside a choice": (
        [{**delta(content="x"), "usage": {"prompt_tokens": 1}}], [("content", 0, "x", None, 0), ("usage", None, "", None, 0)],
    ),
    "two choices in one event": (
        [{"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]}],
        [("content", 1, "b", None, 0), ("content", 0, "a", None, 0)],
    ),
    "gaps are each choice's own": (
        [delta(0, content="a"), delta(1, content="b"), delta(0, content="c")],
        [("content", 0, "a", None, 0), ("content", 1, "b", None, 1), ("content", 0, "c", 20.0, 2)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_chunks_of_an_event(name: str) -> None:
    events, expected = CASES[name]
    assert elements(receive(*events)) == expected


def test_tool_calls_are_joined_by_index() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function}

    received = receive(
        delta(tool_calls=[{**call(0, name="weather", arguments=""), "id": "call_1", "type": "function"}]),
        delta(tool_calls=[call(0, arguments='{"city":')]),
        delta(tool_calls=[{**call(1, name="time", arguments="{}"), "id": "call_2"}, call(0, arguments='"Köln"}')]),
        delta(finish="tool_calls"),
    )
    assert json.loads(received.choices[0].tool_calls or "") == [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert [e[:3] for e in elements(received)][:2] == [("tool_calls", 0, "weather"), ("tool_calls", 0, '{"city":')]
    assert received.output
    assert received.finished


def test_every_requested_choice_must_finish() -> None:
    one = [delta(0, content="a"), delta(0, finish="stop")]
    assert receive(*one).finished
    assert not receive(*one, choices=2).finished
    assert receive(*one, delta(1, finish="length"), choices=2).finished
    assert not receive(*one, delta(1, content="b")).finished


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"error": {"type": "server_error", "code": 500, "message": "Oh"}}, StreamError("server_error", "500", "Oh")),
        ({"error": "Oh"}, StreamError(None, None, "Oh")),
    ],
)
def test_what_comes_beside_and_after_an_error_still_counts(event: Any, expected: StreamError) -> None:
    received = receive(
        delta(content="Ha"),
        {**event, **delta(content="l")},
        delta(content="f"),
        {"usage": {"prompt_tokens": 9, "completion_tokens": 40}},
    )
    assert received.error == expected
    assert received.text == "Half"
    assert received.usage == Usage(9, 40)
    assert [(kind, text) for kind, _, text, _, _ in elements(received)] == [
        ("content", "Ha"), ("error", json.dumps({**event, **delta(content="l")})), ("content", "l"), ("content", "f"), ("usage", ""),
    ]  # fmt: skip


def test_an_event_of_type_error_is_an_error() -> None:
    accumulator = ChatAccumulator()
    accumulator.add(b'{"message": "Oh", "code": "overloaded"}', 1.0, 0, "error")
    assert accumulator.finish().error == StreamError(None, "overloaded", "Oh")


@pytest.mark.parametrize("event", [b"{", b"[]", b'"x"', {"choices": 3}, {"choices": [3]}, b"\xff"])
def test_an_invalid_event_is_a_protocol_error(event: Any) -> None:
    received = receive(delta(content="Hi"), event, delta(content="never"))
    assert received.protocol_error is not None
    assert received.protocol_error.startswith("event 1 ")
    assert received.text == "Hi"


@pytest.mark.parametrize(
    ("api", "event"), [("responses", "response.output_text.delta"), ("messages", "content_block_delta")]
)
def test_only_notices_need_not_be_json(api: str, event: str) -> None:
    for type_, is_error in ((event, True), ("ping", False), ("x", False)):
        accumulator = specification(api).accumulator()
        accumulator.add(b"{", 1.0, 0, type_)
        assert (accumulator.finish().protocol_error is not None) == is_error


def test_a_protocol_error_shows_only_the_start_of_the_data() -> None:
    assert len(receive(b"{" + b"x" * 10_000).protocol_error or "") < 250


def test_half_a_surrogate_pair_loses_nothing() -> None:
    whole = receive(b'{"choices":[{"index":0,"delta":{"content":"\\ud83d\\ude42"}}]}')
    assert whole.text == "🙂"
    half = receive(b'{"choices":[{"index":0,"delta":{"content":"a\\ud83d"}}]}', delta(content="b"))
    assert half.protocol_error is None
    assert half.text == "a�b"
    (half.text or "").encode()
    cut = receive(b'{"choices":[{"delta":{"content":"\\ud83d"}}]}', b'{"choices":[{"delta":{"content":"\\ude42"}}]}')
    assert cut.text == "🙂", "whole again"
    assert [c["text"] for c in cut.chunks.to_dicts()] == ["", "🙂"]


def test_azure_filters_are_kept_from_any_frame() -> None:
    received = receive(
        {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
        {"choices": [{"index": 0, "delta": {"content": "x"}, "content_filter_results": {"hate": {"filtered": False}}}]},
    )
    assert json.loads(received.content_filter or "") == [
        {"prompt_filter_results": [{"prompt_index": 0}]},
        {"index": 0, "content_filter_results": {"hate": {"filtered": False}}},
    ]


def test_logprobs_are_kept_by_choice() -> None:
    received = receive(
        {"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": [{"token": "x"}]}}]}
    )
    assert json.loads(received.logprobs or "") == [{"index": 0, "logprobs": [{"content": [{"token": "x"}]}]}]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.text() | st.sampled_from(["index", "delta", "content", "role", "finish_reason", "tool_calls", "function", "name",
                                     "arguments", "usage", "prompt_tokens", "error", "message", "refusal", "reasoning"]),
        inner, max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)  # a busy machine exceeds the default deadline
@given(
    st.lists(st.dictionaries(st.sampled_from(["choices", "usage", "error", "id", "model"]), _JSON) | _JSON, max_size=6)
)
def test_no_json_raises_an_exception(events: list[Any]) -> None:
    received = receive(*events)
    for choice in received.choices:
        spoken = [
            c["text"] for c in received.chunks.to_dicts() if c["kind"] == "content" and c["choice"] == choice.index
        ]
        assert "".join(spoken) == choice.text
    assert received.output == any(c["kind"] in OUTPUT_KINDS for c in received.chunks.to_dicts())
    columns = set(received.chunks.__slots__) - {"utf8"}
    assert len({len(getattr(received.chunks, name)) for name in columns}) == 1
    assert len(received.chunks.utf8) == (received.chunks.end[-1] if received.chunks else 0)


@settings(deadline=None)  # a busy machine exceeds the default deadline
@given(st.binary(max_size=60))
def test_no_bytes_raise_an_exception(data: bytes) -> None:
    receive(data)


def test_numbers_that_do_not_fit_the_table_are_ignored() -> None:
    received = receive({"choices": [], "usage": {"prompt_tokens": 2**64 - 1, "completion_tokens": "7"}})
    assert received.usage == Usage()
    assert orjson.loads(orjson.dumps(received.usage)) is not None
