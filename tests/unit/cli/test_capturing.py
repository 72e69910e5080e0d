"""The commands that capture, without Spark: `capture`, `load`, `check` and `stop`."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from deltatap import cli
from deltatap.delta import columns
from deltatap.driver.run import Ended
from deltatap.messages import Control
from deltatap.state import RunState
from tests.commands import invoke

if TYPE_CHECKING:
    from pathlib import Path


def test_stopping_an_unknown_run_lists_the_active_runs(config: Path, tmp_path: Path) -> None:
    code, output = invoke("stop", "nope", "--config", config)
    assert (code, output) == (2, f"✗ state.dir: {tmp_path / 'state'}: run nope is not active here; active runs: none\n")


def test_stopping_without_an_id_stops_the_only_active_run(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert invoke("stop", "--config", config) == (2, f"✗ state.dir: {folder}: no run is active here\n")
    states = [RunState.of(folder, run_id) for run_id in ("one", "two")]
    for state in states:
        state.prepare()
        state.publish(Control(epoch=1, beat=1))
    expected = (2, f"✗ state.dir: {folder}: several runs are active here; name one: one, two\n")
    assert invoke("stop", "", "--config", config) == expected
    states[0].remove()
    late = "; it has not answered for 0 s: it is planning or landing, or its driver is dead"
    assert invoke("stop", "", "--config", config) == (0, f"asked run two to stop{late}\n")
    assert states[1].asked_to_stop(1)


@pytest.mark.parametrize("run_id", ["run-1", "nightly:1", "../a b", "it's"])
def test_a_run_with_any_id_is_stopped_and_listed_by_its_id(config: Path, tmp_path: Path, run_id: str) -> None:
    state = RunState.of(tmp_path / "state", run_id)
    state.prepare()
    state.publish(Control(epoch=1, beat=1))
    assert f"active runs: {run_id}" in invoke("stop", "nope", "--config", config)[1]
    assert invoke("stop", run_id, "--config", config)[0] == cli.OK
    assert state.asked_to_stop()


def test_a_crashed_capture_says_that_it_can_be_run_again(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_: object) -> None:
        raise RuntimeError("Spark gave up")

    monkeypatch.setattr("deltatap.driver.needs.preflight", crash)
    assert cli.run(cli.capture, config) == cli.FAILED
    assert "run it again" in capsys.readouterr().out


def test_the_last_line_of_a_capture_is_short_json(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"owed": 4, "completed": 1, "interrupted": 2, "failed": 1, "requests": 5, "input_tokens": 6}
    last = {"run_id": "r", "status": "stopped", "reason": "it's ü", **counts, "output_tokens": 7, "cost_usd": 1e-6}
    row = {column.name: None for column in columns.RUNS} | {"labels": {"a": "b"}} | last
    ended = SimpleNamespace(row=row, notes=["a note"], failed=False, earlier_calls=0, failed_share=0.25)
    monkeypatch.setattr("deltatap.driver.needs.preflight", lambda _: None)
    monkeypatch.setattr("deltatap.cli.capturing.session", lambda *_: None)
    monkeypatch.setattr("deltatap.driver.run.run", lambda *_: ended)
    monkeypatch.setattr("deltatap.analysis.queries.summarize", lambda *_: ([], [], []))
    assert cli.run(cli.capture, config) == cli.OK
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1]).items()) == list(last.items())


def ended(completed: int | None, interrupted: int | None, failed: int | None, **values: Any) -> Ended:
    counts = {"completed": completed, "interrupted": interrupted, "failed": failed}
    used = {"owed": 4, "requests": 5, "input_tokens": 6, "output_tokens": 7, "cost_usd": None}
    return Ended({"run_id": "r", "status": "completed", "reason": None, "config": "{}"} | counts | used | values)


@pytest.mark.parametrize(
    ("rate", "outcome", "code"),
    [
        (0.5, ended(1, 1, 2), cli.OK),
        (0.5, ended(1, 0, 2), cli.TOO_MANY_ERRORS),
        (0.7, ended(1, 0, 2), cli.OK),
        (0.0, ended(1, 0, 2), cli.TOO_MANY_ERRORS),
        (1.0, ended(0, 0, 2), cli.OK),
        (1.0, ended(1, 0, 0, status="failed", reason="quota"), cli.FAILED),
        (0.0, ended(1, 0, 0, status="stopped", reason="stopped by a signal"), cli.OK),
    ],
)
def test_capture_fails_above_the_configured_error_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    rate: float, outcome: Ended, code: int,
) -> None:  # fmt: skip
    """Runs the capture command. The run itself is replaced by its outcome."""
    monkeypatch.setattr("deltatap.driver.needs.preflight", lambda _: None)
    monkeypatch.setattr("deltatap.driver.run.run", lambda *_: outcome)
    monkeypatch.setattr("deltatap.analysis.queries.summarize", lambda *_: ([], [], []))
    monkeypatch.setattr("deltatap.cli.capturing.session", lambda *_: None)
    path = tmp_path / "config.yml"
    path.write_text(f"capture:\n  fail_above_error_rate: {rate}\n")
    assert cli.run(cli.capture, path) == code
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {name: value for name, value in outcome.row.items() if name != "config"}


@pytest.mark.parametrize(
    ("rounds", "code"),
    [
        ([ended(1, 0, 0), ended(2, 0, 0)], cli.OK),
        ([ended(0, 0, 4), ended(2, 0, 0)], cli.TOO_MANY_ERRORS),
        ([ended(0, 0, 4), ended(2, 0, 0, status="failed", reason="quota")], cli.FAILED),
        ([ended(1, 0, 0), ended(2, 0, 0, status="stopped", reason="stopped by a signal")], cli.OK),
    ],
)
def test_each_round_prints_its_row_and_the_last_line_is_the_last_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, rounds: list[Ended], code: int
) -> None:
    """Runs the capture command. The rounds are replaced by their outcomes."""
    monkeypatch.setattr("deltatap.driver.needs.preflight", lambda _: None)
    monkeypatch.setattr("deltatap.driver.follow.follow", lambda *_: iter(rounds))
    monkeypatch.setattr("deltatap.analysis.queries.summarize", lambda *_: ([], [], []))
    monkeypatch.setattr("deltatap.cli.capturing.session", lambda *_: None)
    path = tmp_path / "config.yml"
    path.write_text("capture: {follow_s: 5}\n")
    assert cli.run(cli.capture, path) == code
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["completed"] for row in found] == [1 if rounds[0].row["completed"] else 0, 2, 2]


def test_a_dry_run_needs_neither_the_key_nor_the_endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs the capture command. What needs Spark is replaced."""
    shown: list[object] = []
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("deltatap.cli.capturing.session", lambda *_: None)
    monkeypatch.setattr("deltatap.driver.estimate.estimate_run", lambda *_: "estimate")
    monkeypatch.setattr("deltatap.driver.estimate_text.show", lambda *arguments: shown.extend(arguments[1:]))
    monkeypatch.setattr("deltatap.driver.source.misspelled", lambda *_: [])
    path = tmp_path / "config.yml"
    path.write_text("endpoint: {base_url: 'http://127.0.0.1:9/v1'}\n")
    assert cli.run(cli.capture, path) == cli.CONFIGURATION
    assert cli.run(cli.capture, path, dry_run=True) == cli.OK
    assert shown == ["estimate", None]


