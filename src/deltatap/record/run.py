"""A recording from start to end: tables, lease, leftovers of earlier recordings, serving, landing, close.

A recording is a run without a plan: its clients decide which requests it has. It holds the lease of its table, and its
journal lands like that of a capture, so a killed recording loses nothing that was in the journal. ``server.py`` serves,
``recorder.py`` writes the journal, ``driver/`` knows leases, runs and landing.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatap.delta.lock import locked
from deltatap.delta.prepare import guard, prepare_tables
from deltatap.driver import lease as leases
from deltatap.driver import runs
from deltatap.driver.background import Periodic
from deltatap.driver.landing import Landing, set_aside
from deltatap.driver.leftovers import land_leftovers
from deltatap.driver.run import signals
from deltatap.errors import LeaseLostError, one_line
from deltatap.files import Files
from deltatap.http.dial import Dialer
from deltatap.http.route import route_of
from deltatap.messages import POLL_S, Control
from deltatap.model import RunStatus
from deltatap.record.forwarding import Target
from deltatap.record.recorder import Recorder
from deltatap.record.server import Server
from deltatap.record.session import Shared
from deltatap.state import RunState
from deltatap.worker.bootstrap import settled

if TYPE_CHECKING:
    import socket
    import threading
    from collections.abc import Callable

    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from deltatap.driver.lease import Lease
    from deltatap.messages import Heartbeat
    from deltatap.prices import Prices

_LAND_EVERY_S = 1.0
_LANDING_TRIES = 5
# How long renewals of the lease may fail. A recording cannot pause while its lease is unsure.
_RENEWAL_S = 2 * leases.HEARTBEAT_S


@dataclass(frozen=True, slots=True)
class Recorded:
    """How a recording ended: its row in ``runs``, and notes for the user."""

    row: dict[str, Any]
    notes: tuple[str, ...] = ()


def into_its_table(settings: Settings) -> Settings:
    """The settings of a recording: its captures table is `record.table`, and each start is a new run."""
    new_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    run = settings.run if settings.run.id is not None else settings.run.model_copy(update={"id": new_id})
    captures = settings.captures.model_copy(update={"table": settings.record.table})
    return settings.model_copy(update={"captures": captures, "run": run})


def record(
    settings: Settings, spark: SparkSession, prices: Prices, listening: socket.socket, ready: Callable[[str], None]
) -> Recorded:
    """Record until SIGINT, SIGTERM or ``deltatap stop``.

    Args:
        settings: as :func:`into_its_table` returns them.
        spark: the session that lands the journal.
        prices: of the models.
        listening: where clients connect.
        ready: called with the run's id when clients are served.

    Raises:
        ConfigError: a table cannot be used.
        RunningError: another recording is active on the table.
        LeaseLostError: another driver has taken over the table.
        LandingError: the journal does not land; the next recording tries again.
    """
    prepare_tables(spark, settings)
    captures = guard(spark, settings)
    state = RunState.of(Path(settings.state.dir), settings.run.id or "", Files(settings.state.files_per_s))
    state.require(captures)
    with locked(captures.folder) as alone:
        lease = leases.acquire(spark, settings, settings.run.id or "", captures=captures, alone=alone)
        renewal = leases.Renewal(spark, settings, lease, give_up_s=_RENEWAL_S)
        keeper = Periodic("lease", renewal.renew, every_s=leases.HEARTBEAT_S)
        try:
            state.adopt()
            again = state.is_left()
            state.prepare(captures)
            notes = land_leftovers(spark, settings, lease, renewal.require, before=[state] * again)
            ended = _Recording(settings, spark, prices, lease, state, renewal, keeper).run(listening, ready)
            return replace(ended, notes=(*notes, *ended.notes))
        except LeaseLostError:
            raise
        except BaseException as error:
            with suppress(Exception):  # the first error is the one to report
                _close(spark, settings, lease, RunStatus.FAILED, one_line(error))
            raise
        finally:
            keeper.stop()


@dataclass(slots=True, eq=False)
class _Recording:
    """A recording whose lease this process holds."""

    settings: Settings
    spark: SparkSession
    prices: Prices
    lease: Lease
    state: RunState
    renewal: leases.Renewal
    keeper: Periodic

    def run(self, listening: socket.socket, ready: Callable[[str], None]) -> Recorded:
        """Serve and land until the end; then close the run."""
        settings, state, lease = self.settings, self.state, self.lease
        route = route_of(settings.endpoint, run_id=lease.run_id)
        target = Target.of(settings.endpoint.base_url, route.proxy)
        landing = Landing.of(self.spark, settings, state)
        self.renewal.require()
        state.forget_stop()
        beats = count(1)
        state.publish(Control(lease.epoch, next(beats)))
        landing.drain()  # of an earlier start of the same run
        landers: list[Periodic] = []
        try:
            with Recorder(settings, self.prices, lease.run_id, state, lease.epoch, route.secrets) as recorder:

                def shared() -> Shared:
                    dialer = Dialer(time.monotonic, route.proxy, route.tls)
                    return Shared(target, dialer, settings.timeouts.connect_s, recorder, route.secrets)

                server = Server(listening, shared)
                landers.append(Periodic("landing", landing.keep, every_s=_LAND_EVERY_S, tries=_LANDING_TRIES))
                with signals() as signalled, settled():
                    server.start()
                    ready(lease.run_id)
                    failure = self._keep(server, recorder, [self.keeper, *landers], signalled, beats)
                    server.stop(settings.timeouts.grace_s)
                state.beat(recorder.heartbeat(ended=True))
        finally:
            for lander in landers:
                lander.stop()
        if failure is not None:
            raise failure
        self.renewal.require()
        landing.finish()
        row = _close(self.spark, settings, lease, RunStatus.COMPLETED, None)
        state.publish(Control(lease.epoch, next(beats), stop="ended"))
        state.remove()
        return Recorded(row, tuple(set_aside(landing)))

    def _keep(
        self,
        server: Server,
        recorder: Recorder,
        threads: list[Periodic],
        signalled: threading.Event,
        beats: count[int],
    ) -> BaseException | None:
        """Send heartbeats until something ends the recording. Returns what went wrong.

        A message that cannot be written or read now does not end it. If the storage does not come back, the failing
        journal ends the recording.
        """
        state = self.state.at_once()
        while not signalled.wait(POLL_S):
            beat = server.heartbeat()
            with suppress(OSError):
                if beat is not None:
                    self.renewal.counts = _counts(beat)
                    state.beat(beat)
            with suppress(OSError):
                state.publish(Control(self.lease.epoch, next(beats)))
            failures = (server.failure, recorder.failure, *(thread.error for thread in threads))
            if (failure := next((each for each in failures if each is not None), None)) is not None:
                return failure
            with suppress(OSError):
                if state.asked_to_stop(self.lease.epoch):
                    break
        return None


def _counts(beat: Heartbeat) -> dict[str, object]:
    """The counts of a heartbeat as columns of the run's row."""
    rows = {status: beat.rows.get(status, 0) for status in ("completed", "interrupted", "failed")}
    used = {"input_tokens": beat.input_tokens, "output_tokens": beat.output_tokens, "cost_usd": beat.cost_usd}
    return {**rows, "requests": beat.requests, **used}


def _close(
    spark: SparkSession, settings: Settings, lease: Lease, status: RunStatus, reason: str | None
) -> dict[str, Any]:
    """Close the run with its totals."""
    totals = runs.totals(spark, settings, lease.run_id)
    totals["owed"] = sum(totals[name] for name in ("completed", "interrupted", "failed"))
    return leases.close(spark, settings, lease, status, reason, totals)
