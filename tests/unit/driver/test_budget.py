"""A budget that several runs share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deltatap.config import Budget
from deltatap.driver.budget import left, spent, used_up

AT = datetime(2026, 12, 1, 8, tzinfo=UTC)


def run(seconds: float, **values: Any) -> dict[str, Any]:
    fields = dict.fromkeys(("requests", "input_tokens", "output_tokens", "cost_usd"))
    return {**fields, "started_at": AT, "heartbeat_at": AT, "finished_at": AT + timedelta(seconds=seconds), **values}


def test_the_rest_of_a_budget_after_two_runs() -> None:
    runs = [run(2, requests=3, input_tokens=10, output_tokens=20, cost_usd=0.5), run(5, requests=1)]
    used = spent(runs)
    assert used == {"requests": 4, "tokens": 30, "cost_usd": 0.5, "runtime_s": 7}
    budget = Budget(requests=10, tokens=100, cost_usd=2.0)
    assert left(budget, used) == Budget(requests=6, tokens=70, cost_usd=1.5)
    assert left(Budget(), used) == Budget()
    assert used_up(budget, used) is None


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ({"requests": 4}, "budget.requests: 4 is used up"),
        ({"tokens": 29}, "budget.tokens: 29 is used up"),
        ({"cost_usd": 0.5}, "budget.cost_usd: 0.5 is used up"),
        ({"runtime_s": 6.5}, "budget.runtime_s: 6.5 is used up"),
    ],
)
def test_a_used_up_budget_is_named(budget: dict[str, Any], text: str) -> None:
    used = spent([run(7, requests=4, input_tokens=10, output_tokens=20, cost_usd=0.5)])
    assert used_up(Budget(**budget), used) == text
