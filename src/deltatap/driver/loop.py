"""One run of one driver, its lease held: plan what is owed, capture it, land it, close the run.

Knows the threads that do it and when to stop. Capture, landing and the lease each have a thread, since each waits for
Spark; the main thread publishes the shares, which must never wait. Leaves each step to its module, and what comes
before (tables, lease, what other runs left) to ``run.py``.
"""

from __future__ import annotations

import math
import shutil
import statistics
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it

from deltatap.delta import tables
from deltatap.delta.final import final_sql
from deltatap.driver import plan, runs, source
from deltatap.driver.landing import Landing
from deltatap.driver.pacer import Pacer, Spent
from deltatap.driver.progress import Display, Snapshot, snapshot
from deltatap.errors import ConfigError, LeaseLostError, one_line
from deltatap.http.credentials import handed_over
from deltatap.messages import POLL_S, Control
from deltatap.udf import part_udf
from deltatap.worker.attempt import CaptureTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pyspark.sql import SparkSession
    from rich.console import Console

    from deltatap.config import Settings
    from deltatap.driver.plan import Building
    from deltatap.driver.runs import Lease
    from deltatap.messages import Heartbeat, Permit
    from deltatap.prices import Prices
    from deltatap.state import RunState

_BEAT_S = 15.0
# A driver that could not renew its lease for so long may have a successor: it lets nothing start until it has.
_UNSURE_S = runs.LEASE_S - _BEAT_S
_LAND_EVERY_S = 1.0
_LANDING_TRIES = 5
_JOURNAL_FILES = 1000
_SUBMISSIONS = 4  # once, and up to three times more
_END_WAIT_S = 30.0
_SHOWN_MODELS = 5
# A cancelled job's Python worker may go on for 3 s (spark.python.task.killTimeout), and journal what it has.
_KILLED_S = 4.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: its row in ``runs``, and what to tell."""

    row: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def failed_share(self) -> float:
        """Failed rows among this run's rows, 0 to 1."""
        rows = sum(self.row[status] or 0 for status in ("completed", "interrupted", "failed"))
        return (self.row["failed"] or 0) / rows if rows else 0.0


def landing_of(spark: SparkSession, settings: Settings, state: RunState) -> Landing:
    """Lands a run's journal as the settings say."""
    return Landing(spark, settings.captures.table, state, settings.capture.keep_interrupted)


def backlog(state: RunState) -> bool:
    """Whether so much waits to land that nothing more should start."""
    return sum(1 for _ in state.journal.glob("*.parquet")) > _JOURNAL_FILES


def _clocks() -> tuple[float, float]:
    return time.time(), time.monotonic()


