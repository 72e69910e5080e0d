from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatap.worker.lag import LagRecord, LagWatch


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0, 1))), st.floats(0, 20))
def test_the_longest_delay_since_a_time(steps: list[tuple[float, float]], since: float) -> None:
    record, now, all_of_them = LagRecord(), 0.0, []
    for step, lag in steps:
        now += step
        record.add(now, lag)
        all_of_them.append((now, lag))
    assert record.worst(since) == max((lag for at, lag in all_of_them if at >= since), default=0.0)


def test_a_record_keeps_only_delays_that_can_be_the_longest() -> None:
    record = LagRecord()
    for at in range(1000):
        record.add(at, at % 10)
    assert len(record._at) == 1
    assert all(before > after for before, after in pairwise(record._lag))


def test_a_late_timer_counts_before_and_after_it_fires() -> None:
    now = 100.0
    seen: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        if seen:
            raise asyncio.CancelledError
        assert seconds == 0.01
        now += 0.75
        seen.append(watch.worst_ms(since=0.0))

    watch = LagWatch(lambda: now, sleep)
    assert watch.worst_ms(since=0.0) == 0
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watch.run())
    assert seen == [pytest.approx(740)], "due at 100.01, not fired by 100.75"
    assert watch.worst_ms(since=100.75) == pytest.approx(740)
    assert watch.worst_ms(since=100.76) == 0
