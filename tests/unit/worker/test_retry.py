"""Which calls are retried, and when."""

from __future__ import annotations

import pytest

from deltatap.config import Capture
from deltatap.model import ERRORS, CaptureError, Status, Tries
from deltatap.worker.retry import Retry, next_try, stops_run

LIMITS = Capture(max_attempts=3, max_broken=2, retry_for_s=10)
DOWN = CaptureError("server", None, "x", 500)
LIMITED = CaptureError("rate_limit", None, "x", 429)
WAIT_2 = CaptureError("rate_limit", None, "x", 429, retry_after_s=2.0)
LOST = CaptureError("stream_interrupted", None, "x")
TOTAL = CaptureError("timeout", "total", "x")


def decisions_after(
    status: Status, error: CaptureError | None, count: int = 9, jitter: float = 1.0
) -> list[Retry | None]:
    """The decisions after calls that all end the same way, up to the first None."""
    tries, decisions = Tries(), []
    for _ in range(count):
        decisions.append(next_try(tries, status, error, LIMITS, now=0.0, jitter=jitter))
        if decisions[-1] is None:
            break
    return decisions


@pytest.mark.parametrize(
    ("status", "error", "decisions"),
    [
        pytest.param("completed", None, [None], id="completed"),
        pytest.param("failed", DOWN, [Retry(0.5), Retry(1.0), None], id="max_attempts calls"),
        pytest.param("interrupted", LOST, [Retry(0.5), None], id="max_broken calls"),
        pytest.param("interrupted", CaptureError("timeout", "idle", "x"), [Retry(0.5), None], id="idle after output"),
        pytest.param("interrupted", TOTAL, [None], id="total timeout after output"),
        pytest.param("failed", TOTAL, [None], id="total timeout"),
        pytest.param("failed", CaptureError("timeout", "connect", "x"), [Retry(0.5), Retry(1.0), None], id="connect timeout"),
        pytest.param("interrupted", CaptureError("cancelled", None, "x"), [None], id="cancelled"),
        pytest.param("failed", CaptureError("server", None, "x", 503, 7.0), [Retry(7.0), Retry(7.0), None], id="Retry-After of another error"),
        pytest.param("failed", CaptureError("server", None, "x", 503, 0.7), [Retry(0.7), Retry(1.0), None], id="the longer of both waits"),
    ],
)  # fmt: skip
def test_retries(status: Status, error: CaptureError | None, decisions: list[Retry | None]) -> None:
    assert decisions_after(status, error) == decisions


def test_rate_limits_back_off_until_retry_for_s_and_cool_down_the_run() -> None:
    assert decisions_after("failed", LIMITED) == [Retry(wait, wait) for wait in (0.5, 1.0, 2.0, 4.0, 8.0)] + [None]


def test_rate_limits_are_not_attempts_and_have_a_total_time() -> None:
    tries = Tries()
    for now in (100.0, 102.0, 104.0, 106.0, 108.0):
        assert next_try(tries, "failed", WAIT_2, LIMITS, now=now, jitter=0) == Retry(2.0, cool_s=2.0)
    assert (tries.attempts, tries.waits) == (0, 5)
    assert next_try(tries, "failed", DOWN, LIMITS, now=108.0, jitter=0) is not None
    assert next_try(tries, "failed", WAIT_2, LIMITS, now=108.1, jitter=0) is None


def test_backoff_has_jitter_and_a_maximum() -> None:
    assert decisions_after("failed", DOWN, jitter=0.0)[:2] == [Retry(0.25), Retry(0.5)]
    many = Capture(max_attempts=99)
    tries = Tries()
    waits = [next_try(tries, "failed", DOWN, many, now=0.0, jitter=1.0) for _ in range(40)]
    assert waits[5:7] == [Retry(16.0), Retry(30.0)]
    assert waits[-1] == Retry(30.0)


# For each type of error: how many calls a request gets if all fail like this, and whether the error stops the run.
CALLS = {
    "invalid_request": (1, False),
    "content_policy": (1, False),
    "authentication": (1, True),
    "permission": (1, True),
    "not_found": (1, True),
    "quota": (1, True),
    "rate_limit": (6, False),
    "timeout": (3, False),
    "connection": (3, False),
    "server": (3, False),
    "stream_interrupted": (3, False),
    "stream_error": (3, False),
    "protocol": (3, False),
    "cancelled": (1, False),
}


@pytest.mark.parametrize("type_", ERRORS)
def test_each_type_of_error(type_: str) -> None:
    error, (calls, stops) = CaptureError(type_, None, "x"), CALLS[type_]
    assert (len(decisions_after("failed", error)), stops_run(error)) == (calls, stops)
    assert error.retryable == (calls > 1)


def test_a_completed_call_does_not_stop_the_run() -> None:
    assert not stops_run(None)
