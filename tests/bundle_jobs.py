"""Checks the jobs of the bundle: their start, clusters, arguments, packages and parameters. ``bundle_tasks.py`` checks
which tasks run, where and in which order.

Most of these mistakes pass ``databricks bundle validate --strict`` and fail, or do the wrong thing, in a workspace.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import available_timezones

from deltatap import settings_file
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings
from tests.bundle_tasks import WITH_SETTINGS, task_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deltatap.config import Settings

_LEVELS = {"CAN_VIEW", "CAN_MANAGE_RUN", "CAN_MANAGE", "IS_OWNER"}
_DYNAMIC = re.compile(r"\{\{([^}]*)\}\}")
_QUARTZ = re.compile(r"[0-9*?LW#,/\-A-Z]+")
_TIMEZONES = available_timezones()
_LEAST_BETWEEN_S = 600
_WHEEL = "../../dist/*.whl"
# The oldest serverless environment with Python 3.12 and a pyarrow that is new enough.
_OLDEST_ENVIRONMENT = 4
# The extra of a script, if it has another name.
_EXTRAS = {"export": "otel"}


def job_problems(job: dict[str, Any], root: Path) -> Iterator[str]:
    """Yield the problems of a job whose references are resolved."""
    yield from _start(job)
    if job.get("max_concurrent_runs") != 1:
        yield "max_concurrent_runs: expected 1: a second run on the same table is refused"
    clusters = {each["job_cluster_key"]: each["new_cluster"] for each in job.get("job_clusters", ())}
    environments = {each["environment_key"] for each in job.get("environments", ())}
    yield from _duplicates(job)
    yield from (f"job cluster {key}: no task uses it" for key in clusters.keys() - _used(job, "job_cluster_key"))
    yield from (f"environment {key}: no task uses it" for key in environments - _used(job, "environment_key"))
    for key, cluster in clusters.items():
        yield from (f"job cluster {key}: {problem}" for problem in _cluster(cluster))
    yield from task_problems(job, clusters.keys(), environments)
    for task in job["tasks"]:
        yield from (f"task {task['task_key']}: {problem}" for problem in _runs(task, job, root))
    yield from _dynamic(job)
    yield from _packages(job, root)
    for permission in job.get("permissions", ()):
        if permission["level"] not in _LEVELS:
            yield f"permissions: unknown level {permission['level']}"


def _duplicates(job: dict[str, Any]) -> Iterator[str]:
    for kind, listed, field in (
        ("task", "tasks", "task_key"),
        ("job cluster", "job_clusters", "job_cluster_key"),
        ("environment", "environments", "environment_key"),
        ("parameter", "parameters", "name"),
    ):
        keys = Counter(each[field] for each in job.get(listed, ()))
        yield from (f"{kind} {key}: duplicate key" for key, times in keys.items() if times > 1)


def _used(job: dict[str, Any], name: str) -> set[str]:
    return {task[name] for task in job["tasks"] if name in task}


def _start(job: dict[str, Any]) -> Iterator[str]:
    """Check what starts the job."""
    starts = {name: job[name] for name in ("schedule", "trigger", "continuous") if name in job}
    if len(starts) > 1:
        yield f"expected either a schedule or a trigger, found {' and '.join(starts)}"
    for name, start in starts.items():
        if start.get("pause_status") != "PAUSED":
            yield f"{name}.pause_status: expected PAUSED until somebody has stored the key and run the check"
    if schedule := starts.get("schedule"):
        yield from schedule_problems(schedule["quartz_cron_expression"], schedule["timezone_id"])
    if trigger := starts.get("trigger"):
        yield from _trigger(trigger, job)


def _trigger(trigger: dict[str, Any], job: dict[str, Any]) -> Iterator[str]:
    update = trigger.get("table_update", {})
    prompts = [each["default"] for each in job.get("parameters", ()) if each["name"] == "prompts"]
    if update.get("table_names") != prompts:
        yield f"trigger.table_update.table_names: expected the prompts table, found {update.get('table_names')}"
    if update.get("min_time_between_triggers_seconds", 0) < _LEAST_BETWEEN_S:
        yield f"trigger: expected at least {_LEAST_BETWEEN_S} s between two starts: each start pays for a cluster"


def schedule_problems(expression: str, timezone: str) -> Iterator[str]:
    """Yield the problems of a Quartz expression and its time zone."""
    if timezone not in _TIMEZONES:
        yield f"schedule.timezone_id: unknown time zone {timezone}"
    fields = expression.split()
    if len(fields) not in (6, 7) or not all(_QUARTZ.fullmatch(field) for field in fields):
        yield f"schedule: expected a Quartz expression of 6 or 7 fields, found {' '.join(fields)}"
    elif (fields[3] == "?") == (fields[5] == "?"):
        yield "schedule: expected ? for exactly one of day of month and day of week"
    elif any(field.isdecimal() and int(field) > most for field, most in zip(fields, (59, 59, 23), strict=False)):
        yield f"schedule: invalid time of day: {' '.join(fields[:3])}"


def _cluster(cluster: dict[str, Any]) -> Iterator[str]:
    if cluster.get("data_security_mode") != "DATA_SECURITY_MODE_DEDICATED":
        yield "data_security_mode: expected DATA_SECURITY_MODE_DEDICATED, for which the capture was built"
    if "policy_id" not in cluster:
        yield "policy_id: expected a variable: some workspaces allow only clusters with a policy"
    if cluster.get("spark_conf", {}).get("spark.speculation") != "false":
        yield 'spark_conf: expected spark.speculation: "false": a second copy of a slow task would call the API again'
    if not str(cluster.get("spark_version", "")).endswith("-scala2.13"):
        yield "spark_version: expected a runtime with Spark 4, such as 18.x-scala2.13"
    for name, value in cluster.get("spark_env_vars", {}).items():
        if name.endswith("_KEY") and not re.fullmatch(r"\{\{secrets/[\w.-]+/[\w.-]+\}\}", value):
            yield f"spark_env_vars.{name}: expected {{{{secrets/scope/key}}}}"


def _runs(task: dict[str, Any], job: dict[str, Any], root: Path) -> Iterator[str]:
    """Check that the script or entry point exists and that its arguments are valid settings."""
    if wheel := task.get("python_wheel_task"):
        scripts = _project(root).get("scripts", {})
        if wheel["entry_point"] not in scripts:
            yield f"unknown entry point {wheel['entry_point']} of the wheel"
    script = task.get("spark_python_task")
    if script is None:
        return
    if not (root / "conf/resources" / script["python_file"]).resolve().is_file():
        yield f"{script['python_file']} does not exist"
    words = [_with_defaults(word, job) for word in script.get("parameters", ())]
    config = [Path(words[at + 1]) for at, word in enumerate(words) if word == "--config"]
    here = [root / Path(*path.parts[path.parts.index("files") + 1 :]) for path in config if "files" in path.parts]
    if len(config) != 1 or not here or not here[0].is_file():
        yield f"expected one --config with a file of this bundle, found {', '.join(map(str, config)) or 'none'}"
        return
    overrides = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    if Path(script["python_file"]).stem in WITH_SETTINGS and words[-2:-1] != ["--settings"]:
        yield "parameters: expected --settings as the last option, so that it overrides the others"
    try:
        settings = load_settings(copy.deepcopy(_parsed(here[0])), overrides)
    except ConfigError as error:
        yield from error.problems
        return
    if not settings.state.dir.startswith("/Volumes/") and "state.dir" in str(overrides):
        yield f"state.dir: expected a path in /Volumes, found {settings.state.dir}"
    yield from _serverless(task, settings)
    budget, most = settings.budget.runtime_s, task.get("timeout_seconds")
    if "capture" in script["python_file"] and (budget is None or most is None or budget >= most):
        yield f"timeout_seconds: expected more than budget.runtime_s ({budget}), so that the run can drain"


def _serverless(task: dict[str, Any], settings: Settings) -> Iterator[str]:
    if "environment_key" not in task or Path(task["spark_python_task"]["python_file"]).stem not in WITH_SETTINGS:
        return
    if settings.capture.where != "driver":
        yield "capture.where: expected driver: UDFs on serverless compute have no network access"
    if settings.endpoint.api_key is not None and settings.endpoint.api_key.env is not None:
        yield "endpoint.api_key: expected a secret or an identity: serverless tasks have no environment variables"


@cache
def _parsed(path: Path) -> dict[str, Any]:
    return settings_file.read(path)


@cache
def _project(root: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _with_defaults(word: str, job: dict[str, Any]) -> str:
    """The argument with the job parameters' defaults, as in a scheduled run."""
    defaults = {f"job.parameters.{each['name']}": each["default"] for each in job.get("parameters", ())}
    return _DYNAMIC.sub(lambda found: defaults.get(found[1].strip(), "0"), word)


