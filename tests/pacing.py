"""Workers and a driver in virtual time: their real code for limits, with delayed messages between them."""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltatap.driver.pacer import Pacer, Spent
from deltatap.messages import Heartbeat, Permit
from deltatap.model import Call, CaptureError, Chunks, Expected, Job, Received, Request, Usage
from deltatap.worker.usage import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deltatap.config import Bounds


MESSAGE_S = 0.5


STEP_S = 0.05


def ended(tokens: int, inputs: int = 20, *, limited: bool = False) -> Call:
    error = CaptureError("rate_limit", None, "x", 429) if limited else None
    received = Received(Chunks(), usage=None if limited else Usage(inputs, tokens), output=not limited)
    return Call(0, 0, 0, 0, 0, 0, None, received, "failed" if limited else "completed", error, 429 if limited else 200)


@dataclass
class Worker:
    """A simulated worker with a share of streams, endless requests, and a heartbeat every half second."""

    name: str
    clock: Callable[[], float]
    chance: random.Random
    share: int = 10_000
    work: int = 10**9
    lasts_s: float = 3.0
    output: float = 120.0
    inputs: Callable[[float, random.Random], int] = lambda _now, _chance: 20
    beats: int = 0
    requests: int = 0
    started: int = 0
    alive: bool = True

    def __post_init__(self) -> None:
        self.tally = Tally(self.clock)
        self.tally.give(Permit(), None)
        self.open: list[tuple[float, int, int, Job]] = []
        self.next_message = self.clock() + self.chance.uniform(0, MESSAGE_S)
        self.next_read = self.clock() + self.chance.uniform(0, MESSAGE_S)
        self.job = self._job()

    def _job(self) -> Job:
        expected = Expected(self.inputs(self.clock(), self.chance), None, 1, None)
        return Job(Request("r", "", None, None, None, None), None, "stream", 0, [], 0.0, expected=expected)

    @property
    def unused_permits(self) -> bool:
        """A shortcut, because most steps of the simulation are between two permits."""
        permit = self.tally.allowance._permit
        return permit is None or self.tally.allowance.used < permit.requests

    @property
    def wants(self) -> int:
        return min(self.work, self.share - len(self.open))

    def run(self, started: list[tuple[float, int]], served: Callable[[float, int], bool], may: bool) -> bool:  # noqa: FBT001
        """Start every request that may start; returns whether the server refused one."""
        now = self.clock()
        refused = False
        while self.open and self.open[0][0] <= now:
            _, _, tokens, job = heapq.heappop(self.open)
            self.tally.ended(job, ended(abs(tokens), self.inputs_of(job), limited=tokens < 0))
        while may and not refused and self.unused_permits and self.wants > 0 and self.tally.allows(self.job):
            job, self.job = self.job, self._job()
            self.tally.started(job)
            self.requests += 1
            self.work -= 1
            tokens = max(1, round(self.chance.lognormvariate(0, 0.6) * self.output))
            inputs = self.inputs_of(job)
            if served(now, inputs + tokens):
                started.append((now, inputs + tokens))
                self.started += 1
                heapq.heappush(
                    self.open, (now + self.chance.uniform(0.5, 1.5) * self.lasts_s, self.requests, tokens, job)
                )
            else:
                self.work += 1
                refused = True
                heapq.heappush(self.open, (now + 0.1, self.requests, -1, job))

        return refused

    @staticmethod
    def inputs_of(job: Job) -> int:
        return 0 if job.expected is None else job.expected.input_tokens

    def message(self) -> Heartbeat:
        self.beats += 1
        status = self.tally.status(self.job)
        return Heartbeat(
            1, self.name, self.beats, open=len(self.open), requests=self.requests, wants=self.wants, **status
        )


@dataclass
class World:
    """A driver and its workers in virtual time."""

    bounds: Bounds
    served: Callable[[float, int], bool] = lambda _now, _tokens: True
    seed: int = 1
    now: float = 1000.0
    before: Spent | None = None
    cool_until: float = 0.0
    workers: list[Worker] = field(default_factory=list)
    started: list[tuple[float, int]] = field(default_factory=list)
    messages: dict[str, Heartbeat] = field(default_factory=dict)
    permits: Mapping[str, Permit] | None = None
    mean: float | None = None

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)  # noqa: S311 - repeatable, not secret
        self.pacer = Pacer(self.bounds, self.before)
        self.next_turn = self.now
        self.born = self.now

    def join(self, count: int = 1, **more: Any) -> None:
        for _ in range(count):
            self.workers.append(Worker(f"{len(self.workers):05d}-1-x", lambda: self.now, self.chance, **more))

    def kill(self, worker: Worker) -> None:
        worker.alive = False

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until and self.pacer.exhausted is None:
            self.now += STEP_S
            if self.now >= self.next_turn:
                self.next_turn += MESSAGE_S
                self.permits = self.pacer.turn(self.now, self.messages.values())
                means = [beat.mean_output_tokens for beat in self.messages.values() if beat.mean_output_tokens]
                self.mean = statistics.fmean(means) if means else None
            for worker in self.workers:
                if not worker.alive:
                    continue
                if self.now >= worker.next_read:
                    worker.next_read += MESSAGE_S
                    permit = None if self.permits is None else self.permits.get(worker.name, Permit())
                    worker.tally.give(permit, self.mean)
                if worker.run(self.started, self.served, self.now >= self.cool_until):
                    self.cool_until = self.now + 5.0  # the server's Retry-After
                if self.now >= worker.next_message:
                    worker.next_message += MESSAGE_S
                    self.messages[worker.name] = worker.message()

    def windows(self, *, tokens: bool = False, skip: float = 0.0) -> tuple[float, float]:
        """The minimum and maximum started within any sixty seconds, without the first `skip` seconds."""
        events = [(at, amount if tokens else 1) for at, amount in self.started]
        least, most = float("inf"), 0.0
        first = last = 0
        inside = 0
        at = self.born + skip
        while at + 60 <= self.now:
            while last < len(events) and events[last][0] < at + 60:
                inside += events[last][1]
                last += 1
            while first < last and events[first][0] < at:
                inside -= events[first][1]
                first += 1
            least, most = min(least, inside), max(most, inside)
            at += 0.25
        return least, most
