"""The accuracy of measured latencies, and how busy the streams were. Pure functions from lists to figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Measured:
    """A client's measurements of one stream.

    Attributes:
        key: the request's hash, which the simulator also records.
        ms: the arrival time of each content chunk in ms since the request was written.
        lag_ms: the longest delay of the event loop during the stream.
        read: the number of the socket read that brought each chunk.
    """

    key: str
    ms: Sequence[float]
    lag_ms: float
    read: Sequence[int]


def errors(measured: Sequence[Measured], calls: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """Compare measured times with the simulator's times of each piece, in ms. Count extra and missing gaps.

    Only chunks that arrived alone in a read count, because if a read brings several, only the time of the last is
    exact. The simulator does not know when the request was written, so its TTFT starts when the request arrives.
    """
    first, gaps, lags = [], [], []
    missing = chunks = merged = 0
    for stream in measured:
        call = calls[stream.key]
        sent = np.array([at for at, _ in call["chunks"]]) * 1e3
        ours = np.array(stream.ms)
        missing += abs(len(sent) - len(ours))
        if not len(sent) or len(sent) != len(ours):
            continue
        _, place, count = np.unique(stream.read, return_inverse=True, return_counts=True)
        own = count[place] == 1
        chunks, merged = chunks + len(own), merged + int(len(own) - own.sum())
        if own[0]:
            first.append(abs(ours[0] - (sent[0] - call["started"] * 1e3)))
        gaps.append(np.abs(np.diff(ours) - np.diff(sent))[own[1:] & own[:-1]])
        lags.append(stream.lag_ms)
    every = [ms for off in gaps for ms in off]
    return {
        "TTFT error p50": _percentile(first, 50),
        "TTFT error p99": _percentile(first, 99),
        "gap error p50": _percentile(every, 50),
        "gap error p99": _percentile(every, 99),
        "chunks in shared reads": 100 * merged / max(1, chunks),
        "extra or missing gaps": float(missing),
        "loop lag p99": _percentile(lags, 99),
    }


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else math.nan


def full(intervals: Sequence[tuple[float, float]], slots: int) -> tuple[float, float]:
    """The span from when all slots are open (if they never are: from the first start) to the last start."""
    starts = sorted(start for start, _ in intervals)
    ends = sorted(end for _, end in intervals)
    open_, at_end = 0, 0
    for start in starts:
        while at_end < len(ends) and ends[at_end] <= start:
            open_ -= 1
            at_end += 1
        open_ += 1
        if open_ >= slots:
            return start, starts[-1]
    return starts[0], starts[-1]


def busy(intervals: Sequence[tuple[float, float]], slots: int) -> float:
    """The share of open slots within the span that :func:`full` returns."""
    first, last = full(intervals, slots)
    if last <= first:
        return 1.0
    inside = sum(max(0.0, min(end, last) - max(start, first)) for start, end in intervals)
    return inside / (last - first) / slots
