"""Limits and budgets in virtual time; test_pace.py tests the pace after a 429."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deltatap.config import Bounds
from deltatap.driver.pacer import Pacer, Spent
from deltatap.messages import Heartbeat, Permit
from deltatap.model import Job, Request
from deltatap.worker.usage import Tally
from tests.pacing import World

if TYPE_CHECKING:
    import random
    from collections.abc import Callable


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
