from __future__ import annotations

import numpy as np
import pytest

from deltatap.analysis.compare import Counted, difference, doubts


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
