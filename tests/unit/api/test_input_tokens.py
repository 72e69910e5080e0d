"""Input tokens match the numbers that OpenAI published, and counts without a rule are approximate."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import pytest

from deltatap.api.input_tokens import InputTokens
from deltatap.api.registry import specification

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                "unit": {"type": "string", "description": "The unit of temperature to return", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location"],
        },
    },
}  # fmt: skip
ASKED = [
    {"role": "system", "content": "You are a helpful assistant that can answer to questions about the weather."},
    {"role": "user", "content": "What's the weather like in San Francisco?"},
]
NAMES: list[dict[str, Any]] = [
    {"role": "system", "content": "You are a helpful, pattern-following assistant that translates corporate jargon into plain English."},
    {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."},
    {"role": "system", "name": "example_assistant", "content": "Things working well together will increase revenue."},
    {"role": "system", "name": "example_user",
     "content": "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage."},
    {"role": "system", "name": "example_assistant", "content": "Let's talk later when we're less busy about how to do better."},
    {"role": "user", "content": "This late pivot means we don't have time to boil the ocean for the client deliverable."},
]  # fmt: skip


def count(body: dict[str, Any], api: str, model: str, encoding: str) -> InputTokens:
    return specification(api).count_input(body, model, encoding)


def chat(model: str, encoding: str = "o200k_base", **body: Any) -> InputTokens:
    return count(body, "chat", model, encoding)


@pytest.mark.parametrize(
    ("model", "encoding", "tokens"),
    [
        ("gpt-4", "cl100k_base", 129),
        ("gpt-3.5-turbo-0301", "cl100k_base", 127),
        ("gpt-4o", "o200k_base", 124),
        ("gpt-4o-mini", "o200k_base", 124),
    ],
)
def test_messages_with_names_from_the_cookbook(model: str, encoding: str, tokens: int) -> None:
    """OpenAI's cookbook, "How to count tokens with tiktoken", section 6."""
    assert chat(model, encoding, messages=NAMES) == InputTokens(tokens)


@pytest.mark.parametrize(
    ("model", "encoding", "tokens"),
    [
        ("gpt-3.5-turbo", "cl100k_base", 105),
        ("gpt-4", "cl100k_base", 105),
        ("gpt-4o", "o200k_base", 101),
        ("gpt-4o-mini", "o200k_base", 101),
    ],
)
def test_a_tool_from_the_cookbook(model: str, encoding: str, tokens: int) -> None:
    """OpenAI's cookbook, section 7, tool calls: the counts of its function, which match the API's."""
    assert chat(model, encoding, messages=ASKED, tools=[WEATHER]) == InputTokens(tokens)


def png(width: int, height: int) -> str:
    """The first bytes of a PNG of this size, as a data URL."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def image(model: str, url: str, detail: str | None = None) -> InputTokens:
    given = {"url": url} | ({"detail": detail} if detail else {})
    without = chat(model, messages=[{"role": "user", "content": []}])
    with_it = chat(model, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": given}]}])
    return InputTokens(with_it.tokens - without.tokens, with_it.approximate)


@pytest.mark.parametrize(
    ("model", "size", "detail", "tokens"),
    [
        ("gpt-4o", (1024, 1024), "high", 765),
        ("gpt-4o", (2048, 4096), "high", 1105),
        ("gpt-4o", (4096, 8192), "low", 85),
        ("gpt-4o", (128, 64), None, 255),
        ("openai/gpt-4o-2024-08-06", (1024, 1024), None, 765),
        ("gpt-4o-mini", (1024, 1024), "high", 2833 + 4 * 5667),
        ("gpt-4.1", (1024, 1024), None, 765),
        ("o1", (1024, 1024), None, 675),
        ("gpt-5", (1024, 1024), None, 630),
        ("gpt-5-2025-08-07", (1024, 1024), "low", 70),
        ("gpt-4.1-mini", (1024, 1024), None, 1659),
        ("gpt-4.1-mini", (1800, 2400), None, 2352),
        ("o4-mini", (1800, 2400), None, 2497),
    ],
)
def test_images_from_the_guide(model: str, size: tuple[int, int], detail: str | None, tokens: int) -> None:
    """OpenAI's guide "Images and vision": its examples are 1024 x 1024, 2048 x 4096, 4096 x 8192 low, 1800 x 2400."""
    assert image(model, png(*size), detail) == InputTokens(tokens)


