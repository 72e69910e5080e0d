"""Prints the differences between captures and a bill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from deltatap.reconcile.charges import COUNTS
from deltatap.terminal.console import line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from rich.console import Console

    from deltatap.reconcile.charges import Charge, Difference, Reconciled

_NAMES = {"input_tokens": "input", "cached_tokens": "cached", "output_tokens": "output"}


def show_reconciled(console: Console, found: Reconciled, what: str) -> None:
    """Print the totals of each model on both sides, and the differences below them."""
    table = Table(box=None, padding=(0, 1, 0, 0), title=None)
    table.add_column("model")
    table.add_column("")
    for name in ("calls", "input", "cached", "output", "USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in sorted(found.billed.keys() | found.captured.keys()):
        for side, charges in (("captured", found.captured), ("billed", found.billed)):
            table.add_row(model if side == "captured" else "", side, *_cells(charges.get(model)))
    line(console, f"{what}: captures and bill", style="bold")
    console.print(table)
    for each in found.differences:
        line(console, _sentence(each), style="yellow")


def _cells(charge: Charge | None) -> list[str]:
    if charge is None:
        return ["", "", "", "", "nothing"]
    counts = (getattr(charge, name) for name in COUNTS)
    return [*("" if count is None else f"{count:,}" for count in counts), _amount(charge.usd)]


def _sentence(found: Difference) -> str:
    """A difference as text: how much more (+) or less (-) the bill has."""
    calls = "" if found.calls is None else f": {found.calls:,} {'call' if found.calls == 1 else 'calls'}"
    parts = [f"{found.counts[name]:+,} {_NAMES[name]} tokens" for name in _NAMES if name in found.counts]
    if found.usd:
        parts.append(f"{'+' if found.usd > 0 else '-'}${_amount(abs(found.usd))}")
    bill = f", the bill has {', '.join(parts)}" if parts else ""
    ids = f" ({', '.join(found.ids)}{', …' if (found.calls or 0) > len(found.ids) else ''})" if found.ids else ""
    return f"{found.model}: {found.reason}{calls}{bill}{ids}"


def _amount(usd: Decimal | None) -> str:
    return "" if usd is None else f"{usd.normalize():,f}" if usd else "0"


def reconciled_json(found: Reconciled, above: Sequence[str]) -> dict[str, Any]:
    """The result for programs; amounts are text, so that they stay exact."""
    sides = {"captured": found.captured, "billed": found.billed}
    return {
        **{
            side: {
                model: {**{name: getattr(charge, name) for name in COUNTS}, "usd": _text(charge.usd)}
                for model, charge in charges.items()
            }
            for side, charges in sides.items()
        },
        "differences": [
            {
                "model": each.model,
                "reason": each.reason,
                "calls": each.calls,
                **each.counts,
                "usd": _text(each.usd),
                "ids": list(each.ids),
            }
            for each in found.differences
        ],
        "above_tolerance": list(above),
    }


def _text(usd: Decimal | None) -> str | None:
    return None if usd is None else f"{usd.normalize():f}"
