"""How a request's head is rewritten, and which of its values are secret."""

from __future__ import annotations

from typing import Any

import pytest

from deltatap.http.proxy import Proxy
from deltatap.record.forwarding import (
    Target,
    api_of,
    deployment_of,
    forwarded,
    is_chunked,
    path_of,
    secrets_in,
    secrets_in_text,
    secrets_of,
)
from deltatap.record.requests import Head

TO = Target.of("https://api.example.com/v1")


def head(
    *headers: tuple[str, str], method: str = "POST", target: str = "/v1/chat/completions", version: str = "1.1"
) -> Head:
    return Head(method, target.encode(), version, tuple((name.encode(), value.encode()) for name, value in headers))


@pytest.mark.parametrize(
    ("base_url", "port", "netloc", "path"),
    [
        ("https://api.example.com/v1", 443, b"api.example.com", "/v1"),
        ("http://127.0.0.1:8089/v1/", 8089, b"127.0.0.1:8089", "/v1"),
        ("https://[::1]:8443", 8443, b"[::1]:8443", ""),
    ],
)
def test_targets(base_url: str, port: int, netloc: bytes, path: str) -> None:
    target = Target.of(base_url)
    assert (target.port, target.netloc, target.path) == (port, netloc, path)


@pytest.mark.parametrize(
    ("path", "base", "name"),
    [
        ("/v1/chat/completions", "/v1", "chat"),
        ("/v1/chat/completions/", "/v1", "chat"),
        ("/v1/chat/completions?beta=true", "/v1", "chat"),
        ("http://localhost:8091/v1/chat/completions", "/v1", "chat"),
        ("/v1/completions", "/v1", "completions"),
        ("/v1/responses", "/v1", "responses"),
        ("/v1/messages", "", "messages"),
        ("/serving-endpoints/chat/completions", "/serving-endpoints", "chat"),
        ("/openai/deployments/my%20gpt/chat/completions?api-version=1", "", "chat"),
        ("/openai/deployments/gpt/chat/completions", "/openai", "chat"),
        ("/v1/threads/t/messages", "/v1", None),
        ("/v1/messages/count_tokens", "/v1", None),
        ("/v1/responses/r1", "/v1", None),
        ("/v1/embeddings", "/v1", None),
        ("/v1/models", "/v1", None),
        ("*", "/v1", None),
        ("/", "", None),
    ],
)
def test_which_paths_are_recorded(path: str, base: str, name: str | None) -> None:
    api = api_of(head(target=path), base)
    assert (None if api is None else api.name) == name
    assert api_of(head(target=path, method="GET"), base) is None


def test_the_deployment_is_the_model() -> None:
    assert deployment_of(head(target="/openai/deployments/my%20gpt/chat/completions")) == "my gpt"
    assert deployment_of(head()) is None


def test_a_head_loses_only_hop_by_hop_headers() -> None:
    sent = forwarded(
        head(
            ("Host", "localhost:8091"), ("X-Stainless-Lang", "python"), ("Authorization", "Bearer sk-1"), ("Connection", "Keep-Alive, X-Mine, Upgrade"), ("X-Mine", "1"),
            ("Keep-Alive", "5"), ("TE", "trailers"), ("Upgrade", "h2c"), ("HTTP2-Settings", "x"), ("Proxy-Connection", "close"), ("Content-Length", "3"), ("Expect", "100-continue"),
        ),
        TO,
        recorded=True,
    )  # fmt: skip
    assert sent == (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.example.com\r\nX-Stainless-Lang: python\r\nAuthorization: Bearer sk-1\r\n"
        b"Content-Length: 3\r\nExpect: 100-continue\r\nConnection: Keep-Alive\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("accepted", "recorded", "sent"),
    [
        ("gzip, deflate, br, zstd", True, b"gzip, deflate"),
        ("gzip, deflate, br, zstd", False, b"gzip, deflate, br, zstd"),
        ("br", True, b"identity"),
        ("*;q=0.5", True, b"identity"),
        ("GZIP;q=0.8,br;q=1", True, b"GZIP;q=0.8"),
    ],
)
def test_only_codings_that_can_be_decoded_are_asked_for(accepted: str, recorded: bool, sent: bytes) -> None:  # noqa: FBT001 - a case
    assert b"\r\nAccept-Encoding: %b\r\n" % sent in forwarded(
        head(("Accept-Encoding", accepted)), TO, recorded=recorded
    )


