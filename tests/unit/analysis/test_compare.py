from __future__ import annotations

import numpy as np
import pytest

from deltatap.analysis.compare import Counted, difference, doubt, doubts


def test_a_sample_does_not_differ_from_itself() -> None:
    values = np.random.default_rng(1).normal(100, 10, 200)
    found = difference(values, values, 0.5)
    assert found.value == 0
    assert not found.clear


def test_the_interval_of_a_shift_contains_the_shift() -> None:
    values = np.random.default_rng(1).normal(100, 10, 500)
    found = difference(values, np.random.default_rng(2).normal(130, 10, 500), 0.5)
    assert found.clear
    assert found.low is not None
    assert found.high is not None
    assert found.low < 30 < found.high
    assert found.high - found.low < 8


def test_the_difference_of_single_values_has_no_interval() -> None:
    found = difference(np.array([1.0]), np.array([2.0, 3.0]), 0.95)
    assert (found.low, found.high, found.clear) == (None, None, False)
    assert found.value == pytest.approx(1.95)


def test_about_95_percent_of_equal_samples_do_not_differ_clearly() -> None:
    generator = np.random.default_rng(5)
    clear = [difference(generator.exponential(1, 60), generator.exponential(1, 60), 0.5).clear for _ in range(1_000)]
    assert 0.01 <= np.mean(clear) <= 0.07


def test_a_run_is_doubtful_if_its_machine_was_busy_long_enough_to_change_a_p95() -> None:
    counts = {
        "stream": [Counted(100, {}, busy=5), Counted(100, {"failed": 20}, busy=6)],
        "complete": [Counted(0, {}), Counted(1, {}, busy=1)],
    }
    found = doubts(("night1", "night2"), counts)
    assert [each.partition(": ")[0] for each in found] == ["stream, night2", "complete, night2"]
    assert "busy during 6 of 100 rows" in found[0]


def test_one_warning_names_the_runs_that_are_doubtful() -> None:
    names = {f"r{at}": f"night={at}" for at in range(8)}
    busy = {("stream", run_id): Counted(100, {}, busy=6) for run_id in names}
    why = "busy during more than 5% of the rows, so a difference can come from this machine instead of the server"
    few = busy | {("stream", f"r{at}"): Counted(100, {}, busy=5) for at in range(2, 8)}
    assert doubt(names, few) == f"night=0, night=1: the machine that captured was {why}"
    assert doubt(names, busy).startswith("night=0, night=1, night=2, night=3, night=4 and 3 more: ")
    assert doubt(names, {}) == doubt({}, busy) == ""
    (said,) = doubts(("a",), {"stream": [busy["stream", "r0"]]})
    assert (
        said.partition(" the machine ")[2].partition(" busy ")[0]
        == doubt(names, busy).partition(" the machine ")[2].partition(" busy ")[0]
    )
    assert said.rpartition(", so ")[2] == doubt(names, busy).rpartition(", so ")[2], "the same words"
