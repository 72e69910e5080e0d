"""Hand-written invoices (`invoices.yml`): usage as a provider sends it gives the exact amounts."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from deltatap.api.registry import specification
from deltatap.model import Call, Received
from deltatap.prices import DEFAULT_FILE, load_prices
from deltatap.rates import PARTS
from deltatap.worker.billing import Bill, bill, price_of, total

HERE = Path(__file__).parent
SHIPPED = str(HERE.parents[1] / DEFAULT_FILE)
WHOLE: dict[str, dict[str, Any]] = {
    "chat": {"choices": [{"index": 0, "message": {"role": "assistant", "content": "."}, "finish_reason": "stop"}]},
    "completions": {"choices": [{"index": 0, "text": ".", "finish_reason": "stop"}]},
    "messages": {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "."}],
                 "stop_reason": "end_turn"},
    "responses": {"object": "response", "status": "completed", "output": []},
}  # fmt: skip


class _Exact(yaml.SafeLoader):
    """Reads amounts as decimals."""


_Exact.add_constructor("tag:yaml.org,2002:float", lambda loader, node: Decimal(loader.construct_scalar(node)))  # type: ignore[arg-type]
INVOICES: list[dict[str, Any]] = yaml.load((HERE / "invoices.yml").read_text(encoding="utf-8"), _Exact)  # noqa: S506 - safe


def billed(invoice: dict[str, Any]) -> Bill:
    received = specification(invoice["api"]).accumulator(1)
    received.add_whole(orjson.dumps({**WHOLE[invoice["api"]], **invoice["answer"]}))
    return bill_of(invoice, received.finish())


def bill_of(invoice: dict[str, Any], received: Received) -> Bill:
    day = invoice.get("at", date(2026, 12, 1))
    at = datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()
    body = orjson.dumps({"service_tier": invoice["tier"]}).decode() if "tier" in invoice else "{}"
    call = Call(at, at, 0, 0, 0, 0, None, received, "completed", None, 200, body)
    prices = load_prices(SHIPPED, invoice["url"])
    return bill(call, 0, 0, price_of(prices, invoice["model"], received, body, at))


def test_there_are_thirty_invoices_and_their_parts_add_up() -> None:
    assert len(INVOICES) >= 30
    assert all(sum(invoice["cost"].values()) == invoice["total"] for invoice in INVOICES)
    assert {part for invoice in INVOICES for part in invoice["cost"]} <= set(PARTS)


@pytest.mark.parametrize("invoice", INVOICES, ids=lambda invoice: invoice["name"])
def test_an_invoice_is_reproduced_to_the_last_digit(invoice: dict[str, Any]) -> None:
    found = billed(invoice)
    assert found.parts is not None, "no price"
    assert {name: amount for name, amount in found.parts.items() if amount} == invoice["cost"]
    assert found.cost_usd == invoice["total"]


def test_the_sum_of_all_invoices_is_exact() -> None:
    """In any order, and as the rows of a run store them."""
    costs = [total([billed(invoice)], (), priced=True) for invoice in INVOICES]
    assert all(cost.usd == sum(cost.parts.values()) for cost in costs)
    assert all(Decimal(str(float(cost.usd or 0))) == cost.usd for cost in costs)
    due = sum(invoice["total"] for invoice in INVOICES)
    assert sum(cost.usd or 0 for cost in costs) == due == sum(cost.usd or 0 for cost in reversed(costs))
