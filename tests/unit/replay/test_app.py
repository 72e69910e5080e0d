"""Recordings, and the lookup of the recording for a request. tests/spark/test_replay.py tests the endpoint itself."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.testclient import TestClient

from deltatap.prompts import request_hash_of
from deltatap.replay.app import Replay
from deltatap.replay.recordings import prompt_of, recording

BODY = {"model": "m", "messages": [{"role": "user", "content": "Say it."}], "stream": True}


def row(**columns: Any) -> dict[str, Any]:
    chunks = [
        {"ms": 10.0, "gap_ms": None, "text": "", "kind": "role", "choice": 0, "event": 0, "read": 0},
        {"ms": 12.0, "gap_ms": None, "text": "So", "kind": "content", "choice": 0, "event": 1, "read": 1},
        {"ms": 12.0, "gap_ms": 0.0, "text": " be it.", "kind": "content", "choice": 0, "event": 2, "read": 1},
        {"ms": 20.0, "gap_ms": None, "text": "stop", "kind": "finish", "choice": 0, "event": 3, "read": 2},
        {"ms": 21.0, "gap_ms": None, "text": "", "kind": "usage", "choice": -1, "event": 4, "read": 2},
    ]
    return {
        "request_id": "a", "request_hash": request_hash_of(BODY), "request": json.dumps(BODY), "api": "chat",
        "mode": "stream", "status": "completed", "error": None, "chunks": chunks, "raw": None, "headers_ms": 9.0,
        "e2e_ms": 22.0, "response_id": "chatcmpl-1", "response_model": "m-1", "request_model": "m",
        "started_at": datetime(2026, 11, 21, tzinfo=UTC), "choices": [
            {"index": 0, "text": "So be it.", "finish_reason": "stop", "refusal": None, "reasoning": None,
             "tool_calls": None}],
        "usage_reported": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
    } | columns  # fmt: skip


def decoded(frames: tuple[tuple[float, bytes], ...]) -> list[tuple[float, Any]]:
    texts = [(at, frame.decode().removeprefix("data: ").strip()) for at, frame in frames]
    return [(at, text if text == "[DONE]" else json.loads(text)) for at, text in texts]


def test_every_event_has_its_time() -> None:
    found = recording(row())
    frames = decoded(found.frames)
    assert [at for at, _ in frames] == [10.0, 12.0, 12.0, 20.0, 21.0, 21.0]
    assert [frame["choices"][0]["delta"] for _, frame in frames[:4]] == [
        {"role": "assistant", "content": ""}, {"content": "So"}, {"content": " be it."}, {},
    ]  # fmt: skip
    assert frames[3][1]["choices"][0]["finish_reason"] == "stop"
    assert frames[4][1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert frames[5][1] == "[DONE]"
    assert (found.headers_ms, found.end_ms, found.broken) == (9.0, 22.0, False)


def test_a_broken_stream_has_no_end() -> None:
    found = recording(row(status="interrupted", error={"type": "connection", "http_status": 200}))
    assert found.broken
    assert decoded(found.frames)[-1][1] != "[DONE]"


def test_a_refusal_has_the_status_and_the_message_of_the_server() -> None:
    refused = {"type": "rate_limit", "code": "slow_down", "message": "Too many.", "http_status": 429}
    found = recording(row(status="failed", error=refused, chunks=[], choices=[]))
    assert (found.status, found.broken) == (429, False)
    assert json.loads(found.frames[0][1])["error"] == {
        "message": "Too many.", "type": "rate_limit", "param": None, "code": "slow_down",
    }  # fmt: skip
    nothing = recording(row(status="failed", error={"type": "connection"}, chunks=[], choices=[]))
    assert (nothing.status, nothing.broken) == (0, True)


@pytest.mark.parametrize(("api", "named"), [(None, r"\(null\)"), ("of_a_newer_version", "of_a_newer_version")])
def test_a_row_of_an_unknown_api_is_left_out_with_a_reason(api: str | None, named: str) -> None:
    with pytest.raises(ValueError, match=f"does not know the API {named}$"):
        recording(row(api=api))


def test_kept_events_are_replayed_byte_by_byte() -> None:
    raw = [
        {"event": "response.output_text.delta", "data": b'{"delta": "S\xc3\xa9"}'},
        {"event": "message", "data": b"two\nlines"},
        {"event": "message", "data": b"[DONE]"},
    ]
    found = recording(row(api="responses", raw=raw, request=json.dumps({"model": "m", "input": "Say it."})))
    assert found.frames == (
        (10.0, b'event: response.output_text.delta\ndata: {"delta": "S\xc3\xa9"}\n\n'),
        (12.0, b"data: two\ndata: lines\n\n"),
        (12.0, b"data: [DONE]\n\n"),
    )
    for mode in ("stream", "complete"):
        with pytest.raises(ValueError, match="keep_raw"):
            recording(row(api="responses", mode=mode))


def test_a_request_is_found_by_its_body_then_by_its_prompt() -> None:
    first, newer = recording(row(request_id="old")), recording(row(request_id="new"))
    whole = recording(row(request_id="whole", mode="complete"))
    replay = Replay([first, newer, whole])
    streamed, asked = replay.find(BODY, "chat"), {**BODY, "stream": False}
    assert streamed is newer
    assert replay.find(asked, "chat") is whole
    assert replay.find({**BODY, "model": "another"}, "chat") is newer, "by its last prompt"
    assert replay.find({**BODY, "messages": [{"role": "user", "content": "Else."}]}, "chat") is None
    assert replay.find({"model": "m", "prompt": "Say it.", "stream": True}, "completions") is None, "another API"


def test_a_request_without_an_answer_is_told_what_to_ask_for() -> None:
    streamed, whole = recording(row()), recording(row(mode="complete"))
    asked = {**BODY, "stream": False}
    assert Replay([streamed]).why_none(asked, "chat").endswith('only a streamed one: set "stream": true to get it')
    assert Replay([whole]).why_none(BODY, "chat").endswith("only a whole one: leave out stream to get it")
    other = {"model": "m", "prompt": "Say it.", "stream": True}
    assert Replay([streamed]).why_none(other, "completions").endswith("another API: ask /v1/chat/completions")
    for found in ([], [whole]):
        assert Replay(found).why_none(other, "completions").endswith("nor its last prompt matches")


@pytest.mark.parametrize(
    ("body", "api", "prompt"),
    [
        (BODY, "chat", "Say it."),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "chat", '[{"type":"text","text":"x"}]'),
        ({"messages": []}, "chat", "[]"),
        ({}, "chat", ""),
        ({"prompt": "p"}, "completions", "p"),
        ({"input": [{"role": "user", "content": "i"}]}, "responses", "i"),
    ],
)  # fmt: skip
def test_the_last_prompt(body: dict[str, Any], api: Any, prompt: str) -> None:
    assert prompt_of(body, api) == prompt


async def called(replay: Replay, body: Any) -> tuple[int, bytes]:
    """Call the endpoint of chat completions. Returns the status and the body."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    path = {"path": "/v1/chat/completions", "root_path": "", "query_string": b"", "headers": []}
    scope = {"type": "http", "method": "POST", "extensions": {"transport": None}, **path}
    await replay.application()(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_the_endpoint_sends_the_frames_of_a_recording_and_refuses_other_requests() -> None:
    replay = Replay([recording(row())], speed=0)
    frames = b"".join(frame for _, frame in recording(row()).frames)
    assert asyncio.run(called(replay, BODY)) == (200, frames)
    status, refusal = asyncio.run(called(replay, BODY | {"stream": False}))
    assert (status, json.loads(refusal)["error"]["type"]) == (404, "invalid_request_error")
    assert asyncio.run(called(replay, [BODY]))[0] == 400


def test_the_captured_models_are_listed() -> None:
    rows = [row(), row(request_hash="b", request_model="n"), row(request_hash="c", request_model=None)]
    client = TestClient(Replay(map(recording, rows)).application())
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["m", "n"]
