from __future__ import annotations

from typing import Any

import pytest

from deltatap.driver.stopping import END_WAIT_S, SUBMISSIONS, Shutdown, Stop, give_up, why_stop
from deltatap.messages import Heartbeat
from deltatap.model import RunStatus

CALM: dict[str, Any] = {
    "errors": [], "beats": [Heartbeat(1, "a", 1)], "signalled": False, "requested": False,
    "exhausted": None, "runtime_over_s": None,
}  # fmt: skip
# In the order in which they count, with the stop that each causes.
REASONS: list[tuple[dict[str, Any], Stop]] = [
    ({"errors": [("deltatap-lease", OSError("gone")), ("deltatap-landing", OSError("later"))]},
     Stop(RunStatus.FAILED, "deltatap-lease: gone")),
    ({"beats": [Heartbeat(1, "a", 1), Heartbeat(1, "b", 1, fatal="quota: no")]}, Stop(RunStatus.FAILED, "quota: no")),
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
        given |= reason
    assert why_stop(**given) == REASONS[at][1]


@pytest.mark.parametrize(("submissions", "gives_up"), [(1, False), (SUBMISSIONS - 1, False), (SUBMISSIONS, True)])
def test_the_capture_is_submitted_four_times_at_most(submissions: int, gives_up: bool) -> None:  # noqa: FBT001
    assert SUBMISSIONS == 4
    stop = give_up(submissions, "captures are missing")
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
