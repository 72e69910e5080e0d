"""What the released version left behind: its tables, a run whose driver was killed, and a journal that never landed.

``released.py`` made the archive with the code of that version.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.delta.tables import quoted
from deltatap.driver.estimate import estimate_run
from deltatap.prices import load_prices
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.runs import capture, captured, run_rows

if TYPE_CHECKING:
    from pyspark.sql import Row, SparkSession

    from tests.simulation import Simulation

ARCHIVE = Path(__file__).with_name("released.tar.gz")
MADE_IN = "/released"


@pytest.fixture
def released(spark: SparkSession, tables: Path) -> Path:
    """The folder of the released version's tables and state."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tables, filter="data")
    runs = quoted(str(tables / "runs"))
    spark.sql(f"UPDATE {runs} SET captures = replace(captures, '{MADE_IN}', '{tables}')")
    return tables


def dead_run(folder: Path) -> str:
    return next(path.name for path in (folder / "state").iterdir())


def hashes(rows: list[Row]) -> dict[str, tuple[Any, ...]]:
    return {row["request_id"]: (row["text"], row["request_hash"], row["source_hash"]) for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sim", "another"])
def test_a_new_version_takes_over_what_the_released_one_left(
    spark: SparkSession, released: Path, simulator: Simulation, name: str
) -> None:
    dead = dead_run(released)
    journals = [str(path) for path in (released / "state" / dead / "journal").glob("*.parquet")]
    journaled = {row["request_id"] for row in spark.read.parquet(*journals).collect()}
    before = captured(spark, released)
    assert journaled
    assert "reused_from" not in before[0]
    for table in ("captures", "runs"):  # an even newer version was tried meanwhile
        spark.sql(f"ALTER TABLE {quoted(str(released / table))} ADD COLUMN (of_tomorrow INT)")
    ended, shown = capture(spark, released, simulator, endpoint={"name": name})

    assert ended.row["status"] == "completed", shown
    rows = captured(spark, released)
    assert "reused_from" in rows[0]
    tokens = {row["request_id"]: [chunk["tokens"] for chunk in row["chunks"]] for row in rows}
    assert sum(None in each for each in tokens.values()) == len(before) + len(journaled)
    assert {row["token_source"] for row in rows if None not in tokens[row["request_id"]]} == {"tiktoken"}
    again = 24 if name == "another" else 24 - len(before) - len(journaled)
    assert simulator.counts()["calls"] == again, "another endpoint owes every request; the same job only the rest"
    if name == "sim":
        assert ended.row["run_id"] == dead
        assert {row["request_id"] for row in rows} == {f"r{n:02d}" for n in range(24)}
        assert hashes(rows).items() >= hashes(before).items()
    of_dead = {row["request_id"] for row in rows if row["run_id"] == dead}
    assert of_dead >= journaled, "the journal has landed"
    assert {row["run_id"]: row["status"] for row in run_rows(spark, released)}[dead] == (
        "completed" if name == "sim" else "died"
    )
    assert json.loads(ended.row["config"])["endpoint"]["name"] == name
    assert not list((released / "state").glob("*/journal/*.parquet"))


@pytest.mark.slow
def test_a_dry_run_reads_the_tables_of_the_released_version_as_they_are(
    spark: SparkSession, released: Path, simulator: Simulation
) -> None:
    settings = load_settings(prompts.config(released, simulator.base_url, endpoint={"name": "sim"}))
    known = {row["request_id"] for row in captured(spark, released)}
    (found,) = estimate_run(spark, settings, load_prices(None))
    assert found.requests == 24 - len(known), "the journal of the dead run has not landed"
    assert "reused_from" not in captured(spark, released)[0]
