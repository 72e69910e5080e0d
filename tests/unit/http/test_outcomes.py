"""Outcomes of calls: their status, and the translation of errors."""

from __future__ import annotations

import json
from typing import Any

import httpx2
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
        (
            received(output=True, finished=True, error=StreamError(None, None, "Oh")),
            None,
            "interrupted",
            "stream_error",
        ),
        (received(output=True, finished=True, protocol_error="Oh"), None, "interrupted", "protocol"),
        (received(output=True, error=StreamError(None, "x", "Oh", 401)), None, "interrupted", "authentication"),
        (received(output=True, error=StreamError(None, "x", "Oh", 402)), None, "interrupted", "quota"),
        (received(output=True, error=StreamError(None, "x", "Oh", 429)), None, "interrupted", "stream_error"),
        (received(error=StreamError(None, "x", "Oh", 429)), None, "failed", "rate_limit"),
        (received(output=True, error=StreamError(None, "content_filter", "")), None, "interrupted", "content_policy"),
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
        (529, None, "rate_limit"),
        (498, None, "rate_limit"),
        (424, None, "server"),
        (499, None, "server"),
        (522, None, "server"),
        (301, None, "wrong_url"),
        (307, None, "wrong_url"),
        (405, None, "wrong_url"),
        (503, "Insufficient_Quota", "quota"),
        (400, "Arrearage", "quota"),
        (403, "content_policy_violation", "content_policy"),
        (451, None, "invalid_request"),
        (400, "budget_exceeded", "quota"),
        (429, "budget_exceeded", "quota"),
        (429, "exceeded_current_quota_error", "quota"),
        (412, "PRECONDITION_FAILED", "quota"),
        (412, None, "invalid_request"),
        (400, "FAILED_PRECONDITION", "invalid_request"),
        (400, "invalid_api_key", "authentication"),
    ],
)
def test_type_of_an_http_error(status: int, code: str | None, type_: str) -> None:
    body = {"error": {"code": code, "message": "Oh", "type": "x"}}
    error = http_error(status, json.dumps(body).encode(), {}, NOW)
    assert (error.type, error.http_status) == (type_, status)
    assert "Oh" in error.message


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"null", b'{"error":null}', b'{"error":"Oh"}', b"<html>Oh</html>", b"[" * 9000, b"\xff"]
)
def test_http_error_with_any_other_body(body: bytes) -> None:
    error = http_error(502, body, {}, NOW)
    assert error.type == "server"
    assert error.message


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
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "9" * 5000}, None),
        ({"retry-after": "99999999999999"}, 10.0**9),
        ({"retry-after": "Fri, 15 Jan 99999999999 08:00:05 GMT"}, None),
        ({"retry-after": "Friday, 15-Jan-27 08:00:05 GMT"}, 5.0),
        ({"retry-after": ""}, None),
        ({"retry-after": "47, 47"}, 47.0),
        ({"retry-after": "3, 47"}, 47.0),
        ({"retry-after": "soon, 3"}, 3.0),
        ({"retry-after": "2027-01-15T08:00:09,5Z"}, 9.5),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:05 GMT, Fri, 15 Jan 2027 08:00:05 GMT"}, 5.0),
        ({"retry-after": ", " * 99_999 + "3"}, None),
        ({"retry-after-ms": "1500, 1500"}, 1.5),
        ({"llm_provider-retry-after": "47"}, 47.0),
        ({"llm_provider-retry-after-ms": "1500"}, 1.5),
        ({"llm_provider-retry-after": "47", "retry-after": "3"}, 3.0),
        ({"llm_provider-retry-after": "Fri, 15 Jan 2027 08:00:05 GMT"}, 5.0),
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
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1800000007"}, 7.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1800000007500"}, 7.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1d2h"}, 93600.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1800000002000"}, 2.0),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:09Z",
            },
            9.0,
        ),
        ({}, None),
    ],
)
def test_used_up_rate_limit(headers: dict[str, str], seconds: float | None) -> None:
    assert used_up_for_s(headers, NOW) == (None if seconds is None else min(seconds, 60.0))
    assert retry_after_s(headers, NOW) == seconds
    assert retry_after_s({**headers, "retry-after": "3"}, NOW) == 3.0, "an explicit Retry-After comes first"


@pytest.mark.parametrize("class_", FAILURES)
def test_every_exception_has_a_translation(class_: type[Exception]) -> None:
    error = error_of(class_("gone"), 200, NOW)
    assert error.type in ERRORS


def test_lost_connection_is_described_by_its_cause() -> None:
    error = httpx2.ConnectError("h:80: refused")
    assert error_of(error, None, NOW) == CaptureError("connection", "ConnectError", "h:80: refused")
    assert error_of(httpx2.ReadError(""), 200, NOW) == CaptureError("connection", "ReadError", "ReadError")


def test_cancelled_call_is_a_timeout_or_a_stop() -> None:
    error = cancelled("idle", Timeouts(idle_s=1.5))
    assert error == CaptureError("timeout", "idle", "no more bytes of the response after 1.5 s (timeouts.idle_s)")
    assert cancelled(None, Timeouts()).type == "cancelled"


def test_wrong_url_names_what_was_called() -> None:
    error = http_error(301, b"", {"location": "https://x/v1/"}, NOW, url="http://x/chat")
    assert error.message == (
        "http://x/chat answered HTTP 301 and points to https://x/v1/; endpoint.base_url is probably wrong"
    )


