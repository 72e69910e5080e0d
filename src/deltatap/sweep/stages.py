"""The stages of a sweep: each stage is a run with an arrival rate, and the measurements of its requests.

Knows how a stage follows from the settings, and how a sweep finds its finished stages in the runs table. Leaves which
rate comes next to ``search.py``, and the run itself to ``driver/run.py``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deltatap.analysis.metrics import FROM_SCHEDULE
from deltatap.analysis.queries import captures_sql
from deltatap.analysis.sql import in_runs, measured_sql
from deltatap.config import Arrivals, Run, Settings
from deltatap.delta.reader import rows
from deltatap.driver.budget import left
from deltatap.errors import ConfigError
from deltatap.model import RunStatus
from deltatap.sweep.search import FEWEST, Found, Outcome, Range, next_rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deltatap.delta.reader import Reader

    Row = dict[str, Any]

# The labels of a stage's run.
SWEEP, STAGE, RATE = "sweep", "stage", "rate"
# The parts of the settings that define an experiment. A change of the budget, for example, continues the same
# experiment.
_JOB = {"prompts", "endpoint", "request", "capture", "timeouts", "limits"}


@dataclass(frozen=True, slots=True)
class Plan:
    """The test plan of a sweep.

    Attributes:
        rates: requests per second; empty for a search.
        duration_s: of a stage.
        share: the share of requests that must be good, from 0 to 1.
    """

    rates: tuple[float, ...]
    duration_s: float
    share: float

    def requests(self, rate: float) -> int:
        """How many requests a stage at a rate sends."""
        return max(1, round(rate * self.duration_s))

    def next(self, prompts: int, measured: Sequence[Outcome]) -> float | Found:
        """The rate of the next stage, or the result; `prompts` is how many prompts there are."""
        return next_rate(self.rates, Range.of(prompts, self.duration_s), measured, self.share)


@dataclass(frozen=True, slots=True)
class Point(Outcome):
    """The measurements of a finished stage. Times are in ms, from the schedule unless noted; None if there are none.

    Attributes:
        run_id: of the stage.
        good_per_s: goodput: good requests per second, from the first start to the last end.
        ttft_p50_ms, ttft_p99_ms: time to first token.
        e2e_p50_ms, e2e_p99_ms: end to end.
        delay_p99_ms: how late requests started.
    """

    run_id: str
    good_per_s: float | None = None
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    e2e_p50_ms: float | None = None
    e2e_p99_ms: float | None = None
    delay_p99_ms: float | None = None


def problems(settings: Settings) -> list[str]:
    """Why these settings cannot be swept."""
    capture, found = settings.capture, []
    if not settings.analysis.slo.bounds:
        found.append("analysis.slo: a sweep needs a bound, for example --set analysis.slo.ttft_ms=500")
    if capture.mode == "paired":
        found.append("capture.mode: expected stream or complete, found paired")
    if capture.follow_s is not None:
        found.append("capture.follow_s: expected null: a stage ends when its prompts have been captured")
    if capture.reuse:
        found.append("capture.reuse: expected false: every stage calls the same prompts")
    return found


def check_prompts(source: str, prompts: int, plan: Plan) -> None:
    """Check that there are enough prompts: a stage sends each prompt at most once.

    Raises:
        ConfigError: there are too few.
    """
    needed = max(map(plan.requests, plan.rates), default=FEWEST)
    if prompts < needed:
        stage = (
            f"a stage at {max(plan.rates):.10g} per second for {plan.duration_s:.10g} s" if plan.rates else "a stage"
        )
        raise ConfigError(
            [f"prompts: {source}: {stage} needs {needed:,} prompts, found {prompts:,}; load more, or lower --duration"]
        )


def job_of(settings: Settings, plan: Plan) -> str:
    """A hash of what a sweep measures. The same command continues a sweep of the same job."""
    job = [
        settings.model_dump(mode="json", include=_JOB),
        settings.analysis.slo.model_dump(),
        [plan.rates, plan.duration_s, plan.share],
    ]
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:8]


def stages_of(runs: Iterable[Row], sweep: str) -> list[Row]:
    """The runs of a sweep's stages, in order."""
    ours = [row for row in runs if (row["labels"] or {}).get(SWEEP) == sweep]
    return sorted(ours, key=lambda row: int(row["labels"][STAGE]))


