"""A key from a secret scope, in a notebook: read on the driver, used in the workers, shown nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deltatap import capture_udf, load_settings
from deltatap.driver.check import check
from tests import prompts
from tests.notebook import with_secrets
from tests.runs import capture, captured, run_rows
from tests.simulation import KEY, KEY_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

SCOPED = {"api_key": {"secret": "team/openai"}}


@pytest.fixture
def locked(simulator: Simulation) -> Simulation:
    """A simulator that requires the key."""
    simulator.change(api_key_env=KEY_VARIABLE)
    return simulator


@pytest.mark.slow
def test_secret_reaches_the_workers_and_nothing_else(
    spark: SparkSession,
    tables: Path,
    locked: Simulation,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with_secrets(monkeypatch, {"team/openai": f"{KEY}\n"})
    prompts.write(spark, tables / "prompts", [("a", "x", None), ("b", "y", None)])
    tree = prompts.config(tables, locked.base_url, endpoint=SCOPED)
    settings = load_settings(tree)
    found = {finding.what: finding for finding in check(settings, lambda: spark)}
    assert [finding for finding in found.values() if finding.level == "problem"] == []
    assert found["models"].level == "ok", "the request was sent with the key"

    ended, shown = capture(spark, tables, locked, endpoint=SCOPED)
    assert ended.row["completed"] == 2
    assert {row["status"] for row in captured(spark, tables)} == {"completed"}
    frame = spark.createDataFrame([("x",)], "prompt STRING").select(capture_udf(tree, max_requests=1)("prompt"))
    assert frame.collect()[0][0]["status"] == "completed"

    frame.explain(extended=True)
    # Parquet pages are compressed, so read the tables instead of searching their files.
    written = repr(captured(spark, tables)) + repr(run_rows(spark, tables))
    visible = written + shown + repr(ended) + repr(settings) + repr(frame) + repr(found) + "".join(capfd.readouterr())
    assert KEY not in visible
    assert [path for path in tables.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_missing_secret_is_reported_and_nothing_is_called(
    spark: SparkSession, tables: Path, locked: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_secrets(monkeypatch, {})
    prompts.write(spark, tables / "prompts", [("a", "x", None)])
    settings = load_settings(prompts.config(tables, locked.base_url, endpoint=SCOPED))
    problems = {
        finding.what: finding.detail for finding in check(settings, lambda: spark) if finding.level == "problem"
    }
    absent = (
        "endpoint.api_key.secret: team/openai: RuntimeError: Secret does not exist with scope: team and key: openai"
    )
    assert problems == {"key, driver": absent, "models": absent}
    assert locked.counts()["calls"] == 0