def test_a_proxy_that_forwards_gets_the_whole_url() -> None:
    proxy = Proxy("proxy.example", 3128, "Basic dXNlcjpwYXNz")
    sent = forwarded(
        head(method="GET", target="/v1/models?x=1"), Target.of("http://llm.example:8000/v1", proxy), recorded=False
    )
    assert sent.startswith(b"GET http://llm.example:8000/v1/models?x=1 HTTP/1.1\r\nHost: llm.example:8000\r\n")
    assert b"Proxy-Authorization: " in sent
    assert Target.of("https://llm.example/v1", proxy).forwarded_by is None


def test_chunked_bodies() -> None:
    assert is_chunked(head(("Transfer-Encoding", "gzip, Chunked")))
    assert not is_chunked(head(("Content-Length", "1")))


def test_paths() -> None:
    assert path_of(b"HTTP://x:1/v1?a=b") == b"/v1?a=b"
    assert path_of(b"http://x") == b"/"
    assert path_of(b"*") == b"*"


def test_secrets() -> None:
    found = secrets_of(
        head(
            ("Authorization", "Bearer sk-abcdefgh"), ("X-API-Key", "key-12345678"), ("api-key", "azure-1234"), ("Cookie", "a=short; session=0123456789abcdef"), ("X-Request-Id", "not-a-secret"),
            ("Proxy-Authorization", "Basic dXNlcjpwYXNzd29yZDE="), ("X-Empty-Key", ""),
            target="/v1/chat/completions?key=in%2Dquery-1&model=gpt-4o-mini",
        )
    )  # fmt: skip
    assert {
        "Bearer sk-abcdefgh",
        "sk-abcdefgh",
        "key-12345678",
        "azure-1234",
        "0123456789abcdef",
        "user:password1",
        "password1",
        "in-query-1",
        "in%2Dquery-1",
    } <= found
    assert not found & {"short", "not-a-secret", "gpt-4o-mini", ""}


@pytest.mark.parametrize(
    ("name", "value", "secrets"),
    [
        ("Authorization", "Bearer\tsk-abcdefgh", {"sk-abcdefgh"}),
        ("Authorization", "Bearer  sk-abcdefgh", {"sk-abcdefgh"}),
        ("Authorization", 'Bearer "sk-abcdefgh"', {"sk-abcdefgh"}),
        ("X-API-Key", "key-12345678, key-87654321", {"key-12345678", "key-87654321"}),
        ("Cookie", 'session="0123456789abcdef"', {"0123456789abcdef"}),
        ("Authorization", " , ", {","}),
    ],
)
def test_secrets_in_odd_headers(name: str, value: str, secrets: set[str]) -> None:
    assert secrets <= secrets_of(head((name, value)))


SCHEMA = {"type": "object", "properties": {"authorization": {"type": "string", "description": "the password"}}}


@pytest.mark.parametrize(
    ("body", "secrets"),
    [
        ({"tools": [{"type": "mcp", "server_label": "calendar", "authorization": "ya29.SECRET"}]}, {"ya29.SECRET"}),
        ({"tools": [{"headers": {"Authorization": "Bearer sk-abcdefgh", "X-Team": "search-team"}}]},
         {"Bearer sk-abcdefgh", "sk-abcdefgh"}),
        ({"tools": [{"headers": {"Cookie": "a=short; session=0123456789abcdef"}}]}, {"0123456789abcdef"}),
        ({"tools": [{"server_url": "https://mcp.example/sse?api_key=key-12345678&team=search"}]}, {"key-12345678"}),
        ({"mcp_servers": [{"url": "https://mcp.example", "authorization_token": "token-1234"}]}, {"token-1234"}),
        ({"data_sources": [{"parameters": {"authentication": {"type": "api_key", "key": "azure-1234"}}}]}, {"azure-1234"}),
        ({"tools": [{"function": {"name": "get_token", "parameters": SCHEMA}}, {"input_schema": SCHEMA}]}, set()),
        ({"tools": [{"parameters": {"token": "a default"}}, {"filters": {"key": "published_on", "value": "x"}}]}, set()),
        ({"tools": [{"authorization": None, "headers": {"x-api-key": ""}}], "mcp_servers": "none"}, set()),
        ({"messages": [{"authorization": "in a prompt"}], "max_tokens": 5}, set()),
        ({}, set()),
    ],
)  # fmt: skip
def test_secrets_in_a_body(body: dict[str, Any], secrets: set[str]) -> None:
    assert secrets_in(body) == secrets


@pytest.mark.parametrize(
    "body",
    ['{"tools":[{"authorization": "ya29.SECRET"', '{"tools":[{"authorization":"ya29.SECRET"},]}', '{"api_key" : "ya29.SECRET', '"x-key":"ya29.SECRET"'],
)  # fmt: skip
def test_secrets_in_a_body_that_is_not_json(body: str) -> None:
    assert secrets_in_text(body) == {"ya29.SECRET"}
