"""One attempt at one part of the plan, in a Spark worker: read what is owed, capture it, journal it.

Knows the order in which a retried attempt must look before it pays: claim the part, then the journal, then what has
landed. Holds the line to the driver: its control file says how many streams are ours, our heartbeat says how we fare.
Plain Python: Spark only calls :func:`capture_part`.
"""

from __future__ import annotations

import gc
import json
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow.parquet as pq

from deltatap.api.input_tokens import count_input
from deltatap.errors import ConfigError, CredentialError
from deltatap.http.client import EndpointClient
from deltatap.http.credentials import credential_of
from deltatap.messages import Heartbeat, Permit
from deltatap.model import Expected, Job, Request
from deltatap.prompts import wire
from deltatap.state import RunState
from deltatap.tokens import known_encoding
from deltatap.worker.engine import Engine
from deltatap.worker.journal import JournalWriter, journaled_rows, warm_up
from deltatap.worker.retry import RetryPolicy
from deltatap.worker.rows import Context
from deltatap.worker.usage import most_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from deltatap.config import Endpoint, Settings
    from deltatap.http.credentials import Credential, Token
    from deltatap.model import Mode, Wire
    from deltatap.prices import Prices
    from deltatap.state import PlanState

POLL_S = 0.5
# Below the lease (runs.LEASE_S), so that a successor starts only when the workers of a driver that sleeps have stopped.
STALE_S = 15.0
_LOST_S = 300.0
_BACKLOG = 2048
_BATCH_ROWS = 128


@dataclass(frozen=True, slots=True)
class CaptureTask:
    """What an attempt must know; pickled into the UDF's closure, so it holds no secret but the one that is asked to.

    Attributes:
        settings: the configuration.
        prices: USD per million tokens.
        run_id: the run.
        folder: the run's state folder.
        epoch: of the lease and of the plan.
        key: of a secret scope, which a worker cannot read.
    """

    settings: Settings
    prices: Prices
    run_id: str
    folder: Path
    epoch: int
    key: Token | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an attempt did: how many rows of its part were there before, and how many requests it made."""

    part: int
    claim: str
    known: int
    requests: int


def retry_policy(settings: Settings) -> RetryPolicy:
    """How often a request is tried, by the configuration."""
    capture = settings.capture
    return RetryPolicy(capture.max_attempts, capture.max_broken, capture.retry_for_s)


def context_of(settings: Settings, prices: Prices, run_id: str, place: int) -> Context:
    """What is the same for all rows of a worker; `place` is its part or partition."""
    return Context(
        run_id=run_id,
        endpoint=settings.endpoint.label,
        api=settings.endpoint.api,
        worker=f"{socket.gethostname()}/{place}",
        fallback_encoding=settings.tokens.fallback_encoding,
        prices=prices,
    )


def capture_part(task: CaptureTask, part: int) -> Receipt:
    """Capture what of a part is neither journaled nor landed; returns when all of it is journaled, or on a stop."""
    settings = task.settings
    state = RunState(task.folder)
    plan = state.plan(task.epoch)
    claim = plan.claim(part)
    try:
        if (credential := credential_of(settings.endpoint, task.key)) is not None:
            credential.token()
    except (ConfigError, CredentialError) as error:
        # The driver has it, this process has not: no attempt can help.
        fatal = f"{error} (in the Spark worker; it inherits the variables of where Spark was started)"
        state.beat(Heartbeat(task.epoch, claim, 0, fatal=fatal, ended=True))
        return Receipt(part, claim, 0, 0)
    # In this order: landing remembers rows before it deletes their files, so a row is always in one of the two.
    journaled = journaled_rows(state.journal, task.epoch, part)
    known = np.union1d(journaled, plan.landed_rows(part))
    streams = min(settings.capture.streams_per_worker, settings.capture.concurrency)
    context = context_of(settings, task.prices, task.run_id, part)
    warm_up(context)
    journal = JournalWriter(
        state.journal,
        f"{task.run_id}-{claim}",
        context,
        plan=task.epoch,
        part=part,
        flush_s=settings.state.flush_s,
    )
    engine = Engine(
        lambda: client_of(settings, credential),
        policy=retry_policy(settings),
        look_ahead=2 * streams + _BATCH_ROWS,
        deliver=journal.put,
    )
    with journal, engine, _Line(state, plan, claim, task, engine, journal):
        settle()
        expect = _expectation(settings, task.prices) if settings.bounds.any else None
        for job in _jobs(plan.part_files()[part], set(known.tolist()), settings.endpoint, expect):
            if not engine.submit(job):
                break
        engine.join()
    state.beat(heartbeat(task.epoch, claim, 0, engine, journal, ended=True))
    return Receipt(part, claim, len(known), engine.requests)


def settle() -> None:
    """Let nothing in this process keep the event loop waiting for milliseconds, once all is loaded.

    What is there now stays, and no collection walks over it; each takes little at a time. Another thread lets go of the
    interpreter after half a millisecond, not after five.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(1000, 20, 100)
    sys.setswitchinterval(0.0005)


