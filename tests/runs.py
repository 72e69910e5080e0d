"""Runs in this process, and what they left in the tables."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rich.console import Console

from deltatap.config import load_settings
from deltatap.delta.tables import quoted
from deltatap.driver.needs import preflight
from deltatap.driver.run import run
from tests import prompts

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import Row, SparkSession

    from deltatap.driver.run import Ended
    from tests.simulation import Simulation


def capture(spark: SparkSession, folder: Path, simulator: Simulation, **sections: Any) -> tuple[Ended, str]:
    """A run with everything under one folder; how it ended, and what it said."""
    settings = load_settings(prompts.config(folder, simulator.base_url, **sections))
    said = io.StringIO()
    ended = run(settings, spark, preflight(settings), Console(file=said, width=200))
    return ended, said.getvalue() + "\n".join(ended.notes)


def captured(spark: SparkSession, folder: Path) -> list[Row]:
    """The rows of captures."""
    return spark.table(quoted(str(folder / "captures"))).collect()


def run_rows(spark: SparkSession, folder: Path) -> list[Row]:
    """The rows of runs."""
    return spark.table(quoted(str(folder / "runs"))).collect()
