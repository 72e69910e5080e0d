"""When and why a run stops, as pure decisions: the first reason counts, and time is passed in.

``loop.py`` collects the facts and carries out the decisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltatap.errors import one_line
from deltatap.model import RunStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltatap.messages import Heartbeat

# How long workers may take after timeouts.grace_s to stop on their own.
END_WAIT_S = 30.0
SUBMISSIONS = 4


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run stops before everything is captured.

    Attributes:
        status: the status that the run is closed with.
        reason: for the user, in one line.
    """

    status: RunStatus
    reason: str


def why_stop(
    *,
    errors: Sequence[tuple[str, BaseException]],
    beats: Sequence[Heartbeat],
    signalled: bool,
    requested: bool,
    exhausted: str | None,
    runtime_over_s: float | None,
) -> Stop | None:
    """Decide whether a run must stop now. If there are several reasons, the first one in this order counts.

    Args:
        errors: of background threads, each with the thread's name.
        beats: the heartbeats of this driver's workers.
        signalled: whether SIGINT or SIGTERM arrived.
        requested: whether somebody called ``deltatap stop``.
        exhausted: the budget that is used up.
        runtime_over_s: ``budget.runtime_s``, once it has passed.
    """
    reasons = [Stop(RunStatus.FAILED, f"{name}: {one_line(error)}") for name, error in errors]
    reasons += [Stop(RunStatus.FAILED, beat.fatal) for beat in beats if beat.fatal]
    if signalled:
        reasons.append(Stop(RunStatus.STOPPED, "stopped by a signal"))
    if requested:
        reasons.append(Stop(RunStatus.STOPPED, "stopped by `deltatap stop`"))
    if exhausted is not None:
        reasons.append(Stop(RunStatus.BUDGET_EXHAUSTED, exhausted))
    if runtime_over_s is not None:
        reasons.append(Stop(RunStatus.BUDGET_EXHAUSTED, f"budget.runtime_s: {runtime_over_s:g} s have passed"))
    return next(iter(reasons), None)


def give_up(submissions: int, why: str) -> Stop | None:
    """Decide whether to submit the capture again after a Spark job that left captures missing.

    Args:
        submissions: how many Spark jobs have been submitted.
        why: what went wrong with the last one.
    """
    if submissions < SUBMISSIONS:
        return None
    return Stop(RunStatus.FAILED, f"the capture did not complete in {submissions} Spark jobs: {why}")


@dataclass(slots=True)
class Shutdown:
    """How a stop proceeds: workers stop on their own, or else Spark's jobs are interrupted.

    Attributes:
        grace_s: how long open streams may continue.
        stop: the first reason; None while the run continues.
        interrupted: whether Spark's jobs have been interrupted.
    """

    grace_s: float
    stop: Stop | None = None
    interrupted: bool = False
    _interrupt_at: float = math.inf

    def begin(self, stop: Stop | None, now: float) -> None:
        """Stop, unless there is no reason or the run is stopping already."""
        if self.stop is None and stop is not None:
            self.stop = stop
            self._interrupt_at = now + self.grace_s + END_WAIT_S

    def must_interrupt(self, now: float) -> bool:
        """Whether to interrupt Spark's jobs now; True again every :data:`END_WAIT_S` while workers do not stop."""
        if now <= self._interrupt_at:
            return False
        self.interrupted = True
        self._interrupt_at = now + END_WAIT_S
        return True
