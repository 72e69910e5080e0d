"""A worker's side of the limits: permits to start requests, and a meter of recent starts. Pure: time is passed in.

An unused permit expires after PERMIT_S, so permits do not accumulate, and a worker that receives no messages starts
nothing. ``driver/pacer.py`` issues permits.
"""

from __future__ import annotations

import math
from collections import deque

from deltatap.messages import MINUTE_S, PERMIT_S, TOLERATED, Permit

_BUCKET_S = 0.5


class Allowance:
    """A worker's permits. Everything is allowed until the first permit arrives.

    Attributes:
        used: the highest permit number that is used or void.
    """

    __slots__ = ("_permit", "_until", "used")

    def __init__(self) -> None:
        self.used = 0
        self._permit: Permit | None = None
        self._until = 0.0

    def give(self, permit: Permit | None, now: float) -> None:
        """Set the driver's latest permit; None lifts all limits."""
        self._permit = permit
        self._until = now + PERMIT_S
        if permit is not None:
            self.used = max(self.used, permit.void)

    def allows(self, now: float, tokens: float, *, check: bool = False) -> bool:
        """Whether a request with this many expected tokens, or a call of moderation, may start."""
        permit = self._permit
        if permit is None:
            return True
        if permit.checks_only and not check:
            return False
        # The next request, or its expected use, may have changed since the permit was issued, but only within bounds.
        return now < self._until and self.used < permit.requests and tokens <= TOLERATED * permit.tokens

    def take(self) -> None:
        """Count a request that has started."""
        self.used += 1


class Meter:
    """Requests and tokens that a worker has started within the last minute, in buckets of half a second."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: deque[list[float]] = deque()

    def started(self, at: float, tokens: float) -> None:
        """Add a request with its expected tokens; times arrive in order."""
        bucket = math.floor(at / _BUCKET_S) * _BUCKET_S
        if not self._buckets or self._buckets[-1][0] < bucket:
            self._buckets.append([bucket, 0.0, 0.0])
        self._buckets[-1][1] += 1
        self._buckets[-1][2] += tokens
        while self._buckets[0][0] < at - 2 * MINUTE_S:
            self._buckets.popleft()

    def corrected(self, at: float, tokens: float) -> None:
        """Add the difference between actual and expected tokens of the request that started at `at`."""
        bucket = math.floor(at / _BUCKET_S) * _BUCKET_S
        for entry in reversed(self._buckets):
            if entry[0] <= bucket:
                entry[2] += tokens
                return

    def recent(self, now: float) -> list[list[float]]:
        """For each bucket of the last minute: its minimum age in seconds, requests, and tokens."""
        found = []
        for at, requests, tokens in self._buckets:
            age = max(0.0, now - at - _BUCKET_S)
            if age < MINUTE_S:
                found.append([round(age, 3), requests, round(tokens, 1)])
        return found
