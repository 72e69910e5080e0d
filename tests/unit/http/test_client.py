"""What the client returns for a call that fails or waits too long, and for a list of models."""

from __future__ import annotations

import asyncio

import pytest

from deltatap.config import Timeouts
from deltatap.endpoint import Endpoint
from deltatap.http.client import EndpointClient
from deltatap.http.credentials import Credential, Token
from deltatap.model import Call, CaptureError
from tests.calls import HI, KEY, OK, WIRE, answering, call, chunk, refusal, refusing, server


def test_key_that_a_server_repeats_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    body = b'{"error": {"message": "Incorrect API key provided: %b", "code": "%b"}}' % (KEY.encode(), KEY.encode())
    made = call(refusing("401 Unauthorized", body), key=True)
    assert made.error is not None
    assert made.error.type == "authentication"
    assert made.error.message == "Incorrect API key provided: ***"
    assert KEY not in repr(made)


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
        ("429 X", b"{}", (b"retry-after: 47", b"Retry-After: 47"), ("rate_limit", 47.0)),
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
