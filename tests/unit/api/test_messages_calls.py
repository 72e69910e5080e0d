"""Anthropic's Messages API: complete calls of the real client to a real simulator."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.api.messages import API
from deltatap.config import Timeouts
from deltatap.endpoint import ApiKey, Endpoint
from deltatap.http.client import EndpointClient
from deltatap.model import Call, CaptureError, Mode
from deltatap.prompts import build_request, wire
from deltatap.replay.recordings import recording
from tests.unit.api.test_messages import HI, TOOLS

if TYPE_CHECKING:
    from tests.simulation import Simulation

PACE = {"tokens": 30}


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
        "run_id": "r", "request_id": "a", "request_hash": "h", "request": json.dumps({"model": "m", "messages": HI}), "api": "messages",
        "request_model": "m", "mode": "stream", "status": "completed", "error": None, "chunks": received.chunks.to_dicts(), "headers_ms": 1.0,
        "e2e_ms": 9.0, "started_at": datetime(2026, 11, 26, tzinfo=UTC),
        "raw": [{"event": kind, "data": data} for kind, data in received.raw or ()],
    }  # fmt: skip
    found = recording(row)
    assert found.prompt == "Hi"
    assert [frame.data for frame in found.frames(API)] == [
        f"event: {kind}\n".encode() + b"data: " + data + b"\n\n" for kind, data in received.raw or ()
    ]
    refused = CaptureError("rate_limit", "rate_limit_error", "Too many.", 429)
    error = {"type": refused.type, "code": refused.code, "message": refused.message, "http_status": 429}
    assert json.loads(recording({**row, "status": "failed", "error": error}).body(API))["error"] == {
        "type": "rate_limit_error",
        "message": "Too many.",
    }
