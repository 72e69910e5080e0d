"""Many streams at once on one event loop, in a thread of its own, so that a Spark worker's thread may feed it and wait.

Knows how to keep a share of streams open over all batches, when a request's story is over, and how late its own loop
runs. Leaves to others what a call is (``client.py``), what may start (``schedule.py``), what is tried again
(``outcomes.py``) and what becomes of a finished capture (its ``deliver``).
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, Self

import uvloop

from deltatap.errors import one_line
from deltatap.model import Capture, CaptureError, Job
from deltatap.worker.lag import LagRecord
from deltatap.worker.retry import RetryPolicy, next_try, stops_run
from deltatap.worker.schedule import Scheduler
from deltatap.worker.usage import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.messages import Permit
    from deltatap.model import Call, Wire

_LAG_TICK_S = 0.01
_JOIN_S = 10.0
# A call that the client has mended (a token renewed, stream options left away) goes out again at once, so often.
_MENDED = 2


class Client(Protocol):
    """What makes one call."""

    async def call(self, wire: Wire) -> Call:
        """One call, however it ends."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class Engine:
    """Runs jobs to their end. ``submit`` blocks while ``look_ahead`` of them are unfinished, so memory is bounded."""

    def __init__(
        self,
        make_client: Callable[[], Client],
        *,
        policy: RetryPolicy,
        look_ahead: int,
        deliver: Callable[[Capture], None],
        share: int = 0,
    ) -> None:
        """Nothing runs before the engine is entered.

        Args:
            make_client: called on the event loop.
            policy: how often a request is tried.
            look_ahead: how many jobs may be unfinished before ``submit`` waits.
            deliver: takes each capture, once, on the event loop's thread; must not block.
            share: how many streams may be open until told otherwise.
        """
        self._make_client, self._policy, self._deliver = make_client, policy, deliver
        self._room = threading.BoundedSemaphore(look_ahead)
        self._scheduler = Scheduler(share)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="deltatap-engine", daemon=True)
        self._lag = LagRecord()
        self.tally = Tally()
        self._tick_due = math.inf
        self._tasks: dict[asyncio.Task[None], Job] = {}
        self._submitted = 0
        self._finished = 0
        self._progress = threading.Event()
        self._ready = threading.Event()
        self._broken: BaseException | None = None
        self._random = random.Random()  # noqa: S311 - jitter, not secrets
        self._cool_until = 0.0
        self.requests = 0
        self.fatal: CaptureError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        self.check()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it is ending by itself
                self._loop.call_soon_threadsafe(self._end)
            self._thread.join(_JOIN_S)

    @property
    def open(self) -> int:
        """How many streams are open."""
        return self._scheduler.open

    @property
    def cool_s(self) -> float:
        """For how long this worker was asked to wait, from now."""
        return max(0.0, self._cool_until - time.perf_counter())

    def lag_ms(self, seconds: float) -> float:
        """The event loop's worst delay in the last seconds."""
        return self._worst_lag(time.perf_counter() - seconds) * 1e3

    def submit(self, job: Job) -> bool:
        """Take a job and what follows it; blocks while too many are unfinished. False when the engine was stopped."""
        following: Job | None = job
        while following is not None:
            while not self._room.acquire(timeout=0.5):
                self.check()
            self.check()
            self._submitted += 1
            following = following.then
        self._loop.call_soon_threadsafe(self._take, job)
        return not self._scheduler.stopped

    def join(self) -> None:
        """Wait until every submitted job is delivered or dropped."""
        while self._finished < self._submitted:
            self.check()
            self._progress.wait(0.2)
            self._progress.clear()

    def control(
        self,
        *,
        share: int,
        cool_s: float = 0.0,
        permit: Permit | None = None,
        mean_output_tokens: float | None = None,
    ) -> None:
        """Set the share of streams and what is permitted; from any thread.

        Args:
            share: how many streams may be open.
            cool_s: for so long nothing starts.
            permit: what may have started; None where nothing limits it.
            mean_output_tokens: how long the outputs of all workers are.
        """
        self._loop.call_soon_threadsafe(self._control, share, cool_s, permit, mean_output_tokens)

    def told(self) -> dict[str, Any]:
        """What the engine's part of a heartbeat says; from any thread, also when the engine is over."""
        if not self._thread.is_alive():
            return self._tell()
        answer: Future[dict[str, Any]] = Future()
        self._loop.call_soon_threadsafe(lambda: answer.set_result(self._tell()))
        return answer.result(_JOIN_S)

    def _tell(self) -> dict[str, Any]:
        scheduler = self._scheduler
        return {"wants": scheduler.wants, **self.tally.told(scheduler.next(time.perf_counter()))}

    def stop(self, grace_s: float) -> None:
        """Start nothing more; cut what is still open after the grace period. From any thread, more than once."""
        self._loop.call_soon_threadsafe(self._stop, grace_s)

    def check(self) -> None:
        """Raise when the engine has broken down, which no outcome of a call does.

        Raises:
            RuntimeError: with the cause.
        """
        if self._broken is not None:
            raise RuntimeError(
                f"the engine broke down: {type(self._broken).__name__}: {one_line(self._broken)}"
            ) from self._broken

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the feeding thread, which raises it
            self._broken = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._wake = asyncio.Event()
        self._over = False
        self._client = self._make_client()
        self._ready.set()
        lag = asyncio.create_task(self._watch_lag())
        try:
            while not self._over:
                if job := self._scheduler.start(time.perf_counter(), self.tally.allows):
                    self._start(job)
                else:
                    await self._something()
        finally:
            lag.cancel()
            await asyncio.gather(lag, *self._tasks, return_exceptions=True)
            await self._client.close()

    async def _something(self) -> None:
        """Wait for whatever may let a job start."""
        at = self._scheduler.wake_at()
        timer = None if at is None else self._loop.call_later(max(0.0, at - time.perf_counter()), self._wake.set)
        await self._wake.wait()
        self._wake.clear()
        if timer is not None:
            timer.cancel()

    def _start(self, job: Job) -> None:
        self.requests += 1
        self.tally.started(job)
        task = asyncio.create_task(self._call(job))
        self._tasks[task] = job
        task.add_done_callback(self._ended)

    async def _call(self, job: Job) -> None:
        if job.wire is None:
            raise RuntimeError("a bad row is never scheduled")
        call = await self._client.call(job.wire)
        job.calls.append(call)
        self.tally.ended(job, call)
        if call.mended and job.tries.mended < _MENDED and not self._scheduler.stopped:
            job.tries.mended += 1
            self._scheduler.again(job, time.perf_counter())
            return
        if stops_run(call.error) and self.fatal is None:
            self.fatal = call.error
            self._stop(None)
        now = time.perf_counter()
        again = next_try(job.tries, call.status, call.error, self._policy, now=now, jitter=self._random.random())
        if cool_s := max(call.used_up_for_s or 0.0, again.cool_s if again else 0.0):
            # What the server wants of us it wants of all: the driver passes it on.
            self._scheduler.cool_down(now + cool_s)
            self._cool_until = max(self._cool_until, now + cool_s)
        if again is None or self._scheduler.stopped:
            self._finish(job)
        else:
            self._scheduler.again(job, now + again.delay_s)

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._tasks.pop(task)
        self._scheduler.ended()
        self._wake.set()
        if task.cancelled():  # before its first step
            self.tally.ended(job, None)
            self._finish(job)
        elif (error := task.exception()) is not None:
            # A fault of ours, not of the API: fail loudly rather than lose the request.
            self._broken = error
            self._over = True
            self._cut()

    def _take(self, job: Job) -> None:
        if job.wire is None:
            self._done(Capture(job, CaptureError("invalid_request", None, job.request.error or "no request")))
        elif self._scheduler.stopped:
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
        first, last = job.calls[0], job.calls[-1]
        self._done(
            Capture(
                job,
                queued_ms=(first.started - job.planned) * 1e3,
                loop_lag_ms=self._worst_lag(last.started) * 1e3,
            )
        )

    def _drop(self, job: Job) -> None:
        self._done(Capture(job, CaptureError("cancelled", None, "the run was stopped before the request was sent")))

    def _done(self, capture: Capture) -> None:
        self._deliver(capture)
        self._finished += 1
        self._room.release()
        self._progress.set()
        if (following := capture.job.then) is not None:
            following.planned = time.perf_counter()
            self._take(following)

    def _control(self, share: int, cool_s: float, permit: Permit | None, mean_output_tokens: float | None) -> None:
        self._scheduler.share = share
        self._scheduler.barred = False
        self.tally.give(permit, mean_output_tokens)
        self._scheduler.cool_down(time.perf_counter() + cool_s)
        self._wake.set()

    def _stop(self, grace_s: float | None) -> None:
        for job in self._scheduler.stop():
            self._finish(job)
        if grace_s is not None:
            self._loop.call_later(grace_s, self._cut)

    def _cut(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _end(self) -> None:
        self._over = True
        self._wake.set()
        self._cut()

    def _worst_lag(self, since: float) -> float:
        """In seconds; a tick that is late right now counts, too."""
        return max(self._lag.worst(since), time.perf_counter() - self._tick_due)

    async def _watch_lag(self) -> None:
        while True:
            self._tick_due = time.perf_counter() + _LAG_TICK_S
            await asyncio.sleep(_LAG_TICK_S)
            now = time.perf_counter()
            self._lag.add(now, max(0.0, now - self._tick_due))