@pytest.mark.parametrize(
    "url", ["https://example.com/x.png", "data:image/png;base64,???", "data:", "data:image/png;base64,AAAA"]
)
def test_an_image_of_unknown_size_is_approximate(url: str) -> None:
    assert image("gpt-4o", url) == InputTokens(765, approximate=True)
    assert image("gpt-4o", url, "low") == InputTokens(85), "the size does not matter in low detail"
    assert image("gpt-4.1-mini", url, "low").approximate, "the size matters for models that count patches"


def test_an_image_for_an_unknown_model_is_approximate() -> None:
    assert image("llava", png(100, 100)) == InputTokens(255, approximate=True)


def test_text_parts_count_like_the_text() -> None:
    parts = [{"type": "text", "text": "Hello there"}]
    plain = chat("gpt-4o", messages=[{"role": "user", "content": "Hello there"}])
    assert chat("gpt-4o", messages=[{"role": "user", "content": parts}]) == plain
    assert not plain.approximate


HI = [{"role": "user", "content": "Hi"}]
TEN_SECONDS = {"type": "input_audio", "input_audio": {"data": "A" * 9999, "format": "wav"}}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [TEN_SECONDS]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "A" * 9999}}]}]},
        {"messages": HI, "response_format": {"type": "json_object"}},
        {"messages": HI, "functions": [{"name": "f"}]},
        {"messages": HI, "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": HI, "tools": [{"type": "custom", "custom": {"name": "f"}}]},
        {"messages": HI, "tools": [3]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function"}]}]},
    ],
)
def test_input_without_a_published_rule_is_approximate(body: dict[str, Any]) -> None:
    counted = chat("gpt-4o", **body)
    assert counted.approximate
    assert counted.tokens < 60, "base64 is not text"


def test_schemas_and_nested_properties_are_counted() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert chat("gpt-4o", messages=HI, response_format=schema).tokens > chat("gpt-4o", messages=HI).tokens + 10
    assert chat("gpt-4o", messages=HI, response_format={"type": "text"}) == chat("gpt-4o", messages=HI)
    nested = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"properties": {
        "a": {"type": "array", "description": "d", "items": {"type": "string"}}}}}}  # fmt: skip
    assert chat("gpt-4o", messages=HI, tools=[nested]).approximate
    assert chat("gpt-4.1", messages=ASKED, tools=[WEATHER]) == InputTokens(101, approximate=True)


def test_legacy_completions_count_only_the_text() -> None:
    assert count({"prompt": "Hello there"}, "completions", "gpt-3.5-turbo-instruct", "cl100k_base") == InputTokens(2)
    assert count({"prompt": "a", "suffix": "b"}, "completions", "m", "cl100k_base").approximate
    assert count({"prompt": ["a", "b"]}, "completions", "m", "cl100k_base") == InputTokens(2, approximate=True)


def test_responses_count_like_the_equivalent_chat() -> None:
    alike = chat("gpt-4o", messages=[{"role": "system", "content": "Be brief."}, *HI]).tokens
    body = {"input": "Hi", "instructions": "Be brief."}
    assert count(body, "responses", "gpt-4o", "o200k_base") == InputTokens(alike, approximate=True)
    items = {
        "input": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        ]
    }
    assert count(items, "responses", "gpt-4o", "o200k_base") == InputTokens(alike, approximate=True)
    tool = {"type": "function", **WEATHER["function"]}
    with_tool = count({"input": "Hi", "tools": [tool]}, "responses", "gpt-4o", "o200k_base").tokens
    assert with_tool == chat("gpt-4o", messages=HI, tools=[WEATHER]).tokens
