"""Every way to stop a run, with real processes: no call starts, partial answers are kept, and the next start resumes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap import cli
from deltatap.delta.tables import quoted
from tests import prompts
from tests.jobs import CHECKOUT, finished, in_one_flush, start, start_again, wait_until
from tests.runs import captured, run_rows
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from pathlib import Path

    import psutil
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def stop(way: str, job: psutil.Popen, config: Path, state: Path) -> None:
    if way == "the command":
        (run,) = [path.parent.name for path in state.glob("*/control.json")]
        command = [sys.executable, "-m", "deltatap", "stop", run, "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
        assert f"asked run {run} to stop" in done.stdout
    else:
        job.send_signal(signal.Signals[way])


@pytest.mark.parametrize("way", ["SIGINT", "SIGTERM", "the command"])
def test_a_stopped_run_drains_and_the_next_start_completes_it(
    spark: SparkSession, tables: Path, tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the run is active, another start is refused."""
    stalled = [(f"r{n}", f"p{n}", "m!stall@2:1") for n in range(3)]
    prompts.write(spark, tables / "prompts", [*stalled, ("ok", "x"), *((f"w{n}", f"q{n}") for n in range(20))])
    config, log = tmp_path / "c.yml", tmp_path / "log"
    with start_simulator("--ttft-ms", "50", "--itl-ms", "5", "--tokens", "10") as simulator:
        sections: dict[str, Any] = {"capture": {"concurrency": 4}, "timeouts": {"grace_s": 1}}
        config.write_text(yaml.safe_dump(prompts.config(tables, simulator.base_url, **sections)))
        job = start(config, log)
        wait_until(lambda: sum("stall" in call["model"] for call in simulator.calls()) == 3, job, log)
        if way == "the command":
            assert cli.run(cli.capture, config) == cli.CONFIGURATION
            shown = capsys.readouterr().out
            assert "another run is active" in shown
            assert f"pid {job.pid}" in shown
        stop(way, job, config, tables / "state")
        assert job.wait(timeout=240) == cli.OK, log.read_text()
        last = json.loads(log.read_text().splitlines()[-1])
        assert last["status"] == "stopped"
        assert "the next run continues from here" in log.read_text()
        rows = captured(spark, tables)
        interrupted = [row for row in rows if row["status"] == "interrupted"]
        assert len(interrupted) == 3
        assert {row["error"]["type"] for row in interrupted} == {"cancelled"}
        assert all(row["text"] for row in interrupted), "partial answers are kept"
        (run,) = run_rows(spark, tables)
        assert run["requests"] == simulator.counts()["calls"] == len(rows)
        assert not list((tables / "state").iterdir())

        start_again(spark, tables, simulator, log, **sections)
        finals = Counter(row["request_id"] for row in captured(spark, tables) if row["status"] == "completed")
        assert len(finals) == 24
        assert set(finals.values()) == {1}, "every request completes once"
        assert simulator.counts()["calls"] == 24 + 3


def test_a_second_ctrl_c_exits_at_once_and_loses_no_request(spark: SparkSession, tables: Path, tmp_path: Path) -> None:
    count = 60
    prompts.write(
        spark, tables / "prompts", [("stalled", "p", "m!stall@2:1"), *((f"r{n}", f"p{n}") for n in range(count))]
    )
    config, log = tmp_path / "c.yml", tmp_path / "log"
    with start_simulator("--ttft-ms", "100", "--itl-ms", "5", "--tokens", "20") as simulator:
        sections: dict[str, Any] = {"capture": {"concurrency": 4}, "timeouts": {"grace_s": 300}}
        config.write_text(yaml.safe_dump(prompts.config(tables, simulator.base_url, **sections)))
        job = start(config, log)
        wait_until(finished(simulator, 30), job, log)
        children = job.children(recursive=True)
        job.send_signal(signal.SIGINT)
        wait_until(
            lambda: json.loads(next((tables / "state").glob("*/control.json")).read_text())["stop"] is not None,
            job,
            log,
        )
        job.send_signal(signal.SIGINT)
        assert job.wait(timeout=30) == 128 + signal.SIGINT
        for child in children:
            if child.is_running():
                child.wait(timeout=60)
        start_again(spark, tables, simulator, log, **sections)
        rows = spark.table(quoted(str(tables / "captures"))).where("status = 'completed'").collect()
        assert Counter(row["request_id"] for row in rows) == Counter(
            {f"r{n}": 1 for n in range(count)} | {"stalled": 1}
        )
        again = 4 + in_one_flush(simulator)
        assert simulator.counts()["calls"] <= count + 1 + again, (
            "only calls in flight or within one flush interval are repeated"
        )
