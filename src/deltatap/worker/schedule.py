"""Which request of a worker may start now, and when the next one may. Pure: time is passed in.

Knows the worker's share of the run's streams, what waits to be tried again, cool-downs and stops. Leaves the calls
themselves to ``engine.py`` and why something is tried again to ``outcomes.py``.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.model import Job


# A burst of starts blocks the event loop, and the streams that are open then are measured late.
SPACING_S = 0.003


class Scheduler:
    """Hands out jobs: first those whose time to try again has come, then new ones, never more at once than the share.

    Attributes:
        share: how many streams may be open; what is open above it just ends.
        stopped: whether nothing starts any more.
        open: how many streams are open.
        barred: whether what would start next is not permitted; until somebody says otherwise.
    """

    __slots__ = ("_again", "_cool_until", "_count", "_new", "_next_start", "barred", "open", "share", "stopped")

    def __init__(self, share: int = 0) -> None:
        self.share = share
        self.stopped = False
        self.barred = False
        self.open = 0
        self._new: deque[Job] = deque()
        self._again: list[tuple[float, int, Job]] = []
        self._count = 0
        self._cool_until = 0.0
        self._next_start = 0.0

    @property
    def waiting(self) -> int:
        """How many jobs have not started, or wait to be tried again."""
        return len(self._new) + len(self._again)

    def plan(self, job: Job) -> None:
        """A new job."""
        self._new.append(job)

    def again(self, job: Job, at: float) -> None:
        """A job to try again at a time."""
        self._count += 1
        heapq.heappush(self._again, (at, self._count, job))

    def cool_down(self, until: float) -> None:
        """Start nothing before a time; the latest of such times counts."""
        self._cool_until = max(self._cool_until, until)

    @property
    def wants(self) -> int:
        """How many jobs could start, if nothing but the share of streams held them."""
        return 0 if self.stopped else max(0, min(self.waiting, self.share - self.open))

    def next(self, now: float) -> Job | None:
        """The job that would start next."""
        if self._again and (self._again[0][0] <= now or not self._new):
            return self._again[0][2]
        return self._new[0] if self._new else None

    def start(self, now: float, permitted: Callable[[Job], bool] = lambda _: True) -> Job | None:
        """The job that starts now, if one may; it counts as open until :meth:`ended`."""
        if self._held() or now < self._next_start or now < self._cool_until:
            return None
        job = self.next(now)
        if job is None or (self._again and job is self._again[0][2] and now < self._again[0][0]):
            return None
        if not permitted(job):
            self.barred = True
            return None
        if self._again and job is self._again[0][2]:
            heapq.heappop(self._again)
        else:
            self._new.popleft()
        self.open += 1
        self._next_start = now + SPACING_S
        return job

    def ended(self) -> None:
        """A stream is no longer open."""
        self.open -= 1

    def wake_at(self) -> float | None:
        """When a job may start though nothing else happens; None when only an event can change that."""
        if self._held() or self.barred or not self.waiting:
            return None
        ready = 0.0 if self._new else self._again[0][0]
        return max(self._next_start, self._cool_until, ready)

    def stop(self) -> list[Job]:
        """Nothing starts any more; returns the jobs that therefore never end."""
        self.stopped = True
        left = [*self._new, *(job for _, _, job in self._again)]
        self._new.clear()
        self._again.clear()
        return left

    def _held(self) -> bool:
        return self.stopped or self.open >= self.share
