"""When a model is parked, as a sequence of its calls."""

from __future__ import annotations

import pytest

from deltatap.messages import Parked, Refusal
from deltatap.model import Call, CaptureError, Chunks, Received
from deltatap.worker.breaker import Breaker


def ended(breaker: Breaker, outcome: str | None, model: str = "m", *, output: bool = False) -> bool:
    error = None if outcome is None else CaptureError(outcome, None, "x")
    call = Call(0, 0, 0, 0, 0, 0, None, Received(Chunks(), output=output), "completed", error, 200)
    return breaker.ended(call, Refusal(outcome or "", "x", model, "r"))


@pytest.mark.parametrize(
    ("outcomes", "parks"),
    [
        (["not_found"] * 2, False),
        (["not_found"] * 3, True),
        (["permission"] * 3, True),
        (["permission", "not_found", "permission"], True),
        (["not_found", "server", "not_found", "rate_limit", "not_found"], True),
        (["not_found", "not_found", None, "not_found", "not_found"], False),
        ([None, "not_found", "not_found", "not_found"], True),
        (["server"] * 9, False),
        (["authentication"] * 9, False),
        (["invalid_request"] * 9, False),
    ],
)
def test_three_refusals_in_a_row_park_a_model(outcomes: list[str | None], parks: bool) -> None:  # noqa: FBT001
    breaker = Breaker()
    for outcome in outcomes:
        ended(breaker, outcome)
    assert (breaker.parked("m") is not None) == parks


def test_only_the_third_refusal_parks() -> None:
    breaker = Breaker()
    assert [ended(breaker, "not_found") for _ in range(5)] == [False, False, True, False, False]


def test_models_are_counted_apart() -> None:
    breaker = Breaker()
    for model in ("a", "b", "a", "b", "b"):
        ended(breaker, "not_found", model)
    assert (breaker.parked("a"), breaker.parked("b")) == (None, Parked(Refusal("not_found", "x", "b", "r")))


def test_output_is_a_success_even_if_the_call_broke_off() -> None:
    breaker = Breaker()
    for _ in range(2):
        ended(breaker, "not_found")
    ended(breaker, "stream_error", output=True)
    assert not ended(breaker, "not_found")
    assert breaker.succeeded


def test_a_success_in_flight_lets_the_model_start_again() -> None:
    breaker = Breaker()
    for _ in range(3):
        ended(breaker, "not_found")
    breaker.dropped("m")
    breaker.dropped("m")
    assert breaker.status() == {"parked": (Parked(Refusal("not_found", "x", "m", "r"), 2),), "succeeded": False}
    ended(breaker, None)
    assert breaker.status() == {"parked": (), "succeeded": True}
    assert [ended(breaker, "not_found") for _ in range(3)] == [False, False, True], "and counts from the start"
