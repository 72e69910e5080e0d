"""The expected use of a worker's requests, and the use of its calls: the worker's side of limits and budgets.

Knows permits, expected use, and how the end of a call corrects it. ``driver/pacer.py`` issues permits, and
``billing.py`` has the rules for costs. This module runs on the event loop, so it estimates the output from what arrived
if the server reports no usage, or less than arrived. The driver corrects such estimates when the journal has counted
the tokens.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from deltatap.rates import Billed, cost_parts
from deltatap.worker.allowance import Allowance, Meter
from deltatap.worker.billing import billed, price_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.messages import Permit
    from deltatap.model import Call, Job, Received
    from deltatap.rates import Price

# The expected output tokens before the first call has ended, unless the request has a smaller maximum. A high
# value slows the start. With a low value, a run could exceed a limit before the first usage is known.
_FIRST_OUTPUT = 4000.0
# The weight of one output in the moving mean.
_WEIGHT = 0.02


class Tally:
    """One worker's permits and use. Belongs to the engine's event loop; other threads only read numbers.

    Attributes:
        allowance: the permits.
        spent_tokens, spent_usd: use of the calls that have ended.
        in_flight_tokens, in_flight_usd: expected use of the open calls.
        limited: the number of 429 responses.
        mean_output_tokens: per choice, over the latest calls; None before the first has ended.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.allowance = Allowance()
        self.spent_tokens = 0.0
        self.spent_usd = 0.0
        self.in_flight_tokens = 0.0
        self.in_flight_usd = 0.0
        self.limited = 0
        self.mean_output_tokens: float | None = None
        self._meter = Meter()
        self._others: float | None = None
        self._learned = 0
        self._in_flight: dict[Job, tuple[float, float, float]] = {}

    def give(self, permit: Permit | None, mean_output_tokens: float | None) -> None:
        """Set the driver's latest permit, and the mean output tokens over all workers."""
        self.allowance.give(permit, self._clock())
        self._others = mean_output_tokens

    def expects(self, job: Job) -> tuple[float, float]:
        """The tokens and USD that a request is expected to use."""
        expected = job.expected
        if expected is None:
            return 0.0, 0.0
        output = self.mean_output_tokens or self._others or _FIRST_OUTPUT
        if expected.max_output is not None:
            output = min(output, expected.max_output)
        output *= expected.choices
        return expected.input_tokens + output, _usd(expected.price, Billed(expected.input_tokens, round(output)))

    def allows(self, job: Job) -> bool:
        """Whether a request may start now."""
        return self.allowance.allows(self._clock(), self.expects(job)[0])

    def takes_permit(self) -> bool:
        """Take a permit for a call that uses no tokens, such as a moderation call. False if there is none now."""
        now = self._clock()
        if not self.allowance.allows(now, 0, check=True):
            return False
        self.allowance.take()
        self._meter.started(now, 0)
        return True

    def started(self, job: Job) -> None:
        """Count the start of a call."""
        now = self._clock()
        tokens, usd = self.expects(job)
        self.allowance.take()
        self._meter.started(now, tokens)
        self._in_flight[job] = (now, tokens, usd)
        self.in_flight_tokens += tokens
        self.in_flight_usd += usd

    def ended(self, job: Job, call: Call | None, before: Call | None = None) -> None:
        """Replace a call's expected use with its actual use.

        Args:
            job: the job.
            call: its last call; None when the call never began.
            before: the earlier call that `call` replaces, because both read the same answer.
        """
        at, tokens, usd = self._in_flight.pop(job)
        self.in_flight_tokens -= tokens
        self.in_flight_usd -= usd
        used_tokens, used_usd = (0.0, 0.0) if call is None else self._used(job, call)
        if before is not None:
            known_tokens, known_usd = self._used(job, before)
            used_tokens, used_usd = used_tokens - known_tokens, used_usd - known_usd
        self._meter.corrected(at, used_tokens - tokens)
        self.spent_tokens += used_tokens
        self.spent_usd += used_usd
        if call is not None and call.error is not None and call.error.type == "rate_limit":
            self.limited += 1

    def _used(self, job: Job, call: Call) -> tuple[float, float]:
        received, expected = call.received, job.expected
        usage = received.usage
        if not received.output and not (usage and (usage.input_tokens or usage.output_tokens)):
            return 0.0, 0.0
        # No request has an input of zero tokens.
        inputs = (usage.input_tokens if usage else 0) or (expected.input_tokens if expected else 0)
        outputs = usage.output_tokens if usage else None
        if not outputs or not received.usage_final:
            outputs = max(outputs or 0, _arrived(received))
        if call.error is None and expected is not None:
            self._learn(outputs / expected.choices)
        return inputs + outputs, _usd(_price(job, call), billed(received, inputs, outputs))

    def _learn(self, output: float) -> None:
        """Update the mean: an average over the first outputs, later a moving average."""
        self._learned += 1
        mean = self.mean_output_tokens or 0.0
        self.mean_output_tokens = mean + (output - mean) * max(_WEIGHT, 1 / self._learned)

    def status(self, job: Job | None) -> dict[str, Any]:
        """This module's fields of a heartbeat; `job` is the job that would start next."""
        tokens, usd = (0.0, 0.0) if job is None else self.expects(job)
        return {
            "next_tokens": tokens,
            "next_usd": usd,
            "used": self.allowance.used,
            "recent": self._meter.recent(self._clock()),
            "spent_tokens": self.spent_tokens,
            "spent_usd": self.spent_usd,
            "in_flight_tokens": max(0.0, self.in_flight_tokens),
            "in_flight_usd": max(0.0, self.in_flight_usd),
            "limited": self.limited,
            "mean_output_tokens": self.mean_output_tokens,
        }


def _arrived(received: Received) -> int:
    """About how many output tokens have arrived: one per chunk, or one per four bytes if that is more."""
    if not received.output:
        return 0
    chunks = received.chunks
    if len(chunks):
        return max(len(chunks), len(chunks.utf8) // 4)
    texts = (text for each in received.choices for text in (each.text, each.reasoning, each.refusal, each.tool_calls))
    return max(1, sum(len(text.encode("utf-8", "surrogatepass")) for text in texts if text) // 4)


def _price(job: Job, call: Call) -> Price | None:
    """The price of a call: of the model and the tier that answered."""
    expected = job.expected
    if expected is None or expected.prices is None:
        return None if expected is None else expected.price
    body = call.body or (job.wire.body if job.wire else None)
    return price_of(expected.prices, job.request.model, call.received, body, call.started_at) or expected.price


def _usd(price: Price | None, use: Billed) -> float:
    return 0.0 if price is None else float(sum(cost_parts(price, use).values()))
