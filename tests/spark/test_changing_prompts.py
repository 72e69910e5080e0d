"""A prompts table that others append to, update, delete from and vacuum while a run plans and captures."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from deltatap.delta.tables import quoted
from tests import prompts
from tests.runs import capture, captured

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

BEFORE = 20


@pytest.fixture
def eager_vacuum(spark: SparkSession) -> Iterator[None]:
    """VACUUM may delete files at once, and in few tasks."""
    wanted = {
        "spark.databricks.delta.retentionDurationCheck.enabled": "false",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
    }
    for name, value in wanted.items():
        spark.conf.set(name, value)
    yield
    for name in wanted:
        spark.conf.unset(name)


@pytest.mark.slow
@pytest.mark.usefixtures("eager_vacuum")
def test_a_run_captures_one_version_of_the_table(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    rows = [(f"r{n:02d}", "before", None, None) for n in range(BEFORE)]
    frame = spark.createDataFrame(rows, prompts.SCHEMA)
    frame.repartition(BEFORE).write.format("delta").save(str(tables / "prompts"))
    table, over, changes = quoted(str(tables / "prompts")), threading.Event(), []

    def change() -> None:
        for n in range(4):
            for statement in (
                f"UPDATE {table} SET prompt = 'after' WHERE request_id = 'r{n:02d}'",
                f"DELETE FROM {table} WHERE request_id = 'r{BEFORE - 1 - n:02d}'",
                f"INSERT INTO {table} VALUES ('new{n}', 'after', NULL, NULL)",
                f"VACUUM {table} RETAIN 0 HOURS",
            ):
                if over.is_set():
                    return
                spark.sql(statement)
                changes.append(statement)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        ended, shown = capture(spark, tables, simulator)
    finally:
        over.set()
        changing.join()
    assert changes
    found = captured(spark, tables)
    ids = [row["request_id"] for row in found]
    assert len(set(ids)) == len(ids), "one row for each request"
    assert simulator.counts()["calls"] == len(ids)
    if ended.row["status"] == "completed":
        assert ended.row["completed"] == len(ids) >= BEFORE // 2
    else:  # a file of the version that was being read is gone
        assert "[FAILED_READ_FILE" in ended.row["reason"], shown
    ended, shown = capture(spark, tables, simulator)
    assert ended.row["status"] == "completed", shown
    newest = {row["request_id"] for row in captured(spark, tables)}
    assert newest >= {row["request_id"] for row in spark.table(table).collect()}
