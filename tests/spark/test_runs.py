from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.config import Settings, load_settings
from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from deltatap.driver import lease as leases
from deltatap.driver import runs
from deltatap.errors import LeaseLostError, RunningError
from deltatap.model import RunStatus
from tests import prompts

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession


@pytest.fixture
def settings(spark: SparkSession, tables: Path) -> Settings:
    made = load_settings(prompts.config(tables, "http://127.0.0.1:9/v1"))
    delta_tables.ensure(spark, made.runs.table, columns.RUNS, "'delta.isolationLevel' = 'Serializable'")
    return made


def elsewhere(spark: SparkSession, settings: Settings, run_id: str, age_s: float) -> None:
    """Move a run's driver to another host, with a heartbeat ``age_s`` seconds ago."""
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    driver = json.dumps({"host": "other", "boot": "x", "pid": 1, "start": "1"})
    runs.update(spark, settings, run_id, {"heartbeat_at": at, "driver": driver}, "epoch > 0")


def dead(spark: SparkSession, settings: Settings, run_id: str) -> None:
    driver = json.dumps({**json.loads(leases.this_driver()), "start": "0"})  # another process with the same pid
    runs.update(spark, settings, run_id, {"driver": driver}, "epoch > 0")


def test_a_lease_is_refused_while_its_holder_is_alive(spark: SparkSession, settings: Settings) -> None:
    lease = leases.acquire(spark, settings, "a")
    assert (lease.run_id, lease.epoch, lease.resumed, lease.died) == ("a", 1, False, ())
    with pytest.raises(
        RunningError, match=rf"another run is active on captures table .*: run a \(driver pid {os.getpid()} on "
    ):
        leases.acquire(spark, settings, "b")


def test_closing_a_run_releases_its_lease(spark: SparkSession, settings: Settings) -> None:
    leases.acquire(spark, settings, "a")
    row = runs.close(spark, settings, "a", RunStatus.COMPLETED, None, {"completed": 3})
    assert (row["status"], row["completed"]) == ("completed", 3)
    assert leases.acquire(spark, settings, "b").epoch == 2


def test_a_dead_run_is_resumed_by_the_same_job_only(spark: SparkSession, settings: Settings) -> None:
    started = leases.acquire(spark, settings, "a").started_at
    dead(spark, settings, "a")
    lease = leases.acquire(spark, settings, "b")
    assert (lease.run_id, lease.epoch, lease.resumed, lease.died) == ("a", 2, True, ())
    assert abs(lease.started_at - started) < timedelta(seconds=1)
    dead(spark, settings, "a")
    other = load_settings(settings.model_dump() | {"request": {"temperature": 1}})
    lease = leases.acquire(spark, other, "c")
    assert (lease.run_id, lease.epoch, lease.resumed, lease.died) == ("c", 3, False, ("a",))


def test_a_holder_on_another_host_is_watched_until_its_next_heartbeat(spark: SparkSession, settings: Settings) -> None:
    leases.acquire(spark, settings, "a")
    elsewhere(spark, settings, "a", age_s=5)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            elsewhere(spark, settings, "a", age_s=0)

    with pytest.raises(RunningError, match="driver pid 1 on other"):
        leases.acquire(spark, settings, "b", wait=wait, clock=lambda: 0.0)
    assert len(waits) == 2


def test_a_silent_holder_on_another_host_loses_its_lease(spark: SparkSession, settings: Settings) -> None:
    leases.acquire(spark, settings, "a")
    elsewhere(spark, settings, "a", age_s=5)
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    lease = leases.acquire(spark, settings, "b", wait=wait, clock=lambda: now[0])
    assert now[0] >= leases.LEASE_S
    assert (lease.run_id, lease.epoch) == ("a", 2)


def renew(spark: SparkSession, settings: Settings, lease: leases.Lease, counts: dict[str, int]) -> None:
    renewal = leases.Renewal(spark, settings, lease)
    renewal.counts = counts
    renewal.renew()


def test_a_driver_that_lost_its_lease_gets_an_error_and_writes_nothing(spark: SparkSession, settings: Settings) -> None:
    first = leases.acquire(spark, settings, "a")
    renew(spark, settings, first, {"completed": 1})
    dead(spark, settings, "a")
    second = leases.acquire(spark, settings, "b")
    with pytest.raises(LeaseLostError, match="run a: another driver has taken over"):
        renew(spark, settings, first, {"completed": 99})
    renew(spark, settings, second, {"completed": 2})
    (row,) = spark.table(delta_tables.quoted(settings.runs.table)).collect()
    assert row["completed"] == 2, "the older driver's counts are not written"


def test_one_of_several_simultaneous_drivers_gets_the_lease(spark: SparkSession, settings: Settings) -> None:
    at_once = threading.Barrier(3)
    outcomes: list[Any] = []

    def start(name: str) -> None:
        at_once.wait()
        try:
            outcomes.append(leases.acquire(spark, settings, name).run_id)
        except RunningError:
            outcomes.append(None)

    threads = [threading.Thread(target=start, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [name for name in outcomes if name]
    assert len(winners) == 1, outcomes
    rows = spark.table(delta_tables.quoted(settings.runs.table)).collect()
    assert [row["run_id"] for row in rows if row["status"] == "running"] == winners


def test_two_tables_have_two_leases(spark: SparkSession, settings: Settings, tables: Path) -> None:
    leases.acquire(spark, settings, "a")
    other = load_settings(settings.model_dump() | {"captures": {"table": str(tables / "other")}})
    assert leases.acquire(spark, other, "b").run_id == "b"


@pytest.mark.slow
def test_runs_on_two_captures_tables_renew_their_leases_at_the_same_time(
    spark: SparkSession, settings: Settings, tables: Path
) -> None:
    other = load_settings(settings.model_dump() | {"captures": {"table": str(tables / "other")}})
    both = [(settings, leases.acquire(spark, settings, "a")), (other, leases.acquire(spark, other, "b"))]
    failures: list[BaseException] = []

    def beat(of: Settings, lease: leases.Lease) -> None:
        try:
            for count in range(4):
                renew(spark, of, lease, {"completed": count})
        except BaseException as error:  # noqa: BLE001 - asserted below
            failures.append(error)

    threads = [threading.Thread(target=beat, args=pair) for pair in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [row["completed"] for row in spark.table(delta_tables.quoted(settings.runs.table)).collect()] == [3, 3]
