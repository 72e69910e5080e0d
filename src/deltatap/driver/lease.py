"""The lease of a captures table: at most one run at a time writes the table.

The lease is part of a run's row in ``runs``: its epoch, its driver and its heartbeat. Knows how a driver acquires the
lease, renews it, detects that it is lost, and releases it. ``runs.py`` reads and updates the rows, and ``run.py``
decides what a run does with the lease.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatap.config import Settings
from deltatap.delta import tables
from deltatap.delta.lock import LOCK_FILE
from deltatap.delta.reader import identify_captures
from deltatap.delta.readers import reader_beside
from deltatap.driver import runs
from deltatap.errors import LeaseLostError, RunningError
from deltatap.model import RunStatus
from deltatap.program import program

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from pyspark.sql import SparkSession

    from deltatap.delta.identity import Identity

# A holder on another host that sends no heartbeat for this long loses the lease.
LEASE_S = 60.0
HEARTBEAT_S = 15.0
# After this long without a renewal, another driver may hold the lease.
UNSURE_S = LEASE_S - HEARTBEAT_S
# How long the renewals of a run may fail because of the storage. No request starts once its lease is unsure.
GIVE_UP_S = 120.0
_WATCH_EVERY_S, _RETRY_S = 5.0, 1.0
_VERSIONS = ("deltatap", "openai", "httptools", "tiktoken", "pyspark", "delta-spark", "pyarrow", "pandas")


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment on two clocks: the wall clock can be set back, and the monotonic clock may stop during sleep.

    Attributes:
        wall: seconds since the epoch.
        monotonic: seconds, as ``time.monotonic``.
    """

    wall: float
    monotonic: float

    @classmethod
    def now(cls) -> Moment:
        """The current moment."""
        return cls(time.time(), time.monotonic())

    def since(self, earlier: Moment) -> float:
        """Seconds since an earlier moment: the larger of the two clocks' differences."""
        return max(self.wall - earlier.wall, self.monotonic - earlier.monotonic)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write one captures table.

    Attributes:
        run_id: the run that holds the lease.
        epoch: higher than the epoch of every earlier holder.
        started_at: when the run started for the first time.
        resumed: whether the run had been started before.
        others: the other runs on the captures table.
        died: the other runs whose drivers died; their journals must land, and they must be closed.
        taken_at: just before the lease was committed.
        captures: the table.
        seen_at: the latest heartbeat of the drivers that died, in seconds since the epoch; 0 if no driver has died.
    """

    run_id: str
    epoch: int
    started_at: datetime
    resumed: bool
    others: tuple[str, ...]
    died: tuple[str, ...]
    taken_at: Moment
    captures: Identity
    seen_at: float = 0.0


def this_driver() -> str:
    """This process as JSON, so that another process on the same host can check whether this one is alive."""
    return json.dumps({"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "start": _start(os.getpid())})


def is_alive(driver: str | None, heartbeat_age_s: float) -> bool | None:
    """Whether a holder is alive: by its process on this host, by its heartbeat elsewhere; None while unknown."""
    holder = _holder(driver)
    if holder is not None and holder["host"] == socket.gethostname() and holder["boot"] == _boot():
        start = _start(holder["pid"])
        return start is not None and start == holder["start"]
    return False if heartbeat_age_s > LEASE_S else None


def is_gone(driver: str | None) -> bool:
    """Whether a driver ran on this host and its process has ended. False if it may still be alive elsewhere."""
    return is_alive(driver, 0.0) is False


def _holder(driver: str | None) -> dict[str, Any] | None:
    """A driver as :func:`this_driver` wrote it; None if it has the format of another version."""
    try:
        holder = json.loads(driver or "")
        return holder if {"host", "boot", "start"} <= holder.keys() and isinstance(holder["pid"], int) else None
    except (ValueError, KeyError, AttributeError):
        return None


class Watch:
    """Watches the holders of a lease for heartbeats. A new heartbeat proves that a holder on another host is alive."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Watch from now on.

        Args:
            clock: as ``time.monotonic``.
        """
        self._clock = clock
        self._seen: dict[tuple[str, str | None], tuple[datetime, float]] = {}

    def is_alive(self, row: Mapping[str, Any], now: datetime) -> bool | None:
        """Whether the driver of a running run is alive; None while unknown.

        A driver on another host is dead if its heartbeat is old, or if no new one comes for as long as the lease lasts.
        """
        heartbeat = row["heartbeat_at"]
        first, since = self._seen.setdefault((row["run_id"], row["driver"]), (heartbeat, self._clock()))
        if first != heartbeat:
            return True
        alive = is_alive(row["driver"], (now - heartbeat).total_seconds())
        return False if alive is None and self._clock() - since >= LEASE_S else alive


def acquire(
    spark: SparkSession,
    settings: Settings,
    new_id: str,
    *,
    captures: Identity | None = None,
    alone: bool = True,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Lease:
    """Take the lease of the captures table for the configured run, a dead run of the same job, or a new run.

    A holder on another host with a recent heartbeat is watched until it sends another one or its lease expires.

    Args:
        spark: the session.
        settings: of the run.
        new_id: the id of a new run, if the settings name none.
        captures: the table, if it has been identified already.
        alone: whether this driver holds the table's lock.
        wait: as ``time.sleep``.
        clock: as ``time.monotonic``.

    Raises:
        RunningError: if another run is active on the captures table.
    """
    captures = captures or identify_captures(reader_beside(spark), settings.captures.table, settings.runs.table)
    watch = Watch(clock)
    while True:
        rows = runs.read(spark, settings, captures)
        unknown = False
        for row in (row for row in rows if row["status"] == RunStatus.RUNNING):
            alive = watch.is_alive(row, runs.utc_now())
            if alive:
                raise RunningError(
                    f"another run is active on captures table {settings.captures.table}: run {row['run_id']} "
                    f"(driver {_readable(row['driver'])}, last heartbeat {row['heartbeat_at']:%Y-%m-%d %H:%M:%S} UTC); "
                    f"wait until it ends, or stop it with `{program()} stop {shlex.quote(row['run_id'])}`"
                )
            unknown = unknown or alive is None
        if not alone:
            raise RunningError(
                f"another run is active on captures table {settings.captures.table}: another process on this machine "
                f"has locked {captures.folder}/{LOCK_FILE}; wait until it ends"
            )
        if unknown:
            wait(_WATCH_EVERY_S)
        elif (lease := _take(spark, settings, captures, rows, new_id)) is not None:
            return lease


class Renewal:
    """Renews a lease, and records when it was last renewed.

    Attributes:
        counts: the run's counts, written with each renewal.
    """

    def __init__(self, spark: SparkSession, settings: Settings, lease: Lease, *, give_up_s: float = GIVE_UP_S) -> None:
        """Nothing is renewed yet.

        Args:
            spark: the session.
            settings: of the run.
            lease: that the run holds.
            give_up_s: how long renewals may fail.
        """
        self._spark, self._settings, self._lease, self._give_up_s = spark, settings, lease, give_up_s
        self._renewed_at = lease.taken_at
        self._failing_since: Moment | None = None
        self._lost: LeaseLostError | None = None
        self.counts: Mapping[str, object] = {}

    def renew(self) -> None:
        """Renew the lease. The next renewal repeats one that fails; meanwhile, the lease becomes unsure.

        Raises:
            LeaseLostError: if another driver holds the lease.
            Exception: what has failed, if renewals have failed for too long.
        """
        lease, at = self._lease, Moment.now()
        values = {"heartbeat_at": runs.utc_now(), **self.counts}
        try:
            runs.update(self._spark, self._settings, lease.captures, lease.run_id, values, _is_open(lease))
            check(self._spark, self._settings, lease)
        except LeaseLostError as error:
            self._lost = error
            raise
        except Exception:
            now = Moment.now()
            self._failing_since = self._failing_since or now
            if now.since(self._failing_since) >= self._give_up_s:
                raise
        else:
            self._renewed_at, self._failing_since = at, None

    def require(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Require the lease, before work on what belongs to its holder. Reads the table only if the lease is unsure.

        Args:
            sleep: as ``time.sleep``.

        Raises:
            LeaseLostError: if another driver holds the lease.
            Exception: what has failed, if the table cannot be read for too long.
        """
        began = Moment.now()
        if self._lost is not None:
            raise self._lost
        while self.is_unsure():
            try:
                check(self._spark, self._settings, self._lease)
            except LeaseLostError:
                raise
            except Exception:
                if Moment.now().since(began) >= self._give_up_s:
                    raise
                sleep(_RETRY_S)
            else:
                return

    def is_unsure(self) -> bool:
        """Whether the last renewal is so long ago that another driver may hold the lease by now."""
        return Moment.now().since(self._renewed_at) > UNSURE_S


