"""The command line without Spark: options, help, errors and exit codes."""

from __future__ import annotations

import io
import itertools
import json
import re
import socket
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import typer.main
from rich.console import Console
from typer.testing import CliRunner

from deltatap import cli
from deltatap.analysis.compare import Difference
from deltatap.cli.runner import session
from deltatap.config import load_settings
from deltatap.delta import columns
from deltatap.errors import ConfigError, LandingError, MissingExtraError, RunningError, SparkSetupError, VocabularyError
from deltatap.messages import Control
from deltatap.state import RunState
from deltatap.terminal import plain_console

if TYPE_CHECKING:
    from deltatap.config import Settings

ROOT = Path(__file__).parents[2]
PANELS = {
    "Capture": ["init", "capture", "load", "check", "stop", "record", "sweep", "watch"],
    "Results": ["runs", "show", "failures", "analyze", "compare", "report", "reconcile", "export", "trend"],
    "Endpoints for tests": ["replay", "simulate"],
}
COMMANDS = [name for names in PANELS.values() for name in names]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yml"
    path.write_text(f"state: {{dir: {tmp_path / 'state'}}}\n")
    return path


def invoke(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "80", "TERM": "dumb"})
    return result.exit_code, result.output


def test_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert invoke("--version") == (0, f"deltatap {version}\n")


def test_help_lists_every_command_and_shell_completion() -> None:
    code, output = invoke("--help")
    assert code == 0
    panels = re.split(r"^╭─ (.+?) ─+╮$", output, flags=re.MULTILINE)
    found = {
        title: re.findall(r"^│ (\w+) ", text, re.MULTILINE)
        for title, text in zip(panels[1::2], panels[2::2], strict=True)
    }
    assert [(title, names) for title, names in found.items() if names] == list(PANELS.items())
    assert "--install-completion" in output


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)])
def test_help_fits_into_80_columns(words: tuple[str, ...]) -> None:
    _, output = invoke(*words, "--help")
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output, "nothing is cut"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("c", ["capture", "check", "compare"]), ("compare --f", ["--fail-if"]), ("simulate --po", ["--port"])],
)
def test_the_shell_completes_commands_and_options(typed: str, offered: list[str]) -> None:
    words = f"deltatap {typed}"
    environment = {"_DELTATAP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    result = CliRunner().invoke(cli.app, [], prog_name="deltatap", env=environment)
    assert sorted(result.output.split()) == offered


@pytest.mark.parametrize("name", COMMANDS)
def test_help_at_80_columns_is_wrapped_once(name: str) -> None:
    code, output = invoke(name, "--help")
    assert code == 0
    text = output.partition("╭")[0].partition("Usage:")[2]
    paragraphs = [paragraph.split("\n") for paragraph in re.split(r"\n\s*\n", text)[1:] if paragraph.strip()]
    for paragraph in paragraphs:
        for line, after in itertools.pairwise(paragraph):
            word = after.split()[0] if after.strip() else "x" * 80
            assert len(line.rstrip()) + 1 + len(word) > 79, f"{line!r} has room for {word!r}"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("init", "simulate")])
def test_commands_share_config_and_set(name: str) -> None:
    group = typer.main.get_command(cli.app)
    options = {option for parameter in group.commands[name].params for option in parameter.opts}  # type: ignore[attr-defined]
    assert {"--config", "-c", "--set"} <= options


def test_without_a_configuration_file_the_defaults_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []
    monkeypatch.chdir(tmp_path)
    default = Path("conf/local.yml")

    def work(settings: Settings, _: Console) -> int:
        seen.append(settings)
        return 0

    assert cli.run(work, default, ("capture.limit=3",)) == 0
    assert [(each.capture.limit, each.prices) for each in seen] == [(3, "conf/prices.yml")]


