"""A worker's link to its driver: it reads the control file, sends heartbeats, and directs the engine.

The pure function :func:`decide` knows what the driver's messages, and their absence, mean for the engine. Leaves the
files to ``state.py``, and when a request starts to the engine.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from deltatap.messages import LOST_S, POLL_S, STALE_S, Heartbeat, Permit
from deltatap.worker.engine import Proceed

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.messages import Control
    from deltatap.plan_state import PlanState
    from deltatap.state import RunState
    from deltatap.worker.engine import Engine
    from deltatap.worker.journal import JournalWriter

# Nothing starts while more captures than this wait for the journal.
_BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class Stop:
    """Start no more requests, and cut open streams after ``grace_s`` seconds.

    With limits, `permit` is for the checks of the streams that are still open.
    """

    grace_s: float
    permit: Permit | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """The facts that a worker decides on.

    Attributes:
        claim: the attempt's name.
        epoch: of the worker's plan.
        holds_claim: whether no newer attempt has claimed the part.
        silent_s: seconds since the driver's last new message, or since the claims could last be read, whichever is
            longer.
        waiting: captures that wait for the journal.
        journal_failing: whether the last write of the journal failed and is being retried.
        journal_failed: whether the journal cannot be written at all.
        grace_s: seconds that open streams may continue when the worker stops without the driver's order.
    """

    claim: str
    epoch: int
    holds_claim: bool
    silent_s: float
    waiting: int
    journal_failing: bool
    journal_failed: bool
    grace_s: float


_PAUSE = Proceed(share=0)


def decide(control: Control | None, now: Situation) -> Stop | Proceed:
    """Decide what the engine does next. `control` is the driver's last message, None before the first."""
    # Captures that cannot be kept must not be paid for.
    if now.journal_failed:
        return Stop(0)
    if control is not None and control.epoch == now.epoch and control.stop is not None:
        return Stop(control.grace_s, _permit(control, now.claim))
    replaced = (control is not None and control.epoch > now.epoch) or not now.holds_claim
    if replaced or now.silent_s > LOST_S:
        return Stop(now.grace_s)
    if control is None or now.silent_s > STALE_S or now.waiting > _BACKLOG or now.journal_failing:
        return _PAUSE
    return Proceed(
        share=control.shares.get(now.claim, 0),
        cool_s=control.cool_s,
        permit=_permit(control, now.claim),
        mean_output_tokens=control.mean_output_tokens,
        begins_at=control.begins_at,
    )


def _permit(control: Control, claim: str) -> Permit | None:
    return None if control.permits is None else control.permits.get(claim, Permit())


class Link:
    """Exchanges messages with the driver every POLL_S seconds, in its own thread."""

    def __init__(
        self,
        state: RunState,
        plan: PlanState,
        claim: str,
        epoch: int,
        engine: Engine,
        journal: JournalWriter,
        *,
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Messages are exchanged only after the link is entered.

        Args:
            state: the run's state folder.
            plan: the plan's state folder.
            claim: the attempt's name.
            epoch: of the plan.
            engine: directed by the link.
            journal: read for the heartbeat.
            grace_s: see :class:`Situation`.
            clock: monotonic seconds.
        """
        self._state, self._claim, self._epoch = state.at_once(), claim, epoch
        self._plan = plan.at_once()
        self._engine, self._journal = engine, journal
        self._grace_s, self._clock = grace_s, clock
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._main, name="deltatap-link", daemon=True)
        self._control: Control | None = None
        self._fresh_at = self._claims_at = clock()
        self._holds_claim = True
        self._beat = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._thread.join()

    def _main(self) -> None:
        while True:
            try:
                self.exchange()
            except Exception:  # noqa: BLE001 - without the driver's messages, nothing may start
                with suppress(RuntimeError):  # the engine has ended
                    self._engine.control(_PAUSE)
            if self._closed.wait(POLL_S):
                return

    def _take(self, control: Control | None, now: float) -> None:
        """Take a message, unless it is an old copy of the file."""
        known = self._control
        if control is not None and (known is None or (control.epoch, control.beat) > (known.epoch, known.beat)):
            self._control, self._fresh_at = control, now

    def exchange(self) -> None:
        """Send a heartbeat, read the driver's message, and direct the engine.

        A step that fails is repeated in the next exchange. Until then, the earlier message remains valid.
        """
        self._beat += 1
        with suppress(OSError):
            self._state.beat(heartbeat(self._epoch, self._claim, self._beat, self._engine, self._journal))
        now = self._clock()
        with suppress(OSError):
            self._take(self._state.control(), now)
        with suppress(OSError):
            self._holds_claim = self._holds_claim and self._plan.holds(self._claim)
            self._claims_at = now
        decision = decide(
            self._control,
            Situation(
                claim=self._claim,
                epoch=self._epoch,
                holds_claim=self._holds_claim,
                silent_s=now - min(self._fresh_at, self._claims_at),
                waiting=self._journal.waiting,
                journal_failing=self._journal.failing,
                journal_failed=self._journal.failure is not None,
                grace_s=self._grace_s,
            ),
        )
        if isinstance(decision, Stop):
            self._engine.stop(decision.grace_s)
            if decision.permit is not None:
                self._engine.control(replace(_PAUSE, permit=decision.permit))
        else:
            self._engine.control(decision)


def heartbeat(
    epoch: int, claim: str, beat: int, engine: Engine, journal: JournalWriter, *, ended: bool = False
) -> Heartbeat:
    """The worker's message to its driver."""
    totals = journal.totals
    return Heartbeat(
        epoch=epoch,
        claim=claim,
        beat=beat,
        rows=dict(totals.rows),
        uncalled=totals.uncalled,
        errors=dict(totals.errors),
        input_tokens=totals.input_tokens,
        output_tokens=totals.output_tokens,
        cost_usd=totals.cost_usd,
        ttft_ms=totals.ttft_ms,
        ended=ended,
        at=time.time(),
        **engine.status(),
    )
