"""The plan of one start of a run: the owed requests, written as one immutable file for each capture task.

The parts are files, so no shuffle feeds the paid UDF. If a shuffle file were lost, Spark would rerun partitions that
are still running elsewhere. Spark counts the requests that it writes, so an old or empty listing of the parts is never
mistaken for the plan. ``owed.py`` knows which requests are owed, and ``worker`` reads the parts.
"""

from __future__ import annotations

import errno
import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Observation
from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

from deltatap import prices
from deltatap.delta import tables
from deltatap.delta.final import final_sql
from deltatap.delta.sums import MOST
from deltatap.driver import owed, reuse, runs, source
from deltatap.driver.needs import PRIVACY
from deltatap.driver.pacer import Spent
from deltatap.driver.trouble import may_pass
from deltatap.errors import ConfigError
from deltatap.files import OLD_S, PATIENCE_S
from deltatap.plan_state import Part
from deltatap.worker.arrivals import calls_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pyspark.sql import DataFrame

    from deltatap.config import Budget, Capture, Settings
    from deltatap.driver.active import ActiveRun
    from deltatap.driver.landing import Landing
    from deltatap.driver.lease import Lease
    from deltatap.driver.progress import Snapshot
    from deltatap.plan_state import PlanState

_SHOWN_MODELS = 5
# How long to wait for parts that are not visible yet, how often to look, and how long to wait before another write.
_WAIT_S, _LOOK_S, _RETRY_S = OLD_S, 0.2, 3.0
_STATUSES = ("completed", "interrupted", "failed")


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests that one start of a run has to capture.

    Attributes:
        files: the parts, one file for each capture task, with their manifest, and the record of landed rows.
        tasks: the planned number of capture tasks.
        requests: how many requests the parts hold.
        reused: how many requests got the answers of earlier rows.
        final: the number of final rows from earlier starts of the run.
        before: the run's totals from its earlier starts; empty if there were none.
        calls: how many calls each part has; None without ``capture.arrivals``.
    """

    files: PlanState
    tasks: int
    requests: int
    reused: int = 0
    final: int = 0
    before: Mapping[str, Any] = field(default_factory=dict)
    calls: tuple[int, ...] | None = None

    @property
    def owed(self) -> int:
        """How many requests the run had to capture, including earlier starts."""
        return self.final + self.requests

    @property
    def spent(self) -> Spent:
        """What earlier starts have used of the budgets."""
        count = {name: self.before.get(name) or 0 for name in ("requests", "input_tokens", "output_tokens", "cost_usd")}
        return Spent(count["requests"], count["input_tokens"] + count["output_tokens"], count["cost_usd"])

    def counts(self, now: Snapshot) -> dict[str, Any]:
        """The run's counts for its row: those of earlier starts plus those of this one."""
        added = {
            name: None if value is None else min(value + (self.before.get(name) or 0), MOST)
            for name, value in now.counts().items()
        }
        return {"owed": self.owed, **added}


def make_plan(run: ActiveRun, landing: Landing, building: owed.Building) -> Plan:
    """Land the journal of earlier starts of the run, then write the owed requests."""
    settings, spark, lease = run.settings, run.spark, run.lease
    if lease.resumed:
        run.say(resumes(lease))
    landing.drain()
    for old in run.state.plans():
        run.state.files.delete_folder(old.folder)
    before, final = _earlier_starts(run)
    # The workers of a dead driver may still write captures, although none has landed yet.
    if not lease.resumed and not any(before.get(status) for status in _STATUSES):
        landing.new_rows.epoch = lease.epoch
    files, tasks = run.state.plan(lease.epoch), task_count(settings, building.slots)
    with (
        run.console.status("planning: looking for requests without a final row"),
        owed.owed_requests(spark, settings, lease.run_id, building, settled=final) as found,
    ):
        earlier = reuse.answers(spark, settings) if settings.capture.reuse else None
        called = reuse.without_answers(found, earlier)
        files = write(called, files, tasks, settings.capture, seed=lease.run_id)
        requests = sum(part.rows for part in files.written or ())
        reused = 0 if earlier is None else reuse.take_over(spark, settings, lease.run_id, found, earlier)
    if reused:
        before["completed"] = before.get("completed", 0) + reused
        final += reused
    calls = None
    if settings.capture.arrivals is not None:
        calls = tuple(_calls(files, part, settings.capture) for part in range(len(files.part_files())))
    return Plan(files, tasks, requests, reused, final, before, calls)