def test_help_and_version_import_no_heavy_package() -> None:
    heavy = "{'numpy', 'pandas', 'pyarrow', 'pydantic', 'pyspark', 'tiktoken', 'openai', 'yaml'}"
    code = f"import sys, deltatap.cli; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_a_configuration_error_lists_every_problem_and_exits_with_2(config: Path) -> None:
    code, output = invoke("capture", "--config", config, "--set", "capture.x=1", "--set", "nonsense")
    assert code == cli.CONFIGURATION
    assert [line[:14] for line in output.splitlines()] == ["✗ --set nonsen", f"✗ {config}"[:14]]


def test_a_local_session_has_the_master_and_the_jars_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyspark.sql import SparkSession  # noqa: PLC0415 - other tests need no pyspark

    started: list[tuple[str, str | None]] = []
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setattr("deltatap.spark.session.local_session", lambda master, *, jars: started.append((master, jars)))
    settings = load_settings({"spark": {"master": "local[1]", "jars": "/jars"}})
    session(settings, plain_console())
    assert started == [("local[1]", "/jars")]


def test_what_spark_says_about_pandas_is_not_shown(config: Path) -> None:
    def work(_settings: Settings, _console: Console) -> int:
        warnings.warn("PySpark does not yet fully support pandas >= 3.0.0.", FutureWarning, stacklevel=1)
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.run(work, config) == 0


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
    assert invoke("stop", "", "--config", config) == (0, "asked run two to stop\n")
    assert states[1].asked_to_stop()


@pytest.mark.parametrize("run_id", ["run-1", "nightly:1", "../a b", "it's"])
def test_a_run_with_any_id_is_stopped_and_listed_by_its_id(config: Path, tmp_path: Path, run_id: str) -> None:
    state = RunState.of(tmp_path / "state", run_id)
    state.prepare()
    state.publish(Control(epoch=1, beat=1))
    assert f"active runs: {run_id}" in invoke("stop", "nope", "--config", config)[1]
    assert invoke("stop", run_id, "--config", config)[0] == cli.OK
    assert state.asked_to_stop()


@pytest.mark.parametrize(
    ("error", "code", "output"),
    [
        (ConfigError(["a: [b] wrong", "c: wrong"]), 2, ["✗ a: [b] wrong", "✗ c: wrong"]),
        (VocabularyError("damaged"), 2, ["✗ damaged"]),
        (RunningError("run r is active"), 2, ["✗ run r is active"]),
        (SparkSetupError("no Java"), 2, ["✗ no Java"]),
        (MissingExtraError("install it"), 2, ["✗ install it"]),
        (LandingError("no space"), 1, ["✗ no space"]),
        (ValueError("one\ntwo"), 1, ["✗ ValueError: one"]),
        (ModuleNotFoundError("No module named 'deltatap.x'", name="deltatap.x"), 1,
         ["✗ ModuleNotFoundError: No module named 'deltatap.x'"]),
        (ModuleNotFoundError("No module named 'plotly'", name="plotly.offline"), 2,
         ["✗ the extra report is not installed (plotly.offline is missing): run `pip install 'deltatap[report]'`, or `make setup` in a checkout"]),
    ],
)  # fmt: skip
def test_exit_codes(
    config: Path, capsys: pytest.CaptureFixture[str], error: Exception, code: int, output: list[str]
) -> None:
    def work(_settings: Settings, _console: Console) -> int:
        raise error

    assert cli.run(work, config) == code
    assert capsys.readouterr().out.splitlines() == output


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
    ended = SimpleNamespace(row=row, notes=["a note"], failed=False, failed_share=0.25)
    monkeypatch.setattr("deltatap.driver.needs.preflight", lambda _: None)
    monkeypatch.setattr("deltatap.cli.capturing.session", lambda *_: None)
    monkeypatch.setattr("deltatap.driver.run.run", lambda *_: ended)
    monkeypatch.setattr("deltatap.analysis.queries.summarize", lambda *_: ([], [], []))
    assert cli.run(cli.capture, config) == cli.OK
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1]).items()) == list(last.items())


