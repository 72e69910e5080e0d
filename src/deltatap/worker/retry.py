"""Which outcomes a worker retries within a run, and when. Pure: times and random numbers are passed in.

The table of outcomes is :data:`deltatap.model.ERRORS`; this module applies the limits of the configuration to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltatap.model import ERRORS

if TYPE_CHECKING:
    from deltatap.config import Capture
    from deltatap.model import CaptureError, Status, Tries


_BACKOFF_S = 0.5
_BACKOFF_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Retry after ``delay_s`` seconds; the whole run starts nothing for ``cool_s`` seconds."""

    delay_s: float
    cool_s: float = 0.0


def next_try(  # noqa: PLR0911 - one return for each case
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
    out_of_time = error.type == "timeout" and error.code == "total"
    if status == "interrupted":
        tries.broken += 1
        if kind.retry == "never" or out_of_time or tries.broken >= limits.max_broken:
            return None
        return Retry(_backoff(tries.broken, jitter))
    if kind.retry == "waiting":
        tries.waits += 1
        if tries.waiting_since is None:
            tries.waiting_since = now
        wait = error.retry_after_s if error.retry_after_s is not None else _backoff(tries.waits, jitter)
        if now + wait - tries.waiting_since > limits.retry_for_s:
            return None
        return Retry(wait, cool_s=wait)
    tries.attempts += 1
    if kind.retry == "never" or out_of_time or tries.attempts >= limits.max_attempts:
        return None
    return Retry(max(_backoff(tries.attempts, jitter), error.retry_after_s or 0.0))


def _backoff(tries: int, jitter: float) -> float:
    return float(min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** (min(tries, 16) - 1)) * (0.5 + jitter / 2))


def stops_run(error: CaptureError | None) -> bool:
    """Whether no other request of the run can succeed either: a wrong key, a missing model, an exhausted quota."""
    return error is not None and ERRORS[error.type].stops_run
