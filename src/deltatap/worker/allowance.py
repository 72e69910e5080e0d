"""A worker's side of the limits: permits to start requests, and a meter of what has started. Pure: time is passed in.

A permit that is not used within a second or two is void, so nothing piles up, and a worker that hears nothing starts
nothing. Leaves to ``limits.py`` how the driver deals them.
"""

from __future__ import annotations

import math
from collections import deque

from deltatap.messages import MINUTE_S, PERMIT_S, TOLERATED, Permit

_BUCKET_S = 0.5


class Allowance:
    """A worker's permits: what of them is left. Everything is allowed until a permit is given.

    Attributes:
        used: permits used or void, by number.
    """

    __slots__ = ("_permit", "_until", "used")

    def __init__(self) -> None:
        self.used = 0
        self._permit: Permit | None = None
        self._until = 0.0

    def give(self, permit: Permit | None, now: float) -> None:
        """The driver's word; None lifts all limits."""
        self._permit = permit
        self._until = now + PERMIT_S
        if permit is not None:
            self.used = max(self.used, permit.void)

    def allows(self, now: float, tokens: float) -> bool:
        """Whether a request of so many expected tokens may start."""
        permit = self._permit
        if permit is None:
            return True
        # The next request may be another by now, and its use may have been learned anew; but not much more.
        return now < self._until and self.used < permit.requests and tokens <= TOLERATED * permit.tokens

    def take(self) -> None:
        """A request has started."""
        self.used += 1


class Meter:
    """What a worker has started in the last minute, by the time of its start."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: deque[list[float]] = deque()

    def started(self, at: float, tokens: float) -> None:
        """A request started, with its expected tokens; times come in order."""
        bucket = math.floor(at / _BUCKET_S) * _BUCKET_S
        if not self._buckets or self._buckets[-1][0] < bucket:
            self._buckets.append([bucket, 0.0, 0.0])
        self._buckets[-1][1] += 1
        self._buckets[-1][2] += tokens
        while self._buckets[0][0] < at - 2 * MINUTE_S:
            self._buckets.popleft()

    def corrected(self, at: float, tokens: float) -> None:
        """The request that started then had so many tokens more, or fewer, than expected."""
        bucket = math.floor(at / _BUCKET_S) * _BUCKET_S
        for entry in reversed(self._buckets):
            if entry[0] <= bucket:
                entry[2] += tokens
                return

    def recent(self, now: float) -> list[list[float]]:
        """Age in seconds at least, requests and tokens of what started within the last minute."""
        found = []
        for at, requests, tokens in self._buckets:
            age = max(0.0, now - at - _BUCKET_S)
            if age < MINUTE_S:
                found.append([round(age, 3), requests, round(tokens, 1)])
        return found
