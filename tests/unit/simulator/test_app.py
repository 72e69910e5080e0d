"""The simulator over real sockets: what it writes for each fault, what it records, and the openai client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI, RateLimitError

from deltatap.prompts import request_hash_of
from tests.simulation import KEY, KEY_VARIABLE, Simulation, start_simulator

MESSAGES = [{"role": "user", "content": "Tell me."}]


PACE = {"tokens": 30}


def raw(
    simulator: Simulation, fault: str = "", header: str = "", seconds: float = 5, **body: Any
) -> tuple[int, dict[str, str], bytes]:
    """One call over a plain socket. Returns the status (0 without a response), the headers and the body."""
    url = urlsplit(simulator.base_url)
    made = {"model": f"gpt-4o-mini!{fault}" if fault else "gpt-4o-mini", "messages": MESSAGES, "stream": True, **body}
    content = json.dumps(made).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n"
    head += f"x-simulate: {header}\r\n" if header else ""
    received = b""
    with socket.create_connection((str(url.hostname), url.port or 0), timeout=seconds) as connection:
        connection.sendall(head.encode() + b"\r\n" + content)
        try:
            while data := connection.recv(1 << 16):
                received += data
        except TimeoutError:
            pass
    if not received:
        return 0, {}, b""
    top, _, rest = received.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") == "chunked":
        rest = unchunked(rest)
    return int(status.split()[1]), headers, rest


def unchunked(data: bytes) -> bytes:
    joined = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        joined, data = joined + data[:length], data[length + 2 :]
    return joined


def events(content: bytes) -> list[Any]:
    text = content.decode().replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    frames = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [frame if frame == "[DONE]" else json.loads(frame) for frame in frames]


def text_of(content: bytes) -> str:
    return "".join(
        e["choices"][0]["delta"].get("content") or "" for e in events(content) if e != "[DONE]" and e["choices"]
    )


def test_a_stream_looks_like_openai(simulator: Simulation) -> None:
    status, headers, content = raw(simulator, stream_options={"include_usage": True})
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["x-request-id"].startswith("req_")
    first, *middle, finish, usage, done = events(content)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert first["object"] == "chat.completion.chunk"
    assert finish["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert done == "[DONE]"
    (call,) = simulator.calls()
    assert call["texts"]["0"] == text_of(content) == "".join(text for _, text in call["chunks"])
    assert call["frames"] == len(middle) + 3
    assert call["usage"] == usage["usage"]
    assert (call["ended"], call["http_status"], call["finish_reasons"]) == ("done", 200, {"0": "stop"})
    body = {"model": "gpt-4o-mini", "messages": MESSAGES}
    assert call["key"] == request_hash_of(body)
    assert simulator.counts()["by_key"] == {call["key"]: {"calls": 1, "finished": 1}}


REFUSED = {"400": 400, "401": 401, "403": 403, "404": 404, "408": 408, "409": 409, "413": 413, "422": 422, "429": 429,
           "quota": 429, "500": 500, "502": 502, "503": 503, "content_policy": 400}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_refusals(simulator: Simulation, fault: str) -> None:
    status, headers, content = raw(simulator, fault)
    assert status == REFUSED[fault]
    error = json.loads(content)["error"]
    assert error["message"]
    codes = {"quota": "insufficient_quota", "content_policy": "content_policy_violation", "429": "rate_limit_exceeded"}
    assert fault not in codes or error["code"] == codes[fault]
    assert ("retry-after" in headers) == (fault == "429")
    (call,) = simulator.calls()
    assert (call["ended"], call["http_status"], call["texts"]) == ("refused", status, {})


def test_retry_after_in_seconds_and_as_a_date(simulator: Simulation) -> None:
    assert raw(simulator, "429=7")[1]["retry-after"] == "7"
    assert raw(simulator, "429=date")[1]["retry-after"].endswith(" gmt")


@pytest.mark.parametrize("fault", ["comments", "crlf", "cr", "bom", "coalesce", "coalesce=9", "fragment", "empty_choices",
                                   "role_only", "role_with_content", "bom+crlf+comments+fragment+empty_choices"])  # fmt: skip
def test_shapes_change_only_the_bytes(simulator: Simulation, fault: str) -> None:
    plain, shaped = raw(simulator)[2], raw(simulator, header=fault)[2]
    assert text_of(shaped) == text_of(plain)
    assert {"comments": b": keep-alive\n\n", "crlf": b"\r\n\r\n", "cr": b"\r\rdata", "bom": b"\xef\xbb\xbfdata",
            "empty_choices": b'"choices":[]', "role_with_content": b'"role":"assistant","content":"'}.get(fault, b"") in shaped  # fmt: skip
    if fault == "crlf":
        assert b"\n\n" not in shaped
    (call,) = [call for call in simulator.calls() if call["fault"]]
    assert call["frames"] == len(events(shaped)) - 1


@pytest.mark.parametrize(
    ("fault", "last", "ended"),
    [
        ("cut@3", "content", "broken"),
        ("no_end@3", "content", "broken"),
        ("stall=0.1@3", "[DONE]", "done"),
        ("error_event@3", "error", "broken"),
        ("error_event=event@3", "error", "broken"),
        ("no_finish", "[DONE]", "done"),
        ("no_done", "finish", "done"),
        ("content_filter", "[DONE]", "done"),
        ("length", "[DONE]", "done"),
        ("no_usage", "[DONE]", "done"),
    ],
)
def test_how_streams_end(simulator: Simulation, fault: str, last: str, ended: str) -> None:
    content = raw(simulator, fault, stream_options={"include_usage": True})[2]
    *_, final = events(content)
    kinds = {
        "[DONE]": final == "[DONE]",
        "error": "error" in final,
        "finish": bool(final != "[DONE]" and "usage" in final),
    }
    assert kinds.get(last, final != "[DONE]" and "content" in str(final))
    (call,) = simulator.calls()
    assert call["ended"] == ended
    if "@3" in fault and last != "[DONE]":
        assert len(call["chunks"]) == 3
    if fault in ("content_filter", "length"):
        assert call["finish_reasons"] == {"0": fault}
    if fault == "no_finish":
        assert call["finish_reasons"] == {}
    assert (call["usage"] is None) == (fault == "no_usage" or ended == "broken")
    assert (b"event: error\n" in content) == (fault == "error_event=event@3")


def test_faults_with_bad_json_with_html_and_with_a_closed_connection(simulator: Simulation) -> None:
    assert b'data: {"id": "chatcmpl-broken", "choices": [\n\n' in raw(simulator, "bad_json@2")[2]
    status, headers, content = raw(simulator, "html")
    assert (status, headers["content-type"].partition(";")[0], content[:6]) == (200, "text/html", b"<html>")
    assert raw(simulator, "cut_first") == (0, {}, b"")


def test_slow_headers_and_a_stall_until_the_client_disconnects(simulator: Simulation) -> None:
    assert raw(simulator, "slow_headers=9", seconds=0.3)[0] == 0
    status, _, content = raw(simulator, "stall@2", seconds=0.3)
    assert status == 200
    assert len(text_of(content)) > 0
    while (stalled := simulator.calls()[-1])["ended"] == "open":
        pass
    assert stalled["ended"] == "client_gone"
    assert len(stalled["chunks"]) == 2


def test_faults_apply_to_consecutive_calls_for_one_prompt(simulator: Simulation) -> None:
    assert [raw(simulator, "429:2!500:1")[0] for _ in range(4)] == [429, 429, 500, 200]
    (counts,) = simulator.counts()["by_key"].values()
    assert counts == {"calls": 4, "finished": 1}


def test_rates_can_be_changed_in_a_running_simulator(simulator: Simulation) -> None:
    simulator.change(faults={"503": 1.0}, in_a_row=1)
    assert [raw(simulator)[0] for _ in range(2)] == [503, 200]
    simulator.change(faults={})
    assert raw(simulator)[0] == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"model": "m"}',
        b'{"model": "m!nope", "messages": [{}]}',
        b'{"model": "m", "messages": %b%b}' % (b"[" * 1000, b"]" * 1000),
    ],
)
def test_an_invalid_request_is_refused(simulator: Simulation, content: bytes) -> None:
    response = httpx2.post(f"{simulator.base_url}/chat/completions", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert simulator.counts()["calls"] == 0


def test_another_process_gives_the_same_answers(simulator: Simulation) -> None:
    with start_simulator("--speed", "0", "--tokens", "30", "--seed", "1") as other:
        assert text_of(raw(other)[2]) != text_of(raw(simulator)[2])
        other.change(seed=0)
        assert text_of(raw(other)[2]) == text_of(raw(simulator)[2])


def test_a_key_is_required_and_never_kept(simulator: Simulation) -> None:
    simulator.change(api_key_env=KEY_VARIABLE)
    assert raw(simulator)[0] == 401
    with OpenAI(base_url=simulator.base_url, api_key=KEY, max_retries=0) as client:
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}])
    first, second = simulator.calls()
    assert first["bearer_sha256"] is None
    assert second["bearer_sha256"] == hashlib.sha256(KEY.encode()).hexdigest()


def test_the_openai_client_streams_and_completes(simulator: Simulation) -> None:
    async def both() -> tuple[str, str, int | None]:
        async with AsyncOpenAI(base_url=simulator.base_url, api_key="x", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], stream=True, n=2,
                stream_options={"include_usage": True},
            )  # fmt: skip
            chunks = [chunk async for chunk in stream]
            whole = await client.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], n=2
            )
            streamed = "".join(
                c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].index == 1
            )
            models = [model.id async for model in client.models.list()]
            assert "gpt-4o-mini" in models
            assert whole.usage == chunks[-1].usage
            return (
                streamed,
                whole.choices[1].message.content or "",
                whole.usage.completion_tokens if whole.usage else None,
            )

    streamed, whole, tokens = asyncio.run(both())
    assert streamed == whole
    assert tokens


def test_the_openai_client_raises_its_own_errors(simulator: Simulation) -> None:
    with (
        OpenAI(base_url=simulator.base_url, api_key="x", max_retries=0) as client,
        pytest.raises(RateLimitError) as caught,
    ):
        client.chat.completions.create(model="gpt-4o-mini!429=3", messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "3"


def test_the_openai_client_reads_legacy_completions(simulator: Simulation) -> None:
    with OpenAI(base_url=simulator.base_url, api_key="x", max_retries=0) as client:
        asked: dict[str, Any] = {"model": "gpt-4o-mini", "prompt": "Hi", "logprobs": 1}
        streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
        whole = client.completions.create(**asked)
    assert streamed == whole.choices[0].text != ""
    assert whole.choices[0].logprobs is not None


@pytest.mark.parametrize(
    "more", [{}, {"reasoning": {"effort": "low"}}, {"tools": [{"type": "function", "name": "f", "parameters": {}}]}]
)
def test_the_openai_client_reads_responses(simulator: Simulation, more: dict[str, Any]) -> None:
    """The client's accumulator, which checks the order of events, gives the same result as a whole response."""
    with OpenAI(base_url=simulator.base_url, api_key="x", max_retries=0) as client:
        asked: dict[str, Any] = {"model": "gpt-4o-mini", "input": "Hi", **more}
        with client.responses.stream(**asked) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        whole = client.responses.create(**asked)
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert final.output_text == whole.output_text
    assert [item.type for item in final.output] == [item.type for item in whole.output]
    assert final.usage == whole.usage


