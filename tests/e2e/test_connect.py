"""The jobs over Spark Connect, as on clusters in standard access mode and on serverless compute."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap.analysis.compute import analyze
from deltatap.delta.tables import quoted
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.bundle import ROOT
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

METRICS = ("metrics_by_run", "metrics_by_hour", "stream_vs_complete", "metrics_changes")


def job(server: str, name: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a job that finds its Spark session through environment variables, as on a cluster."""
    cluster = {"SPARK_REMOTE": server, "DATABRICKS_RUNTIME_VERSION": "18.2"}
    return subprocess.run(
        [sys.executable, ROOT / f"jobs/{name}.py", "--config", folder / "config.yml", *options],
        cwd=folder, env={**os.environ, **cluster}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def rows(spark: SparkSession, table: Path) -> list[dict[str, Any]]:
    found = spark.table(quoted(str(table))).toArrow().to_pylist()
    return sorted(found, key=str)


def test_the_jobs_check_capture_analyze_and_report_over_connect(
    spark: SparkSession, server: str, tmp_path: Path
) -> None:
    spark.sql("""
        SELECT id AS Request_ID, concat('Prompt ', least(id, 39), '?') AS `the.text`, map('top_p', 0.5) AS PARAMS,
          parse_json('{"a": [1, null]}') AS note FROM range(41)
    """).write.format("delta").save(str(tmp_path / "prompts"))
    with start_simulator("--speed", "0", "--tokens", "20") as simulator:
        tree = prompts.config(
            tmp_path, simulator.base_url, capture={"mode": "paired", "reuse": True},
            prompts={"template": "Say: {the.text}", "keep": ["note"]},
        )  # fmt: skip
        (tmp_path / "config.yml").write_text(yaml.safe_dump(tree))
        for name in ("check", "capture", "analyze"):
            ended = job(server, name, tmp_path)
            assert ended.returncode == 0, ended.stdout + ended.stderr
        assert simulator.counts()["finished"] == 80, "two of the 41 prompts are identical"
    captures = spark.table(quoted(str(tmp_path / "captures"))).where("status = 'completed'")
    assert captures.select("request_id", "mode").distinct().count() == captures.count() == 82
    assert {(row["keep"]["note"], row["request_id"].isdecimal()) for row in captures.collect()} == {
        ('{"a": [1, null]}', True)
    }
    assert captures.where("reused_from IS NOT NULL").count() == 2
    # Analysis without Connect gives the same metrics.
    over_connect = {name: rows(spark, tmp_path / name) for name in METRICS}
    tree["analysis"] = {"tables": str(tmp_path / "classic")}

    analyze(spark, load_settings(tree))
    for name in METRICS:
        assert over_connect[name] or name == "metrics_changes", f"{name}; a change needs more runs"
        assert rows(spark, tmp_path / "classic" / name) == over_connect[name], name
    ended = job(server, "report", tmp_path, "--out", str(tmp_path / "report.html"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")[:2000]
