"""Limits, budgets and the pace in virtual time: the real code of driver and workers, with delayed messages between them."""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.config import Bounds
from deltatap.driver.pacer import Pacer, Spent
from deltatap.messages import Heartbeat, Permit
from deltatap.model import Call, CaptureError, Chunks, Expected, Job, Received, Request, Usage
from deltatap.worker.usage import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


@pytest.mark.parametrize(
    ("workers", "limit"), [(1, 10), (1, 60), (2, 60), (4, 60), (1, 600), (2, 600), (4, 3000), (50, 120)]
)
def test_a_limit_is_used_almost_fully_and_not_exceeded(workers: int, limit: int) -> None:
    world = World(Bounds(requests_per_minute=limit))
    world.join(workers)
    world.run(240)
    least, most = world.windows(skip=2)
    assert int(0.93 * limit) <= least
    assert most <= 1.05 * limit


@pytest.mark.slow
def test_a_thousand_workers_share_a_limit() -> None:
    world = World(Bounds(requests_per_minute=6000))
    world.join(1000)
    world.run(130)
    least, most = world.windows(skip=3)
    assert least >= 0.93 * 6000
    assert most <= 1.05 * 6000
    counts = sorted(worker.requests for worker in world.workers)
    assert counts[-1] <= 2 * counts[0] + 5, "evenly shared"


@pytest.mark.parametrize("limit", [60, 600])
def test_the_limit_holds_while_workers_join_and_die(limit: int) -> None:
    world = World(Bounds(requests_per_minute=limit))
    world.join()
    world.run(70)
    world.join(3)
    world.run(70)
    for worker in world.workers[:2]:
        world.kill(worker)
    world.run(70)
    world.join()
    world.run(70)
    world.kill(world.workers[2])
    world.run(70)
    least, most = world.windows(skip=2)
    assert int(0.93 * limit) <= least
    assert most <= 1.05 * limit


def test_an_idle_worker_leaves_its_part_to_others() -> None:
    world = World(Bounds(requests_per_minute=600))
    world.join(3, work=5)
    world.join()
    world.run(130)
    least, _ = world.windows(skip=2)
    assert least >= 540


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("output", [30.0, 400.0, 3000.0])
def test_a_token_limit_follows_actual_use(workers: int, output: float) -> None:
    """Outputs differ from the expected length. Their end corrects the counts, and workers learn the mean."""
    limit = round(1500 * output)
    world = World(Bounds(tokens_per_minute=limit))
    world.join(workers, output=output, lasts_s=4)
    world.run(300)
    least, most = world.windows(tokens=True, skip=2)
    assert least >= int(0.93 * limit)
    assert most <= 1.05 * limit


def test_a_request_larger_than_the_token_limit_starts_alone() -> None:
    world = World(Bounds(tokens_per_minute=100))
    world.join(output=500)
    world.run(400)
    assert 2 <= len(world.started) <= 7


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    "inputs",
    [
        lambda now, _chance: 100 if now < 1090 else 10_000,
        lambda _now, chance: 10_000 if chance.random() < 0.01 else 100,
        lambda _now, chance: round(min(20_000, chance.lognormvariate(5, 1.5))),
    ],
    ids=["larger after a while", "a few large ones", "all sizes"],
)
def test_a_permit_for_a_small_request_does_not_cover_a_large_one(
    workers: int, inputs: Callable[[float, random.Random], int]
) -> None:
    world = World(Bounds(tokens_per_minute=60_000))
    world.join(workers, output=30.0, inputs=inputs)
    world.run(300)
    _, most = world.windows(tokens=True)
    assert most <= 1.05 * 60_000


@pytest.mark.parametrize(("size", "least"), [(15_000, 8), (30_000, 4), (70_000, 2)])
def test_small_requests_do_not_starve_a_large_one(size: int, least: int) -> None:
    world = World(Bounds(tokens_per_minute=60_000))
    world.join(2, output=30.0, inputs=lambda _now, _chance: 500)
    world.join(1, output=30.0, inputs=lambda _now, _chance: size)
    world.run(600)
    small, _, large = world.workers
    assert large.started >= least
    assert small.started >= 200
    _, most = world.windows(tokens=True)
    assert most <= 1.05 * max(60_000, size)


