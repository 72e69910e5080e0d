"""Helpers that run a capture in this process and read its tables."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from rich.console import Console

from deltatap.delta.tables import quoted
from deltatap.driver.needs import preflight
from deltatap.driver.run import run
from deltatap.settings_loading import load_settings
from tests import prompts

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import Row, SparkSession

    from deltatap.driver.run import Ended
    from tests.simulation import Simulation


def capture(spark: SparkSession, folder: Path, simulator: Simulation, **sections: Any) -> tuple[Ended, str]:
    """Run with everything under one folder. Return how the run ended, and its output."""
    settings = load_settings(prompts.config(folder, simulator.base_url, **sections))
    out = io.StringIO()
    ended = run(settings, spark, preflight(settings), Console(file=out, width=200))
    return ended, out.getvalue() + "\n".join(ended.notes)


def captured(spark: SparkSession, folder: Path) -> list[Row]:
    """Return the rows of the captures table."""
    return spark.table(quoted(str(folder / "captures"))).collect()


def run_rows(spark: SparkSession, folder: Path) -> list[Row]:
    """Return the rows of the runs table."""
    return spark.table(quoted(str(folder / "runs"))).collect()


def journaled(folder: Path) -> set[tuple[int, int]]:
    """Return part and row of each capture in the journal, held ones included."""
    files = [path for suffix in ("held", "parquet") for path in (folder / "state").glob(f"*/journal/*.{suffix}")]
    found: set[tuple[int, int]] = set()
    for path in files:
        with suppress(FileNotFoundError):
            rows = pq.read_table(path, columns=["part", "row"], partitioning=None).to_pylist()
            found |= {(row["part"], row["row"]) for row in rows}
    return found