def test_capture_without_a_server_exits_with_2_before_spark_starts(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltatap.cli.capturing.session", None)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    options = (f"endpoint.base_url=http://127.0.0.1:{port}/v1", "endpoint.api_key=", "prices=")
    code, output = invoke("capture", "--config", config, *(word for each in options for word in ("--set", each)))
    problem = f"✗ endpoint.base_url: cannot reach 127.0.0.1 port {port}: Connection refused; is the server running? "
    assert (code, output) == (cli.CONFIGURATION, f"{problem}`deltatap simulate` starts the simulator\n")


def test_load_refuses_a_missing_file_before_spark_starts(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.cli.capturing.session", None)
    expected = (cli.CONFIGURATION, "✗ nowhere.csv: does not exist\n")
    assert invoke("load", "nowhere.csv", "--config", config) == expected


def test_check_without_a_network_does_not_list_the_models(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deltatap.driver import check  # noqa: PLC0415 - pyspark

    monkeypatch.setattr("deltatap.cli.capturing.session", lambda *_: None)
    monkeypatch.setattr(check, "_runtime", lambda *_: check.Finding("runtime", "ok", ""))
    monkeypatch.setattr(check, "_tables", lambda *_: [])
    monkeypatch.setattr(check, "_where", lambda *_: [])
    overrides = ["endpoint.api_key=", "endpoint.base_url=http://127.0.0.1:9/v1", "prices="]
    assert cli.run(cli.check, config, overrides) == cli.CONFIGURATION
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "! models: not checked: the endpoint cannot be reached",
        "1 problem to fix before capturing; no paid call was made",
    ]
