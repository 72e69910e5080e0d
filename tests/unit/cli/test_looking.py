"""The commands that show results, without Spark: `compare` and `report`."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from deltatap import cli
from deltatap.analysis.compare import Counted, Difference
from deltatap.delta import columns
from deltatap.messages import Control
from deltatap.state import RunState
from tests.commands import invoke
from tests.nightly import AT, run_row, write_table

if TYPE_CHECKING:
    from pathlib import Path

    from deltatap.watch.server import Watching


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs: TTFT grew for certain, the end-to-end time did not."""
    found = {("stream", "ttft_ms", "p95"): Difference(200.0, 250.0, 20.0, 80.0),
             ("stream", "e2e_ms", "p95"): Difference(900.0, 1000.0, -50.0, 250.0)}  # fmt: skip
    monkeypatch.setattr("deltatap.cli.looking.reader", lambda *_: None)
    runs = [{"run_id": "a", "labels": {"night": "Mon"}}, {"run_id": "b", "labels": {"night": "Tue"}}]
    monkeypatch.setattr("deltatap.analysis.queries.require_runs", lambda *_: runs)
    monkeypatch.setattr("deltatap.analysis.compare.compare", lambda *_: found)
    monkeypatch.setattr("deltatap.analysis.compare.counted", lambda *_: {})
    counts = [{"run_id": name, "completed": 160, "interrupted": 0, "failed": failed, "retries": 6, "cost_usd": 0.5}
              for name, failed in (("a", 0), ("b", 2))]  # fmt: skip
    monkeypatch.setattr("deltatap.analysis.queries.counts_of", lambda *_: counts)
    monkeypatch.setattr("deltatap.analysis.queries.good_requests", lambda *_: {"a": (160, 160), "b": (143, 162)})


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize("as_json", [False, True])
def test_compare_says_which_condition_holds_and_exits_with_3(config: Path, *, as_json: bool) -> None:
    conditions = ("--fail-if", "e2e_ms.p95>+5%", "--fail-if", "ttft_ms.p95>+10%", "--fail-if", "ttft_ms.p95<-10%")
    words = ["compare", "a", "b", "--config", str(config), *conditions, *["--json"] * as_json]
    result = CliRunner().invoke(cli.app, words, env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == cli.CONDITION_HOLDS
    messages = result.stderr if as_json else result.stdout
    ttft = "stream ttft_ms p95 went from 200.0 to 250.0 ms: +50.0 ms (+25.0%), 95 % interval +20.0 to +80.0"
    e2e = "stream e2e_ms p95 went from 900.0 to 1,000.0 ms: +100.0 ms (+11.1%), 95 % interval -50.0 to +250.0"
    assert [line for line in messages.splitlines() if "--fail-if" in line] == [
        f"! --fail-if e2e_ms.p95>+5%: {e2e}, which includes zero, so this may be noise: compare more rows",
        f"✗ --fail-if ttft_ms.p95>+10%: {ttft}",
        f"✓ --fail-if ttft_ms.p95<-10%: {ttft}",
    ]
    if as_json:
        assert [each["holds"] for each in json.loads(result.stdout)["conditions"]] == [False, True, False]


@pytest.mark.usefixtures("compared")
def test_compare_exits_with_0_if_no_condition_holds_and_names_the_runs_by_their_labels(config: Path) -> None:
    code, output = invoke("compare", "a", "b", "--config", config, "--fail-if", "e2e_ms.p95>+5%")
    assert code == cli.OK
    assert output.startswith("A: night=Mon: 160 completed, ")
    assert "B: night=Tue: 160 completed, " in output


@pytest.mark.usefixtures("compared")
def test_compare_warns_about_a_busy_machine_by_the_names_that_it_explains(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = {"stream": [Counted(10, {}), Counted(10, {}, busy=9)]}
    monkeypatch.setattr("deltatap.analysis.compare.counted", lambda *_: counted)
    for words, name in (([], "B"), (["--json"], "night=Tue")):
        result = CliRunner().invoke(cli.app, ["compare", "a", "b", "--config", str(config), *words])
        assert f"! stream, {name}: the machine that captured was busy during 9 of 10 rows" in result.output


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize(("condition", "holds"), [("good<95%", True), ("good<80%", False)])
def test_compare_fails_if_too_few_requests_are_good_and_shows_the_counts_of_each_run(
    config: Path, condition: str, *, holds: bool
) -> None:
    words = ["compare", "a", "b", "--config", str(config), "--fail-if", condition, "--set", "analysis.slo.ttft_ms=500"]
    code, output = invoke(*words)
    assert code == (cli.CONDITION_HOLDS if holds else cli.OK)
    first, second, more, *_, judged = output.splitlines()
    assert first == "A: night=Mon: 160 completed, 6 retries, 160/160 requests good (100.0%), $0.5000"
    assert (second, more) == (
        "B: night=Tue: 160 completed, 2 failed, 6 retries, 143/162 requests good (88.3%),", "$0.5000",
    )  # fmt: skip
    mark = "✗" if holds else "✓"
    assert judged == (f"{mark} --fail-if {condition}: 143 of 162 requests good (88.3%), 95 % interval 82.4% to 92.4%")
    result = json.loads(CliRunner().invoke(cli.app, [*words, "--json"]).stdout)
    assert result["runs"][1] == {
        "run_id": "b", "completed": 160, "interrupted": 0, "failed": 2, "retries": 6, "cost_usd": 0.5,
        "good": 143, "sent": 162,
    }  # fmt: skip
    assert result["conditions"] == [{"condition": condition, "mode": None, "holds": holds}]


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("good<95%", "no bound is set that a good request keeps: set one, for example --set analysis.slo.ttft_ms=500"),
        ("e2e_ms>1", "expected [MODE.]METRIC.p50 or .p95, "),
        ("tpot_ms.p95>+1", "expected values of tpot_ms in both runs"),
    ],
)
def test_compare_names_a_condition_that_is_wrong_and_exits_with_2(config: Path, condition: str, why: str) -> None:
    words = ["compare", "a", "b", "--config", str(config), "--json", "--fail-if", condition]
    result = CliRunner().invoke(cli.app, words)
    assert (result.exit_code, result.stdout) == (cli.CONFIGURATION, ""), "only JSON is on standard output"
    assert result.stderr.startswith(f"✗ --fail-if {condition}: {why}")
    assert len(result.stderr.splitlines()) == 1


