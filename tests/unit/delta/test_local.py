"""Queries in Spark's SQL that DuckDB runs, and the commands that use them, without a JVM and without pyspark."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from deltatap.analysis.compare import Counted, counted
from deltatap.analysis.queries import (
    HAS_ROWS,
    NEXT,
    counts_of,
    full_request_ids,
    good_requests,
    newest_capture,
    newest_runs,
    newest_with_rows,
    not_completed,
    not_landed,
    require_runs,
    summarize,
    why_no_runs,
)
from deltatap.analysis.requested import BODY
from deltatap.delta import columns
from deltatap.delta.local import LocalReader, UnreadableError, translated
from deltatap.delta.prepare import GUARD
from deltatap.delta.reader import rows
from deltatap.delta.tables import literal, quoted
from deltatap.driver.lease import this_driver
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings
from tests.local import no_spark

if TYPE_CHECKING:
    from pathlib import Path

    from deltatap.delta.columns import Column

AT = datetime(2026, 11, 21, 6, 30, tzinfo=UTC)
# Runs the command line in a process where nothing can import pyspark.
WITHOUT = "import sys; sys.modules['pyspark'] = None; from deltatap.cli import app; app()"


def query(table: Path, sql: str) -> list[dict[str, Any]]:
    return rows(LocalReader(no_spark).query(sql.format(t=quoted(str(table)))))


def write(table: Path, declared: tuple[Column, ...], *given: dict[str, Any]) -> None:
    schema = pa.schema([(column.name, column.type) for column in declared])
    write_deltalake(table, pa.Table.from_pylist(list(given), schema))


def test_functions_mean_what_they_mean_in_spark(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", pa.table({"x": [1.0, 2.0, 4.0, None], "a": [[1], [2, 3], [], None]}))
    found = query(
        tmp_path / "t",
        """SELECT percentile(x, 0.5) AS p, percentile(x, array(0.25, 0.75)) AS q, percentile_approx(x, 0.6) AS d,
          collect_list(CASE WHEN x > 9 THEN x END) AS none, count_if(x > 1) AS counted, sum(size(a)) AS total,
          timestamp_seconds(any_value(7)) AS moment FROM {t}""",
    )
    assert found == [
        {"p": 2.0, "q": [1.5, 3.0], "d": 2.0, "none": [], "counted": 2, "total": 3,
         "moment": datetime(1970, 1, 1, 0, 0, 7, tzinfo=UTC)},
    ]  # fmt: skip
    assert {type(found[0][name]) for name in ("counted", "total")} == {int}, "BIGINT"
    assert query(tmp_path / "t", "SELECT get(a, 0) AS first, get(a, -2) AS none, get(a, 5) AS beyond FROM {t} WHERE x = 2") == [
        {"first": 2, "none": None, "beyond": None}
    ]  # fmt: skip
    assert query(tmp_path / "t", "SELECT transform(a, (i, x) -> 10 * i + x) AS each, filter(a, (i, x) -> x > 0) AS but FROM {t} WHERE x = 2") == [
        {"each": [20, 31], "but": [3]}
    ]  # fmt: skip
    sums = "SELECT aggregate(a, 0L, (sum, x) -> sum + x) AS total FROM {t} WHERE x = 2"
    assert query(tmp_path / "t", sums) == [{"total": 5}]


@pytest.mark.parametrize("text", ["plain", "it's", "${spark.x} \\ größe 🙂"])
def test_text_stays_as_it_is(tmp_path: Path, text: str) -> None:
    write_deltalake(tmp_path / "it's", pa.table({"x": [text, "other"]}))
    table = quoted(str(tmp_path / "it's"))
    sql = f"SELECT x FROM {table} WHERE x = {literal(text)}"
    assert rows(LocalReader(no_spark).query(sql)) == [{"x": text}]


def test_spark_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", pa.table({"x": [1]}))
    (data,) = (tmp_path / "t").glob("*.parquet")
    data.write_bytes(b"PAR1")
    (tmp_path / "file").touch()
    with pytest.raises(AssertionError, match="Spark was started"):
        query(tmp_path / "t", "SELECT * FROM {t}")
    with pytest.raises(AssertionError, match="Spark was started"):
        LocalReader(no_spark).exists(str(tmp_path / "file"))


def test_the_jvm_ends_with_the_reader_if_it_was_started(tmp_path: Path) -> None:
    ended: list[str] = []
    spark: Any = SimpleNamespace(
        stop=lambda: ended.append("spark"), catalog=SimpleNamespace(tableExists=lambda _: True)
    )
    reader = LocalReader(lambda: spark)
    assert not reader.exists(str(tmp_path))
    reader.close()
    assert ended == []
    assert reader.exists("main.llm.captures")
    reader.close()
    assert ended == ["spark"]


def test_tables_of_a_catalog_and_of_a_cloud_are_not_read() -> None:
    for table in ("main.llm.captures", "delta.`s3://bucket/captures`"):
        with pytest.raises(UnreadableError):
            translated(f"SELECT * FROM {table}", LocalReader(no_spark)._open)
    assert translated("WITH a AS (SELECT 1 AS x) SELECT x FROM a", str) == "WITH a AS (SELECT 1 AS x) SELECT x FROM a"


def test_the_newest_row_is_that_of_the_newest_run(tmp_path: Path) -> None:
    """A reused answer has no time. Once, it counted as newer than any call."""
    write(
        tmp_path / "captures", columns.CAPTURES,
        {"run_id": "b", "request_id": "r", "mode": "stream", "status": "completed", "finished_at": AT},
        {"run_id": "a", "request_id": "r", "mode": "stream", "status": "completed"},
    )  # fmt: skip
    settings = load_settings({name: {"table": str(tmp_path / name)} for name in ("captures", "runs")})
    for newest, hours in (("b", 1), ("a", -1)):
        other = AT + timedelta(hours=hours)
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        write(tmp_path / "runs", columns.RUNS, {"run_id": "a", "started_at": AT}, {"run_id": "b", "started_at": other})
        (found,) = newest_capture(LocalReader(no_spark), settings, "r", None)
        assert found["run_id"] == newest
        assert found["earlier"] == [("a" if newest == "b" else "b", "completed")]


def test_the_beginning_of_an_id_is_enough_if_no_other_id_begins_like_it(tmp_path: Path) -> None:
    ids = {"order-1": "a", "order-12": "a", "order-2": "b", **{f"batch-{n}": "a" for n in range(7)}}
    usual = {"mode": "stream", "status": "completed"}
    write(
        tmp_path / "captures", columns.CAPTURES,
        *({**usual, "request_id": name, "run_id": run_id} for name, run_id in ids.items()),
    )  # fmt: skip
    settings = load_settings({name: {"table": str(tmp_path / name)} for name in ("captures", "runs")})

    def shown(start: str, run_id: str | None = None) -> list[str]:
        return [row["request_id"] for row in newest_capture(LocalReader(no_spark), settings, start, run_id)]

    assert shown("order-1") == ["order-1"], "a whole id comes first"
    assert shown("order-2") == ["order-2"]
    assert shown("order-", "b") == ["order-2"], "no other id of this run begins like it"
    for start, why in {
        "order-": "several request ids begin with order-: order-1, order-12, order-2$",
        "batch": "several request ids begin with batch: batch-0, batch-1, batch-2, batch-3, batch-4, …$",
        "rder-2": "no row with request_id rder-2; did you mean order-2",
        "": "no row with request_id ",
        "%": "no row with request_id %",
    }.items():
        with pytest.raises(ConfigError, match=why):
            shown(start)


def test_failures_are_those_of_a_run_that_did_not_complete(tmp_path: Path) -> None:
    usual = {"run_id": "a", "mode": "stream", "api": "chat", "request": "x" * 10_000, "request_model": "m"}
    error = {"type": "server", "code": "c", "message": "m" * 400, "http_status": 500}
    write(
        tmp_path / "captures", columns.CAPTURES,
        {**usual, "request_id": "good", "status": "completed", "cost_usd": 0.1, "retries": []},
        {**usual, "request_id": "cut", "status": "interrupted", "error": error, "cost_usd": 0.2, "retries": []},
        {**usual, "request_id": "bad", "status": "failed", "error": error, "request_model": "n", "retries": []},
        {**usual, "request_id": "elsewhere", "run_id": "b", "status": "failed", "error": error | {"type": "invalid_request"}, "retries": []},
    )  # fmt: skip
    captures = {"captures": str(tmp_path / "captures"), "started_at": AT, "failed": 1}
    write(
        tmp_path / "runs",
        columns.RUNS,
        {**captures, "run_id": "a"},
        {**captures, "run_id": "b", "started_at": AT - timedelta(1)},
    )
    settings = load_settings({name: {"table": str(tmp_path / name)} for name in ("captures", "runs")})
    reader = LocalReader(no_spark)
    run_id, found, every = not_completed(reader, settings, None, 9)
    assert (run_id, every, [row["request_id"] for row in found]) == ("a", 2, ["bad", "cut"])
    assert [row["final"] for row in found] == [False, False]
    assert (len(found[0]["body"]), len(found[0]["message"]), found[0]["http_status"]) == (BODY, 300, 500)
    _, found, every = not_completed(reader, settings, "a", 1)
    assert (every, len(found)) == (2, 1)
    (elsewhere,) = not_completed(reader, settings, "b", 9)[1]
    assert (elsewhere["request_id"], elsewhere["final"]) == ("elsewhere", True)
    with pytest.raises(ConfigError, match="run c does not exist"):
        not_completed(reader, settings, "c", 9)
    models = summarize(reader, settings, "a")[2]
    assert [(row["model"], row["rows"], row["cost_usd"]) for row in models] == [
        ("m", 2, pytest.approx(0.3)),
        ("n", 1, None),
    ]


def test_the_newest_run_with_rows_is_found_behind_any_number_of_runs_without(tmp_path: Path) -> None:
    write(tmp_path / "captures", columns.CAPTURES)
    usual = {"captures": str(tmp_path / "captures"), "completed": 0, "interrupted": 0, "failed": 0}
    empty = [usual | {"run_id": f"empty {n}", "started_at": AT + timedelta(hours=n)} for n in range(1, 40)]
    failed = usual | {"run_id": "one failed row", "started_at": AT, "completed": None, "failed": 1}
    write(tmp_path / "runs", columns.RUNS, *empty, failed)
    settings = load_settings({name: {"table": str(tmp_path / name)} for name in ("captures", "runs")})
    (found,) = newest_runs(LocalReader(no_spark), settings, 1, HAS_ROWS)
    assert found["run_id"] == "one failed row"


def test_a_run_that_has_not_ended_has_answers_that_are_not_in_the_table(tmp_path: Path) -> None:
    write(tmp_path / "captures", columns.CAPTURES)
    settings = load_settings({name: {"table": str(tmp_path / name)} for name in ("captures", "runs")})
    reader = LocalReader(no_spark)
    assert not_landed(reader, settings) == "", "there is no runs table"
    usual = {"captures": str(tmp_path / "captures"), "started_at": AT}
    ended = usual | {"run_id": "ended", "status": "completed", "started_at": AT + timedelta(hours=1)}
    write(tmp_path / "runs", columns.RUNS, usual | {"run_id": "open", "status": "running"}, ended)
    note = not_landed(reader, settings)
    assert note.startswith("run open has not ended: its newest answers are in its journal")
    assert not_landed(reader, settings, "open") == note
    assert not_landed(reader, settings, "ended") == ""
    with pytest.raises(ConfigError) as none:
        newest_with_rows(reader, settings)
    assert none.value.problems == (f"runs.table: {tmp_path / 'runs'}: no run has rows yet; {note}",)
    for run_id, more in (None, [note]), ("open", [note]), ("ended", []):
        with pytest.raises(ConfigError) as none:
            newest_capture(reader, settings, "q1", run_id)
        assert list(none.value.problems)[1:] == more


def test_the_rows_of_runs_are_counted_with_their_retries_and_cost(tmp_path: Path) -> None:
    tries = [{"error_type": "server"}, {"error_type": "server"}]
    usual: dict[str, Any] = {"run_id": "b", "mode": "stream", "retries": []}
    captures: list[dict[str, Any]] = [
        usual | {"request_id": "q1", "status": "completed", "cost_usd": 0.25, "retries": tries},
        usual | {"request_id": "q2", "status": "failed"},
        usual | {"request_id": "q3", "status": "completed", "cost_usd": 0.5, "run_id": "c"},
    ]
    write(tmp_path / "captures", columns.CAPTURES, *captures)
    settings = load_settings({"captures": {"table": str(tmp_path / "captures")}})
    empty, one = counts_of(LocalReader(no_spark), settings, ["a", "b"])
    counted = {"completed": 0, "interrupted": 0, "failed": 0, "retries": 0, "cost_usd": None}
    assert empty == {"run_id": "a", **counted}
    assert one == {"run_id": "b", **counted, "completed": 1, "failed": 1, "retries": 2, "cost_usd": 0.25}


def test_a_request_is_known_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    usual = {"run_id": "r", "mode": "stream", "status": "completed"}
    write(tmp_path / "captures", columns.CAPTURES, *(usual | {"request_id": name} for name in ("q1", "q10", "other")))
    settings = load_settings({"captures": {"table": str(tmp_path / "captures")}})
    reader = LocalReader(no_spark)
    assert full_request_ids(reader, settings, ["q1", "oth"]) == ["q1", "other"]
    assert full_request_ids(reader, settings, []) == []
    for start, why in ("q", "several request ids begin with q: q1, q10"), ("x", "no row with request_id x"):
        with pytest.raises(ConfigError, match=why):
            full_request_ids(reader, settings, [start])


def test_a_run_whose_process_is_gone_has_answers_that_land_with_the_next_start(tmp_path: Path) -> None:
    write(tmp_path / "captures", columns.CAPTURES)
    settings = load_settings({name: {"table": str(tmp_path / name)} for name in ("captures", "runs")})
    driver = json.dumps(json.loads(this_driver()) | {"start": "0"})
    run = {"captures": str(tmp_path / "captures"), "started_at": AT, "run_id": "dead", "status": "running"}
    write(tmp_path / "runs", columns.RUNS, run | {"driver": driver})
    note = not_landed(LocalReader(no_spark), settings)
    assert note == (f"the process of run dead has ended, but the newest answers are still in its journal: {NEXT}")


def test_a_run_is_known_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    write(tmp_path / "captures", columns.CAPTURES)
    usual = {"captures": str(tmp_path / "captures"), "started_at": AT, "status": "completed"}
    write(
        tmp_path / "runs", columns.RUNS, *(usual | {"run_id": run_id} for run_id in ("mon-1", "mon-2", "mon", "tue-1"))
    )
    settings = load_settings({name: {"table": str(tmp_path / name)} for name in ("captures", "runs")})

    def known(*starts: str) -> list[str]:
        return [row["run_id"] for row in require_runs(LocalReader(no_spark), settings, starts)]

    assert known("tue", "mon", "mon-2") == ["tue-1", "mon", "mon-2"], "a whole id means its run"
    for start, why in {
        "mon-": "several runs begin with mon-: mon-",
        "": "run  does not exist",
        "x": "newest: ",
    }.items():
        with pytest.raises(ConfigError, match=why):
            known(start)


def test_without_runs_the_runs_table_is_named(tmp_path: Path) -> None:
    table, tree = tmp_path / "captures", {name: {"table": str(tmp_path / name)} for name in ("captures", "runs")}
    write(table, columns.CAPTURES)
    reader, settings = LocalReader(no_spark), load_settings(tree)
    why = f"there are no runs on captures table {table} in runs table {tmp_path / 'runs'}"
    assert why_no_runs(reader, settings) == why
    known = {"captures": f"file:{table}", "runs_id": "1", "runs_location": "file:/data/their_runs"}
    DeltaTable(table).alter.set_table_properties({GUARD: json.dumps(known)}, raise_if_not_exists=False)
    assert why_no_runs(reader, settings) == f"{why}; they are in file:/data/their_runs: use it as runs.table"


def test_requests_are_good_if_they_completed_within_every_bound(tmp_path: Path) -> None:
    usual: dict[str, Any] = {
        "run_id": "a",
        "mode": "stream",
        "status": "completed",
        "started_at": AT,
        "chunks": [],
        "retries": [],
    }
    rows_by_name: dict[str, dict[str, Any]] = {
        "good": {"ttft_ms": 100.0, "e2e_ms": 900.0, "loop_lag_ms": 300.0, "clock": "kernel"},
        "whole answer without TTFT": {"e2e_ms": 1000.0, "mode": "complete"},
        "late first token": {"ttft_ms": 100.1, "e2e_ms": 900.0},
        "late end": {"ttft_ms": 50.0, "e2e_ms": 1000.1},
        "interrupted": {"ttft_ms": 50.0, "e2e_ms": 100.0, "status": "interrupted"},
        "failed": {"status": "failed"},
        "invalid prompt, not sent": {"status": "failed", "started_at": None},
        "reused answer, not sent": {"started_at": None},
        "good in another run": {"ttft_ms": 1.0, "e2e_ms": 1.0, "run_id": "b"},
        "not asked for": {"ttft_ms": 1.0, "e2e_ms": 1.0, "run_id": "c"},
    }
    given = [{**usual, "request_id": name, **values} for name, values in rows_by_name.items()]
    write(tmp_path / "captures", columns.CAPTURES, *given)
    tree = {name: {"table": str(tmp_path / name)} for name in ("captures", "runs")}
    settings = load_settings(tree | {"analysis": {"slo": {"ttft_ms": 100, "e2e_ms": 1000}}})
    reader = LocalReader(no_spark)
    assert good_requests(reader, settings, ["a", "b", "none"]) == {"a": (2, 6), "b": (1, 1)}
    assert good_requests(reader, settings, []) == {}
    assert good_requests(reader, load_settings(tree), ["a"]) == {}, "no limit is set"
    assert counted(reader, settings, "a", "b") == {
        "stream": [
            Counted(7, {"interrupted": 1, "failed": 1, "unsent": 1, "reused": 1}, busy=1),
            Counted(1, {}),
        ],
        "complete": [Counted(1, {}), Counted(0, {})],
    }


@pytest.mark.slow
def test_the_command_line_loads_and_shows_without_pyspark(tmp_path: Path) -> None:
    write(
        tmp_path / "runs", columns.RUNS,
        {"run_id": "20261121T063000-abc123", "status": "completed", "started_at": AT, "heartbeat_at": AT, "completed": 1,
         "owed": 1, "cost_usd": 0.0003, "captures": str(tmp_path / "captures")},
    )  # fmt: skip
    write(
        tmp_path / "captures", columns.CAPTURES,
        {"run_id": "20261121T063000-abc123", "request_id": "r-1", "mode": "stream", "status": "completed",
         "finish_reason": "stop", "request_model": "m", "finished_at": AT, "text": "Hi", "chunks": [], "retries": []},
    )  # fmt: skip

    def run(*words: str) -> tuple[int, str]:
        tables = [word for name in ("captures", "runs") for word in ("--set", f"{name}.table={tmp_path / name}")]
        (tmp_path / "c.yml").touch()
        command = [sys.executable, "-c", WITHOUT, *words, "--config", str(tmp_path / "c.yml"), *tables]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.stderr == ""
        return ended.returncode, ended.stdout

    code, output = run("runs")
    assert (code, output.splitlines()[2].split()[:2]) == (0, ["20261121T063000-abc123", "completed"])
    assert output.rstrip().endswith("0.0003")
    code, output = run("show", "r-1")
    assert (code, output.splitlines()[0]) == (0, "r-1  stream  completed (stop)  m  run 20261121T063000-abc123")
    code, output = run("show", "r-2")
    assert (code, output.partition(": no row ")[2]) == (2, "with request_id r-2; did you mean r-1?\n")
    (tmp_path / "x.csv").write_text("request_id,prompt\nr-1,Say\n", encoding="utf-8")
    given = [f"prompts.table={tmp_path / 'prompts'}", "endpoint.headers={key: secret}", "request={seed: 1}"]
    code, output = run("load", str(tmp_path / "x.csv"), *(word for each in given for word in ("--set", each)))
    tables = " ".join(f"--set {name}.table={tmp_path / name}" for name in ("captures", "runs"))
    same = f"--config {tmp_path / 'c.yml'} --set {given[0]} --set 'request={{seed: 1}}' {tables}"
    assert (code, output) == (
        0,
        (
            f"prompts loaded into {tmp_path / 'prompts'}: 1\nnext: `deltatap capture {same}`"
            "; add the settings of your endpoint and tables if the configuration does not have them\n"
        ),
    )