def test_the_urls_of_azure_and_databricks_are_served(simulator: Simulation) -> None:
    origin = simulator.base_url.removesuffix("/v1")
    body = {"model": "gpt-4o-mini", "messages": MESSAGES}
    with httpx2.Client() as client:
        for url, status in (
            ("/openai/v1/chat/completions", 200),
            ("/openai/deployments/mine/chat/completions?api-version=2024-10-21", 200),
            ("/openai/deployments/mine/chat/completions", 404),
            ("/serving-endpoints/chat/completions", 200),
        ):
            assert client.post(origin + url, json=body, headers={"api-key": "x"}).status_code == status, url
        asked = client.post(
            f"{origin}/openai/responses?api-version=2025-04-01-preview", json={"model": "m", "input": "Hi"}
        )
        assert asked.json()["status"] == "completed"
    assert {call["path"] for call in simulator.calls()} == {
        "/openai/v1/chat/completions", "/openai/deployments/mine/chat/completions", "/serving-endpoints/chat/completions", "/openai/responses",
    }  # fmt: skip


def test_limits_per_minute_are_enforced_and_reported(simulator: Simulation) -> None:
    simulator.change(requests_per_minute=2, tokens_per_minute=1000)
    first, second, third = (raw(simulator) for _ in range(3))
    assert (first[0], second[0], third[0]) == (200, 200, 429)
    assert first[1]["x-ratelimit-limit-requests"] == "2"
    assert (first[1]["x-ratelimit-remaining-requests"], second[1]["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert 0 < float(third[1]["retry-after"]) <= 60
    assert 0 < int(second[1]["x-ratelimit-remaining-tokens"]) < 1000


def test_answers_above_the_slots_wait_in_order() -> None:
    pace = ("--ttft-ms", "100", "--itl-ms", "1", "--tokens", "2", "--sigma", "0")
    with start_simulator("--slots", "2", *pace) as simulator:

        async def call(number: int) -> None:
            content: Any = [{"role": "user", "content": f"{number}"}]
            async with AsyncOpenAI(base_url=simulator.base_url, api_key="x", max_retries=0) as client:
                stream = await client.chat.completions.create(model="gpt-4o-mini", messages=content, stream=True)
                async for _ in stream:
                    pass

        async def five() -> None:
            await asyncio.gather(*map(call, range(5)))

        asyncio.run(five())
        calls = simulator.calls()
    begins = sorted(call["began"] for call in calls)
    assert begins[1] - begins[0] < 0.05
    assert 0.09 < begins[2] - begins[0] < 0.3
    assert 0.19 < begins[4] - begins[0] < 0.6
    assert [call["number"] for call in sorted(calls, key=lambda call: call["began"])] == list(range(5))


def moderated(simulator: Simulation, text: object, model: str = "omni-moderation-latest") -> tuple[int, Any]:
    response = httpx2.post(f"{simulator.base_url}/moderations", json={"model": model, "input": text}, timeout=5)
    return response.status_code, response.json()


def test_moderations_flag_planted_words(simulator: Simulation) -> None:
    simulator.change(flagged=["forbidden", "naughty"])
    answered = simulator_answer(simulator, "planted=naughty@3")
    assert "naughty" in answered
    status, found = moderated(simulator, answered)
    assert (status, found["results"][0]["flagged"]) == (200, True)
    assert found["results"][0]["categories"] == {"forbidden": False, "naughty": True}
    assert not moderated(simulator, ["fine", "text"])[1]["results"][1]["flagged"]
    assert [call["flagged"] for call in simulator.moderations()] == [True, False]
    assert simulator.counts()["calls"] == 1, "a moderation is not a completion"


def simulator_answer(simulator: Simulation, fault: str) -> str:
    client = OpenAI(base_url=simulator.base_url, api_key="x", max_retries=0)
    made = client.chat.completions.create(model=f"gpt-4o-mini!{fault}", messages=[{"role": "user", "content": "Hi"}])
    return made.choices[0].message.content or ""


def test_moderations_can_fail_and_be_slow(simulator: Simulation) -> None:
    statuses = [moderated(simulator, "x", "m!500:1!429=0.1:1")[0] for _ in range(3)]
    assert statuses == [500, 429, 200]
    assert moderated(simulator, "x", "m!nonsense")[0] == 400
    assert httpx2.post(f"{simulator.base_url}/moderations", json={"model": "m"}, timeout=5).status_code == 400
    simulator.change(moderation_ms=50)
    started = time.perf_counter()
    moderated(simulator, "x")
    assert time.perf_counter() - started >= 0.05


def test_the_openai_client_moderates_a_text(simulator: Simulation) -> None:
    made = OpenAI(base_url=simulator.base_url, api_key="x").moderations.create(input="so forbidden")
    assert made.results[0].flagged


def test_a_page_of_another_origin_may_send_requests(simulator: Simulation) -> None:
    headers = {"origin": "http://elsewhere", "access-control-request-method": "POST",
               "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    url = f"{simulator.base_url}/chat/completions"
    preflight = urllib.request.Request(url, method="OPTIONS", headers=headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(preflight, timeout=10) as response:  # noqa: S310 - loopback
        assert response.headers["access-control-allow-origin"] == "*"
        assert "authorization" in response.headers["access-control-allow-headers"]
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
    request = urllib.request.Request(url, body, {"origin": "http://elsewhere"})  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - loopback
        assert response.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in response.headers["access-control-expose-headers"]
