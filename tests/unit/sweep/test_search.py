"""Which rate comes next and what a sweep finds, against servers of known capacity. No server runs."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deltatap.sweep.search import Found, Outcome, Range, next_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WHERE = Range.of(prompts=6000, duration_s=30)


def swept(
    serve: Callable[[float, int], Outcome], *, rates: Sequence[float] = (), where: Range = WHERE, share: float = 0.95
) -> tuple[Found, list[Outcome]]:
    """Sweep a server: it gets the rate and the number of the stage."""
    outcomes: list[Outcome] = []
    while not isinstance(step := next_rate(rates, where, outcomes, share), Found):
        assert len(outcomes) < 60, "a sweep ends"
        outcomes.append(serve(step, len(outcomes)))
    return step, outcomes


def exact(capacity: float) -> Callable[[float, int], Outcome]:
    """A server whose requests are all good up to its capacity, and all bad above."""
    return lambda rate, _: Outcome(rate, 100, 100 if rate <= capacity else 0)


@pytest.mark.parametrize("capacity", [0.35, 0.9, 1.0, 3.0, 7.7, 55.0, 199.0])
def test_a_search_finds_the_capacity_of_an_exact_server(capacity: float) -> None:
    found, outcomes = swept(exact(capacity))
    assert found.low is not None
    assert found.high is not None
    assert found.rate == found.low
    assert found.low <= capacity < found.high
    assert found.high / found.low <= 1.1
    assert len(outcomes) <= 20
    assert {outcome.rate for outcome in outcomes[-4:]} == {found.low, found.high}, "the result is tested again"


def test_a_search_says_if_no_rate_or_every_rate_holds() -> None:
    low, outcomes = swept(exact(0.1))
    assert (low.rate, low.low) == (None, None)
    assert low.high == pytest.approx(1 / 3), "a stage of 30 s has at least 10 requests"
    high, more = swept(exact(1e9))
    assert high == Found(200.0, 200.0, None), "6,000 prompts last for 30 s"
    assert max(len(outcomes), len(more)) <= 13


def queue(rate: float, seed: int, *, slots: int = 4, service_s: float = 0.5, bound_s: float = 1.0) -> Outcome:
    """A stage on a server that generates `slots` answers at once: Poisson arrivals, waiting in order."""
    requests = round(rate * 30)
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, requests))
    free = [0.0] * slots
    good = 0
    for at in arrivals.tolist():
        begins = max(at, heapq.heappop(free))
        heapq.heappush(free, begins + service_s)
        good += begins - at <= bound_s
    return Outcome(rate, requests, good)


def test_the_interval_contains_the_rate_at_which_half_of_the_stages_hold() -> None:
    """The reference comes from many stages at each rate; the server's capacity is 4 slots / 0.5 s = 8 per second."""
    grid = np.arange(7.0, 9.5, 0.05)
    holds = [np.mean([queue(float(rate), seed).holds(0.95) for seed in range(100, 140)]) for rate in grid]
    reference = float(grid[np.flatnonzero(np.array(holds) >= 0.5)[-1]])
    assert 7.5 < reference < 8.8, "near the capacity"
    covered, widths, errors = 0, [], []
    for sweep in range(30):
        found, _ = swept(lambda rate, stage, sweep=sweep: queue(rate, 1000 * (sweep + 1) + stage))  # type: ignore[misc]
        assert found.rate is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= reference <= found.high
        widths.append(found.high / found.low)
        errors.append(abs(found.rate / reference - 1))
    assert covered >= 27
    assert np.median(widths) < 1.5
    assert np.median(errors) < 0.15


def test_given_rates_are_tested_once_each_and_in_order() -> None:
    found, outcomes = swept(exact(5), rates=(1, 2, 8, 4))
    assert [outcome.rate for outcome in outcomes] == [1, 2, 8, 4]
    assert found == Found(4, 4, 8)


def test_given_rates_that_disagree_widen_the_interval() -> None:
    held = {1.0: True, 2.0: False, 4.0: True, 8.0: False}
    found, _ = swept(lambda rate, _: Outcome(rate, 10, 10 * held[rate]), rates=(1.0, 2.0, 4.0, 8.0))
    assert found == Found(4.0, 1.0, 8.0)


def test_repeated_rates_count_together() -> None:
    good = iter([100, 88, 96])
    found, _ = swept(lambda rate, _: Outcome(rate, 100, next(good)), rates=(2, 2, 2), share=0.95)
    assert found.rate is None, "284 of 300 are 94.7 %"


def test_a_stage_without_requests_does_not_hold() -> None:
    assert not Outcome(1, 0, 0).holds(0.5)
    assert Outcome(1, 20, 19).holds(0.95)
    assert not Outcome(1, 20, 18).holds(0.95)
