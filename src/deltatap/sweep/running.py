"""Runs the stages of a sweep one after the other, in one Spark session, and finds out which are finished already.

``search.py`` decides which stage is next, and ``stages.py`` defines a stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltatap.analysis.queries import newest_runs
from deltatap.delta.reader import SparkReader
from deltatap.driver import budget
from deltatap.driver.owed import hashed, sampled
from deltatap.driver.run import run
from deltatap.driver.source import source
from deltatap.model import RunStatus
from deltatap.sweep import stages
from deltatap.sweep.search import Found

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyspark.sql import SparkSession
    from rich.console import Console

    from deltatap.config import Settings
    from deltatap.prices import Prices
    from deltatap.sweep.stages import Plan, Point

    Row = dict[str, Any]

_RUNS = 10_000


@dataclass(frozen=True, slots=True)
class Swept:
    """The progress of a sweep.

    Attributes:
        sweep: its id.
        points: what its finished stages measured, in order.
        found: the result; None if the sweep has not ended.
        reason: why it has not ended.
        failed: whether a stage failed.
    """

    sweep: str
    points: tuple[Point, ...]
    found: Found | None
    reason: str | None = None
    failed: bool = False


def sweep(
    settings: Settings, plan: Plan, spark: SparkSession, prices: Prices, console: Console, say: Callable[[str], None]
) -> Swept:
    """Run the stages that are not finished.

    Call :func:`deltatap.sweep.stages.problems` and :func:`deltatap.driver.needs.preflight` first.

    Args:
        settings: of the sweep; ``run.id`` is the id of the sweep, and the budget is for all stages together.
        plan: of the sweep.
        spark: the session of all stages.
        prices: of the models.
        console: where the runs print.
        say: prints a line.

    Raises:
        ConfigError: there are too few prompts, or the sweep was started with other options.
    """
    reader = SparkReader(spark)
    prompts = _count_prompts(spark, settings)
    stages.check_prompts(settings.prompts.source, prompts, plan)
    runs = newest_runs(reader, settings, _RUNS) if reader.exists(settings.runs.table) else []
    name, its_runs = _sweep_of(reader, settings, plan, prompts, runs)
    while True:
        done = stages.finished(its_runs)
        points = stages.measure(reader, settings, done)
        stages.consistent(done, points, plan, prompts)
        step = plan.next(prompts, points)
        if isinstance(step, Found):
            return Swept(name, tuple(points), step)
        number = len(done) + 1
        used = budget.spent(row for row in its_runs if int(row["labels"][stages.STAGE]) != number)
        if (reason := budget.used_up(settings.budget, used)) is not None:
            return Swept(name, tuple(points), None, reason)
        say(f"sweep {name}, stage {number}: {step:,.10g} per second, {plan.requests(step):,} requests")
        ended = run(stages.stage_settings(settings, plan, name, number, step, used), spark, prices, console)
        for note in ended.notes:
            say(note)
        its_runs = [*done, ended.row]
        if ended.row["status"] != RunStatus.COMPLETED:
            return Swept(name, tuple(points), None, ended.row["reason"] or ended.row["status"], ended.failed)


def _sweep_of(
    reader: SparkReader, settings: Settings, plan: Plan, prompts: int, runs: Sequence[Row]
) -> tuple[str, list[Row]]:
    """The sweep to continue, or a new one, and the runs of its stages."""
    if settings.run.id is not None:
        return settings.run.id, stages.stages_of(runs, settings.run.id)
    job = stages.job_of(settings, plan)
    if (newest := stages.newest_sweep(runs, job)) is not None:
        its_runs = stages.stages_of(runs, newest)
        points = stages.measure(reader, settings, stages.finished(its_runs))
        if not isinstance(plan.next(prompts, points), Found):
            return newest, its_runs
    return stages.new_sweep(job), []


def _count_prompts(spark: SparkSession, settings: Settings) -> int:
    """How many prompts a stage can send."""
    found = sampled(hashed(source(spark, settings), settings), settings).count()
    return found if settings.capture.limit is None else min(found, settings.capture.limit)
