"""Decides which request of a worker may start now, and when the next one may start. Pure: time is passed in.

Knows the worker's share of the run's streams, retries that are due later, cool-downs, stops, and the times at which
new jobs are due. Leaves the calls themselves to ``engine.py``, which outcomes are retried to ``retry.py``, and the
schedule of ``capture.arrivals`` to ``arrivals.py``.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from deltatap.messages import PERMIT_S

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

    __slots__ = (
        "_began", "_cool_until", "_count", "_new", "_next_start", "_retries", "barred", "open", "share", "stopped",
    )  # fmt: skip

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
        self._began: float | None = None

    @property
    def waiting(self) -> int:
        """The number of jobs that have not started or wait for a retry."""
        return len(self._new) + len(self._retries)

    def begin(self, at: float) -> None:
        """Set when the schedule begins; only the first call counts. Until then, no job with a due time starts."""
        if self._began is None:
            self._began = at

    def scheduled(self, job: Job) -> float | None:
        """When a job's first call is due; None if it has no due time, or the schedule has not begun."""
        return None if job.due_s is None or self._began is None else self._began + job.due_s

    def plan(self, job: Job) -> None:
        """Add a new job. Jobs with due times arrive in their order."""
        if job.due_s is None and self._new and self._new[-1].due_s is not None:
            self._new.appendleft(job)  # it waits for nothing, so it comes before all jobs with due times
        else:
            self._new.append(job)

    def retry_at(self, job: Job, at: float) -> None:
        """Add a job to retry at a time."""
        self._count += 1
        heapq.heappush(self._retries, (at, self._count, job))

    def cool_down(self, until: float) -> None:
        """Start no jobs before a time; the latest such time counts."""
        self._cool_until = max(self._cool_until, until)

    def cool_s(self, now: float) -> float:
        """Seconds until jobs may start again after a cool-down."""
        return max(0.0, self._cool_until - now)

    def wants(self, now: float) -> int:
        """The number of jobs that could start if only the share of streams limited them.

        Jobs that become due while a permit issued now is valid also count, so that they find a permit when they are
        due.
        """
        if self.stopped:
            return 0
        free = max(0, self.share - self.open)
        due = takewhile(lambda job: self._due(job) <= now + PERMIT_S, islice(self._new, free))
        return min(free, len(self._retries) + sum(1 for _ in due))

    def next(self, now: float) -> Job | None:
        """The job that would start next; None if there is no such job."""
        if self._retries and (self._retries[0][0] <= now or self._retries[0][0] <= self._new_at()):
            return self._retries[0][2]
        return self._new[0] if self._new else None

    def start(self, now: float, permitted: Callable[[Job], bool] = lambda _: True) -> Job | None:
        """The job that starts now, or None; it counts as open until :meth:`ended`."""
        if self._held() or now < self._next_start or now < self._cool_until:
            return None
        job = self.next(now)
        is_retry = bool(self._retries) and job is self._retries[0][2]
        if job is None or now < (self._retries[0][0] if is_retry else self._new_at()):
            return None
        if not permitted(job):
            self.barred = True
            return None
        if is_retry:
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
        """When the next job may start if no event comes first; None if only an event can let a job start."""
        if self._held() or self.barred or not self.waiting:
            return None
        ready = min(self._new_at(), self._retries[0][0] if self._retries else math.inf)
        return None if ready == math.inf else max(self._next_start, self._cool_until, ready)

    def waits_until(self) -> float | None:
        """When the next retry is due, if the worker waits for nothing else; None otherwise."""
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

    def _due(self, job: Job) -> float:
        """When a new job may start: at once without a due time, never before the schedule begins."""
        if job.due_s is None:
            return 0.0
        return math.inf if self._began is None else self._began + job.due_s

    def _new_at(self) -> float:
        """When the next new job may start; infinite if there is none."""
        return self._due(self._new[0]) if self._new else math.inf

    def _held(self) -> bool:
        return self.stopped or self.open >= self.share