def test_a_job_script_exits_only_with_an_error(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    codes = iter([cli.OK, cli.TOO_MANY_ERRORS])
    received: list[object] = []

    def work(settings: Settings, _console: Console, *, dry_run: bool = False) -> int:
        received.append((settings.capture.limit, dry_run))
        return next(codes)

    monkeypatch.setattr(sys, "argv", ["job.py", "--config", str(config), "--set", "capture.limit=3", "--dry-run"])
    cli.run_job(work)
    with pytest.raises(SystemExit) as ended:
        cli.run_job(work)
    assert ended.value.code == cli.TOO_MANY_ERRORS
    assert received == [(3, True)] * 2


def test_a_job_script_takes_several_settings_in_one_argument(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    received: list[object] = []

    def work(settings: Settings, _console: Console, *, dry_run: bool = False) -> int:
        received.append((settings.capture.limit, settings.prompts.sql, settings.run.labels, dry_run))
        return cli.OK

    given = "capture.limit=4 prompts.table=  prompts.sql='SELECT a, b FROM t' run.labels.team=x"
    words = ["job.py", "--config", str(config), "--set", "capture.limit=3", "--settings"]
    monkeypatch.setattr(sys, "argv", [*words, given])
    cli.run_job(work, "--dry-run")
    monkeypatch.setattr(sys, "argv", [*words, ""])
    cli.run_job(work)
    assert received == [(4, "SELECT a, b FROM t", {"team": "x"}, True), (3, None, {}, False)]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("prompts.sql='SELECT 1", "No closing quotation"),
        (
            "capture.limit=1 ' endpoint.base_url=http://a' endpoint={}",
            "endpoint.base_url, endpoint: cannot be changed for one run, because the key would go elsewhere",
        ),
    ],
)
def test_a_job_script_refuses_these_settings_of_one_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, problem: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py", "--settings", given])
    with pytest.raises(SystemExit) as ended:
        cli.run_job(cli.check)
    assert (ended.value.code, capsys.readouterr().out) == (2, f"✗ --settings: {problem}\n")


def test_a_job_script_refuses_an_unknown_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py", "--nope"])
    with pytest.raises(SystemExit) as ended:
        cli.run_job(cli.check)
    assert ended.value.code == cli.CONFIGURATION
    assert "No such option: --nope" in capsys.readouterr().err


def test_simulate_exits_with_1_if_the_server_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr("deltatap.simulator.server.serve", crash)
    code, output = invoke("simulate", "--port", "0")
    assert code == cli.FAILED
    assert "✗ OSError: no memory" in output


def test_simulate_on_an_address_of_another_machine_exits_with_2() -> None:
    problem = "✗ cannot listen on 192.0.2.1 port 8089: Cannot assign requested address\n"
    assert invoke("simulate", "--host", "192.0.2.1") == (cli.CONFIGURATION, problem)


def test_simulate_refuses_a_port_out_of_range() -> None:
    code, output = invoke("simulate", "--port", "99999")
    assert code == cli.CONFIGURATION
    assert "less than or equal to 65535" in " ".join(output.replace("│", "").split())


def test_simulate_on_a_used_port_names_the_port_and_exits_with_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        code, output = invoke("simulate", "--port", port)
    hint = "choose another port with --port, or --port 0 for a free one"
    assert (code, output) == (cli.CONFIGURATION, f"✗ 127.0.0.1 port {port} is already in use; {hint}\n")


