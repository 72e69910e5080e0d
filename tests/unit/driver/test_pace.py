"""The pace after a 429: how far it falls, and when it recovers."""

from __future__ import annotations

from itertools import pairwise

import pytest

from deltatap.config import Bounds
from deltatap.driver.pacer import Pacer
from deltatap.messages import Heartbeat
from tests.pacing import World


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
