"""``capture.follow_s``: a run, and another run whenever there are new prompts, in one Spark session, until a stop.

Each round is a separate run. Knows when to look for prompts, which requests a later round sends, how much of the budget
is left, and what ends the rounds. Leaves a round to ``run.py``.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatap.config import Limits
from deltatap.driver import budget
from deltatap.driver.owed import owed_requests
from deltatap.driver.run import run, signals
from deltatap.errors import ConfigError, RunningError, one_line
from deltatap.messages import MINUTE_S, POLL_S, Control
from deltatap.model import RunStatus
from deltatap.state import RunState

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from pyspark.sql import SparkSession
    from rich.console import Console

    from deltatap.config import Settings
    from deltatap.driver.run import Ended
    from deltatap.prices import Prices

# How many consecutive looks may fail. A look can fail while somebody replaces the table.
_TRIES = 5
_STOPPED = "stopped by `deltatap stop`"


@dataclass(slots=True)
class Rounds:
    """The rounds so far, and the settings of the next one. Pure.

    Attributes:
        settings: of all rounds; their budget and ``capture.limit`` are for all rounds together.
        began: when the first round began, in monotonic seconds.
        runs: the rows of the rounds.
    """

    settings: Settings
    began: float
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the rounds. A request with a row in one of them is not sent again, regardless of its status."""
        return tuple(row["run_id"] for row in self.runs)

    def every_s(self) -> float:
        """How long to wait before the next look: with limits, until the starts of the last round no longer count."""
        follow_s = self.settings.capture.follow_s or 0.0
        return follow_s if self.settings.limits == Limits() else max(follow_s, MINUTE_S)

    def over(self, now: float) -> str | None:
        """Why no further round follows, as text; None if one may follow. `now` is in monotonic seconds."""
        if self.runs and self.runs[-1]["status"] != RunStatus.COMPLETED:
            return str(self.runs[-1]["reason"] or self.runs[-1]["status"])
        limit = self.settings.capture.limit
        if limit is not None and self._owed() >= limit:
            return f"capture.limit: {limit:,} requests have been captured"
        return budget.used_up(self.settings.budget, self._used(now))

    def next(self, now: float) -> Settings:
        """The settings of the next round."""
        settings, number = self.settings, len(self.runs) + 1
        limit, run_id = settings.capture.limit, settings.run.id
        capture = {"limit": None if limit is None else limit - self._owed()}
        named = {"id": run_id if run_id is None or number == 1 else f"{run_id}-{number}"}
        return settings.model_copy(
            update={
                "run": settings.run.model_copy(update=named),
                "capture": settings.capture.model_copy(update=capture),
                "budget": budget.left(settings.budget, self._used(now)),
            }
        )

    def _owed(self) -> int:
        return sum(row["owed"] or 0 for row in self.runs)

    def _used(self, now: float) -> dict[str, float]:
        # The budget of time includes the waits.
        return {**budget.spent(self.runs), "runtime_s": now - self.began}


def follow(
    settings: Settings, spark: SparkSession, prices: Prices, console: Console, say: Callable[[str], None]
) -> Iterator[Ended]:
    """Run rounds until a signal, ``deltatap stop``, a used-up budget, or a round that does not complete.

    Call :func:`deltatap.driver.needs.preflight` first. The errors of the first round are those of
    :func:`deltatap.driver.run.run`.

    Args:
        settings: of all rounds.
        spark: the session of all rounds.
        prices: of the models.
        console: where the rounds print.
        say: prints a line.

    Yields:
        How each round ended.
    """
    rounds = Rounds(settings, time.monotonic())
    why: str | None = None
    with signals() as signalled:
        while True:
            try:
                now = time.monotonic()
                ended = run(rounds.next(now), spark, prices, console, after=rounds.ids, signalled=signalled)
            except RunningError as error:
                if not rounds.runs:
                    raise
                notice = f"{error}; looking again in {rounds.every_s():g} s"
            else:
                rounds.runs.append(ended.row)
                yield ended
                if ended.asked_to_stop:
                    why = _STOPPED
                    break
                notice = f"looking for new prompts every {rounds.every_s():g} s; stop with Ctrl-C or `deltatap stop`"
            if (why := _until_due(spark, rounds, signalled, say, notice)) is not None:
                break
    if rounds.runs[-1]["status"] == RunStatus.COMPLETED:  # otherwise, the run's row has the reason
        say(f"no further round: {why}")


def _until_due(
    spark: SparkSession, rounds: Rounds, signalled: threading.Event, say: Callable[[str], None], notice: str
) -> str | None:
    """Wait until there are requests for another round; returns why there will be none.

    The notice tells the user that the wait begins. Whoever has read it can stop the wait.
    """
    failures = 0
    with _stoppable(rounds) as wait:
        if rounds.over(time.monotonic()) is None:
            say(notice)
        while (why := _until_next_look(rounds, wait, signalled)) is None:
            settings = rounds.next(time.monotonic())
            try:
                with owed_requests(spark, settings, settings.run.id or "", after=rounds.ids) as found:
                    due = not found.isEmpty()
                failures = 0
            except ConfigError as error:
                due, failures = False, failures + 1
                if failures == _TRIES:
                    raise
                say(f"{one_line(error)}; looking again in {rounds.every_s():g} s")
            if due and not wait.asked_to_stop() and not signalled.is_set():
                break
    return why


def _until_next_look(rounds: Rounds, wait: _Wait, signalled: threading.Event) -> str | None:
    """Wait until it is time to look again. Returns why no further round follows; None if one may follow."""
    now = time.monotonic()
    until = now + rounds.every_s()
    while (why := rounds.over(now)) is None and now < until:
        if signalled.wait(min(POLL_S, until - now)):
            return "stopped by a signal"
        if wait.asked_to_stop():
            return _STOPPED
        with suppress(OSError, ConfigError):  # the next turn repeats it
            wait.announce()
        now = time.monotonic()
    return why


@dataclass(frozen=True, slots=True)
class _Wait:
    """The folder of the last run, where ``deltatap stop`` leaves its request between two rounds.

    The wait holds no lease. A run that lands what dead runs have left removes this folder, too, and a start with the
    last run's id uses it.
    """

    state: RunState
    message: Control

    def announce(self) -> None:
        """Publish the message by which ``deltatap stop`` finds the wait, unless another driver uses the folder."""
        found = self.state.control()
        if found is None or found.stop == "ended":
            self.state.prepare()
            self.state.publish(self.message)

    def asked_to_stop(self) -> bool:
        """Whether a stop was requested; False while the state folder cannot be read: the next look reads it again."""
        with suppress(OSError):
            return self.state.asked_to_stop(self.message.epoch)
        return False

    def end(self) -> None:
        """Remove the folder, unless another driver uses it."""
        with suppress(OSError):
            if self.state.control() == self.message:
                self.state.remove()


@contextmanager
def _stoppable(rounds: Rounds) -> Iterator[_Wait]:
    last = rounds.runs[-1]
    state = RunState.of(Path(rounds.settings.state.dir), last["run_id"])
    message = Control(last["epoch"], beat=0, stop=RunStatus.COMPLETED)
    _Wait(state, message).announce()
    try:
        yield _Wait(state.at_once(), message)
    finally:
        _Wait(state, message).end()
