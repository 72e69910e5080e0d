"""The arrival time of a read: the kernel's receive time stamp, on the process' monotonic clock.

The kernel stamps a packet when it arrives, so an event loop that reads it late does not change the time. A stamp is
wall-clock time. The offset between the two clocks changes only if somebody sets the wall clock, because NTP slews both
by the same amount. So the offset is measured when a response begins and when it ends. If the offset has changed, or if
a stamp is missing or impossible, the response's times are those of the reads (``clock`` is then `process`).
"""

from __future__ import annotations

import math
import struct
import time
from typing import TYPE_CHECKING

from deltatap.model import KINDS, OUTPUT_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deltatap.model import Chunks

    # The control messages that recvmsg returns with the data: level, type and bytes of each.
    Ancillary = Sequence[tuple[int, int, bytes]]

# SO_TIMESTAMPNS of Linux (asm-generic/socket.h), which Python does not name. The control message has the same number.
TIMESTAMPNS = 35
# The room for the control message: CMSG_SPACE of a struct timespec.
TIMESTAMP_SPACE = 32

_TIMESPEC = struct.Struct("@qq")
_timespec = _TIMESPEC.unpack
_TOLERANCE_NS = 200_000
_TOLERANCE_S = _TOLERANCE_NS / 1e9
# Two readings of clocks are this far apart if nothing interrupts them.
_TOGETHER_NS = 500
_MEASUREMENTS = 20
_OUTPUT = frozenset(KINDS.index(kind) for kind in OUTPUT_KINDS)


def stamp_of(ancillary: Ancillary) -> int:
    """The kernel's time stamp in ns since the epoch; 0 if there is none."""
    if not ancillary:
        return 0
    _, kind, data = ancillary[0]
    if kind != TIMESTAMPNS or len(data) != _TIMESPEC.size:
        return 0
    seconds, nanoseconds = _timespec(data)
    return int(seconds * 1_000_000_000 + nanoseconds)


def wall_offset(mono: Callable[[], int] = time.perf_counter_ns, wall: Callable[[], int] = time.time_ns) -> int:
    """The wall clock minus the monotonic clock, in ns.

    Args:
        mono: the monotonic clock.
        wall: the wall clock.
    """
    best, found = -1, 0
    for _ in range(_MEASUREMENTS):
        before, at, after = mono(), wall(), mono()
        if best < 0 or after - before < best:
            best, found = after - before, at - (before + after) // 2
        if best < _TOGETHER_NS:
            break
    return found


def arrival(stamp: int, now: float, offset: int, previous: float) -> float | None:
    """The monotonic time of a stamp, in seconds; None if the stamp cannot be right.

    Args:
        stamp: ns since the epoch; 0 if the kernel gave none.
        now: monotonic seconds, taken after the read.
        offset: of :func:`wall_offset`.
        previous: the time of the previous read, or of the request; no read arrives earlier.
    """
    at = (stamp - offset) * 1e-9
    if previous <= at <= now:
        return at
    if not stamp or at > now + _TOLERANCE_S or at < previous - _TOLERANCE_S:
        return None
    return now if at > now else previous


class ArrivalClock:
    """Gives each read of one response its time.

    Attributes:
        kernel: whether the times so far are the kernel's.
    """

    __slots__ = ("_measure", "_offset", "_previous", "kernel")

    def __init__(self, measure: Callable[[], int] = wall_offset) -> None:
        """Measure the distance between the clocks.

        Args:
            measure: :func:`wall_offset`.
        """
        self.kernel = True
        self._measure = measure
        self._offset = measure()
        self._previous = 0.0

    def start(self, at: float) -> None:
        """Record when writing the request began, and later when it ended.

        No read after this call arrived before that time.
        """
        self._previous = at

    def at(self, stamp: int, now: float) -> float:
        """When a read arrived, in monotonic seconds: never after `now`, never before the previous read.

        Args:
            stamp: of :func:`stamp_of`.
            now: monotonic seconds, taken after the read.
        """
        if not self.kernel:
            return now
        found = (stamp - self._offset) * 1e-9
        if not self._previous <= found <= now:
            found = self._corrected(stamp, now)
        self._previous = found
        return found

    def _corrected(self, stamp: int, now: float) -> float:
        """The time of a read whose timestamp is implausible."""
        at = arrival(stamp, now, self._offset, self._previous)
        if at is not None:
            return at
        if stamp and (stamp - self._offset) * 1e-9 < self._previous and self.settled():
            # Packets that overtook a lost packet arrived earlier, but nobody could read them.
            return self._previous
        self.kernel = False
        return now

    def settled(self) -> bool:
        """Whether the times are the kernel's, and the wall clock was not set meanwhile. Call it at the end."""
        self.kernel = self.kernel and abs(self._measure() - self._offset) <= _TOLERANCE_NS
        return self.kernel


def as_read(chunks: Chunks, late_ms: Sequence[float]) -> None:
    """Move the times of chunks from their arrival to their reads.

    Args:
        chunks: of one answer.
        late_ms: how long after its arrival each read happened, by the number of the read.
    """
    last_output: dict[int, float] = {}
    for at, (read, kind, choice) in enumerate(zip(chunks.read, chunks.kind, chunks.choice, strict=True)):
        ms = chunks.ms[at] = chunks.ms[at] + late_ms[read]
        if not math.isnan(chunks.gap_ms[at]):
            chunks.gap_ms[at] = max(0.0, ms - last_output[choice])
        if kind in _OUTPUT:
            last_output[choice] = ms