@pytest.mark.parametrize(
    ("status", "error", "type_"),
    [
        (403, {"message": "Oh", "metadata": {"reasons": ["violence"]}}, "content_policy"),
        (403, {"message": "Oh", "metadata": {"flagged_input": "x"}}, "content_policy"),
        (403, {"message": "Oh", "metadata": {"reasons": []}}, "permission"),
        (403, {"message": "insufficient_quota content_filter"}, "permission"),
        (400, {"message": "Oh", "innererror": {"code": "ResponsibleAIPolicyViolation"}}, "content_policy"),
        (403, "Content violates usage guidelines. Team: t, Failed check: SAFETY_CHECK_TYPE_BIO", "content_policy"),
        (403, "Request blocked. Failed check: SAFETY_CHECK_TYPE_BIO", "content_policy"),
        (403, "Access to the chat endpoint is denied.", "permission"),
    ],
)
def test_moderation_is_not_a_missing_right(status: int, error: Any, type_: str) -> None:
    assert http_error(status, json.dumps({"error": error}).encode(), {}, NOW).type == type_


CREDIT = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."
LIMIT = "You have reached your specified API usage limits. You will regain access on 2027-02-01."
KEY = "API key not valid. Please pass a valid API key."
XAI = "Incorrect API key provided: sk***gA. You can obtain an API key from https://console.x.ai."
TOO_LARGE = "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 48402."
USED_UP = "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29937, Requested 385."
INFO = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "domain": "googleapis.com"}


def gemini(message: str, *details: object) -> dict[str, Any]:
    return {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": message, "details": details}}


def anthropic(message: str) -> str:
    return json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": message}})


@pytest.mark.parametrize(
    ("status", "body", "type_"),
    [
        (400, [gemini(KEY)], "authentication"),
        (400, gemini("Oh", {**INFO, "reason": "API_KEY_INVALID"}), "authentication"),
        (400, [gemini("Oh", 1, {"@type": "x"}, {**INFO, "reason": "API_KEY_EXPIRED"})], "authentication"),
        (400, gemini("API key expired. Please renew the API key."), "authentication"),
        (400, [gemini("Missing or invalid Authorization header.")], "authentication"),
        (400, {"error": {"message": json.dumps(gemini(KEY), indent=2), "code": 400}}, "authentication"),
        (400, {"code": "Client specified an invalid argument", "error": XAI}, "authentication"),
        (400, {"code": "x", "error": XAI.replace(" ", "%20")}, "authentication"),
        (400, [gemini(f"Invalid value: '{KEY}'", {"@type": "x", "reason": "API_KEY_INVALID"})], "invalid_request"),
        (400, {"detail": [{"loc": ["body"], "msg": "Oh", "input": {"message": KEY}}]}, "invalid_request"),
        (400, {"error": {"message": f"unknown field in {{'messages': ['{CREDIT}']}}"}}, "invalid_request"),
        (400, {"error": {"message": json.dumps({"messages": [{"message": CREDIT}]})}}, "invalid_request"),
        (400, {"error": {"message": CREDIT, "type": "invalid_request_error"}}, "quota"),
        (400, {"error": {"message": f"litellm.BadRequestError: AnthropicException - {anthropic(CREDIT)}"}}, "quota"),
        (400, {"error": {"message": f"litellm.BadRequestError: AnthropicException - b'{anthropic(CREDIT)}'"}}, "quota"),
        (400, {"error": {"message": f"litellm.BadRequestError: AnthropicException - {anthropic(LIMIT)}"}}, "quota"),
        (400, {"error": {"message": "Provider returned error", "metadata": {"raw": anthropic(CREDIT)}}}, "quota"),
        (400, [gemini("Gemini API free tier is not available in your country.")], "quota"),
        (400, [gemini("User location is not supported for the API use.")], "permission"),
        (400, {"error": {"message": "litellm.BadRequestError: OpenAIException - Budget has been exceeded! C"}}, "quota"),
        (400, {"error": {"message": f"litellm.BadRequestError: AnthropicException - {anthropic('Oh')}"}}, "invalid_request"),
        (422, {"error": {"message": CREDIT}}, "invalid_request"),
        (429, {"error": {"message": TOO_LARGE, "type": "tokens", "code": "rate_limit_exceeded"}}, "invalid_request"),
        (429, {"error": {"message": USED_UP, "type": "tokens", "code": "rate_limit_exceeded"}}, "rate_limit"),
        (429, {"error": {"message": "Limit 3, Requested 1", "code": "rate_limit_exceeded"}}, "rate_limit"),
    ],
)  # fmt: skip
def test_type_that_only_the_message_or_the_details_show(status: int, body: object, type_: str) -> None:
    error = http_error(status, json.dumps(body).encode(), {}, NOW)
    assert (error.type, error.http_status) == (type_, status)


@pytest.mark.parametrize(
    ("error", "before", "after"),
    [
        (StreamError("INVALID_ARGUMENT", "400", KEY, 400), "authentication", "authentication"),
        (StreamError("invalid_request_error", None, CREDIT, 400), "quota", "quota"),
        (StreamError("tokens", "rate_limit_exceeded", TOO_LARGE, 429), "invalid_request", "stream_error"),
        (StreamError(None, "403", "Content violates usage guidelines.", 403), "content_policy", "content_policy"),
        (StreamError("invalid_request_error", None, None, 400), "invalid_request", "stream_error"),
    ],
)
def test_message_shows_the_type_of_an_error_in_a_stream_too(error: StreamError, before: str, after: str) -> None:
    found = [conclude(received(error=error, output=output), None)[1] for output in (False, True)]
    assert [each and each.type for each in found] == [before, after]
