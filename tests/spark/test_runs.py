from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from deltatap.delta.reader import SparkReader, identify_captures
from deltatap.driver import lease as leases
from deltatap.driver import runs
from deltatap.errors import LeaseLostError, RunningError
from deltatap.model import RunStatus
from deltatap.settings_loading import load_settings
from tests import prompts

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from deltatap.delta.identity import Identity


@pytest.fixture
def settings(spark: SparkSession, tables: Path) -> Settings:
    made = load_settings(prompts.config(tables, "http://127.0.0.1:9/v1"))
    delta_tables.ensure(spark, made.runs.table, columns.RUNS, "'delta.isolationLevel' = 'Serializable'")
    return made


def elsewhere(spark: SparkSession, settings: Settings, run_id: str, age_s: float) -> None:
    """Move a run's driver to another host, with a heartbeat ``age_s`` seconds ago."""
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    driver = json.dumps({"host": "other", "boot": "x", "pid": 1, "start": "1"})
    runs.update(spark, settings, this(spark, settings), run_id, {"heartbeat_at": at, "driver": driver}, "epoch > 0")


def this(spark: SparkSession, settings: Settings) -> Identity:
    return identify_captures(SparkReader(spark), settings.captures.table, settings.runs.table)


def dead(spark: SparkSession, settings: Settings, run_id: str) -> None:
    driver = json.dumps({**json.loads(leases.this_driver()), "start": "0"})  # another process with the same pid
    runs.update(spark, settings, this(spark, settings), run_id, {"driver": driver}, "epoch > 0")


def test_a_lease_is_refused_while_its_holder_is_alive(spark: SparkSession, settings: Settings) -> None:
    lease = leases.acquire(spark, settings, "a")
    assert (lease.run_id, lease.epoch, lease.resumed, lease.died) == ("a", 1, False, ())
    with pytest.raises(
        RunningError, match=rf"another run is active on captures table .*: run a \(driver pid {os.getpid()} on "
    ):
        leases.acquire(spark, settings, "b")


@pytest.mark.slow
def test_closing_a_run_releases_its_lease(spark: SparkSession, settings: Settings) -> None:
    lease = leases.acquire(spark, settings, "a")
    row = leases.close(spark, settings, lease, RunStatus.COMPLETED, None, {"completed": 3})
    assert (row["status"], row["completed"]) == ("completed", 3)
    assert leases.acquire(spark, settings, "b").epoch == 2


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_driver_that_lost_its_lease_gets_an_error_and_writes_nothing(spark: SparkSession, settings: Settings) -> None:
    first = leases.acquire(spark, settings, "a")
    renew(spark, settings, first, {"completed": 1})
    dead(spark, settings, "a")
    second = leases.acquire(spark, settings, "b")
    with pytest.raises(LeaseLostError, match="run a: another driver has taken over"):
        renew(spark, settings, first, {"completed": 99})
    with pytest.raises(LeaseLostError, match="run a: another driver has taken over"):
        leases.close(spark, settings, first, RunStatus.FAILED, "a reason", {"completed": 99})
    renew(spark, settings, second, {"completed": 2})
    (row,) = spark.table(delta_tables.quoted(settings.runs.table)).collect()
    assert (row["completed"], row["status"]) == (2, "running"), "the older driver has written nothing"


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


@pytest.mark.slow
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


def captured(**values: Any) -> dict[str, Any]:
    """A row of `captures` with one call, in the form of its Arrow schema."""
    usual = {"run_id": "r", "mode": "stream", "status": "completed", "retries": [], "cost_basis": "reported"}
    tiktoken = {"input_tokens": 8, "output_tokens": 20}
    return {**usual, "started_at": datetime.now(UTC), "usage_tiktoken": tiktoken} | values


MOST = 2**63 - 1


def test_the_totals_of_a_run_cannot_overflow_and_are_never_less_than_what_arrived(
    spark: SparkSession, settings: Settings
) -> None:
    delta_tables.ensure(spark, settings.captures.table, columns.CAPTURES)
    huge = {"input_tokens": MOST, "output_tokens": MOST}
    rows = [
        captured(request_id="reported", usage_reported={"input_tokens": 10, "output_tokens": 15}, cost_usd=0.25),
        captured(request_id="zero", usage_reported={"input_tokens": 10, "output_tokens": 0}, cost_basis="mixed"),
        captured(request_id="stale", status="interrupted", cost_basis="mixed", cost_usd=float("nan"),
                 usage_reported={"input_tokens": 10, "output_tokens": 3}),
        captured(request_id="none", status="interrupted", cost_basis="tiktoken", cost_usd=float("inf")),
        captured(request_id="nothing", status="failed", cost_basis=None),
    ]  # fmt: skip
    write(spark, settings, rows)
    row = runs.totals(spark, settings, "r")
    assert (row["completed"], row["interrupted"], row["failed"], row["requests"]) == (2, 2, 1, 5)
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (38, 75, 0.25)
    write(spark, settings, [captured(request_id=str(at), usage_reported=huge, retries=[huge, huge]) for at in range(3)])
    row = runs.totals(spark, settings, "r")
    assert (row["input_tokens"], row["output_tokens"]) == (MOST, MOST)
    assert runs.totals(spark, settings, "another")["input_tokens"] == 0
    assert runs.has_output(spark, settings, "r")
    write(spark, settings, [captured(run_id="reused", request_id="a", started_at=None)])
    assert not runs.has_output(spark, settings, "reused")


def write(spark: SparkSession, settings: Settings, rows: list[dict[str, Any]]) -> None:
    found = pa.Table.from_pylist(rows, columns.arrow_schema(columns.CAPTURES))
    spark.createDataFrame(found).write.format("delta").mode("append").save(settings.captures.table)
