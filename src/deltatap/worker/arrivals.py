"""The schedule of an open-loop run (``capture.arrivals``): when each of its calls is due. Pure: reads no clock.

Every worker computes the same schedule from the seed and takes the calls of its own part from it. So all workers
together form one arrival process, for any number of workers. ``schedule.py`` starts the calls, ``driver/control.py``
decides when the schedule begins.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from deltatap.config import Arrivals

    Numbers = np.ndarray[Any, np.dtype[np.int64]]
    Seconds = np.ndarray[Any, np.dtype[np.float64]]

# Times are drawn in blocks, because a run can have more calls than a worker should hold.
_BLOCK = 1 << 16


def due_times(arrivals: Arrivals, calls: Sequence[int], part: int) -> Seconds:
    """When the calls of a part are due, in seconds since the schedule began.

    Args:
        arrivals: the process, its rate for the whole run, and the seed.
        calls: how many calls each part of the plan has.
        part: the worker's part.
    """
    numbers = numbers_of(calls, part)
    if arrivals.process == "constant":
        return numbers / arrivals.per_second
    random = np.random.default_rng(arrivals.seed)
    due, at = np.empty(len(numbers)), 0.0
    for start in range(0, sum(calls), _BLOCK):
        times = at + np.cumsum(random.exponential(1 / arrivals.per_second, _BLOCK))
        own = slice(*np.searchsorted(numbers, (start, start + _BLOCK)))
        due[own] = times[numbers[own] - start]
        at = times[-1]
    return due


def numbers_of(calls: Sequence[int], part: int) -> Numbers:
    """The places of a part's calls in the order of the whole run.

    Each part's calls are spread evenly over the run: call j of n is at the fraction (j + 1/2) / n. So all parts end
    together, and the rate holds until then. Of calls at the same fraction, those of the lower part come first.
    """
    own = calls[part]
    ends = 2 * np.arange(own, dtype=np.int64) + 1
    numbers = np.arange(own, dtype=np.int64)
    for other, count in enumerate(calls):
        if other != part and own:
            # The odd numbers q with q / count below ends / own, in integers.
            below = (ends * count - (other > part)) // own
            numbers += (below + 1) // 2
    return numbers


def call_numbers(rows: Iterable[tuple[object, str]], *, reuse: bool) -> Iterator[int | None]:
    """The number of each row's call in its part; None for a bad row, which makes no call.

    Args:
        rows: the problem and the request_hash of each row of a part, in order.
        reuse: whether adjacent rows with the same hash share one call.
    """
    number, before = -1, None
    for problem, request_hash in rows:
        number += problem is None and (not reuse or request_hash != before)
        before = request_hash if problem is None else None
        yield number if problem is None else None


def calls_of(part: Path | IO[bytes], *, reuse: bool) -> int:
    """How many calls a part has."""
    batches = pq.ParquetFile(part).iter_batches(columns=["error", "request_hash"])
    rows = (
        pair
        for batch in batches
        for pair in zip(batch["error"].to_pylist(), batch["request_hash"].to_pylist(), strict=True)
    )
    return max((number for number in call_numbers(rows, reuse=reuse) if number is not None), default=-1) + 1
