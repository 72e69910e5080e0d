"""What the next run owes, what stops a run, and which messages the user sees, with real Spark and Delta."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap import cli
from deltatap.delta import columns
from deltatap.driver.landing import Landing
from tests import prompts
from tests.runs import capture, captured, journaled, run_rows

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.slow
def test_requests_with_a_final_row_are_not_sent_again(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    rows = [
        ("ok", "a"),
        ("bad", " "),
        ("refused", "b", "m!400"),
        ("policy", "c", "m!content_policy"),
        ("down", "d", "m!500"),
    ]
    prompts.write(spark, tables / "prompts", rows)
    attempts = {"max_attempts": 1}
    first, output = capture(spark, tables, simulator, capture=attempts)
    assert "5 requests owed" in output
    assert first.row["owed"] == 5
    assert (first.row["completed"], first.row["failed"], first.row["requests"]) == (1, 4, 4)
    second, output = capture(spark, tables, simulator, capture=attempts)
    assert "1 request owed" in output
    assert second.row["requests"] == 1, "only the request that may succeed now is owed"
    assert Counter(row["request_id"] for row in captured(spark, tables)) == {
        "ok": 1, "bad": 1, "refused": 1, "policy": 1, "down": 2,
    }  # fmt: skip
    everything, _ = capture(spark, tables, simulator, capture={**attempts, "owed": "all"})
    assert everything.row["requests"] == 4
    assert everything.row["owed"] == 5


@pytest.mark.slow
def test_an_empty_prompts_table_is_reported(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    prompts.write(spark, tables / "prompts", [])
    ended, output = capture(spark, tables, simulator)
    assert f"prompts {tables / 'prompts'} has no rows: nothing to capture" in output
    assert ended.row["owed"] == 0


@pytest.mark.slow
def test_all_rows_fail_and_shuffles_have_2000_partitions(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    prompts.write(spark, tables / "prompts", [("a", None), ("b", "Hi", None, "["), ("c", "Hi", "gpt-4o!400")])
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "2000")
    try:
        ended, _ = capture(spark, tables, simulator)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", str(before))
    assert (ended.row["status"], ended.failed_share) == ("completed", 1.0)
    assert {row["request_id"]: row["error"]["type"] for row in captured(spark, tables)} == dict.fromkeys(
        "abc", "invalid_request"
    )


@pytest.mark.slow
def test_a_repeated_request_id_gives_one_request_or_one_failed_row(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    rows = [("same", "x"), ("same", "x"), ("other", "y"), ("other", "z"), (None, "w"), (None, "w")]
    prompts.write(spark, tables / "prompts", rows)
    capture(spark, tables, simulator)
    found = {row["request_id"]: row for row in captured(spark, tables)}
    assert len(found) == 3
    assert found["same"]["status"] == "completed"
    assert found["other"]["error"]["type"] == "invalid_request"
    assert found["other"]["error"]["message"].startswith("request_id is used for 2 different requests")
    derived = next(row for row in found.values() if row["request_id"] == row["request_hash"])
    assert derived["status"] == "completed"
    assert simulator.counts()["calls"] == 2
    again, output = capture(spark, tables, simulator)
    assert "nothing is owed: every request has a final row; no call was made" in output
    assert (again.row["status"], again.row["owed"]) == ("completed", 0)
    assert simulator.counts()["calls"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("401", "authentication: Incorrect"),
        pytest.param("403", "permission: ", marks=pytest.mark.slow),
        pytest.param("404", "not_found: ", marks=pytest.mark.slow),
        pytest.param("quota", "quota: You exceeded", marks=pytest.mark.slow),
    ],
)
def test_errors_that_every_request_would_get_stop_the_run(
    spark: SparkSession, tables: Path, simulator: Simulation, fault: str, reason: str
) -> None:
    prompts.write(spark, tables / "prompts", [(f"r{n}", f"p{n}", f"gpt-4o!{fault}:1") for n in range(60)])
    ended, _ = capture(spark, tables, simulator, capture={"concurrency": 2})
    assert ended.row["status"] == "failed"
    assert f"/v1: {reason}" in ended.row["reason"], "it names the URL"
    assert "(model gpt-4o!" in ended.row["reason"]
    assert "request_id " in ended.row["reason"]
    assert simulator.counts()["calls"] <= 6, "the run stops at once"
    assert {row["error"]["type"] for row in captured(spark, tables)} == {reason.split(":", maxsplit=1)[0]}
    simulator.reset()
    # Once the cause is fixed, every request is owed, including the failed ones.
    prompts.write(spark, tables / "prompts", [(f"r{n}", f"p{n}", "gpt-4o") for n in range(3)])
    again, _ = capture(spark, tables, simulator)
    assert (again.row["status"], again.row["completed"]) == ("completed", 3)


@pytest.mark.slow
def test_a_model_that_refuses_every_request_does_not_stop_the_others(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    refused = [(f"bad{n}", f"p{n}", "gpt-4o!404") for n in range(40)]
    prompts.write(spark, tables / "prompts", refused + [(f"ok{n}", f"p{n}", "gpt-4o") for n in range(10)])
    ended, output = capture(spark, tables, simulator, capture={"concurrency": 2})
    assert (ended.row["status"], ended.row["reason"], ended.row["completed"]) == ("completed", None, 10)
    assert 3 <= ended.row["failed"] <= 6
    assert "submitting it again" not in output
    (note,) = ended.notes
    assert note.startswith(
        f"model gpt-4o!404 refuses every request ({40 - ended.row['failed']} not sent, still owed): "
    )
    again, _ = capture(spark, tables, simulator, capture={"concurrency": 2})
    assert again.row["owed"] == 40
    assert again.row["status"] == "failed", "now no model of the plan works"
    assert all(row["request_id"].startswith("bad") for row in captured(spark, tables) if row["status"] == "failed")


@pytest.mark.slow
def test_the_same_run_id_resumes_and_keeps_the_earlier_calls(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    rows = [("ok", "a"), ("broken", "b", "gpt-4o-mini!cut@2:2"), ("down", "c", "gpt-4o-mini!500:1")]
    prompts.write(spark, tables / "prompts", rows)
    once = {"max_attempts": 1, "max_broken": 1}
    first, _ = capture(spark, tables, simulator, capture=once, run={"id": "nightly-7"})
    assert (first.row["completed"], first.row["interrupted"], first.row["failed"]) == (1, 1, 1)
    second, output = capture(spark, tables, simulator, capture=once, run={"id": "nightly-7"})
    assert "resumes run nightly-7" in output
    assert (second.row["completed"], second.row["interrupted"], second.row["failed"]) == (2, 1, 0)
    third, _ = capture(spark, tables, simulator, capture=once, run={"id": "nightly-7"})
    assert (third.row["owed"], third.row["completed"], third.row["requests"]) == (3, 3, 6)
    assert [each.earlier_calls for each in (first, second, third)] == [0, 3, 5]
    found = {row["request_id"]: row for row in captured(spark, tables)}
    assert len(found) == 3
    calls = [call for call in simulator.calls() if call["model"] == "gpt-4o-mini!cut@2:2"]
    assert [retry["text"] for retry in found["broken"]["retries"]] == [call["texts"]["0"] for call in calls[:2]]
    assert [retry["error_type"] for retry in found["down"]["retries"]] == ["server"]
    assert len(run_rows(spark, tables)) == 1


@pytest.mark.slow
def test_an_interrupted_request_is_owed_until_max_runs(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    prompts.write(spark, tables / "prompts", [("broken", "b", "gpt-4o-mini!cut@2")])
    twice = {"max_broken": 1, "max_runs": 2}
    owed = [capture(spark, tables, simulator, capture=twice)[0].row["owed"] for _ in range(3)]
    assert owed == [1, 1, 0]
    assert simulator.counts()["calls"] == 2


@pytest.mark.slow
def test_kept_interrupted_rows_are_final(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    prompts.write(spark, tables / "prompts", [("broken", "b", "gpt-4o-mini!cut@2")])
    keep = {"max_broken": 1, "keep_interrupted": True}
    owed = [capture(spark, tables, simulator, capture=keep)[0].row["owed"] for _ in range(2)]
    assert owed == [1, 0]


@pytest.mark.slow
def test_a_run_with_catalog_tables(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    spark.sql("CREATE SCHEMA IF NOT EXISTS llm")
    spark.sql(
        "CREATE OR REPLACE TABLE llm.prompts USING DELTA AS SELECT 'a' AS request_id, 'Hi' AS prompt, 'm!500:1' AS model"
    )
    names = {name: {"table": f"llm.{name}"} for name in ("prompts", "captures", "runs")}
    first, _ = capture(spark, tables, simulator, **names, capture={"max_attempts": 1})
    second, _ = capture(spark, tables, simulator, **names, capture={"max_attempts": 1})
    assert (first.row["failed"], second.row["completed"]) == (1, 1)
    assert spark.table("llm.captures").count() == 2
    assert [row["status"] for row in spark.table("llm.captures_current").collect()] == ["completed"]
    comments = {row["col_name"]: row["comment"] for row in spark.sql("DESCRIBE TABLE llm.captures").collect()}
    assert comments["ttft_ms"] == next(column.comment for column in columns.CAPTURES if column.name == "ttft_ms")


def job(config: Path, *options: str, **popen: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(CHECKOUT / "jobs/capture.py"), "--config", str(config), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen)


@pytest.mark.slow
def test_the_last_line_and_exit_code_of_a_job(
    spark: SparkSession, tables: Path, simulator: Simulation, tmp_path: Path
) -> None:
    prompts.write(spark, tables / "prompts", [("ok", "a"), ("down1", "b", "m!500"), ("down2", "c", "m!500")])
    config = tmp_path / "c.yml"
    config.write_text(yaml.safe_dump(prompts.config(tables, simulator.base_url, capture={"max_attempts": 1})))
    process = job(config, "--set", "run.labels.why=test")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == cli.TOO_MANY_ERRORS, output
    last = json.loads(output.strip().splitlines()[-1])
    (row,) = run_rows(spark, tables)
    assert (last["status"], last["completed"], last["failed"]) == ("completed", 1, 2)
    assert " ".join(last) == (
        "run_id status reason owed completed interrupted failed requests input_tokens output_tokens cost_usd"
    )
    assert last == {name: row[name] for name in last}
    assert row["labels"] == {"why": "test"}
    assert "Exception" not in output


@pytest.mark.slow
def test_the_next_run_lands_the_journal_of_a_failed_run(
    spark: SparkSession, tables: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Landing fails after the capture. The calls are paid and journaled, and the run ends as failed."""
    prompts.write(spark, tables / "prompts", [(f"r{n}", f"p{n}") for n in range(5)])

    def refuse(_: Landing) -> int:
        if len(journaled(tables)) < 5:
            return 0
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Landing, "tick", refuse)
        broken.setattr(Landing, "drain", refuse)
        with pytest.raises(OSError, match="no space left"):
            capture(spark, tables, simulator)
    assert captured(spark, tables) == []
    assert [row["status"] for row in run_rows(spark, tables)] == ["failed"]
    ended, _ = capture(spark, tables, simulator)
    assert (ended.row["owed"], simulator.counts()["calls"]) == (0, 5)
    assert len(captured(spark, tables)) == 5
    before = min(run_rows(spark, tables), key=lambda row: row["started_at"])
    assert (before["status"], before["completed"]) == ("failed", 5)
    assert not list((tables / "state").iterdir())


@pytest.mark.slow
def test_each_mode_is_owed_separately(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    prompts.write(spark, tables / "prompts", [(f"r{n}", f"p{n}") for n in range(4)])
    capture(spark, tables, simulator, capture={"limit": 3})
    simulator.reset()
    both, _ = capture(spark, tables, simulator, capture={"mode": "paired"})
    assert both.row["owed"] == 5, "four complete calls and the one missing stream"
    assert Counter(call["streamed"] for call in simulator.calls()) == {False: 4, True: 1}
    assert Counter(row["mode"] for row in captured(spark, tables)) == {"stream": 4, "complete": 4}
