"""Which rate a sweep tests next, when it ends, and what it has found. Pure: outcomes go in, rates come out.

A search first doubles the rate until the bounds no longer hold, then bisects. Whether they hold near the capacity is
partly chance, so the search then repeats the decision around its result. Leaves the stages to ``stages.py``.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

# A search narrows the result down to this factor, so the result is accurate to about 5 %.
_FACTOR = 1.1
# How often a search decides. The interval covers the results of all rounds. If each of n independent results is equally
# likely to be above or below the true rate, all of them are on one side with the probability 2 / 2**n: 6 % for n = 5.
_ROUNDS = 5
# A stage with fewer requests is not informative enough.
FEWEST = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a stage.

    Attributes:
        rate: requests per second.
        requests: how many were sent.
        good: how many of them completed within the bounds.
    """

    rate: float
    requests: int
    good: int

    def holds(self, share: float) -> bool:
        """Whether at least this share of the requests was good."""
        return self.requests > 0 and self.good >= share * self.requests


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a sweep, in requests per second.

    Attributes:
        rate: the highest rate at which the bounds hold; None if they hold at none.
        low: the bounds hold at this rate in every round; None if there is no such rate.
        high: the bounds hold at this rate in no round; None if no such rate was tested.
    """

    rate: float | None
    low: float | None
    high: float | None


def next_rate(rates: Sequence[float], search: Range, outcomes: Sequence[Outcome], share: float) -> float | Found:
    """The rate of the next stage, or the result after the last one.

    Args:
        rates: the rates to test; empty for a search.
        search: where to search.
        outcomes: of the stages so far, in order.
        share: the share of requests that must be good.
    """
    if rates:
        return rates[len(outcomes)] if len(outcomes) < len(rates) else judged(outcomes, share)
    deciding = _search(search)
    rate = next(deciding)
    try:
        for outcome in outcomes:
            rate = deciding.send(outcome.holds(share))
    except StopIteration as ended:
        found: Found = ended.value
        return found
    return rate


@dataclass(frozen=True, slots=True)
class Range:
    """Where a search starts, and its lowest and highest rate."""

    start: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, prompts: int, duration_s: float) -> Range:
        """The range for stages of a duration. A stage has at least FEWEST requests, and at most as many as prompts."""
        lowest = FEWEST / duration_s
        return cls(start=max(1.0, lowest), lowest=lowest, highest=prompts / duration_s)


def judged(outcomes: Iterable[Outcome], share: float) -> Found:
    """The result of given rates. Stages of the same rate count together."""
    stages = list(outcomes)
    together = {
        rate: Outcome(
            rate,
            sum(each.requests for each in stages if each.rate == rate),
            sum(each.good for each in stages if each.rate == rate),
        ).holds(share)
        for rate in sorted({each.rate for each in stages})
    }
    held = [rate for rate, holds in together.items() if holds]
    failed = [rate for rate, holds in together.items() if not holds]
    return Found(
        rate=max(held, default=None),
        low=max((rate for rate in held if rate < min(failed, default=math.inf)), default=None),
        high=min((rate for rate in failed if rate > max(held, default=0.0)), default=None),
    )


# A bracket: the highest rate that held, and the lowest above it that failed.
_Bracket = tuple[float | None, float | None]


def _search(search: Range) -> Generator[float, bool, Found]:
    """Yield each rate to test, receive whether the bounds held, and return the result."""
    brackets = [(yield from _bisected(search))]
    while len(brackets) < _ROUNDS:
        brackets.append((yield from _confirmed(brackets[-1], search)))
    lows, highs = [low for low, _ in brackets], [high for _, high in brackets]
    middle = statistics.median(low or 0.0 for low in lows)
    return Found(
        rate=middle or None,
        low=None if None in lows else min(low for low in lows if low is not None),
        high=None if None in highs else max(high for high in highs if high is not None),
    )


def _bisected(search: Range) -> Generator[float, bool, _Bracket]:
    """Double or halve the rate until the bounds hold at one rate and not at another, then bisect."""
    low: float | None = None
    high: float | None = None
    rate = min(search.start, search.highest)
    while low is None or high is None:
        if (yield rate):
            low = rate
        else:
            high = rate
        if (high is None and rate >= search.highest) or (low is None and rate <= search.lowest):
            return low, high
        rate = min(2 * rate, search.highest) if high is None else max(rate / 2, search.lowest)
    while high / low > _FACTOR:
        rate = _rounded(math.sqrt(low * high))
        if (yield rate):
            low = rate
        else:
            high = rate
    return low, high


def _confirmed(bracket: _Bracket, search: Range) -> Generator[float, bool, _Bracket]:
    """Test the ends of a bracket again. If the outcomes disagree with the bracket, continue in small steps."""
    low, high = bracket
    rate = search.lowest if low is None else low
    if (yield rate):
        while rate < search.highest:
            low, rate = rate, high if high is not None and high > rate else _rounded(rate * _FACTOR)
            rate = min(rate, search.highest)
            if not (yield rate):
                return low, rate
        return rate, None
    while rate > search.lowest:
        high, rate = rate, max(_rounded(rate / _FACTOR), search.lowest)
        if (yield rate):
            return rate, high
    return None, rate


def _rounded(rate: float) -> float:
    """A rate with three digits, for readability."""
    return float(f"{rate:.3g}")
