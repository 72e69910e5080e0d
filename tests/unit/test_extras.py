"""Which command needs which extra, in a folder without a configuration file, and the line that names a missing extra."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
# The top-level package of each package that has another name.
MODULES = {
    "delta-spark": "delta", "azure-identity": "azure", "databricks-sdk": "databricks",
    "opentelemetry-sdk": "opentelemetry", "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}  # fmt: skip
# Runs command lines in a process without some packages. None in sys.modules means that an import fails.
SCRIPT = """
import json, sys
missing, commands = map(json.loads, sys.argv[1:])
sys.modules.update(dict.fromkeys(missing))
from typer.testing import CliRunner
from deltatap import cli
ended = [CliRunner().invoke(cli.app, words) for words in commands]
print(json.dumps([(each.exit_code, each.output) for each in ended]))
"""
# What each command needs first if no extra is installed.
ALL_MISSING = {
    ("capture",): ("pyspark.sql", "spark"),
    ("capture", "--dry-run"): ("pyspark.sql", "spark"),
    ("check",): ("pyspark.sql", "spark"),
    ("load", "prompts.csv"): ("pyspark.sql", "spark"),
    ("analyze",): ("pyspark.sql", "spark"),
    ("runs",): ("pyspark.sql", "spark"),
    ("show", "a"): ("pyspark.sql", "spark"),
    ("compare", "a", "b"): ("pyspark.sql", "spark"),
    ("report",): ("jinja2", "report"),
    ("export", "--otlp", "http://127.0.0.1:9"): ("opentelemetry.exporter", "otel"),
    ("replay",): ("starlette.applications", "serve"),
    ("simulate",): ("starlette.applications", "serve"),
    ("record",): ("pyspark.sql", "spark"),
    ("watch",): ("uvicorn", "serve"),
}
# With the other extras installed, these commands still need Spark.
WITHOUT_LOCAL_AND_SPARK = {
    ("report",): ("pyspark.sql", "spark"),
    ("export", "--otlp", "http://127.0.0.1:9"): ("pyspark.sql", "spark"),
    ("replay",): ("pyspark.sql", "spark"),
}
WITHOUT_SPARK = {
    ("record",): ("pyspark.sql", "spark"),
    ("load", "prompts.csv", "--replace"): ("pyspark.sql", "spark"),
    ("analyze",): ("pyspark.sql", "spark"),
}
IDENTITIES = {"azure": "azure.identity", "databricks": "databricks.sdk"}


def extras() -> dict[str, list[str]]:
    """The top-level packages of each extra."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {extra: [re.split("[<>=]", requirement)[0] for requirement in given] for extra, given in declared.items()}
    return {extra: [MODULES.get(name, name) for name in given] for extra, given in names.items()}


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[list[str]]:
    """The options for an endpoint that a capture can connect to. The working folder has a file with prompts."""
    (tmp_path / "prompts.csv").write_text("request_id,prompt\na,Hello\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield ["--set", f"endpoint.base_url=http://127.0.0.1:{server.getsockname()[1]}/v1"]


def run(folder: Path, without: set[str], commands: list[list[str]]) -> list[tuple[int, str]]:
    """The exit code and the output of each command, in this folder and without the packages of some extras."""
    missing = sorted(module for extra in without for module in extras()[extra])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(missing), json.dumps(commands)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(code, output) for code, output in json.loads(done.stdout)]


def line(module: str, extra: str) -> str:
    return f"the extra {extra} is not installed ({module} is missing): run `pip install 'deltatap[{extra}]'`, or `make setup` in a checkout\n"


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        pytest.param(set(extras()), ALL_MISSING, id="no extra"),
        pytest.param({"spark", "local"}, WITHOUT_LOCAL_AND_SPARK, id="all but spark and local"),
        pytest.param({"spark"}, WITHOUT_SPARK, id="all but spark"),
    ],
)
def test_a_command_names_the_missing_extra_in_one_line(
    tmp_path: Path, endpoint: list[str], without: set[str], expected: dict[tuple[str, ...], tuple[str, str]]
) -> None:
    here = [*endpoint, "--set", "endpoint.api_key="]
    added: dict[tuple[str, ...], list[str]] = {
        ("simulate",): [],
        ("replay",): [*here, "--port", "0"],
        ("record",): [*here, "--port", "0"],
        ("watch",): ["--port", "0"],
    }  # the usual port may be in use
    found = run(tmp_path, without, [[*words, *added.get(words, here)] for words in expected])
    assert dict(zip(expected, found, strict=True)) == {
        words: (2, f"✗ {line(*missing)}") for words, missing in expected.items()
    }
    assert {path.name for path in tmp_path.iterdir()} <= {"prompts.csv", "data"}


def test_an_identity_names_its_extra_before_spark_starts(tmp_path: Path, endpoint: list[str]) -> None:
    words = [["capture", *endpoint, "--set", f"endpoint.api_key={{identity: {name}}}"] for name in IDENTITIES]
    assert run(tmp_path, {"azure", "databricks"}, words) == [
        (2, f"✗ endpoint.api_key.identity: {line(module, extra)}") for extra, module in IDENTITIES.items()
    ]


@pytest.mark.slow
def test_the_commands_that_need_no_extra_work_without_any(tmp_path: Path) -> None:
    commands = [["--version"], ["--help"], ["init"], ["stop", "a"]]
    version, helped, begun, stopped = run(tmp_path, set(extras()), commands)
    assert (version[0], helped[0], begun[0]) == (0, 0, 0)
    assert "  pip install 'deltatap[spark,report,serve]'\n" in begun[1]
    assert stopped == (2, f"✗ state.dir: {tmp_path / 'data/state'}: run a is not active here; active runs: none\n")


def test_without_spark_local_tables_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("request_id,prompt\na,Hello\n")
    loaded, listed = run(tmp_path, {"spark"}, [["load", "prompts.csv"], ["runs"]])
    assert loaded == (
        0,
        (
            f"prompts loaded into {tmp_path / 'data/prompts'}: 1\nnext: `deltatap capture`"
            "; add the settings of your endpoint and tables if the configuration does not have them\n"
        ),
    )
    assert listed[1] == (
        f"✗ runs.table: {tmp_path / 'data/runs'}: this Delta table does not exist; capture something first, "
        "or name your table with --set runs.table=…\n"
    )
