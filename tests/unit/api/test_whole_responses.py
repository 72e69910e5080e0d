"""Whole responses of each API, and streams with arbitrary values, none of which raises an exception."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatap.api.registry import NAMES, specification
from deltatap.api.sse import SSEDecoder
from deltatap.http.outcomes import conclude
from deltatap.model import OUTPUT_KINDS, Received, StreamError, Usage
from tests.unit.api.test_transcripts import FOLDER, transcript

if TYPE_CHECKING:
    from collections.abc import Iterator


def whole(api: str, answer: Any, choices: int = 1) -> Received:
    accumulator = specification(api).accumulator(choices, keep_raw=True)
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    accumulator.add_whole(data)
    received = accumulator.finish()
    assert len(received.chunks) == 0
    assert received.raw == (("", data),)
    return received


def test_a_whole_chat_completion() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    received = whole(
        "chat",
        {
            "id": "chatcmpl-1", "model": "gpt-4o-2024", "service_tier": "flex", "system_fingerprint": "fp",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "reasoning": "hm"},
                 "finish_reason": "stop", "logprobs": {"content": []}, "content_filter_results": {"hate": {}}},
                {"index": 1, "message": {"content": None, "refusal": "no", "reasoning": "so", "tool_calls": [call]}, "finish_reason": "tool_calls"},
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
            "prompt_filter_results": [{"prompt_index": 0}],
        },
        choices=2,
    )  # fmt: skip
    assert conclude(received, None) == ("completed", None)
    first, second = received.choices
    assert (first.text, first.reasoning, first.finish_reason) == ("Hi", "hm", "stop")
    assert (second.text, second.refusal, second.reasoning, json.loads(second.tool_calls or "")) == (
        "",
        "no",
        "so",
        [call],
    )
    assert (received.response_id, received.response_model, received.service_tier) == (
        "chatcmpl-1",
        "gpt-4o-2024",
        "flex",
    )
    assert received.usage == Usage(1, 2, 3)
    assert json.loads(received.content_filter or "") == [
        {"index": 0, "content_filter_results": {"hate": {}}}, {"prompt_filter_results": [{"prompt_index": 0}]},
    ]  # fmt: skip
    assert json.loads(received.logprobs or "") == [{"index": 0, "logprobs": [{"content": []}]}]


def test_a_whole_legacy_completion() -> None:
    received = whole(
        "completions",
        {
            "id": "cmpl-1",
            "choices": [{"text": "Hi", "index": 0, "logprobs": {"tokens": ["Hi"]}, "finish_reason": "length"}],
        },
    )
    assert (received.text, received.finish_reason, received.output) == ("Hi", "length", True)
    assert json.loads(received.logprobs or "") == [{"index": 0, "logprobs": [{"tokens": ["Hi"]}]}]


ITEMS = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
    {"type": "custom_tool_call", "call_id": "call_2", "name": "g", "input": "x"},
    {"type": "web_search_call", "id": "ws", "status": "completed"},
    {"type": "message", "role": "assistant", "content": [
        {"type": "output_text", "text": "Hi", "logprobs": [{"token": "Hi"}]}, {"type": "refusal", "refusal": "no"}]},
]  # fmt: skip


def test_a_whole_response() -> None:
    received = whole(
        "responses",
        {"id": "resp_1", "model": "gpt-5", "status": "completed", "output": ITEMS, "moderation": {"input": {}},
         "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "output_tokens_details": {"reasoning_tokens": 1}}},
    )  # fmt: skip
    (choice,) = received.choices
    assert (choice.text, choice.reasoning, choice.refusal, choice.finish_reason) == ("Hi", "hm", "no", "completed")
    assert json.loads(choice.tool_calls or "") == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "call_2", "type": "custom", "function": {"name": "g", "arguments": "x"}},
        ITEMS[3],
    ]
    assert received.usage == Usage(1, 2, 3, None, 1)
    assert json.loads(received.moderation or "") == {"input": {}}
    assert json.loads(received.logprobs or "") == [{"index": 0, "logprobs": [{"content": [{"token": "Hi"}]}]}]


def test_a_stream_of_responses_without_deltas_has_its_output_in_the_last_event() -> None:
    accumulator = specification("responses").accumulator()
    done = {"type": "response.completed", "response": {"status": "completed", "output": ITEMS}}
    accumulator.add(json.dumps(done).encode(), 50.0, 3, "response.completed")
    received = accumulator.finish()
    assert (received.text, received.finish_reason, received.done) == ("Hi", "completed", True)
    assert {c["ms"] for c in received.chunks.to_dicts()} == {50.0}


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": ITEMS},
            "completed",
            None,
        ),
        ({"status": "failed", "error": {"code": "server_error", "message": "Oh"}}, "failed", "stream_error"),
        ({"status": "failed", "error": {"code": "invalid_prompt", "message": "Oh"}}, "failed", "invalid_request"),
        ({"status": "failed", "error": None}, "failed", "stream_error"),
        ({"status": "in_progress", "output": []}, "failed", "stream_error"),
        ({"error": {"code": 429, "message": "Slow down"}}, "failed", "rate_limit"),
        ({"error": {"code": "insufficient_quota"}}, "failed", "quota"),
        ({"error": {"type": "invalid_request_error", "code": "model_not_found"}}, "failed", "not_found"),
        ({"error": {"code": 502, "message": "Bad gateway"}}, "failed", "stream_error"),
    ],
)
def test_the_outcome_of_a_whole_response_by_its_status(answer: dict[str, Any], status: str, error: str | None) -> None:
    found, why = conclude(whole("responses", answer), None)
    assert (found, why and why.type) == (status, error)


@pytest.mark.parametrize("api", NAMES)
def test_an_error_instead_of_a_response(api: str) -> None:
    received = whole(api, {"error": {"type": "server_error", "message": "Oh"}})
    assert received.error == StreamError("server_error", None, "Oh")
    used = whole(api, {"id": "r", "error": {"message": "Oh"}, "usage": {"input_tokens": 3, "output_tokens": 2}})
    assert (used.choices, used.response_id, used.usage and used.usage.output_tokens) == ((), "r", 2)
    assert whole(api, {"detail": "bad"}).choices == ()
    assert (whole(api, b"<html>").protocol_error or "").startswith("the response is not valid JSON (")
    assert whole(api, b"[]").protocol_error == "the response is not a JSON object: []"


def test_the_type_can_be_only_in_the_event_field() -> None:
    accumulator = specification("responses").accumulator()
    accumulator.add(b'{"delta": "Hi"}', 1.0, 0, "response.output_text.delta")
    assert accumulator.finish().text == "Hi"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5) | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copy = value.copy()
    copy[at[0]] = replaced(value[at[0]], at[1:], new)
    return copy


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.sse")))
@settings(deadline=None)  # a busy machine exceeds the default deadline
@given(data=st.data())
def test_a_transcript_with_arbitrary_values_raises_no_exception(name: str, data: st.DataObject) -> None:
    api, content = transcript(name)
    events = [(event.event, event.data) for event in SSEDecoder().feed(content)]
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(events) - 1))
        kind, old = events[number]
        if old == b"[DONE]":
            continue
        value = json.loads(old)
        at = data.draw(st.sampled_from(list(places(value))))
        events[number] = kind, json.dumps(replaced(value, at, data.draw(_JSON))).encode()
    accumulator = specification(api).accumulator()
    for number, (kind, content) in enumerate(events):
        accumulator.add(content, float(number), number, kind)
    consistent(accumulator.finish())
    answer = json.loads(events[-1][1]) if events[-1][1] != b"[DONE]" else json.loads(events[0][1])
    accumulator = specification(api).accumulator()
    accumulator.add_whole(json.dumps(answer).encode())
    consistent(accumulator.finish())


def consistent(received: Received) -> None:
    elements = received.chunks.to_dicts()
    conclude(received, None)
    if elements:
        assert received.output == any(c["kind"] in OUTPUT_KINDS for c in elements)
    columns = set(received.chunks.__slots__) - {"utf8"}
    assert len({len(getattr(received.chunks, name)) for name in columns}) == 1
    assert len(received.chunks.utf8) == (received.chunks.end[-1] if received.chunks else 0)
    for text in (
        received.text,
        received.content_filter,
        received.logprobs,
        received.moderation,
        *(c["text"] for c in elements),
    ):
        (text or "").encode()
