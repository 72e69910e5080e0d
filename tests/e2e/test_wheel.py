"""The wheel in fresh environments: alone, next to the packages of a Databricks runtime, and run as the bundle runs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deltatap import shipped
from deltatap.delta.tables import quoted
from deltatap.spark.jars import jars_for
from deltatap.spark.java import find_java
from tests import prompts
from tests.bundle import ROOT, Resolver, read
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

UV = ROOT / ".tools/uv/bin/uv"
WHEELS = ROOT / ".tools/wheels"
# The packages of serverless environment 5.
PREINSTALLED = {"pandas": "2.2.3", "pyarrow": "21.0.0"}
# Spark of runtime 18 LTS. Runtimes 17.3 LTS and 19 differ only in their Spark, which the wheel alone does not require.
SPARK = "4.1.4"
# No server listens on this port, so every download fails.
NO_NETWORK = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
RUN_ID = "4711"
# Starts a JVM for the Python processes of all tasks, as a cluster does. A line on stdin ends the Spark of a task.
CLUSTER = """
import sys
from pathlib import Path

import pyspark
from pyspark import SparkConf
from pyspark.java_gateway import launch_gateway

from deltatap.spark import session
from deltatap.spark.jars import find_jars, jars_for
from deltatap.spark.java import java_home

with java_home():
    jars = find_jars(jars_for(pyspark.__version__), Path(pyspark.__file__).parent)
    options = {"spark.master": "local[*]", **session._options(jars)}
    gateway = launch_gateway(SparkConf(loadDefaults=False).setAll(options.items()))
java = gateway.java_parameters
print(java.port, java.auth_token, flush=True)
for _ in sys.stdin:
    found = gateway.jvm.SparkSession.getDefaultSession()
    used = found.isDefined()
    if used:
        found.get().stop()
    print(used, flush=True)
gateway.proc.stdin.close()
gateway.proc.wait()
"""


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


def environment(folder: Path) -> Path:
    """Create an empty virtual environment and return its Python."""
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    return folder / "bin/python"


def install(python: Path, *packages: str | Path) -> None:
    """Install packages. The index has no wheel of Spark, and building one takes half a minute, so it is kept."""
    command: list[str | Path] = [UV, "pip", "install", "--python", python, "--find-links", WHEELS, *packages]
    WHEELS.mkdir(exist_ok=True)
    plan = subprocess.run([*command, "--dry-run"], check=True, capture_output=True, text=True).stderr
    for spark in re.findall(r"^ \+ (pyspark==\S+)$", plan, re.MULTILINE):
        if not list(WHEELS.glob(f"{spark.replace('==', '-')}-*.whl")):
            build_wheel(spark)
    subprocess.run([*command, "--quiet"], check=True)


def build_wheel(package: str) -> None:
    with tempfile.TemporaryDirectory(dir=WHEELS) as folder:
        pip: list[str | Path] = [UV.with_name("python"), "-m", "pip", "wheel", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--wheel-dir", folder, package], check=True)
        for built in Path(folder).iterdir():
            built.replace(WHEELS / built.name)


def install_keeping(python: Path, wheel: Path, present: dict[str, str]) -> None:
    """Install packages, then the wheel on top, as Databricks installs it on a runtime's packages."""
    install(python, *(f"{name}=={version}" for name, version in present.items()))
    install(python, wheel)
    found = versions(python)
    assert {name: found[name] for name in present} == present