def _packages(job: dict[str, Any], root: Path) -> Iterator[str]:
    """Check that each task has the wheel, and a serverless one also the packages of its extra, and no others."""
    project = _project(root)
    environments = {each["environment_key"]: each["spec"] for each in job.get("environments", ())}
    for key, spec in environments.items():
        version = str(spec.get("environment_version", ""))
        if not version.isdecimal() or int(version) < _OLDEST_ENVIRONMENT:
            yield f"environment {key}: expected environment_version {_OLDEST_ENVIRONMENT} or newer, found {version or 'none'}"
    for task in job["tasks"]:
        if "spark_python_task" not in task:
            continue
        if "job_cluster_key" in task and {"whl": _WHEEL} not in task.get("libraries", ()):
            yield f"task {task['task_key']}: libraries: expected the wheel, {_WHEEL}"
        if task.get("environment_key") in environments:
            script = Path(task["spark_python_task"]["python_file"]).stem
            expected = sorted([_WHEEL, *project["optional-dependencies"].get(_EXTRAS.get(script, script), ())])
            if (found := sorted(environments[task["environment_key"]]["dependencies"])) != expected:
                yield f"task {task['task_key']}: expected the packages {', '.join(expected)}, found {', '.join(found)}"


def _dynamic(job: dict[str, Any]) -> Iterator[str]:
    known = {f"job.parameters.{each['name']}" for each in job.get("parameters", ())} | {"job.run_id", "job.id"}
    text = json.dumps(job)
    for name in dict.fromkeys(_DYNAMIC.findall(text)):
        if name.strip() not in known and not name.startswith("secrets/"):
            yield f"{{{{{name}}}}}: unknown dynamic value"
    for name in sorted(known - {"job.run_id", "job.id"}):
        if f"{{{{{name}}}}}" not in text:
            yield f"parameters: {name} is not used"
