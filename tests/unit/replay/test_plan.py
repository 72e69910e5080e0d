"""What is sent for a captured answer, and when: its events, its end, its faults."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from typing import Any

import pytest

from deltatap.api.from_row import CannotSayError
from deltatap.api.registry import NAMES
from deltatap.replay.options import BadOptionError, Place
from tests.replaying import error, plan, row


def decoded(writes: Any) -> list[tuple[float, Any]]:
    texts = [(at, frame.decode().removeprefix("data: ").strip()) for at, frame in writes]
    return [(at, text if text == "[DONE]" else json.loads(text)) for at, text in texts]


def test_every_event_has_its_time() -> None:
    found = plan(row())
    frames = decoded(found.writes)
    assert [at for at, _ in frames] == [10.0, 12.0, 12.0, 20.0, 21.0, 21.0]
    assert [frame["choices"][0]["delta"] for _, frame in frames[:4]] == [
        {"role": "assistant", "content": ""}, {"content": "So"}, {"content": " be it."}, {},
    ]  # fmt: skip
    assert frames[3][1]["choices"][0]["finish_reason"] == "stop"
    assert frames[4][1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert frames[5][1] == "[DONE]"
    assert (found.begin_ms, found.end_ms, found.end, found.status) == (9.0, 22.0, "close", 200)


@pytest.mark.parametrize("asked", NAMES)
def test_every_api_sends_the_texts_at_their_times(asked: str) -> None:
    whole = json.loads(plan(row(), asked, streamed=False).writes[0][1])
    assert "So be it." in json.dumps(whole)
    frames = [(at, frame.decode()) for at, frame in plan(row(), asked).writes]
    for text in ('"So"', '" be it."'):
        assert next(at for at, frame in frames if text in frame) == 12.0
    assert max(at for at, _ in frames) == 21.0


@pytest.mark.parametrize(
    ("failure", "end"),
    [
        (error("stream_interrupted", "ReadError", 200), "cut"),
        (error("stream_interrupted", None, 200), "close"),
        (error("connection", "ConnectError"), "cut"),
        (error("cancelled"), "cut"),
        (error("timeout", "idle"), "stall"),
        (error("timeout", "total", 200), "stall"),
        (error("timeout", "connect"), "cut"),
        (error("stream_error", "server_error", 200), "close"),
        (error("protocol", None, 200), "close"),
        (error("internal", "cut"), "cut"),
        (error("internal", "complete"), "close"),
    ],
)
def test_a_stream_ends_again_as_it_ended(failure: dict[str, Any], end: str) -> None:
    found = plan(row(status="interrupted", error=failure))
    assert found.end == end
    assert b"[DONE]" not in found.writes[-1][1]


def test_chunks_without_times_arrive_with_those_before_them() -> None:
    chunks = [chunk | {"ms": None if chunk["event"] in (0, 2) else chunk["ms"]} for chunk in row()["chunks"]]
    assert [at for at, _ in plan(row(chunks=chunks)).writes] == [0.0, 12.0, 12.0, 20.0, 21.0, 21.0]


def test_an_event_that_could_not_be_decoded_is_broken_again() -> None:
    found = plan(row(status="interrupted", error=error("protocol", None, 200)))
    assert found.writes[-1] == (22.0, b"data: {\n\n")
    assert plan(row(status="interrupted", error=error("protocol", None, 200)), streamed=False).writes[0][1] == b"{"


@pytest.mark.parametrize(
    ("asked", "code", "status", "body"),
    [
        ("chat", "slow_down", 429, {"message": "No.", "type": "rate_limit_error", "param": None, "code": "slow_down"}),
        ("chat", "server_error", 500, {"message": "No.", "type": "server_error", "param": None, "code": None}),
        ("chat", "insufficient_quota", 429,
         {"message": "No.", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}),
        ("responses", None, 400, {"message": "No.", "type": None, "param": None, "code": None}),
        ("messages", "overloaded_error", 529, {"message": "No.", "type": "overloaded_error"}),
        ("messages", None, 404, {"message": "No.", "type": "not_found_error"}),
    ],
)  # fmt: skip
def test_a_refusal_is_replayed_as_the_server_sent_it(
    asked: str, code: str | None, status: int, body: dict[str, Any]
) -> None:
    failure = error("rate_limit", code, status, retry_after_s=2.0)
    for streamed in (True, False):
        found = plan(row(status="failed", error=failure, chunks=[], choices=[]), asked, streamed=streamed)
        assert (found.status, found.end, found.headers["retry-after"]) == (status, "close", "2")
        assert found.headers["content-type"] == "application/json"
        assert json.loads(found.writes[0][1])["error"] == body


def test_a_call_without_a_response_gets_none() -> None:
    for status in (None, 999):
        found = plan(row(status="failed", error=error("connection", None, status), chunks=[], choices=[]))
        assert (found.status, found.end, found.writes) == (0, "cut", ())


RAW = [
    {"event": "response.output_text.delta", "data": b'{"delta": "S\xc3\xa9"}'},
    {"event": "message", "data": b"two\nlines"},
    {"event": "message", "data": b"[DONE]"},
]


def test_kept_events_are_replayed_byte_by_byte_through_their_own_api() -> None:
    kept = row(api="responses", raw=RAW, request=json.dumps({"model": "m", "input": "Say it."}))
    assert plan(kept, "responses").writes == (
        (10.0, b'event: response.output_text.delta\ndata: {"delta": "S\xc3\xa9"}\n\n'),
        (12.0, b"data: two\ndata: lines\n\n"),
        (12.0, b"data: [DONE]\n\n"),
    )
    assert b"chat.completion.chunk" in plan(kept, "chat").writes[0][1]
    assert (
        b"two"
        not in plan({**kept, "status": "interrupted", "error": error("internal", "cut")}, "responses").writes[0][1]
    )


def texts(found: Any) -> list[tuple[float, str]]:
    return [
        (at, text)
        for at, frame in decoded(found.writes)
        if frame != "[DONE]" and frame["choices"] and (text := frame["choices"][0]["delta"].get("content"))
    ]


@pytest.mark.parametrize(
    ("options", "sent", "end"),
    [
        ({"cut": Place(0, None)}, [], ("cut", 0.0)),
        ({"cut": Place(1, None)}, [(12.0, "So")], ("cut", 12.0)),
        ({"cut": Place(None, 15.0)}, [(12.0, "So"), (12.0, " be it.")], ("cut", 15.0)),
        ({"cut": Place(99, None)}, [(12.0, "So"), (12.0, " be it.")], ("close", 22.0)),
        ({"stall": Place(1, None)}, [(12.0, "So")], ("stall", 12.0)),
        ({"stall": Place(1, None), "stall_ms": 5.0}, [(12.0, "So"), (17.0, " be it.")], ("close", 27.0)),
        ({"loop": 2}, [(12.0, "So"), (12.0, " be it."), (34.0, "So"), (34.0, " be it.")], ("close", 44.0)),
        ({"from_ms": 11.0}, [(1.0, "So"), (1.0, " be it.")], ("close", 11.0)),
        ({"speed": 2.0}, [(6.0, "So"), (6.0, " be it.")], ("close", 11.0)),
        ({"speed": 0.0}, [(0.0, "So"), (0.0, " be it.")], ("close", 0.0)),
    ],
)  # fmt: skip
def test_a_fault_changes_the_plan(options: dict[str, Any], sent: list[Any], end: tuple[str, float]) -> None:
    found = plan(row(), **options)
    assert texts(found) == sent
    assert (found.end, found.end_ms) == end


def test_the_usage_can_be_left_out() -> None:
    for asked in ("chat", "responses"):
        sent = b"".join(frame for _, frame in plan(row(), asked, drop_usage=True).writes)
        assert b'_tokens"' not in sent
        assert b"So" in sent


def test_more_cached_tokens_than_input_tokens_give_no_negative_count() -> None:
    used = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "cached_input_tokens": 5}
    body = json.loads(plan(row(usage_reported=used), "messages", streamed=False).writes[0][1])
    assert (body["usage"]["input_tokens"], body["usage"]["cache_read_input_tokens"]) == (0, 5)


def test_events_are_merged_split_and_slowed_down() -> None:
    whole = b"".join(frame for _, frame in plan(row()).writes)
    merged = plan(row(), merge=4).writes
    assert [at for at, _ in merged] == [20.0, 21.0]
    split = plan(row(), split=50).writes
    assert all(len(frame) <= 50 for _, frame in split)
    assert all(later > earlier for (earlier, _), (later, _) in itertools.pairwise(split))
    slow = plan(row(), bytes_per_s=1000).writes
    assert slow[-1][0] == pytest.approx(10 + len(whole), abs=1)
    for writes in (merged, split, slow):
        assert b"".join(frame for _, frame in writes) == whole


@pytest.mark.parametrize("streamed", [True, False])
def test_a_whole_answer_can_be_cut_and_stalled(*, streamed: bool) -> None:
    found = row(mode="complete", chunks=[])
    assert plan(found, streamed=streamed, cut=Place(0, None)).end == "cut"
    assert plan(found, streamed=streamed, stall=Place(0, None)).end == "stall"


@pytest.mark.parametrize("asked", NAMES)
@pytest.mark.parametrize(
    "calls",
    [
        [{}],
        [{"type": None}],
        [{"type": "web_search_call"}],
        [{"type": "web_search_call", "function": {}}],
        [{"type": "web_search_call", "function": {"name": "search", "arguments": {}}}],
        [5],
    ],
)
def test_odd_calls_do_not_fail_a_replay(asked: str, calls: list[Any]) -> None:
    choice = {"index": 0, "text": "", "finish_reason": None, "refusal": None, "reasoning": None}
    found = row(api="responses", choices=[{**choice, "tool_calls": json.dumps(calls)}], chunks=[])
    for streamed in (True, False):
        with suppress(CannotSayError):
            plan(found, asked, streamed=streamed)


def test_half_the_arguments_of_a_call_are_no_problem() -> None:
    call = {"id": "c", "type": "shell_call", "function": {"name": "shell", "arguments": "ls\npwd\n"}}
    choice = {"index": 0, "text": "", "finish_reason": None, "refusal": None, "reasoning": None}
    found = row(api="responses", choices=[{**choice, "tool_calls": json.dumps([call])}], chunks=[])
    assert plan(found, "responses").writes


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_without_a_body_has_none(status: int) -> None:
    found = row(status="failed", error=error("http", None, status), chunks=[], choices=[])
    assert plan(found, streamed=True).writes == ()


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({"loop": 10**9}, {}),
        ({"split": 1, "loop": 10**4}, {}),
        ({"loop": 10**6 + 1}, {"mode": "complete", "chunks": []}),
    ],
)
def test_options_cannot_fill_the_memory(options: dict[str, Any], columns: dict[str, Any]) -> None:
    with pytest.raises(BadOptionError, match="pieces of this answer, more than 1,000,000"):
        plan(row(**columns), **options)


@pytest.mark.parametrize("type_", ["\ud800", "error\n\nevent: message_stop", ""])
def test_an_error_of_an_odd_type_is_one_event(type_: str) -> None:
    text = json.dumps({"type": type_, "error": {"message": "No."}})
    chunk = {"ms": 1.0, "gap_ms": None, "text": text, "kind": "error", "choice": -1, "event": 0, "read": 0}
    failed = row(api="messages", chunks=[chunk], status="failed", error=error("stream_error", None, 200), choices=[])
    assert b"".join(data for _, data in plan(failed, "messages").writes) == f"data: {text}\n\n".encode()
