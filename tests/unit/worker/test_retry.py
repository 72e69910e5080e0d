"""Which calls are retried, when, and how long the whole run waits; in virtual time."""

from __future__ import annotations

import math

import pytest

from deltatap.config import Capture
from deltatap.model import ERRORS, Call, CaptureError, Chunks, Received, Status, Tries
from deltatap.worker.retry import CoolDown, Retry, cool_down, next_try, stops_run, too_long_s

LIMITS = Capture(max_attempts=3, max_broken=2, retry_for_s=10)
DOWN = CaptureError("server", None, "x", 500)
LIMITED = CaptureError("rate_limit", None, "x", 429)
WAIT_2 = CaptureError("rate_limit", None, "x", 429, retry_after_s=2.0)
LOST = CaptureError("stream_interrupted", None, "x")
TOTAL = CaptureError("timeout", "total", "x")


def down(retry_after_s: float | None) -> CaptureError:
    return CaptureError("server", None, "x", 503, retry_after_s)


def limited(retry_after_s: float | None) -> CaptureError:
    return CaptureError("rate_limit", None, "x", 429, retry_after_s)


def waits_after(
    status: Status, error: CaptureError | None, count: int = 9, jitter: float = 1.0, limits: Capture = LIMITS
) -> list[float | None]:
    """The waits after calls that all end the same way and take no time, up to the first None."""
    tries, waits, now = Tries(), list[float | None](), 0.0
    for _ in range(count):
        retry = next_try(tries, status, error, limits, now=now, jitter=jitter)
        waits.append(None if retry is None else retry.delay_s)
        if retry is None:
            break
        now += retry.delay_s
    return waits


@pytest.mark.parametrize(
    ("status", "error", "waits"),
    [
        pytest.param("completed", None, [None], id="completed"),
        pytest.param("failed", DOWN, [0.5, 1.0, None], id="max_attempts calls"),
        pytest.param("interrupted", LOST, [0.5, None], id="max_broken calls"),
        pytest.param("interrupted", CaptureError("timeout", "idle", "x"), [0.5, None], id="idle after output"),
        pytest.param("interrupted", LIMITED, [0.5, None], id="a rate limit after output"),
        pytest.param("interrupted", TOTAL, [None], id="total timeout after output"),
        pytest.param("failed", TOTAL, [None], id="total timeout"),
        pytest.param("failed", CaptureError("timeout", "connect", "x"), [0.5, 1.0, None], id="connect timeout"),
        pytest.param("interrupted", CaptureError("cancelled", None, "x"), [None], id="cancelled"),
        pytest.param("interrupted", CaptureError("content_policy", None, "x"), [None], id="a policy after output"),
        pytest.param("interrupted", CaptureError("internal", "cut", "x"), [None], id="a fault of ours, cut"),
        pytest.param("interrupted", CaptureError("internal", "complete", "x"), [None], id="a fault of ours, complete"),
        pytest.param("failed", CaptureError("internal", "request", "x"), [None], id="a fault of ours before the call"),
    ],
)
def test_retries(status: Status, error: CaptureError | None, waits: list[float | None]) -> None:
    assert waits_after(status, error) == waits


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        pytest.param(down(4.0), [4.0, 4.0, None], id="another error's Retry-After"),
        pytest.param(down(0.7), [0.7, 1.0, None], id="the longer of both"),
        pytest.param(down(10.0), [10.0, None], id="as long as retry_for_s"),
        pytest.param(down(6.0), [6.0, None], id="the second would end too late"),
        pytest.param(down(10.1), [None], id="longer than retry_for_s"),
        pytest.param(down(3600.0), [None], id="an hour"),
        pytest.param(down(math.inf), [None], id="for ever"),
        pytest.param(down(1e300), [None], id="nearly for ever"),
        pytest.param(down(math.nan), [0.5, 1.0, None], id="not a number"),
        pytest.param(down(-5.0), [0.5, 1.0, None], id="in the past"),
        pytest.param(limited(4.0), [4.0, 4.0, None], id="until retry_for_s has passed"),
        pytest.param(limited(10.1), [None], id="a 429 longer than retry_for_s"),
        pytest.param(limited(math.inf), [None], id="a 429 for ever"),
        pytest.param(limited(math.nan), [0.5, 1.0, 2.0, 4.0, None], id="a 429 that is not a number"),
        pytest.param(limited(0.0), [0.5, 1.0, 2.0, 4.0, None], id="a 429 that asks for no wait"),
        pytest.param(limited(None), [0.5, 1.0, 2.0, 4.0, None], id="a 429 without Retry-After"),
    ],
)
def test_no_request_waits_longer_than_retry_for_s(error: CaptureError, waits: list[float | None]) -> None:
    assert waits_after("failed", error) == waits


def test_the_time_counts_from_the_first_failure_of_any_kind() -> None:
    tries = Tries()
    assert next_try(tries, "failed", DOWN, LIMITS, now=100.0, jitter=1) is not None
    assert next_try(tries, "failed", limited(9.0), LIMITS, now=101.0, jitter=1) is not None
    assert next_try(tries, "failed", limited(9.0), LIMITS, now=101.1, jitter=1) is None


