"""One attempt at one part of the plan: read the owed requests, capture them, journal them.

A retried attempt finds the captures that are already paid for in this order: claim the part, wait until the files of
the earlier attempt are visible, read the journal, then read the landed rows. Plain Python: Spark, or a thread of the
driver, only calls :func:`capture_part`.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deltatap.errors import ConfigError, CredentialError
from deltatap.files import OLD_S, Files
from deltatap.http.credentials import credential_of
from deltatap.http.route import route_of
from deltatap.messages import Heartbeat
from deltatap.state import RunState
from deltatap.worker.arrivals import due_times
from deltatap.worker.bootstrap import context_of, resuming_of, running_engine, streams_of
from deltatap.worker.jobs import BATCH_ROWS, jobs_of_part
from deltatap.worker.journal import JournalWriter, journaled_rows, warm_up
from deltatap.worker.kept_streams import KeptStreamsFile
from deltatap.worker.link import Link, heartbeat

if TYPE_CHECKING:
    from pathlib import Path

    from deltatap.config import Settings
    from deltatap.http.credentials import Secrets
    from deltatap.plan_state import Part, PlanState
    from deltatap.prices import Prices

# How long a retried attempt waits before it relies on the absence of files.
_WAIT_S = OLD_S


@dataclass(frozen=True, slots=True)
class CaptureTask:
    """The input of an attempt. Spark may pickle it into the UDF's closure; `secrets` are the only secrets in it.

    Attributes:
        settings: the configuration.
        prices: USD per million tokens.
        run_id: the run.
        folder: the run's state folder.
        epoch: of the lease and of the plan.
        secrets: from secret scopes, which a worker cannot read.
        calls: how many calls each part has; None without ``capture.arrivals``.
        parts: the manifest of the plan; None: the files in its folder.
        again: whether earlier attempts at the parts may exist.
    """

    settings: Settings
    prices: Prices
    run_id: str
    folder: Path
    epoch: int
    secrets: Secrets | None = None
    calls: tuple[int, ...] | None = None
    parts: tuple[Part, ...] | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of an attempt.

    Attributes:
        part: the number of the part.
        claim: the attempt's name.
        known: rows of the part that were captured before this attempt.
        requests: calls that this attempt made.
    """

    part: int
    claim: str
    known: int
    requests: int


def capture_part(task: CaptureTask, part: int, *, retried: bool = False) -> Receipt:
    """Capture the rows of a part that have neither been journaled nor landed.

    Returns when all of them are journaled, or after a stop.

    Args:
        task: what to capture.
        part: the part of the plan.
        retried: whether Spark has started this task before.
    """
    settings, epoch = task.settings.of_run(task.run_id), task.epoch
    state = RunState(task.folder, files=Files(settings.state.files_per_s))
    plan = state.plan(epoch, task.parts)
    claim = plan.claim(part)
    try:
        route = route_of(settings.endpoint, task.secrets, task.run_id)
        if (credential := credential_of(settings.endpoint, task.secrets)) is not None:
            credential.token()
    except (ConfigError, CredentialError) as error:
        # The driver has the credential or the file, but this process does not, so another attempt cannot succeed
        # either.
        there = "in the Spark worker, which has the environment variables that Spark was started with"
        fatal = f"{error} ({there})" if settings.capture.where == "workers" else str(error)
        state.beat(Heartbeat(epoch, claim, 0, fatal=fatal, ended=True))
        return Receipt(part, claim, 0, 0)
    if retried or task.again or _died(state, plan, part, claim):
        # After this wait, all files of the earlier attempt are visible here. If that attempt is still running, it has
        # paused.
        time.sleep(_WAIT_S)
    # In this order: landing records rows before it deletes their files, so each row is found in at least one place.
    journaled = journaled_rows(state.journal, epoch, part, state.files, doubt_s=_WAIT_S)
    known = set(np.union1d(journaled, plan.landed_rows(part)).tolist())
    context = context_of(settings, task.prices, task.run_id, part)
    warm_up(context)
    resuming, flush_s = resuming_of(settings, state.kept_streams()), settings.state.flush_s
    journal = JournalWriter(
        state.journal,
        f"{task.folder.name}-{claim}",
        context,
        plan=epoch,
        part=part,
        flush_s=flush_s,
        written=None if resuming is None else resuming.journaled,
        files=state.files,
    )
    kept = None
    if settings.capture.resume and resuming is not None:
        kept = KeptStreamsFile(state, claim, resuming, flush_s=flush_s)
    arrivals, calls = settings.capture.arrivals, task.calls
    due = None if arrivals is None or calls is None else due_times(arrivals, calls, part)
    look_ahead = 2 * streams_of(settings) + BATCH_ROWS
    with (
        plan.open_part(part) as source,
        kept or nullcontext(),
        journal,
        running_engine(
            settings,
            credential,
            journal.put,
            look_ahead=look_ahead,
            route=route,
            hold=journal.hold,
            resuming=resuming,
        ) as engine,
        Link(state, plan, claim, epoch, engine, journal, grace_s=settings.timeouts.grace_s),
    ):
        for job in jobs_of_part(source, known, settings, task.prices, due):
            if not engine.submit(job):
                break
        engine.join()
    state.beat(heartbeat(epoch, claim, 0, engine, journal, ended=True))
    return Receipt(part, claim, len(known), engine.requests)


def _died(state: RunState, plan: PlanState, part: int, claim: str) -> bool:
    """Whether an earlier attempt at the part may have died."""
    ended = {beat.claim for beat in state.heartbeats() if beat.ended}
    return any(other not in ended for other in plan.claims(part) if other < claim)
