"""The design's table, "What happens to an outcome", row by row."""

from __future__ import annotations

from typing import Any

import pytest

from deltatap.delta.final import final_sql
from deltatap.http.outcomes import conclude, http_error, retry_after_s, used_up_for_s
from deltatap.model import ERRORS, CaptureError, Choice, Chunks, Received, Status, StreamError, Tries
from deltatap.worker.retry import Again, RetryPolicy, next_try, stops_run

POLICY = RetryPolicy(max_attempts=3, max_broken=2, retry_for_s=10)
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
        (received(output=True, protocol_error="event 3 is no JSON"), LOST, "interrupted", "protocol"),
        (received(protocol_error="event 0 is no JSON"), None, "failed", "protocol"),
    ],
)
def test_how_a_call_ended(got: Received, failure: CaptureError | None, status: str, error: str | None) -> None:
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
        (500, None, "server"),
        (503, None, "server"),
        (529, None, "server"),
    ],
)
def test_what_a_refusal_is(status: int, code: str | None, type_: str) -> None:
    body = {"error": {"code": code, "message": "Oh", "type": "x"}}
    error = http_error(status, body, {}, NOW)
    assert (error.type, error.http_status, error.message) == (type_, status, "Oh")
    inner = http_error(status, body["error"], {}, NOW)
    assert inner == error, "the openai client hands over what is inside `error`"


@pytest.mark.parametrize(
    "body", [None, "", {}, {"error": None}, {"error": "Oh"}, "<html>Oh</html>", {"detail": 3}, [1]]
)
def test_a_refusal_without_openai_s_body_is_understood(body: Any) -> None:
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
def test_how_long_the_server_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


# What the design says of each kind: (tried again in this run when nothing had arrived, owed by the next, stops the run).
DESIGN = {
    "invalid_request": ("never", False, False),
    "content_policy": ("never", False, False),
    "authentication": ("never", True, True),
    "permission": ("never", True, True),
    "not_found": ("never", True, True),
    "quota": ("never", True, True),
    "rate_limit": ("waiting", True, False),
    "timeout": ("attempt", True, False),
    "connection": ("attempt", True, False),
    "server": ("attempt", True, False),
    "stream_interrupted": ("attempt", True, False),
    "stream_error": ("attempt", True, False),
    "protocol": ("attempt", True, False),
    "cancelled": ("never", True, False),
}


@pytest.mark.parametrize("type_", DESIGN)
def test_each_kind_is_handled_as_the_design_says(type_: str) -> None:
    again, owed, stops = DESIGN[type_]
    error = CaptureError(type_, None, "x")
    assert stops_run(error) == stops
    assert error.retryable == (again != "never")
    assert ("'" + type_ + "'" in final_sql("c", keep_interrupted=False)) == (not owed)
    assert calls(error, "failed") == {"never": 1, "attempt": POLICY.max_attempts, "waiting": 11}[again]


def test_no_kind_is_forgotten() -> None:
    assert set(ERRORS) == set(DESIGN)


def calls(error: CaptureError | None, status: Status, wait: float = 1.0) -> int:
    """How often a request is called when each call ends so; rate limits ask for a second each time."""
    if error is not None and error.type == "rate_limit":
        error = CaptureError("rate_limit", None, "x", 429, wait)
    tries, now, count = Tries(), 100.0, 1
    while (again := next_try(tries, status, error, POLICY, now=now, jitter=0.5)) is not None:
        now += again.delay_s
        count += 1
        assert count < 1000
    return count


def test_a_completed_call_is_not_tried_again() -> None:
    assert calls(None, "completed") == 1


def test_broken_streams_have_a_limit_of_their_own() -> None:
    assert calls(CaptureError("stream_interrupted", None, "x"), "interrupted") == POLICY.max_broken
    assert calls(IDLE, "interrupted") == POLICY.max_broken
    assert calls(CaptureError("timeout", "total", "x"), "interrupted") == 1
    assert calls(CaptureError("timeout", "total", "x"), "failed") == 1
    assert calls(CaptureError("cancelled", None, "x"), "interrupted") == 1


def test_rate_limits_are_not_counted_as_attempts() -> None:
    tries = Tries()
    limited = CaptureError("rate_limit", None, "x", 429, 2.0)
    down = CaptureError("server", None, "x", 500)
    for now in (0.0, 2.0, 4.0, 6.0):
        assert next_try(tries, "failed", limited, POLICY, now=now, jitter=0) == Again(2.0, cool_s=2.0)
    assert tries.attempts == 0
    assert next_try(tries, "failed", down, POLICY, now=8, jitter=0) is not None
    assert next_try(tries, "failed", limited, POLICY, now=9, jitter=0) is None, "retry_for_s has passed"


def test_a_rate_limit_that_names_no_time_backs_off() -> None:
    tries = Tries()
    limited = CaptureError("rate_limit", None, "x", 429)
    waits = [next_try(tries, "failed", limited, POLICY, now=0, jitter=1) for _ in range(3)]
    assert waits == [Again(0.5, 0.5), Again(1.0, 1.0), Again(2.0, 2.0)]


def test_the_server_s_wait_is_kept_for_other_errors_too() -> None:
    again = next_try(Tries(), "failed", CaptureError("server", None, "x", 503, 7.0), POLICY, now=0, jitter=0)
    assert again == Again(7.0)


def test_interrupted_rows_are_final_when_they_are_kept() -> None:
    assert "interrupted" not in final_sql("c", keep_interrupted=False)
    assert final_sql("c", keep_interrupted=True).endswith("OR c.status = 'interrupted')")


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
def test_how_long_nothing_is_left(headers: dict[str, str], seconds: float | None) -> None:
    assert used_up_for_s(headers) == seconds
    assert retry_after_s(headers, NOW) == seconds
    assert retry_after_s({**headers, "retry-after": "3"}, NOW) == 3.0, "the server's own word comes first"
