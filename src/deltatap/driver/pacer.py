"""How much of the run may start now: limits a minute, budgets, and the pace after a 429. Pure: time is passed in.

The driver's :class:`Pacer` gives out permits, each for one request and its expected tokens. What has started within the
last minute, by the workers' own words, what is permitted and not yet used, and what is permitted now never exceed the
limit. Leaves to ``permits.py`` what a worker does with them.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltatap.messages import MINUTE_S, PERMIT_S, TOLERATED, Permit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deltatap.messages import Heartbeat
    from deltatap.model import Bounds

# What may pass until the driver has heard of a start: a permit's life, and a word in each direction.
_UNHEARD_S = 3.0
# The minute fills evenly, and what was missed is caught up with only a little faster: what starts in a heap leaves the
# minute in a heap, and until that is heard and permitted anew part of the limit is not used, minute after minute.
_BURST_S = 1.0
_CATCH_UP = 1.25
# Not nothing, since there is no such part of what has no limit.
_MOMENT_S = 1e-6
# After a 429 the pace is halved, and grows by what it was in so many seconds, so that it is back in half of them; far
# above it there is no need of it.
_RECOVERY_S = 10.0
_NEEDLESS = 4.0
_SLOWEST = 0.5
_RATE_OVER_S = 5.0


@dataclass(frozen=True, slots=True)
class Spent:
    """Requests, tokens and USD."""

    requests: float = 0.0
    tokens: float = 0.0
    cost_usd: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.requests + other.requests, self.tokens + other.tokens, self.cost_usd + other.cost_usd)

    def times(self, count: float) -> Spent:
        """So many of it."""
        return Spent(self.requests * count, self.tokens * count, self.cost_usd * count)

    def with_one(self, one: Spent) -> Spent:
        """The same, but enough for one where anything at all is left: the first request tells what one uses."""
        return Spent(
            self.requests,
            max(self.tokens, one.tokens) if self.tokens > 0 else self.tokens,
            max(self.cost_usd, one.cost_usd) if self.cost_usd > 0 else self.cost_usd,
        )

    def least(self, other: Spent) -> Spent:
        """Of each what is less."""
        return Spent(
            min(self.requests, other.requests), min(self.tokens, other.tokens), min(self.cost_usd, other.cost_usd)
        )

    def fits(self, one: Spent) -> float:
        """How many of one fit into this; infinite where one is nothing."""
        pairs = ((self.requests, one.requests), (self.tokens, one.tokens), (self.cost_usd, one.cost_usd))
        return min((max(0.0, left) / part for left, part in pairs if part > 0), default=math.inf)

    def paces(self, one: Spent) -> float:
        """How many of one may start now: while anything is left, one more, however large; the next ones wait for it."""
        return self.fits(one) + 1 if min(self.requests, self.tokens, self.cost_usd) >= 0 else 0


@dataclass(slots=True)
class _Worker:
    """What the driver knows of a claim."""

    beat: int = -1
    heard_at: float = 0.0
    recent: Sequence[Sequence[float]] = ()
    limited: int = 0
    waits_since: float | None = None
    # Up to which number its permits are void, since they were for smaller requests than it has next.
    void: int = 0
    # (when, requests granted until then, tokens and USD that each of the last ones is expected to use)
    grants: deque[tuple[float, int, float, float]] = field(default_factory=deque)

    def granted(self, before: float = math.inf) -> int:
        """Requests granted until a time."""
        return next((requests for at, requests, *_ in reversed(self.grants) if at <= before), 0)

    def outstanding(self, now: float, used: int) -> Spent:
        """What is granted and may still be used, or has been, unheard."""
        known, found = max(used, self.granted(now - _UNHEARD_S)), Spent()
        for _, requests, tokens, cost in self.grants:
            if requests > known:
                found += Spent(1, tokens, cost).times(requests - known)
                known = requests
        return found

    def grant(self, now: float, beat: Heartbeat, count: int) -> None:
        """Grant so many more, or none; what was granted for a much smaller request is not for the next one."""
        if count or self.waits_since is None:
            self.waits_since = now
        if self.grants and beat.next_tokens > TOLERATED * self.grants[-1][2]:
            self.void = self.granted()
        # Whatever started while nothing was limited has used up numbers, too.
        granted = max(self.granted(), beat.used) + count
        self.grants.append((now, granted, max(beat.next_tokens, 1.0), beat.next_usd))
        while len(self.grants) > 1 and self.grants[1][0] < now - _UNHEARD_S:
            self.grants.popleft()

    def permit(self, now: float) -> Permit:
        """What it may have started."""
        tokens = self.grants[-1][2] if self.grants else 0.0
        return Permit(self.granted(), max(self.void, self.granted(now - PERMIT_S)), tokens)


class Pacer:
    """Gives out the run's permits, twice a second or so.

    Attributes:
        exhausted: which budget is at its end: nothing more fits, and nothing is in flight.
        pace: requests a second after a 429; None while there is no need.
    """

    def __init__(self, bounds: Bounds, before: Spent | None = None) -> None:
        """Nothing is granted yet.

        Args:
            bounds: what the run may use.
            before: what it has used when it was started before.
        """
        self._bounds = bounds
        self._before = before or Spent()
        self._workers: dict[str, _Worker] = {}
        self._level = Spent()
        self._turned_at: float | None = None
        self._began_at: float | None = None
        self._served = ""
        self._recovering: float = 0.0
        self._calm_at = -math.inf
        self.exhausted: str | None = None
        self.pace: float | None = None

    def turn(
        self, now: float, beats: Iterable[Heartbeat], ages: Mapping[str, float] | None = None
    ) -> Mapping[str, Permit] | None:
        """Hear the workers and grant what may start; None where nothing bounds it.

        Args:
            now: monotonic seconds.
            beats: the workers' last words, those of ended, dead and earlier workers included.
            ages: of words that are older than this driver, in seconds.
        """
        beats = list(beats)
        limited = self._hear(now, beats, ages or {})
        if limited:
            self._slow_down(now)
        elif self.pace is not None and self._turned_at is not None:
            self.pace += (now - self._turned_at) * self._recovering / _RECOVERY_S
            if self.pace > _NEEDLESS * self._recovering:
                self.pace, self._recovering = None, 0.0
        if not self._bounds.any and self.pace is None:
            self._turned_at = now
            return None
        outstanding = {beat.claim: self._workers[beat.claim].outstanding(now, beat.used) for beat in beats}
        flying = sum(outstanding.values(), Spent())
        if self._began_at is None and beats:
            # An earlier driver's workers have begun the minute.
            self._began_at = now - (MINUTE_S if ages else 0.0)
        # What an earlier driver's workers used stands in the captures, so it is in `before`.
        ours = [beat for beat in beats if beat.claim not in (ages or {})]
        (left, pace), budget = self._left(now, flying), self._budget_left(ours, flying)
        if not flying.requests and not any(beat.open or beat.mean_output_tokens for beat in ours):
            one = max((_cost(beat) for beat in ours), key=lambda one: one.tokens, default=Spent())
            budget = budget.with_one(one)
        alive = [beat for beat in beats if not beat.ended and now - self._workers[beat.claim].heard_at < _UNHEARD_S]
        hungry = [beat for beat in alive if beat.wants > outstanding[beat.claim].requests]
        for claim in self._workers.keys() - {beat.claim for beat in hungry}:
            self._workers[claim].waits_since = None
        self._grant(now, hungry, outstanding, left, pace, budget)
        self._judge(alive, hungry, flying, budget)
        self._turned_at = now
        return {beat.claim: self._workers[beat.claim].permit(now) for beat in beats if not beat.ended}

    def cool_s(self, now: float, beats: Iterable[Heartbeat]) -> float:
        """For how long nothing may start, by what servers told the workers; :meth:`turn` has heard them before."""
        left = (beat.cool_s - (now - self._workers[beat.claim].heard_at) for beat in beats)
        return max(0.0, max(left, default=0.0))

    def _hear(self, now: float, beats: Iterable[Heartbeat], ages: Mapping[str, float]) -> bool:
        """Take in what is new; whether a server has said that it is too much."""
        limited = False
        for beat in beats:
            worker = self._workers.get(beat.claim)
            if worker is None:
                worker = self._workers[beat.claim] = _Worker()
                worker.limited = beat.limited if beat.claim in ages else 0
            if beat.beat != worker.beat:
                worker.beat = beat.beat
                worker.heard_at = now - ages.get(beat.claim, 0.0)
                worker.recent = beat.recent
            limited |= beat.limited > worker.limited
            worker.limited = beat.limited
        return limited

    def _slow_down(self, now: float) -> None:
        """Halve the pace, once for all that was refused together."""
        if now < self._calm_at:
            return
        self._calm_at = now + _RATE_OVER_S
        started = [
            (age + now - worker.heard_at, requests)
            for worker in self._workers.values()
            for age, requests, _ in worker.recent
        ]
        recent = [(age, requests) for age, requests in started if age < _RATE_OVER_S]
        # Of a run that has just begun, as long as it has lasted.
        span = max(1.0, max((age for age, _ in recent), default=0.0))
        before = min(self.pace or math.inf, sum(requests for _, requests in recent) / span)
        self._recovering = max(self._recovering, before, _SLOWEST)
        self.pace = max(before / 2, _SLOWEST)

    def _left(self, now: float, flying: Spent) -> tuple[Spent, Spent]:
        """What of the limits a minute is left, and what of it may start at once, so that the minute fills evenly."""
        requests, tokens = flying.requests, flying.tokens
        for worker in self._workers.values():
            for age, count, amount in worker.recent:
                if age + now - worker.heard_at < MINUTE_S:
                    requests += count
                    tokens += amount
        used, bounds = Spent(requests, tokens), self._bounds
        limits = Spent(bounds.requests_per_minute or math.inf, bounds.tokens_per_minute or math.inf, math.inf)
        rates = limits.times(_CATCH_UP / MINUTE_S).least(Spent(self.pace or math.inf, math.inf, math.inf))
        passed = max(_MOMENT_S, 0.0 if self._turned_at is None else now - self._turned_at)
        burst = rates.times(_BURST_S)
        # Tokens may turn out to be far fewer than expected: nothing waits for long because of them.
        level = Spent(self._level.requests, max(self._level.tokens, -burst.tokens), self._level.cost_usd)
        self._level = (level + rates.times(passed)).least(burst)
        minute = MINUTE_S if self._began_at is None else min(MINUTE_S, max(_MOMENT_S, now - self._began_at))
        return limits + used.times(-1), self._level.least(limits.times(minute / MINUTE_S) + used.times(-1))

    def _budget_left(self, beats: Iterable[Heartbeat], flying: Spent) -> Spent:
        """What of the budgets is left, with what is in flight at its expected cost."""
        spent = self._before + flying
        for beat in beats:
            spent += Spent(beat.requests, beat.spent_tokens + beat.flying_tokens, beat.spent_usd + beat.flying_usd)
        bounds = self._bounds
        return Spent(
            math.inf if bounds.requests is None else bounds.requests - spent.requests,
            math.inf if bounds.tokens is None else bounds.tokens - spent.tokens,
            math.inf if bounds.cost_usd is None else bounds.cost_usd - spent.cost_usd,
        )

    def _grant(
        self,
        now: float,
        hungry: list[Heartbeat],
        outstanding: Mapping[str, Spent],
        left: Spent,
        pace: Spent,
        budget: Spent,
    ) -> None:
        """Deal to who wants, in turn, as evenly as it goes."""
        dealt = dict.fromkeys((beat.claim for beat in hungry), 0)
        overdue = {beat.claim for beat in hungry if self._overdue(now, beat, len(hungry))}
        order = sorted(hungry, key=lambda beat: (beat.claim not in overdue, beat.claim <= self._served, beat.claim))
        # Where a large one is overdue all wait until there is room: for ever small ones would take it before.
        blocked = any(left.fits(self._one(beat)) < 1 <= budget.fits(_cost(beat)) for beat in order[: len(overdue)])
        waiting = [] if blocked else order
        while waiting:
            still = []
            for beat in waiting:
                cost, one = _cost(beat), self._one(beat)
                wants = beat.wants - outstanding[beat.claim].requests - dealt[beat.claim]
                fits = min(left.fits(one), pace.paces(one))
                fair = max(1, math.floor(fits / len(waiting))) if math.isfinite(fits) else wants
                count = math.floor(min(wants, fair, fits, budget.fits(cost)))
                if count > 0:
                    self._served = beat.claim
                    dealt[beat.claim] += count
                    used = one.times(-count)
                    left, pace, self._level = left + used, pace + used, self._level + used
                    budget += cost.times(-count)
                    still.append(beat)
            waiting = [beat for beat in still if beat.wants - outstanding[beat.claim].requests > dealt[beat.claim]]
        for beat in hungry:
            self._workers[beat.claim].grant(now, beat, dealt[beat.claim])

    def _one(self, beat: Heartbeat) -> Spent:
        """What a worker's next request takes of the minute. What is larger than a minute's tokens goes out alone."""
        return _cost(beat).least(Spent(1, self._bounds.tokens_per_minute or math.inf, math.inf))

    def _overdue(self, now: float, beat: Heartbeat, workers: int) -> bool:
        """Whether a worker has waited for as long as its part of the tokens takes to come to its next request."""
        since, limit = self._workers[beat.claim].waits_since, self._bounds.tokens_per_minute
        if since is None or limit is None:
            return False
        return now - since >= workers * MINUTE_S * self._one(beat).tokens / limit

    def _judge(self, alive: Iterable[Heartbeat], hungry: Sequence[Heartbeat], flying: Spent, budget: Spent) -> None:
        """A budget is at its end when somebody waits, nothing fits, and nothing is in flight that may cost less."""
        if not hungry or flying.requests > 0 or any(beat.open for beat in alive):
            return
        one = min((_cost(beat) for beat in hungry), key=lambda cost: cost.cost_usd or cost.tokens)
        if budget.fits(one) >= 1:
            return
        for name, left, part in (
            ("requests", budget.requests, one.requests),
            ("tokens", budget.tokens, one.tokens),
            ("cost_usd", budget.cost_usd, one.cost_usd),
        ):
            if part > 0 and left < part:
                bound = getattr(self._bounds, name)
                rest = f"{left:,.10g} of {bound:,} left, and the next request is expected to use {part:,.10g}"
                self.exhausted = f"budget.{name}: {rest if left > 0 else f'{bound:,} is used up'}"
                return


def _cost(beat: Heartbeat) -> Spent:
    """Of a worker's next request."""
    return Spent(1, beat.next_tokens, beat.next_usd)
