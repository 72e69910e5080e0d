"""One call whose text is checked: the due checks, their results, and whether the stream is cut.

``points.py`` decides where the text is checked, and ``moderator.py`` makes the checks. No exception in this module
affects the watched call: without a result, the stream continues.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from deltatap.http.faults import internal_error
from deltatap.model import INTERNAL_CUT, CaptureError, Chunks
from deltatap.worker.moderation.found import Found, column

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deltatap.model import Call, Verdict
    from deltatap.worker.moderation.points import Check, Points

# Maximum number of categories in a message.
_NAMED = 3


class Watch:
    """Watches one call.

    Attributes:
        cut: why the stream is cut; None if it is not.
        over: whether no more results are wanted.
        request_id: of the row, for the log.
    """

    def __init__(
        self,
        request_id: str,
        points: Points,
        begin: Callable[[Watch, Check], None],
        *,
        stop: bool,
        again: bool,
    ) -> None:
        """Watch nothing yet.

        Args:
            request_id: of the row.
            points: of the call.
            begin: makes a check; its result comes to :meth:`judged`.
            stop: whether to cut the stream when its text is flagged.
            again: whether to check a text again that ends at its last point.
        """
        self.cut: CaptureError | None = None
        self.over = False
        self.request_id, self._points, self._begin = request_id, points, begin
        self._stop, self._again = stop, again
        self._task = asyncio.current_task()
        self._streams = True
        self._chunks = Chunks()
        self._written = 0.0
        self._found: list[Found] = []
        self._open: dict[Check, None] = {}
        self._settled = asyncio.Event()

    def begin(self, chunks: Chunks, written: float) -> None:
        """Take the chunks of the call (more are added), and when its request was written, in monotonic seconds."""
        self._chunks, self._written = chunks, written

    def arrived(self) -> None:
        """Begin the checks that are due. Called after each read of the socket, so it must be quick."""
        if len(self._chunks.utf8) >= self._points.due:
            self._take()

    def _take(self) -> None:
        try:
            self._put(self._points.take(self._chunks))
        except BaseException as error:  # noqa: BLE001 - logged, or else raised again
            self.over = True
            internal_error(error, self.request_id, INTERNAL_CUT, "check the text")

    def _put(self, checks: Sequence[Check]) -> None:
        for check in checks:
            self._open[check] = None
            self._begin(self, check)

    def judged(self, check: Check, result: Verdict | CaptureError, took_ms: float | None) -> None:
        """Take the result of a check. Cuts the stream if the text is flagged and ``moderation.stop`` is set."""
        if self.over or check not in self._open:
            return
        del self._open[check]
        if self._streams:
            self._take()
        verdict_ms = None if check.chunk is None else (time.perf_counter() - self._written) * 1e3
        found = Found(check, took_ms=took_ms, verdict_ms=verdict_ms, seen=self._points.seen(check.choice))
        if isinstance(result, CaptureError):
            found = replace(found, error=result.type)
        else:
            found = replace(found, flagged=result.flagged, categories=result.categories)
        self._found.append(found)
        if found.flagged and self._stop and self._streams and self.cut is None:
            self._cut(found)
        if not self._open:
            self._settled.set()

    def skip(self, check: Check) -> None:
        """Record that a check is skipped, because a later check of the same text replaces it."""
        self._open.pop(check, None)

    def _cut(self, found: Found) -> None:
        named = ", ".join(found.categories[:_NAMED]) or "no category"
        message = f"cut by moderation.stop: the first {found.check.chars:,} characters are flagged ({named})"
        self.cut = CaptureError("content_policy", "moderation", message, 200)
        if self._task is not None:
            self._task.cancel()

    def ended(self) -> None:
        """Record that the call has ended: nothing can be cut now."""
        self._streams = False

    def last(self, call: Call) -> None:
        """Begin the checks at the end of the text of a call, unless the stream was cut because of an earlier one."""
        if self.over:
            return
        if self.cut is not None and call.status != "completed":
            self._open.clear()
            return
        try:
            if len(call.received.chunks):
                self._put(self._points.take(self._chunks))
            else:
                self._points.whole(call.received.choices)
            self._put(self._points.end(again=self._again))
        except BaseException as error:  # noqa: BLE001 - logged, or else raised again
            internal_error(error, self.request_id, INTERNAL_CUT, "check the text")

    async def settled(self) -> None:
        """Wait until each check has its result, or no more results are wanted."""
        if self._open and not self.over:
            self._settled.clear()
            await self._settled.wait()

    def drop(self) -> None:
        """Take no more results, for example because the request is sent again."""
        self.over = True
        self._settled.set()

    def column(self, call: Call) -> str | None:
        """The column's JSON. Checks without a result have the error `timeout`. None if it cannot be made."""
        self.over = True
        unknown = [Found(check, error="timeout") for check in self._open]
        try:
            return column([*self._found, *unknown], call.received.chunks, call.e2e_ms)
        except BaseException as error:  # noqa: BLE001 - logged, or else raised again
            internal_error(error, self.request_id, INTERNAL_CUT, "check the text")
            return None

    def text(self, check: Check) -> str:
        """The text that an endpoint checks."""
        return self._points.text(check)

    @property
    def points(self) -> Points:
        """Where the text is checked."""
        return self._points
