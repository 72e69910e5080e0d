"""Streams written by hand from the providers' published examples; each file names its source.

The transcripts are also cut at random places: however a network splits them, the same is received.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatap.api.registry import specification
from deltatap.api.sse import SSEDecoder
from deltatap.http.outcomes import conclude
from deltatap.model import Received, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FOLDER = Path(__file__).parents[2] / "transcripts"


def call(name: str, arguments: str, id_: str | None = None, type_: str = "function") -> dict[str, Any]:
    return {"id": id_, "type": type_, "function": {"name": name, "arguments": arguments}}


@dataclass(frozen=True)
class Expected:
    """The expected result of a transcript. `kinds` are the kinds of its chunks, in order."""

    kinds: str
    text: str | None = ""
    finish: str | None = "stop"
    status: str = "completed"
    error: tuple[str, str | None] | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tools: list[dict[str, Any]] | None = None
    usage: Usage | None = None
    others: list[str] = field(default_factory=list)
    choices: int = 1
    names: Mapping[str, str | None] = field(default_factory=dict)


DEPLOYED = {"response_model": "gpt-4o-2024-08-06", "response_id": "chatcmpl-7rCNsVeZy0PGnX3H6jK8STps5nZUY"}
RESPONSE = {
    "response_model": "gpt-4.1-2025-04-14",
    "response_id": "resp_67c9fdcecf488190bdd9a0409de3a1ec",
    "service_tier": "default",
}
RESPONSE_USAGE = Usage(37, 11, 48, 8, 2)
EXPECTED = {
    "openai_chat": Expected("role content content finish", "Hello!", names={
        "response_id": "chatcmpl-123", "response_model": "gpt-4o-mini", "system_fingerprint": "fp_44709d6fcb", "service_tier": None}),
    "openai_chat_usage": Expected("role content finish usage", "Good day", "length", usage=Usage(19, 10, 29, 16, 4, 0, 0, accepted_prediction_tokens=0, rejected_prediction_tokens=0), names={"service_tier": "default"}),
    "openai_chat_tools": Expected(
        "role tool_calls tool_calls tool_calls tool_calls tool_calls finish", finish="tool_calls",
        tools=[call("get_weather", '{"location": "Paris"}', "call_DdmO9pD3xa9XTPNJ32zg2hcA"), call("get_time", "{}", "call_2")]),
    "openai_chat_function_call": Expected(
        "role tool_calls tool_calls tool_calls finish", finish="function_call", tools=[call("get_weather", '{"city": "Oslo"}')]),
    "openai_chat_refusal": Expected("role refusal refusal refusal finish", refusal="I'm sorry, I cannot."),
    "openai_chat_logprobs": Expected("role role content content finish finish", "Yes", others=["logprobs"], choices=2),
    "openai_chat_moderation": Expected("role content finish empty", "Fine.", others=["moderation"]),
    "openai_chat_audio": Expected("role content content empty empty finish", "Hello"),
    "openai_completions": Expected("content content content finish usage", "This is indeed a test.", usage=Usage(5, 6, 11)),
    "openai_completions_logprobs": Expected(
        "content content content finish content finish", "Say this test", "length", others=["logprobs"], choices=2),
    "openai_responses": Expected(
        "empty empty role empty content content empty empty empty finish usage", "Hi there!", "completed",
        usage=RESPONSE_USAGE, others=["logprobs"], names=RESPONSE),
    "openai_responses_tool": Expected(
        "empty tool_calls tool_calls tool_calls empty empty finish usage", finish="completed",
        tools=[call("get_weather", '{"location":"Paris, France"}', "call_1234xyz")], usage=RESPONSE_USAGE),
    "openai_responses_reasoning": Expected(
        "empty empty empty reasoning reasoning empty empty empty role content finish usage", "2", "completed",
        reasoning="**Counting** two.", usage=RESPONSE_USAGE),
    "openai_responses_refusal": Expected(
        "empty role refusal refusal empty finish usage", finish="completed", refusal="I can't do that.", usage=RESPONSE_USAGE),
    "openai_responses_incomplete": Expected("empty role content finish usage", "Once upon a", "max_output_tokens", usage=RESPONSE_USAGE),
    "openai_responses_failed": Expected("empty empty error", None, None, "failed", ("stream_error", "server_error"), names=RESPONSE),
    "openai_responses_error": Expected("empty role content error", "Half", None, "interrupted", ("stream_error", "ERR_SOMETHING")),
    "openai_responses_web_search": Expected(
        "empty empty empty empty empty empty role content empty finish usage", "Sunny.", "completed", usage=RESPONSE_USAGE, others=["annotations"],
        tools=[{"id": "ws_67c", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "weather"}}]),
    "azure_chat_filters": Expected("empty role content finish", "Color is", others=["content_filter"], names=DEPLOYED),
    "azure_chat_async_filter": Expected("empty role content content empty finish empty", "Color is", others=["content_filter"], names=DEPLOYED),
    "azure_chat_filtered": Expected("empty role content finish", "The way to", "content_filter", others=["content_filter"]),
    "azure_chat_engine_error": Expected("role content finish", "Hi", others=["content_filter"]),
    "databricks_chat": Expected(
        "role usage content usage content usage content usage finish usage", "The Latin name is Sol.", usage=Usage(20, 9, 29)),
    "databricks_reasoning": Expected(
        "role reasoning role reasoning role role content role content role finish", "Yes, it is.", reasoning="Four is even."),
    "vllm_reasoning": Expected("role reasoning reasoning content finish usage", "9.8", reasoning="9.8 is larger", usage=Usage(14, 8, 22)),
    "vllm_both_fields": Expected("role usage reasoning usage content finish usage", "9.8", reasoning="9.8", usage=Usage(14, 4, 18)),
    "llama_cpp": Expected("role content content finish usage", "An example?", usage=Usage(21, 4, 25)),
    "ollama": Expected("role reasoning role reasoning role content role finish", "1, 2, 3", reasoning="We need"),
    "litellm": Expected("content role content finish empty usage", "Hi you", usage=Usage(8, 2, 10)),
    "text_generation_inference": Expected("role content role content finish", "Deep learning", "length", names={"response_id": None}),
    "deepseek": Expected("role reasoning content finish usage", "9.11 < 9.8", reasoning="Compare.", usage=Usage(15, 12, 27, 12, 5)),
    "mistral_thinking": Expected("reasoning reasoning content content finish usage", "John is 7.", reasoning="Let me see.", usage=Usage(40, 20, 60)),
    "anthropic_text": Expected(
        "role usage empty empty content content empty finish usage empty", "Hello!", "end_turn", usage=Usage(25, 15, 40, 0, cache_write_tokens=0),
        names={"response_id": "msg_01XFDUDYJgAACzvnptvVoYEL", "response_model": "claude-sonnet-4-5-20250929", "service_tier": "standard"}),
    "anthropic_thinking": Expected(
        "role usage empty reasoning reasoning empty empty empty content empty finish usage empty", "27 * 453 = 12,231", "end_turn",
        reasoning="Let me solve this step by step:\n\n27 * 453 = 12,231", usage=Usage(25, 60, 85, 0, 41, cache_write_tokens=0)),
    "anthropic_tool_use": Expected(
        "role usage empty empty content empty tool_calls empty tool_calls tool_calls empty tool_calls empty finish usage empty",
        "Okay", "tool_use", usage=Usage(472, 89, 561, 0, cache_write_tokens=0), tools=[
            call("get_weather", '{"location": "San Francisco, CA"}', "toolu_01T1x1fJ34qAmk2tNTrN7Up6"), call("get_time", "{}", "toolu_02")]),
    "anthropic_overloaded": Expected(
        "role usage empty empty content error", "Half", None, "interrupted", ("stream_error", "overloaded_error"), usage=Usage(25, None, None, 0, cache_write_tokens=0)),
    "anthropic_rate_limited": Expected("role usage empty error", "", None, "failed", ("rate_limit", "rate_limit_error"), usage=Usage(25, None, None, 0, cache_write_tokens=0)),
    "anthropic_cache": Expected(
        "role usage empty content empty finish usage empty", "It is about pride.", "max_tokens", usage=Usage(100298, 503, 100801, 100000, cache_write_tokens=248, cache_write_1h_tokens=100)),
    "anthropic_refusal": Expected(
        "role usage empty content empty finish usage empty", "Hello..", "refusal", usage=Usage(564, 22, 586, 0, cache_write_tokens=0), others=["content_filter"]),
    "anthropic_web_search": Expected(
        "role usage empty content empty tool_calls tool_calls tool_calls empty empty empty empty empty content empty finish usage empty",
        "I'll check. It is sunny.", "end_turn", usage=Usage(10682, 510, 11192, 0, cache_write_tokens=0, web_searches=1), others=["annotations"], tools=[
            {"type": "server_tool_use", "id": "srvtoolu_014hJH82Qum7Td6UV8gDXThB", "name": "web_search", "input": {"query": "weather NYC today"}}]),
    "groq": Expected("role content finish usage", "Hello", usage=Usage(23, 19, 42)),
    "xai_reasoning": Expected(
        "reasoning role content role role finish usage", "4", reasoning="Count.", usage=Usage(12, 387, 399, 4, 386)),
    "moonshot": Expected("role content finish usage", "Hi", usage=Usage(19, 21, 40, 10)),
    "openrouter_reasoning": Expected("role reasoning role reasoning role role content finish", "Yes.", reasoning="Let me see."),
    "minimax": Expected("content role error usage", "Half", None, "interrupted", ("stream_error", "1002"), usage=Usage(total_tokens=0)),
    "perplexity": Expected(
        "role content role content role content finish usage", "Sunny.", usage=Usage(5, 2, 7), others=["annotations"]),
    "openrouter_error": Expected("role content error finish", "To build", "error", "interrupted", ("stream_error", "server_error")),
}  # fmt: skip


def transcript(name: str) -> tuple[str, bytes]:
    data = (FOLDER / f"{name}.sse").read_bytes()
    api = data.split(b"\n", 1)[0].removeprefix(b": api: ").decode()
    return api, data


def receive(api: str, reads: Iterable[bytes], choices: int = 1) -> Received:
    decoder, accumulator = SSEDecoder(), specification(api).accumulator(choices, keep_raw=True)
    for read, data in enumerate(reads):
        for event in decoder.feed(data):
            accumulator.add(event.data, float(read), read, event.event)
    return accumulator.finish()


def test_every_transcript_is_expected_and_names_its_source() -> None:
    files = sorted(FOLDER.glob("*.sse"))
    names = {path.stem for path in files}
    assert names >= set(EXPECTED), f"no transcript for {sorted(set(EXPECTED) - names)}"
    assert names <= set(EXPECTED), f"add {sorted(names - set(EXPECTED))} to EXPECTED"
    assert len(files) >= 20
    for path in files:
        data = path.read_bytes()
        assert data.startswith(b": api: "), f"{path.name}: the first line must be `: api: NAME`"
        assert data.split(b"\n")[1].startswith(b": source: https://"), (
            f"{path.name}: the second line must name the source"
        )
        assert data.endswith(b"\n\n"), f"{path.name}: the last event must end with a blank line"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_transcript_is_received_as_expected(name: str) -> None:
    expected = EXPECTED[name]
    api, data = transcript(name)
    received = receive(api, [data], expected.choices)
    assert " ".join(c["kind"] for c in received.chunks.to_dicts()) == expected.kinds
    status, error = conclude(received, None)
    assert (status, error and (error.type, error.code)) == (expected.status, expected.error)
    assert (received.text, received.finish_reason) == (expected.text, expected.finish)
    assert received.usage == expected.usage
    first = received.choices[0] if received.choices else None
    assert (first and first.reasoning, first and first.refusal) == (expected.reasoning, expected.refusal)
    tools = first.tool_calls if first else None
    assert (tools and json.loads(tools)) == expected.tools
    assert len(received.choices) == (expected.choices if first else 0)
    for other in ("content_filter", "logprobs", "moderation", "annotations"):
        found = getattr(received, other)
        assert (found is not None) == (other in expected.others), other
        assert found is None or json.loads(found)
    for known, value in expected.names.items():
        assert getattr(received, known) == value
    raw = b"".join(b"data: " + data + b"\n\n" for _, data in received.raw or ())
    wanted = b"".join(
        b"data:" + line.removeprefix(b"data:") + b"\n\n" for line in data.split(b"\n") if line.startswith(b"data:")
    )
    assert raw.replace(b"data: ", b"data:") == wanted.replace(b"data: ", b"data:"), "every event's bytes are kept"


@pytest.mark.parametrize("name", EXPECTED)
@settings(deadline=None)  # a busy machine exceeds the default deadline
@given(cuts=st.lists(st.integers(0, 6000), max_size=30))
def test_a_transcript_gives_the_same_result_however_it_is_cut(name: str, cuts: list[int]) -> None:
    api, data = transcript(name)
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    whole = receive(api, [data], EXPECTED[name].choices)
    in_pieces = receive(api, [data[a:b] for a, b in pairwise(places)], EXPECTED[name].choices)
    untimed = ("kind", "text", "choice", "event")
    assert [[c[key] for key in untimed] for c in in_pieces.chunks.to_dicts()] == [
        [c[key] for key in untimed] for c in whole.chunks.to_dicts()
    ]
    for name_ in Received.__dataclass_fields__:
        if name_ != "chunks":
            assert getattr(in_pieces, name_) == getattr(whole, name_), name_


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stream_that_breaks_off_keeps_everything_received(name: str) -> None:
    """A broken stream gives a prefix of the output of the complete stream."""
    expected = EXPECTED[name]
    api, data = transcript(name)
    whole = receive(api, [data], expected.choices)
    events = SSEDecoder().feed(data)
    for count in range(len(events) + 1):
        accumulator = specification(api).accumulator(expected.choices)
        for read, event in enumerate(events[:count]):
            accumulator.add(event.data, float(read), read, event.event)
        received = accumulator.finish()
        kinds = [c["kind"] for c in received.chunks.to_dicts()]
        assert kinds == [c["kind"] for c in whole.chunks.to_dicts()][: len(kinds)]
        for choice, final in zip(received.choices, whole.choices, strict=False):
            assert final.text.startswith(choice.text)
            assert (final.reasoning or "").startswith(choice.reasoning or "")
        assert conclude(received, None)[0] in ("completed", "interrupted" if received.output else "failed")
