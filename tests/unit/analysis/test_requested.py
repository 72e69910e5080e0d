"""How a request is shown: its prompt, and its id."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltatap.analysis.requested import BODY, prompt_line, short_id, shortened


def chat(*messages: tuple[str, Any]) -> str:
    return json.dumps({"messages": [{"content": content, "role": role} for role, content in messages], "model": "m"})


IMAGE = [{"type": "image_url", "image_url": {"url": "d"}}, {"type": "text", "text": "What is this?"}]


@pytest.mark.parametrize(
    ("api", "body", "prompt"),
    [
        ("chat", chat(("system", "Be brief."), ("user", "Say\n  hello")), "Say hello"),
        ("chat", chat(("user", "Look it up"), ("assistant", None), ("tool", "42")), "Look it up"),
        ("chat", chat(("user", IMAGE)), "[image_url] What is this?"),
        ("chat", chat(("system", "Begin")), "Begin"),
        ("chat", chat(("user", None)), ""),
        ("chat", '{"messages": "text"}', "text"),
        ("chat", '{"messages": []}', ""),
        ("chat", "[]", ""),
        ("chat", "no JSON", ""),
        ("chat", None, ""),
        ("messages", '{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}', "Hi"),
        ("responses", '{"input": "Hi"}', "Hi"),
        ("responses", '{"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}', "Hi"),
        ("completions", '{"prompt": ["a", "b"]}', "b"),
        ("completions", '{"prompt": [1, 2]}', ""),
        ("an API of a newer version", '{"input": "Hi"}', ""),
    ],
)
def test_the_prompt_is_the_last_message_of_the_user(api: str, body: str | None, prompt: str) -> None:
    assert prompt_line(body, api) == prompt


def test_the_start_of_a_body_is_enough() -> None:
    earlier = ("user", "Earlier"), ("assistant", "Yes")
    body = chat(*earlier, ("user", "Summarise: " + "word " * BODY))
    assert prompt_line(body[:BODY], "chat", 30) == "Summarise: word word word wor…"


def test_a_hash_is_cut_and_any_other_id_is_whole() -> None:
    assert short_id("0123456789abcdef" * 4) == "0123456789ab"
    for whole in ("0123456789ABCDEF" * 4, "a" * 63, "a" * 65, ""):
        assert short_id(whole) == whole


def test_a_text_is_cut_to_its_length() -> None:
    assert shortened(" a\n b ", 3) == "a b"
    assert shortened("a b c", 4) == "a b…"
    assert shortened("a bcd", 3) == "a…"