def resumes(lease: Lease) -> str:
    """Notes for the user about the run that this start resumes."""
    if not lease.seen_at:
        return f"resumes run {lease.run_id}"
    lost = "the provider may also bill calls that are not in the tables: those that a dead driver left open"
    return f"resumes run {lease.run_id}; {lost}"


def used_before(spent: Spent, budget: Budget) -> Iterator[str]:
    """How much of the budgets earlier starts of the run have used, as a line, if they made calls."""
    parts = []
    if budget.requests is not None:
        parts.append(f"{spent.requests:,} of {budget.requests:,} requests")
    if budget.tokens is not None:
        parts.append(f"{spent.tokens:,} of {budget.tokens:,} tokens")
    if budget.cost_usd is not None:
        parts.append(f"${prices.money(spent.cost_usd)} of ${prices.money(budget.cost_usd)}")
    if parts and spent.requests:
        yield f"earlier starts of this run have used part of the budget: {', '.join(parts)}"


def _earlier_starts(run: ActiveRun) -> tuple[dict[str, Any], int]:
    """The run's totals so far, and how many of its rows are final."""
    settings, lease = run.settings, run.lease
    # A new run with a generated id has no rows.
    if not lease.resumed and settings.run.id is None:
        return {}, 0
    final = final_sql("c", keep_interrupted=settings.capture.keep_interrupted)
    rows = run.spark.table(tables.quoted(settings.captures.table)).alias("c")
    count = rows.where((F.col("run_id") == lease.run_id) & F.expr(final)).count()
    return runs.totals(run.spark, settings, lease.run_id), count


def announce(run: ActiveRun, plan: Plan, slots: int) -> list[str]:
    """Tell the user what will be captured.

    Returns:
        Notes for the end of the run.

    Raises:
        ConfigError: if ``budget.cost_usd`` is set and a model of the plan has no price.
    """
    settings, capture, notes = run.settings, run.settings.capture, []
    if plan.tasks * capture.streams_per_worker < capture.concurrency:
        allowed = (
            f"the driver holds capture.streams_per_worker={capture.streams_per_worker} streams (capture.where: driver)"
            if capture.where == "driver"
            else f"{slots} task slots allow {plan.tasks} capture tasks of {capture.streams_per_worker} streams each"
        )
        notes.append(f"{allowed}: fewer streams than capture.concurrency={capture.concurrency}")
    if plan.reused:
        run.say(f"run {run.lease.run_id}: {plan.reused:,} requests reuse answers of earlier rows (capture.reuse)")
    if not plan.requests:
        if plan.reused:
            return [*notes, "nothing else is owed: no call was made"]
        if source.source(run.spark, settings).isEmpty():
            return [*notes, f"prompts {settings.prompts.source} has no rows: nothing to capture"]
        return [*notes, "nothing is owed: every request has a final row; no call was made"]
    run.say(
        f"run {run.lease.run_id}: {plan.requests:,} {'request' if plan.requests == 1 else 'requests'} owed, "
        f"up to {capture.concurrency} concurrent streams to {settings.endpoint.label}"
    )
    if capture.arrivals is not None:
        run.say(capture.arrivals.of(sum(plan.calls or ())))
    used = used_before(plan.spent, settings.budget)
    for line in (*used, *_stored(settings), *_too_fast(settings), *source.misspelled(run.spark, settings)):
        run.say(line, style="yellow")
    unpriced = [model for model in models(plan.files) if run.prices.find(model) is None]
    if unpriced and settings.budget.cost_usd is not None:
        raise ConfigError(
            [f"budget.cost_usd: no price for {_listed(unpriced)}, so costs cannot be bounded; add it to prices"]
        )
    if unpriced and settings.prices:
        run.say(
            f"no price for {_listed(unpriced)}, neither in {prices.named(settings.prices)} nor in the published ones: "
            "costs will be null, unless the responses name a model that has a price",
            style="yellow",
        )
    return notes


def _stored(settings: Settings) -> Iterator[str]:
    """A warning if the provider stores the answers."""
    if settings.capture.resume:
        yield f"capture.resume: {PRIVACY}"


def _too_fast(settings: Settings) -> Iterator[str]:
    """A warning if the schedule is faster than the run's own limit."""
    limit, arrivals = settings.limits.requests_per_minute, settings.capture.arrivals
    if limit is not None and arrivals is not None and limit < 60 * arrivals.per_second:
        yield (
            f"limits.requests_per_minute allows {limit:,.10g} requests, but {60 * arrivals.per_second:,.10g} arrive in "
            "a minute: requests will start later and later"
        )


