"""Real clients through the proxy: OpenAI's client, another HTTP client, over TLS and through a company's proxy."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

from deltatap.api import registry
from deltatap.prompts import request_hash_of
from tests.networks import Authority, serving
from tests.raw_server import Answer, raw_server
from tests.recording import recording

if TYPE_CHECKING:
    from pathlib import Path

    from tests.simulation import Simulation

KEY = "sk-client-0123456789"
PROMPT = "Say hello in three languages."


def body_of(api: str, *, streamed: bool) -> dict[str, Any]:
    prompts: dict[str, dict[str, Any]] = {
        "messages": {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 50},
        "responses": {"input": PROMPT},
        "completions": {"prompt": PROMPT},
        "chat": {"messages": [{"role": "user", "content": PROMPT}]},
    }
    return {"model": "gpt-4o-mini", **prompts[api], **({"stream": True} if streamed else {})}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("name", registry.NAMES)
def test_every_api_is_recorded(simulator: Simulation, tmp_path: Path, name: str, *, streamed: bool) -> None:
    api = registry.specification(name)
    with recording(simulator.base_url, tmp_path) as proxy, httpx2.Client(timeout=20) as client:
        headers = {"authorization": f"Bearer {KEY}", "x-api-key": KEY}
        response = client.post(f"{proxy.base_url}{api.path}", json=body_of(name, streamed=streamed), headers=headers)
        assert response.status_code == 200
    (row,) = proxy.rows
    assert (row["status"], row["api"], row["mode"]) == ("completed", name, "stream" if streamed else "complete")
    assert row["text"]
    assert json.loads(row["request"]) == body_of(name, streamed=streamed)
    assert bool(row["chunks"]) is streamed
    assert KEY not in str(row)
    assert row["request_hash"] == request_hash_of(body_of(name, streamed=streamed))


def test_an_answer_to_openai_s_client_is_recorded(simulator: Simulation, tmp_path: Path) -> None:
    with (
        recording(simulator.base_url, tmp_path) as proxy,
        openai.OpenAI(base_url=proxy.base_url, api_key=KEY, max_retries=0) as client,
    ):
        for _ in range(2):
            stream = client.chat.completions.create(
                **body_of("chat", streamed=True), stream_options={"include_usage": True}
            )
            events = list(stream)
        text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
        assert client.models.list().data
        with pytest.raises(openai.NotFoundError):
            client.get("/nothing", cast_to=httpx2.Response)
    assert [row["text"] for row in proxy.rows][-1] == text
    usage = events[-1].usage
    assert usage is not None
    assert proxy.rows[-1]["usage_reported"]["output_tokens"] == usage.completion_tokens


def test_many_connections_at_once(simulator: Simulation, tmp_path: Path) -> None:
    def ask(number: int) -> None:
        body = {**body_of("chat", streamed=True), "user": str(number)}
        with httpx2.Client(timeout=60) as client:
            texts[number] = client.post(f"{proxy.base_url}/chat/completions", json=body).text

    texts: dict[int, str] = {}
    with recording(simulator.base_url, tmp_path) as proxy:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(json.loads(row["request"])["user"] for row in proxy.rows) == sorted(map(str, range(60)))
    assert {row["status"] for row in proxy.rows} == {"completed"}
    for row in proxy.rows:
        events = [
            json.loads(line[6:])
            for line in texts[int(json.loads(row["request"])["user"])].splitlines()
            if line.startswith("data: {")
        ]
        assert (
            "".join(each["choices"][0]["delta"].get("content") or "" for each in events if each["choices"])
            == row["text"]
        )


def test_the_endpoint_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    whole = json.dumps(
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}
    ).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(whole), whole)
    with serving(authority.serving("localhost"), answer) as server:
        url = f"https://localhost:{server.port}/v1"
        with recording(url, tmp_path / "a", tls={"ca_file": authority.file}) as proxy:
            for _ in range(2):
                response = httpx2.post(f"{proxy.base_url}/chat/completions", json=body_of("chat", streamed=False))
                assert response.content == whole
        assert [(row["text"], row["connection"]["tls_ms"] > 0) for row in proxy.rows] == [("Hi", True)] * 2
        with recording(url, tmp_path / "b") as proxy:
            response = httpx2.post(f"{proxy.base_url}/chat/completions", json=body_of("chat", streamed=False))
        assert response.status_code == 502
        assert "certificate" in response.json()["error"]["message"]
        assert [(row["status"], row["error"]["code"]) for row in proxy.rows] == [("failed", "tls")]


def test_a_redirect_passes_and_its_row_names_the_url(tmp_path: Path) -> None:
    moved = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://elsewhere.example/v1\r\nContent-Length: 0\r\n\r\n"
    with raw_server(lambda _: Answer((moved,))) as server, recording(server.base_url, tmp_path) as proxy:
        response = httpx2.post(f"{proxy.base_url}/chat/completions", json=body_of("chat", streamed=False))
    assert (response.status_code, response.headers["location"]) == (307, "https://elsewhere.example/v1")
    (row,) = proxy.rows
    assert row["error"]["type"] == "wrong_url"
    assert "/v1/chat/completions answered HTTP 307" in row["error"]["message"]
