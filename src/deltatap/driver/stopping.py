"""When and why a run stops, as pure decisions: the first reason counts, and time is passed in.

``loop.py`` collects the facts and carries out the decisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deltatap.driver.control import newest
from deltatap.errors import one_line
from deltatap.model import RunStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from deltatap.messages import Heartbeat, Parked

# How long workers may take after timeouts.grace_s to stop on their own.
END_WAIT_S = 30.0
SUBMISSIONS = 4
_SHOWN_MODELS = 5
# What to check after a refusal, by its type.
_CHECK = {
    "authentication": "check endpoint.api_key",
    "wrong_url": "check endpoint.base_url and endpoint.api",
    "quota": "check the account's quota and billing",
    "permission": "check the key's rights for the model",
    "not_found": "check the model's name and endpoint.base_url",
}


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run stops before everything is captured.

    Attributes:
        status: the status that the run is closed with.
        reason: for the user, in one line.
        lets_end: whether open streams may finish instead of being cut after the grace period.
    """

    status: RunStatus
    reason: str
    lets_end: bool = False


def why_stop(
    *,
    errors: Sequence[tuple[str, BaseException]],
    beats: Sequence[Heartbeat],
    url: str,
    refused: Sequence[Parked],
    signalled: bool,
    requested: bool,
    exhausted: str | None,
    runtime_over_s: float | None,
) -> Stop | None:
    """Decide whether a run must stop now. If there are several reasons, the first one in this order counts.

    Args:
        errors: of background threads, each with the thread's name.
        beats: the heartbeats of this driver's workers.
        url: the endpoint's.
        refused: the models of the plan, if the server refuses all of them and no call of the run has succeeded.
        signalled: whether SIGINT or SIGTERM arrived.
        requested: whether somebody called ``deltatap stop``.
        exhausted: the budget that is used up.
        runtime_over_s: ``budget.runtime_s``, once it has passed.
    """
    reasons = [Stop(RunStatus.FAILED, f"{name}: {one_line(error)}") for name, error in errors]
    reasons += [Stop(RunStatus.FAILED, f"{url}: {_checked(beat.fatal)}") for beat in beats if beat.fatal]
    reasons += [Stop(RunStatus.FAILED, f"{url}: {beat.too_long}", lets_end=True) for beat in beats if beat.too_long]
    if refused:
        shown = [str(parked.refusal) for parked in refused[:_SHOWN_MODELS]]
        more = [f"{len(refused) - len(shown)} more models"] if len(refused) > len(shown) else []
        reasons.append(Stop(RunStatus.FAILED, f"{url}: {_checked(', '.join([*shown, *more]))}"))
    if signalled:
        reasons.append(Stop(RunStatus.STOPPED, "stopped by a signal"))
    if requested:
        reasons.append(Stop(RunStatus.STOPPED, "stopped by `deltatap stop`"))
    if exhausted is not None:
        reasons.append(Stop(RunStatus.BUDGET_EXHAUSTED, exhausted))
    if runtime_over_s is not None:
        reasons.append(Stop(RunStatus.BUDGET_EXHAUSTED, f"budget.runtime_s: {runtime_over_s:g} s have passed"))
    return next(iter(reasons), None)


def parked_models(beats: Iterable[Heartbeat]) -> dict[str, Parked]:
    """The models that refuse every request, with the number of requests that the newest attempts have not sent."""
    found: dict[str, Parked] = {}
    for beat in newest(beats):
        for parked in beat.parked:
            before = found.get(parked.refusal.model)
            found[parked.refusal.model] = replace(parked, requests=parked.requests + (before.requests if before else 0))
    return found


def all_refused(models: Collection[str], parked: dict[str, Parked], *, succeeded: bool) -> list[Parked]:
    """The models of the plan, if the server refuses all of them and no call of the run has succeeded; else empty."""
    return [] if succeeded or not models or set(models) - parked.keys() else [parked[model] for model in models]


def notes(parked: dict[str, Parked]) -> list[str]:
    """Notes for the user at the end of a run in which some models refused every request."""
    return [
        f"model {model} refuses every request ({entry.requests:,} not sent, still owed): {_checked(str(entry.refusal))}"
        for model, entry in sorted(parked.items())
    ]


def _checked(refusal: str) -> str:
    """A refusal, followed by what to check."""
    check = _CHECK.get(refusal.partition(":")[0])
    return f"{refusal}; {check}" if check else refusal


def give_up(submissions: int, why: str, what: str) -> Stop | None:
    """Decide whether to try the capture again after a Spark job or an attempt that left captures missing.

    Args:
        submissions: the number of Spark jobs or attempts so far.
        why: what went wrong with the last one.
        what: the word for them in the message.
    """
    if submissions < SUBMISSIONS:
        return None
    return Stop(RunStatus.FAILED, f"the capture did not complete in {submissions} {what}s: {why}")


@dataclass(slots=True)
class Shutdown:
    """How a stop proceeds: workers stop on their own, or else Spark's jobs are interrupted.

    Attributes:
        grace_s: how long open streams may continue.
        total_s: how long a stream can take.
        stop: the first reason; None while the run continues.
        interrupted: whether Spark's jobs have been interrupted.
    """

    grace_s: float
    total_s: float = 0.0
    stop: Stop | None = None
    interrupted: bool = False
    _interrupt_at: float = math.inf

    def begin(self, stop: Stop | None, now: float) -> None:
        """Stop, unless there is no reason or the run is stopping already."""
        if self.stop is None and stop is not None:
            self.stop = stop
            if stop.lets_end:
                self.grace_s = max(self.grace_s, self.total_s)
            self._interrupt_at = now + self.grace_s + END_WAIT_S

    def must_interrupt(self, now: float) -> bool:
        """Whether to interrupt Spark's jobs now; True again every :data:`END_WAIT_S` while workers do not stop."""
        if now <= self._interrupt_at:
            return False
        self.interrupted = True
        self._interrupt_at = now + END_WAIT_S
        return True
