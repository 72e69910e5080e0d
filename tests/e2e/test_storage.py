"""Runs whose state folder is on a file system with faults, in the driver, the JVM and the workers.

The simulator counts the calls: no request whose answer had finished is sent again, and each request has one row.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap.delta.tables import quoted
from tests import prompts
from tests.jobs import FLUSH_S, finished, in_one_flush, kill, start, streaming_workers, wait_until
from tests.simulation import start_simulator
from tests.storage import Call, Mode, Storage, errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.compiler,
]

PROMPTS = 400
CONCURRENCY = 16
FAULT_S = 10.0
PACE = ("--ttft-ms", "300", "--itl-ms", "20", "--tokens", "25")


def run(
    spark: SparkSession,
    tables: Path,
    tmp_path: Path,
    act: Callable[[Storage, Any, Simulation, Path], None],
    begin: Callable[[Storage], None] = lambda _: None,
    **sections: Any,
) -> tuple[Storage, dict[str, Any], list[Any]]:
    """Run a job to its end; `act` is called once calls are made. Return the simulator's counts and the rows."""
    prompts.write(spark, tables / "prompts", [(f"r{n:04d}", f"Prompt {n}?") for n in range(PROMPTS)])
    storage, log = Storage(tables / "state", tmp_path), tmp_path / "log"
    with start_simulator(*PACE) as simulator:
        config = tmp_path / "config.yml"
        tree = prompts.config(
            tables, simulator.base_url, capture={"concurrency": CONCURRENCY}, spark={"master": "local[3]"}, **sections
        )
        config.write_text(yaml.safe_dump(tree))
        begin(storage)
        job = start(config, log, storage.env)
        wait_until(finished(simulator, 20), job, log)
        act(storage, job, simulator, log)
        assert job.wait(timeout=400) == 0, log.read_text()
        counts = {**simulator.counts(), "in_one_flush": in_one_flush(simulator)}
    rows = spark.table(quoted(str(tables / "captures"))).select("request_id", "status").collect()
    assert Counter(row["status"] for row in rows) == {"completed": PROMPTS}, log.read_text()
    assert len({row["request_id"] for row in rows}) == PROMPTS
    assert not list((tables / "state").iterdir()), "a finished run leaves no state"
    return storage, counts, rows


def test_each_call_fails_once_in_each_process(spark: SparkSession, tables: Path, tmp_path: Path) -> None:
    def begin(storage: Storage) -> None:
        for call, error in errors().items():
            storage.set(call, Mode.ONCE, error)

    storage, counts, _ = run(spark, tables, tmp_path, lambda *_: None, begin)
    assert (counts["calls"], counts["finished"]) == (PROMPTS, PROMPTS)
    for call in set(Call) - {Call.SYNC, Call.MKDIR, Call.STAT}:
        assert all(storage.hits(call).values()), (call, storage.hits(call))
    assert storage.hits(Call.STAT)["driver"], "a worker asks only if it has to wait"
    assert storage.hits(Call.SYNC)["driver"]
    assert storage.hits(Call.SYNC)["worker"]
    assert storage.hits(Call.MKDIR)["driver"]
    assert not storage.hits(Call.MKDIR)["worker"], "only the driver creates folders"


def test_every_call_fails_for_ten_seconds(spark: SparkSession, tables: Path, tmp_path: Path) -> None:
    def act(storage: Storage, *_: Any) -> None:
        for call, error in errors().items():
            storage.set(call, Mode.FAIL, error, FAULT_S)

    storage, counts, _ = run(spark, tables, tmp_path, act)
    assert (counts["calls"], counts["finished"]) == (PROMPTS, PROMPTS)
    assert storage.hits(Call.CREATE)["driver"]
    assert storage.hits(Call.CREATE)["worker"]


def test_old_answers_and_a_killed_worker(spark: SparkSession, tables: Path, tmp_path: Path) -> None:
    """Captures that were in the journal before the kill are invisible at first, and are not paid for again."""

    def act(storage: Storage, job: Any, simulator: Simulation, log: Path) -> None:
        storage.set(Call.LIST, Mode.STALE, for_s=FAULT_S)
        storage.set(Call.READ, Mode.STALE, for_s=FAULT_S)
        wait_until(finished(simulator, simulator.counts()["finished"] + 60), job, log)
        kill(streaming_workers(job, simulator))

    _, counts, _ = run(spark, tables, tmp_path, act, state={"flush_s": FLUSH_S})
    assert PROMPTS <= counts["calls"] <= PROMPTS + CONCURRENCY + counts["in_one_flush"]
