"""Invalid input of every kind is refused with a message for the user, and without a call."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap import capture_udf, cli, load_settings, tokens
from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from tests import prompts
from tests.runs import capture, captured, run_rows
from tests.simulation import KEY, KEY_VARIABLE, start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation


class Job:
    """The capture command, run in this process."""

    def __init__(self, folder: Path, simulator: Simulation, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.simulator, self._capsys = folder, simulator, capsys
        self.tree: dict[str, Any] = prompts.config(folder, simulator.base_url)

    def refused(self, *overrides: str, work: Callable[..., int] = cli.capture, **options: Any) -> str:
        """Return the output of a command that is refused without a call and without a traceback."""
        path = self.folder / "config.yml"
        path.write_text(yaml.safe_dump(self.tree))
        code = cli.run(work, path, overrides, **options)
        output, errors = self._capsys.readouterr()
        assert code == cli.CONFIGURATION, output
        assert self.simulator.counts()["calls"] == 0
        assert "Traceback" not in output + errors
        assert "An error occurred while calling" not in output
        assert all(line.startswith("✗ ") for line in output.splitlines()), output
        return output


@pytest.fixture
def job(spark: SparkSession, tables: Path, simulator: Simulation, capsys: pytest.CaptureFixture[str]) -> Job:
    assert spark is not None
    return Job(tables, simulator, capsys)


def test_a_missing_prompts_table_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"prompts.table: {job.folder / 'prompts'}: the Delta table does not exist" in job.refused()
    assert "prompts.table: nowhere: the Delta table does not exist" in job.refused("prompts.table=nowhere")
    (job.folder / "rom").mkdir()
    monkeypatch.chdir(job.folder)
    assert "rom: the Delta table does not exist; for the folder, write ./rom" in job.refused("prompts.table=rom")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("request_id DOUBLE, prompt STRING", "column request_id: expected STRING or an integer, found DOUBLE; cast it with prompts.sql"),
        ("request_id STRING, prompt INT", "column prompt: expected STRING, found INT; cast it with prompts.sql"),
        ("request_id STRING, messages ARRAY<STRING>", "column messages: expected ARRAY<STRUCT<role: STRING, content: STRING, …>>"),
        ("prompt STRING, params ARRAY<STRING>", "column params: expected a JSON STRING or MAP<STRING, …>, found ARRAY<STRING>"),
        ("question STRING", "expected a column prompt or messages, found question"),
    ],
)  # fmt: skip
def test_wrong_column_types_are_named(spark: SparkSession, job: Job, columns: str, expected: str) -> None:
    prompts.write(spark, job.folder / "prompts", [], columns)
    assert f"prompts: {job.folder / 'prompts'}: {expected}" in job.refused()


def test_columns_and_templates_that_do_not_fit_are_named(spark: SparkSession, job: Job) -> None:
    prompts.write(spark, job.folder / "prompts", [("a", "x", "t")], "request_id STRING, prompt STRING, `my.col` STRING")
    for overrides, expected in (
        (["prompts.template=Say {titel}"], "prompts.template: column titel does not exist"),
        (["prompts.template=Say {"], "prompts.template: unmatched brace at character 5; for a literal brace, write {{"),
        (["prompts.keep=[my_col]"], "prompts.keep: column my_col does not exist; did you mean my.col?"),
        (["prompts.table=", "prompts.sql=SELECT 'a' prompt, 'b' PROMPT"], "column prompt: expected one column of this name, found prompt, PROMPT"),
        (["prompts.table=", "prompts.sql=SELECT 'a' promt"], "expected a column prompt or messages, found promt; did you mean promt?"),
    ):  # fmt: skip
        assert expected in job.refused(*overrides)


def test_values_of_settings_that_cannot_be_used_are_named(job: Job) -> None:
    for override, expected in (
        ("state.dir=s3a://bucket/state", "state.dir: "),
        ("capture.sample={fraction: 2}", "capture.sample.fraction: expected a number less than or equal to 1, found 2"),
        ("captures.table=a`b", "captures.table: "),
        ("run.labels=[a]", "run.labels: expected "),
        ("request.metadata={a: 1, a: 2}", "request.metadata"),
    ):
        assert expected in job.refused(override)


def test_markup_in_a_message_is_shown_as_it_is(job: Job) -> None:
    assert r"prompts.table: a\[/b]" in job.refused(r"prompts.table=`a\[/b]`").replace("`", "")


def test_a_missing_column_to_keep_is_named(spark: SparkSession, job: Job) -> None:
    prompts.write(spark, job.folder / "prompts", [("a", "x")])
    assert "prompts.keep: column topic does not exist" in job.refused("prompts.keep=[topic]")


def test_files_that_cannot_be_loaded_are_refused(job: Job) -> None:
    (job.folder / "folder.csv").mkdir()
    for name, text, expected in (
        ("gone.csv", None, "gone.csv: does not exist"),
        ("folder.csv", None, "folder.csv: is not a file"),
        ("a.csv", "request_id,prompt\na\n", "a.csv: line 2: expected 2 fields as in the first line, found 1"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"', "a.jsonl: line 2: expected JSON; column 10: Expecting ':' delimiter"),
        ("b.csv", "id,text\n1,Say\n", "b.csv: expected a column prompt or messages, found id, text; name it with --prompt-column, and a column of ids with --id-column, or set prompts.template"),
    ):  # fmt: skip
        if text is not None:
            (job.folder / name).write_text(text)
        assert expected in job.refused(work=cli.load, file=job.folder / name)
    assert not (job.folder / "prompts").exists()


def test_reports_that_cannot_be_written_are_refused(job: Job) -> None:
    (job.folder / "file").write_text("")
    for out, expected in (
        ("s3a://bucket/report.html", "s3a:/bucket/report.html: expected a path on this machine or under /Volumes"),
        (str(job.folder / "file" / "report.html"), "report.html: its folder cannot be created: File exists"),
        (str(job.folder), f"{job.folder}: expected a file, found a folder"),
    ):
        assert expected in job.refused(work=cli.report, out=Path(out))


@pytest.mark.slow
def test_a_query_that_fails_is_refused(spark: SparkSession, job: Job) -> None:
    query = "SELECT CAST(1 / (id - id) AS STRING) prompt FROM range(2)"
    expected = f"prompts: query {query!r}: [DIVIDE_BY_ZERO] Division by zero."
    assert expected in job.refused("prompts.table=", f"prompts.sql={query}")
    (row,) = run_rows(spark, job.folder)
    assert (row["status"], row["requests"]) == ("failed", 0)
    assert row["reason"].startswith(expected)


def test_a_query_with_a_syntax_error_is_refused(job: Job) -> None:
    assert "prompts: query 'SELEC 1': [PARSE_SYNTAX_ERROR]" in job.refused("prompts.table=", "prompts.sql=SELEC 1")


def test_a_captures_table_with_other_columns_is_refused(spark: SparkSession, job: Job) -> None:
    prompts.write(spark, job.folder / "prompts", [("a", "x")])
    prompts.write(spark, job.folder / "captures", [(1, "x")], "run_id BIGINT, request_id STRING")
    output = job.refused()
    assert f"captures.table: {job.folder / 'captures'}: column run_id: expected string, found bigint" in output
    assert "column status is missing" in output


def test_a_captures_table_of_an_older_version_gains_its_columns(spark: SparkSession, job: Job) -> None:
    prompts.write(spark, job.folder / "prompts", [("a", "x")])
    older = [column for column in columns.CAPTURES if not column.added]
    delta_tables.ensure(spark, str(job.folder / "captures"), older)
    job.refused("prompts.keep=[topic]")  # the tables are prepared before the refusal
    found = spark.table(delta_tables.quoted(str(job.folder / "captures"))).schema
    assert delta_tables.differences(found, columns.CAPTURES) == []


def test_a_missing_key_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    output = job.refused("endpoint.api_key.env=MY_KEY")
    assert (
        "endpoint.api_key.env: the environment variable MY_KEY is not set; set it, or use --set endpoint.api_key="
        in output
    )


def test_an_unreachable_endpoint_is_named(job: Job) -> None:
    output = job.refused("endpoint.base_url=http://127.0.0.1:9/v1")
    assert "endpoint.base_url: cannot reach 127.0.0.1 port 9: Connection refused; is the server running?" in output
    output = job.refused("endpoint.base_url=https://no.such.host.invalid/v1", "timeouts.connect_s=5")
    assert "endpoint.base_url: cannot reach no.such.host.invalid port 443: " in output


def test_a_missing_vocabulary_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens.encoding.cache_clear()
    monkeypatch.setattr(tokens, "VOCABULARIES", job.folder)
    output = job.refused()
    tokens.encoding.cache_clear()
    assert "vocabulary o200k_base: " in output
    assert "`make setup` unpacks it" in output


def test_a_state_folder_that_is_not_writable_is_named(job: Job) -> None:
    (job.folder / "file").write_text("")
    output = job.refused(f"state.dir={job.folder / 'file' / 'state'}")
    assert f"state.dir: {job.folder / 'file' / 'state'}: cannot be written: Not a directory" in output


def test_malformed_yaml_is_refused(job: Job) -> None:
    path = job.folder / "bad.yml"
    path.write_text("capture:\n  concurrency: [1\nrun: {}")
    assert cli.run(cli.capture, path) == cli.CONFIGURATION


def test_a_missing_prices_file_is_named(job: Job) -> None:
    output = job.refused("prices=nowhere.yml", "capture.concurrency=0")
    assert "capture.concurrency: expected a number greater than or equal to 1, found 0" in output
    assert "prices: nowhere.yml: cannot be read: No such file or directory" in job.refused("prices=nowhere.yml")


def test_all_problems_are_listed_at_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    output = job.refused("endpoint.api_key.env=MY_KEY", "endpoint.base_url=http://127.0.0.1:9/v1", "prices=nowhere.yml")
    assert output.count("✗") == 3


@pytest.mark.slow
def test_a_key_missing_in_the_workers_fails_the_run(
    spark: SparkSession, tables: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts.write(spark, tables / "prompts", [("a", "x")])
    monkeypatch.setenv("SET_TOO_LATE", KEY)  # Spark is already running
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
    """Search a failing job's files and output for its key. A damaged journal file keeps the state folder."""
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
    assert any("aside" in path.parts for path in kept), "the search includes the state folder"
    assert [path for path in kept if KEY.encode() in path.read_bytes()] == []
    assert "was set aside" in job.stdout
    assert KEY not in job.stdout + job.stderr

    frame = spark.createDataFrame([("x",)], "prompt STRING").select(capture_udf(path, max_requests=1)("prompt"))
    frame.explain(extended=True)
    assert KEY not in capfd.readouterr().out + repr(load_settings(path)) + repr(frame)
    with pytest.raises(ValueError, match="max_requests") as caught:
        capture_udf(path, max_requests=-1)
    assert KEY not in "".join(traceback.format_exception(caught.value))
