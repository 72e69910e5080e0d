"""Runs many streams at once on one event loop, in its own thread, so that Spark's thread can submit jobs and wait.

Knows how to keep a share of streams open across batches, and when a request is finished. Other modules make the calls
(``http/client.py``), decide which requests may start (``schedule.py``, ``usage.py``, ``breaker.py``) and which are
retried (``retry.py``), and take the finished captures (``deliver``).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import uvloop

from deltatap.api.values import bounded
from deltatap.errors import one_line
from deltatap.http.faults import internal_error
from deltatap.messages import POLL_S, Refusal
from deltatap.model import (
    INTERNAL_COMPLETE,
    INTERNAL_CUT,
    INTERNAL_REQUEST,
    Call,
    Capture,
    CaptureError,
    Chunks,
    Job,
    Received,
)
from deltatap.worker.breaker import Breaker
from deltatap.worker.lag import LagWatch
from deltatap.worker.moderation.moderator import WAIT_S, Moderator
from deltatap.worker.retry import cool_down, next_try, pause_s, stops_run, too_long_s, until
from deltatap.worker.schedule import Scheduler
from deltatap.worker.unfinished import Unfinished
from deltatap.worker.usage import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deltatap import config
    from deltatap.http.reading import Watch
    from deltatap.http.resumable import Resumable
    from deltatap.messages import OpenStream, Permit
    from deltatap.model import Verdict, Wire
    from deltatap.worker.resuming import Resuming

_JOIN_S = 10.0
# The heartbeat's lag covers this many seconds.
_LAG_S = 10 * POLL_S
# How many times a call that the client has corrected (renewed token, dropped stream options) is resent at once.
_RESENDS = 2
# The maximum length of a server's message in the line that says why a run stops.
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Proceed:
    """What an engine may start.

    Attributes:
        share: the maximum number of open streams.
        cool_s: no request starts for this many seconds.
        permit: the latest permit; None when there are no limits.
        mean_output_tokens: the mean over all workers; None when unknown.
        begins_at: when the schedule begins, in seconds since the epoch; None while that is not known.
    """

    share: int
    cool_s: float = 0.0
    permit: Permit | None = None
    mean_output_tokens: float | None = None
    begins_at: float | None = None


class Client(Protocol):
    """Makes calls."""

    async def call(
        self, wire: Wire, request_id: str, watch: Watch | None = None, answer: Resumable | None = None
    ) -> Call:
        """Make one call, or resume an answer. Returns normally even if the call fails or is cancelled."""
        ...

    async def moderate(self, model: str, text: str, *, within_s: float) -> Verdict | CaptureError:
        """Ask whether a text is flagged."""
        ...

    def open_streams(self) -> Sequence[OpenStream]:
        """Some of the open calls, for the heartbeat."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class Engine:
    """Runs jobs until each is captured or dropped. ``submit`` blocks while too many are unfinished, to bound memory.

    Attributes:
        requests: the number of calls made.
        fatal: why no request can succeed; None while requests can succeed.
        too_long: one line that says that the server asks for a longer wait than any request may wait; None if it does
            not.
    """

    def __init__(
        self,
        make_client: Callable[[], Client],
        *,
        limits: config.Capture,
        look_ahead: int,
        deliver: Callable[[Capture], None],
        share: int = 0,
        moderation: config.Moderation | None = None,
        limited: bool = False,
        hold: tuple[float, Callable[[Capture], None]] | None = None,
        resuming: Resuming | None = None,
    ) -> None:
        """Nothing runs before the engine is entered.

        Args:
            make_client: called on the event loop.
            limits: of retries.
            look_ahead: the number of unfinished jobs above which ``submit`` blocks.
            deliver: receives each capture once, on the event loop's thread; must not block. A capture stands for its
                copies, too (:attr:`Capture.with_copies`).
            share: the maximum number of open streams until :meth:`control` sets it.
            moderation: how the texts of the answers are checked; None: not at all.
            limited: whether a call of moderation needs a permit, as a request does.
            hold: receives each capture whose checks take longer than this many seconds; None if nothing does.
            resuming: resumes broken answers; None if the API cannot do that.
        """
        self._make_client, self._limits, self._deliver = make_client, limits, deliver
        self._scheduler = Scheduler(share)
        self._tally = Tally()
        self._lag = LagWatch()
        self._unfinished = Unfinished(look_ahead)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="deltatap-engine", daemon=True)
        self._ready = threading.Event()
        self._wake = asyncio.Event()
        self._over = False
        self._tasks: dict[asyncio.Task[None], Job] = {}
        self._broken: BaseException | None = None
        self._random = random.Random()  # noqa: S311 - jitter, not secrets
        self._breaker = Breaker()
        self._resuming = resuming
        self._cool_until = 0.0
        self._cool_why = self._retry_why = ""
        self._moderation, self._limited, self._hold = moderation, limited, hold
        self._moderator: Moderator | None = None
        self._judging: set[asyncio.Task[None]] = set()
        self.requests = 0
        self.fatal: Refusal | None = None
        self.too_long: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        self.check()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # the loop is already closing
                self._loop.call_soon_threadsafe(self._end)
            self._thread.join(_JOIN_S)

    def submit(self, job: Job) -> bool:
        """Take a job and its ``then``; blocks while too many jobs are unfinished. False after a stop."""
        each: Job | None = job
        while each is not None:
            while not self._unfinished.add(timeout=0.5):
                self.check()
            self.check()
            each = each.then
        self._loop.call_soon_threadsafe(self._take, job)
        return not self._scheduler.stopped

    def join(self) -> None:
        """Wait until every submitted job is delivered."""
        while not self._unfinished.wait(timeout=0.2):
            self.check()

    def control(self, bounds: Proceed) -> None:
        """Set which requests may start. Call it from any thread."""
        self._loop.call_soon_threadsafe(self._control, bounds)

    def stop(self, grace_s: float) -> None:
        """Start no more calls, and cut open streams after the grace period. Any thread may call it, repeatedly."""
        self._loop.call_soon_threadsafe(self._stop, grace_s)

    def status(self) -> dict[str, Any]:
        """The engine's fields of a heartbeat. Call it from any thread, even after the engine has ended."""
        if not self._thread.is_alive():
            return self._status()
        answer: Future[dict[str, Any]] = Future()
        self._loop.call_soon_threadsafe(lambda: answer.set_result(self._status()))
        return answer.result(_JOIN_S)

    def check(self) -> None:
        """Raise when the engine itself has failed; the outcome of a call never causes this.

        Raises:
            RuntimeError: with the cause.
        """
        if self._broken is not None:
            raise RuntimeError(
                f"the engine failed: {type(self._broken).__name__}: {one_line(self._broken)}"
            ) from self._broken

    # Everything below runs on the event loop's thread.

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - the feeding thread raises it
            self._broken = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._client = client = self._make_client()
        if self._moderation is not None:
            self._moderator = Moderator(
                self._moderation,
                lambda model, text: client.moderate(model, text, within_s=WAIT_S),
                hold=self._check_wait_s,
                failed=self._moderation_failed,
            )
        self._ready.set()
        lag = asyncio.create_task(self._lag.run())
        try:
            while not self._over:
                if job := self._scheduler.start(time.perf_counter(), self._tally.allows):
                    self._start(job)
                else:
                    await self._next_event()
        finally:
            lag.cancel()
            await asyncio.gather(lag, *self._tasks, return_exceptions=True)
            if self._moderator is not None:
                self._cut()
                await asyncio.gather(*self._judging, return_exceptions=True)
                await self._moderator.close()
            await self._client.close()

    async def _next_event(self) -> None:
        """Wait for anything that may let a job start."""
        at = self._scheduler.wake_at()
        timer = None if at is None else self._loop.call_later(max(0.0, at - time.perf_counter()), self._wake.set)
        await self._wake.wait()
        self._wake.clear()
        if timer is not None:
            timer.cancel()

    def _start(self, job: Job) -> None:
        self.requests += 1
        self._tally.started(job)
        task = asyncio.create_task(self._call(job))
        self._tasks[task] = job
        task.add_done_callback(self._ended)

    async def _call(self, job: Job) -> None:
        if job.wire is None:
            raise RuntimeError("a bad row is never scheduled")
        answer = None if self._resuming is None else self._resuming.answer(job, job.wire)
        known = None if answer is None else answer.call
        call = await self._made(job, job.wire, answer)
        # All calls that read one answer count as one call.
        before = job.calls.pop() if known is not None and job.calls and job.calls[-1] is known else None
        job.calls.append(call)
        try:
            self._tally.ended(job, call, before)
            again_at = self._again_at(job, job.wire, call)
        except BaseException as error:  # noqa: BLE001 - logged, or else raised again
            internal_error(error, job.request.request_id, INTERNAL_COMPLETE, "count the call")
            again_at = None
        if again_at is None:
            self._finish(job)
        else:
            self._scheduler.retry_at(job, again_at)

    async def _made(self, job: Job, wire: Wire, answer: Resumable | None) -> Call:
        """Make the call.

        If the client itself fails, nothing is known about the answer, so the request is not sent and paid for again.
        The part of the answer that earlier calls have read is kept.
        """
        started_at, started = time.time(), time.perf_counter()
        known = None if answer is None else answer.call
        try:
            if self._moderator is None:
                return await self._client.call(wire, job.request.request_id, None, answer)
            watch = self._moderator.watch(job)
            try:
                return await self._client.call(wire, job.request.request_id, watch, answer)
            finally:
                watch.ended()
        except BaseException as error:  # noqa: BLE001 - as above
            code = INTERNAL_REQUEST if known is None else INTERNAL_CUT
            fault = internal_error(error, job.request.request_id, code, "make the call")
        if answer is not None and known is not None:
            answer.call = replace(known, error=fault, resend=False)
            return answer.call
        none = Received(Chunks())
        return Call(started_at, time.time(), started, None, None, None, None, none, "failed", fault, None, wire.body)

    def _again_at(self, job: Job, wire: Wire, call: Call) -> float | None:
        """When to make the next call for a job; None if there is none.

        Also applies the consequences of the last call to all other jobs.
        """
        now, error = time.perf_counter(), call.error
        if call.resend and job.tries.resent < _RESENDS and not self._scheduler.stopped:
            job.tries.resent += 1
            return now
        message = "" if error is None else bounded(" ".join(error.message.split()), _SHOWN)
        request_id = call.server_request_id or job.request.request_id
        refusal = Refusal("" if error is None else error.type, message, wire.model, request_id)
        if stops_run(error) and self.fatal is None:
            self.fatal = refusal
            self._stop(None)
        wait_s = too_long_s(error, self._limits)
        if wait_s is not None and self.too_long is None:
            self.too_long = f"rate limited {until(time.time(), wait_s)}: {refusal}"
            self._stop(None)
        jitter = self._random.random()
        read = None
        if self._resuming is not None:
            read = self._resuming.next_read(job, call, self._limits, now=now, jitter=jitter)
        if self._breaker.ended(call, refusal):
            for waiting in self._scheduler.drop(wire.model):
                self._finish(waiting)
        if read is None:
            retry = next_try(job.tries, call.status, error, self._limits, now=now, jitter=jitter)
        else:
            retry = read.retry
        if (cool := cool_down(call, retry, self._limits)) is not None:
            self._pause(now + cool.seconds, cool.why)
        if retry is None or self._scheduler.stopped or self._breaker.parked(wire.model):
            return None
        self._retry_why = retry.why
        return now + retry.delay_s

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._tasks.pop(task)
        self._scheduler.ended()
        self._wake.set()
        if task.cancelled():  # before its first step
            self._tally.ended(job, None)
            self._finish(job)
        elif (error := task.exception()) is not None:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """End the engine after a failure that affects all jobs. The feeding thread raises the error."""
        self._broken = error
        self._over = True
        self._wake.set()
        self._cut()

    def _take(self, job: Job) -> None:
        if job.fault is not None:
            self._done(Capture(job, job.fault))
        elif job.wire is None:
            self._done(Capture(job, CaptureError("invalid_request", None, job.request.error or "no request")))
        elif self._scheduler.stopped or self._breaker.parked(job.wire.model):
            self._drop(job)
        else:
            self._scheduler.plan(job)
            self._wake.set()

    def _finish(self, job: Job) -> None:
        worth_a_row = any(
            call.received.output or (call.error is None or call.error.type != "cancelled") for call in job.calls
        )
        if not worth_a_row:
            self._drop(job)
            return
        first, last, scheduled = job.calls[0], job.calls[-1], self._scheduler.scheduled(job)
        capture = Capture(
            job,
            queued_ms=(first.started - job.planned) * 1e3,
            loop_lag_ms=self._lag.worst_ms(since=last.started),
            scheduled_ms=None if scheduled is None else (last.started - scheduled) * 1e3,
        )
        if self._moderator is None:
            self._done(capture)
        else:
            # A separate task, so that another stream can start.
            task = asyncio.create_task(self._judge(self._moderator, capture))
            self._judging.add(task)
            task.add_done_callback(self._judging.discard)

    async def _judge(self, moderator: Moderator, capture: Capture) -> None:
        """Wait for the checks of a capture's text, then deliver it."""
        found = None
        timer = None if self._hold is None else self._loop.call_later(*self._hold, capture)
        try:
            found = await moderator.column(capture.job, capture.job.calls[-1])
        except BaseException as error:  # noqa: BLE001 - logged, or else raised again
            internal_error(error, capture.job.request.request_id, INTERNAL_COMPLETE, "check the text")
        finally:
            if timer is not None:
                timer.cancel()
            self._done(replace(capture, partial_moderation=found))

    def _check_wait_s(self) -> float:
        """The seconds until a call of moderation may start. 0: it may start now, and counts as started."""
        now = time.perf_counter()
        if (wait_s := self._scheduler.cool_s(now)) > 0:
            return wait_s
        return 0.0 if not self._limited or self._tally.takes_permit() else POLL_S

    def _moderation_failed(self, error: CaptureError) -> None:
        if (wait_s := pause_s(error)) is not None:
            self._tally.limited += 1
            self._pause(time.perf_counter() + wait_s, "rate limited by the server (moderation)")

    def _pause(self, until_s: float, why: str) -> None:
        """Start nothing before a time. The heartbeat carries the pause to the driver, because it applies to the run."""
        self._scheduler.cool_down(until_s)
        if until_s > self._cool_until:
            self._cool_until, self._cool_why = until_s, why

    def _drop(self, job: Job) -> None:
        """End a job without a row."""
        if self._moderator is not None:
            self._moderator.drop(job)
        parked = None if job.wire is None else self._breaker.parked(job.wire.model)
        if parked is not None:
            self._breaker.dropped(parked.refusal.model)
        refusal = self.fatal or (None if parked is None else parked.refusal)
        stopped = self.too_long or "the run was stopped before"
        why = f"not sent: {stopped}" if refusal is None else f"not sent, because of {refusal}"
        self._done(Capture(job, CaptureError("cancelled", None, why)))

    def _done(self, capture: Capture) -> None:
        job, following = capture.job, capture.job.then
        if self._resuming is not None:
            self._resuming.ended(job)
        try:
            self._deliver(capture)
        except BaseException as error:  # noqa: BLE001 - the feeding thread raises it
            self._break(error)  # captures that cannot be kept must not be paid for
            return
        if job.alike and not capture.completed:
            following = job.alike.popleft()
            following.alike, following.then = job.alike, job.then
        else:
            self._unfinished.remove()
        if following is not None:
            following.planned = time.perf_counter()
            # Not now: after a stop, the calls for many identical jobs would nest.
            self._loop.call_soon(self._take, following)

    def _control(self, bounds: Proceed) -> None:
        self._scheduler.share = bounds.share
        self._scheduler.barred = False
        self._tally.give(bounds.permit, bounds.mean_output_tokens)
        now = time.perf_counter()
        self._scheduler.cool_down(now + bounds.cool_s)
        if bounds.begins_at is not None:
            # Read once. Later steps of the wall clock do not move the schedule.
            self._scheduler.begin(now + bounds.begins_at - time.time())
        if self._moderator is not None:
            self._moderator.pump()  # before new requests take the permits
        self._wake.set()

    def _stop(self, grace_s: float | None) -> None:
        for job in self._scheduler.stop():
            self._finish(job)
        if grace_s is not None:
            self._loop.call_later(grace_s, self._cut)

    def _cut(self) -> None:
        if self._moderator is not None:
            self._moderator.hurry()
        for task in self._tasks:
            task.cancel()

    def _end(self) -> None:
        self._over = True
        self._wake.set()
        self._cut()

    def _status(self) -> dict[str, Any]:
        now = time.perf_counter()
        cool_s, retry_at = max(0.0, self._cool_until - now), self._scheduler.waits_until()
        retry_s = 0.0 if retry_at is None else max(0.0, retry_at - now)
        checks = self._moderator.waiting if self._moderator is not None and self._limited else 0
        return {
            # A request whose answer is still being checked also counts as in flight.
            "open": self._scheduler.open + len(self._judging),
            "streams": self._client.open_streams(),
            "requests": self.requests,
            "wants": self._scheduler.wants(now) + checks,
            "checks": checks,
            "loop_lag_ms": self._lag.worst_ms(since=now - _LAG_S),
            "cool_s": cool_s,
            "fatal": None if self.fatal is None else str(self.fatal),
            "too_long": self.too_long,
            "waits_s": cool_s or retry_s,
            "waits_for": self._cool_why if cool_s else self._retry_why if retry_s else None,
            **self._breaker.status(),
            **self._tally.status(self._scheduler.next(now)),
        }
