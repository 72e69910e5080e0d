"""The wheel where only it and what a runtime carries are installed, run with the arguments that the bundle gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.delta.tables import quoted
from tests import prompts
from tests.bundle import ROOT, Resolver, read
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

UV = ROOT / ".tools/uv/bin/uv"
# Runtime 17.3 LTS, 18 LTS and 19, with what serverless environment 5 has beside its Spark.
CARRIED = {"pandas": "2.2.3", "pyarrow": "21.0.0"}
SPARKS = ("4.0.5", "4.1.4", "4.2.0")
RUN_ID = "4711"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build: list[str | Path] = [
        UV,
        "build",
        "--quiet",
        "--wheel",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        folder,
    ]
    subprocess.run([*build, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


def installed(wheel: Path, folder: Path, spark: str) -> Path:
    """A Python with what a runtime carries, and then the wheel as Databricks' pip would add it."""
    python = folder / "bin/python"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    install: list[str | Path] = [UV, "pip", "install", "--quiet", "--python", python]
    carried = [f"{name}=={version}" for name, version in (CARRIED | {"pyspark": spark}).items()]
    subprocess.run([*install, *carried, "delta-spark==4.4.0"], check=True)
    subprocess.run([*install, wheel], check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    listed = subprocess.run(
        [UV, "pip", "list", "--quiet", "--format", "json", "--python", python],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return {each["name"]: each["version"] for each in json.loads(listed)}


@pytest.mark.parametrize("spark_version", SPARKS)
def test_the_wheel_changes_nothing_that_a_runtime_carries(wheel: Path, tmp_path: Path, spark_version: str) -> None:
    python = installed(wheel, tmp_path / "venv", spark_version)
    found = versions(python)
    assert {name: found[name] for name in CARRIED} == CARRIED
    assert found["pyspark"] == spark_version
    # Whatever would go out ends at a port where nobody listens.
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    count = "from deltatap.tokens import encoding; print(len(encoding('o200k_base').encode('Count to 100')))"
    said = subprocess.run(
        [python, "-c", count], check=True, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **nowhere}
    ).stdout
    assert said == "4\n"


def as_deployed(folder: Path, job: str, replaced: dict[str, str]) -> dict[str, list[str]]:
    """The command of each of a job's scripts as the bundle has it for dev, with places of this machine put in."""
    tree = read()
    resolver = Resolver(tree, "dev")
    resolved = resolver.resolved(tree["resources"]["jobs"][job])
    parameters = {f"{{{{job.parameters.{each['name']}}}}}": each["default"] for each in resolved["parameters"]}
    deployed = str(resolver.resolved("${workspace.file_path}"))

    def word(given: str) -> str:
        for name, value in {**parameters, "{{job.run_id}}": RUN_ID, deployed: str(folder)}.items():
            given = given.replace(name, value)
        key, is_set, _ = given.partition("=")
        if is_set and key in replaced:
            return f"{key}={replaced[key]}"
        return str(folder / "report.html") if given.startswith("/Volumes/") else given

    commands = {}
    for task in resolved["tasks"]:
        if script := task.get("spark_python_task"):
            path = (ROOT / "conf/resources" / script["python_file"]).resolve().relative_to(ROOT)
            commands[task["task_key"]] = [str(folder / path), *(word(each) for each in script["parameters"])]
    return commands


def test_every_task_runs_as_the_bundle_names_it(spark: SparkSession, wheel: Path, tmp_path: Path) -> None:
    python = installed(wheel, tmp_path / "venv", "4.1.4")
    files = tmp_path / "files"
    for folder in ("jobs", "conf"):
        shutil.copytree(ROOT / folder, files / folder)
    rows: list[tuple[Any, ...]] = [(f"q{at}", f"Prompt {at}?", None) for at in range(12)]
    prompts.write(spark, tmp_path / "prompts", rows)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["OPENAI_API_KEY"] = "sk-of-the-scope"
    with start_simulator("--speed", "0", "--tokens", "20", "--api-key-env", "OPENAI_API_KEY", env=env) as simulator:
        places = {
            "prompts.table": str(tmp_path / "prompts"), "captures.table": str(tmp_path / "captures"),
            "runs.table": str(tmp_path / "runs"), "state.dir": str(tmp_path / "state"),
            "endpoint.base_url": simulator.base_url,
        }  # fmt: skip
        commands = as_deployed(files, "check", places) | as_deployed(files, "capture", places)
        assert list(commands) == ["check", "capture", "analyze", "report"]
        said = {}
        for task, command in commands.items():
            done = subprocess.run(
                [python, *command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False
            )
            said[task] = done.stdout
            assert done.returncode == 0, (task, done.stdout, done.stderr)
            assert "sk-of-the-scope" not in done.stdout + done.stderr
        assert simulator.counts()["calls"] == len(rows), "check calls nobody"
    assert "a capture can start" in said["check"]
    last = json.loads(said["capture"].splitlines()[-1])
    assert (last["run_id"], last["status"], last["completed"]) == (RUN_ID, "completed", len(rows))
    assert "1 runs analyzed" in said["analyze"]
    assert (files / "report.html").stat().st_size > 1_000_000
    metrics = spark.sql(f"SELECT * FROM {quoted(str(tmp_path / 'metrics_by_run'))}").collect()
    assert [(row["run_id"], row["completed"]) for row in metrics] == [(RUN_ID, len(rows))]
