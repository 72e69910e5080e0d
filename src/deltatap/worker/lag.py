"""How late the event loop runs: the record of its delays, and the task that measures them."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_TICK_S = 0.01


class LagRecord:
    """The delays of an event loop, and the longest delay since a given time. Pure.

    A delay that is followed by a longer one can never be the longest again, so it is dropped. The remaining delays
    decrease from the oldest to the newest, so the longest delay since a time is the first one after that time.
    """

    __slots__ = ("_at", "_lag")

    def __init__(self) -> None:
        self._at: list[float] = []
        self._lag: list[float] = []

    def add(self, at: float, lag: float) -> None:
        """Record that the loop was `lag` seconds late at `at`, in monotonic seconds; times arrive in order."""
        while self._lag and self._lag[-1] <= lag:
            self._lag.pop()
            self._at.pop()
        self._at.append(at)
        self._lag.append(lag)

    def worst(self, since: float) -> float:
        """The longest delay since a time, in seconds; 0 when there was none."""
        at = bisect_left(self._at, since)
        return self._lag[at] if at < len(self._lag) else 0.0


class LagWatch:
    """Measures how late a timer of the running event loop fires, a hundred times a second."""

    __slots__ = ("_clock", "_due", "_record", "_sleep")

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._record = LagRecord()
        self._due = math.inf

    def worst_ms(self, since: float) -> float:
        """The longest delay since a monotonic time, in ms; a timer that is late at this moment counts."""
        return 1e3 * max(self._record.worst(since), self._clock() - self._due)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self._due = self._clock() + _TICK_S
            await self._sleep(_TICK_S)
            now = self._clock()
            self._record.add(now, max(0.0, now - self._due))
