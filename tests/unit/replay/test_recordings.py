"""Rows as answers: which rows can be replayed, and their prompts and times."""

from __future__ import annotations

from typing import Any

import pytest

from deltatap.api.registry import specification
from deltatap.replay.recordings import prompt_of, recording, recordings_of
from tests.replaying import BODY, row


@pytest.mark.parametrize(("api", "named"), [(None, r"\(null\)"), ("of_a_newer_version", "of_a_newer_version")])
def test_a_row_of_an_unknown_api_is_left_out_with_a_reason(api: str | None, named: str) -> None:
    with pytest.raises(ValueError, match=f"does not know the API {named}$"):
        recording(row(api=api))


def test_a_row_that_reuses_an_answer_has_its_times() -> None:
    empty: dict[str, Any] = {"started_at": None, "chunks": [], "e2e_ms": None, "headers_ms": None}
    reusing = row(request_id="b", reused_from={"run_id": "run-1", "request_id": "a"}, **empty)
    (first, second), _ = recordings_of([row(), reusing])
    assert second.request_id == "b"
    assert second.frames(specification("chat")) == first.frames(specification("chat"))
    (alone,), _ = recordings_of([reusing])
    assert [frame.ms for frame in alone.frames(specification("chat"))][-1] == 0.0


@pytest.mark.parametrize(
    ("body", "api", "prompt"),
    [
        (BODY, "chat", "Say it."),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "chat", "x"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "chat", '[{"type":"image_url"}]'),
        ({"messages": []}, "chat", "[]"),
        ({}, "chat", ""),
        ({"prompt": "p"}, "completions", "p"),
        ({"input": [{"role": "user", "content": "i"}]}, "responses", "i"),
    ],
)  # fmt: skip
def test_the_last_prompt(body: dict[str, Any], api: Any, prompt: str) -> None:
    assert prompt_of(body, api) == prompt
