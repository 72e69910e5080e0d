"""Captures in the driver's process over Spark Connect, as on serverless compute, with real kills.

The server is another process in another folder and has the tables. It shares only the state folder with the driver.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from deltatap import cli
from tests import prompts
from tests.jobs import FLUSH_S, finished, in_one_flush, kill, start, wait_until
from tests.runs import captured
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROMPTS, CONCURRENCY = 600, 32


def cluster(url: str) -> dict[str, str]:
    """The environment of a serverless task. Keeping a DataFrame fails there."""
    faults = f"{Path(__file__).parent / 'python'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    serverless = {"SPARK_REMOTE": url, "DATABRICKS_RUNTIME_VERSION": "client.4.9", "IS_SERVERLESS": "true"}
    return {**os.environ, **serverless, "PYTHONPATH": faults, "FAULT": "no-persist"}


def test_no_answer_is_paid_for_twice_when_the_driver_dies(
    spark: SparkSession,
    server: str,
    tmp_path_factory: pytest.TempPathFactory,
    record_property: Callable[[str, object], None],
) -> None:
    folder = tmp_path_factory.mktemp("driver")
    config, log = folder / "config.yml", folder / "log"
    spark.sql("CREATE DATABASE served")
    spark.sql(f"CREATE TABLE served.prompts USING delta AS SELECT concat('r', id) AS request_id, concat('Prompt ', id) AS prompt FROM range({PROMPTS})")  # fmt: skip
    with start_simulator("--ttft-ms", "150", "--itl-ms", "15", "--tokens", "60") as simulator:
        tree = prompts.config(
            folder, simulator.base_url, capture={"concurrency": CONCURRENCY}, state={"flush_s": FLUSH_S},
            prompts={"table": "served.prompts"}, captures={"table": "served.captures"}, runs={"table": "served.runs"},
        )  # fmt: skip
        config.write_text(yaml.safe_dump(tree))
        # Spark's workers cannot call the endpoint there, so nothing is started.
        assert start(config, log, cluster(server)).wait(timeout=120) == cli.CONFIGURATION
        assert "use --set capture.where=driver" in log.read_text()
        tree["capture"]["where"] = "driver"
        config.write_text(yaml.safe_dump(tree))
        assert start(config, log, cluster(server), job="check").wait(timeout=120) == cli.OK, log.read_text()
        assert simulator.counts()["calls"] == 0

        first = start(config, log, cluster(server))
        wait_until(finished(simulator, 0.4 * PROMPTS), first, log)
        kill([first])
        assert simulator.counts()["finished"] < 0.7 * PROMPTS

        second = start(config, log, cluster(server))
        wait_until(finished(simulator, 0.7 * PROMPTS), second, log)
        second.send_signal(signal.SIGINT)
        wait_until(lambda: stopping(folder), second, log)
        second.send_signal(signal.SIGINT)  # ends it at once
        assert second.wait(timeout=30) == 128 + signal.SIGINT

        assert start(config, log, cluster(server)).wait(timeout=240) == cli.OK, log.read_text()
        last = json.loads(log.read_text().splitlines()[-1])
        assert (last["status"], last["completed"]) == ("completed", PROMPTS)
        calls, allowed = simulator.counts()["calls"], 2 * (CONCURRENCY + in_one_flush(simulator))
        record_property("calls", f"{calls} for {PROMPTS} prompts, {allowed} more allowed")
        assert PROMPTS <= calls <= PROMPTS + allowed

        rows = spark.table("served.captures").collect()
        assert Counter(row["status"] for row in rows) == {"completed": PROMPTS}
        assert len({row["request_id"] for row in rows}) == PROMPTS
        assert len({row["run_id"] for row in rows}) == 1, "each start resumes the first run"
    assert not list((folder / "state").iterdir()), "a finished run leaves no state"


def stopping(folder: Path) -> bool:
    return any(json.loads(path.read_text())["stop"] for path in (folder / "state").glob("*/control.json"))


def test_a_waiting_command_is_stopped(spark: SparkSession, tables: Path, tmp_path: Path) -> None:
    """`capture.follow_s`: new prompts are captured, and `deltatap stop` and SIGTERM end the wait."""
    prompts.write(spark, tables / "prompts", [("a", "one")])
    config, log = tmp_path / "config.yml", tmp_path / "log"
    with start_simulator("--speed", "0") as simulator:
        tree = prompts.config(tables, simulator.base_url, capture={"where": "driver", "follow_s": 1})
        config.write_text(yaml.safe_dump(tree))
        job = start(config, log)
        wait_until(lambda: "looking for new prompts" in log.read_text(), job, log)
        prompts.write(spark, tables / "prompts", [("a", "one"), ("b", "two")])
        wait_until(lambda: log.read_text().count("looking for new prompts") == 2, job, log)
        assert cli.run(cli.stop, config, run_id="") == cli.OK
        assert job.wait(timeout=60) == cli.OK, log.read_text()
        assert "no further round: stopped by `deltatap stop`" in log.read_text()
        assert json.loads(log.read_text().splitlines()[-1])["completed"] == 1
        assert simulator.counts()["calls"] == 2

        log.write_text("")
        job = start(config, log)
        wait_until(lambda: "looking for new prompts" in log.read_text(), job, log)
        job.terminate()
        assert job.wait(timeout=60) == cli.OK, log.read_text()
        assert json.loads(log.read_text().splitlines()[-1])["owed"] == 0
        assert simulator.counts()["calls"] == 2
    assert len(captured(spark, tables)) == 2
    assert not list((tables / "state").iterdir())