def test_both_limits_hold_together() -> None:
    world = World(Bounds(requests_per_minute=1_200, tokens_per_minute=50_000))
    world.join(2)
    world.run(200)
    assert world.windows(skip=30)[1] <= 1_260
    assert world.windows(tokens=True, skip=30)[1] <= 52_500
    assert world.windows(tokens=True, skip=30)[0] >= 45_000


def test_starts_of_an_ended_worker_expire_after_a_minute() -> None:
    ended_one = Heartbeat(1, "00000-1-x", 0, requests=60, recent=[[1.0, 60, 0.0]], ended=True)
    pacer = Pacer(Bounds(requests_per_minute=60))
    granted: list[int] = []
    for turn in range(150):
        waiting = Heartbeat(1, "00001-1-x", turn, wants=50, used=granted[-1] if granted else 0)
        permits = pacer.turn(turn * 0.5, [ended_one, waiting])
        assert permits is not None
        granted.append(permits["00001-1-x"].requests)
    assert granted[110] == 0, "the limit is reached"
    assert granted[-1] > 10, "a minute later, the limit allows more"


def test_unused_permits_count_towards_the_limit() -> None:
    pacer = Pacer(Bounds(requests_per_minute=600))
    for turn in range(11):
        silent = Heartbeat(1, "00000-1-x", turn, wants=50, recent=[[1.0, 598, 0.0]])
        permits = pacer.turn(turn * 0.25, [silent], {"00000-1-x": 0.0})  # the minute has already begun
    assert permits is not None
    assert permits["00000-1-x"].requests == 2


def test_a_run_without_limits_has_no_permits() -> None:
    pacer = Pacer(Bounds())
    assert pacer.turn(1.0, [Heartbeat(1, "a", 1, wants=5)]) is None


def test_after_a_429_the_run_finds_the_server_s_pace() -> None:
    """The server accepts 300 requests per minute, but the configuration sets no limit."""
    taken: list[float] = []

    def served(now: float, _tokens: int) -> bool:
        recent = sum(1 for at in taken if at > now - 60)
        if recent < 300:
            taken.append(now)
        return recent < 300

    world = World(Bounds(), served=served)
    world.join(2, share=20, lasts_s=1.0)
    world.run(400)
    refused = sum(worker.requests for worker in world.workers) - len(world.started)
    least, _ = world.windows(skip=60)
    assert least >= 150, "most of what the server accepts"
    assert refused < len(world.started) / 4


def test_after_a_late_429_starts_resume_at_half_the_pace() -> None:
    """Thousands of requests have started without limits, and permit numbers continue from there."""
    full: list[float] = []

    def served(now: float, _tokens: int) -> bool:
        if now > 1200 and not full:
            full.append(now)
            return False
        return True

    world = World(Bounds(), served=served)
    world.join(1, share=40, lasts_s=1.0)
    world.run(260)
    starts = [at for at, _ in world.started if at > full[0]]
    assert starts[0] < full[0] + 8, "the server's Retry-After is 5 s"
    assert max(b - a for a, b in pairwise(starts)) < 3
    before = sum(1 for at, _ in world.started if 1190 < at < 1200)
    assert sum(1 for at in starts if at < starts[0] + 2) < 0.2 * before * 0.8, "at about half the pace at first"


@pytest.mark.parametrize(
    ("bounds", "spent"),
    [
        (Bounds(requests=500), lambda world: len(world.started) / 500),
        (Bounds(tokens=50_000), lambda world: sum(tokens for _, tokens in world.started) / 50_000),
    ],
)
def test_a_budget_ends_the_run_and_is_barely_exceeded(bounds: Bounds, spent: Callable[[World], float]) -> None:
    world = World(bounds)
    world.join(3, share=20)
    world.run(600)
    assert world.pacer.exhausted is not None
    assert world.pacer.exhausted.startswith("budget.")
    assert not any(worker.open for worker in world.workers), "no call is open"
    assert 0.95 <= spent(world) <= 1.03


