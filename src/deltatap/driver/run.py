"""A run from start to end: tables, lease, leftovers of other runs, plan, capture, landing, close.

Knows the order of these steps, which background threads run meanwhile, and how a run is closed when it fails. Leaves
each step to its own module.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import uuid
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatap.delta.lock import locked
from deltatap.delta.prepare import guard
from deltatap.driver import lease as leases
from deltatap.driver import resuming, runs
from deltatap.driver.active import ActiveRun
from deltatap.driver.background import Background, Periodic
from deltatap.driver.landing import Landing, set_aside
from deltatap.driver.leftovers import land_leftovers
from deltatap.driver.loop import CaptureLoop
from deltatap.driver.needs import require, table_needs
from deltatap.driver.owed import Building
from deltatap.driver.plan import announce, make_plan
from deltatap.driver.progress import Snapshot
from deltatap.errors import LeaseLostError, described, one_line
from deltatap.messages import Control
from deltatap.model import RunStatus
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyspark.sql import SparkSession
    from rich.console import Console

    from deltatap.config import Settings
    from deltatap.driver.plan import Plan
    from deltatap.driver.stopping import Stop
    from deltatap.prices import Prices

_LAND_EVERY_S = 1.0
_PYTHON_START_S = 30.0
# Another writer may commit first, and the journal keeps everything until it has landed.
_LANDING_TRIES = 5


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        row: its row in ``runs``.
        notes: for the user.
        earlier_calls: the calls that earlier starts of the run made. The row counts them, too.
        asked_to_stop: whether ``deltatap stop`` was called before the run ended, even if no request was left to stop.
    """

    row: dict[str, Any]
    notes: tuple[str, ...] = ()
    earlier_calls: int = 0
    asked_to_stop: bool = False

    @property
    def failed(self) -> bool:
        """Whether the run itself failed; failed rows alone do not fail a run."""
        return bool(self.row["status"] == RunStatus.FAILED)

    @property
    def failed_share(self) -> float:
        """The share of failed rows among the run's rows, from 0 to 1."""
        rows = sum(self.row[status] or 0 for status in ("completed", "interrupted", "failed"))
        return (self.row["failed"] or 0) / rows if rows else 0.0


def run(
    settings: Settings,
    spark: SparkSession,
    prices: Prices,
    console: Console,
    *,
    after: Sequence[str] = (),
    signalled: threading.Event | None = None,
) -> Ended:
    """Run a capture from start to end. Call :func:`deltatap.driver.needs.preflight` first; it returns the prices.

    Args:
        settings: of the run.
        spark: the session.
        prices: of the models.
        console: where the run prints.
        after: other runs. A request with a row in one of them is not sent, regardless of the row's status.
        signalled: set when a signal asks the run to stop; None: the run handles signals itself.

    Raises:
        ConfigError: before any call is made.
        RunningError: if another run is active on the captures table.
        LeaseLostError: if another driver took over in the meantime.
        LandingError: if the journal does not land; the next capture tries again.
    """
    python = _start_python(spark)
    try:
        with console.status("checking the tables"):
            require(table_needs(spark, settings))
        return _run_alone(settings, spark, prices, console, after, signalled)
    finally:
        # If the process ends while Spark is still starting its Python workers, Spark prints a stack trace.
        python.join(_PYTHON_START_S)


def _run_alone(
    settings: Settings,
    spark: SparkSession,
    prices: Prices,
    console: Console,
    after: Sequence[str],
    signalled: threading.Event | None,
) -> Ended:
    """Take the lease, and run."""
    new_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    building = Building(spark, settings, settings.run.id, after)
    try:
        captures = guard(spark, settings)
        if settings.run.id is not None:
            RunState.of(Path(settings.state.dir), settings.run.id).require(captures)
        with locked(captures.folder) as alone:
            lease = leases.acquire(spark, settings, new_id, captures=captures, alone=alone)
            return _run_with_lease(ActiveRun.of(settings, spark, console, prices, lease), building, signalled)
    finally:
        building.close()


def _run_with_lease(run: ActiveRun, building: Building, signalled: threading.Event | None = None) -> Ended:
    renewal = leases.Renewal(run.spark, run.settings, run.lease)
    keeper = Periodic("lease", renewal.renew, every_s=leases.HEARTBEAT_S)
    try:
        run.state.adopt()
        again = run.state.is_left()
        run.state.prepare(run.lease.captures)
        # First, because `deltatap stop` finds the run once it has published, and its request must be kept.
        run.state.forget_stop()
        # Workers of an older epoch that are still running stop now, before their journal is read.
        run.state.publish(Control(run.lease.epoch, next(run.beats)))
        before = [run.state] * again
        for note in land_leftovers(run.spark, run.settings, run.lease, renewal.require, before=before, say=run.say):
            run.say(note)
        with signals() if signalled is None else nullcontext(signalled) as event:
            return _run_steps(run, building, event, renewal, keeper)
    except LeaseLostError:
        raise
    except BaseException as error:
        _close_failed(run, error)
        raise
    finally:
        keeper.stop()


