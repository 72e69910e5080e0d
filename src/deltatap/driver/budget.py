"""How much of a budget several runs have used together, and how much is left for the next run. Pure.

``pacer.py`` keeps a single run within its budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deltatap.config import Budget

_NAMES = ("requests", "tokens", "cost_usd", "runtime_s")


def spent(runs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """How much the runs have used of each budget, by its name; `runs` are their rows."""
    used = dict.fromkeys(_NAMES, 0.0)
    for row in runs:
        used["requests"] += row["requests"] or 0
        used["tokens"] += (row["input_tokens"] or 0) + (row["output_tokens"] or 0)
        used["cost_usd"] += row["cost_usd"] or 0
        used["runtime_s"] += ((row["finished_at"] or row["heartbeat_at"]) - row["started_at"]).total_seconds()
    return used


def used_up(budget: Budget, used: Mapping[str, float]) -> str | None:
    """The budget that is used up, as text for the user; None if every budget has something left."""
    for name in _NAMES:
        amount = getattr(budget, name)
        if amount is not None and used[name] >= amount:
            return f"budget.{name}: {amount:,.10g} is used up"
    return None


def left(budget: Budget, used: Mapping[str, float]) -> Budget:
    """The budget of the next run."""
    update = {
        name: amount - (round(used[name]) if isinstance(amount, int) else used[name])
        for name in _NAMES
        if (amount := getattr(budget, name)) is not None
    }
    return budget.model_copy(update=update)