def test_rate_limits_are_not_attempts() -> None:
    tries = Tries()
    for now in (100.0, 102.0, 104.0, 106.0, 108.0):
        retry = next_try(tries, "failed", WAIT_2, LIMITS, now=now, jitter=0)
        assert retry is not None
        assert retry.delay_s == 2.0
    assert (tries.attempts, tries.waits) == (0, 5)
    assert next_try(tries, "failed", DOWN, LIMITS, now=108.0, jitter=0) is not None
    assert next_try(tries, "failed", WAIT_2, LIMITS, now=108.1, jitter=0) is None


def test_backoff_has_jitter_and_a_maximum() -> None:
    assert waits_after("failed", DOWN, jitter=0.0)[:2] == [0.25, 0.5]
    waits = waits_after("failed", DOWN, 40, limits=Capture(max_attempts=99))
    assert waits[5:7] == [16.0, 30.0]
    assert waits[-1] == 30.0
    short = waits_after("failed", DOWN, 40, limits=Capture(max_attempts=99, retry_for_s=3))
    assert max(wait for wait in short if wait is not None) == 3.0, "never longer than retry_for_s"


def test_no_wait_at_all() -> None:
    never = Capture(retry_for_s=0, max_attempts=2)
    assert waits_after("failed", LIMITED, limits=never) == [None]
    assert waits_after("failed", WAIT_2, limits=never) == [None]
    assert waits_after("failed", DOWN, limits=never) == [0.0, None]


def call(error: CaptureError | None, used_up_for_s: float | None = None) -> Call:
    status: Status = "failed" if error else "completed"
    return Call(0, 0, 0, 0, 0, 0, None, Received(Chunks()), status, error, 200, used_up_for_s=used_up_for_s)


HEADER = "rate limited by the server (as the server asks)"
BACK_OFF = "rate limited by the server (back-off)"
RESET = "no requests or tokens are left in the server's rate limit (x-ratelimit-reset)"


@pytest.mark.parametrize(
    ("error", "used_up_for_s", "expected"),
    [
        pytest.param(None, None, None, id="completed"),
        pytest.param(None, 12.0, CoolDown(12.0, RESET), id="nothing is left"),
        pytest.param(None, 3600.0, CoolDown(60.0, RESET), id="at most 60 s"),
        pytest.param(None, math.inf, CoolDown(60.0, RESET), id="for ever"),
        pytest.param(None, math.nan, None, id="not a number"),
        pytest.param(None, -3.0, None, id="in the past"),
        pytest.param(DOWN, 3600.0, CoolDown(60.0, RESET), id="another error"),
        pytest.param(limited(2.0), None, CoolDown(2.0, HEADER), id="Retry-After"),
        pytest.param(limited(2.0), 3600.0, CoolDown(2.0, HEADER), id="Retry-After beats the reset"),
        pytest.param(limited(5.0), 1.0, CoolDown(5.0, HEADER), id="also if the reset is sooner"),
        pytest.param(limited(3600.0), None, CoolDown(10.0, HEADER), id="never longer than retry_for_s"),
        pytest.param(limited(math.inf), None, CoolDown(10.0, HEADER), id="not for ever"),
        pytest.param(limited(None), None, CoolDown(0.5, BACK_OFF), id="the request's back-off"),
        pytest.param(down(5.0), None, None, id="another error's Retry-After is its request's own"),
    ],
)
def test_how_long_the_whole_run_waits(
    error: CaptureError | None, used_up_for_s: float | None, expected: CoolDown | None
) -> None:
    ended = call(error, used_up_for_s)
    retry = next_try(Tries(), ended.status, error, LIMITS, now=0.0, jitter=1.0)
    assert cool_down(ended, retry, LIMITS) == expected


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (limited(10.0), None),
        (limited(10.1), 10.1),
        (limited(math.inf), math.inf),
        (limited(math.nan), None),
        (limited(None), None),
        (down(3600.0), None),
        (None, None),
    ],
)
def test_only_a_rate_limit_asks_the_run_to_wait_too_long(error: CaptureError | None, wait: float | None) -> None:
    assert too_long_s(error, LIMITS) == wait


def test_a_retry_says_why_it_waits() -> None:
    whys = {
        limited(2.0): HEADER,
        limited(None): BACK_OFF,
        down(2.0): "retry after server 503 (as the server asks)",
        down(math.nan): "retry after server 503 (back-off)",
        CaptureError("connection", None, "x"): "retry after connection (back-off)",
    }
    for error, why in whys.items():
        retry = next_try(Tries(), "failed", error, LIMITS, now=0.0, jitter=1.0)
        assert isinstance(retry, Retry)
        assert retry.why == why


# For each type of error: how many calls a request gets if all fail like this, and whether the error stops the run.
CALLS = {
    "invalid_request": (1, False),
    "content_policy": (1, False),
    "authentication": (1, True),
    "wrong_url": (1, True),
    "quota": (1, True),
    "permission": (1, False),
    "not_found": (1, False),
    "rate_limit": (5, False),
    "timeout": (3, False),
    "connection": (3, False),
    "server": (3, False),
    "stream_interrupted": (3, False),
    "stream_error": (3, False),
    "protocol": (3, False),
    "cancelled": (1, False),
    "internal": (1, False),
}


@pytest.mark.parametrize("type_", ERRORS)
def test_each_type_of_error(type_: str) -> None:
    error, (calls, stops) = CaptureError(type_, None, "x"), CALLS[type_]
    assert (len(waits_after("failed", error)), stops_run(error)) == (calls, stops)
    assert error.retryable == (calls > 1)
