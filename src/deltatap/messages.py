"""What the driver and its workers tell each other: Control and Permit to the workers, Heartbeat to the driver.

Plain records. ``state.py`` knows the files that carry them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


MINUTE_S = 60.0
# A permit is void after this, for the worker by its own clock, and for the driver's next word.
PERMIT_S = 1.0
# A permit is for a request of so many times the expected tokens at most.
TOLERATED = 1.5


@dataclass(frozen=True, slots=True)
class Permit:
    """What a worker may have started since it began, by number.

    Attributes:
        requests: up to which number.
        void: up to which it is void.
        tokens: that each of them may be expected to use.
    """

    requests: int = 0
    void: int = 0
    tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Control:
    """The driver's word to its workers.

    Attributes:
        epoch: of the lease; a worker of an older one starts nothing more.
        beat: counts up; a worker that sees no new one for too long starts nothing more.
        shares: how many streams each claim may hold open; a claim that is not named has none.
        cool_s: for so long nobody starts anything.
        stop: why nothing starts any more; None while the run goes on.
        grace_s: how long what is open may still run, once stopped.
        permits: what each claim may have started, where something limits it; None where nothing does.
        mean_output_tokens: of the last captures of all workers; None before there is any.
    """

    epoch: int
    beat: int
    shares: Mapping[str, int] = field(default_factory=dict)
    cool_s: float = 0.0
    stop: str | None = None
    grace_s: float = 0.0
    permits: Mapping[str, Permit] | None = None
    mean_output_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker's word to its driver; counts are since the worker's start.

    Attributes:
        epoch: of the plan.
        claim: the attempt's name.
        beat: counts up.
        open: streams open now.
        requests: calls made.
        rows: captures finished, by status.
        errors: calls that failed, by error type, those that were tried again included.
        input_tokens, output_tokens, cost_usd: of all calls.
        ttft_ms: the median of the last calls.
        loop_lag_ms: the worst of the last seconds.
        cool_s: for how long the server wants no calls, by what it told this worker; passed on, it does not grow.
        fatal: why no request can succeed.
        ended: whether the worker is done.
        at: when this was said, in seconds since the epoch.
        wants: how many requests could start now, if they were permitted.
        next_tokens, next_usd: what the next of them is expected to use.
        used: permits used or void, by number.
        recent: what has started within the last minute: age, requests, tokens.
        spent_tokens, spent_usd: of the calls that have ended.
        flying_tokens, flying_usd: what the open ones are expected to use.
        limited: how often a server said that it was too much (429).
        mean_output_tokens: of a choice, by the last calls; None before any has ended.
    """

    epoch: int
    claim: str
    beat: int
    open: int = 0
    requests: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    ttft_ms: float | None = None
    loop_lag_ms: float = 0.0
    cool_s: float = 0.0
    fatal: str | None = None
    ended: bool = False
    at: float = 0.0
    wants: int = 0
    next_tokens: float = 0.0
    next_usd: float = 0.0
    used: int = 0
    recent: Sequence[Sequence[float]] = field(default_factory=list)
    spent_tokens: float = 0.0
    spent_usd: float = 0.0
    flying_tokens: float = 0.0
    flying_usd: float = 0.0
    limited: int = 0
    mean_output_tokens: float | None = None

    @property
    def part(self) -> str:
        """The part that is claimed."""
        return self.claim.split("-")[0]
