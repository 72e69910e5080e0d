"""Answers as files: their names and their content."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from deltatap.api.sse import SSEDecoder
from deltatap.replay.fixtures import name_of, write
from deltatap.replay.recordings import recording, recordings_of
from tests.replaying import error, plan, row

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("id_", "name"), [("a", "a.chat.sse"), ("../x y", None), ("é", None), ("", None), ("x" * 300, None)]
)
def test_a_fixture_has_a_safe_name(id_: str, name: str | None) -> None:
    found = name_of(id_, "chat")
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.chat\.sse", found)
    assert name in (None, found)


def test_fixtures_are_the_frames_with_their_times(tmp_path: Path) -> None:
    refused = row(request_id="no", status="failed", error=error("rate_limit", None, 429), chunks=[], choices=[])
    found = [recording(each) for each in (row(run_id="old"), row(), refused, row(request_id="w", mode="complete"))]
    names, reasons = write(found, tmp_path, None)
    assert sorted(names) == ["a.chat.sse", "no.chat.sse"]
    assert reasons == [
        "1 whole answer: only streams can be written",
        "1 stream of requests that have a newer stream",
    ]
    text = (tmp_path / "a.chat.sse").read_text()
    first, *blocks = text.split("\n\n")
    head = json.loads(first.removeprefix(": deltatap "))
    assert [head[name] for name in ("version", "run_id", "api", "status", "end", "end_ms")] == [
        1,
        "run-1",
        "chat",
        200,
        "close",
        22.0,
    ]
    assert blocks[0].startswith(': 10.000\ndata: {"id"')
    events = SSEDecoder().feed(text.encode())
    assert len(events) == len(plan(row()).writes), "a file is SSE text"
    assert b'"message":"No."' in SSEDecoder().feed((tmp_path / "no.chat.sse").read_bytes())[0].data
    called = row(
        choices=[{**row()["choices"][0], "tool_calls": '[{"id": "c", "function": {"name": "f", "arguments": ""}}]'}]
    )
    assert write([recording(called)], tmp_path, "completions")[1][0].startswith("a: legacy completions cannot express")


def test_a_request_has_one_fixture_of_an_api_even_if_it_was_captured_from_two(tmp_path: Path) -> None:
    made, _ = recordings_of([row(), row(api="messages", run_id="run-2")])
    assert write(made, tmp_path, "chat") == (
        ["a.chat.sse"],
        ["1 stream of requests that have a newer stream"],
    )
    assert b'"run_id":"run-2"' in (tmp_path / "a.chat.sse").read_bytes()
    assert sorted(write(made, tmp_path, None)[0]) == ["a.chat.sse", "a.messages.sse"]