def test_replay_on_a_used_port_exits_with_2_before_it_reads_a_table(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        code, output = invoke("replay", "--port", port, "--config", config)
    hint = "choose another port with --port, or --port 0 for a free one"
    assert (code, output) == (cli.CONFIGURATION, f"✗ 127.0.0.1 port {port} is already in use; {hint}\n")


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


@pytest.mark.parametrize("fault", ["nope=0.1", "cut=x", "cut"])
def test_simulate_refuses_a_fault_that_it_cannot_read(fault: str) -> None:
    code, output = invoke("simulate", "--fault", fault)
    assert code == cli.CONFIGURATION
    assert f"--fault {fault}: expected FAULT=RATE" in " ".join(output.split())


@pytest.mark.parametrize("rate", ["2", "-0.1", "nan"])
def test_simulate_refuses_a_rate_outside_of_0_to_1(rate: str) -> None:
    code, output = invoke("simulate", "--fault", f"cut={rate}")
    assert code == cli.CONFIGURATION
    assert f"--fault cut={rate}: expected a rate from 0 to 1, found {rate}" in " ".join(output.replace("│", "").split())


def test_load_refuses_a_missing_file_before_spark_starts(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.cli.capturing.session", None)
    expected = (cli.CONFIGURATION, "✗ nowhere.csv: does not exist\n")
    assert invoke("load", "nowhere.csv", "--config", config) == expected


@pytest.mark.parametrize("name", [r"a\[/b]", "[bold]", "[/]", ":smile:", "[link=x]y[/link]", "\\"])
def test_messages_show_names_that_look_like_markup(config: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(cli.stop, config, run_id=name) == 2
    assert f"run {name} is not active here" in capsys.readouterr().out
    assert cli.run(cli.stop, config, (f"capture.limit={name}",), run_id="r") == 2
    assert "capture.limit: " in capsys.readouterr().out


def test_a_missing_configuration_file_is_named() -> None:
    expected = "✗ nowhere.yml does not exist; pass another file with --config\n"
    assert invoke("runs", "--config", "nowhere.yml") == (cli.CONFIGURATION, expected)


@pytest.mark.parametrize("words", [(), ("capture",), ("analyze",)])
def test_help_shows_no_type_for_flags(words: tuple[str, ...]) -> None:
    _, output = invoke(*words, "--help")
    assert "--help" in output
    assert "bool" not in output.lower()


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
    assert (code, "night Mon" in output, "night Tue" in output) == (cli.OK, True, True)


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize(
    ("condition", "why"),
    [
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


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("plotly", ["report"], "report"),
        ("uvicorn", ["simulate"], "serve"),
        ("uvicorn", ["replay"], "serve"),
        ("pyspark", ["analyze"], "spark"),
    ],
)
def test_a_command_without_its_extra_names_the_extra(config: Path, module: str, words: list[str], extra: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from deltatap.cli import app; app()"
    options = [] if words == ["simulate"] else ["--config", str(config)]
    done = subprocess.run([sys.executable, "-c", code, *words, *options], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (cli.CONFIGURATION, "")
    assert re.fullmatch(
        rf"✗ the extra {extra} is not installed \({module}\S* is missing\): run `pip install 'deltatap\[{extra}\]'`, .*\n",
        done.stdout,
    )


def test_a_log_says_at_once_that_spark_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr("deltatap.spark.session.local_session", lambda *_, **__: said.append(capsys.readouterr().err))
    monkeypatch.setattr("pyspark.sql.SparkSession.getActiveSession", lambda: None)
    settings = load_settings({"prices": None})
    session(settings, plain_console())
    session(settings, Console(file=io.StringIO(), force_terminal=True))
    assert said == ["deltatap: starting Spark\n", ""], "a terminal shows a spinner instead"
    assert capsys.readouterr().out == ""


def test_the_report_command_says_what_it_wrote(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deltatap.cli.looking.session", lambda *_: None)
    monkeypatch.setattr("deltatap.report.write_report", lambda *_: ["a", "b"])
    assert cli.run(cli.report, config, run_ids=None, out=tmp_path / "r.html") == cli.OK
    assert capsys.readouterr().out == f"report written to {tmp_path / 'r.html'} (runs a and b)\n"


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


def test_the_module_of_every_optional_package_has_its_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    otel = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")
    modules = {"delta-spark": "delta"} | dict.fromkeys(otel, "opentelemetry")
    declared = {
        modules.get(name := re.split(r"[<>=]", requirement)[0], name): extra
        for extra in ("spark", "report", "serve", "otel")
        for requirement in extras[extra]
    }
    assert declared == cli.EXTRAS
