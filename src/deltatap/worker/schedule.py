"""Decides which request of a worker may start now, and when the next one may start. Pure: time is passed in.

Knows the worker's share of the run's streams, retries that are due later, cool-downs and stops. Leaves the calls
themselves to ``engine.py``, and which outcomes are retried to ``retry.py``.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.model import Job


# Starting many requests at once blocks the event loop, which delays the arrival times of open streams.
SPACING_S = 0.003


class Scheduler:
    """Hands out jobs: first the retries that are due, then new jobs, and never more at once than the share.

    Attributes:
        share: the maximum number of open streams; lowering it closes no open stream.
        stopped: whether the scheduler starts no more jobs.
        open: the number of open streams.
        barred: whether the next job has no permit; the owner resets it when permits change.
    """

    __slots__ = ("_cool_until", "_count", "_new", "_next_start", "_retries", "barred", "open", "share", "stopped")

    def __init__(self, share: int = 0) -> None:
        self.share = share
        self.stopped = False
        self.barred = False
        self.open = 0
        self._new: deque[Job] = deque()
        self._retries: list[tuple[float, int, Job]] = []
        self._count = 0
        self._cool_until = 0.0
        self._next_start = 0.0

    @property
    def waiting(self) -> int:
        """The number of jobs that have not started or wait for a retry."""
        return len(self._new) + len(self._retries)

    def plan(self, job: Job) -> None:
        """Add a new job."""
        self._new.append(job)

    def retry_at(self, job: Job, at: float) -> None:
        """Add a job to retry at a time."""
        self._count += 1
        heapq.heappush(self._retries, (at, self._count, job))

    def cool_down(self, until: float) -> None:
        """Start no jobs before a time; the latest such time counts."""
        self._cool_until = max(self._cool_until, until)

    @property
    def wants(self) -> int:
        """The number of jobs that could start if only the share of streams limited them."""
        return 0 if self.stopped else max(0, min(self.waiting, self.share - self.open))

    def next(self, now: float) -> Job | None:
        """The job that would start next; None when there is none."""
        if self._retries and (self._retries[0][0] <= now or not self._new):
            return self._retries[0][2]
        return self._new[0] if self._new else None

    def start(self, now: float, permitted: Callable[[Job], bool] = lambda _: True) -> Job | None:
        """The job that starts now, or None; it counts as open until :meth:`ended`."""
        if self._held() or now < self._next_start or now < self._cool_until:
            return None
        job = self.next(now)
        if job is None or (self._retries and job is self._retries[0][2] and now < self._retries[0][0]):
            return None
        if not permitted(job):
            self.barred = True
            return None
        if self._retries and job is self._retries[0][2]:
            heapq.heappop(self._retries)
        else:
            self._new.popleft()
        self.open += 1
        self._next_start = now + SPACING_S
        return job

    def ended(self) -> None:
        """Count a stream as closed."""
        self.open -= 1

    def wake_at(self) -> float | None:
        """When the next job may start if no event comes before; None if only an event can let a job start."""
        if self._held() or self.barred or not self.waiting:
            return None
        ready = 0.0 if self._new else self._retries[0][0]
        return max(self._next_start, self._cool_until, ready)

    def waits_until(self) -> float | None:
        """When the next retry is due, if it is all that the worker waits for; None otherwise."""
        return self._retries[0][0] if self._retries and not self._new and not self.open else None

    def drop(self, model: str) -> list[Job]:
        """Remove a model's jobs; returns those that will never start."""
        jobs = [*self._new, *(job for _, _, job in self._retries)]
        dropped = [job for job in jobs if job.wire is not None and job.wire.model == model]
        gone = set(map(id, dropped))
        self._new = deque(job for job in self._new if id(job) not in gone)
        self._retries = [entry for entry in self._retries if id(entry[2]) not in gone]
        heapq.heapify(self._retries)
        return dropped

    def stop(self) -> list[Job]:
        """Stop starting jobs. Returns the jobs that will never start."""
        self.stopped = True
        dropped = [*self._new, *(job for _, _, job in self._retries)]
        self._new.clear()
        self._retries.clear()
        return dropped

    def _held(self) -> bool:
        return self.stopped or self.open >= self.share
