"""What a stage is: its settings, its budget, and how a sweep finds its finished stages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deltatap.driver.budget import spent, used_up
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings
from deltatap.sweep import stages
from deltatap.sweep.search import Outcome
from deltatap.sweep.stages import Plan, Point

PLAN = Plan((2.0, 4.0), 10.0, 0.95)
AT = datetime(2026, 12, 1, 8, tzinfo=UTC)
NOTHING = dict.fromkeys(("requests", "tokens", "cost_usd", "runtime_s"), 0.0)


def settings(**sections: Any) -> Any:
    return load_settings({"analysis": {"slo": {"ttft_ms": 500}}, "prices": None, **sections})


def stage(sweep: str, number: int, status: str = "completed", **values: Any) -> dict[str, Any]:
    labels = {"sweep": sweep, "stage": str(number), "rate": "2"}
    fields = dict.fromkeys(("requests", "input_tokens", "output_tokens", "cost_usd"))
    times = {"started_at": AT, "finished_at": AT + timedelta(seconds=12), "heartbeat_at": AT + timedelta(seconds=9)}
    return {"run_id": f"{sweep}-{number:02d}", "status": status, "labels": labels, **fields, **times, **values}


def test_a_stage_is_a_run_of_its_own_that_sends_every_prompt_once() -> None:
    given = settings(run={"labels": {"team": "a"}}, capture={"concurrency": 9, "arrivals": {"per_second": 1, "process": "constant", "seed": 5}})  # fmt: skip
    made = stages.stage_settings(given, PLAN, "night", 3, 4.0, NOTHING)
    assert made.run.id == "night-03"
    assert made.run.labels == {"team": "a", "sweep": "night", "stage": "3", "rate": "4"}
    capture = made.capture
    assert (capture.owed, capture.limit, capture.concurrency) == ("all", 40, 9)
    assert capture.arrivals is not None
    assert (capture.arrivals.per_second, capture.arrivals.process, capture.arrivals.seed) == (4.0, "constant", 8)


def test_stages_at_the_same_rate_have_other_times() -> None:
    seeds = {
        made.capture.arrivals.seed
        for number in range(1, 4)
        if (made := stages.stage_settings(settings(), PLAN, "s", number, 2.0, NOTHING)).capture.arrivals
    }
    assert len(seeds) == 3


def test_the_budget_is_for_all_stages_together() -> None:
    given = settings(budget={"requests": 100, "tokens": 1000, "cost_usd": 2.0, "runtime_s": 60})
    done = [stage("s", 1, requests=30, input_tokens=100, output_tokens=300, cost_usd=0.5), stage("s", 2, requests=10)]
    used = spent(done)
    assert used == {"requests": 40, "tokens": 400, "cost_usd": 0.5, "runtime_s": 24}
    budget = stages.stage_settings(given, PLAN, "s", 3, 2.0, used).budget
    assert (budget.requests, budget.tokens, budget.cost_usd, budget.runtime_s) == (60, 600, 1.5, 36)
    assert used_up(given.budget, used) is None
    assert used_up(given.budget, {**used, "tokens": 1000}) == "budget.tokens: 1,000 is used up"
    assert used_up(settings().budget, {**used, "tokens": 1e9}) is None


def test_a_stage_that_has_not_ended_counts_until_its_last_heartbeat() -> None:
    assert spent([stage("s", 1, "running", finished_at=None)])["runtime_s"] == 9


def test_the_stages_of_a_sweep_are_found_by_their_labels() -> None:
    runs = [stage("b", 10), stage("a", 1), stage("b", 2, "died"), {"run_id": "x", "labels": None}]
    found = stages.stages_of(runs, "b")
    assert [row["run_id"] for row in found] == ["b-02", "b-10"]
    assert [row["run_id"] for row in stages.finished(found)] == ["b-10"]


def test_the_same_command_continues_its_newest_sweep() -> None:
    job = stages.job_of(settings(), PLAN)
    runs = [stage("sweep-2-other", 1), stage(f"sweep-1-{job}", 1), stage(f"sweep-0-{job}", 1)]
    assert stages.newest_sweep(runs, job) == f"sweep-1-{job}"
    assert stages.newest_sweep(runs[:1], job) is None
    assert stages.new_sweep(job).endswith(f"-{job}")


def test_another_budget_continues_a_sweep_and_other_options_do_not() -> None:
    job = stages.job_of(settings(), PLAN)
    assert stages.job_of(settings(budget={"requests": 5}), PLAN) == job
    others = [
        stages.job_of(settings(capture={"concurrency": 5}), PLAN),
        stages.job_of(settings(endpoint={"model": "other"}), PLAN),
        stages.job_of(settings(analysis={"slo": {"ttft_ms": 501}}), PLAN),
        stages.job_of(settings(), Plan((2.0,), 10.0, 0.95)),
    ]
    assert len({job, *others}) == 5


def test_finished_stages_of_other_options_are_refused() -> None:
    points = [Point(2.0, 20, 20, "s-01"), Point(8.0, 80, 0, "s-02")]
    rows = [stage("s", 1), stage("s", 2)]
    stages.consistent(rows[:1], points[:1], PLAN, 500)
    with pytest.raises(ConfigError, match="sweep s was started with other options"):
        stages.consistent(rows, points, PLAN, 500)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"analysis": {"slo": {}}}, "analysis.slo: a sweep needs a bound"),
        ({"capture": {"mode": "paired"}}, "capture.mode: expected stream or complete, found paired"),
        ({"capture": {"reuse": True}}, "capture.reuse: expected false"),
    ],
)
def test_settings_that_cannot_be_swept(sections: dict[str, Any], problem: str) -> None:
    assert stages.problems(settings()) == []
    (found,) = stages.problems(settings(**sections))
    assert found.startswith(problem)


def test_too_few_prompts_are_reported_before_any_call() -> None:
    stages.check_prompts("p", 40, PLAN)
    with pytest.raises(ConfigError, match="a stage at 4 per second for 10 s needs 40 prompts, found 39"):
        stages.check_prompts("p", 39, PLAN)
    with pytest.raises(ConfigError, match="a stage needs 10 prompts, found 9"):
        stages.check_prompts("p", 9, Plan((), 10.0, 0.95))


def test_the_next_stage_follows_from_the_finished_ones() -> None:
    assert PLAN.next(500, []) == 2.0
    assert PLAN.next(500, [Outcome(2.0, 20, 20)]) == 4.0