def task_count(settings: Settings, slots: int) -> int:
    """How many capture tasks to run: enough for the streams, but one slot stays free for landing.

    With ``capture.where: driver``, there is one task, because two event loops in one process would only delay each
    other.
    """
    if settings.capture.where == "driver":
        return 1
    needed = math.ceil(settings.capture.concurrency / settings.capture.streams_per_worker)
    return max(1, min(needed, slots - 1))


def write(frame: DataFrame, plan: PlanState, tasks: int, capture: Capture, seed: str) -> PlanState:
    """Write the parts.

    With several modes, the requests of one prompt are adjacent in a part, in an order that is random for each prompt
    and determined by the seed. A worker makes the second call when the first has ended. With ``reuse``, identical
    requests are adjacent, too.

    Returns:
        The plan with its manifest.

    Raises:
        OSError: if parts that Spark has written do not appear.
    """
    if len(capture.modes) == 1 and not capture.reuse:
        cut = frame.repartition(tasks)
    else:
        key = "request_hash" if capture.reuse else "request_id"
        drawn = F.xxhash64(F.lit(seed), key).alias("_order")
        first = F.when(F.col("_order") % 2 == 0, F.lit("stream")).otherwise(F.lit("complete"))
        cut = (
            frame.select("*", drawn)
            .repartition(tasks, key)
            .sortWithinPartitions("_order", key, "request_id", F.when(F.col("mode") == first, 0).otherwise(1))
            .drop("_order")
        )
    plan.prepare()
    began, tries = time.monotonic(), 1
    while True:
        # Each try writes to a new folder, so the files of a failed try do not mix with it.
        name = plan.parts.name if tries == 1 else f"{plan.parts.name}-{tries}"
        written = Observation()
        try:
            counted = cut.observe(written, F.count(F.lit(1)).alias("requests"))
            # A part is one file, even if the session splits large ones.
            counted.write.mode("overwrite").option("maxRecordsPerFile", 0).parquet(str(plan.folder / name))
            return replace(plan, written=manifest(plan, name, int(written.get["requests"])))
        except Exception as error:
            if not may_pass(error) or time.monotonic() - began > PATIENCE_S:
                raise
        time.sleep(_RETRY_S)
        tries += 1


def manifest(plan: PlanState, name: str, requests: int) -> tuple[Part, ...]:
    """The parts in a folder of the plan, as soon as they hold all requests.

    Args:
        plan: the plan.
        name: of the folder.
        requests: how many requests Spark has written.

    Raises:
        OSError: if parts do not appear.
    """
    began = time.monotonic()
    while True:
        parts = [part for path in plan.files.names(plan.folder / name, ".parquet") if (part := _part(plan, path))]
        if (found := sum(part.rows for part in parts)) == requests:
            return tuple(parts)
        if (waited_s := time.monotonic() - began) > _WAIT_S:
            why = f"{found:,} of {requests:,} planned requests are visible {waited_s:.0f} s after they were written"
            raise OSError(errno.EIO, why, str(plan.folder / name))
        time.sleep(_LOOK_S)


def _part(plan: PlanState, path: Path) -> Part | None:
    """A part; None if it is not complete yet."""
    try:
        with plan.files.open(path) as file:
            size = file.seek(0, 2)
            return Part(str(path.relative_to(plan.folder)), pq.ParquetFile(file).metadata.num_rows, size)
    except (FileNotFoundError, pa.ArrowException, ValueError):
        return None


def _calls(plan: PlanState, part: int, capture: Capture) -> int:
    with plan.open_part(part) as file:
        return calls_of(file, reuse=capture.reuse)


def models(plan: PlanState) -> list[str]:
    """The models that the plan's requests ask for, sorted."""
    found: set[str] = set()
    for part in range(len(plan.part_files())):
        with plan.open_part(part) as file:
            for batch in pq.ParquetFile(file).iter_batches(1 << 16, columns=["model"]):
                found |= {model for model in batch["model"].unique().to_pylist() if model}
    return sorted(found)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_MODELS])
    more = f" and {len(names) - _SHOWN_MODELS} more" if len(names) > _SHOWN_MODELS else ""
    return f"{'model' if len(names) == 1 else 'models'} {shown}{more}"
