"""The bytes that wait to be written to one socket, in order, and whether there are too many of them.

A slow reader must not fill the memory: the other side is not read while an outbox is full. ``stream_socket.py`` writes
one piece at a time.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

# Full above the first number of bytes, until fewer bytes than the second number wait.
_FULL_BYTES, _ROOM_BYTES = 256 * 1024, 64 * 1024


class Writable(Protocol):
    """See :class:`~deltatap.http.stream_socket.StreamSocket`."""

    @property
    def closed(self) -> bool:
        """Whether it is closed."""

    def write(self, data: bytes, taken: Callable[[float], None]) -> None:
        """Send some data; `taken` is called with the monotonic time at which the send buffer accepted all of it."""

    def abort(self) -> None:
        """Close now."""


class Outbox:
    """Writes pieces in order.

    Args:
        stream: the socket.
        full_or_not: called when the outbox becomes full, and when it has room again.

    Attributes:
        full: whether the source of the data has to wait.
    """

    __slots__ = ("_in_flight", "_queue", "_stream", "_taken_at", "_then", "_waiting", "_writing", "full", "full_or_not")

    def __init__(self, stream: Writable, full_or_not: Callable[[], None]) -> None:
        self._stream = stream
        self._queue: deque[bytes] = deque()
        self._waiting = 0
        self._in_flight = 0
        self._writing = False
        self._taken_at = 0.0
        self._then: list[Callable[[float], None]] = []
        self.full = False
        self.full_or_not = full_or_not

    def write(self, data: bytes) -> None:
        """Write a piece, now or when there is room. After the socket has closed, this does nothing."""
        if self._stream.closed or not data:
            return
        self._queue.append(data)
        self._waiting += len(data)
        if not self._in_flight:
            self._write()
        if self._waiting > _FULL_BYTES and not self.full:
            self.full = True
            self.full_or_not()

    def then(self, callback: Callable[[float], None]) -> None:
        """Call back, with the monotonic time, when the send buffer has accepted everything that was written so far."""
        if self._waiting:
            self._then.append(callback)
        else:
            callback(self._taken_at or time.perf_counter())

    def _write(self) -> None:
        self._writing = True
        try:
            while self._queue and not self._in_flight and not self._stream.closed:
                data = b"".join(self._queue)
                self._queue.clear()
                self._in_flight = len(data)
                self._stream.write(data, self._taken)
        finally:
            self._writing = False

    def _taken(self, at: float) -> None:
        self._taken_at = at
        self._waiting -= self._in_flight
        self._in_flight = 0
        if self._queue and not self._writing:
            self._write()
        if self.full and self._waiting < _ROOM_BYTES:
            self.full = False
            self.full_or_not()
        if not self._waiting and self._then:
            callbacks, self._then = self._then, []
            for callback in callbacks:
                callback(at)
