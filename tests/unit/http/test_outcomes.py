"""Outcomes of calls: their status, and the translation of errors."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from deltatap.config import Timeouts
from deltatap.http.outcomes import FAILURES, cancelled, conclude, error_of, http_error, retry_after_s, used_up_for_s
from deltatap.model import ERRORS, CaptureError, Choice, Chunks, Received, StreamError

NOW = 1_800_000_000.0


def received(**facts: Any) -> Received:
    return Received(Chunks(), **facts)


SOME = received(choices=(Choice(0, "Hi"),), output=True)
LOST = CaptureError("connection", None, "gone")
IDLE = CaptureError("timeout", "idle", "silent")


@pytest.mark.parametrize(
    ("got", "failure", "status", "error"),
    [
        (received(output=True, finished=True), None, "completed", None),
        (received(finished=True), None, "completed", None),
        (received(output=True, finished=True), LOST, "completed", None),
        (received(output=True, done=True), None, "completed", None),
        (received(done=True), None, "failed", "protocol"),
        (SOME, None, "interrupted", "stream_interrupted"),
        (SOME, LOST, "interrupted", "stream_interrupted"),
        (SOME, IDLE, "interrupted", "timeout"),
        (SOME, CaptureError("cancelled", None, "cut"), "interrupted", "cancelled"),
        (received(), None, "failed", "stream_interrupted"),
        (received(), LOST, "failed", "connection"),
        (received(), IDLE, "failed", "timeout"),
        (received(output=True, error=StreamError("server_error", None, "Oh")), None, "interrupted", "stream_error"),
        (received(error=StreamError(None, "content_filter", "Oh")), None, "failed", "content_policy"),
        (received(output=True, protocol_error="event 3 is not valid JSON"), LOST, "interrupted", "protocol"),
        (received(protocol_error="event 0 is not valid JSON"), None, "failed", "protocol"),
    ],
)
def test_status_and_error_of_a_call(
    got: Received, failure: CaptureError | None, status: str, error: str | None
) -> None:
    found, why = conclude(got, failure)
    assert (found, why and why.type) == (status, error)


@pytest.mark.parametrize(
    ("status", "code", "type_"),
    [
        (400, None, "invalid_request"),
        (413, None, "invalid_request"),
        (422, None, "invalid_request"),
        (418, None, "invalid_request"),
        (400, "content_policy_violation", "content_policy"),
        (400, "content_filter", "content_policy"),
        (401, None, "authentication"),
        (402, None, "quota"),
        (403, None, "permission"),
        (404, "model_not_found", "not_found"),
        (404, "DeploymentNotFound", "not_found"),
        (408, None, "server"),
        (409, None, "server"),
        (429, "rate_limit_exceeded", "rate_limit"),
        (429, None, "rate_limit"),
        (429, "insufficient_quota", "quota"),
        (400, "insufficient_quota", "quota"),
        (403, "billing_hard_limit_reached", "quota"),
        (500, None, "server"),
        (503, None, "server"),
        (529, None, "server"),
    ],
)
def test_type_of_an_http_error(status: int, code: str | None, type_: str) -> None:
    body = {"error": {"code": code, "message": "Oh", "type": "x"}}
    error = http_error(status, body, {}, NOW)
    assert (error.type, error.http_status, error.message) == (type_, status, "Oh")
    inner = http_error(status, body["error"], {}, NOW)
    assert inner == error, "the openai client passes on the inner object"


@pytest.mark.parametrize(
    "body", [None, "", {}, {"error": None}, {"error": "Oh"}, "<html>Oh</html>", {"detail": 3}, [1]]
)
def test_http_error_with_any_other_body(body: Any) -> None:
    error = http_error(502, body, {}, NOW)
    assert error.type == "server"
    assert "Oh" in error.message or error.message == "HTTP 502"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:05 GMT"}, 5.0),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "12"}, 12.0),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
        ({"x-ratelimit-remaining-requests": "0"}, None),
        ({}, None),
    ],
)
def test_used_up_rate_limit(headers: dict[str, str], seconds: float | None) -> None:
    assert used_up_for_s(headers) == seconds
    assert retry_after_s(headers, NOW) == seconds
    assert retry_after_s({**headers, "retry-after": "3"}, NOW) == 3.0, "an explicit Retry-After comes first"


@pytest.mark.parametrize("class_", FAILURES)
def test_every_exception_has_a_translation(class_: type[Exception]) -> None:
    request = httpx2.Request("POST", "http://h/")
    made: dict[type[Exception], Exception] = {
        openai.APIStatusError: openai.APIStatusError("x", response=httpx2.Response(429, request=request), body=None),
        openai.APIConnectionError: openai.APIConnectionError(request=request),
    }
    error = error_of(made.get(class_) or class_("gone"), 200, NOW)
    assert error.type in ERRORS


def test_lost_connection_is_described_by_its_cause() -> None:
    error = openai.APIConnectionError(request=httpx2.Request("POST", "http://h/"))
    error.__cause__ = httpx2.ConnectError("h:80: refused")
    assert error_of(error, None, NOW) == CaptureError("connection", "ConnectError", "h:80: refused")
    assert error_of(httpx2.ReadError(""), 200, NOW) == CaptureError("connection", "ReadError", "ReadError")


def test_cancelled_call_is_a_timeout_or_a_stop() -> None:
    error = cancelled("idle", Timeouts(idle_s=1.5))
    assert error == CaptureError("timeout", "idle", "no more bytes of the response after 1.5 s (timeouts.idle_s)")
    assert cancelled(None, Timeouts()).type == "cancelled"