def test_the_report_command_says_what_it_wrote(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deltatap.cli.looking.session", lambda *_: None)
    monkeypatch.setattr("deltatap.report.write_report", lambda *_: ["a", "b"])
    assert cli.run(cli.report, config, run_ids=None, out=tmp_path / "r.html") == cli.OK
    assert capsys.readouterr().out == f"report written to {tmp_path / 'r.html'} (runs a, b)\n"


@pytest.mark.parametrize(
    ("ended", "shown"),
    [
        (("completed", None), "run a b has ended (completed); next: `deltatap report 'a b'` writes a report\n"),
        (
            ("failed", "wrong key"),
            "run a b has ended (failed): wrong key; next: `deltatap report 'a b'` writes a report\n",
        ),
    ],
)
def test_watch_says_that_a_run_has_ended(
    config: Path, monkeypatch: pytest.MonkeyPatch, ended: tuple[str, str | None], shown: str
) -> None:
    monkeypatch.setattr("deltatap.cli.watching._final", lambda settings, _: (*ended, settings.captures.table))
    code, output = invoke("watch", "a b", "--config", config)
    assert (code, output) == (cli.OK, shown.replace("report '", f"report --config {config} '"))


def test_watch_of_a_recording_that_has_ended_names_its_table(config: Path, tmp_path: Path) -> None:
    runs, table = tmp_path / "runs", str(tmp_path / "my calls")
    write_table(runs, columns.RUNS, [run_row(7, table)])
    code, output = invoke("watch", "run-07", "--config", config, "--set", f"runs.table={runs}")
    tables = f"--config {config} --set runs.table={runs} --set 'captures.table={table}'"
    ended = f"run run-07 has ended (completed); next: `deltatap report {tables} run-07` writes a report\n"
    assert (code, output) == (cli.OK, ended)


def test_watch_prefers_the_run_of_its_own_captures_table_and_then_the_latest(config: Path, tmp_path: Path) -> None:
    """A runs table can serve several captures tables, and ids repeat there."""
    runs, tables = tmp_path / "runs", [str(tmp_path / name) for name in ("a", "b", "c")]
    rows = [run_row(7, table, started_at=AT + timedelta(hours=hour)) for hour, table in enumerate(tables)]
    write_table(runs, columns.RUNS, [rows[0], rows[2], rows[1]])
    own = (f"runs.table={runs}", "--set", f"captures.table={tables[0]}")
    assert f"captures.table={tables[0]} run-07`" in invoke("watch", "run-07", "--config", config, "--set", *own)[1]
    assert f"captures.table={tables[2]} run-07`" in invoke("watch", "run-07", "--config", config, "--set", own[0])[1]


@pytest.mark.usefixtures("compared")
def test_compare_names_the_run_whose_price_changed(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.analysis.facts.price_changes", lambda _: [("b", "m: 1 instead of 2")])
    assert "B: m: 1 instead of 2 (USD per million tokens)\n" in invoke("compare", "a", "b", "--config", config)[1]


@pytest.mark.parametrize("run_id", ["unknown", "run-07"])
def test_watch_of_a_run_that_is_not_here_is_an_error(config: Path, tmp_path: Path, run_id: str) -> None:
    runs = tmp_path / "runs"
    write_table(runs, columns.RUNS, [run_row(7, "t", status="running")])
    code, output = invoke("watch", run_id, "--config", config, "--set", f"runs.table={runs}")
    assert code == cli.CONFIGURATION
    assert f"run {run_id} is not active here; active runs: none; runs.table {runs} " in output
    assert output.endswith(" has no ended run with this id\n")


def test_watch_says_that_only_spark_can_read_a_catalog_table(config: Path) -> None:
    code, output = invoke("watch", "a", "--config", config, "--set", "runs.table=main.llm.runs")
    assert code == cli.CONFIGURATION
    assert output.endswith("; runs.table main.llm.runs says whether it has ended, but only Spark can read this table\n")


def test_watch_of_a_killed_run_gives_no_status_before_the_next_run_has_landed_its_captures(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, state = tmp_path / "runs", RunState(tmp_path / "state" / "run-07")
    write_table(runs, columns.RUNS, [run_row(7, "t", status="running")])
    state.prepare()
    state.publish(Control(epoch=2, beat=1, stop=None))

    def serve(watching: Watching, *_: object) -> None:
        state.publish(Control(epoch=3, beat=1, stop="ended"))
        watching.board = watching._turn()

    monkeypatch.setattr("deltatap.watch.server.serve", serve)
    sets = ("--set", f"runs.table={runs}", "--set", f"state.dir={state.folder.parent}")
    code, output = invoke("watch", "run-07", "--port", "0", "--config", config, *sets)
    assert (code, "run run-07 has ended; next: `deltatap report " in output) == (cli.OK, True)
