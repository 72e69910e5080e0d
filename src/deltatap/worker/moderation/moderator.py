"""Makes the checks of a worker's calls: searches patterns in a thread, and calls the endpoint.

Knows how many checks may run at once, and which checks wait, are skipped or are repeated. Runs on the event loop.
``watch.py`` takes the results. The engine says when a call may start (limits, pauses).
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from deltatap import patterns
from deltatap.http.faults import internal_error
from deltatap.model import INTERNAL_CUT, CaptureError, Verdict
from deltatap.visible import visible
from deltatap.worker.moderation.points import Check, Points
from deltatap.worker.moderation.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from deltatap import config
    from deltatap.model import Call, Job

    # Calls the endpoint with a model and a text.
    Moderate = Callable[[str, str], Awaitable[Verdict | CaptureError]]

_log = logging.getLogger("deltatap")
# Maximum number of open calls of a worker.
_MOST_OPEN = 128
# How long a capture waits for its last results, after the answer has ended.
WAIT_S = 10.0
# The check at the end of a text is repeated, since no later check covers its text.
_TRIES, _AGAIN_S = 3, 0.5
# After this many refusals in a row, the endpoint is not called again.
_REFUSALS = 3
_REFUSED = ("permission", "not_found", "wrong_url", "quota")


class Moderator:
    """Checks the texts of all calls of one engine."""

    def __init__(
        self,
        settings: config.Moderation,
        moderate: Moderate,
        *,
        hold: Callable[[], float],
        failed: Callable[[CaptureError], None],
    ) -> None:
        """Check nothing yet.

        Args:
            settings: what is checked, and how.
            moderate: calls the endpoint.
            hold: the seconds until a call may start; 0 if it may start now, which counts it as started.
            failed: takes the error of each call that failed.
        """
        self._settings, self._moderate, self._hold, self._failed = settings, moderate, hold, failed
        self._watches: dict[Job, Watch] = {}
        # The checks that wait for their calls, one for each text, and how often each was tried. Oldest texts first.
        self._waiting: dict[tuple[Watch, int], tuple[Check, int]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._held: asyncio.TimerHandle | None = None
        self._ending: set[Watch] = set()
        self._hurried = False
        self._refusals = 0
        self._refusal: CaptureError | None = None
        self._to_search: list[tuple[Watch, Check]] = []
        self._searching: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "deltatap-patterns") if settings.patterns else None
        patterns.find([patterns.Window("", first=True, last=True)], settings.patterns)  # loads the engine now

    @property
    def waiting(self) -> int:
        """The number of calls that wait for their start."""
        return len(self._waiting)

    def watch(self, job: Job) -> Watch:
        """The watch of a job's next call, which the current task makes. The watch of the previous call is dropped."""
        self.drop(job)
        settings = self._settings
        self._watches[job] = watch = Watch(
            job.request.request_id,
            Points(settings.every_chars, streams=job.mode == "stream"),
            self._begin,
            stop=settings.stop,
            again=bool(settings.patterns),
        )
        return watch

    def drop(self, job: Job) -> None:
        """Forget the checks of a job."""
        if (watch := self._watches.pop(job, None)) is not None:
            watch.drop()

    async def column(self, job: Job, call: Call) -> str | None:
        """The results of a job's last call, which has ended, as JSON."""
        watch = self._watches.pop(job, None)
        if watch is None:
            return None
        watch.last(call)
        self._ending.add(watch)
        try:
            async with asyncio.timeout(0 if self._hurried else WAIT_S):
                await watch.settled()
        except TimeoutError:
            pass
        finally:
            self._ending.discard(watch)
        return watch.column(call)

    def hurry(self) -> None:
        """Do not wait for more results, because the run stops."""
        self._hurried = True
        for watch in self._ending:
            watch.drop()

    def pump(self) -> None:
        """Start as many of the waiting calls as limits and pauses allow."""
        while self._waiting and len(self._calls) < _MOST_OPEN:
            key = next(iter(self._waiting))
            watch, (check, tries) = key[0], self._waiting[key]
            if watch.over:
                del self._waiting[key]
            elif self._refusal is not None:
                del self._waiting[key]
                watch.judged(check, self._refusal, None)
            elif (hold_s := self._hold()) > 0:
                if self._held is None:
                    self._held = self._later(hold_s, self._resume)
                return
            else:
                del self._waiting[key]
                task = asyncio.create_task(self._call(watch, check, tries))
                self._calls.add(task)
                task.add_done_callback(self._called)

    def _resume(self) -> None:
        self._held = None
        self.pump()

    async def close(self) -> None:
        """End all checks."""
        for timer in self._timers:
            timer.cancel()
        self._waiting.clear()
        tasks = [*self._calls, *([self._searching] if self._searching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, watch: Watch, check: Check) -> None:
        if self._thread is not None:
            self._to_search.append((watch, check))
            if self._searching is None:
                self._searching = asyncio.create_task(self._search(self._thread))
        else:
            self._queue(watch, check)

    def _queue(self, watch: Watch, check: Check, tries: int = 0) -> None:
        """Queue a check for its call. It replaces an earlier check of the same text that is still waiting."""
        key = watch, check.choice
        if key in self._waiting:
            watch.skip(self._waiting[key][0])
        self._waiting[key] = check, tries
        self.pump()

    async def _search(self, thread: ThreadPoolExecutor) -> None:
        """Search the texts of all checks that wait, until none waits. One search takes many texts."""
        try:
            while self._to_search:
                batch = [(watch, check) for watch, check in self._to_search if not watch.over]
                self._to_search.clear()
                started = time.perf_counter()
                found = await self._searched(thread, batch)
                took_ms = (time.perf_counter() - started) * 1e3
                for (watch, check), result in zip(batch, found, strict=True):
                    if isinstance(result, Verdict) and not result.flagged and self._settings.asks is not None:
                        self._queue(watch, check)
                    else:
                        watch.judged(check, result, took_ms)
        finally:
            self._searching = None

    async def _searched(
        self, thread: ThreadPoolExecutor, batch: Sequence[tuple[Watch, Check]]
    ) -> Sequence[Verdict | CaptureError]:
        try:
            windows = [watch.points.window(check) for watch, check in batch]
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(thread, patterns.find, windows, self._settings.patterns)
        except BaseException as error:  # noqa: BLE001 - logged, or else raised again
            return [internal_error(error, "of several rows", INTERNAL_CUT, "search the patterns")] * len(batch)
        return [Verdict(bool(those), those) for those in found]

    async def _call(self, watch: Watch, check: Check, tries: int) -> None:
        started = time.perf_counter()
        try:
            result = await self._moderate(self._settings.asks or "", watch.text(check))
        except BaseException as error:  # noqa: BLE001 - logged, or else raised again
            result = internal_error(error, watch.request_id, INTERNAL_CUT, "check the text")
        took_ms = (time.perf_counter() - started) * 1e3
        if isinstance(result, CaptureError):
            self._count(result)
            if check.last and result.retryable and tries + 1 < _TRIES and not watch.over:
                wait_s = max(_AGAIN_S, result.retry_after_s or 0.0)
                self._later(wait_s, lambda: self._queue(watch, check, tries + 1))
                return
        else:
            self._refusals = 0
        watch.judged(check, result, took_ms)

    def _count(self, error: CaptureError) -> None:
        """Apply the consequences of an error to all other checks."""
        self._failed(error)
        self._refusals = self._refusals + 1 if error.type in _REFUSED else 0
        if self._refusals == _REFUSALS:
            self._refusal = error
            _log.warning("moderation: no more checks, because the endpoint refuses them: %s", visible(error.message))

    def _called(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            self.pump()

    def _later(self, seconds: float, then: Callable[[], None]) -> asyncio.TimerHandle:
        def due() -> None:
            self._timers.discard(timer)
            then()

        timer = asyncio.get_running_loop().call_later(seconds, due)
        self._timers.add(timer)
        return timer
