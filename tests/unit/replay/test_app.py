"""The response to a request: the answer, its form and its times. tests/spark/test_replay.py tests real clients."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from deltatap.api.from_row import CannotSayError
from deltatap.api.registry import NAMES, specification
from deltatap.api.sse import SSEDecoder
from deltatap.prompts import request_hash_of
from deltatap.replay.app import Replay
from deltatap.replay.fixtures import name_of, write
from deltatap.replay.library import AmbiguousError, Library, NotFoundError
from deltatap.replay.options import BadOptionError, Options, Place, options_of, without_selection
from deltatap.replay.plan import plan_of
from deltatap.replay.recordings import prompt_of, recording, recordings_of

if TYPE_CHECKING:
    from pathlib import Path

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
        "run_id": "run-1", "request_id": "a", "text": "So be it.", "request_hash": request_hash_of(BODY), "request": json.dumps(BODY), "api": "chat",
        "mode": "stream", "status": "completed", "error": None, "chunks": chunks, "raw": None, "headers_ms": 9.0,
        "e2e_ms": 22.0, "response_id": "chatcmpl-1", "response_model": "m-1", "request_model": "m",
        "started_at": datetime(2026, 11, 21, tzinfo=UTC), "choices": [
            {"index": 0, "text": "So be it.", "finish_reason": "stop", "refusal": None, "reasoning": None,
             "tool_calls": None}],
        "usage_reported": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
    } | columns  # fmt: skip


def plan(found: Any, asked: str = "chat", *, streamed: bool = True, speed: float = 1.0, **options: Any) -> Any:
    return plan_of(recording(found), specification(asked), Options(**options), streamed=streamed, speed=speed)


def decoded(writes: Any) -> list[tuple[float, Any]]:
    texts = [(at, frame.decode().removeprefix("data: ").strip()) for at, frame in writes]
    return [(at, text if text == "[DONE]" else json.loads(text)) for at, text in texts]


def error(type_: str, code: str | None = None, status: int | None = None, **more: Any) -> dict[str, Any]:
    return {"type": type_, "code": code, "message": "No.", "http_status": status, "retry_after_s": None, **more}


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
    assert (sorted(names), reasons) == (["a.chat.sse", "no.chat.sse"], [])
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


def test_options_come_from_the_query_the_headers_and_the_metadata() -> None:
    body = {"metadata": {"deltatap_request_id": "a", "deltatap_run_id": "b", "own": "c"}, "model": "m"}
    headers = [("x-deltatap-run-id", "h"), ("x-deltatap-from-ms", "1.5"), ("accept", "x")]
    query = [("run_id", "q"), ("cut", "12"), ("stall", "500ms"), ("drop_usage", ""), ("api-version", "1")]
    assert options_of(query, headers, body) == Options(
        run_id="q", request_id="a", from_ms=1.5, cut=Place(12, None), stall=Place(None, 500.0), drop_usage=True
    )
    assert without_selection(body) == {"model": "m", "metadata": {"own": "c"}}
    assert without_selection({"metadata": {"deltatap_run_id": "b"}, "model": "m"}) == {"model": "m"}
    assert (
        options_of([], [], {"metadata": None}) == options_of([], [], {"metadata": {"deltatap_run_id": 1}}) == Options()
    )


@pytest.mark.parametrize(
    ("query", "named"),
    [
        (("ctu", "8"), "no option ctu; the options are run_id, "),
        (("cut", "8s"), "cut: expected a number of chunks"),
        (("cut", "-1"), "cut: expected a number of chunks"),
        (("speed", "nan"), "speed: expected a number"),
        (("speed", "1e99"), "speed: expected a number"),
        (("loop", "0"), "loop: expected a whole number from 1"),
        (("loop", "1.5"), "loop: expected a whole number from 1"),
        (("merge", "x"), "merge: expected a number"),
        (("drop_usage", "maybe"), "drop_usage: expected true or false"),
        (("request_id", ""), "request_id: expected an id"),
    ],
)
def test_a_wrong_option_is_named(query: tuple[str, str], named: str) -> None:
    with pytest.raises(BadOptionError, match=named):
        options_of([query], [], {})


def find(
    found: list[dict[str, Any]], body: Any = BODY, api: str = "chat", *, streamed: bool = True, **options: Any
) -> Any:
    made = Library(map(recording, found)).find(body, api, Options(**options), streamed=streamed)
    return made.request_id, made.run_id


OTHER = {"model": "m", "messages": [{"role": "system", "content": "New."}, {"role": "user", "content": "Say it."}]}
FAILED = {"status": "failed", "error": error("rate_limit", None, 429)}


def test_an_answer_to_the_same_body_is_found_in_the_same_mode_completed_first_then_the_newest() -> None:
    rows = [
        row(request_id="old"),
        row(request_id="new"),
        row(request_id="failed", **FAILED),
        row(request_id="w", mode="complete"),
    ]
    assert find(rows)[0] == "new"
    assert find(rows, streamed=False)[0] == "w"
    assert find(rows[2:3])[0] == "failed"
    assert find(rows[:1], streamed=False)[0] == "old", "a stream is an answer to a request for a whole one"


def test_an_answer_is_found_by_its_request_id_and_run() -> None:
    rows = [row(run_id="x"), row(run_id="y"), row(run_id="y", request_id="b")]
    assert find(rows, {}, request_id="a") == ("a", "y")
    assert find(rows, {}, request_id="a", run_id="x") == ("a", "x")
    assert find(rows, run_id="x") == ("a", "x")
    assert find(rows, {"messages": "else"}, "messages", request_id="b") == ("b", "y")
    wrong: list[dict[str, Any]] = [{"request_id": "c"}, {"run_id": "z"}, {"request_id": "b", "run_id": "x"}, {}]
    for options in wrong:
        with pytest.raises(NotFoundError):
            find(rows, {}, **options)


def test_an_answer_to_the_same_prompt_has_the_same_model() -> None:
    other = row(request_model="n", request_hash="h", **FAILED)
    assert find([row(), other], OTHER) == ("a", "run-1")
    with pytest.raises(NotFoundError, match=r"no answer of the model k was captured for this prompt, only of m, n"):
        find([row(), other], {**OTHER, "model": "k"})
    with pytest.raises(NotFoundError, match="neither its request_hash nor its last prompt"):
        find([row()], {**OTHER, "messages": [{"role": "user", "content": "Else."}]})
    without = {name: value for name, value in OTHER.items() if name != "model"}
    assert find([row()], without) == ("a", "run-1")
    with pytest.raises(AmbiguousError):
        find([row(), row(request_model="n", request_hash="h")], without)


def test_different_requests_with_the_same_prompt_are_ambiguous() -> None:
    rows = [row(request_id="a", request_hash="1"), row(request_id="b", request_hash="2")]
    with pytest.raises(AmbiguousError, match="2 captured answers have this last prompt and model") as caught:
        find(rows, OTHER)
    assert [each.request_id for each in caught.value.choices] == ["a", "b"]
    assert find([rows[0], rows[1] | FAILED], OTHER)[0] == "a", "completed rows come first"
    assert find([rows[0], rows[1] | {"request_id": "a", "run_id": "later"}], OTHER) == ("a", "later")


def test_answers_of_the_same_api_come_first() -> None:
    request = json.dumps({"model": "m", "input": "Say it."})
    rows = [row(request_id="own", api="responses", request=request, request_hash="r"), row()]
    assert find(rows, {"model": "m", "input": "Say it.", "x": 1}, "responses")[0] == "own"
    assert find(rows, {"model": "m", "input": "Say it."}, "messages", request_id="own")[0] == "own"
    assert find(rows[1:], {"model": "m", "prompt": "Say it."}, "completions")[0] == "a"


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


def request(
    replay: Replay, path: str = "/v1/chat/completions", *, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Call the endpoint: status, headers and body of the response. Without a body, the request is a GET."""
    sent: list[Any] = []
    bodies = [json.dumps(body).encode()]

    async def receive() -> dict[str, Any]:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    encoded = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": "GET" if body is None else "POST", "extensions": {"transport": None},
             "path": path, "root_path": "", "query_string": query.encode(), "headers": encoded}  # fmt: skip
    asyncio.run(replay.application()(scope, receive, send))
    got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], got, b"".join(message.get("body", b"") for message in sent)