def newest_sweep(runs: Iterable[Row], job: str) -> str | None:
    """The newest sweep of a job without an id; `runs` are sorted newest first."""
    names = ((row["labels"] or {}).get(SWEEP, "") for row in runs)
    return next((name for name in names if name.startswith("sweep-") and name.endswith(f"-{job}")), None)


def new_sweep(job: str) -> str:
    """The id of a new sweep."""
    return f"sweep-{datetime.now(UTC):%Y%m%dT%H%M%S}-{job}"


def finished(stages: Sequence[Row]) -> list[Row]:
    """The stages that are complete."""
    return [row for row in stages if row["status"] == RunStatus.COMPLETED]


def stage_settings(
    settings: Settings, plan: Plan, sweep: str, number: int, rate: float, used: Mapping[str, float]
) -> Settings:
    """The settings of a stage's run.

    The stage has its own run id, so a killed stage continues, and sends each prompt once, even if other runs have
    captured the prompt.

    Args:
        settings: of the sweep.
        plan: of the sweep.
        sweep: its id.
        number: of the stage, from 1.
        rate: requests per second.
        used: what the other stages have used of the budget.
    """
    base = settings.capture.arrivals or Arrivals(per_second=rate)
    # Stages at the same rate must not repeat the same times.
    arrivals = base.model_copy(update={"per_second": rate, "seed": (base.seed + number) % 2**63})
    capture = {"owed": "all", "limit": plan.requests(rate), "arrivals": arrivals}
    labels = {**settings.run.labels, SWEEP: sweep, STAGE: str(number), RATE: f"{rate:.10g}"}
    return settings.model_copy(
        update={
            "run": Run(id=f"{sweep}-{number:02d}", labels=labels),
            "capture": settings.capture.model_copy(update=capture),
            "budget": left(settings.budget, used),
        }
    )


def measure(reader: Reader, settings: Settings, stages: Sequence[Row]) -> list[Point]:
    """The measurements of finished stages, in their order."""
    if not stages:
        return []
    captures = captures_sql(reader, settings, in_runs([row["run_id"] for row in stages]))
    quantiles = ", ".join(f"percentile({sql}, array(0.5, 0.99)) AS {name}" for name, sql in FROM_SCHEDULE.items())
    found = reader.query(
        f"""
        SELECT m.run_id, m.requests, m.good, m.seconds, t.ttft_ms, t.e2e_ms, t.delay FROM (
          SELECT run_id, count(*) AS requests, count_if(good) AS good,
            timestampdiff(MICROSECOND, min(started_at), max(finished_at)) / 1e6 AS seconds
          FROM ({measured_sql(settings, captures)}) WHERE started_at IS NOT NULL GROUP BY run_id
        ) AS m LEFT JOIN (
          SELECT run_id, {quantiles}, percentile(scheduled_ms, array(0.99)) AS delay
          FROM ({captures}) WHERE status = 'completed' GROUP BY run_id
        ) AS t ON m.run_id = t.run_id
        """
    )
    by_run = {row["run_id"]: row for row in rows(found)}
    return [_point(row, by_run.get(row["run_id"])) for row in stages]


def _point(stage: Row, row: Row | None) -> Point:
    rate, run_id = float(stage["labels"][RATE]), stage["run_id"]
    if row is None:  # no request was sent
        return Point(rate, 0, 0, run_id)
    (ttft_p50, ttft_p99), (e2e_p50, e2e_p99) = (row[name] or (None, None) for name in ("ttft_ms", "e2e_ms"))
    (delay,) = row["delay"] or (None,)
    per_s = row["good"] / row["seconds"] if row["seconds"] else None
    return Point(rate, row["requests"], row["good"], run_id, per_s, ttft_p50, ttft_p99, e2e_p50, e2e_p99, delay)


def consistent(stages: Sequence[Row], points: Sequence[Point], plan: Plan, prompts: int) -> None:
    """Check that finished stages are those that this command would run.

    Raises:
        ConfigError: they belong to a sweep with other options.
    """
    for at, point in enumerate(points):
        expected = plan.next(prompts, points[:at])
        if isinstance(expected, Found) or abs(expected - point.rate) > 1e-9 * point.rate:
            sweep = stages[at]["labels"][SWEEP]
            raise ConfigError([f"run.id: sweep {sweep} was started with other options or prompts: use another run.id"])
