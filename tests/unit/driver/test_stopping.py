from __future__ import annotations

from typing import Any

import pytest

from deltatap.driver.stopping import (
    END_WAIT_S,
    SUBMISSIONS,
    Shutdown,
    Stop,
    all_refused,
    give_up,
    notes,
    parked_models,
    why_stop,
)
from deltatap.messages import Heartbeat, Parked, Refusal
from deltatap.model import RunStatus

URL = "https://api.example.com/v1"
CALM: dict[str, Any] = {
    "errors": [], "beats": [Heartbeat(1, "a", 1)], "url": URL, "refused": [], "signalled": False, "requested": False,
    "exhausted": None, "runtime_over_s": None,
}  # fmt: skip
# In the order in which they count, with the stop that each causes.
REASONS: list[tuple[dict[str, Any], Stop]] = [
    ({"errors": [("deltatap-lease", OSError("gone")), ("deltatap-landing", OSError("later"))]},
     Stop(RunStatus.FAILED, "deltatap-lease: gone")),
    ({"beats": [Heartbeat(1, "a", 1), Heartbeat(1, "b", 1, fatal="quota: no (model m, request_id r)")]},
     Stop(RunStatus.FAILED, f"{URL}: quota: no (model m, request_id r); check the account's quota and billing")),
    ({"beats": [Heartbeat(1, "b", 1, too_long="rate limited until 2026-11-26 09:00:00 UTC: rate_limit: no")]},
     Stop(RunStatus.FAILED, f"{URL}: rate limited until 2026-11-26 09:00:00 UTC: rate_limit: no", lets_end=True)),
    ({"refused": [Parked(Refusal("not_found", "no", "m", "r"), 7)]},
     Stop(RunStatus.FAILED, f"{URL}: not_found: no (model m, request_id r); check the model's name and endpoint.base_url")),
    ({"signalled": True}, Stop(RunStatus.STOPPED, "stopped by a signal")),
    ({"requested": True}, Stop(RunStatus.STOPPED, "stopped by `deltatap stop`")),
    ({"exhausted": "budget.tokens: 5 is used up"}, Stop(RunStatus.BUDGET_EXHAUSTED, "budget.tokens: 5 is used up")),
    ({"runtime_over_s": 12.5}, Stop(RunStatus.BUDGET_EXHAUSTED, "budget.runtime_s: 12.5 s have passed")),
]  # fmt: skip


def test_a_run_without_a_reason_continues() -> None:
    assert why_stop(**CALM) is None


@pytest.mark.parametrize(("reason", "stop"), REASONS)
def test_what_stops_a_run(reason: dict[str, Any], stop: Stop) -> None:
    assert why_stop(**(CALM | reason)) == stop


@pytest.mark.parametrize("at", range(len(REASONS)))
def test_the_first_of_several_reasons_counts(at: int) -> None:
    given = dict(CALM)
    for reason, _ in REASONS[at:]:
        given |= reason | {"beats": [*given["beats"], *reason.get("beats", ())]}
    assert why_stop(**given) == REASONS[at][1]


@pytest.mark.parametrize(("submissions", "gives_up"), [(1, False), (SUBMISSIONS - 1, False), (SUBMISSIONS, True)])
def test_the_capture_is_submitted_four_times_at_most(submissions: int, gives_up: bool) -> None:  # noqa: FBT001
    assert SUBMISSIONS == 4
    stop = give_up(submissions, "captures are missing", "Spark job")
    assert (stop is not None) == gives_up
    if stop:
        assert stop.status is RunStatus.FAILED
        assert stop.reason == "the capture did not complete in 4 Spark jobs: captures are missing"


def test_the_first_stop_is_kept() -> None:
    first, second = Stop(RunStatus.STOPPED, "first"), Stop(RunStatus.FAILED, "second")
    shutdown = Shutdown(grace_s=5)
    shutdown.begin(None, 0.0)
    assert shutdown.stop is None
    shutdown.begin(first, 10.0)
    shutdown.begin(second, 20.0)
    assert shutdown.stop == first
    assert shutdown.must_interrupt(10.0 + 5 + END_WAIT_S + 0.1), "the second stop does not extend the wait"


def test_jobs_are_interrupted_after_the_grace_period_and_again_while_they_run() -> None:
    shutdown = Shutdown(grace_s=5)
    assert not shutdown.must_interrupt(1e9), "nothing is interrupted while the run continues"
    shutdown.begin(Stop(RunStatus.STOPPED, "why"), 100.0)
    due = 100.0 + 5 + END_WAIT_S
    assert not shutdown.must_interrupt(due)
    assert not shutdown.interrupted
    assert shutdown.must_interrupt(due + 1)
    assert shutdown.interrupted
    assert not shutdown.must_interrupt(due + 1 + END_WAIT_S)
    assert shutdown.must_interrupt(due + 2 + END_WAIT_S)


def parked(model: str, requests: int = 1, type_: str = "not_found") -> Parked:
    return Parked(Refusal(type_, "no", model, f"req_{model}"), requests)


A, B = parked("a"), parked("b")


@pytest.mark.parametrize(
    ("models", "found", "succeeded", "refused"),
    [
        (["a"], {"a": A}, False, [A]),
        (["a", "b"], {"a": A, "b": B}, False, [A, B]),
        (["a", "b"], {"a": A}, False, []),
        (["a"], {"a": A}, True, []),
        (["a"], {"a": A, "b": B}, False, [A]),
        ([], {"a": A}, False, []),
        (["a"], {}, False, []),
    ],
)
def test_a_run_is_refused_if_no_model_works_and_none_ever_did(
    models: list[str],
    found: dict[str, Parked],
    succeeded: bool,  # noqa: FBT001
    refused: list[Parked],
) -> None:
    assert all_refused(models, found, succeeded=succeeded) == refused


def test_several_models_are_named_in_one_line() -> None:
    many = [parked(f"m{at}") for at in range(7)]
    stop = why_stop(**(CALM | {"refused": many}))
    assert stop is not None
    assert stop.reason.count("request_id req_m") == 5
    assert stop.reason.endswith(", 2 more models; check the model's name and endpoint.base_url")


def test_the_unsent_requests_of_a_model_add_up_over_the_newest_attempts() -> None:
    beats = [
        Heartbeat(1, "00000-000001-x", 9, parked=[parked("a", 50)], ended=True),
        Heartbeat(1, "00000-000002-y", 1, parked=[parked("a", 40), parked("b", 2)], ended=True),
        Heartbeat(1, "00001-000001-z", 1, parked=[parked("a", 3)]),
    ]
    found = parked_models(beats)
    assert {model: entry.requests for model, entry in found.items()} == {"a": 43, "b": 2}
    assert notes(found)[0] == (
        "model a refuses every request (43 not sent, still owed): not_found: no (model a, request_id req_a); "
        "check the model's name and endpoint.base_url"
    )
    (note,) = notes({"p": parked("p", 9, "permission")})
    assert note.endswith("(model p, request_id req_p); check the key's rights for the model")


def test_open_streams_end_by_themselves_when_the_run_would_wait_too_long() -> None:
    shutdown = Shutdown(grace_s=5, total_s=900)
    shutdown.begin(Stop(RunStatus.FAILED, "why", lets_end=True), 100.0)
    assert shutdown.grace_s == 900
    assert not shutdown.must_interrupt(1000.0)
    assert shutdown.must_interrupt(1000.0 + END_WAIT_S + 1)
