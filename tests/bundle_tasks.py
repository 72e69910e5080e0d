"""Checks the tasks of a job: their order, their conditions, and where they run.

Knows nothing about scripts, arguments and packages (``bundle_jobs.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# The scripts that take all settings of a capture, so also those that a user sets for one run. They run where the
# variable compute says.
WITH_SETTINGS = {"capture", "check", "dry_run"}
# The condition on this variable, and what the two tasks of such a script must share.
_CONDITION, _SERVERLESS = "on_serverless", "_serverless"
_SHARED = ("max_retries", "min_retry_interval_millis", "retry_on_timeout", "timeout_seconds", "email_notifications")
_PLACES = {"job_cluster_key", "environment_key", "existing_cluster_id", "new_cluster"}
# What a condition_task must not have: it needs no compute, and supports neither retries nor notifications.
_NOT_FOR_CONDITIONS = _PLACES | {
    "libraries",
    "max_retries",
    "min_retry_interval_millis",
    "retry_on_timeout",
    "email_notifications",
}


def task_problems(job: dict[str, Any], clusters: Any, environments: set[str]) -> Iterator[str]:
    """Yield the problems of a job's tasks, given the keys of its clusters and its environments."""
    tasks = {task["task_key"]: task for task in job["tasks"]}
    for task in job["tasks"]:
        for problem in (*_kind(task), *_order(task, tasks), *_compute(task, clusters, environments)):
            yield f"task {task['task_key']}: {problem}"
    yield from _twins(job)


def _kind(task: dict[str, Any]) -> Iterator[str]:
    kinds = sorted(name for name in task if name.endswith("_task"))
    if len(kinds) != 1:
        yield f"expected one kind of task, found {', '.join(kinds) or 'none'}"
    if "condition_task" in task and (more := sorted(_NOT_FOR_CONDITIONS & task.keys())):
        yield f"{', '.join(more)}: not for a condition_task"


def _order(task: dict[str, Any], tasks: dict[str, Any]) -> Iterator[str]:
    for after in task.get("depends_on", ()):
        before = tasks.get(after["task_key"])
        if before is None:
            yield f"depends_on: unknown task {after['task_key']}"
        elif "outcome" in after and "condition_task" not in before:
            yield f"depends_on: {after['task_key']} is not a condition_task and has no outcome"
        elif "condition_task" in before and after.get("outcome") not in ("true", "false"):
            yield f'depends_on: {after["task_key"]}: expected the outcome "true" or "false"'
    if "run_if" in task and not task.get("depends_on"):
        yield "run_if: requires depends_on"
    seen, ahead = set(), [task["task_key"]]
    while ahead:
        for after in tasks.get(ahead.pop(), {}).get("depends_on", ()):
            if after["task_key"] == task["task_key"]:
                yield "depends_on: the task depends on itself"
                return
            if after["task_key"] not in seen:
                seen.add(after["task_key"])
                ahead.append(after["task_key"])


def _compute(task: dict[str, Any], clusters: Any, environments: set[str]) -> Iterator[str]:
    if "job_cluster_key" in task and task["job_cluster_key"] not in clusters:
        yield f"unknown job cluster {task['job_cluster_key']}"
    if "environment_key" in task and task["environment_key"] not in environments:
        yield f"unknown environment {task['environment_key']}"
    places = _PLACES & task.keys()
    if "condition_task" not in task and len(places) != 1:
        yield f"expected one of job_cluster_key, environment_key, existing_cluster_id, new_cluster; found {', '.join(sorted(places)) or 'none'}"
    if "environment_key" in task and "libraries" in task:
        yield "libraries: a serverless task uses the dependencies of its environment"
    if ("environment_key" in task) != task.get("disable_auto_optimization", False):
        yield "disable_auto_optimization: expected true on serverless compute, where Databricks otherwise adds retries, and only there"


def _twins(job: dict[str, Any]) -> Iterator[str]:
    """Check that exactly one of two tasks runs such a script: on a cluster, or on serverless compute."""
    tasks = {task["task_key"]: task for task in job["tasks"]}
    for key, task in tasks.items():
        script = Path(task.get("spark_python_task", {}).get("python_file", "")).stem
        if script not in WITH_SETTINGS or key.endswith(_SERVERLESS):
            continue
        twin = tasks.get(key + _SERVERLESS)
        condition = tasks.get(_CONDITION, {}).get("condition_task", {})
        if twin is None or (condition.get("op"), condition.get("right")) != ("EQUAL_TO", "serverless"):
            yield f"task {key}: expected a task {key}{_SERVERLESS} and the condition {_CONDITION}"
            continue
        yield from _alike(task, twin)
        for other in job["tasks"]:
            after = {each["task_key"] for each in other.get("depends_on", ())} & {key, key + _SERVERLESS}
            if len(after) == 1:
                yield f"task {other['task_key']}: depends_on: expected {key} and {key}{_SERVERLESS}, of which one runs"
            elif after and other.get("run_if") != "ALL_DONE":
                yield f"task {other['task_key']}: run_if: expected ALL_DONE: the rows of a failed capture count, too"


def _alike(task: dict[str, Any], twin: dict[str, Any]) -> Iterator[str]:
    for each, place, outcome in ((task, "job_cluster_key", "false"), (twin, "environment_key", "true")):
        if place not in each or each.get("depends_on") != [{"task_key": _CONDITION, "outcome": outcome}]:
            yield f"task {each['task_key']}: expected {place}, and to depend on the outcome {outcome} of {_CONDITION}"
    for name in _SHARED:
        if task.get(name) != twin.get(name):
            yield f"task {twin['task_key']}: {name}: expected that of {task['task_key']}: {task.get(name)}"
    if twin["spark_python_task"]["python_file"] != task["spark_python_task"]["python_file"]:
        yield f"task {twin['task_key']}: expected the script of {task['task_key']}"
