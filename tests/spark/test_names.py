"""Run ids and state folders with odd names, each through a whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deltatap.delta.tables import literal
from deltatap.driver.needs import preflight
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.runs import capture, captured, run_rows

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

# Run id, state folder. One run tries an id and a folder.
NAMES = [
    ("nightly:2026-11-25", "st:1/day=3"),
    ('_[/b] ../it\'s "${user.home}"\\*? ' + "é😀" * 150, "*?/[1] {a,b} %20#é'\"\\"),
]


@pytest.mark.slow
def test_runs_with_odd_names_land_and_are_owed_nothing(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    prompts.write(spark, tables / "prompts", [("r0", "hello"), ("r1", "hello")])
    for run_id, folder in NAMES:
        sections = {"run": {"id": run_id}, "state": {"dir": str(tables / folder)}, "capture": {"owed": "all"}}
        ended, out = capture(spark, tables, simulator, **sections)
        assert (ended.row["run_id"], ended.row["status"], ended.row["completed"]) == (run_id, "completed", 2)
        assert f"run {run_id}: 2 requests owed" in out
        assert not list((tables / folder).iterdir())
    keys = [(row.run_id, row.request_id) for row in captured(spark, tables)]
    assert sorted(keys) == sorted((run_id, f"r{n}") for run_id, _ in NAMES for n in range(2))
    assert len(simulator.calls()) == len(keys)
    assert {row.status for row in run_rows(spark, tables)} == {"completed"}


def test_spark_reads_back_a_literal_under_all_settings(spark: SparkSession) -> None:
    texts = [run_id for run_id, _ in NAMES] + ["%", "a''b", "\\u0041", "\\'", "plain", "${spark.app.name}"]
    for escaped in ("false", "true"):
        spark.conf.set("spark.sql.parser.escapedStringLiterals", escaped)
        try:
            row = spark.sql(f"SELECT array({', '.join(map(literal, texts))}) AS texts").first()
        finally:
            spark.conf.unset("spark.sql.parser.escapedStringLiterals")
        assert row is not None
        assert row.texts == texts


@pytest.mark.parametrize("name", ["a:b[1]", "a:b*", "a:b/{c}"])
def test_a_state_folder_that_spark_cannot_read_is_refused_before_any_call(
    tables: Path, simulator: Simulation, name: str
) -> None:
    settings = load_settings(prompts.config(tables, simulator.base_url, state={"dir": str(tables / name)}))
    with pytest.raises(ConfigError, match=r"^state\.dir: .*: Spark cannot read a path that has a colon and one of"):
        preflight(settings)
    assert simulator.calls() == []
