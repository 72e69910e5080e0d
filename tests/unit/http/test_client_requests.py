"""What the client sends: the URL, the headers, the key and the stream options."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, cast

import pytest
from openai import AsyncOpenAI, Omit

from deltatap.config import Settings, Timeouts
from deltatap.endpoint import ApiKey, Endpoint
from deltatap.errors import ConfigError
from deltatap.http.client import EndpointClient
from deltatap.model import Request, Wire
from deltatap.worker.jobs import job_of
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
    request,
    server,
)
from tests.notebook import with_secrets


def test_only_the_keys_environment_variable_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://leak.invalid")
    seen: list[bytes] = []
    call(answering(OK + chunk(DONE) + chunk(b"")), key=True, seen=seen)
    assert b"leak" not in seen[0]
    assert f"authorization: bearer {KEY}".encode() in seen[0].lower()


def test_missing_key_is_reported_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable TEST_KEY is not set; set it, or use --set"):
        EndpointClient(Endpoint(api_key=ApiKey(env="TEST_KEY")), Timeouts())


@pytest.mark.parametrize("key", ["sk-hunt-0123456789abcdef", "gsk_0123456789abcdef", "Bearer x", "A" * 65])
def test_key_in_place_of_a_variable_s_name_is_not_shown(key: str) -> None:
    with pytest.raises(
        ConfigError, match=r"api_key\.env: the environment variable that is named here is not set"
    ) as refused:
        EndpointClient(Endpoint(api_key=ApiKey(env=key)), Timeouts())
    assert key not in str(refused.value)


@pytest.mark.parametrize("key", ["sk-\u200bhidden", "sk-\u2013dash", "sk-two\nlines", "sk-\xa0space"])
def test_key_that_no_header_can_hold_is_rejected_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(
        ConfigError, match=r"endpoint\.api_key\.env: TEST_KEY: contains a character that headers cannot contain"
    ) as refused:
        EndpointClient(Endpoint(api_key=ApiKey(env="TEST_KEY")), Timeouts())
    assert key[-4:] not in str(refused.value)


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


@pytest.mark.parametrize(("described", "included"), [({}, True), ({"include_usage": False}, False)])
def test_include_usage_decides_whether_stream_options_are_sent(described: dict[str, Any], *, included: bool) -> None:
    request_ = Request("a", "", "m", '{"model":"m","messages":[]}', None, None)
    wire = job_of(request_, 0, [], Settings(endpoint=Endpoint(**described)), "stream").wire
    assert wire is not None
    ((_, body),) = calls([ANSWER], [wire]).requests
    assert json.loads(body).get("stream_options") == ({"include_usage": True} if included else None)
