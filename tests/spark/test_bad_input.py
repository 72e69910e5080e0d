"""What a user is told, and that nothing was called: every way to get the input wrong."""

from __future__ import annotations

import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap import capture_udf, cli, load_settings, tokens
from tests import prompts
from tests.runs import capture, captured
from tests.simulation import KEY, KEY_VARIABLE, start_simulator

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation


class Job:
    """The command line, in this process and on this session."""

    def __init__(self, folder: Path, simulator: Simulation, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.simulator, self._capsys = folder, simulator, capsys
        self.tree: dict[str, Any] = prompts.config(folder, simulator.base_url)

    def refused(self, *overrides: str) -> str:
        """What is said when the job is refused; nothing was called, and nothing is left behind."""
        path = self.folder / "config.yml"
        path.write_text(yaml.safe_dump(self.tree))
        code = cli.run(cli.capture, path, overrides)
        said = self._capsys.readouterr().out
        assert code == cli.CONFIGURATION, said
        assert self.simulator.counts()["calls"] == 0
        assert "Traceback" not in said
        return said


@pytest.fixture
def job(spark: SparkSession, tables: Path, simulator: Simulation, capsys: pytest.CaptureFixture[str]) -> Job:
    assert spark is not None
    return Job(tables, simulator, capsys)


def test_a_missing_table(job: Job) -> None:
    assert f"prompts.table: {job.folder / 'prompts'}: the Delta table does not exist" in job.refused()
    assert "prompts.table: nowhere: the Delta table does not exist" in job.refused("prompts.table=nowhere")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("request_id BIGINT, prompt STRING", "column request_id: expected STRING, found BIGINT; cast it with prompts.sql"),
        ("request_id STRING, prompt INT", "column prompt: expected STRING, found INT; cast it with prompts.sql"),
        ("request_id STRING, messages ARRAY<STRING>", "column messages: expected ARRAY<STRUCT<role: STRING, content: STRING, …>>"),
        ("prompt STRING, params ARRAY<STRING>", "column params: expected a JSON STRING or MAP<STRING, …>, found ARRAY<STRING>"),
        ("question STRING", "expected a column prompt or messages, found question"),
    ],
)  # fmt: skip
def test_wrong_column_types(spark: SparkSession, job: Job, columns: str, said: str) -> None:
    prompts.write(spark, job.folder / "prompts", [], columns)
    assert f"prompts: {job.folder / 'prompts'}: {said}" in job.refused()


def test_a_column_to_keep_that_is_not_there(spark: SparkSession, job: Job) -> None:
    prompts.write(spark, job.folder / "prompts", [("a", "x")])
    assert "prompts.keep: column topic does not exist" in job.refused("prompts.keep=[topic]")


def test_a_query_that_is_none(job: Job) -> None:
    assert "prompts: query 'SELEC 1': [PARSE_SYNTAX_ERROR]" in job.refused("prompts.table=", "prompts.sql=SELEC 1")


def test_captures_that_are_another_table(spark: SparkSession, job: Job) -> None:
    prompts.write(spark, job.folder / "prompts", [("a", "x")])
    prompts.write(spark, job.folder / "captures", [(1, "x")], "run_id BIGINT, request_id STRING")
    said = job.refused()
    assert f"captures.table: {job.folder / 'captures'}: column run_id: expected string, found bigint" in said
    assert "column status is missing" in said