def _run_steps(
    run: ActiveRun, building: Building, signalled: threading.Event, renewal: leases.Renewal, keeper: Periodic
) -> Ended:
    """Plan, capture, land and close."""
    runtime_s = run.settings.budget.runtime_s
    ends_at = math.inf if runtime_s is None else time.monotonic() + runtime_s
    building.wait()
    # If the capture takes the only slot, the Spark jobs of other threads wait until it ends: the lease is not renewed,
    # and the journal lands after the capture.
    concurrent = run.settings.capture.where == "driver" or building.slots > 1
    landing = Landing.of(run.spark, run.settings, run.state)
    renewal.require()
    resuming.take(run)
    plan = make_plan(run, landing, building)
    renewal.counts = plan.counts(Snapshot(plan.requests))
    notes = announce(run, plan, building.slots)
    renewed = renewal if concurrent else None
    loop = CaptureLoop(run, plan, renewed, signalled=signalled, ends_at=ends_at, kept=landing.kept)
    stop = _capture(loop, landing, renewal, keeper, concurrent=concurrent) if plan.requests else None
    renewal.require()
    return _close(run, plan, landing, stop, [*notes, *loop.notes])


def _capture(
    loop: CaptureLoop, landing: Landing, renewal: leases.Renewal, keeper: Periodic, *, concurrent: bool
) -> Stop | None:
    """Capture the plan, and land its journal meanwhile."""
    one_at_a_time = threading.Lock()

    def keep() -> None:
        with one_at_a_time:
            landing.keep()

    def drain() -> None:
        renewal.require()
        with one_at_a_time:
            landing.drain()

    landers = [Periodic("landing", keep, every_s=_LAND_EVERY_S, tries=_LANDING_TRIES)] if concurrent else []
    try:
        stop = loop.capture([keeper, *landers], drain)
    finally:
        for lander in landers:
            lander.stop()
    drain()
    return stop


def _close(run: ActiveRun, plan: Plan, landing: Landing, stop: Stop | None, notes: list[str]) -> Ended:
    """Close the run with its totals, and remove its state folder."""
    landing.finish()
    notes = [*notes, *set_aside(landing)]
    try:
        landing.compact()
    except Exception as error:  # noqa: BLE001 - small files are slower to read, but the run has succeeded
        notes.append(f"the captures table was not compacted: {one_line(error)}")
    totals = {"owed": plan.owed, **runs.totals(run.spark, run.settings, run.lease.run_id)}
    status, reason = (RunStatus.COMPLETED, None) if stop is None else (stop.status, stop.reason)
    notes += resuming.notes(run.spark, run.settings, run.lease.run_id)
    resuming.leave(run)
    row = leases.close(run.spark, run.settings, run.lease, status, reason, totals)
    run.state.publish(Control(run.lease.epoch, next(run.beats), stop="ended"))
    asked = run.state.asked_to_stop(run.lease.epoch)
    run.state.remove()
    return Ended(row, tuple(notes), plan.before.get("requests", 0), asked)


def _close_failed(run: ActiveRun, error: BaseException) -> None:
    spark, settings, run_id = run.spark, run.settings, run.lease.run_id
    reason = described(error)
    # The first error is the one to report. If closing also fails, the next start finds a dead run.
    try:
        leases.close(spark, settings, run.lease, RunStatus.FAILED, reason, runs.totals(spark, settings, run_id))
    except LeaseLostError:
        return  # the messages in the folder are those of another driver now
    except Exception:  # noqa: BLE001, S110
        pass
    with suppress(Exception):
        run.state.publish(Control(run.lease.epoch, next(run.beats), stop="ended"))


def _start_python(spark: SparkSession) -> Background:
    """Let Spark start its Python workers in the background. If that fails, the run itself reports it."""

    def start() -> None:
        spark.range(0, 1, 1, 1).mapInArrow(lambda batches: batches, "id BIGINT").collect()

    return Background("python", start)


@contextmanager
def signals() -> Iterator[threading.Event]:
    """Set an event on SIGINT and SIGTERM. A second signal ends the process at once; the journal keeps its captures."""
    signalled = threading.Event()

    def handle(number: int, _frame: object) -> None:
        if signalled.is_set():
            os._exit(128 + number)
        signalled.set()

    if threading.current_thread() is not threading.main_thread():
        yield signalled
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
