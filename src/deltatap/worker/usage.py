"""What a worker's requests are expected to use, and what its calls have used: the worker's side of limits and budgets.

Knows permits, expectations and how a call's end corrects them. Leaves to ``limits.py`` how the driver deals, to
``rows.py`` what a call really cost: here, on the event loop, an output that was not reported is taken for as many
tokens as it had chunks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from deltatap.prices import cost_usd
from deltatap.worker.allowance import Allowance, Meter

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.messages import Permit
    from deltatap.model import Call, Expected, Job

# Before anything has been captured an output is taken for so long, unless the request says how long it may be: too long
# begins slowly, too short would exceed a limit before anybody knew.
_FIRST_OUTPUT = 4000.0
_WEIGHT = 0.02


def most_output(body: dict[str, Any]) -> int | None:
    """How many tokens a choice may have, by the request's body."""
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        if isinstance(body.get(name), int) and body[name] > 0:
            return int(body[name])
    return None


class Tally:
    """One worker's permits, and what it has used. On the engine's event loop; others read numbers.

    Attributes:
        allowance: the permits.
        spent_tokens, spent_usd: of the calls that have ended.
        flying_tokens, flying_usd: what the open ones are expected to use.
        limited: how often a server said that it was too much.
        mean_output_tokens: a choice's output, by the last ones; None before any has ended.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.allowance = Allowance()
        self.spent_tokens = 0.0
        self.spent_usd = 0.0
        self.flying_tokens = 0.0
        self.flying_usd = 0.0
        self.limited = 0
        self.mean_output_tokens: float | None = None
        self._meter = Meter()
        self._others: float | None = None
        self._learned = 0
        self._flying: dict[Job, tuple[float, float, float]] = {}

    def give(self, permit: Permit | None, mean_output_tokens: float | None) -> None:
        """The driver's word: what may start, and how long the outputs of all workers are."""
        self.allowance.give(permit, self._clock())
        self._others = mean_output_tokens

    def expects(self, job: Job) -> tuple[float, float]:
        """Tokens and USD that a request is expected to use."""
        expected = job.expected
        if expected is None:
            return 0.0, 0.0
        output = self.mean_output_tokens or self._others or _FIRST_OUTPUT
        if expected.most_output is not None:
            output = min(output, expected.most_output)
        output *= expected.choices
        return expected.input_tokens + output, _usd(expected, expected.input_tokens, output)

    def allows(self, job: Job) -> bool:
        """Whether a request may start now."""
        return self.allowance.allows(self._clock(), self.expects(job)[0])

    def started(self, job: Job) -> None:
        """A call starts."""
        now = self._clock()
        tokens, usd = self.expects(job)
        self.allowance.take()
        self._meter.started(now, tokens)
        self._flying[job] = (now, tokens, usd)
        self.flying_tokens += tokens
        self.flying_usd += usd

    def ended(self, job: Job, call: Call | None) -> None:
        """A call has ended: what it used takes the place of what was expected; None when it never began."""
        at, tokens, usd = self._flying.pop(job)
        self.flying_tokens -= tokens
        self.flying_usd -= usd
        used_tokens, used_usd = (0.0, 0.0) if call is None else self._used(job, call)
        self._meter.corrected(at, used_tokens - tokens)
        self.spent_tokens += used_tokens
        self.spent_usd += used_usd
        if call is not None and call.error is not None and call.error.type == "rate_limit":
            self.limited += 1

    def _used(self, job: Job, call: Call) -> tuple[float, float]:
        received, expected = call.received, job.expected
        usage = received.usage
        if usage is None and not received.output:
            return 0.0, 0.0
        inputs = usage.input_tokens if usage else None
        outputs = usage.output_tokens if usage else None
        if inputs is None:
            inputs = expected.input_tokens if expected else 0
        if outputs is None:
            outputs = len(received.chunks)
        if call.error is None and expected is not None:
            self._learn(outputs / expected.choices)
        cached = usage.cached_input_tokens or 0 if usage else 0
        return inputs + outputs, 0.0 if expected is None else _usd(expected, inputs, outputs, cached)

    def _learn(self, output: float) -> None:
        """The mean of the first outputs, then one that follows the last ones."""
        self._learned += 1
        mean = self.mean_output_tokens or 0.0
        self.mean_output_tokens = mean + (output - mean) * max(_WEIGHT, 1 / self._learned)

    def told(self, job: Job | None) -> dict[str, Any]:
        """What stands in the heartbeat; `job` is the one that would start next."""
        tokens, usd = (0.0, 0.0) if job is None else self.expects(job)
        return {
            "next_tokens": tokens,
            "next_usd": usd,
            "used": self.allowance.used,
            "recent": self._meter.recent(self._clock()),
            "spent_tokens": self.spent_tokens,
            "spent_usd": self.spent_usd,
            "flying_tokens": max(0.0, self.flying_tokens),
            "flying_usd": max(0.0, self.flying_usd),
            "limited": self.limited,
            "mean_output_tokens": self.mean_output_tokens,
        }


def _usd(expected: Expected, inputs: float, outputs: float, cached: int = 0) -> float:
    return 0.0 if expected.price is None else float(cost_usd(expected.price, round(inputs), round(outputs), cached))
