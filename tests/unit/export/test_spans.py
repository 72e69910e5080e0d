"""Rows of captures as spans: names, attributes, times, ids and events, by the conventions for GenAI client spans."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deltatap.delta import columns
from deltatap.export.spans import OWN, Event, Options, Server, Span, ids, server_of, span, with_chunks

AT = datetime(2026, 11, 21, 6, 30, 0, 123_456, tzinfo=UTC)
START = 1_795_242_600_123_456_000
SERVER = Server("openai", "llm.example.com", 443)
ALL = Options(content=True, chunks=1.0)


def row(**values: Any) -> dict[str, Any]:
    names = [*(column.name for column in columns.CAPTURES), "finish_reasons"]
    return dict.fromkeys(names) | {
        "run_id": "r", "request_id": "q", "mode": "stream", "status": "completed", "api": "chat", "request_model": "m",
        "started_at": AT, "finished_at": AT + timedelta(microseconds=1_500_001), "dispatch_ms": 2.5, "retries": [],
    } | values  # fmt: skip


def made(given: dict[str, Any], options: Options = Options(), server: Server = SERVER) -> Span:  # noqa: B008 - frozen
    found = span(given, server, options)
    assert found is not None
    return found


def test_a_row_is_a_span_with_its_times() -> None:
    found = made(row())
    assert (found.name, found.start_ns, found.end_ns) == ("chat m", START, START + 1_500_001_000)
    assert (found.error, found.events) == (None, ())
    assert found.attributes == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m",
        "server.address": "llm.example.com", "server.port": 443, "gen_ai.request.stream": True,
        "openai.api.type": "chat_completions", "deltatap.run_id": "r", "deltatap.request_id": "q",
        "deltatap.mode": "stream", "deltatap.status": "completed", "deltatap.dispatch_ms": 2.5, "deltatap.retries": 0,
    }  # fmt: skip


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"api": "completions"}, {"gen_ai.operation.name": "text_completion", "openai.api.type": None}),
    ({"api": "responses"}, {"gen_ai.operation.name": "chat", "openai.api.type": "responses"}),
    ({"api": "messages", "service_tier": "x"}, {"gen_ai.provider.name": "anthropic", "openai.response.service_tier": None}),
    ({"api": "of a newer version"}, {"gen_ai.operation.name": "chat"}),
    ({"mode": "complete", "first_chunk_ms": 9.0}, {"gen_ai.request.stream": None, "gen_ai.response.time_to_first_chunk": None}),
    ({"first_chunk_ms": 250.5}, {"gen_ai.response.time_to_first_chunk": 0.2505, "deltatap.first_chunk_ms": 250.5}),
    ({"response_model": "m-1", "response_id": "i"}, {"gen_ai.response.model": "m-1", "gen_ai.response.id": "i"}),
    ({"finish_reasons": ["stop", None, "length"]}, {"gen_ai.response.finish_reasons": ["stop", "length"]}),
    ({"finish_reasons": [None]}, {"gen_ai.response.finish_reasons": None}),
    ({"service_tier": "default", "system_fingerprint": "fp"}, {"openai.response.service_tier": "default", "openai.response.system_fingerprint": "fp"}),
    (
        {"usage_reported": {"input_tokens": 9, "output_tokens": 0, "total_tokens": 9, "cached_input_tokens": 4, "cache_write_tokens": 5, "reasoning_tokens": 3, "audio_input_tokens": 2, "audio_output_tokens": None}},
        {"gen_ai.usage.input_tokens": 9, "gen_ai.usage.output_tokens": 0, "gen_ai.usage.cache_read.input_tokens": 4,
         "gen_ai.usage.cache_creation.input_tokens": 5,
         "gen_ai.usage.reasoning.output_tokens": 3, "gen_ai.usage.audio.input_tokens": 2, "gen_ai.usage.audio.output_tokens": None},
    ),
    (  # a count of ours is never the server's
        {"usage_tiktoken": {"encoding": "o200k_base", "input_tokens": 5, "output_tokens": 6, "total_tokens": 11, "approximate": True}},
        {"gen_ai.usage.input_tokens": None, "deltatap.tiktoken.input_tokens": 5, "deltatap.tiktoken.output_tokens": 6, "deltatap.tiktoken.encoding": "o200k_base"},
    ),
    ({"connection": {"reused": False}, "cost_usd": 0.25}, {"deltatap.connection_reused": False, "deltatap.cost_usd": 0.25}),
    ({"error": None, "status": "failed"}, {"error.type": "_OTHER"}),
    (
        {"status": "interrupted", "error": {"type": "timeout", "code": "idle", "message": "m", "http_status": 200}},
        {"error.type": "timeout", "http.response.status_code": 200, "deltatap.error_code": "idle", "deltatap.status": "interrupted"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), CASES)
def test_columns_become_attributes(values: dict[str, Any], expected: dict[str, Any]) -> None:
    attributes = made(row(**values)).attributes
    assert {name: attributes.get(name) for name in expected} == expected


BODIES: list[tuple[str, Any, dict[str, Any]]] = [
    ("chat", {"temperature": 0, "top_p": 0.5, "frequency_penalty": 1, "presence_penalty": -1.5, "seed": 7},
     {"temperature": 0.0, "top_p": 0.5, "frequency_penalty": 1.0, "presence_penalty": -1.5, "seed": 7}),
    ("chat", {"temperature": "hot", "seed": 2**63, "top_p": True, "stop": 3, "n": 1}, {}),
    ("chat", {"max_tokens": 9, "max_completion_tokens": 8, "stop": "x", "n": 3}, {"max_tokens": 8, "stop_sequences": ["x"], "choice.count": 3}),
    ("messages", {"max_tokens": 9, "stop_sequences": ["x", "y"], "top_k": 5}, {"max_tokens": 9, "stop_sequences": ["x", "y"], "top_k": 5.0}),
    ("chat", {"stop": ["a\ud83d", "b"]}, {"stop_sequences": ["a\ufffd", "b"]}),
    ("responses", {"max_output_tokens": 7}, {"max_tokens": 7}),
    ("chat", ["not", "an", "object"], {}),
]  # fmt: skip


@pytest.mark.parametrize(("api", "body", "expected"), BODIES)
def test_parameters_of_the_request_are_attributes(api: str, body: Any, expected: dict[str, Any]) -> None:
    attributes = made(row(api=api, request=json.dumps(body))).attributes
    found = {
        name.removeprefix("gen_ai.request."): value
        for name, value in attributes.items()
        if name.startswith("gen_ai.request.")
    }
    assert found == {"model": "m", "stream": True} | expected
    assert [type(found[name]) for name in expected] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("body", "output", "tier"),
    [
        ({"response_format": {"type": "json_schema"}, "service_tier": "flex"}, "json", "flex"),
        ({"text": {"format": {"type": "text"}}, "service_tier": "auto"}, "text", None),
        ({"response_format": "json", "service_tier": 1}, None, None),
    ],
)
def test_what_the_request_asks_for(body: dict[str, Any], output: str | None, tier: str | None) -> None:
    attributes = made(row(request=json.dumps(body))).attributes
    assert (attributes.get("gen_ai.output.type"), attributes.get("openai.request.service_tier")) == (output, tier)


def test_ids_depend_on_the_row_only() -> None:
    known = ids("r", "q", "stream")
    assert [f"{each:x}" for each in known] == ["b51df5ad3d2c976ef599c7860c4fd0f0", "f9d60b6047fbb8c5"], (
        "spans of earlier exports keep their ids"
    )
    assert known == ids("r", "q", "stream") == (made(row()).trace_id, made(row(text="other", status="failed")).span_id)
    others = {ids("r", "q", "complete"), ids("r", "q2", "stream"), ids("r2", "q", "stream"), ids("r,q", "", "stream")}
    assert len(others | {known}) == 5
    assert 0 < known[0] < 2**128
    assert 0 < known[1] < 2**64


def test_a_row_without_a_call_has_no_span() -> None:
    assert span(row(started_at=None, finished_at=None), SERVER, Options()) is None


def test_a_local_time_without_a_zone_is_the_same_moment() -> None:
    assert made(row(started_at=AT.astimezone().replace(tzinfo=None))).start_ns == START


def test_retries_are_events_and_no_error() -> None:
    call = {"started_at": AT - timedelta(seconds=2), "e2e_ms": 5.0, "http_status": 429, "error_type": "rate_limit",
            "input_tokens": None, "output_tokens": None, "cost_usd": None}  # fmt: skip
    found = made(row(retries=[call, call | {"started_at": None}]))
    expected: dict[str, Any] = {
        "deltatap.retry.e2e_ms": 5.0,
        "deltatap.retry.http_status": 429,
        "deltatap.retry.error_type": "rate_limit",
    }
    assert found.events == (Event("deltatap.retry", START - 2_000_000_000, expected),)
    assert (found.error, found.attributes.get("error.type"), found.attributes["deltatap.retries"]) == (None, None, 2)


CHUNK: dict[str, Any] = {
    "ms": 100.25,
    "gap_ms": None,
    "text": "Say",
    "kind": "content",
    "choice": 0,
    "event": 1,
    "read": 0,
    "tokens": 1,
}


def test_chunks_are_events_at_their_time_of_arrival() -> None:
    other = CHUNK | {"ms": 0.000_4, "choice": None, "tokens": None, "kind": "usage", "text": ""}
    found = made(row(chunks=[CHUNK, other]), Options(chunks=1.0))
    assert found.events == (
        Event("deltatap.chunk", START + 102_750_000,
              {f"deltatap.chunk.{name}": CHUNK[name] for name in ("kind", "choice", "event", "read", "tokens")}),
        Event("deltatap.chunk", START + 2_500_400,
              {f"deltatap.chunk.{name}": other[name] for name in ("kind", "event", "read")}),
    )  # fmt: skip
    assert made(row(chunks=[CHUNK])).events == ()
    assert made(row(chunks=[CHUNK]), ALL).events[0].attributes["deltatap.chunk.text"] == "Say"


def test_the_same_share_of_spans_has_chunks_every_time() -> None:
    every = [ids("r", str(number), "stream")[0] for number in range(2_000)]
    half = [each for each in every if with_chunks(each, 0.5)]
    assert 900 < len(half) < 1_100
    assert {each for each in every if with_chunks(each, 0.25)} < set(half)
    assert (sum(with_chunks(each, 0) for each in every), sum(with_chunks(each, 1) for each in every)) == (0, 2_000)


def test_nothing_that_was_said_is_exported_unless_asked_for() -> None:
    said = row(
        status="interrupted", request=json.dumps({"messages": [{"role": "user", "content": "SECRET"}], "stop": None}),
        text="SECRET", choices=[{"index": 0, "text": "SECRET", "reasoning": None, "refusal": None, "tool_calls": None, "finish_reason": None}],
        error={"type": "server", "code": "c", "message": "SECRET in 'prompt'", "http_status": 500},
        chunks=[CHUNK | {"text": "SECRET"}], logprobs="SECRET", annotations="SECRET", keep={"k": "SECRET"},
    )  # fmt: skip
    found = made(said, Options(chunks=1.0))
    assert "SECRET" not in repr(found)
    assert found.error == "interrupted, server, c"
    asked = made(said, ALL)
    assert asked.error == "SECRET in 'prompt'"
    assert repr(asked).count("SECRET") == 4, "prompt, answer, chunk and error"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"endpoint": {"kind": "openai", "base_url": "https://a.example/v1"}}', Server("openai", "a.example", 443)),
        ('{"endpoint": {"kind": "azure", "base_url": "http://[::1]:8089/v1"}}', Server("azure.ai.openai", "::1", 8089)),
        ('{"endpoint": {"kind": "databricks", "base_url": "http://h"}}', Server("databricks", "h", 80)),
        ('{"endpoint": {"base_url": "http://h:x"}}', Server()),
        ('{"endpoint": []}', Server()),
        ("no JSON", Server()),
        (None, Server()),
    ],
)
def test_the_server_is_that_of_the_runs_settings(config: str | None, expected: Server) -> None:
    assert server_of(config) == expected


def test_own_attributes_are_columns() -> None:
    assert set(OWN) <= {column.name for column in columns.CAPTURES}