class _Background(threading.Thread):
    """A thread whose error the main thread sees."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=f"deltatap-{name}", daemon=True)
        self._work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - the main thread decides
            self.error = error


class Driver:
    """One run of one driver, its lease held."""

    def __init__(
        self,
        settings: Settings,
        spark: SparkSession,
        console: Console,
        prices: Prices,
        lease: Lease,
        state: RunState,
        asked: threading.Event,
        building: Building,
        *,
        first: bool,
    ) -> None:
        self.settings, self.spark, self.console, self.prices = settings, spark, console, prices
        self.lease, self.state, self.asked = lease, state, asked
        self.building, self.first = building, first
        self.plan = state.plan(lease.epoch)
        self.landing = landing_of(spark, settings, state)
        self.stop: str | None = None
        self.reason: str | None = None
        self.notes: list[str] = []
        self.stop_at: float | None = None
        self.interrupted = False
        self.over = threading.Event()
        self.captured = threading.Event()
        self.landing_lock = threading.Lock()
        self.slots = 0
        self.renewed_at = lease.taken_at, time.monotonic() - (time.time() - lease.taken_at)
        self.beat = 0
        self.now = Snapshot(0)
        self.before: dict[str, Any] = {}
        self.pacer = Pacer(settings.bounds)
        self.permits: Mapping[str, Permit] | None = None
        self.cool_s = 0.0
        self.ends_at = math.inf
        self.owed: int | None = None

    def run(self) -> Ended:
        """From what the run left when it was started before to its closed row.

        Raises:
            LeaseLostError: when another driver took over.
            LandingError: when the journal does not land; the next start tries again.
        """
        if self.settings.budget.runtime_s is not None:
            self.ends_at = time.monotonic() + self.settings.budget.runtime_s
        self.state.forget_stop()
        # Workers of an older epoch that still live stop here, before we look at what they left.
        self._publish({})
        self.building.wait()
        self.slots = self.building.slots
        # With a single slot the threads' Spark jobs would wait behind the capture's: then landing comes after it.
        keepers = [_Background("lease", self._keep_lease)] if self.slots > 1 else []
        try:
            if owed := self._plan():
                self._capture(owed, keepers)
        finally:
            self.over.set()
            for thread in keepers:
                thread.join()
            self.landing.stop()
        for thread in keepers:
            if isinstance(thread.error, LeaseLostError):
                raise thread.error
        return self._close()

    def _plan(self) -> int:
        """Land what this run left when it was started before, then write what is owed; how many requests that is."""
        lease, settings = self.lease, self.settings
        if lease.went_on:
            self.console.print(f"goes on with run {lease.run_id}", highlight=False)
        self.landing.drain()
        for old in self.state.plans():
            shutil.rmtree(old.folder)
        # A run without a name of the user's, that is new, has no row; asking would take two Spark jobs.
        known = not self.first and (lease.went_on or settings.run.id is not None)
        had = self._final_rows() if known else 0
        if known:
            self.before = runs.totals(self.spark, settings, lease.run_id)
        if not (lease.went_on or any(self.before.get(status) for status in ("completed", "interrupted", "failed"))):
            self.landing.fresh = lease.epoch
        tasks = plan.tasks(settings, self.slots)
        modes = len(settings.capture.modes)
        with (
            self.console.status("planning: what is owed"),
            plan.owed(self.spark, settings, lease.run_id, self.building, first=self.first) as found,
        ):
            owed = plan.write(found, self.plan, tasks, modes=modes, seed=lease.run_id)
        self.owed = had + owed
        spent = {name: self.before.get(name) or 0 for name in ("requests", "input_tokens", "output_tokens", "cost_usd")}
        self.pacer = Pacer(
            settings.bounds,
            Spent(spent["requests"], spent["input_tokens"] + spent["output_tokens"], spent["cost_usd"]),
        )
        self.now = Snapshot(owed)
        if tasks * settings.capture.streams_per_worker < settings.capture.concurrency:
            self.notes.append(
                f"{self.slots} slots hold {tasks} capture tasks of {settings.capture.streams_per_worker} streams: "
                f"fewer than capture.concurrency={settings.capture.concurrency}"
            )
        self._say(owed)
        return owed

    def _say(self, owed: int) -> None:
        settings = self.settings
        if owed:
            self.console.print(
                f"run {self.lease.run_id}: {owed:,} requests owed, "
                f"up to {settings.capture.concurrency} streams at once to {settings.endpoint.label}",
                highlight=False,
                soft_wrap=True,
            )
            unpriced = [model for model in plan.models(self.plan) if self.prices.find(model) is None]
            if unpriced and settings.budget.cost_usd is not None:
                raise ConfigError(
                    [f"budget.cost_usd: no price for {_models(unpriced)}, so costs cannot be bounded; add it to prices"]
                )
            if settings.prices and unpriced:
                files = settings.prices if isinstance(settings.prices, str) else ", ".join(settings.prices)
                self.console.print(
                    f"no price for {_models(unpriced)} in {files}: costs will be null, "
                    "unless the answers name a model that has one",
                    style="yellow",
                    highlight=False,
                    soft_wrap=True,
                )
        elif source.source(self.spark, settings).isEmpty():
            self.notes.append(f"prompts {settings.prompts.source} has no rows: nothing to capture")
        else:
            self.notes.append("nothing is owed: every request has its final row; no call was made, nothing was paid")

    def _final_rows(self) -> int:
        final = final_sql("c", keep_interrupted=self.settings.capture.keep_interrupted)
        rows = self.spark.table(tables.quoted(self.settings.captures.table)).alias("c")
        return rows.where((F.col("run_id") == self.lease.run_id) & F.expr(final)).count()

    def _capture(self, owed: int, keepers: list[_Background]) -> None:
        landers = [_Background("landing", self._keep_landing)] if self.slots > 1 else []
        threads = keepers + landers
        failures = 0
        try:
            with Display(self.console) as display:
                while self.stop is None:
                    job = _Background("capture", self._submit)
                    while job.is_alive():
                        self._turn(threads, display)
                        job.join(POLL_S)
                    self._turn(threads, display)
                    if self.interrupted:
                        time.sleep(_KILLED_S)
                    with self.landing_lock:
                        self.landing.drain()
                    if job.error is None and len(self.plan.landed()) >= owed:
                        break
                    failures += 1
                    self._incomplete(failures, one_line(job.error) if job.error else "captures are missing")
        finally:
            self.captured.set()
            for thread in landers:
                thread.join()
        self.landing.drain()

    def _incomplete(self, failures: int, why: str) -> None:
        """A Spark job left captures missing: submit it again, or give up. Its tasks skip what is there."""
        if failures == _SUBMISSIONS:
            self._stop("failed", f"the capture did not complete in {failures} Spark jobs: {why}")
        elif self.stop is None:
            note = f"Spark job {failures} did not complete: {why}; submitted again"
            self.console.print(note, style="yellow", highlight=False, soft_wrap=True)

    def _submit(self) -> None:
        """One action over the paid UDF; it returns receipts, so nothing is lost with them."""
        key = handed_over(self.settings.endpoint)
        task = CaptureTask(self.settings, self.prices, self.lease.run_id, self.state.folder, self.lease.epoch, key)
        parts = len(self.plan.part_files())
        frame = self.spark.range(0, parts, 1, parts)
        frame.select(part_udf(task)("id").alias("receipt")).collect()

    def _turn(self, threads: list[_Background], display: Display) -> None:
        """Twice a second: hear the workers, tell them what they may do, show where the run stands."""
        told = self.state.heartbeats()
        beats = [beat for beat in told if beat.epoch == self.lease.epoch]
        for thread in threads:
            if thread.error is not None:
                self._stop("failed", f"{thread.name}: {one_line(thread.error)}")
        if fatal := next((beat.fatal for beat in beats if beat.fatal), None):
            self._stop("failed", fatal)
        if self.asked.is_set():
            self._stop("stopped", "stopped by a signal")
        if self.state.asked_to_stop():
            self._stop("stopped", "stopped by `deltatap stop`")
        self._pace(told)
        newest = {beat.part: beat for beat in sorted(beats, key=lambda beat: beat.claim)}
        capture = self.settings.capture
        self._publish(_shares(newest.values(), capture.concurrency, capture.streams_per_worker), beats)
        self.now = snapshot(self.now.owed, beats, self.cool_s)
        note = None if self.stop is None else f"stopping ({self.reason}): waiting for {self.now.open} open streams"
        display.update(self.now, note=note)
        if self.stop_at is not None and time.monotonic() > self.stop_at:
            # Landing and the lease's thread lose a job, too, and try again: interruptTag does not reach other threads.
            self.interrupted, self.stop_at = True, time.monotonic() + _END_WAIT_S
            self.spark.interruptAll()

    def _pace(self, told: list[Heartbeat]) -> None:
        """What may start now; what an earlier driver's workers started in the last minute counts, too."""
        ages = {beat.claim: max(0.0, time.time() - beat.at) for beat in told if beat.epoch != self.lease.epoch}
        self.permits = self.pacer.turn(time.monotonic(), told, ages)
        self.cool_s = self.pacer.cool_s(time.monotonic(), told)
        if self.pacer.exhausted is not None:
            self._stop("budget_exhausted", self.pacer.exhausted)
        if time.monotonic() > self.ends_at:
            self._stop("budget_exhausted", f"budget.runtime_s: {self.settings.budget.runtime_s:g} s are over")

    def _stop(self, status: str, reason: str) -> None:
        if self.stop is None:
            self.stop, self.reason = status, reason
            # Workers drain by themselves; one that does not answer is ended with its job.
            self.stop_at = time.monotonic() + self.settings.timeouts.grace_s + _END_WAIT_S

    def _publish(self, shares: dict[str, int], beats: Iterable[Heartbeat] = ()) -> None:
        self.beat += 1
        # The monotonic clock stands still while a machine sleeps, the other can be set back.
        silent = max(now - then for now, then in zip(_clocks(), self.renewed_at, strict=True))
        unsure = self.slots > 1 and silent > _UNSURE_S
        outputs = [beat.mean_output_tokens for beat in beats if beat.mean_output_tokens is not None]
        self.state.publish(
            Control(
                epoch=self.lease.epoch,
                beat=self.beat,
                shares={} if unsure or backlog(self.state) else shares,
                cool_s=self.cool_s,
                stop=self.stop,
                grace_s=self.settings.timeouts.grace_s,
                permits=self.permits,
                mean_output_tokens=statistics.fmean(outputs) if outputs else None,
            )
        )

    def _keep_lease(self) -> None:
        while not self.over.wait(_BEAT_S):
            counts = {} if self.owed is None else {"owed": self.owed, **_added(self.before, self.now.counts())}
            at = _clocks()
            runs.beat(self.spark, self.settings, self.lease, counts)
            self.renewed_at = at

    def _keep_landing(self) -> None:
        failures = 0
        while not self.captured.wait(_LAND_EVERY_S):
            try:
                with self.landing_lock:
                    self.landing.keep()
                failures = 0
            except Exception:
                # Another writer's commit may have come first; the journal still has it all.
                failures += 1
                if failures == _LANDING_TRIES:
                    raise

    def _close(self) -> Ended:
        settings, run_id = self.settings, self.lease.run_id
        self.notes += [
            f"journal file {path.name} could not be read; it was set aside" for path in self.landing.set_aside
        ]
        try:
            self.landing.compact()
        except Exception as error:  # noqa: BLE001 - small files are slower to read, no reason to fail a run
            self.notes.append(f"the captures table was not compacted: {one_line(error)}")
        totals = {"owed": self.owed, **runs.totals(self.spark, settings, run_id)}
        row = runs.close(self.spark, settings, run_id, self.stop or "completed", self.reason, totals)
        self.state.publish(Control(self.lease.epoch, self.beat + 1, stop="ended"))
        self.state.remove()
        return Ended(row, tuple(self.notes))


def _shares(beats: Iterable[Heartbeat], concurrency: int, most: int) -> dict[str, int]:
    """Each working claim's share of the run's streams, `most` at the most; their sum never exceeds it."""
    claims = sorted(beat.claim for beat in beats if not beat.ended)
    return {claim: min(most, (concurrency + at) // len(claims)) for at, claim in enumerate(claims)}


def _models(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_MODELS])
    more = f" and {len(names) - _SHOWN_MODELS} more" if len(names) > _SHOWN_MODELS else ""
    return f"{'model' if len(names) == 1 else 'models'} {shown}{more}"


def _added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value is None else value + (before.get(key) or 0) for key, value in now.items()}