def test_a_missing_key(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    said = job.refused("endpoint.api_key.env=MY_KEY")
    assert (
        "endpoint.api_key.env: the environment variable MY_KEY is not set; set it, or use --set endpoint.api_key="
        in said
    )


def test_an_endpoint_that_nobody_reaches(job: Job) -> None:
    said = job.refused("endpoint.base_url=http://127.0.0.1:9/v1")
    assert "endpoint.base_url: cannot reach 127.0.0.1 port 9: Connection refused; is the server running?" in said
    said = job.refused("endpoint.base_url=https://no.such.host.invalid/v1", "timeouts.connect_s=5")
    assert "endpoint.base_url: cannot reach no.such.host.invalid port 443: " in said


def test_a_missing_vocabulary(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens.encoding.cache_clear()
    monkeypatch.setattr(tokens, "VOCABULARIES", job.folder)
    said = job.refused()
    tokens.encoding.cache_clear()
    assert "vocabulary o200k_base: " in said
    assert "`make setup` unpacks it" in said


def test_a_state_folder_that_cannot_be_written(job: Job) -> None:
    (job.folder / "file").write_text("")
    said = job.refused(f"state.dir={job.folder / 'file' / 'state'}")
    assert f"state.dir: {job.folder / 'file' / 'state'}: cannot be written: Not a directory" in said


def test_malformed_yaml(job: Job) -> None:
    path = job.folder / "bad.yml"
    path.write_text("capture:\n  concurrency: [1\nrun: {}")
    assert cli.run(cli.capture, path) == cli.CONFIGURATION


def test_prices_that_are_none(job: Job) -> None:
    said = job.refused("prices=nowhere.yml", "capture.concurrency=0")
    assert "capture.concurrency: expected greater than or equal to 1, found 0" in said
    assert "prices: nowhere.yml: cannot be read: No such file or directory" in job.refused("prices=nowhere.yml")


def test_all_that_is_wrong_is_said_at_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    said = job.refused("endpoint.api_key.env=MY_KEY", "endpoint.base_url=http://127.0.0.1:9/v1", "prices=nowhere.yml")
    assert said.count("✗") == 3


def test_a_key_that_the_worker_has_not_ends_the_run(
    spark: SparkSession, tables: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts.write(spark, tables / "prompts", [("a", "x")])
    monkeypatch.setenv("SET_TOO_LATE", KEY)  # Spark runs already
    ended, _ = capture(spark, tables, simulator, endpoint={"api_key": {"env": "SET_TOO_LATE"}})
    assert ended.row["status"] == "failed"
    assert "the environment variable SET_TOO_LATE is not set" in ended.row["reason"]
    assert "in the Spark worker" in ended.row["reason"]
    assert simulator.counts()["calls"] == 0


@pytest.mark.slow
def test_a_key_is_in_no_table_journal_log_plan_or_message(
    spark: SparkSession,
    tables: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A whole job with a key and with failures; a file that cannot be read keeps its state folder, to be searched."""
    monkeypatch.setenv("THE_KEY", KEY)
    with start_simulator("--speed", "0", "--tokens", "5", "--api-key-env", KEY_VARIABLE) as simulator:
        prompts.write(spark, tables / "prompts", [("a", "x"), ("b", "y"), ("c", "z", "m!400"), ("d", "z", "m!cut@1")])
        tree = prompts.config(tables, simulator.base_url, endpoint={"api_key": {"env": "THE_KEY"}})
        tree["run"] = {"id": "with-a-key"}
        path = tables / "config.yml"
        path.write_text(yaml.safe_dump(tree))
        journal = tables / "state" / "with-a-key" / "journal"
        journal.mkdir(parents=True)
        (journal / "broken.parquet").write_bytes(b"PAR1 cut short")
        job = subprocess.run(
            [sys.executable, "-m", "deltatap", "capture", "--config", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert job.returncode == cli.OK, job.stdout + job.stderr
        assert {call["http_status"] for call in simulator.calls()} == {200, 400}
    assert len(captured(spark, tables)) == 4
    kept = [path for path in tables.rglob("*") if path.is_file()]
    assert any("aside" in path.parts for path in kept), "the state folder is there to be searched"
    assert [path for path in kept if KEY.encode() in path.read_bytes()] == []
    assert "was set aside" in job.stdout
    assert KEY not in job.stdout + job.stderr

    frame = spark.createDataFrame([("x",)], "prompt STRING").select(capture_udf(path, max_requests=1)("prompt"))
    frame.explain(extended=True)
    assert KEY not in capfd.readouterr().out + repr(load_settings(path)) + repr(frame)
    with pytest.raises(ValueError, match="max_requests") as caught:
        capture_udf(path, max_requests=-1)
    assert KEY not in "".join(traceback.format_exception(caught.value))
