"""One call over a real socket to a server whose every byte the test chooses."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from openai import AsyncOpenAI, Omit

from deltatap.config import Settings, Timeouts
from deltatap.endpoint import ApiKey, Endpoint
from deltatap.errors import ConfigError
from deltatap.http.client import EndpointClient
from deltatap.http.credentials import Credential, Token
from deltatap.model import Call, CaptureError, Request, Wire
from deltatap.worker.jobs import job_of
from tests.notebook import with_secrets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
from tests.calls import (
    ANSWER,
    BODY,
    DONE,
    HI,
    KEY,
    OK,
    STOP,
    WIRE,
    answering,
    call,
    calls,
    chunk,
    refusal,
    refusing,
    request,
    server,
)


def test_only_the_keys_environment_variable_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://leak.invalid")
    seen: list[bytes] = []
    call(answering(OK + chunk(DONE) + chunk(b"")), key=True, seen=seen)
    assert b"leak" not in seen[0]
    assert f"authorization: bearer {KEY}".encode() in seen[0].lower()


def test_key_that_a_server_repeats_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    body = b'{"error": {"message": "Incorrect API key provided: %b", "code": "%b"}}' % (KEY.encode(), KEY.encode())
    made = call(refusing("401 Unauthorized", body), key=True)
    assert made.error is not None
    assert made.error.type == "authentication"
    assert made.error.message == "Incorrect API key provided: ***"
    assert KEY not in repr(made)


def test_missing_key_is_reported_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable TEST_KEY is not set; set it, or use --set"):
        EndpointClient(Endpoint(api_key=ApiKey(env="TEST_KEY")), Timeouts())


@pytest.mark.parametrize("key", ["sk-\u200bhidden", "sk-\u2013dash", "sk-two\nlines", "sk-\xa0space"])
def test_key_that_no_header_can_hold_is_rejected_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(
        ConfigError, match=r"endpoint\.api_key\.env: TEST_KEY: contains a character that a header cannot hold"
    ) as refused:
        EndpointClient(Endpoint(api_key=ApiKey(env="TEST_KEY")), Timeouts())
    assert key[-4:] not in str(refused.value)


def test_connection_that_breaks_before_any_output_is_a_connection_error() -> None:
    made = call(answering())
    assert made.error is not None
    assert (made.status, made.error.type, made.http_status) == ("failed", "connection", None)


def test_refused_connection_has_no_times() -> None:
    async def made() -> Call:
        async with server(answering()) as base_url:
            pass
        client = EndpointClient(Endpoint(base_url=base_url, api_key=None), Timeouts())
        try:
            return await asyncio.create_task(client.call(WIRE))
        finally:
            await client.close()

    found = asyncio.run(made())
    assert found.error is not None
    assert (found.status, found.error.type) == ("failed", "connection")
    assert (found.dispatch_ms, found.e2e_ms) == (None, None), "the request was never written"


@pytest.mark.parametrize(
    ("writes", "timeouts", "code", "status"),
    [
        ((), {"first_byte_s": 0.03}, "first_byte", "failed"),
        ((OK,), {"first_byte_s": 0.03}, "first_byte", "failed"),
        ((OK + chunk(HI),), {"idle_s": 0.03}, "idle", "interrupted"),
        ((OK + chunk(HI),), {"total_s": 0.1}, "total", "interrupted"),
        ((OK + chunk(b": keep-alive\n\n"),), {"idle_s": 0.03}, "idle", "failed"),
    ],
)
def test_each_wait_has_its_own_timeout(
    writes: tuple[bytes, ...], timeouts: dict[str, float], code: str, status: str
) -> None:
    made = call(answering(*writes, linger=True), timeouts=Timeouts.model_validate(timeouts))
    assert made.error is not None
    assert (made.status, made.error.type, made.error.code) == (status, "timeout", code)
    assert f"(timeouts.{code}_s)" in made.error.message


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected"),
    [
        ("429 X", b'{"error":{"code":"rate_limit_exceeded"}}', (b"retry-after: 7",), ("rate_limit", 7.0)),
        ("429 X", b'{"error":{"code":"insufficient_quota"}}', (), ("quota", None)),
        ("503 X", b"<html>overloaded</html>", (), ("server", None)),
        ("400 X", b'{"error":{"code":"content_filter"}}', (), ("content_policy", None)),
        ("307 X", b"", (b"location: /elsewhere",), ("wrong_url", None)),
    ],
)
def test_http_status_decides_the_error_type(
    status: str, body: bytes, headers: tuple[bytes, ...], expected: tuple[str, float | None]
) -> None:
    made = call(refusing(status, body, *headers))
    assert made.error is not None
    assert (made.error.type, made.error.retry_after_s) == expected
    assert made.http_status == int(status[:3])


def test_used_up_rate_limit_is_reported_with_any_status() -> None:
    used_up = (b"x-ratelimit-remaining-requests: 0", b"x-ratelimit-reset-requests: 2s")
    body = b'{"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}'
    assert call(refusing("200 OK", body, *used_up)).used_up_for_s == 2.0
    assert call(refusing("429 X", b"{}", *used_up)).used_up_for_s == 2.0
    assert call(refusing("200 OK", body)).used_up_for_s is None


AZURE = {"kind": "azure", "api_version": "2024-10-21"}


@pytest.mark.parametrize(
    ("path", "described", "wire", "line"),
    [
        ("/v1", {}, WIRE, "POST /v1/chat/completions"),
        ("/v1/", {"api": "completions"}, WIRE, "POST /v1/completions"),
        ("/v1", {"api": "responses"}, WIRE, "POST /v1/responses"),
        ("", AZURE, WIRE, "POST /openai/deployments/m/chat/completions?api-version=2024-10-21"),
        ("/openai/", AZURE, WIRE, "POST /openai/deployments/m/chat/completions?api-version=2024-10-21"),
        (
            "",
            AZURE,
            replace(WIRE, model="a b/c"),
            "POST /openai/deployments/a%20b%2Fc/chat/completions?api-version=2024-10-21",
        ),
        ("", {**AZURE, "api": "completions"}, WIRE, "POST /openai/deployments/m/completions?api-version=2024-10-21"),
        ("", {**AZURE, "api": "responses"}, WIRE, "POST /openai/responses?api-version=2024-10-21"),
        ("/openai/v1/", {"kind": "azure"}, WIRE, "POST /openai/v1/chat/completions"),
        (
            "/openai/v1",
            {"kind": "azure", "api_version": "preview"},
            WIRE,
            "POST /openai/v1/chat/completions?api-version=preview",
        ),
        ("/serving-endpoints", {"kind": "databricks"}, WIRE, "POST /serving-endpoints/chat/completions"),
    ],
)
def test_url_of_each_provider(path: str, described: dict[str, Any], wire: Wire, line: str) -> None:
    seen: list[bytes] = []
    call(answering(OK + chunk(HI + STOP + DONE) + chunk(b"")), seen=seen, wire=wire, path=path, **described)
    assert seen[0].startswith(f"{line} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    ("described", "header"),
    [
        ({}, f"authorization: bearer {KEY}"),
        ({"kind": "databricks"}, f"authorization: bearer {KEY}"),
        ({"kind": "azure", "path": "/openai/v1"}, f"api-key: {KEY}"),
        ({**AZURE, "path": ""}, f"api-key: {KEY}"),
        ({**AZURE, "path": "", "api_key": ApiKey.model_validate({"secret": "a/b"})}, f"api-key: {KEY}"),
    ],
)
def test_key_header_of_each_provider(monkeypatch: pytest.MonkeyPatch, described: dict[str, Any], header: str) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    with_secrets(monkeypatch, {"a/b": KEY})
    for name in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "OPENAI_API_VERSION", "DATABRICKS_TOKEN"):
        monkeypatch.setenv(name, "leak")
    seen: list[bytes] = []
    call(answering(OK + chunk(DONE) + chunk(b"")), key=True, seen=seen, **described)
    head = seen[0].decode().lower()
    assert header in head
    assert head.count(KEY) == 1
    assert "leak" not in head


def test_every_request_is_one_of_the_openai_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client builds the first request only; the next ones have the same head and their own body and length."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    longer = replace(WIRE, body=BODY.replace("[]", '[{"role":"user","content":"é"}]'))
    found = calls([ANSWER, ANSWER, ANSWER], [WIRE, longer, replace(longer, model="other")])
    assert [body.decode() for _, body in found.requests] == [WIRE.body, longer.body, longer.body]

    async def sent_by_openai() -> bytes:
        seen: list[bytes] = []

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append((await request(reader))[0])
            writer.write(refusal("200 OK", b"{}"))

        async with server(handler) as base_url, AsyncOpenAI(base_url=base_url, api_key=KEY, timeout=None) as client:
            headers = {"Authorization": Omit(), "Accept-Encoding": "identity"}
            await client.post(
                "/chat/completions",
                cast_to=object,
                body=json.loads(longer.body),
                options=cast("Any", {"headers": headers}),
            )
        return seen[0]

    expected = asyncio.run(sent_by_openai())
    for head, _ in found.requests[1:]:
        assert _headers(head) == _headers(expected)
    assert _headers(found.requests[0][0]) == {**_headers(expected), b"content-length": b"%d" % len(BODY)}


def _headers(head: bytes) -> dict[bytes, bytes]:
    pairs = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line]
    assert len({name.lower() for name, _ in pairs}) == len(pairs), "no header twice"
    return {name.lower(): value for name, value in pairs if name.lower() != b"host"}


ASKING = Wire('{"model":"m","stream":true,"stream_options":{"include_usage":true}}', "m", "stream", 1, usage=True)
NO_OPTIONS = b'{"error": {"message": "Extra inputs are not permitted: stream_options"}}'


@pytest.mark.parametrize("status", [400, 422])
def test_stream_options_that_a_server_refuses_are_not_sent_again(status: int) -> None:
    no = refusal(f"{status} X", NO_OPTIONS)
    found = calls([no, ANSWER, no], [ASKING, ASKING, replace(ASKING, model="other")])
    refused, resent, other = found.made
    assert (refused.status, refused.resend, refused.http_status) == ("failed", True, status)
    assert (resent.status, resent.resend) == ("completed", False)
    assert json.loads(resent.body) == {"model": "m", "stream": True}
    assert other.resend, "a router may send another model to another server"
    assert [b"stream_options" in body for _, body in found.requests] == [True, False, True]


@pytest.mark.parametrize("status", [401, 403, 404, 409, 413, 429, 502, 503])
def test_stream_options_are_still_sent_after_any_other_status(status: int) -> None:
    found = calls([refusal(f"{status} X", NO_OPTIONS)] * 2, [ASKING] * 2)
    assert [call.resend for call in found.made] == [False, False]
    assert all(b"stream_options" in body for _, body in found.requests)


@pytest.mark.parametrize("wire", [ASKING, WIRE])
def test_other_refusals_with_the_same_status_are_not_resent(wire: Wire) -> None:
    text = NO_OPTIONS if wire is WIRE else b'{"error": {"message": "max_tokens is too large"}}'
    assert [call.resend for call in calls([refusal("400 X", text)], [wire]).made] == [False]


@pytest.mark.parametrize(("status", "resent"), [(401, True), (400, False), (403, False), (429, False), (500, False)])
def test_only_a_401_renews_the_token(status: int, *, resent: bool) -> None:
    tokens = iter(["old", "new", "newest"])
    credential = Credential(lambda: Token(next(tokens)))
    found = calls([refusal(f"{status} X", b"{}"), ANSWER], [WIRE, WIRE], credential)
    assert found.made[0].resend is resent
    assert [b"Bearer new" in head for head, _ in found.requests] == [False, resent]


def test_refused_key_that_cannot_be_renewed_is_not_resent() -> None:
    def lost() -> Token:
        if credential.current is None:
            return Token("old")
        raise ConnectionError("the identity provider is down")

    credential = Credential(lost)
    assert not calls([refusal("401 X", b"{}")], [WIRE], Credential(lambda: Token("key"))).made[0].resend
    assert not calls([refusal("401 X", b"{}")], [WIRE], credential).made[0].resend


@pytest.mark.parametrize(("described", "included"), [({}, True), ({"include_usage": False}, False)])
def test_include_usage_decides_whether_stream_options_are_sent(described: dict[str, Any], *, included: bool) -> None:
    request_ = Request("a", "", "m", '{"model":"m","messages":[]}', None, None)
    wire = job_of(request_, 0, [], Settings(endpoint=Endpoint(**described)), "stream").wire
    assert wire is not None
    ((_, body),) = calls([ANSWER], [wire]).requests
    assert json.loads(body).get("stream_options") == ({"include_usage": True} if included else None)


def test_databricks_error_code_is_kept() -> None:
    made = call(
        refusing("404 X", b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No endpoint."}'), kind="databricks"
    )
    assert made.error is not None
    assert (made.error.type, made.error.code, made.error.message) == (
        "not_found",
        "RESOURCE_DOES_NOT_EXIST",
        "No endpoint.",
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal("200 OK", b'{"data": [{"id": "a"}, {"id": "b"}]}'), ["a", "b"]),
        (refusal("200 OK", b'{"models": []}'), ("protocol", "the response is not a list of models")),
        (refusal("200 OK", b"<html>"), ("protocol", "the response is not a list of models")),
        (refusal("401 X", b'{"error": {"message": "wrong key: sk-471100"}}'), ("authentication", "wrong key: ***")),
        (
            b"",
            (
                "connection",
                "the server closed the connection before it responded; if the server expects TLS, use https:// in endpoint.base_url",
            ),
        ),
        (b"HTTP/1.1 200 OK\r\n", ("timeout", "the response was not complete after 0.1 s (timeouts.total_s)")),
    ],
)
def test_models_are_listed_or_the_error_is_returned(answer: bytes, expected: object) -> None:
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        if answer.endswith(b"OK\r\n"):
            await reader.read()

    async def listed() -> list[str] | CaptureError:
        async with server(handler) as base_url:
            timeouts = Timeouts(total_s=0.1) if answer.endswith(b"OK\r\n") else Timeouts()
            credential = Credential(lambda: Token("sk-471100"))
            client = EndpointClient(Endpoint(base_url=base_url), timeouts, credential=credential)
            try:
                return await client.models()
            finally:
                await client.close()

    found = asyncio.run(listed())
    assert ((found.type, found.message) if isinstance(found, CaptureError) else found) == expected
    assert heads[0].startswith(b"GET /v1/models HTTP/1.1\r\n")


def test_call_that_is_cancelled_while_its_token_is_renewed_keeps_its_error() -> None:
    async def made() -> Call:
        renewing, loop = asyncio.Event(), asyncio.get_running_loop()
        go_on = threading.Event()

        def fetch() -> Token:
            if credential.refusing:
                loop.call_soon_threadsafe(renewing.set)
                go_on.wait(20)
            credential.refusing = True
            return Token("old")

        class Renewing(Credential):
            refusing = False

        credential = Renewing(fetch)

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request(reader)
            writer.write(refusal("401 X", b"{}"))

        async with server(handler) as base_url:
            client = EndpointClient(Endpoint(base_url=base_url), Timeouts(), credential=credential)
            calling = asyncio.create_task(client.call(WIRE))
            try:
                await asyncio.wait_for(renewing.wait(), 20)
                calling.cancel()
                return await calling
            finally:
                go_on.set()
                await client.close()

    found = asyncio.run(made())
    assert found.error is not None
    assert (found.error.type, found.resend) == ("authentication", False)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("422 X", b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs"}]}'),
        ("400 X", b'{"detail":"Unsupported parameter(s): `stream_options`"}'),
        ("400 X", b'[{"error":{"code":400,"message":"Unknown name \\"include_usage\\""}}]'),
        ("501 X", b'{"errors":[{"message":"stream_options is not supported"}]}'),
        ("200 X", b'data: {"error":{"message":"stream_options is not supported"}}\n\n'),
    ],
)
def test_stream_options_refused_in_any_form(status: str, body: bytes) -> None:
    wire = Wire('{"model":"m","stream":true,"stream_options":{"include_usage":true}}', "m", "stream", 1, usage=True)
    assert call(answering(refusal(status, body)), wire=wire).resend
