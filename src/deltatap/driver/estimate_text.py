"""Prints the estimate of ``--dry-run``."""

from __future__ import annotations

from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from deltatap.config import Arrivals
    from deltatap.driver.estimate import Estimate

# The prices of this tier are for files of requests, which are answered within a day.
_BATCH = "batch"


def show(console: Console, found: Sequence[Estimate], schedule: Arrivals | None = None) -> None:
    """Print an estimate, and how long the run takes if its requests have a schedule."""
    if not any(one.requests or one.bad for one in found):
        console.print("nothing is owed: every request has a final row; no call was made", highlight=False)
        return
    console.print("what a run would capture (no call was made)", style="bold", highlight=False, soft_wrap=True)
    for model, estimates in groupby(found, lambda one: one.model):
        listed = list(estimates)
        _show_model(console, model, [one for one in listed if one.called])
        for one in listed:
            if not one.called:
                console.print(f"{_mode(one)}: {_saved(one)}", markup=False, highlight=False, soft_wrap=True)
    called = [one for one in found if one.called and one.requests]
    if len(called) > 1:
        console.print(_total(called), highlight=False, soft_wrap=True)
    if any(one.most_output is None for one in called):
        budgets = (
            "budget.tokens" if any(one.least_usd is None for one in called) else "budget.cost_usd or budget.tokens"
        )
        console.print(f"to bound the run, set {budgets}", highlight=False, soft_wrap=True)
    if schedule is not None:
        calls = sum(one.requests for one in found if one.called)
        console.print(schedule.of(calls), highlight=False, soft_wrap=True)


def _show_model(console: Console, model: str, found: Sequence[Estimate]) -> None:
    """Print the estimate for one model in a table that fits into 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("mode")
    for name in ("requests", "bad", "input", "output", "cost"):
        table.add_column(name, justify="right")
    for one in found:
        outputs = _range(f"{one.least_output:,}", None if one.most_output is None else f"{one.most_output:,}")
        table.add_row(_mode(one), f"{one.requests:,}", f"{one.bad:,}", f"{one.input_tokens:,}", outputs, _cost(one))
    name = model or "no model"
    console.print(f"\n{name} (input and output in tokens)", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    for one in found:
        if one.requests:
            console.print(f"{_mode(one)}: {_why(one)}", markup=False, highlight=False, soft_wrap=True)
        for tier, least, most in one.tiers if one.requests else ():
            cost = _range(_usd(least), None if most is None else _usd(most))
            how = f"with service_tier {tier}" if tier != _BATCH else "through a batch API, which deltatap does not use"
            text = f"{_mode(one)}: {cost} {how}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def _total(called: Sequence[Estimate]) -> str:
    priced = [(one.least_usd, one.most_usd) for one in called if one.least_usd is not None]
    text = f"\ntotal: {sum(one.requests for one in called):,} requests"
    if priced:
        most = (
            None if any(one is None for _, one in priced) else sum((one or Decimal(0) for _, one in priced), Decimal(0))
        )
        least = sum((one for one, _ in priced), Decimal(0))
        text += f", {_range(_usd(least), None if most is None else _usd(most))}"
        text += ", without the models that have no price" if len(priced) < len(called) else ""
    return text


def _mode(one: Estimate) -> str:
    return f"{one.mode}, {one.tier}" if one.tier else one.mode


def _saved(one: Estimate) -> str:
    cost = "" if one.least_usd is None else f", and {_cost(one)}"
    calls = "1 call" if one.requests == 1 else f"{one.requests:,} calls"
    return f"capture.reuse {'saves' if one.reuses else 'would save'} {calls}{cost}"


def _cost(one: Estimate) -> str:
    if one.least_usd is None:
        return "no price"
    return _range(_usd(one.least_usd), None if one.most_usd is None else _usd(one.most_usd))


def _why(one: Estimate) -> str:
    if one.answers:
        most = ", at most the limit of each request" if one.limited else ""
        if one.answers == 1:
            return f"output as long as the only earlier answer{most}"
        return f"output from the 10th to the 90th percentile of {one.answers:,} earlier answers{most}"
    none = "this endpoint has no earlier answers from this model"
    if one.elsewhere:
        none += f" (only endpoints with another endpoint.name do: {', '.join(one.elsewhere)})"
    if one.most_output is not None:
        return f"{none}: output from one token to the limit of each request"
    return f"{none}, and no request limits its output"


def _range(least: str, most: str | None) -> str:
    return least if least == most else f"{least} to {most or 'unbounded'}"


def _usd(amount: Decimal) -> str:
    """An amount with four decimal places, or with more if it would have fewer than two significant digits."""
    places = max(4, 1 - amount.adjusted()) if amount else 4
    return f"${amount:,.{places}f}"