def check(spark: SparkSession, settings: Settings, lease: Lease) -> None:
    """Check that no other driver has taken the lease.

    Raises:
        LeaseLostError: if one has.
    """
    rows = runs.read(spark, settings, lease.captures)
    if max((row["epoch"] for row in rows), default=0) != lease.epoch:
        raise _lost(settings, lease)


def close(
    spark: SparkSession,
    settings: Settings,
    lease: Lease,
    status: RunStatus,
    reason: str | None,
    values: Mapping[str, object],
) -> dict[str, Any]:
    """Close the run that holds a lease, unless it is closed already, and return its row. This releases the lease.

    Raises:
        LeaseLostError: if another driver has taken over. Then the run's row and folder belong to that driver.
    """
    ended = {**runs.closing(status, reason), **values}
    runs.update(spark, settings, lease.captures, lease.run_id, ended, _is_open(lease))
    rows = runs.read(spark, settings, lease.captures)
    row = next((row for row in rows if row["run_id"] == lease.run_id), None)
    if row is None or row["epoch"] != lease.epoch or row["status"] == RunStatus.DIED:
        raise _lost(settings, lease)
    return row


def _is_open(lease: Lease) -> str:
    """The SQL condition that a run's row is open, and that its driver has this lease."""
    return f"status = '{RunStatus.RUNNING}' AND epoch = {lease.epoch}"


