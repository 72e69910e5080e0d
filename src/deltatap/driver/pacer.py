"""Decides how many requests may start now: rate limits, budgets, and the pace after a 429. Pure: time is passed in.

The driver's :class:`Pacer` issues permits, each for one request and its expected tokens. A rate limit is never exceeded
by the sum of three amounts: the requests that started within the last minute according to the workers' heartbeats, the
permits that are not used yet, and the permits that are issued now. ``worker/allowance.py`` defines how a worker uses
permits.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltatap.messages import MINUTE_S, PERMIT_S, TOLERATED, Permit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deltatap.config import Bounds
    from deltatap.messages import Heartbeat

# The maximum time from issuing a permit to the report of its use: the permit's lifetime, and a message each way.
_REPORT_DELAY_S = 3.0
# Permits are spread over the minute, and a run that falls behind catches up only slightly faster. Requests that start
# as a burst also leave the 60-second window as a burst. Part of the limit is then unused until the driver issues new
# permits, and this would repeat every minute.
_BURST_S = 1.0
_CATCH_UP = 1.25
# Instead of 0 s, because an infinite rate times 0 is not a number.
_MOMENT_S = 1e-6
# After a 429, the pace is halved. It grows by the old pace every _RECOVERY_S, so it is restored after half that time.
# Above _PACE_ENDS_ABOVE times the old pace, it no longer applies.
_RECOVERY_S = 10.0
_PACE_ENDS_ABOVE = 4.0
# The minimum pace, in requests per second.
_SLOWEST = 0.5
# The pace before a 429 is measured over this many seconds, and the 429 responses within them count as one. At the start
# of a run, this window is shorter and the measured pace is too low, so _RECOVERY_S is shortened in proportion.
_RATE_WINDOW_S = 5.0


@dataclass(frozen=True, slots=True)
class Spent:
    """An amount of requests, tokens and USD."""

    requests: float = 0.0
    tokens: float = 0.0
    cost_usd: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.requests + other.requests, self.tokens + other.tokens, self.cost_usd + other.cost_usd)

    def times(self, count: float) -> Spent:
        """The amount, multiplied."""
        return Spent(self.requests * count, self.tokens * count, self.cost_usd * count)

    def with_one(self, one: Spent) -> Spent:
        """Raise tokens and cost to those of one request, unless they are used up. Then a first request can start."""
        return Spent(
            self.requests,
            max(self.tokens, one.tokens) if self.tokens > 0 else self.tokens,
            max(self.cost_usd, one.cost_usd) if self.cost_usd > 0 else self.cost_usd,
        )

    def minimum(self, other: Spent) -> Spent:
        """The smaller of each pair of values."""
        return Spent(
            min(self.requests, other.requests), min(self.tokens, other.tokens), min(self.cost_usd, other.cost_usd)
        )

    def fits(self, one: Spent) -> float:
        """How many of `one` fit into this amount; infinite when `one` is zero."""
        pairs = ((self.requests, one.requests), (self.tokens, one.tokens), (self.cost_usd, one.cost_usd))
        return min((max(0.0, available) / part for available, part in pairs if part > 0), default=math.inf)

    def may_start(self, one: Spent) -> float:
        """How many of `one` may start now: one more than fits, but none while the amount is negative."""
        return self.fits(one) + 1 if min(self.requests, self.tokens, self.cost_usd) >= 0 else 0


@dataclass(slots=True)
class _Worker:
    """What the driver knows about a claim.

    Attributes:
        beat: of the latest heartbeat.
        heard_at: when it arrived.
        recent: its starts within the last minute.
        limited: its count of 429 responses.
        waits_since: when the worker began to want permits that it does not get; None while it wants none.
        checks_only: whether its permits are for calls of moderation only.
        void: permits up to this number are void, because they were issued for smaller requests than the next one.
        grants: (time, requests granted so far, expected tokens and USD of each request in this grant).
    """

    beat: int = -1
    heard_at: float = 0.0
    recent: Sequence[Sequence[float]] = ()
    limited: int = 0
    waits_since: float | None = None
    checks_only: bool = False
    void: int = 0
    grants: deque[tuple[float, int, float, float]] = field(default_factory=deque)

    def granted(self, before: float = math.inf) -> int:
        """The number of requests granted up to a time."""
        return next((requests for at, requests, *_ in reversed(self.grants) if at <= before), 0)

    def outstanding(self, now: float, used: int) -> Spent:
        """Grants that may still be used, or that were used without the driver knowing yet."""
        known, found = max(used, self.granted(now - _REPORT_DELAY_S)), Spent()
        for _, requests, tokens, cost in self.grants:
            if requests > known:
                found += Spent(1, tokens, cost).times(requests - known)
                known = requests
        return found

    def grant(self, now: float, beat: Heartbeat, count: int, *, checks_only: bool = False) -> None:
        """Grant `count` more requests; void earlier grants for much smaller requests than the next, or for checks."""
        if count or self.waits_since is None:
            self.waits_since = now
        if self.grants and beat.next_tokens > TOLERATED * self.grants[-1][2]:
            self.void = self.granted()
        if self.checks_only and not checks_only:
            self.void = self.granted()
        self.checks_only = checks_only
        # Requests that started while the run had no limits have numbers, too.
        granted = max(self.granted(), beat.used) + count
        self.grants.append((now, granted, max(beat.next_tokens, 1.0), beat.next_usd))
        while len(self.grants) > 1 and self.grants[1][0] < now - _REPORT_DELAY_S:
            self.grants.popleft()

    def permit(self, now: float) -> Permit:
        """The permit to publish."""
        tokens = self.grants[-1][2] if self.grants else 0.0
        return Permit(self.granted(), max(self.void, self.granted(now - PERMIT_S)), tokens, self.checks_only)


class Pacer:
    """Issues the run's permits, about twice a second.

    Attributes:
        exhausted: the budget that is used up, and how; set when no request fits and no call is open.
        pace: the maximum requests per second after a 429; None when there is none.
    """

    def __init__(self, bounds: Bounds, before: Spent | None = None) -> None:
        """Start without any grants.

        Args:
            bounds: the limits and budgets.
            before: what earlier starts of the run have used.
        """
        self._bounds = bounds
        self._before = before or Spent()
        self._workers: dict[str, _Worker] = {}
        self._level = Spent()
        self._turned_at: float | None = None
        self._began_at: float | None = None
        self._first_start_at = math.inf
        self._served = ""
        self._recovering: float = 0.0
        self._recovery_s = _RECOVERY_S
        self._calm_at = -math.inf
        self.exhausted: str | None = None
        self.pace: float | None = None

    def turn(
        self, now: float, beats: Iterable[Heartbeat], ages: Mapping[str, float] | None = None
    ) -> Mapping[str, Permit] | None:
        """Read the heartbeats and issue permits; None when no limit, budget or pace applies.

        Args:
            now: monotonic seconds.
            beats: the latest heartbeats, including those of ended, dead and earlier workers.
            ages: age in seconds of the heartbeats that are older than this driver, by claim.
        """
        beats = list(beats)
        limited = self._read(now, beats, ages or {})
        if limited:
            self._slow_down(now)
        elif self.pace is not None and self._turned_at is not None and not self.cool_s(now, beats):
            self.pace += (now - self._turned_at) * self._recovering / self._recovery_s
            if self.pace > _PACE_ENDS_ABOVE * self._recovering:
                self.pace, self._recovering = None, 0.0
        if not self._bounds.any and self.pace is None:
            self._turned_at = now
            return None
        outstanding = {beat.claim: self._workers[beat.claim].outstanding(now, beat.used) for beat in beats}
        in_flight = sum(outstanding.values(), Spent())
        if self._began_at is None and beats:
            # With workers of an earlier driver, the current minute has already begun.
            self._began_at = now - (MINUTE_S if ages else 0.0)
        # What the workers of an earlier driver used is in the captures, and therefore in `before`.
        ours = [beat for beat in beats if beat.claim not in (ages or {})]
        (left, pace), budget = self._limits_left(now, in_flight), self._budget_left(ours, in_flight)
        if not in_flight.requests and not any(beat.open or beat.mean_output_tokens for beat in ours):
            one = max((_cost(beat) for beat in ours), key=lambda one: one.tokens, default=Spent())
            budget = budget.with_one(one)
        alive = [
            beat for beat in beats if not beat.ended and now - self._workers[beat.claim].heard_at < _REPORT_DELAY_S
        ]
        wanting = [beat for beat in alive if beat.wants > outstanding[beat.claim].requests]
        for claim in self._workers.keys() - {beat.claim for beat in wanting}:
            self._workers[claim].waits_since = None
        self._grant(now, wanting, outstanding, left, pace, budget)
        self._check_budgets(alive, wanting, in_flight, budget)
        self._turned_at = now
        return {beat.claim: self._workers[beat.claim].permit(now) for beat in beats if not beat.ended}

    def cool_s(self, now: float, beats: Iterable[Heartbeat], longest_s: float = math.inf) -> float:
        """The seconds until a request may start, according to the server's responses. Call :meth:`turn` first."""
        remaining = (beat.cool_s - (now - self._workers[beat.claim].heard_at) for beat in beats)
        return min(longest_s, max((wait for wait in remaining if 0 < wait < math.inf), default=0.0))

    def _read(self, now: float, beats: Iterable[Heartbeat], ages: Mapping[str, float]) -> bool:
        """Record new heartbeats; returns whether a worker has received another 429."""
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
                self._first_start_at = min([self._first_start_at, *(worker.heard_at - age for age, *_ in beat.recent)])
            limited |= beat.limited > worker.limited
            worker.limited = beat.limited
        return limited

    def _slow_down(self, now: float) -> None:
        """Halve the pace, once for 429 responses that belong together."""
        if now < self._calm_at:
            return
        self._calm_at = now + _RATE_WINDOW_S
        recent = [
            (age + now - worker.heard_at, requests)
            for worker in self._workers.values()
            for age, requests, _ in worker.recent
            if age + now - worker.heard_at < _RATE_WINDOW_S
        ]
        known_s = max(1.0, now - self._first_start_at)
        self._recovery_s = _RECOVERY_S * min(1.0, known_s / _RATE_WINDOW_S)
        # At the start of a run, measure over its duration so far.
        span = max(1.0, max((age for age, _ in recent), default=0.0))
        before = min(self.pace or math.inf, sum(requests for _, requests in recent) / span)
        self._recovering = max(self._recovering, before, _SLOWEST)
        self.pace = max(before / 2, _SLOWEST)

    def _limits_left(self, now: float, in_flight: Spent) -> tuple[Spent, Spent]:
        """The rest of the rate limits, and how much may start now so that starts spread over the minute."""
        requests, tokens = in_flight.requests, in_flight.tokens
        for worker in self._workers.values():
            for age, count, amount in worker.recent:
                if age + now - worker.heard_at < MINUTE_S:
                    requests += count
                    tokens += amount
        used, bounds = Spent(requests, tokens), self._bounds
        limits = Spent(bounds.requests_per_minute or math.inf, bounds.tokens_per_minute or math.inf, math.inf)
        rates = limits.times(_CATCH_UP / MINUTE_S).minimum(Spent(self.pace or math.inf, math.inf, math.inf))
        passed = max(_MOMENT_S, 0.0 if self._turned_at is None else now - self._turned_at)
        burst = rates.times(_BURST_S)
        # Requests may use far fewer tokens than expected, so a token debt stays small.
        level = Spent(self._level.requests, max(self._level.tokens, -burst.tokens), self._level.cost_usd)
        self._level = (level + rates.times(passed)).minimum(burst)
        minute = MINUTE_S if self._began_at is None else min(MINUTE_S, max(_MOMENT_S, now - self._began_at))
        return limits + used.times(-1), self._level.minimum(limits.times(minute / MINUTE_S) + used.times(-1))

    def _budget_left(self, beats: Iterable[Heartbeat], in_flight: Spent) -> Spent:
        """The rest of the budgets; open calls count at their expected use."""
        spent = self._before + in_flight
        for beat in beats:
            # The journal has exact counts, but of fewer calls. If its counts are higher, the worker's estimates were
            # too low.
            tokens = max(beat.spent_tokens, beat.input_tokens + beat.output_tokens)
            usd = max(beat.spent_usd, beat.cost_usd or 0.0)
            spent += Spent(beat.requests, tokens + beat.in_flight_tokens, usd + beat.in_flight_usd)
        bounds = self._bounds
        return Spent(
            math.inf if bounds.requests is None else bounds.requests - spent.requests,
            math.inf if bounds.tokens is None else bounds.tokens - spent.tokens,
            math.inf if bounds.cost_usd is None else bounds.cost_usd - spent.cost_usd,
        )

    def _grant(
        self,
        now: float,
        wanting: list[Heartbeat],
        outstanding: Mapping[str, Spent],
        left: Spent,
        pace: Spent,
        budget: Spent,
    ) -> None:
        """Grant requests to the workers that want them, in turn and as evenly as possible."""
        dealt = dict.fromkeys((beat.claim for beat in wanting), 0)
        overdue = {beat.claim for beat in wanting if self._overdue(now, beat, len(wanting))}
        order = sorted(wanting, key=lambda beat: (beat.claim not in overdue, beat.claim <= self._served, beat.claim))
        # While a large request is overdue, all workers wait until it fits. Otherwise small requests would always take
        # its place.
        blocked = any(left.fits(self._one(beat)) < 1 <= budget.fits(_cost(beat)) for beat in order[: len(overdue)])
        # No budget counts checks, so answers to requests that have been sent are still checked after the budget is used
        # up.
        checking = {beat.claim for beat in wanting if beat.checks >= beat.wants > budget.fits(_cost(beat))}
        waiting = [] if blocked else order
        while waiting:
            still = []
            for beat in waiting:
                cost, one = _cost(beat), self._one(beat)
                wants = beat.wants - outstanding[beat.claim].requests - dealt[beat.claim]
                fits = min(left.fits(one), pace.may_start(one))
                fair = max(1, math.floor(fits / len(waiting))) if math.isfinite(fits) else wants
                affords = math.inf if beat.claim in checking else budget.fits(cost)
                count = math.floor(min(wants, fair, fits, affords))
                if count > 0:
                    self._served = beat.claim
                    dealt[beat.claim] += count
                    used = one.times(-count)
                    left, pace, self._level = left + used, pace + used, self._level + used
                    if beat.claim not in checking:
                        budget += cost.times(-count)
                    still.append(beat)
            waiting = [beat for beat in still if beat.wants - outstanding[beat.claim].requests > dealt[beat.claim]]
        for beat in wanting:
            self._workers[beat.claim].grant(now, beat, dealt[beat.claim], checks_only=beat.claim in checking)

    def _one(self, beat: Heartbeat) -> Spent:
        """How much of the rate limits a worker's next request uses. A request above the token limit starts alone."""
        return _cost(beat).minimum(Spent(1, self._bounds.tokens_per_minute or math.inf, math.inf))

    def _overdue(self, now: float, beat: Heartbeat, workers: int) -> bool:
        """Whether a worker has waited so long that its share of the token limit would have covered its next request."""
        since, limit = self._workers[beat.claim].waits_since, self._bounds.tokens_per_minute
        if since is None or limit is None:
            return False
        return now - since >= workers * MINUTE_S * self._one(beat).tokens / limit

    def _check_budgets(
        self, alive: Iterable[Heartbeat], wanting: Sequence[Heartbeat], in_flight: Spent, budget: Spent
    ) -> None:
        """Set `exhausted` when workers wait, no request fits, and no open call can use less than expected."""
        if not wanting or in_flight.requests > 0 or any(beat.open for beat in alive):
            return
        one = min((_cost(beat) for beat in wanting), key=lambda cost: cost.cost_usd or cost.tokens)
        if budget.fits(one) >= 1:
            return
        for name, available, part in (
            ("requests", budget.requests, one.requests),
            ("tokens", budget.tokens, one.tokens),
            ("cost_usd", budget.cost_usd, one.cost_usd),
        ):
            if part > 0 and available < part:
                bound = getattr(self._bounds, name)
                rest = f"{available:,.10g} of {bound:,} left, and the next request is expected to use {part:,.10g}"
                self.exhausted = f"budget.{name}: {rest if available > 0 else f'{bound:,} is used up'}"
                return


def _cost(beat: Heartbeat) -> Spent:
    """The expected use of a worker's next request."""
    return Spent(1, beat.next_tokens, beat.next_usd)
