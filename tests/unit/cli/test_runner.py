"""What all commands share: settings, errors, exit codes, missing extras and the Spark session."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from deltatap import cli
from deltatap.cli.runner import session
from deltatap.errors import ConfigError, LandingError, MissingExtraError, RunningError, SparkSetupError, VocabularyError
from deltatap.settings_loading import load_settings
from deltatap.terminal import plain_console
from tests.commands import invoke

if TYPE_CHECKING:
    from deltatap.config import Settings

ROOT = Path(__file__).parents[3]


def test_without_a_configuration_file_the_defaults_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []
    monkeypatch.chdir(tmp_path)
    default = Path("conf/local.yml")

    def work(settings: Settings, _: Console) -> int:
        seen.append(settings)
        return 0

    assert cli.run(work, default, ("capture.limit=3",)) == 0
    assert [(each.capture.limit, each.prices) for each in seen] == [(3, "conf/prices.yml")]


def test_a_configuration_error_lists_every_problem_and_exits_with_2(config: Path) -> None:
    code, output = invoke("capture", "--config", config, "--set", "capture.x=1", "--set", "nonsense")
    assert code == cli.CONFIGURATION
    assert [line[:14] for line in output.splitlines()] == ["✗ --set nonsen", "✗ --set captur"]


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


@pytest.mark.parametrize("name", [r"a\[/b]", "[bold]", "[/]", ":smile:", "[link=x]y[/link]", "\\"])
def test_messages_show_names_that_look_like_markup(config: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(cli.stop, config, run_id=name) == 2
    assert f"run {name} is not active here" in capsys.readouterr().out
    assert cli.run(cli.stop, config, (f"capture.limit={name}",), run_id="r") == 2
    assert "capture.limit: " in capsys.readouterr().out


def test_a_missing_configuration_file_is_named() -> None:
    expected = "✗ nowhere.yml does not exist; pass another file with --config\n"
    assert invoke("runs", "--config", "nowhere.yml") == (cli.CONFIGURATION, expected)


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


def test_a_local_session_has_the_configured_master(monkeypatch: pytest.MonkeyPatch) -> None:
    masters: list[str] = []
    monkeypatch.delenv("DATABRICKS_RUNTIME_VERSION", raising=False)
    monkeypatch.setattr("pyspark.sql.SparkSession.getActiveSession", lambda: None)
    monkeypatch.setattr("deltatap.spark.session.local_session", lambda master, **_: masters.append(master))
    session(load_settings({"spark": {"master": "local[7]"}}), Console())
    assert masters == ["local[7]"]
