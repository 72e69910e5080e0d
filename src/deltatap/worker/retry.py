"""Which outcomes a worker retries within a run, when it retries them, and how long all other requests wait.

Pure: times are passed in. :data:`deltatap.model.ERRORS` is the table of outcomes; this module applies the limits of
the configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from deltatap.model import ERRORS

if TYPE_CHECKING:
    from deltatap.config import Capture
    from deltatap.model import Call, CaptureError, Status, Tries


_BACKOFF_S = 0.5
_BACKOFF_MAX_S = 30.0
# A header of a response other than a 429 delays the run by at most this time.
_HEADER_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Retry after ``delay_s`` seconds, and say why."""

    delay_s: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class CoolDown:
    """Start nothing in the whole run for ``seconds``, and say why."""

    seconds: float
    why: str


def next_try(
    tries: Tries, status: Status, error: CaptureError | None, limits: Capture, *, now: float, jitter: float
) -> Retry | None:
    """Decide when to retry after a call; None means no retry. Counts the call in ``tries``.

    Args:
        tries: updated in place.
        status: the call's status.
        error: the call's error; None when it completed.
        limits: ``max_attempts``, ``max_broken`` and ``retry_for_s``.
        now: monotonic seconds.
        jitter: from 0 to 1; scales the back-off from half of its length to all of it.
    """
    if error is None:
        return None
    kind = ERRORS[error.type]
    waits = status != "interrupted" and kind.retry == "waiting"
    if status == "interrupted":
        tries.broken += 1
        count, enough = tries.broken, tries.broken >= limits.max_broken
    elif waits:
        tries.waits += 1
        count, enough = tries.waits, False
    else:
        tries.attempts += 1
        count, enough = tries.attempts, tries.attempts >= limits.max_attempts
    if tries.failing_since is None:
        tries.failing_since = now
    out_of_time = error.type == "timeout" and error.code == "total"
    if kind.retry == "never" or out_of_time or enough:
        return None
    asked, back_off = asked_s(error), backoff(count, jitter)
    wait = asked or back_off if waits else max(asked or 0.0, min(back_off, limits.retry_for_s))
    if (waits or asked is not None) and now + wait - tries.failing_since > limits.retry_for_s:
        return None
    return Retry(wait, _why(error))


def asked_s(error: CaptureError) -> float | None:
    """How long the server asks to wait, in seconds; None when it does not say."""
    asked = error.retry_after_s
    return None if asked is None or math.isnan(asked) else max(0.0, asked)


def cool_down(call: Call, retry: Retry | None, limits: Capture) -> CoolDown | None:
    """How long the run must start no request after a call; None if the next one may start at once.

    After a 429 the run waits as long as the request itself, so ``Retry-After`` beats the headers that say when a
    used-up limit is reset. Those headers in any other response delay the run, but not for long.

    Args:
        call: the call.
        retry: when its request is retried; None if it is not.
        limits: ``retry_for_s``.
    """
    if waits_for_all(call.error) and call.error is not None:
        asked = asked_s(call.error) or 0.0
        wait = min(retry.delay_s if retry else asked, limits.retry_for_s)
        return CoolDown(wait, _why(call.error)) if wait > 0 else None
    reset = call.used_up_for_s or 0.0
    if not reset > 0:  # also if it is not a number
        return None
    return CoolDown(
        min(reset, _HEADER_MAX_S), "no requests or tokens are left in the server's rate limit (x-ratelimit-reset)"
    )


def pause_s(error: CaptureError) -> float | None:
    """How long the run pauses after the error of a call that is not a request of the plan; None for no pause."""
    return min(asked_s(error) or _BACKOFF_S, _HEADER_MAX_S) if waits_for_all(error) else None


def too_long_s(error: CaptureError | None, limits: Capture) -> float | None:
    """The wait that the server asks of the whole run, if it is longer than any request may wait."""
    asked = asked_s(error) if error is not None and waits_for_all(error) else None
    return asked if asked is not None and asked > limits.retry_for_s else None


def longest_s(limits: Capture) -> float:
    """The maximum time for which a response can delay the whole run."""
    return max(_HEADER_MAX_S, limits.retry_for_s)


def until(now: float, wait_s: float) -> str:
    """When a wait ends, as text; `now` is in seconds since the epoch."""
    try:
        return f"until {datetime.fromtimestamp(now + wait_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"for {wait_s:.3g} s"


def waits_for_all(error: CaptureError | None) -> bool:
    """Whether an error asks the whole run to wait: a rate limit."""
    return error is not None and ERRORS[error.type].retry == "waiting"


def stops_run(error: CaptureError | None) -> bool:
    """Whether no other request of the run can succeed either: a wrong key or URL, an exhausted quota."""
    return error is not None and ERRORS[error.type].stops_run


def backoff(tries: int, jitter: float) -> float:
    """How long to wait after this many failures, in seconds; `jitter` is from 0 to 1."""
    return float(min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** (min(tries, 16) - 1)) * (0.5 + jitter / 2))


def _why(error: CaptureError) -> str:
    what = (
        "rate limited by the server" if waits_for_all(error) else f"retry after {error.type} {error.http_status or ''}"
    )
    return f"{what.strip()} ({'back-off' if asked_s(error) is None else 'as the server asks'})"