def test_a_budget_counts_earlier_use() -> None:
    world = World(Bounds(requests=500), before=Spent(requests=490))
    world.join()
    world.run(60)
    assert len(world.started) == 10
    assert world.pacer.exhausted == "budget.requests: 500 is used up"


def test_what_was_sent_is_checked_after_the_budget_is_used_up() -> None:
    pacer, tally = Pacer(Bounds(requests_per_minute=600, requests=1)), Tally(lambda: 10.0)
    job = Job(Request("r", "", None, None, None, None), None, "stream", 0, [], 0.0)

    def turn(now: float, beat: int, **values: Any) -> Permit:
        permits = pacer.turn(now, [Heartbeat(1, "a", beat, open=1, requests=1, used=tally.allowance.used, **values)])
        assert permits is not None
        tally.give(permits["a"], None)
        return permits["a"]

    turn(1.0, 1, wants=2, checks=1)
    assert not tally.takes_permit(), "a request waits, too, and there is no budget for it"
    permit = turn(5.0, 2, wants=2, checks=2)
    assert (permit.requests, permit.checks_only) == (2, True)
    assert not tally.allows(job)
    assert tally.takes_permit()
    turn(5.5, 3, wants=2, checks=1)
    assert not tally.allows(job), "the other permit was for a check"


def test_use_of_an_earlier_driver_s_workers_counts_once() -> None:
    earlier = Heartbeat(1, "00000-1-old", 9, requests=60)
    waiting = Heartbeat(2, "00000-2-new", 1, wants=50)
    permits = Pacer(Bounds(requests=70), Spent(requests=60)).turn(100.0, [earlier, waiting], {"00000-1-old": 10.0})
    assert permits is not None
    assert permits["00000-2-new"].requests == 10


def test_an_earlier_driver_s_workers_do_not_end_the_budget() -> None:
    """New workers do not know the output length yet. One request may start, and its use shows the length."""
    earlier = Heartbeat(1, "00000-1-old", 9, open=3, requests=60, mean_output_tokens=100.0)
    waiting = Heartbeat(2, "00000-2-new", 1, wants=50, next_tokens=4020.0)
    pacer = Pacer(Bounds(tokens=50_000), Spent(tokens=47_000))
    permits = pacer.turn(100.0, [earlier, waiting], {"00000-1-old": 10.0})
    assert pacer.exhausted is None
    assert permits is not None
    assert permits["00000-2-new"].requests == 1


def test_the_reason_states_what_is_left_of_a_budget() -> None:
    waiting = Heartbeat(2, "00000-2-new", 1, wants=50, next_tokens=4020.0, mean_output_tokens=4000.0)
    pacer = Pacer(Bounds(tokens=50_000), Spent(tokens=47_000))
    pacer.turn(100.0, [waiting])
    left = "3,000 of 50,000 left, and the next request is expected to use 4,020"
    assert pacer.exhausted == f"budget.tokens: {left}"


def test_starts_of_an_earlier_driver_s_workers_count_towards_the_limit() -> None:
    earlier = Heartbeat(1, "00000-1-old", 9, requests=60, recent=[[5.0, 60, 0.0]])
    waiting = Heartbeat(2, "00000-2-new", 1, wants=50)
    pacer = Pacer(Bounds(requests_per_minute=60))
    for turn in range(60):
        permits = pacer.turn(turn * 0.5, [earlier, waiting], {"00000-1-old": 10.0})
        assert permits is not None
        assert permits["00000-2-new"].requests == 0


