"""Every API, mode and kind of request in whole runs: each column has its expected value."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.driver.owed import owed_requests
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.runs import capture, captured

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import Row, SparkSession

    from tests.simulation import Simulation

PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "warm": {"type": "boolean"}}}
TOOLS = [
    {"name": name, "description": "d", "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "c"}}}}
    for name in ("get_weather", "get_time")
]  # fmt: skip
CHAT_TOOLS = [{"type": "function", "function": tool} for tool in TOOLS]
RESPONSES_TOOLS = [{"type": "function", **tool} for tool in TOOLS]
MESSAGES_TOOLS = [{"name": tool["name"], "input_schema": tool["parameters"]} for tool in TOOLS]


@dataclass(frozen=True)
class Kind:
    """A kind of request: its parameters, the server's traits, and the columns that the answer fills besides the text."""

    traits: str = ""
    params: dict[str, Any] | None = None
    messages: Any = None
    system: str | None = None
    fills: frozenset[str] = frozenset()
    finish: str | None = None
    approximate: bool = False


def kind(traits: str = "", *fills: str, **more: Any) -> Kind:
    return Kind(traits, fills=frozenset(fills), **more)


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


COMMON = {
    "plain": kind(),
    "stopped": kind(params={"stop": ["."], "seed": 7}),
    "filtered": kind("content_filter", finish="content_filter"),
    "details": kind("details", "details"),
    "unknown model": kind(approximate=True),
}
QUIRKS = {
    "no id": kind("no_id"),
    "created as a float": kind("float_created"),
    "usage with a choice": kind("usage_with_finish"),
    "usage in every chunk": kind("usage_each"),
    "usage omitted": kind("no_usage"),
    "stream options refused": kind("no_stream_options"),
    "finish with content": kind("finish_with_content"),
    "filters": kind("filters", "content_filter"),
    "late filters": kind("late_filters", "content_filter"),
    "two choices": kind(params={"n": 2}),
    "length": kind(params={"max_tokens": 5}, finish="length"),
}
KINDS: dict[str, dict[str, Kind]] = {
    "chat": {
        **COMMON,
        **QUIRKS,
        "system": kind(system="Be brief."),
        "tools": kind("", "tool_calls", params={"tools": CHAT_TOOLS}, finish="tool_calls"),
        "one tool": kind("", "tool_calls", params={"tools": CHAT_TOOLS, "parallel_tool_calls": False}, finish="tool_calls"),
        "refusal": kind("refusal", "refusal"),
        "reasoning": kind("", "reasoning", params={"reasoning_effort": "low"}),
        "reasoning, the other field": kind("reasoning+reasoning_field", "reasoning"),
        "content in parts": kind("reasoning+content_parts", "reasoning"),
        "logprobs": kind("", "logprobs", params={"logprobs": True, "top_logprobs": 2}),
        "moderation": kind("moderation", "moderation"),
        "image": kind(messages=user({"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PNG}})),
        "audio": kind(
            messages=user({"type": "text", "text": "Who?"}, {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
            approximate=True,
        ),
        "structured": kind(
            params={"response_format": {"type": "json_schema", "json_schema": {"name": "w", "strict": True, "schema": SCHEMA}}},
            approximate=True,
        ),
        "a tool's answer": kind(
            messages=[
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "c", "content": "Rain"},
            ],
            approximate=True,
        ),
    },
    "completions": {
        **COMMON,
        **QUIRKS,
        "echo": kind(params={"echo": True, "max_tokens": 5}, finish="length"),
        "logprobs": kind("", "logprobs", params={"logprobs": 2}),
    },
    "responses": {
        **COMMON,
        "system": kind(system="Be brief."),
        "tools": kind("", "tool_calls", params={"tools": RESPONSES_TOOLS}),
        "refusal": kind("refusal", "refusal"),
        "reasoning": kind("", "reasoning", params={"reasoning": {"effort": "low", "summary": "auto"}}),
        "logprobs": kind("", "logprobs", params={"include": ["message.output_text.logprobs"]}),
        "length": kind(params={"max_output_tokens": 5}, finish="max_output_tokens"),
        "filters": kind("filters", "content_filter"),
        "moderation": kind("moderation", "moderation"),
        "image": kind(messages=user({"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": PNG})),
        "structured": kind(params={"text": {"format": {"type": "json_schema", "name": "w", "schema": SCHEMA}}}),
    },
    "messages": {
        "plain": kind(),
        "stopped": kind(params={"stop_sequences": ["."]}),
        "filtered": kind("content_filter", finish="refusal"),
        "details": kind("details", "details"),
        "unknown model": kind(),
        "system": kind(system="Be brief."),
        "tools": kind("", "tool_calls", params={"tools": MESSAGES_TOOLS}, finish="tool_use"),
        "reasoning": kind("", "reasoning", params={"thinking": {"type": "adaptive"}}),
        "length": kind(params={"max_tokens": 5}, finish="max_tokens"),
        "image": kind(
            messages=user(
                {"type": "text", "text": "What?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG.partition(",")[2]}},
            )
        ),
    },
}  # fmt: skip
TYPED = ("responses", "messages")  # APIs with typed events: they send no [DONE], and their input tokens are approximate
ROWS = "request_id STRING, prompt STRING, messages STRING, system STRING, model STRING, params STRING"
PRICES = "- {model: 'gpt-4o-mini*', input: 0.15, cached_input: 0.075, output: 0.6, date: 2026-01-01, source: here}\n"


# Transcripts test every API quickly; a real run of each is among the slow tests.
@pytest.mark.slow
@pytest.mark.parametrize("api", KINDS)
def test_every_kind_of_request_fills_its_columns(
    spark: SparkSession, tables: Path, simulator: Simulation, api: str
) -> None:
    kinds = KINDS[api]
    rows_written = [
        (
            name,
            None if found.messages else f"Prompt of {name}.",
            json.dumps(found.messages) if found.messages else None,
            found.system,
            "llama-3" if name == "unknown model" else f"gpt-4o-mini!{found.traits}" if found.traits else None,
            json.dumps(found.params) if found.params else None,
        )
        for name, found in kinds.items()
    ]
    prompts.write(spark, tables / "prompts", rows_written, ROWS)
    (tables / "prices.yml").write_text(PRICES)
    ended, output = capture(
        spark,
        tables,
        simulator,
        endpoint={"api": api},
        capture={"mode": "paired", "keep_raw": True, "concurrency": 8},
        request={},
        prices=str(tables / "prices.yml"),
    )
    assert ended.row["completed"] == 2 * len(kinds), output
    assert "no price for model llama-3" in output
    rows: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in captured(spark, tables):
        rows[row["request_id"]][row["mode"]] = row
    calls = {(call["key"], call["streamed"]): call for call in simulator.calls()}
    for name, modes in rows.items():
        assert set(modes) == {"stream", "complete"}, name
        for mode, row in modes.items():
            where = (api, mode, name)
            call = calls[row["request_hash"], mode == "stream"]
            check_answer(row, call, kinds[name], where)
            check_times(row, call, where)
            check_tokens(row, call, kinds[name], where)
            assert (row["api"], row["status"], row["error"]) == (api, "completed", None), where
            body = json.loads(row["request"])
            assert body.get("stream") == (True if mode == "stream" else None), where
            assert body["model"] == row["request_model"], where
            assert {key: body[key] for key in kinds[name].params or {}} == (kinds[name].params or {}), where
        first, second = sorted(modes.values(), key=lambda row: row["started_at"])
        assert second["started_at"] >= first["finished_at"], "the two modes overlap"
        assert modes["stream"]["text"] == modes["complete"]["text"], name
    first_modes = {min(modes.values(), key=lambda row: row["started_at"])["mode"] for modes in rows.values()}
    assert first_modes == {"stream", "complete"}, "the order is not random"
    sections = {"endpoint": {"api": api}, "capture": {"mode": "paired"}, "request": {}}
    with owed_requests(spark, load_settings(prompts.config(tables, simulator.base_url, **sections)), "next") as owed:
        assert owed.isEmpty(), "each mode is owed separately"


def check_answer(row: Row, call: dict[str, Any], kind: Kind, where: Any) -> None:
    assert row["text"] == call["texts"].get("0", ""), where
    finish = {"responses": "completed", "messages": "end_turn"}.get(row["api"], call["finish_reasons"]["0"])
    assert row["finish_reason"] == (kind.finish or finish), where
    assert row["text"] or {"tool_calls", "refusal"} & kind.fills, where
    for choice in row["choices"]:
        others = call["others"].get(str(choice["index"]), {})
        assert choice["text"] == call["texts"].get(str(choice["index"]), ""), where
        assert (choice["refusal"], choice["reasoning"]) == (others.get("refusal"), others.get("reasoning")), where
        tools = json.loads(choice["tool_calls"]) if choice["tool_calls"] else []
        assert [(tool["function"]["name"], tool["function"]["arguments"]) for tool in tools] == [
            (others[f"call {number}"], others[f"arguments {number}"]) for number in range(len(tools))
        ], where
        assert all(tool["id"].startswith("toolu_" if row["api"] == "messages" else "call_") for tool in tools), where
        assert len(tools) == sum(name.startswith("call") for name in others), where
        for filled in ("refusal", "reasoning", "tool_calls"):
            assert (choice[filled] is not None) == (filled in kind.fills), (*where, filled)
    assert len(row["choices"]) == (kind.params or {}).get("n", 1), where
    if "response_format" in (kind.params or {}) or "text" in (kind.params or {}):
        assert set(json.loads(row["text"])) == {"city", "warm"}, where
    for filled in ("content_filter", "logprobs", "moderation"):
        assert (row[filled] is not None) == (filled in kind.fills), (*where, filled)
        assert row[filled] is None or json.loads(row[filled]), where
    assert row["response_model"] == row["request_model"].partition("!")[0], where
    prefix = {"chat": "chatcmpl-", "completions": "cmpl-", "responses": "resp_", "messages": "msg_"}[row["api"]]
    assert row["response_id"] == (None if kind.traits == "no_id" else f"{prefix}sim{call['number']:08d}"), where
    assert row["service_tier"] == ("standard" if row["api"] == "messages" else "default"), where
    assert row["system_fingerprint"] == (None if row["api"] in TYPED else "fp_simulator"), where
    assert row["server_request_id"] == f"req_sim{call['number']:08d}", where


def check_times(row: Row, call: dict[str, Any], where: Any) -> None:
    assert row["headers_ms"] <= row["e2e_ms"], where
    refused = 1 if row["retries"] else 0
    assert refused == (row["mode"] == "stream" and row["request_id"] == "stream options refused"), where
    if refused:
        (retry,) = row["retries"]
        assert (retry["http_status"], retry["error_type"]) == (400, "invalid_request"), where
        assert "stream_options" not in json.loads(row["request"]), where
    raw = [bytes(event["data"]) for event in row["raw"]]
    if row["mode"] == "complete":
        assert row["chunks"] == [], where
        assert (row["first_chunk_ms"], row["ttft_ms"], row["ttfot_ms"], row["last_chunk_ms"], row["tpot_ms"]) == (
            None,
        ) * 5, where
        assert len(raw) == 1, where
        assert json.loads(raw[0])["model"] == row["response_model"], where
        return
    assert len(raw) == call["frames"] + (row["api"] not in TYPED), "raw has the bytes of every event, including [DONE]"
    outputs = [c for c in row["chunks"] if c["kind"] in ("content", "reasoning", "refusal", "tool_calls")]
    assert sorted(c["text"] for c in outputs) == sorted(text for _, text in call["chunks"]), where
    assert row["ttft_ms"] == outputs[0]["ms"], where
    assert row["ttfot_ms"] == next(c["ms"] for c in outputs if c["kind"] != "reasoning"), where
    assert row["last_chunk_ms"] == outputs[-1]["ms"], where
    assert {c["event"] for c in row["chunks"]} == set(range(call["frames"])), where


OF_SIMULATOR = (
    "input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "reasoning_tokens", "audio_input_tokens",
    "audio_output_tokens",
)  # fmt: skip


def check_tokens(row: Row, call: dict[str, Any], kind: Kind, where: Any) -> None:
    usage, reported, counted = call["usage"], row["usage_reported"], row["usage_tiktoken"]
    if usage is None or (row["mode"] == "stream" and row["request_id"] == "stream options refused"):
        assert reported is None, where
        assert row["cost_basis"] == ("tiktoken"), where
    else:
        prompt, completion = usage["prompt_tokens_details"], usage["completion_tokens_details"]
        has_audio = row["api"] != "messages"
        assert {name: count for name, count in reported.asDict().items() if name in OF_SIMULATOR} == {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "total_tokens": usage["total_tokens"],
            "cached_input_tokens": prompt["cached_tokens"],
            "reasoning_tokens": completion["reasoning_tokens"],
            "audio_input_tokens": prompt["audio_tokens"] if has_audio else None,
            "audio_output_tokens": completion["audio_tokens"] if has_audio else None,
        }, where
        assert row["cost_basis"] == "reported", where
        assert counted["input_tokens"] == usage["prompt_tokens"], where
        # The simulator counts its pieces. The joined text may have one or two tokens fewer.
        assert 0 <= usage["completion_tokens"] - counted["output_tokens"] <= 2, where
    if "details" in kind.fills:
        assert reported["cached_input_tokens"] > 0, where
    if "reasoning" in kind.fills:
        assert reported["reasoning_tokens"] > 0, where
    assert counted["total_tokens"] == counted["input_tokens"] + counted["output_tokens"], where
    assert counted["approximate"] == (kind.approximate or row["api"] in TYPED), where
    assert (row["cost_usd"] is None) == (row["request_id"] == "unknown model"), where