def client_of(settings: Settings, credential: Credential | None) -> EndpointClient:
    """The client of a worker; made on the engine's event loop."""
    return EndpointClient(
        settings.endpoint, settings.timeouts, keep_raw=settings.capture.keep_raw, credential=credential
    )


def _expectation(settings: Settings, prices: Prices) -> Callable[[Wire], Expected]:
    """What a request is expected to use; counting tokens costs CPU, so it is asked only where something bounds them."""
    api, fallback = settings.endpoint.api, settings.tokens.fallback_encoding

    def expect(wire: Wire) -> Expected:
        body = json.loads(wire.body)
        inputs = count_input(body, api, wire.model, known_encoding(wire.model) or fallback)
        return Expected(inputs.tokens, most_output(body), wire.choices, prices.find(wire.model))

    return expect


def _jobs(path: Path, known: set[int], endpoint: Endpoint, expect: Callable[[Wire], Expected] | None) -> Iterator[Job]:
    """The jobs of a part but for the known rows; those of one request in both modes stand together: one follows."""
    first: Job | None = None
    for at, columns in enumerate(
        row for batch in pq.ParquetFile(path).iter_batches(_BATCH_ROWS) for row in batch.to_pylist()
    ):
        if at in known:
            continue
        job = _job(columns, at, endpoint)
        if expect is not None and job.wire is not None:
            job.expected = expect(job.wire)
        if first is not None and first.request.request_id == job.request.request_id:
            first.then = job
            yield first
            first = None
        else:
            if first is not None:
                yield first
            first = job
    if first is not None:
        yield first


def _job(columns: dict[str, Any], row: int, endpoint: Endpoint) -> Job:
    mode, earlier = columns.pop("mode"), columns.pop("retries") or []
    request = Request(**{**columns, "keep": None if columns["keep"] is None else dict(columns["keep"])})
    return job_of(request, row, earlier, endpoint, mode)


def job_of(request: Request, row: int, earlier: list[dict[str, Any]], endpoint: Endpoint, mode: Mode) -> Job:
    """A request as a job of this worker."""
    sent = (
        None
        if request.body is None
        else wire(request.body, api=endpoint.api, mode=mode, include_usage=endpoint.include_usage)
    )
    return Job(request, sent, mode, row, earlier, planned=time.perf_counter())


def heartbeat(
    epoch: int, claim: str, beat: int, engine: Engine, journal: JournalWriter, *, ended: bool = False
) -> Heartbeat:
    """The worker's word to its driver."""
    totals = journal.totals
    return Heartbeat(
        epoch=epoch,
        claim=claim,
        beat=beat,
        open=engine.open,
        requests=engine.requests,
        rows=dict(totals.rows),
        errors=dict(totals.errors),
        input_tokens=totals.input_tokens,
        output_tokens=totals.output_tokens,
        cost_usd=totals.cost_usd,
        ttft_ms=totals.ttft_ms,
        loop_lag_ms=engine.lag_ms(10 * POLL_S),
        cool_s=engine.cool_s,
        fatal=None if engine.fatal is None else f"{engine.fatal.type}: {engine.fatal.message}",
        ended=ended,
        at=time.time(),
        **engine.told(),
    )


class _Line:
    """The line to the driver, in a thread of its own: reads its word, sends ours, and ends the engine when it must."""

    def __init__(
        self,
        state: RunState,
        plan: PlanState,
        claim: str,
        task: CaptureTask,
        engine: Engine,
        journal: JournalWriter,
    ) -> None:
        self._state, self._plan, self._claim = state, plan, claim
        self._task, self._engine, self._journal = task, engine, journal
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._main, name="deltatap-line", daemon=True)
        self._seen: int | None = None
        self._fresh_at = time.monotonic()
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
                self._exchange()
            except Exception:  # noqa: BLE001 - whatever keeps us from hearing the driver, nothing starts unheard
                with suppress(RuntimeError):  # the engine is over
                    self._engine.control(share=0)
            if self._closed.wait(POLL_S):
                return

    def _exchange(self) -> None:
        self._beat += 1
        self._state.beat(heartbeat(self._task.epoch, self._claim, self._beat, self._engine, self._journal))
        control = self._state.control()
        now = time.monotonic()
        if control is not None and control.beat != self._seen:
            self._seen, self._fresh_at = control.beat, now
        silent_s = now - self._fresh_at
        grace_s = self._task.settings.timeouts.grace_s
        if self._journal.failure is not None:
            self._engine.stop(0)
        elif control is not None and control.epoch == self._task.epoch and control.stop is not None:
            self._engine.stop(control.grace_s)
        elif (
            (control is not None and control.epoch > self._task.epoch)
            or not self._plan.holds(self._claim)
            or silent_s > _LOST_S
        ):
            self._engine.stop(grace_s)
        elif control is None or silent_s > STALE_S or self._journal.waiting > _BACKLOG:
            self._engine.control(share=0)
        else:
            self._engine.control(
                share=control.shares.get(self._claim, 0),
                cool_s=control.cool_s,
                permit=None if control.permits is None else control.permits.get(self._claim, Permit()),
                mean_output_tokens=control.mean_output_tokens,
            )
