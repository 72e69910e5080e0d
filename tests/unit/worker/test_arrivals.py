"""The schedule of an open loop: one process, however many workers take part in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatap.config import Arrivals
from deltatap.worker import arrivals
from deltatap.worker.arrivals import call_numbers, calls_of, due_times, numbers_of

if TYPE_CHECKING:
    from pathlib import Path

# Critical value of the Kolmogorov-Smirnov statistic times sqrt(n) at the level 1 % (Smirnov's asymptotic distribution).
KS_1_PERCENT = 1.628
PARTS = ([4000], [2000, 2000], [1000, 1000, 1000, 1000], [1900, 100, 1500, 500], [0, 4000])


def poisson(rate: float = 5.0, seed: int = 0) -> Arrivals:
    return Arrivals(per_second=rate, seed=seed)


def merged(schedule: Arrivals, calls: list[int]) -> np.ndarray[Any, Any]:
    return np.sort(np.concatenate([due_times(schedule, calls, part) for part in range(len(calls))]))


def distance(sample: np.ndarray[Any, Any], cdf: Any) -> float:
    """The Kolmogorov-Smirnov distance from a distribution, times sqrt(n)."""
    n = len(sample)
    at = cdf(np.sort(sample))
    steps = np.arange(n + 1) / n
    return float(np.sqrt(n) * max((steps[1:] - at).max(), (at - steps[:-1]).max()))


@pytest.mark.parametrize("calls", PARTS, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_merged_times_of_all_workers_are_a_poisson_process(calls: list[int], seed: int) -> None:
    times = merged(poisson(seed=seed), calls)
    gaps = np.diff(times, prepend=0.0)
    assert distance(gaps, lambda gap: 1 - np.exp(-5 * gap)) < KS_1_PERCENT
    # Independent gaps: the correlation with the gap before is within its 1 % bound.
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 2.58 / np.sqrt(len(gaps))
    # Counts in intervals of 2 s have the variance of their mean (an index of dispersion of 1).
    counts = np.bincount((times // 2).astype(int))[:-1]
    dispersion = counts.var(ddof=1) / counts.mean()
    assert abs(dispersion - 1) < 2.58 * np.sqrt(2 / len(counts))


def test_the_statistics_see_processes_that_are_not_poisson() -> None:
    regular = np.full(4000, 0.2)
    assert distance(regular, lambda gap: 1 - np.exp(-5 * gap)) > 10 * KS_1_PERCENT
    slower = np.diff(merged(poisson(4.5), [4000]), prepend=0.0)
    assert distance(slower, lambda gap: 1 - np.exp(-5 * gap)) > KS_1_PERCENT


@pytest.mark.parametrize("process", ["poisson", "constant"])
def test_the_run_s_times_do_not_depend_on_the_number_of_workers(process: Any) -> None:
    schedule = Arrivals(per_second=5, process=process, seed=3)
    alone = merged(schedule, [4000])
    for calls in PARTS:
        assert np.array_equal(merged(schedule, calls), alone)


def test_a_constant_process_is_interleaved() -> None:
    schedule = Arrivals(per_second=4, process="constant")
    assert due_times(schedule, [3, 3], 0).tolist() == [0.0, 0.5, 1.0]
    assert due_times(schedule, [3, 3], 1).tolist() == [0.25, 0.75, 1.25]


def test_the_rate_holds_until_the_end_even_if_the_parts_differ() -> None:
    calls = [1900, 100, 1500, 500]
    for part in range(4):
        times = due_times(Arrivals(per_second=5, process="constant"), calls, part)
        assert times[0] < 5, "every worker takes part from the start"
        assert times[-1] > 795, "and until the end, after 800 s"


def test_the_seed_decides() -> None:
    assert np.array_equal(due_times(poisson(), [9], 0), due_times(poisson(), [9], 0))
    assert not np.array_equal(due_times(poisson(), [9], 0), due_times(poisson(seed=1), [9], 0))


def test_blocks_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = merged(poisson(), [700, 300])
    monkeypatch.setattr(arrivals, "_BLOCK", 64)
    assert np.allclose(merged(poisson(), [700, 300]), whole)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_every_place_belongs_to_exactly_one_call(calls: list[int]) -> None:
    found = [numbers_of(calls, part) for part in range(len(calls))]
    assert sorted(np.concatenate(found).tolist()) == list(range(sum(calls)))
    assert all((np.diff(numbers) > 0).all() for numbers in found)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_calls_of_a_part_are_spread_evenly(calls: list[int]) -> None:
    total = sum(calls)
    for part, count in enumerate(calls):
        ideal = (np.arange(count) + 0.5) / count * total - 0.5
        assert (np.abs(numbers_of(calls, part) - ideal) <= len(calls)).all()


def test_bad_rows_and_reused_answers_make_no_call() -> None:
    rows = [(None, "a"), ("no prompt", "x"), (None, "b"), (None, "b"), (None, "a")]
    assert list(call_numbers(rows, reuse=False)) == [0, None, 1, 2, 3]
    assert list(call_numbers(rows, reuse=True)) == [0, None, 1, 1, 2]


def test_the_calls_of_a_part_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({"error": [None, None, "bad"], "request_hash": ["a", "a", "b"]}), path)
    assert (calls_of(path, reuse=False), calls_of(path, reuse=True)) == (2, 1)
    pq.write_table(pa.table({"error": pa.array([], pa.string()), "request_hash": pa.array([], pa.string())}), path)
    assert calls_of(path, reuse=False) == 0


def test_a_line_describes_the_schedule() -> None:
    assert poisson().of(200) == "arrivals: poisson, 5 per second (seed 0), about 40 s for 200 requests"
    constant = Arrivals(per_second=0.5, process="constant")
    assert constant.of(1) == "arrivals: constant, 0.5 per second, about 2 s for 1 request"
