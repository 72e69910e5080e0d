"""Anthropic's Messages API: the request, the response, and complete calls to a real simulator."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.api.messages import API, MessagesAccumulator
from deltatap.config import ApiKey, Endpoint, Timeouts
from deltatap.http.client import EndpointClient
from deltatap.http.outcomes import conclude, http_error
from deltatap.model import Call, CaptureError, Mode, Received, Usage
from deltatap.prompts import build_request, wire
from deltatap.replay.recordings import recording

if TYPE_CHECKING:
    from tests.simulation import Simulation

PACE = {"tokens": 30}
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
    assert received.usage == Usage(23, 13, 36, 11, 2)
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
    ("overloaded_error", 529, "server", "server"),
]


@pytest.mark.parametrize(("name", "status", "refused", "streamed"), ERRORS)
def test_an_error_has_the_same_outcome_before_and_in_a_stream(
    name: str, status: int, refused: str, streamed: str
) -> None:
    body = API.error_body(status, "", None, "Oh")
    assert body["error"] == {"type": name, "message": "Oh"}
    error = http_error(status, body, {}, 0.0, API)
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
    error = http_error(400, API.error_body(400, "", None, message), {}, 0.0, API)
    assert (error.type, error.http_status) == (type_, 400)


def called(simulator: Simulation, mode: Mode = "stream", model: str = "claude", **row: Any) -> Call:
    """The real client receives every answer of the real simulator."""
    request = build_request({"prompt": "Hi", **row}, api="messages", model=model, defaults={}, keep=())
    sent = wire(request.body or "", api="messages", mode=mode, include_usage=True)

    async def made() -> Call:
        endpoint = Endpoint(api="messages", base_url=simulator.base_url, api_key=ApiKey(env="SIM_KEY"))
        client = EndpointClient(endpoint, Timeouts(first_byte_s=5, idle_s=5), keep_raw=True)
        try:
            assert await client.models() == ["gpt-4o-mini", "gpt-4o", "gpt-3.5-turbo"]
            return await client.call(sent)
        finally:
            await client.close()

    return asyncio.run(made())


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_KEY", "sk-ant-test")


@pytest.mark.parametrize(
    ("model", "params", "finish"),
    [
        ("claude", {}, "end_turn"),
        ("claude", {"max_tokens": 5}, "max_tokens"),
        ("claude", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "end_turn"),
        ("claude", {"tools": TOOLS}, "tool_use"),
        ("claude", {"tools": TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, "tool_use"),
        ("claude", {"tools": TOOLS, "tool_choice": {"type": "none"}}, "end_turn"),
        ("claude!details+comments+empty_choices", {}, "end_turn"),
        ("claude!role_with_content+crlf", {}, "end_turn"),
        ("claude!content_filter", {}, "refusal"),
    ],
)
def test_what_the_simulator_sends_is_received(
    simulator: Simulation, model: str, params: dict[str, Any], finish: str
) -> None:
    streamed = called(simulator, model=model, params=json.dumps(params))
    whole = called(simulator, "complete", model=model, params=json.dumps(params))
    first, second = simulator.calls()
    for call, sent in ((streamed, first), (whole, second)):
        received = call.received
        assert (call.status, call.error, received.finish_reason) == ("completed", None, finish)
        assert received.text == sent["texts"].get("0", "")
        assert call.server_request_id == f"req_sim{sent['number']:08d}"
        (choice,) = received.choices
        others = sent["others"].get("0", {})
        assert choice.reasoning == others.get("reasoning")
        assert (choice.reasoning is not None) == ("thinking" in params)
        tools = json.loads(choice.tool_calls or "[]")
        assert [tool["function"]["name"] for tool in tools] == [
            others[key] for key in sorted(others) if key.startswith("call")
        ]
        assert received.usage is not None
        usage = sent["usage"]
        assert (received.usage.input_tokens, received.usage.output_tokens) == (
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )
        assert received.usage.cached_input_tokens == usage["prompt_tokens_details"]["cached_tokens"]
        assert received.usage.reasoning_tokens == usage["completion_tokens_details"]["reasoning_tokens"]
        assert sent["bearer_sha256"] == "cdba95a3170e3a312d5c4935da032878a54729268e8db47b2c63d92a74747a93"
    assert len(streamed.received.raw or ()) == first["frames"]
    assert streamed.received.choices[0].text == whole.received.choices[0].text


def test_a_refusal_by_the_model_is_a_finish_reason(simulator: Simulation) -> None:
    received = called(simulator, model="claude!refusal").received
    assert (received.text, received.finish_reason) == ("I am sorry, I cannot help with that.", "refusal")


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        ("401", "failed", ("authentication", "authentication_error", 401)),
        ("429", "failed", ("rate_limit", "rate_limit_error", 429)),
        ("502", "failed", ("server", "api_error", 502)),
        ("error_event@3", "interrupted", ("stream_error", "api_error", 200)),
        ("cut@3", "interrupted", ("stream_interrupted", "ReadError", None)),
        ("no_finish", "interrupted", ("stream_interrupted", None, 200)),
        ("bad_json@3", "interrupted", ("protocol", None, 200)),
    ],
)
def test_how_calls_fail(
    simulator: Simulation, fault: str, status: str, error: tuple[str, str | None, int | None]
) -> None:
    call = called(simulator, model=f"claude!{fault}")
    assert call.status == status
    assert call.error is not None
    assert call.error.type == error[0]
    if error[0] != "stream_interrupted":
        assert (call.error.code, call.error.http_status) == error[1:]
    if status == "interrupted":
        assert call.received.usage is not None
        assert call.received.usage.output_tokens is None


def test_requests_are_parsed_for_the_simulator(simulator: Simulation) -> None:
    assert called(simulator, model="claude", params='{"stop_sequences": ["."]}').received.text
    for body in ({"model": "m", "messages": "Hi"}, {"model": "m"}):
        with pytest.raises((TypeError, KeyError)):
            API.parse_request(body)
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    output = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    assert API.parse_request({"messages": HI, **output}).schema == schema


def test_captured_events_are_replayed_byte_by_byte(simulator: Simulation) -> None:
    received = called(simulator).received
    row = {
        "request_id": "a", "request_hash": "h", "request": json.dumps({"model": "m", "messages": HI}), "api": "messages",
        "mode": "stream", "status": "completed", "error": None, "chunks": received.chunks.to_dicts(), "headers_ms": 1.0,
        "e2e_ms": 9.0, "started_at": datetime(2026, 11, 26, tzinfo=UTC),
        "raw": [{"event": kind, "data": data} for kind, data in received.raw or ()],
    }  # fmt: skip
    found = recording(row)
    assert found.prompt == "Hi"
    assert [frame for _, frame in found.frames] == [
        f"event: {kind}\n".encode() + b"data: " + data + b"\n\n" for kind, data in received.raw or ()
    ]
    with pytest.raises(ValueError, match=r"the Messages API can be replayed only if capture\.keep_raw"):
        recording({**row, "raw": None})
    refused = CaptureError("rate_limit", "rate_limit_error", "Too many.", 429)
    error = {"type": refused.type, "code": refused.code, "message": refused.message, "http_status": 429}
    assert json.loads(recording({**row, "status": "failed", "error": error}).frames[0][1])["error"] == {
        "type": "rate_limit_error",
        "message": "Too many.",
    }
