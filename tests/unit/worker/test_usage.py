"""Expected use, actual use, and permits of one worker, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from deltatap.messages import Permit
from deltatap.model import Call, CaptureError, Choice, Chunks, Expected, Job, Received, Request, Usage
from deltatap.rates import Price
from deltatap.worker.allowance import Allowance, Meter
from deltatap.worker.usage import Tally

PRICE = Price(model="m", input=1, cached_input=0.5, output=10, date=date(2026, 1, 1), source="here")


def job(inputs: int = 20, most: int | None = None, choices: int = 1, price: Price | None = None) -> Job:
    request = Request("r", "", None, None, None, None)
    return Job(request, None, "stream", 0, [], 0.0, expected=Expected(inputs, most, choices, price))


def call(usage: Usage | None = None, *, chunks: int = 0, error: CaptureError | None = None) -> Call:
    received = Chunks()
    for at in range(chunks):
        received.append(at, 0.0, "x", 1, 0, at, at)
    result = Received(received, usage=usage, output=chunks > 0)
    return Call(0, 0, 0, 0, 0, 0, None, result, "failed" if error else "completed", error, 200)


def test_the_expected_tokens_of_a_request() -> None:
    tally = Tally()
    assert tally.expects(job(20)) == (4020, 0.0), "before any output is known"
    assert tally.expects(job(20, most=100)) == (120, 0.0), "the request's maximum"
    assert tally.expects(job(20, most=100, choices=3)) == (320, 0.0), "each choice has its output"
    assert tally.expects(job(20, most=100, choices=3, price=PRICE))[1] == pytest.approx((20 + 3000) / 1e6)
    tally.give(None, 50.0)
    assert tally.expects(job(20, choices=2)) == (120, 0.0), "the mean over other workers"
    unlimited = job()
    unlimited.expected = None
    assert tally.expects(unlimited) == (0.0, 0.0)


def test_outputs_are_learned_per_choice() -> None:
    tally = Tally()
    tally.give(None, 999.0)
    for tokens in (300, 600):
        three = job(20, choices=3)
        tally.started(three)
        tally.ended(three, call(Usage(20, tokens)))
    assert tally.mean_output_tokens == 150
    assert tally.expects(job(20, choices=3)) == (20 + 3 * 150, 0.0), "this worker's own mean comes first"


def test_actual_use_replaces_expected_use() -> None:
    tally = Tally(clock=lambda: 50.0)
    first, second = job(20, most=100, price=PRICE), job(20, most=100)
    tally.started(first)
    tally.started(second)
    assert (tally.in_flight_tokens, tally.spent_tokens) == (240, 0)
    tally.ended(first, call(Usage(30, 10, cached_input_tokens=20)))
    assert (tally.in_flight_tokens, tally.spent_tokens) == (120, 40)
    assert tally.spent_usd == pytest.approx((10 * 1 + 20 * 0.5 + 10 * 10) / 1e6)
    tally.ended(second, None)
    assert (tally.in_flight_tokens, tally.spent_tokens) == (0, 40), "a call that never began used nothing"
    status = tally.status(None)
    assert status["recent"] == [[0.0, 2, 40.0]]
    assert (status["used"], status["limited"], status["next_tokens"]) == (2, 0, 0.0)


def test_without_reported_usage_each_chunk_counts_as_a_token() -> None:
    tally = Tally()
    one = job(20)
    tally.started(one)
    tally.ended(one, call(chunks=7))
    assert tally.spent_tokens == 27


def test_a_429_is_counted_and_uses_nothing() -> None:
    tally = Tally()
    one = job(20)
    tally.started(one)
    tally.ended(one, call(error=CaptureError("rate_limit", None, "x", 429)))
    assert (tally.limited, tally.spent_tokens, tally.mean_output_tokens) == (1, 0, None)


def test_an_unused_permit_expires() -> None:
    allowance = Allowance()
    assert allowance.allows(5.0, 10), "no limit before the first permit"
    allowance.give(Permit(2, tokens=100), 10.0)
    assert allowance.allows(10.5, 150)
    assert not allowance.allows(10.5, 151), "a much larger request than the permit is for"
    allowance.take()
    allowance.take()
    assert not allowance.allows(10.5, 50)
    allowance.give(Permit(3, tokens=100), 10.6)
    assert allowance.allows(11.5, 50)
    assert not allowance.allows(11.6, 50), "no message from the driver for too long"
    allowance.give(Permit(5, void=4, tokens=100), 20.0)
    assert allowance.used == 4
    allowance.take()
    assert not allowance.allows(20.0, 0)
    allowance.give(None, 30.0)
    assert allowance.allows(99.0, 1e9)


def test_a_meter_reports_the_last_minute_with_corrections() -> None:
    meter = Meter()
    meter.started(100.1, 50)
    meter.started(100.4, 50)
    meter.started(130.0, 50)
    meter.corrected(100.4, -30)
    assert meter.recent(131.0) == [[30.5, 2, 70.0], [0.5, 1, 50.0]]
    assert meter.recent(170.0) == [[39.5, 1, 50.0]]


@pytest.mark.parametrize(
    ("usage", "chunks", "final", "tokens"),
    [
        (Usage(30, 10), 7, True, 40),
        (Usage(30, 3), 7, True, 33),
        (Usage(30, 3), 7, False, 37),
        (Usage(30, 0), 7, True, 37),
        (Usage(30, None), 7, True, 37),
        (Usage(30, 0), 0, True, 30),
        (Usage(None, 5), 0, True, 25),
    ],
)
def test_a_call_never_uses_less_than_what_arrived(usage: Usage, chunks: int, final: bool, tokens: int) -> None:  # noqa: FBT001
    tally, one, ended = Tally(), job(20), call(usage, chunks=chunks)
    tally.started(one)
    tally.ended(one, replace(ended, received=replace(ended.received, usage_final=final)))
    assert tally.spent_tokens == tokens


def test_a_whole_answer_without_usage_counts_a_token_for_four_characters() -> None:
    tally, one = Tally(), job(20)
    answer = Received(Chunks(), (Choice(0, "x" * 40),), output=True)
    tally.started(one)
    tally.ended(one, replace(call(), received=answer))
    assert tally.spent_tokens == 30