def test_the_endpoint_sends_the_plan_and_refuses_other_requests() -> None:
    replay = Replay([recording(row(request_id="n\u00e4me"))], speed=0)
    frames = b"".join(frame for _, frame in plan(row()).writes)
    status, headers, body = request(replay, body=BODY)
    assert (status, body) == (200, frames)
    assert (headers["x-deltatap-request-id"], headers["x-deltatap-run-id"]) == ("n%C3%A4me", "run-1")
    assert request(replay, "/v1/chat/completions?request_id=n%C3%A4me")[2] == frames, "an EventSource sends GET"
    status, _, body = request(replay, body=BODY | {"messages": []})
    assert (status, json.loads(body)["error"]["type"]) == (404, "invalid_request_error")
    assert request(replay, body=[BODY])[0] == 400
    assert request(replay, "/v1/chat/completions?cut=x", body=BODY)[0] == 400
    status, headers, _ = request(replay, body=BODY, headers={"origin": "http://elsewhere"})
    assert headers["access-control-allow-origin"] == "*"


def test_the_endpoint_names_parts_that_an_api_cannot_express_and_answers_that_match() -> None:
    calls = '[{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]'
    called = row(choices=[{**row()["choices"][0], "tool_calls": calls}])
    status, _, body = request(
        Replay([recording(called)], speed=0), "/v1/completions?request_id=a", body={"prompt": "p"}
    )
    assert status == 422
    assert json.loads(body)["error"]["message"] == (
        "legacy completions cannot express this answer: it has tool calls. It was captured from another API: "
        "use /v1/chat/completions"
    )
    several = [recording(row(request_id=name, request_hash=name)) for name in "ab"]
    status, _, body = request(Replay(several, speed=0), body=OTHER)
    assert (status, [each["request_id"] for each in json.loads(body)["choices"]]) == (409, ["a", "b"])


