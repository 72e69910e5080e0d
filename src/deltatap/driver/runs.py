"""The ``runs`` table, and the lease that it holds: one run at a time for each captures table.

Knows how a driver takes the lease, keeps it and loses it. It is a run's row with an epoch, written by a MERGE that
Delta's conflict check lets only one of two drivers commit. Leaves to ``run.py`` what a run does with it.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from deltatap.config import Settings
from deltatap.delta import columns, tables
from deltatap.errors import LeaseLostError, RunningError
from deltatap.prices import exact_usd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pyspark.sql import Row, SparkSession


LEASE_S = 60.0
_NAMES = tuple(column.name for column in columns.RUNS)
_SCHEMA = columns.arrow_schema(columns.RUNS)
_VERSIONS = ("deltatap", "openai", "httptools", "tiktoken", "pyspark", "delta-spark", "pyarrow", "pandas")


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write one captures table.

    Attributes:
        run_id: the run that holds it.
        epoch: higher than that of any holder before.
        started_at: of the run.
        went_on: whether the run had been started before.
        others: the other runs on the captures table.
        died: those of them that were found dead; they are to be landed and closed.
        taken_at: when it was last known to be ours, in seconds since the epoch.
    """

    run_id: str
    epoch: int
    started_at: datetime
    went_on: bool
    others: tuple[str, ...]
    died: tuple[str, ...]
    taken_at: float


