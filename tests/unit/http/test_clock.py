"""The times of reads, from stamps and clocks that the test sets."""

from __future__ import annotations

import math
import struct
from itertools import chain, repeat

import pytest

from deltatap.http.clock import ArrivalClock, arrival, as_read, stamp_of, wall_offset
from deltatap.model import CONTENT, FINISH, NO_CHOICE, REASONING, ROLE, USAGE, Chunks

# The wall clock is ahead of the monotonic clock by this much.
OFFSET = 1_764_000_000_000_000_123
TIMESPEC = struct.pack("@qq", 1_764_000_000, 7)


def stamp(seconds: float, offset: int = OFFSET) -> int:
    return round(seconds * 1e9) + offset


@pytest.mark.parametrize(
    ("ancillary", "expected"),
    [
        ([], 0),
        ([(1, 35, TIMESPEC)], 1_764_000_000_000_000_007),
        ([(1, 35, TIMESPEC[:8])], 0),
        ([(1, 29, TIMESPEC)], 0),
    ],
)
def test_stamp_of_the_control_message(ancillary: list[tuple[int, int, bytes]], expected: int) -> None:
    assert stamp_of(ancillary) == expected


@pytest.mark.parametrize(
    ("arrived", "now", "previous", "expected"),
    [
        (5.0, 5.05, 4.0, 5.0),
        (5.0, 5.0, 5.0, 5.0),
        # Measuring the offset is off by less than a microsecond.
        (5.000_01, 5.0, 4.0, 5.0),
        (3.999_99, 5.0, 4.0, 4.0),
        # After the read, or before the read before: the wall clock was set.
        (5.1, 5.0, 4.0, None),
        (3.9, 5.0, 4.0, None),
    ],
)
def test_arrival_is_never_after_the_read_nor_before_the_read_before(
    arrived: float, now: float, previous: float, expected: float | None
) -> None:
    assert arrival(stamp(arrived), now, OFFSET, previous) == pytest.approx(expected, abs=1e-9)


def test_arrival_without_a_stamp() -> None:
    assert arrival(0, 5.0, OFFSET, 4.0) is None


# Each read: its stamp in monotonic seconds (None: it has none), and when it happened.
@pytest.mark.parametrize(
    ("reads", "offsets", "times", "kernel"),
    [
        ([(1.0, 1.05), (1.2, 1.2)], [OFFSET] * 2, [1.0, 1.2], True),
        ([], [OFFSET] * 2, [], True),
        # No stamp at all, or none in one read.
        ([(None, 1.05), (None, 1.2)], [OFFSET] * 2, [1.05, 1.2], False),
        ([(1.0, 1.05), (None, 1.2), (1.3, 1.4)], [OFFSET] * 2, [1.0, 1.2, 1.4], False),
        # Set forward by 0.1 s: the stamp is after its read, however the clock reads later.
        ([(1.0, 1.05), (1.3, 1.25), (1.4, 1.3)], [OFFSET] * 9, [1.0, 1.25, 1.3], False),
        # Set back by 0.3 s: the stamp is before the one before.
        ([(1.0, 1.05), (0.9, 1.25), (1.0, 1.3)], [OFFSET, OFFSET - 300_000_000], [1.0, 1.25, 1.3], False),
        # The same stamps on a network that reordered packets: nobody could read them before.
        ([(1.0, 1.05), (0.9, 1.25), (1.2, 1.3)], [OFFSET] * 9, [1.0, 1.0, 1.2], True),
        # Set by little, during a long gap: seen when the response has ended.
        ([(1.0, 1.05), (3.9, 4.05)], [OFFSET, OFFSET - 100_000_000], [1.0, 3.9], False),
        ([(1.0, 1.05), (4.0, 4.05)], [OFFSET, OFFSET + 1_000_000], [1.0, 4.0], False),
        # Measured with an interruption.
        ([(1.0, 1.05), (4.0, 4.05)], [OFFSET, OFFSET + 100_000], [1.0, 4.0], True),
        # Before the request was written, which is at 0.5.
        ([(0.499_99, 0.51)], [OFFSET] * 2, [0.5], True),
    ],
)
def test_times_of_a_response(
    reads: list[tuple[float | None, float]], offsets: list[int], times: list[float], *, kernel: bool
) -> None:
    measured = chain(offsets, repeat(offsets[-1]))
    clock = ArrivalClock(lambda: next(measured))
    clock.start(0.5)
    found = [clock.at(0 if arrived is None else stamp(arrived), now) for arrived, now in reads]
    assert found == pytest.approx(times, abs=1e-8)
    assert found == sorted(found)
    assert clock.settled() is kernel
    assert clock.kernel is kernel


def test_offset_is_measured_without_an_interruption() -> None:
    mono = iter([0, 4_000_000, 4_000_100, 4_000_400, 9, 9])
    wall = iter([1_000_000, 5_000_200])
    assert wall_offset(lambda: next(mono), lambda: next(wall)) == 5_000_200 - 4_000_250
    assert abs(wall_offset() - wall_offset()) < 1_000_000


def test_chunks_move_to_the_times_of_their_reads() -> None:
    chunks, late_ms = Chunks(), [2.0, 50.0, 0.0]
    for ms, gap, kind, choice, read in [
        (10.0, math.nan, ROLE, 0, 0),
        (10.0, math.nan, REASONING, 0, 0),
        (30.0, 20.0, CONTENT, 0, 1),
        (30.0, math.nan, CONTENT, 1, 1),
        (90.0, 60.0, CONTENT, 0, 2),
        (90.0, 60.0, CONTENT, 1, 2),
        (90.0, 0.0, FINISH, 0, 2),
        (90.0, math.nan, USAGE, NO_CHOICE, 2),
    ]:
        chunks.append(ms, gap, "", kind, choice, 0, read)
    as_read(chunks, late_ms)
    assert list(chunks.ms) == [12.0, 12.0, 80.0, 80.0, 90.0, 90.0, 90.0, 90.0]
    nan = pytest.approx(math.nan, nan_ok=True)
    assert list(chunks.gap_ms) == [nan, nan, 68.0, nan, 10.0, 10.0, 0.0, nan]
