"""Prompts and answers of each API in the form of the conventions' JSON schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltatap.export.content import input_messages, output_messages, system_instructions


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "content": content}


def call(id_: str, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": id_, "name": "weather", "arguments": arguments}


def response(id_: str, given: Any) -> dict[str, Any]:
    return {"type": "tool_call_response", "id": id_, "response": given}


IMAGE = {"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}
ASKED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bonn"}'}}
CASES: list[tuple[str, dict[str, Any], list[dict[str, Any]] | None]] = [
    ("chat", {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "What?"}, IMAGE]}]},
     [{"role": "system", "parts": [text("Be brief.")]}, {"role": "user", "parts": [text("What?"), IMAGE]}]),
    ("chat", {"messages": [{"role": "assistant", "content": None, "tool_calls": [ASKED]}, {"role": "tool", "tool_call_id": "c1", "content": "57 °F"}]},
     [{"role": "assistant", "parts": [call("c1", {"city": "Bonn"})]}, {"role": "tool", "parts": [response("c1", "57 °F")]}]),
    ("completions", {"prompt": "Once"}, [{"role": "user", "parts": [text("Once")]}]),
    ("completions", {"prompt": ["a", [1, 2]]}, [{"role": "user", "parts": [text("a")]}, {"role": "user", "parts": [text("1"), text("2")]}]),
    ("responses", {"input": "Hi", "instructions": "Be brief."}, [{"role": "user", "parts": [text("Hi")]}]),
    ("responses", {"input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{broken"},
        {"type": "function_call_output", "call_id": "c1", "output": "57"},
        {"type": "item_reference", "id": "x"}]},
     [{"role": "user", "parts": [text("Hi")]}, {"role": "assistant", "parts": [call("c1", "{broken")]},
      {"role": "tool", "parts": [response("c1", "57")]}, {"role": "assistant", "parts": [{"type": "item_reference", "id": "x"}]}]),
    ("messages", {"system": "Be brief.", "messages": [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bonn"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "57"}]}]},
     [{"role": "assistant", "parts": [call("c1", {"city": "Bonn"})]}, {"role": "user", "parts": [response("c1", "57")]}]),
    ("chat", {"messages": [{"role": "user", "content": "a\ud83d"}, {"role": "assistant", "tool_calls": [
        {"id": "c1", "function": {"name": "weather", "arguments": '{"\\ud83d":"\\ud83d"}'}}]}]},
     [{"role": "user", "parts": [text("a\ufffd")]}, {"role": "assistant", "parts": [call("c1", {"\ufffd": "\ufffd"})]}]),
    ("chat", {}, None),
    ("of a newer version", {"messages": [{"role": "user", "content": "Hi"}]}, None),
]  # fmt: skip


@pytest.mark.parametrize(("api", "body", "expected"), CASES)
def test_the_messages_of_a_request(api: str, body: dict[str, Any], expected: list[dict[str, Any]] | None) -> None:
    found = input_messages(body, api)
    assert (None if found is None else json.loads(found)) == expected


def test_a_system_prompt_of_its_own_is_not_a_message() -> None:
    assert system_instructions({"instructions": "Be brief."}, "responses") == '[{"type":"text","content":"Be brief."}]'
    blocks = {"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "ü"}]}
    assert system_instructions(blocks, "messages") == '[{"type":"text","content":"a"},{"type":"text","content":"ü"}]'
    assert system_instructions({"messages": [{"role": "system", "content": "x"}]}, "chat") is None


def test_each_choice_is_a_message() -> None:
    empty = {"index": 0, "text": "", "finish_reason": None, "refusal": None, "reasoning": None, "tool_calls": None}
    server_side = {"type": "web_search_call", "id": "w"}
    found = output_messages(
        [
            empty | {"text": "Hi", "reasoning": "Hm", "finish_reason": "stop"},
            empty | {"refusal": "No", "finish_reason": "stop"},
            empty | {"tool_calls": json.dumps([ASKED, server_side]), "finish_reason": "tool_calls"},
            empty,
        ]
    )
    assert json.loads(found or "") == [
        {"role": "assistant", "parts": [{"type": "reasoning", "content": "Hm"}, text("Hi")], "finish_reason": "stop"},
        {"role": "assistant", "parts": [{"type": "refusal", "content": "No"}], "finish_reason": "stop"},
        {"role": "assistant", "parts": [call("c1", {"city": "Bonn"}), server_side], "finish_reason": "tool_calls"},
        {"role": "assistant", "parts": [], "finish_reason": "error"},
    ]
    assert output_messages([]) is None
