from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deltatap.messages import PERMIT_S
from deltatap.model import Job, Request, Wire
from deltatap.worker.schedule import SPACING_S, Scheduler


def job(row: int) -> Job:
    return Job(Request(f"r{row}", "", None, None, None, None), None, "stream", row, [], 0.0)


def drain(scheduler: Scheduler, now: float) -> list[int]:
    rows = []
    while started := scheduler.start(now):
        rows.append(started.row)
        now += SPACING_S
    return rows


def test_open_streams_stay_within_the_share() -> None:
    scheduler = Scheduler(share=2)
    for row in range(4):
        scheduler.plan(job(row))
    assert drain(scheduler, 0.0) == [0, 1]
    assert scheduler.wake_at() is None, "only the end of a stream or a larger share lets a job start"
    scheduler.ended()
    assert drain(scheduler, 1.0) == [2]
    scheduler.share = 3
    assert drain(scheduler, 2.0) == [3]


def test_starts_are_spaced() -> None:
    scheduler = Scheduler(share=9)
    scheduler.plan(job(0))
    scheduler.plan(job(1))
    assert scheduler.start(5.0) is not None
    assert scheduler.start(5.0) is None
    assert scheduler.wake_at() == 5.0 + SPACING_S
    assert scheduler.start(5.0 + SPACING_S) is not None


def of_model(row: int, model: str) -> Job:
    return replace(job(row), wire=Wire("{}", model, "stream", 1))


def test_the_jobs_of_a_model_can_be_dropped() -> None:
    scheduler = Scheduler(share=9)
    for row, model in enumerate("abab"):
        scheduler.plan(of_model(row, model))
    for row, model in enumerate("abab", 4):
        scheduler.retry_at(of_model(row, model), 9.0 - row)
    assert sorted(dropped.row for dropped in scheduler.drop("a")) == [0, 2, 4, 6]
    assert scheduler.drop("a") == []
    assert drain(scheduler, 9.0) == [7, 5, 1, 3], "the retries of the others keep their order"


def test_retries_keep_their_order_if_the_earliest_ones_are_dropped() -> None:
    scheduler = Scheduler(share=9)
    for row, (at, model) in enumerate([(1.0, "a"), (2.0, "a"), (9.0, "b"), (8.0, "b"), (3.0, "b")]):
        scheduler.retry_at(of_model(row, model), at)
    scheduler.drop("a")
    assert drain(scheduler, 9.0) == [4, 3, 2]


def test_a_worker_waits_for_a_retry_only_if_nothing_else_is_going_on() -> None:
    scheduler = Scheduler(share=9)
    assert scheduler.waits_until() is None
    scheduler.retry_at(job(0), 7.0)
    scheduler.retry_at(job(1), 5.0)
    assert scheduler.waits_until() == 5.0
    scheduler.plan(job(2))
    assert scheduler.waits_until() is None
    assert drain(scheduler, 1.0) == [2]
    assert scheduler.waits_until() is None, "a stream is open"
    scheduler.ended()
    assert scheduler.waits_until() == 5.0


def test_retries_that_are_due_start_before_new_jobs() -> None:
    scheduler = Scheduler(share=9)
    scheduler.retry_at(job(8), 3.0)
    scheduler.retry_at(job(9), 2.0)
    scheduler.plan(job(0))
    assert drain(scheduler, 1.0) == [0]
    assert scheduler.wake_at() == 2.0
    scheduler.plan(job(1))
    assert drain(scheduler, 5.0) == [9, 8, 1]


def test_nothing_starts_during_a_cool_down() -> None:
    scheduler = Scheduler(share=9)
    scheduler.plan(job(0))
    scheduler.cool_down(7.0)
    scheduler.cool_down(3.0)
    assert scheduler.start(6.9) is None
    assert scheduler.wake_at() == 7.0
    assert scheduler.start(7.0) is not None


def test_a_stop_returns_the_jobs_that_never_start() -> None:
    scheduler = Scheduler(share=1)
    for row in range(3):
        scheduler.plan(job(row))
    scheduler.retry_at(job(3), 9.0)
    assert drain(scheduler, 0.0) == [0]
    assert [dropped.row for dropped in scheduler.stop()] == [1, 2, 3]
    scheduler.ended()
    scheduler.plan(job(4))
    assert scheduler.start(99.0) is None
    assert scheduler.wake_at() is None