def test_a_preflight_is_answered() -> None:
    asked = {"origin": "http://elsewhere", "access-control-request-method": "POST",
             "access-control-request-headers": "content-type,x-deltatap-cut"}  # fmt: skip
    response = TestClient(Replay([recording(row())]).application()).options("/v1/chat/completions", headers=asked)
    assert response.status_code == 200
    assert "x-deltatap-cut" in response.headers["access-control-allow-headers"]


def test_the_captured_models_and_answers_are_listed() -> None:
    rows = [row(), row(request_hash="b", request_model="n"), row(request_hash="c", request_model=None)]
    client = TestClient(Replay(map(recording, rows)).application())
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["m", "n"]
    assert [each["model"] for each in client.get("/replay/recordings").json()] == ["", "n", "m"], "the newest first"


@pytest.mark.parametrize(
    "request_",
    [
        "[1]",
        "null",
        "{",
        '{"messages": [null]}',
        '{"messages": NaN}',
        "[" * 5000,
        '{"messages": [{"role": "user", "content": "\\ud800"}]}',
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud800"}, 123456789012345678901]}]}',
    ],
)
def test_a_row_with_an_odd_request_is_listed_and_found_by_its_id(request_: str, tmp_path: Path) -> None:
    made, left_out = recordings_of([row(request=request_)])
    assert not left_out
    client = TestClient(Replay(made).application())
    assert [each["request_id"] for each in client.get("/replay/recordings").json()] == ["a"]
    assert Library(made).find({}, "chat", Options(request_id="a"), streamed=True) is made[0]
    assert write(made, tmp_path, None) == (["a.chat.sse"], [])


@pytest.mark.parametrize("asked", NAMES)
@pytest.mark.parametrize("calls", [[{}], [{"type": None}], [{"type": "web_search_call"}], [5]])
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
    "body",
    [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "user", "content": float("nan")}]},
        {"model": ["m"], "messages": BODY["messages"]},
        {"messages": json.loads("[" * 900 + "]" * 900)},
    ],
)
def test_an_odd_request_body_finds_nothing(body: dict[str, Any]) -> None:
    library = Library(recordings_of([row(), row(request_id="b", request_model="n")])[0])
    with pytest.raises(NotFoundError):
        library.find(body, "chat", Options(), streamed=True)
    client = TestClient(Replay(library.recordings).application())
    answer = client.post("/v1/chat/completions", content=json.dumps(body))
    assert (answer.status_code, "error" in answer.json()) == (404, True)


@pytest.mark.parametrize("options", [{"loop": 10**9}, {"split": 1, "loop": 10**4}])
def test_options_cannot_fill_the_memory(options: dict[str, Any]) -> None:
    with pytest.raises(BadOptionError, match="pieces of this answer, more than 1,000,000"):
        plan(row(), **options)


def test_a_request_has_one_fixture_of_an_api_even_if_it_was_captured_from_two(tmp_path: Path) -> None:
    made, _ = recordings_of([row(), row(api="messages", run_id="run-2")])
    assert write(made, tmp_path, "chat") == (["a.chat.sse"], [])
    assert b'"run_id":"run-2"' in (tmp_path / "a.chat.sse").read_bytes()
    assert sorted(write(made, tmp_path, None)[0]) == ["a.chat.sse", "a.messages.sse"]