def _lost(settings: Settings, lease: Lease) -> LeaseLostError:
    return LeaseLostError(f"run {lease.run_id}: another driver has taken over captures table {settings.captures.table}")


def run_to_resume(rows: Sequence[dict[str, Any]], settings: Settings) -> dict[str, Any] | None:
    """The run that this start resumes: the configured one if it exists, else a dead run of the same job."""
    if settings.run.id is not None:
        return next((row for row in rows if row["run_id"] == settings.run.id), None)
    return next((row for row in rows if row["status"] == RunStatus.RUNNING and _same_job(row, settings)), None)


def _take(
    spark: SparkSession, settings: Settings, captures: Identity, rows: list[dict[str, Any]], new_id: str
) -> Lease | None:
    """Commit the lease; None if another driver committed first. All running runs among the rows are dead."""
    resumed = run_to_resume(rows, settings)
    run_id = resumed["run_id"] if resumed else settings.run.id or new_id
    epoch = max((row["epoch"] for row in rows), default=0) + 1
    taken_at, now = Moment.now(), runs.utc_now()
    values: dict[str, Any] = {
        "run_id": run_id,
        "status": RunStatus.RUNNING,
        "started_at": resumed["started_at"] if resumed else now,
        "heartbeat_at": now,
        "labels": settings.run.labels,
        "config": json.dumps(settings.model_dump(mode="json")),
        "versions": _versions(spark),
        "captures": settings.captures.table,
        "epoch": epoch,
        "driver": this_driver(),
        "captures_id": captures.id,
        "captures_location": captures.location,
    }
    assigned = ", ".join(f"t.{name} = s.{name}" for name in runs.NAMES)
    update = f"WHEN MATCHED AND t.run_id = s.run_id AND t.epoch < s.epoch THEN UPDATE SET {assigned}" if resumed else ""
    try:
        with runs.row_view(spark, values) as view:
            # A row with this epoch or a later one belongs to a driver that committed first. Such a row matches, so the
            # statement inserts nothing. The columns are named, because a newer version may have added some.
            spark.sql(f"""
                MERGE INTO {tables.quoted(settings.runs.table)} AS t USING {view} AS s
                ON {captures.runs_sql("t")} AND (t.run_id = s.run_id OR t.epoch >= s.epoch)
                {update}
                WHEN NOT MATCHED THEN
                    INSERT ({", ".join(runs.NAMES)}) VALUES ({", ".join(f"s.{name}" for name in runs.NAMES)})
            """)
    except Exception as error:
        if not tables.is_conflict(error):
            raise
        return None
    holders = [row for row in runs.read(spark, settings, captures) if row["epoch"] >= epoch]
    if [(row["run_id"], row["driver"]) for row in holders] != [(run_id, values["driver"])]:
        return None
    others = [row for row in rows if row["run_id"] != run_id]
    died = [row["heartbeat_at"] for row in rows if row["status"] == RunStatus.RUNNING and row["heartbeat_at"]]
    return Lease(
        run_id,
        epoch,
        values["started_at"],
        resumed is not None,
        tuple(sorted(row["run_id"] for row in others)),
        tuple(row["run_id"] for row in others if row["status"] == RunStatus.RUNNING),
        taken_at,
        captures,
        max((at.timestamp() for at in died), default=0.0),
    )


def _same_job(run: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a run has the job of these settings. An unreadable configuration counts as another job."""
    try:
        return _job(Settings.model_validate(json.loads(run["config"]))) == _job(settings)
    except (ValueError, TypeError, RecursionError):
        return False


def _job(settings: Settings) -> tuple[object, ...]:
    """The settings that two runs must share for one to resume the other."""
    endpoint, capture, prompts = settings.endpoint, settings.capture, settings.prompts
    called = endpoint.label, endpoint.api, endpoint.model
    return called, settings.request, capture.mode, capture.owed, prompts.template, prompts.system_template


def _versions(spark: SparkSession) -> dict[str, str]:
    found = {"python": platform.python_version(), "spark": spark.version}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _readable(driver: str | None) -> str:
    holder = _holder(driver)
    return "unknown" if holder is None else f"pid {holder['pid']} on {holder['host']}"


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _start(pid: int) -> str | None:
    """When a process started, in the kernel's clock ticks; None if it is dead. Without /proc: whether it exists."""
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