def this_driver() -> str:
    """This process, so that another one on the same host can tell whether it lives."""
    return json.dumps({"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "start": _start(os.getpid())})


def lives(driver: str, heartbeat_age_s: float) -> bool | None:
    """Whether a lease's holder lives: here by its process, elsewhere by its heartbeat; None when one must wait."""
    holder = json.loads(driver)
    if holder["host"] == socket.gethostname() and holder["boot"] == _boot():
        start = _start(holder["pid"])
        return start is not None and start == holder["start"]
    return False if heartbeat_age_s > LEASE_S else None


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _start(pid: int) -> str | None:
    """When a process started, as the system counts; None when it is dead. Without /proc: whether it is there."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "alive"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def acquire(
    spark: SparkSession,
    settings: Settings,
    new_id: str,
    *,
    first: bool = False,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Lease:
    """Take the lease of the captures table for a run: the one asked for, a dead one of the same job, or a new one.

    A holder on another host whose heartbeat is fresh is watched until it beats (it lives) or its lease expires.

    Args:
        spark: the session.
        settings: of the run.
        new_id: for a new run, where the settings name none.
        first: whether there was no table of runs a moment ago: then nothing is read first, and the commit tells.
        wait: as ``time.sleep``.
        clock: as ``time.monotonic``.

    Raises:
        RunningError: when a run on the same captures table lives.
    """
    captures = settings.captures.table
    given_up = clock() + LEASE_S
    watched: dict[str, datetime] = {}
    if first and (lease := _take(spark, settings, [], new_id)) is not None:
        return lease
    while True:
        rows = _rows(spark, settings)
        waiting = False
        for row in (r for r in rows if r["status"] == "running"):
            alive = lives(row["driver"], (_now() - row["heartbeat_at"]).total_seconds())
            beat = watched.setdefault(row["run_id"], row["heartbeat_at"]) != row["heartbeat_at"]
            if alive or beat:
                raise RunningError(
                    f"run {row['run_id']} on captures table {captures} is running "
                    f"(driver {_readable(row['driver'])}, last heard of {row['heartbeat_at']:%Y-%m-%d %H:%M:%S} UTC); "
                    "one run at a time: wait until it ends, or stop it"
                )
            waiting = waiting or (alive is None and clock() < given_up)
        if waiting:
            wait(5.0)
            continue
        if (lease := _take(spark, settings, rows, new_id)) is not None:
            return lease


def _take(spark: SparkSession, settings: Settings, rows: list[Row], new_id: str) -> Lease | None:
    """Commit the lease; None when another driver was quicker."""
    dead = [row for row in rows if row["status"] == "running"]
    asked = settings.run.id
    went_on = next(
        (row for row in rows if row["run_id"] == asked) if asked else (row for row in dead if _same_job(row, settings)),
        None,
    )
    run_id = asked or (went_on["run_id"] if went_on else new_id)
    epoch = max((row["epoch"] for row in rows), default=0) + 1
    now = _now()
    values: dict[str, Any] = {
        "run_id": run_id,
        "status": "running",
        "started_at": went_on["started_at"] if went_on else now,
        "heartbeat_at": now,
        "labels": settings.run.labels,
        "config": json.dumps(_config(settings)),
        "versions": _versions(spark),
        "captures": settings.captures.table,
        "epoch": epoch,
        "driver": this_driver(),
    }
    update = "WHEN MATCHED AND t.run_id = s.run_id AND t.epoch < s.epoch THEN UPDATE SET *" if went_on else ""
    try:
        with _view(spark, values) as view:
            # Any row with our epoch is another driver that was quicker: it matches, and we insert nothing.
            done = spark.sql(f"""
                MERGE INTO {tables.quoted(settings.runs.table)} AS t USING {view} AS s
                ON t.captures = s.captures AND (t.run_id = s.run_id OR t.epoch >= s.epoch)
                {update}
                WHEN NOT MATCHED THEN INSERT *
            """).collect()[0]
    except Exception as error:
        if not tables.came_second(error):
            raise
        return None
    if went_on is None:
        # What is inserted had no row beside it, and Delta lets no other commit come between.
        if not done["num_inserted_rows"]:
            return None
    else:
        holders = [row for row in _rows(spark, settings) if row["epoch"] >= epoch]
        if [(row["run_id"], row["driver"]) for row in holders] != [(run_id, values["driver"])]:
            return None
    return Lease(
        run_id,
        epoch,
        values["started_at"],
        went_on is not None,
        tuple(sorted(row["run_id"] for row in rows if row["run_id"] != run_id)),
        tuple(row["run_id"] for row in dead if row["run_id"] != run_id),
        now.timestamp(),
    )


def beat(spark: SparkSession, settings: Settings, lease: Lease, values: Mapping[str, object]) -> None:
    """Renew the lease, and write the run's counts so far.

    Raises:
        LeaseLostError: when another driver holds it.
    """
    _update(spark, settings, lease.run_id, {"heartbeat_at": _now(), **values}, f"epoch = {lease.epoch}")
    row = next((row for row in _rows(spark, settings) if row["run_id"] == lease.run_id), None)
    if row is None or row["epoch"] != lease.epoch:
        raise LeaseLostError(
            f"run {lease.run_id}: another driver has taken over captures table {settings.captures.table}"
        )


def close(
    spark: SparkSession, settings: Settings, run_id: str, status: str, reason: str | None, values: Mapping[str, object]
) -> dict[str, Any]:
    """Close a run; its row."""
    ended = {"status": status, "reason": reason, "finished_at": _now(), "heartbeat_at": _now(), **values}
    _update(spark, settings, run_id, ended, "status = 'running'")
    return next(row.asDict(recursive=True) for row in _rows(spark, settings) if row["run_id"] == run_id)


def settle(spark: SparkSession, settings: Settings, run_id: str, values: Mapping[str, object]) -> None:
    """Write what a run came to after all; one that was running has died."""
    close(spark, settings, run_id, "died", "its driver died", {})
    _update(spark, settings, run_id, values, "status != 'running'")


def totals(spark: SparkSession, settings: Settings, run_id: str) -> dict[str, Any]:
    """A run's counts, as its rows in ``captures`` add up to."""
    calls = "size(retries) + IF(started_at IS NULL, 0, 1)"
    used = (
        "coalesce(usage_reported.{0}, IF(usage_reported IS NULL AND cost_basis IS NOT NULL, usage_tiktoken.{0}, 0), 0)"
    )
    earlier = "aggregate(retries, 0L, (sum, call) -> sum + coalesce(call.{0}, 0))"
    row = spark.sql(
        f"""
        SELECT count_if(status = 'completed') AS completed, count_if(status = 'interrupted') AS interrupted,
          count_if(status = 'failed') AS failed, coalesce(sum({calls}), 0) AS requests,
          coalesce(sum({used.format("input_tokens")} + {earlier.format("input_tokens")}), 0) AS input_tokens,
          coalesce(sum({used.format("output_tokens")} + {earlier.format("output_tokens")}), 0) AS output_tokens,
          CAST(sum({exact_usd("cost_usd")}) AS DOUBLE) AS cost_usd
        FROM {tables.quoted(settings.captures.table)} WHERE run_id = '{run_id}'
        """
    ).collect()[0]
    return dict(row.asDict())


def _update(spark: SparkSession, settings: Settings, run_id: str, values: Mapping[str, object], only: str) -> None:
    """Set columns of a run's row. A MERGE, since Delta's UPDATE binds no parameters."""
    assignments = ", ".join(f"t.{name} = s.{name}" for name in values)
    with _view(spark, {"run_id": run_id, **values}) as view:
        merge = f"""
            MERGE INTO {tables.quoted(settings.runs.table)} AS t USING {view} AS s ON t.run_id = s.run_id
            WHEN MATCHED AND t.{only} THEN UPDATE SET {assignments}
        """
        # Runs on other captures tables write here, too, and the table is Serializable.
        tables.commit(spark, merge)


@contextmanager
def _view(spark: SparkSession, values: Mapping[str, object]) -> Iterator[str]:
    """A row as a view, its other columns null."""
    view = f"deltatap_{uuid.uuid4().hex}"
    row = {name: list(value.items()) if isinstance(value, dict) else value for name, value in values.items()}
    # From Arrow: of Python's own rows Spark would make an RDD, and start a Python for it.
    spark.createDataFrame(pa.Table.from_pylist([row], _SCHEMA)).createOrReplaceTempView(view)
    try:
        yield view
    finally:
        spark.catalog.dropTempView(view)


def _rows(spark: SparkSession, settings: Settings) -> list[Row]:
    rows = spark.table(tables.quoted(settings.runs.table))
    mine = rows.where(rows["captures"] == settings.captures.table).select(*_NAMES)
    return [_in_utc(row) for row in mine.collect()]


def _in_utc(row: Row) -> Row:
    """The row with its times in UTC: Spark's Python rows have them in the machine's own zone, and do not say so."""
    return type(row)(
        **{
            name: value.astimezone(UTC) if isinstance(value, datetime) else value
            for name, value in row.asDict().items()
        }
    )


def _config(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def _same_job(run: Row, settings: Settings) -> bool:
    """Whether a dead run asked the same of the same endpoint, so that it can be gone on with."""
    theirs = Settings.model_validate(json.loads(run["config"]))
    return _job(theirs) == _job(settings)


def _job(settings: Settings) -> tuple[object, ...]:
    endpoint, capture = settings.endpoint, settings.capture
    return endpoint.label, endpoint.api, endpoint.model, settings.request, capture.mode, capture.owed


def _versions(spark: SparkSession) -> dict[str, str]:
    found = {"python": platform.python_version(), "spark": spark.version}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _readable(driver: str) -> str:
    holder = json.loads(driver)
    return f"pid {holder['pid']} on {holder['host']}"


def _now() -> datetime:
    return datetime.now(UTC)
