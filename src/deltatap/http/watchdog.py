"""The timeouts of one call: connect, first byte, idle and total.

Knows how long opening the connection took, when the request was written and when the last bytes arrived. Cancels the
call's task when a wait is too long; ``outcomes.py`` turns that into a timeout error.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from deltatap.config import Timeouts
    from deltatap.model import ConnectionTimes, Mode

# The watchdog of the call that the current task makes.
current: ContextVar[Watchdog] = ContextVar("current")


class Watchdog:
    """Cancels the current task when a call waits too long. Times are monotonic seconds.

    It re-arms its timer only when the call reaches the next stage or the timer fires, so a read costs one assignment.

    Attributes:
        connection: the times of opening the connection and writing the request; None until the connection is open.
        written: when the request was written; None until then.
        last_read: when the last bytes of the response arrived; None until then.
        fired: the timeout that ended the call: connect, first_byte, idle or total; None when none did.

    Args:
        timeouts: how long each wait may take.
        started: when the call started.
        mode: a whole answer's first byte arrives when all of it is generated, so it may take as long as the call.
    """

    def __init__(self, timeouts: Timeouts, started: float, mode: Mode) -> None:
        self.connection: ConnectionTimes | None = None
        self.written: float | None = None
        self.last_read: float | None = None
        self.fired: str | None = None
        self._timeouts, self._started = timeouts, started
        self._first_byte_s = timeouts.first_byte_s if mode == "stream" else timeouts.total_s
        self._sending: float | None = None
        self._handle: asyncio.Handle | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a watchdog needs a task that it can cancel")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._arm()
        return self

    def __exit__(self, *exc: object) -> None:
        self._disarm()

    def sending(self, connection: ConnectionTimes, at: float) -> None:
        """Record that the connection is open, and when the request's first byte is written."""
        self.connection, self._sending = connection, at

    def uploading(self) -> None:
        """Record that the request was not written at once: the server is slow to read it."""
        self._arm()

    def wrote(self, at: float) -> None:
        """Record when the request was written: the send buffer had taken its last byte."""
        self.written = at
        if self.connection is not None and self._sending is not None:
            self.connection = replace(self.connection, upload_ms=(at - self._sending) * 1e3)
        self._arm()

    def first_read(self, at: float) -> None:
        """Record when the first bytes of the body arrived. For later reads, set `last_read`."""
        self.last_read = at
        self._arm()

    def due(self) -> tuple[float, str]:
        """When the current wait becomes too long, and the name of its timeout."""
        timeouts = self._timeouts
        if self.last_read is not None:
            stage = (self.last_read + timeouts.idle_s, "idle")
        elif (since := self.written or self._sending) is not None:  # a long upload is not a slow connection
            stage = (since + self._first_byte_s, "first_byte")
        else:
            stage = (self._started + timeouts.connect_s, "connect")
        return min(stage, (self._started + timeouts.total_s, "total"))

    def _arm(self) -> None:
        self._disarm()
        when, name = self.due()
        wait = when - time.perf_counter()
        if wait <= 0:
            self.fired = name
            self._task.cancel()
        else:
            self._handle = self._loop.call_later(wait, self._arm)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
