"""The endpoint: its responses, also to odd requests and from odd rows. tests/spark/test_replay.py tests real clients."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from deltatap.replay.app import Replay
from deltatap.replay.fixtures import write
from deltatap.replay.library import Library, NotFoundError
from deltatap.replay.options import Options
from deltatap.replay.recordings import recording, recordings_of
from tests.replaying import BODY, OTHER, plan, row

if TYPE_CHECKING:
    from pathlib import Path


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
    listed = client.get("/replay/recordings").json()
    assert [each["model"] for each in listed] == ["", "n", "m"], "the newest first"
    assert {(each["run_id"], each["e2e_ms"]) for each in listed} == {("run-1", row()["e2e_ms"])}


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