def versions(python: Path) -> dict[str, str]:
    listed = subprocess.run(
        [UV, "pip", "list", "--quiet", "--format", "json", "--python", python],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return {each["name"]: each["version"] for each in json.loads(listed)}


def test_the_wheel_contains_the_type_marker_and_the_vocabularies(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "deltatap/py.typed" in names
    assert len([name for name in names if name.startswith("deltatap/vocabularies/")]) == 2


def test_the_wheel_contains_the_files_of_the_bundle(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("deltatap/shipped/")}
    assert names == {f"deltatap/shipped/{name}" for name in ["conf/local.yml", *shipped.bundle()]}


def test_without_extras_the_command_line_works_and_names_what_is_missing(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    install_keeping(python, wheel, PREINSTALLED)
    assert not {"plotly", "jinja2", "starlette", "uvicorn", "pyspark"} & versions(python).keys()

    def run(*words: str) -> tuple[int, str]:
        command: list[str | Path] = [python, "-m", "deltatap", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
        assert not done.stderr
        return done.returncode, done.stdout

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run("--version") == (0, f"deltatap {version}\n")
    assert run("--help")[0] == 0
    for words, extra in {
        ("report",): "report",
        ("simulate",): "serve",
        ("runs",): "spark",
    }.items():
        code, output = run(*words)
        line = rf"✗ the extra {extra} is not installed \(\w+(\.\w+)* is missing\): run `pip install 'deltatap\[{extra}\]'`, or `make setup` in a checkout\n"
        assert re.fullmatch(line, output), output
        assert code == 2

    count = "from deltatap.tokens import encoding; print(len(encoding('o200k_base').encode('Count to 100')))"
    env = os.environ | NO_NETWORK | {"NO_PROXY": ""}
    done = subprocess.run([python, "-c", count], check=True, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stdout == "4\n"


def test_the_wheel_alone_captures_and_reports_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    install(python, f"deltatap[spark,local,report] @ {wheel.as_uri()}")
    first, second = (jar.name for jar in jars_for(versions(python)["pyspark"]))
    java = find_java()
    assert java is not None
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"JAVA_HOME": str(java.parents[1]), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*words: str | Path, network: bool = False, folder: str = ".") -> tuple[int, str]:
        reached = env if network else env | NO_NETWORK | {"NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            words, cwd=tmp_path / folder, env=reached, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.stderr in ("", "deltatap: starting Spark\n")
        return done.returncode, done.stdout

    program = python.with_name("deltatap")
    code, output = run(program, "analyze")
    assert (code, output.count("\n")) == (2, 1), output
    assert output.startswith(f"✗ cannot download {first} from https://")
    assert output.endswith(f"or put {first} and {second} (io.delta) into a folder and pass --set spark.jars=FOLDER\n")
    fetch = (
        "from pathlib import Path; import pyspark; from deltatap.spark.jars import find_jars, jars_for; "
        "find_jars(jars_for(pyspark.__version__), Path(pyspark.__file__).parent)"
    )
    assert run(python, "-c", fetch, network=True) == (0, "")
    assert {path.name for path in (tmp_path / "cache/deltatap/jars").iterdir()} == {first, second}

    # From here on without a network: the commands that `init` prints, with this test's simulator.
    code, printed = run(program, "init", "new folder")
    assert code == 0, printed
    listed = [shlex.split(line) for line in printed.splitlines() if line.startswith("  ")]
    commands = {words[1]: words for words in listed if words[0] == str(program)}
    assert list(commands) == ["simulate", "load", "capture", "show", "report", "check"]
    with start_simulator("--speed", "0", "--tokens", "20") as simulator:
        for name in ("load", "capture", "show", "report"):
            url = f"endpoint.base_url={simulator.base_url}"
            code, output = run(*commands[name], "--set", url, folder="new folder")
            assert code == 0, (name, output)
            if name == "capture":
                row = json.loads(output.splitlines()[-1])
                assert (row["completed"], row["cost_usd"] > 0) == (3, True)
    assert (tmp_path / "new folder/report.html").stat().st_size > 1_000_000


def as_deployed(folder: Path, job: str, replaced: dict[str, str]) -> dict[str, list[str]]:
    """Return each task's command from the bundle's dev target, with paths of this machine."""
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


def packages(job: str) -> dict[str, list[str]]:
    """Return the packages that each serverless task installs besides the wheel."""
    resolved = Resolver(read(), "dev").resolved(read()["resources"]["jobs"][job])
    added = {each["environment_key"]: each["spec"]["dependencies"][1:] for each in resolved.get("environments", ())}
    return {task["task_key"]: added.get(task.get("environment_key"), []) for task in resolved["tasks"]}


@contextmanager
def cluster(python: Path, env: dict[str, str]) -> Iterator[tuple[dict[str, str], Callable[[], bool]]]:
    """Yield the environment of the tasks, and a function that ends a task's Spark and returns whether it had one."""
    with subprocess.Popen(
        [python, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port, secret = process.stdout.readline().split()

        def end() -> bool:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline() == "True\n"

        yield {**env, "PYSPARK_GATEWAY_PORT": port, "PYSPARK_GATEWAY_SECRET": secret}, end


def test_every_task_runs_with_its_packages_and_arguments_in_the_bundle(
    spark: SparkSession, wheel: Path, tmp_path: Path
) -> None:
    python = environment(tmp_path / "venv")
    install_keeping(python, wheel, PREINSTALLED | {"pyspark": SPARK, "delta-spark": "4.4.0"})
    files = tmp_path / "files"
    for folder in ("jobs", "conf"):
        shutil.copytree(ROOT / folder, files / folder)
    rows: list[tuple[Any, ...]] = [(f"q{at}", f"Prompt {at}?", None) for at in range(12)]
    prompts.write(spark, tmp_path / "prompts", rows)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["OPENAI_API_KEY"] = "sk-of-the-scope"
    with (
        start_simulator("--speed", "0", "--tokens", "20", "--api-key-env", "OPENAI_API_KEY", env=env) as simulator,
        cluster(python, env | {"SPARK_LOCAL_IP": "127.0.0.1"}) as (task_env, end),
    ):
        places = {
            "prompts.table": str(tmp_path / "prompts"), "captures.table": str(tmp_path / "captures"),
            "runs.table": str(tmp_path / "runs"), "state.dir": str(tmp_path / "state"),
            "endpoint.base_url": simulator.base_url,
            # On serverless compute, the key is in a secret scope.
            "endpoint.api_key": "{env: OPENAI_API_KEY}",
        }  # fmt: skip
        jobs = ("check", "dry_run", "capture", "stop")
        commands = {task: words for job in jobs for task, words in as_deployed(files, job, places).items()}
        for task in ("check_serverless", "dry_run_serverless"):  # only the settings differ
            del commands[task]
        expected = ["check", "dry_run", "capture", "capture_serverless", "analyze", "report", "traces", "stop"]
        assert list(commands) == expected
        printed, used_spark = {}, {}
        for task, command in commands.items():
            if added := packages("capture").get(task):
                install(python, *added)
            done = subprocess.run(
                [python, *command], cwd=tmp_path, env=task_env, capture_output=True, text=True, timeout=600, check=False
            )
            printed[task] = done.stdout
            used_spark[task] = end()
            assert done.returncode == (2 if task in ("traces", "stop") else 0), (task, done.stdout, done.stderr)
            assert "sk-of-the-scope" not in done.stdout + done.stderr
        assert simulator.counts()["calls"] == len(rows), "check and dry_run must not call the endpoint"
    assert used_spark["capture"], "a task starts no JVM of its own"
    assert "ready to capture" in printed["check"]
    assert f"{len(rows)}" in printed["dry_run"]
    assert printed["traces"].startswith("✗ --otlp: expected an http:// or https:// URL"), "the variable otlp is empty"
    assert printed["stop"] == f"✗ state.dir: {tmp_path / 'state'}: no run is active here\n"
    for task in (
        "capture",
        "capture_serverless",
    ):  # in a workspace, one of them runs; here, nothing is left for the second
        last = json.loads(printed[task].splitlines()[-1])
        assert (last["run_id"], last["status"], last["completed"]) == (RUN_ID, "completed", len(rows))
    assert "1 run analyzed" in printed["analyze"]
    assert (files / "report.html").stat().st_size > 1_000_000
    metrics = spark.sql(f"SELECT * FROM {quoted(str(tmp_path / 'metrics_by_run'))}").collect()
    assert [(row["run_id"], row["completed"]) for row in metrics] == [(RUN_ID, len(rows))]
