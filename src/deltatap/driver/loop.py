"""The control loop: while a plan is captured, read the heartbeats, decide what may start, and publish it.

Knows the order of these steps, where the plan is captured, and when a capture is tried again. Leaves the decisions to
``pacer.py``, ``control.py`` and ``stopping.py``, and everything before and after the capture to ``run.py``.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from deltatap.driver import control, runs
from deltatap.driver.background import Background
from deltatap.driver.pacer import Pacer
from deltatap.driver.plan import models
from deltatap.driver.progress import Display, Snapshot, snapshot
from deltatap.driver.stopping import Shutdown, Stop, all_refused, give_up, notes, parked_models, why_stop
from deltatap.errors import LeaseLostError, one_line
from deltatap.files import OLD_S
from deltatap.http.credentials import read_secrets
from deltatap.messages import POLL_S, Control
from deltatap.model import RunStatus
from deltatap.udf import part_udf
from deltatap.worker.attempt import CaptureTask, capture_part
from deltatap.worker.journal import has_output
from deltatap.worker.retry import longest_s

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from deltatap.driver.active import ActiveRun
    from deltatap.driver.background import Periodic
    from deltatap.driver.lease import Renewal
    from deltatap.driver.plan import Plan
    from deltatap.messages import Heartbeat, Parked

# A cancelled job's Python worker may run for 3 s more (spark.python.task.killTimeout) and journal captures.
_KILLED_S = 4.0
# By `capture.where`: the name of the thing that captures a plan, and of the next step if it does not complete.
_TRY = {"workers": ("Spark job", "submitting it again"), "driver": ("attempt", "starting another one")}
# After a job that left captures missing, how long to wait for files that are not visible yet.
_WAIT_S = OLD_S
# How long the run continues if messages to the workers cannot be written to the state folder.
_UNHEARD_S = 120.0


class CaptureLoop:
    """The capture of one plan.

    Attributes:
        notes: for the user, at the end of the run: which requests were not sent, and why.
    """

    def __init__(
        self,
        run: ActiveRun,
        plan: Plan,
        renewal: Renewal | None,
        *,
        signalled: threading.Event,
        ends_at: float,
        kept: Callable[[], int] = lambda: 0,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            run: the active run.
            plan: what to capture.
            renewal: of the lease; None if the lease is not renewed while the run captures.
            signalled: set when a signal asks the run to stop.
            ends_at: when ``budget.runtime_s`` has passed, in monotonic seconds.
            kept: how many files of the journal have landed already.
        """
        self._run, self._plan, self._renewal = run, plan, renewal
        # The next turn repeats a step that fails now.
        self._state, self._heard, self._kept = run.state.at_once(), control.Heard(), kept
        self._published_at = time.monotonic()
        self._unheard: list[tuple[str, BaseException]] = []
        self._submissions = 0
        self._signalled, self._ends_at = signalled, ends_at
        self._where = run.settings.capture.where
        self._pacer = Pacer(run.settings.bounds, plan.spent)
        self._shutdown = Shutdown(run.settings.timeouts.grace_s, run.settings.timeouts.total_s)
        self._opening = None if plan.calls is None else control.Opening(len(plan.calls))
        self._models: list[str] = []
        self._succeeded = False
        self.notes: list[str] = []

    def capture(self, threads: Sequence[Periodic], drain: Callable[[], None]) -> Stop | None:
        """Try to capture the plan until everything is captured or the run stops.

        Args:
            threads: the background threads whose errors stop the run.
            drain: lands the journal.

        Returns:
            Why the run stopped; None if everything was captured.
        """
        with Display(self._run.console) as display:
            while self._shutdown.stop is None:
                self._submissions += 1
                job = Background("capture", self._submit)
                try:
                    while job.is_alive():
                        self._turn(threads, display)
                        job.join(POLL_S)
                except BaseException:
                    # The process may continue after the run, as in a notebook. Then the job would continue, too.
                    self._order_stop()
                    raise
                self._turn(threads, display)
                if self._shutdown.interrupted:
                    time.sleep(_KILLED_S)
                if self._is_complete(drain, wait=job.error is None, threads=threads, display=display):
                    break
                why = one_line(job.error) if job.error else "captures are missing"
                what, again = _TRY[self._where]
                self._shutdown.begin(give_up(self._submissions, why, what), time.monotonic())
                if self._shutdown.stop is None:
                    self._run.say(f"{what} {self._submissions} did not complete: {why}; {again}", style="yellow")
        return self._shutdown.stop

    def _is_complete(
        self, drain: Callable[[], None], *, wait: bool, threads: Sequence[Periodic], display: Display
    ) -> bool:
        """After a Spark job: whether every request has landed or will not be sent.

        Args:
            drain: lands the journal.
            wait: whether the job has succeeded. If so, captures that are missing may exist but not be visible yet.
            threads: see :meth:`capture`.
            display: shows the progress.
        """
        until = time.monotonic() + _WAIT_S
        while True:
            drain()
            parked = parked_models(self._beats(self._heartbeats()))
            self.notes = notes(parked)
            unsent = sum(entry.requests for entry in parked.values())
            if wait and len(self._plan.files.landed()) + unsent >= self._plan.requests:
                return True
            if not wait or self._shutdown.stop is not None or time.monotonic() >= until:
                return False
            self._turn(threads, display)
            time.sleep(POLL_S)

    def _heartbeats(self) -> list[Heartbeat]:
        """The latest heartbeat of every worker; the earlier heartbeats if the folder cannot be read now."""
        with suppress(OSError):
            return self._heard.add(self._state.heartbeats())
        return self._heard.add(())

    def _submit(self) -> None:
        """Capture all parts: in one action over the paid UDF, or here, in a thread of the driver.

        Captures go to the journal. Attempts skip captures that exist already.
        """
        run = self._run
        secrets = read_secrets(run.settings.endpoint)
        task = CaptureTask(
            run.settings,
            run.prices,
            run.lease.run_id,
            run.state.folder,
            run.lease.epoch,
            secrets,
            self._plan.calls,
            self._plan.files.written,
            again=self._submissions > 1,
        )
        parts = len(self._plan.files.part_files())
        if self._where == "driver":
            for part in range(parts):
                capture_part(task, part)
        else:
            run.spark.range(0, parts, 1, parts).select(part_udf(task)("id").alias("receipt")).collect()

    def _order_stop(self) -> None:
        """Tell all attempts to stop, because the control loop has ended."""
        run = self._run
        with suppress(OSError):  # without new messages, the attempts also stop, but later
            run.state.publish(Control(run.lease.epoch, next(run.beats), stop=RunStatus.FAILED))

    def _turn(self, threads: Sequence[Periodic], display: Display) -> None:
        """Read the heartbeats, decide, publish, and show the progress; twice a second."""
        run, now = self._run, time.monotonic()
        heartbeats = self._heartbeats()
        beats = self._beats(heartbeats)
        # Requests that an earlier driver's workers started within the last minute count towards the limits, too.
        ages = {beat.claim: max(0.0, time.time() - beat.at) for beat in heartbeats if beat.epoch != run.lease.epoch}
        permits = self._pacer.turn(now, heartbeats, ages)
        cool_s = self._pacer.cool_s(now, heartbeats, longest_s(run.settings.capture))
        stop = why_stop(
            errors=[(thread.name, thread.error) for thread in threads if thread.error is not None] + self._unheard,
            beats=beats,
            url=run.settings.endpoint.base_url,
            refused=self._refused(heartbeats),
            signalled=self._signalled.is_set(),
            requested=self._asked_to_stop(),
            exhausted=self._pacer.exhausted,
            runtime_over_s=run.settings.budget.runtime_s if now > self._ends_at else None,
        )
        self._shutdown.begin(stop, now)
        stop = self._shutdown.stop
        unsure = self._renewal is not None and self._renewal.is_unsure()
        capture = run.settings.capture
        held = unsure or control.backlog(self._state, self._kept())
        self._publish(
            Control(
                run.lease.epoch,
                next(run.beats),
                {} if held else control.shares(beats, capture.concurrency, capture.streams_per_worker),
                cool_s=cool_s,
                stop=None if stop is None else stop.status,
                grace_s=self._shutdown.grace_s,
                permits=permits,
                mean_output_tokens=control.mean_output_tokens(beats),
                begins_at=None if self._opening is None else self._opening.turn(beats, time.time()),
            ),
            now,
            lost=unsure or any(isinstance(thread.error, LeaseLostError) for thread in threads),
        )
        progress = snapshot(self._plan.requests, beats, cool_s)
        if self._renewal is not None:
            self._renewal.counts = self._plan.counts(progress)
        display.update(progress, note=_stopping(stop, progress))
        # A thread of this process cannot be interrupted, and it writes captures that are paid for: wait for it.
        if self._where == "workers" and self._shutdown.must_interrupt(now):
            # This also cancels the Spark jobs of landing, which are repeated, and those of the lease. Spark's
            # interruptTag would spare those jobs, but it does not reach jobs of other threads.
            run.spark.interruptAll()

    def _publish(self, message: Control, now: float, *, lost: bool) -> None:
        """Send the workers a message. Without messages, they start no requests after STALE_S.

        Args:
            message: for the workers.
            now: in monotonic seconds.
            lost: whether another driver may have the lease. If it uses this folder, its messages stay: they stop our
                workers, too.
        """
        try:
            if lost and (found := self._state.control()) is not None and found.epoch > message.epoch:
                return
            self._state.publish(message)
        except OSError as error:
            silent = now - self._published_at > _UNHEARD_S
            self._unheard = [("state.dir", error)] if silent else []
        else:
            self._published_at, self._unheard = now, []

    def _asked_to_stop(self) -> bool:
        with suppress(OSError):
            return self._state.asked_to_stop(self._run.lease.epoch)
        return False

    def _beats(self, heartbeats: Sequence[Heartbeat]) -> list[Heartbeat]:
        """The heartbeats of this driver's workers."""
        return [beat for beat in heartbeats if beat.epoch == self._run.lease.epoch]

    def _refused(self, heartbeats: Sequence[Heartbeat]) -> list[Parked]:
        """The models of the plan, if the server refuses all of them and no call of the run has ever succeeded."""
        parked = parked_models(self._beats(heartbeats))
        self._succeeded = self._succeeded or any(beat.succeeded for beat in heartbeats)
        if self._succeeded or not parked:
            return []
        self._models = self._models or models(self._plan.files)
        refused = all_refused(self._models, parked, succeeded=False)
        if refused:
            # An earlier start, or a worker that died, may have captured an answer that no heartbeat reports.
            run = self._run
            landed = runs.has_output(run.spark, run.settings, run.lease.run_id)
            try:
                self._succeeded = landed or has_output(run.state.journal, self._state.files)
            except OSError:  # the next turn knows
                return []
        return [] if self._succeeded else refused


def _stopping(stop: Stop | None, progress: Snapshot) -> str | None:
    return None if stop is None else f"stopping ({stop.reason}): waiting for {progress.open} open streams"
