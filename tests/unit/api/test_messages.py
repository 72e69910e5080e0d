"""Anthropic's Messages API: the request, the events and the response."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltatap.api.messages import API, MessagesAccumulator
from deltatap.http.outcomes import conclude, http_error
from deltatap.model import Received, Usage
from deltatap.prompts import build_request, wire
from tests.unit.api.test_transcripts import receive

HI = [{"role": "user", "content": "Hi"}]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOLS = [
    {"name": name, "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    for name in ("get_weather", "get_time")
]


def built(defaults: dict[str, Any] | None = None, **row: Any) -> Any:
    request = build_request(row, api="messages", model="claude", defaults=defaults or {}, keep=())
    return request.error or json.loads(request.body or "")


def test_a_request_always_has_max_tokens() -> None:
    assert built(prompt="Hi") == {"model": "claude", "messages": HI, "max_tokens": 4096}
    assert built(prompt="Hi", defaults={"max_tokens": 9})["max_tokens"] == 9
    assert built(prompt="Hi", defaults={"max_tokens": 9}, params='{"max_tokens": 7}')["max_tokens"] == 7


def test_the_system_prompt_is_not_a_message() -> None:
    system = {"role": "system", "content": "Be kind."}
    assert built(prompt="Hi", system="Be brief.")["system"] == "Be brief."
    both = built(messages=[system, *HI], system="Be brief.")
    assert (both["system"], both["messages"]) == ("Be brief.\n\nBe kind.", HI)
    block = {"type": "text", "text": "Cached.", "cache_control": {"type": "ephemeral"}}
    assert built(messages=[system, *HI], system=json.dumps([block]))["system"] == [
        block,
        {"type": "text", "text": "Be kind."},
    ]
    assert built(messages=[system]) == "no prompt: messages has only a system prompt"
    assert (
        built(prompt="Hi", system="x", params='{"system": "y"}') == "params must not contain system: deltatap sets it"
    )


def test_a_request_has_no_stream_options() -> None:
    request = build_request({"prompt": "Hi", "params": '{"n": 3}'}, api="messages", model="m", defaults={}, keep=())
    sent = wire(request.body or "", api="messages", mode="stream", include_usage=True)
    assert "stream_options" not in json.loads(sent.body)
    assert (sent.usage, sent.choices) == (False, 1)


def test_input_is_counted_without_the_data_of_images() -> None:
    text = API.count_input({"messages": HI}, "claude", "o200k_base")
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    content = [{"type": "text", "text": "Hi"}, image]
    shown = API.count_input({"messages": [{"role": "user", "content": content}]}, "claude", "o200k_base")
    assert (text.tokens, text.approximate) == (8, True)
    assert shown.tokens == text.tokens  # one pixel: less than half a token
    url = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}
    elsewhere = API.count_input({"messages": [{"role": "user", "content": [url]}]}, "claude", "o200k_base")
    assert elsewhere.tokens > 1600
    tools = API.count_input({"messages": HI, "tools": TOOLS, "system": "Be brief."}, "claude", "o200k_base")
    assert tools.tokens > text.tokens + 20


def whole(message: Any) -> Received:
    accumulator = MessagesAccumulator()
    accumulator.add_whole(json.dumps(message).encode())
    return accumulator.finish()


def test_a_whole_message() -> None:
    server = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
    received = whole(
        {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-4", "stop_reason": "tool_use",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "So"}, server,
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
            ],
            "usage": {"input_tokens": 5, "cache_creation_input_tokens": 7, "cache_read_input_tokens": 11, "output_tokens": 13,
                      "output_tokens_details": {"thinking_tokens": 2}, "service_tier": "priority"},
        }
    )  # fmt: skip
    (choice,) = received.choices
    assert (choice.text, choice.reasoning, choice.finish_reason) == ("So", "hm", "tool_use")
    assert json.loads(choice.tool_calls or "") == [
        server,
        {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "toolu_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert received.usage == Usage(23, 13, 36, 11, 2, cache_write_tokens=7)
    assert (received.response_id, received.response_model, received.service_tier) == ("msg_1", "claude-4", "priority")
    assert conclude(received, None) == ("completed", None)


def test_token_counts_that_a_later_event_omits_are_kept() -> None:
    accumulator = MessagesAccumulator()
    start = {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 1}},
    }
    accumulator.add(json.dumps(start).encode(), 1.0, 0, "message_start")
    assert accumulator.finish().usage == Usage(8, None, None, 3), "the output of a broken stream is not reported"
    delta = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 9, "cache_read_input_tokens": None}}
    accumulator.add(json.dumps(delta).encode(), 2.0, 1, "message_delta")
    assert accumulator.finish().usage == Usage(8, 9, 17, 3)


def test_the_stop_event_ends_the_stream() -> None:
    accumulator = MessagesAccumulator()
    accumulator.add(b'{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}', 1.0, 0, "message_delta")
    assert not accumulator.done
    accumulator.add(b'{"type": "message_stop"}', 2.0, 0, "message_stop")
    assert accumulator.done


ERRORS = [
    ("invalid_request_error", 400, "invalid_request", "invalid_request"),
    ("authentication_error", 401, "authentication", "authentication"),
    ("billing_error", 402, "quota", "quota"),
    ("permission_error", 403, "permission", "permission"),
    ("not_found_error", 404, "not_found", "not_found"),
    ("request_too_large", 413, "invalid_request", "invalid_request"),
    ("rate_limit_error", 429, "rate_limit", "rate_limit"),
    ("api_error", 500, "server", "stream_error"),
    ("timeout_error", 504, "server", "stream_error"),
    ("overloaded_error", 529, "rate_limit", "rate_limit"),
]


@pytest.mark.parametrize(("name", "status", "refused", "streamed"), ERRORS)
def test_an_error_has_the_same_outcome_before_and_in_a_stream(
    name: str, status: int, refused: str, streamed: str
) -> None:
    body = API.error_body(status, "", None, "Oh")
    assert body["error"] == {"type": name, "message": "Oh"}
    error = http_error(status, json.dumps(body).encode(), {}, 0.0)
    assert (error.type, error.code, error.http_status) == (refused, name, status)
    accumulator = MessagesAccumulator()
    accumulator.add(json.dumps(body).encode(), 1.0, 0, "error")
    _, found = conclude(accumulator.finish(), None)
    assert (found and found.type, found and found.code) == (streamed, name)


@pytest.mark.parametrize(
    ("message", "type_"),
    [
        ("Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.", "quota"),
        ("You have reached your specified API usage limits. You will regain access on 2026-12-01.", "quota"),
        ("max_tokens: Field required", "invalid_request"),
    ],
)
def test_a_refusal_because_no_credit_is_left_stops_the_run(message: str, type_: str) -> None:
    error = http_error(400, json.dumps(API.error_body(400, "", None, message)).encode(), {}, 0.0)
    assert (error.type, error.http_status) == (type_, 400)


def started(index: Any, block: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: Any, type_: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": type_, **fields}}


def stopped(index: Any) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def tool(number: int = 1, **more: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": f"f{number}", "input": {}, **more}


def pieces(index: Any, *texts: Any) -> list[dict[str, Any]]:
    return [delta(index, "input_json_delta", partial_json=text) for text in texts]


def ended(reason: str | None = "end_turn", **usage: Any) -> list[dict[str, Any]]:
    return [{"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}, {"type": "message_stop"}]


def begun(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [], "usage": usage}}


def streamed(*events: Any, named: bool = True) -> Received:
    data = b"".join(
        (f"event: {each.get('type', 'message')}\n" if named else "").encode() + b"data: " + json.dumps(each).encode() + b"\n\n"
        for each in events
    )  # fmt: skip
    whole = receive("messages", [data])
    single = receive("messages", [data[at : at + 1] for at in range(len(data))])
    assert (single.choices, single.usage, single.error) == (whole.choices, whole.usage, whole.error)
    return whole


def calls(received: Received) -> list[Any]:
    found = received.choices[0].tool_calls if received.choices else None
    return json.loads(found) if found else []


def a_call(number: int = 1, arguments: str = "{}") -> dict[str, Any]:
    return {"id": f"toolu_{number}", "type": "function", "function": {"name": f"f{number}", "arguments": arguments}}


SERVER = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
TOOL_EVENTS: dict[str, tuple[list[Any], list[Any]]] = {
    "in pieces": ([started(0, tool()), *pieces(0, '{"a"', ": 1}"), stopped(0), *ended()], [a_call(1, '{"a": 1}')]),
    "without input": ([started(0, tool()), stopped(0), *ended()], [a_call()]),
    "without input, broken off": ([started(0, tool()), stopped(0)], [a_call()]),
    "without an end": ([started(0, tool())], [a_call(1, "")]),
    "without input or stop": ([started(0, tool()), *ended()], [a_call()]),
    "input at the start": ([started(0, tool(input={"a": 1})), stopped(0), *ended()], [a_call(1, '{"a": 1}')]),
    "input at the start, without stop": ([started(0, tool(input={"a": 1})), *ended()], [a_call(1, '{"a": 1}')]),
    "input at the start, broken off": ([started(0, tool(input={"a": 1}))], [a_call(1, '{"a": 1}')]),
    "input at the start and in pieces": ([started(0, tool(input={"a": 1})), *pieces(0, '{"a": 1}'), stopped(0), *ended()], [a_call(1, '{"a": 1}')]),
    "input as text": ([started(0, tool(input='{"a": 1}')), stopped(0), *ended()], [a_call(1, '{"a": 1}')]),
    "a piece that is an object": ([started(0, tool()), *pieces(0, {"a": 1}), stopped(0), *ended()], [a_call(1, '{"a": 1}')]),
    "two calls with one index": (
        [started(0, tool()), *pieces(0, "1"), stopped(0), started(0, tool(2)), *pieces(0, "2"), stopped(0), *ended()], [a_call(1, "1"), a_call(2, "2")],
    ),
    "two calls without an index": (
        [started(None, tool()), *pieces(None, "1"), stopped(None), started(None, tool(2)), *pieces(None, "2"), *ended()], [a_call(1, "1"), a_call(2, "2")],
    ),
    "two calls side by side": (
        [started(0, tool()), started(1, tool(2)), *pieces(1, "2"), *pieces(0, "1"), stopped(0), stopped(1), *ended()], [a_call(1, "1"), a_call(2, "2")],
    ),
    "text and a call with one index": (
        [started(0, {"type": "text", "text": ""}), delta(0, "text_delta", text="x"), started(0, tool()), *pieces(0, "1"), *ended()], [a_call(1, "1")],
    ),
    "pieces with the index of the text": (
        [started(0, {"type": "text", "text": "x"}), started(1, tool()), *pieces(0, "1"), stopped(1), *ended()], [a_call(1, "1")],
    ),
    "a start that comes twice": ([started(0, tool()), started(0, tool()), *pieces(0, "1"), stopped(0), *ended()], [a_call(1, "1")]),
    "a start that comes after a piece": ([*pieces(0, "1"), started(0, tool()), stopped(0), *ended()], [a_call(1, "1")]),
    "pieces without a start": ([*pieces(0, "1"), *ended()], [{"id": None, "type": "function", "function": {"name": "", "arguments": "1"}}]),
    "an odd index": ([started([1], tool()), *pieces({}, "1"), stopped(True), *ended()], [a_call(1, "1")]),
    "a server's call": ([started(0, SERVER), *pieces(0, '{"a": 1}'), stopped(0), *ended()], [{**SERVER, "input": {"a": 1}}]),
    "a server's call, broken off": ([started(0, SERVER), *pieces(0, '{"a": ')], [{**SERVER, "input": '{"a": '}]),
    "a server's call and its result": (
        [started(0, SERVER), stopped(0), started(1, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}), stopped(1), *ended()],
        [SERVER],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOOL_EVENTS)
def test_a_tool_call_arrives_once(name: str) -> None:
    events, expected = TOOL_EVENTS[name]
    assert calls(streamed(begun(), *events)) == expected
    assert calls(streamed(begun(), *events, named=False)) == expected


USAGES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], Usage]] = {
    "zeros after the counts": ({"input_tokens": 25}, [{"output_tokens": 15}, {"input_tokens": 0, "output_tokens": 0}], Usage(25, 15, 40)),
    "zeros at the end of a proxy": ({"input_tokens": 25}, [{"input_tokens": 0, "output_tokens": 15}], Usage(25, 15, 40)),
    "the counts only at the end": ({"input_tokens": 0}, [{"input_tokens": 25, "output_tokens": 15}], Usage(25, 15, 40)),
    "growing counts": ({"input_tokens": 25}, [{"output_tokens": 5}, {"input_tokens": 30, "output_tokens": 15}], Usage(30, 15, 45)),
    "no count at the end": ({"input_tokens": 25, "output_tokens": 1}, [{}], Usage(25)),
    "only at the start": ({"input_tokens": 25, "output_tokens": 7}, [], Usage(25)),
    "cached": (
        {"input_tokens": 5, "cache_creation_input_tokens": 7, "cache_read_input_tokens": 11}, [{"output_tokens": 2, "cache_read_input_tokens": 0}],
        Usage(23, 2, 25, 11, cache_write_tokens=7),
    ),
    "compaction": (
        {"input_tokens": 23}, [{"input_tokens": 23, "output_tokens": 10, "iterations": [
            {"type": "compaction", "input_tokens": 180, "output_tokens": 35, "cache_creation_input_tokens": 7, "cache_creation": {"ephemeral_1h_input_tokens": 6}},
            {"type": "advisor_message", "model": "another", "input_tokens": 99, "output_tokens": 99},
            {"type": "message", "input_tokens": 23, "output_tokens": 10}]}],
        Usage(210, 45, 255, cache_write_tokens=7, cache_write_1h_tokens=6),
    ),
    "no iterations": ({"input_tokens": 23}, [{"output_tokens": 10, "iterations": []}, {"output_tokens": 11, "iterations": [None]}], Usage(23, 11, 34)),
    "whole numbers as floats": ({"input_tokens": 25.0}, [{"output_tokens": 15.0}], Usage(25, 15, 40)),
    "numbers that are no counts": ({"input_tokens": 25}, [{"input_tokens": -1, "output_tokens": 2**63}, {"output_tokens": "7"}], Usage(25)),
    "thinking": ({"input_tokens": 1}, [{"output_tokens": 5, "output_tokens_details": {"thinking_tokens": 3}}], Usage(1, 5, 6, None, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", USAGES)
def test_the_usage_is_the_last_real_count(name: str) -> None:
    first, later, expected = USAGES[name]
    text = delta(0, "text_delta", text="Hi")
    received = streamed(
        begun(**first), text, *({"type": "message_delta", "delta": {}, "usage": usage} for usage in later)
    )
    assert received.usage == expected


@pytest.mark.parametrize(
    ("event", "code", "message", "status"),
    [
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Oh"}}, "overloaded_error", "Oh", 529),
        ({"type": "error", "error": {"type": "rate_limit_error", "message": "Oh"}}, "rate_limit_error", "Oh", 429),
        ({"type": "error", "error": "Oh"}, None, "Oh", None),
        ({"type": "error", "message": "Oh"}, None, "Oh", None),
        ({"error": {"type": "overloaded_error", "message": "Oh"}}, "overloaded_error", "Oh", 529),
        ({"type": "overloaded_error", "message": "Oh"}, "overloaded_error", "Oh", 529),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_an_error_of_any_form(event: Any, code: str | None, message: str, status: int | None, *, named: bool) -> None:
    received = streamed(
        begun(input_tokens=5), delta(0, "text_delta", text="Hi"), event, *ended(None, output_tokens=7), named=named
    )
    error = received.error
    assert error is not None
    assert (error.code or error.type, error.message, error.client_status) == (code, message, status)
    assert (received.text, received.usage) == ("Hi", Usage(5, 7, 12)), "what comes beside the error counts"


@pytest.mark.parametrize(
    ("reason", "failed"),
    [
        *((reason, False) for reason in ("end_turn", "max_tokens", "refusal", "pause_turn", "model_context_window_exceeded")),
        *((reason, True) for reason in ("error", "timeout", "cancelled")),
    ],
)  # fmt: skip
def test_a_stop_reason_that_names_a_failure_is_an_error(reason: str, failed: bool) -> None:  # noqa: FBT001 - a table
    received = streamed(begun(), delta(0, "text_delta", text="Hi"), *ended(reason))
    assert (received.finish_reason, received.error is not None, received.finished) == (reason, failed, not failed)


def test_citations_are_kept() -> None:
    location = {"type": "web_search_result_location", "url": "https://example.com"}
    received = streamed(
        begun(),
        started(0, {"type": "text", "text": "", "citations": [location]}),
        delta(0, "citations_delta", citation={"a": 1}),
    )
    assert json.loads(received.annotations or "") == [{"index": 0, "annotations": [location, {"a": 1}]}]


@pytest.mark.parametrize(
    "event",
    [
        started(0, {}), started(0, {"type": "text"}), started(0, {"type": "redacted_thinking", "data": "x"}), started(0, {"type": "image", "source": 3}),
        started(0, {"type": ["text"]}), delta(0, "new_delta", text="x"), {"type": "content_block_delta", "delta": "x"}, {"type": "content_block_start"},
        {"type": "message_start", "message": []}, {"type": "message_delta", "delta": [], "usage": []}, {"type": ["x"]}, stopped(9),
    ],
)  # fmt: skip
def test_events_without_output_change_nothing(event: Any) -> None:
    text = delta(0, "text_delta", text="Hi")
    received = streamed(begun(), text, event, text, *ended())
    assert (received.text, received.finish_reason, received.error) == ("HiHi", "end_turn", None)
    assert calls(received) == []
