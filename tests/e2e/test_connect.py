"""The jobs over Spark Connect, as a cluster in standard mode and serverless have it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap.analysis.compute import analyze
from deltatap.config import load_settings
from deltatap.delta.tables import quoted
from deltatap.spark import session
from tests import prompts
from tests.bundle import ROOT
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

METRICS = ("metrics_by_run", "metrics_by_hour", "stream_vs_complete")


def job(name: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A job with no session but the one that is there, which is a client of a Connect server of its own."""
    conf = folder / "conf"
    conf.mkdir(exist_ok=True)
    lines = (f"{key} {value}" for key, value in session._options().items())
    (conf / "spark-defaults.conf").write_text("\n".join(lines))
    seen = {"SPARK_REMOTE": "local[2]", "SPARK_CONF_DIR": str(conf), "DATABRICKS_RUNTIME_VERSION": "18.2"}
    with session.java_home():
        return subprocess.run(
            [sys.executable, ROOT / f"jobs/{name}.py", "--config", folder / "config.yml", *options],
            cwd=folder, env={**os.environ, **seen, "PYSPARK_PYTHON": sys.executable}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip


def rows(spark: SparkSession, table: Path) -> list[dict[str, Any]]:
    found = spark.table(quoted(str(table))).toArrow().to_pylist()
    return sorted(found, key=str)


def test_what_is_captured_and_analyzed_over_connect(spark: SparkSession, tmp_path: Path) -> None:
    prompts.write(spark, tmp_path / "prompts", [(f"r{n:02d}", f"Prompt {n}?") for n in range(40)])
    with start_simulator("--speed", "0", "--tokens", "20") as simulator:
        tree = prompts.config(tmp_path, simulator.base_url, capture={"mode": "paired"})
        (tmp_path / "config.yml").write_text(yaml.safe_dump(tree))
        for name in ("check", "capture", "analyze"):
            ended = job(name, tmp_path)
            assert ended.returncode == 0, ended.stdout + ended.stderr
        assert simulator.counts()["finished"] == 80
    captures = spark.table(quoted(str(tmp_path / "captures"))).where("status = 'completed'")
    assert captures.select("request_id", "mode").distinct().count() == captures.count() == 80
    # The same figures come of it here, without Connect.
    over_connect = {name: rows(spark, tmp_path / name) for name in METRICS}
    tree["analysis"] = {"tables": str(tmp_path / "classic")}

    analyze(spark, load_settings(tree))
    for name in METRICS:
        assert over_connect[name], name
        assert rows(spark, tmp_path / "classic" / name) == over_connect[name], name
    ended = job("report", tmp_path, "--out", str(tmp_path / "report.html"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")[:2000]