class AnySequence(RuleBasedStateMachine):
    """In any sequence of events, the share and cool-downs hold, and each job is handed out once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.cool_until = 0.0
        self.waiting: set[int] = set()
        self.running: list[Job] = []
        self.retried: set[int] = set()
        self.count = 0

    @initialize(share=st.integers(0, 4))
    def begin(self, share: int) -> None:
        self.scheduler = Scheduler(share)
        self.began: float | None = None
        self.due_s = 0.0

    @rule()
    def plan(self) -> None:
        self.scheduler.plan(job(self.count))
        self.waiting.add(self.count)
        self.count += 1

    @rule(seconds=st.floats(0, 3))
    def plan_on_the_schedule(self, seconds: float) -> None:
        self.due_s += seconds
        self.scheduler.plan(replace(job(self.count), due_s=self.due_s))
        self.waiting.add(self.count)
        self.count += 1

    @rule()
    def begin_the_schedule(self) -> None:
        self.began = self.now if self.began is None else self.began
        self.scheduler.begin(self.now)

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(share=st.integers(0, 4))
    def another_share(self, share: int) -> None:
        self.scheduler.share = share

    @rule(seconds=st.floats(0, 3))
    def cool(self, seconds: float) -> None:
        self.scheduler.cool_down(self.now + seconds)
        self.cool_until = max(self.cool_until, self.now + seconds)

    @rule()
    def start(self) -> None:
        due = self.scheduler.wake_at()
        started = self.scheduler.start(self.now)
        assert (started is not None) == (due is not None and due <= self.now), (
            "wake_at says when the next job may start"
        )
        if started is not None:
            assert self.now >= self.cool_until
            assert len(self.running) < self.scheduler.share
            if started.row not in self.retried and started.due_s is not None:
                assert self.began is not None
                assert self.now >= self.began + started.due_s
            self.waiting.remove(started.row)
            self.running.append(started)

    @rule(retry=st.booleans(), seconds=st.floats(0, 3))
    def end(self, retry: bool, seconds: float) -> None:  # noqa: FBT001 - a drawn value
        if self.running:
            ended = self.running.pop()
            self.scheduler.ended()
            if retry:
                self.scheduler.retry_at(ended, self.now + seconds)
                self.retried.add(ended.row)
                self.waiting.add(ended.row)

    @invariant()
    def the_counts_agree(self) -> None:
        if hasattr(self, "scheduler"):
            assert self.scheduler.open == len(self.running)
            assert self.scheduler.waiting == len(self.waiting)


TestAnySequence = AnySequence.TestCase


def test_a_job_without_a_permit_waits_for_the_next_message() -> None:
    scheduler = Scheduler(share=2)
    scheduler.plan(job(0))
    assert scheduler.wants(10.0) == 1
    assert scheduler.start(10.0, lambda _: False) is None
    assert scheduler.barred
    assert scheduler.wake_at() is None, "no timer: only the driver's message can change this"
    assert scheduler.waiting == 1
    scheduler.barred = False
    assert scheduler.start(10.0, lambda _: True) is not None
    assert (scheduler.wants(10.0), scheduler.open) == (0, 1)


def due(row: int, due_s: float) -> Job:
    return replace(job(row), due_s=due_s)


def test_a_job_starts_when_it_is_due_and_not_before_the_schedule_begins() -> None:
    scheduler = Scheduler(share=9)
    scheduler.plan(due(0, 1.0))
    scheduler.plan(due(1, 3.0))
    assert (scheduler.start(50.0), scheduler.wake_at(), scheduler.wants(50.0)) == (None, None, 0)
    scheduler.begin(60.0)
    scheduler.begin(70.0)  # a later message says the same in other words
    assert scheduler.wake_at() == 61.0
    assert scheduler.start(60.9) is None
    assert drain(scheduler, 61.0) == [0]
    assert scheduler.wake_at() == 63.0
    assert scheduler.scheduled(due(2, 5.0)) == 65.0


def test_jobs_that_a_full_share_has_delayed_start_as_soon_as_possible() -> None:
    scheduler = Scheduler(share=1)
    scheduler.begin(0.0)
    for row in range(3):
        scheduler.plan(due(row, float(row)))
    assert drain(scheduler, 9.0) == [0]
    scheduler.ended()
    assert drain(scheduler, 9.5) == [1]


def test_a_retry_does_not_wait_for_the_schedule_nor_the_schedule_for_a_retry() -> None:
    scheduler = Scheduler(share=9)
    scheduler.begin(0.0)
    scheduler.plan(due(0, 10.0))
    scheduler.retry_at(job(9), 5.0)
    assert scheduler.wake_at() == 5.0
    assert drain(scheduler, 5.0) == [9]
    scheduler.retry_at(job(9), 20.0)
    assert scheduler.wake_at() == 10.0
    assert drain(scheduler, 10.0) == [0]


def test_a_job_without_a_due_time_overtakes_the_schedule() -> None:
    scheduler = Scheduler(share=9)
    scheduler.begin(0.0)
    scheduler.plan(due(0, 10.0))
    scheduler.plan(job(1))
    scheduler.plan(job(2))
    assert sorted(drain(scheduler, 1.0)) == [1, 2]


def test_a_worker_wants_permits_shortly_before_its_jobs_are_due() -> None:
    scheduler = Scheduler(share=2)
    scheduler.begin(0.0)
    for row in range(4):
        scheduler.plan(due(row, 10.0 + row / 10))
    assert scheduler.wants(10.0 - PERMIT_S - 0.1) == 0
    assert scheduler.wants(10.0 - PERMIT_S) == 1
    assert scheduler.wants(10.0) == 2, "the share is the limit"