def test_a_429_halves_the_measured_pace_once_and_the_pace_recovers() -> None:
    pacer = Pacer(Bounds())
    ten_per_second = [[4.0, 20.0, 0.0], [2.0, 20.0, 0.0], [30.0, 500.0, 0.0]]

    def turn(at: float, limited: int) -> float | None:
        pacer.turn(at, [Heartbeat(1, "00000-1-x", round(at * 2), wants=50, limited=limited, recent=ten_per_second)])
        return pacer.pace

    assert turn(100.0, 0) is None
    assert turn(100.5, 1) == 5.0, "40 starts in the last 4 s"
    assert turn(101.0, 3) == 5.0, "429 responses within 5 s count as one"
    assert turn(102.0, 3) == 6.0, "the pace grows by 10 per second every 10 s"
    assert turn(106.0, 3) == 10.0, "restored after half of that time"
    assert turn(106.5, 4) == 5.0, "halved again"
    assert turn(141.0, 4) == 39.5
    assert turn(142.0, 4) is None, "no longer needed"


def test_a_429_at_the_start_of_a_run_leaves_a_minimum_pace() -> None:
    pacer = Pacer(Bounds())
    pacer.turn(100.0, [Heartbeat(1, "00000-1-x", 1, wants=50, limited=1)])
    assert pacer.pace == 0.5


@pytest.mark.parametrize("before", [0, 2, 60])
def test_a_429_in_the_first_second_holds_a_run_back_for_a_few_seconds_only(before: int) -> None:
    calls = 0

    def served(_now: float, _tokens: int) -> bool:
        nonlocal calls
        calls += 1
        return calls != before + 1

    world = World(Bounds(), served=served)
    world.join(1, share=64, lasts_s=1.5)
    world.run(15)
    assert sum(1 for at, _ in world.started if at > world.now - 3) > 60, "the server's Retry-After is 5 s"


def test_at_the_start_the_pace_recovers_faster_than_later() -> None:
    pacer = Pacer(Bounds())

    def turn(at: float, limited: int, age: float) -> float | None:
        recent = [[age, 4.0, 0.0], [0.5, 4.0, 0.0]]
        pacer.turn(at, [Heartbeat(1, "00000-1-x", round(at * 2), wants=50, limited=limited, recent=recent)])
        return pacer.pace

    assert turn(100.0, 0, 0.5) is None
    assert turn(100.5, 1, 1.0) == 4.0, "8 starts in the first second"
    assert turn(101.5, 1, 2.0) == 8.0, "known for 1 s: the pace grows by 8 per second every 2 s"
    assert turn(107.5, 2, 8.0) == 2.0, "4 starts in the last 5 s, in one second"
    assert turn(108.5, 2, 9.0) == 2.8, "later, every 10 s"


def test_the_pace_does_not_grow_during_a_pause_and_a_pause_is_no_start() -> None:
    pacer = Pacer(Bounds())

    def turn(at: float, limited: int, cool_s: float = 0.0) -> float | None:
        recent = [[0.5, 8.0, 0.0]]
        beat = Heartbeat(1, "00000-1-x", round(at * 2), wants=50, limited=limited, recent=recent, cool_s=cool_s)
        pacer.turn(at, [beat])
        return pacer.pace

    assert turn(100.5, 1, cool_s=20.0) == 4.0
    assert turn(110.0, 1, cool_s=10.5) == 4.0, "the server's Retry-After"
    assert turn(120.5, 1, cool_s=0.5) == 4.0
    assert turn(121.0, 1) == 6.0, "8 per second every 2 s, as at the start of a run"
    assert turn(150.0, 1) is None
    assert turn(700.0, 2) == 4.0, "no start within the last minute"
    assert turn(701.0, 2) == 4.8, "8 per second every 10 s"


def test_a_429_of_an_earlier_driver_s_worker_does_not_slow_this_run() -> None:
    pacer = Pacer(Bounds())
    pacer.turn(100.0, [Heartbeat(1, "00000-1-x", 1, limited=7)], {"00000-1-x": 5.0})
    assert pacer.pace is None


def test_a_cool_down_ends_by_the_time_of_its_heartbeat() -> None:
    pacer, beats = Pacer(Bounds()), [Heartbeat(1, "00000-1-x", 1, cool_s=8.0), Heartbeat(1, "00001-1-x", 1)]
    pacer.turn(100.0, beats)
    assert pacer.cool_s(103.0, beats) == 5.0
    assert pacer.cool_s(110.0, beats) == 0.0
