"""The comparison of captures and bill: every planted difference is found, with its reason, and no other."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from deltatap.reconcile.captured import charges_of, of_the_same
from deltatap.reconcile.charges import Charge, reconcile

START = datetime(2026, 12, 1, 9, tzinfo=UTC)


def call(number: int, model: str = "gpt-4o", **changed: object) -> Charge:
    """One call: 1,000 input tokens, 400 of them cached, and a hundred output tokens and its number."""
    cost = Decimal(1000 + 10 * number) / 1_000_000
    at = START + timedelta(seconds=number)
    made = Charge(
        (f"{model}-2026-01-01", model), 1, 1000, 400, 100 + number, cost, (f"id-{number}", f"req-{number}"), at
    )
    return replace(made, **changed)  # type: ignore[arg-type]


CALLS = [call(number, "gpt-4o" if number % 2 else "o3") for number in range(40)]


def billed(charge: Charge, **changed: object) -> Charge:
    """As a gateway logs it: one of the names and one of the ids."""
    made = replace(charge, models=charge.models[-1:], ids=charge.ids[:1])
    return replace(made, **changed)  # type: ignore[arg-type]


def test_a_correct_bill_has_no_difference() -> None:
    found = reconcile(CALLS, [billed(each) for each in reversed(CALLS)])
    assert found.differences == ()
    assert found.exceeds(Decimal(0)) == []
    by_other_id = [replace(billed(each), ids=("gateway", each.ids[1])) for each in CALLS]
    assert reconcile(CALLS, by_other_id).differences == ()
    assert reconcile([], []).differences == ()


def test_an_empty_bill_misses_every_call() -> None:
    found = reconcile(CALLS, []).differences
    assert {(each.reason, each.calls) for each in found} == {("missing in the bill", 20)}
    assert sum(each.usd or 0 for each in found) == -sum(each.usd or 0 for each in CALLS)


@pytest.mark.parametrize(
    ("logged", "differs"), [("0.001235", False), ("0.00123456", False), ("0.001236", True), ("0.0012347", True)]
)
def test_an_amount_may_differ_by_the_rounding_of_the_log(logged: str, differs: bool) -> None:  # noqa: FBT001 - a parameter
    ours = call(0, usd=Decimal("0.0012345600"))
    found = reconcile([ours], [billed(ours, usd=Decimal(logged))]).differences
    assert [each.reason for each in found] == ["other price"] * differs


def test_each_of_ten_planted_differences_is_found_and_no_other() -> None:
    ours, bill = list(CALLS), {number: billed(each) for number, each in enumerate(CALLS)}
    del bill[1]
    bill[3] = billed(CALLS[3], input_tokens=1001, usd=CALLS[3].usd + Decimal("0.000001"))  # type: ignore[operator]
    bill[4] = billed(CALLS[4], cached_tokens=0, usd=Decimal("0.002"))
    bill[5] = billed(CALLS[5], output_tokens=99)
    bill[6] = billed(CALLS[6], usd=Decimal("0.0010601"))
    bill[7] = billed(CALLS[7], usd=Decimal("0.5"))
    ours[8] = call(8, "o3", usd=None)
    bill[100] = billed(call(100, "gpt-4o"))
    bill[101] = billed(call(101, "mystery"))
    bill[102] = bill[9]
    found = reconcile(ours, list(bill.values()))
    assert {
        (each.model, each.reason, each.calls, each.ids, each.usd and str(each.usd)) for each in found.differences
    } == {
        ("gpt-4o", "missing in the bill", 1, ("id-1",), "-0.00101"),
        ("gpt-4o", "other input tokens", 1, ("id-3",), "0.000001"),
        ("o3", "other cached tokens", 1, ("id-4",), "0.00096"),
        ("gpt-4o", "other output tokens", 1, ("id-5",), Decimal(0)),
        ("o3", "other price", 1, ("id-6",), "1E-7"),
        ("gpt-4o", "other price", 1, ("id-7",), "0.49893"),
        ("o3", "no price in captures", 1, ("id-8",), None),
        ("gpt-4o", "missing in captures", 1, ("id-100",), "0.002"),
        ("mystery", "missing in captures", 1, ("id-101",), "0.00201"),
        ("gpt-4o", "billed twice", 1, ("id-9",), "0.00109"),
    }
    by_reason = {each.reason: each for each in found.differences}
    assert by_reason["missing in the bill"].counts == {
        "requests": -1, "input_tokens": -1000, "cached_tokens": -400, "output_tokens": -101,
    }  # fmt: skip
    assert by_reason["other output tokens"].counts == {"output_tokens": -6}
    assert found.exceeds(Decimal("0.001")) == ["gpt-4o", "mystery", "o3"]


def test_each_of_ten_planted_differences_between_totals_is_found_and_no_other() -> None:
    models = [f"m{number}" for number in range(13)]
    ours = [call(number, model) for model in models for number in range(3)]
    bill = {model: Charge((model,), 3, 3000, 1200, 303, Decimal("0.00303")) for model in models}
    planted = {
        "m0": replace(bill["m0"], requests=4, input_tokens=4000, usd=Decimal("0.004")),
        "m1": replace(bill["m1"], requests=2),
        "m2": replace(bill["m2"], input_tokens=2999),
        "m3": replace(bill["m3"], cached_tokens=0),
        "m4": replace(bill["m4"], output_tokens=304),
        "m5": replace(bill["m5"], usd=Decimal("0.00304")),
        "m6": replace(bill["m6"], usd=Decimal("30.3")),
        "m7": None,
        "new": Charge(("new",), 1, 10, 0, 1, Decimal("0.1")),
        "m8": replace(bill["m8"], usd=Decimal(0)),
        # What the bill does not say is not compared, and a log rounds its amounts.
        "m9": Charge(("m9",), usd=Decimal("0.003030")),
        "m11": replace(bill["m11"], usd=Decimal("0.0030300000004")),
        "m10": Charge(("m10",), 3, 3000),
    }
    given = [charge for charge in ({**bill, **planted}).values() if charge is not None]
    found = reconcile(ours, given)
    assert {(each.model, each.reason, each.calls, str(each.usd)) for each in found.differences} == {
        ("m0", "missing in captures", 1, "0.00097"), ("m1", "missing in the bill", 1, "0.00000"),
        ("m2", "other input tokens", None, "0.00000"), ("m3", "other cached tokens", None, "0.00000"),
        ("m4", "other output tokens", None, "0.00000"), ("m5", "other price", None, "0.00001"),
        ("m6", "other price", None, "30.29697"), ("m7-2026-01-01", "missing in the bill", 3, "-0.00303"),
        ("new", "missing in captures", 1, "0.1"), ("m8", "other price", None, "-0.00303"),
    }  # fmt: skip


def test_usage_and_costs_of_the_same_models_belong_together() -> None:
    usage = [Charge(("gpt-4o-2026-01-01",), 2, 2000, 800, 203), Charge(("gpt-4o-2026-01-01",), 1, 1000, 400, 100)]
    costs = [Charge(("gpt-4o-2026-01-01",), usd=Decimal(amount)) for amount in ("0.001", "0.002", "0.00003")]
    ours = [call(number) for number in range(3)]
    assert reconcile(ours, [*usage, *costs]).differences == ()
    (found,) = reconcile(ours, [*usage, *costs[:2]]).differences
    assert (found.reason, found.usd) == ("other price", Decimal("-0.00003"))


def test_a_bill_without_models_is_compared_as_a_whole() -> None:
    assert reconcile(CALLS[:2], [Charge((), 2, 2000, 800, 201)]).differences == ()
    (found,) = reconcile(CALLS[:2], [Charge((), 3, 2000, 800, 201)]).differences
    assert (found.model, found.reason) == ("all models", "missing in captures")


def test_the_tolerance_is_a_share_of_a_models_bill() -> None:
    ours = [call(0, usd=Decimal(100))]
    found = reconcile(ours, [Charge(("gpt-4o",), 1, 1000, 400, 100, Decimal("100.1"))])
    assert found.exceeds(Decimal("0.001")) == []
    assert found.exceeds(Decimal("0.0009")) == ["gpt-4o"]
    assert found.share("gpt-4o") == Decimal("0.1") / Decimal("100.1")
    offset = [billed(CALLS[1], usd=Decimal(1)), billed(CALLS[3], usd=Decimal(-1))]
    assert reconcile([CALLS[1], CALLS[3]], offset).exceeds(Decimal("0.5")), "differences do not cancel each other out"


ROW: dict[str, Any] = {
    "run_id": "r", "request_model": "gpt-4o", "response_model": "gpt-4o-2026-01-01", "response_id": "chatcmpl-2",
    "server_request_id": "req-2", "started_at": START, "status": "completed", "cost_basis": "reported",
    "input_tokens": 10, "output_tokens": 5, "cached_tokens": None, "cost_usd": 0.3,
    "retries": [
        {"started_at": START - timedelta(days=1), "input_tokens": 10, "output_tokens": 2, "cost_usd": 0.1,
         "response_id": "chatcmpl-1", "server_request_id": None},
        {"started_at": START, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0, "response_id": None,
         "server_request_id": None},
    ],
}  # fmt: skip


def test_a_retry_that_used_tokens_is_a_separate_charge() -> None:
    broken, last = charges_of(ROW)
    assert (broken.ids, broken.usd, broken.output_tokens, broken.cached_tokens) == (
        ("chatcmpl-1",),
        Decimal("0.1"),
        2,
        None,
    )
    assert (last.ids, last.usd, last.cached_tokens) == (("chatcmpl-2", "req-2"), Decimal("0.2"), 0)
    unused = {**ROW, "retries": None, "cost_basis": None, "cost_usd": None}
    assert list(charges_of(unused)) == [], "a call that used nothing is not billed"


@pytest.mark.parametrize("usd", [math.inf, -math.inf, math.nan])
def test_a_cost_that_is_not_an_amount_is_not_compared(usd: float) -> None:
    retry = {**ROW["retries"][0], "cost_usd": usd}
    assert [charge.usd for charge in charges_of({**ROW, "cost_usd": usd, "retries": [retry]})] == [None, None]


@pytest.mark.parametrize(
    ("run_id", "day", "kept"),
    [
        ("r", None, ["mine", "unnamed"]),
        ("other", None, ["mine", "theirs", "unnamed"]),
        (None, START, ["mine", "theirs"]),
    ],
)
def test_only_charges_of_the_same_run_or_day_are_compared(run_id: str, day: datetime | None, kept: list[str]) -> None:
    mine = call(1, ids=("mine",), run_id="r")
    bill = [mine, call(2, ids=("theirs",), run_id="s"), call(3, ids=("unnamed",), at=START + timedelta(minutes=10))]
    bill[2] = replace(bill[2], at=START + timedelta(days=1)) if day else bill[2]
    midnight = day and day.replace(hour=0)
    assert [charge.ids[0] for charge in of_the_same([mine], bill, run_id, midnight)] == kept


def test_charges_without_a_run_id_are_of_the_time_of_the_run() -> None:
    mine = call(1, run_id="r")
    far = call(2, run_id="r", at=START - timedelta(days=20))
    others = [call(number, at=START + timedelta(days=days)) for number, days in ((3, -20), (4, 0), (5, 20))]
    others.append(call(6, at=None))
    assert of_the_same([mine], [*others, far, mine], "r", None) == [far, mine, others[1], others[3]]


@pytest.mark.parametrize(
    ("begins", "hours", "kept"),
    [(-60, 1, False), (-59, 1, True), (30, 1, True), (60, 1, True), (61, 1, False), (5, 1 / 60, True),
     (-24 * 60, None, False), (-24 * 60 + 1, None, True), (60, None, True), (61, None, False)],
)  # fmt: skip
def test_the_period_of_a_sum_overlaps_the_run(begins: int, hours: float | None, kept: bool) -> None:  # noqa: FBT001 - a parameter
    at = START + timedelta(minutes=begins)
    bucket = Charge(("gpt-4o",), 2, at=at, until=None if hours is None else at + timedelta(hours=hours))
    ours = [call(1, at=START), call(2, at=START + timedelta(minutes=60))]
    assert of_the_same(ours, [bucket], None, None) == [bucket] * kept
