"""Checks ``databricks.yml`` and its includes, for what ``databricks bundle validate --strict`` finds and for what it misses.

A round trip through databricks-sdk's types finds unknown keys and values, because the types drop them. The other checks
are for mistakes that the real CLI accepts and that fail, or do the wrong thing, in a workspace.
"""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import available_timezones

import yaml
from databricks.sdk.service.catalog import Privilege, SchemasAPI, VolumesAPI
from databricks.sdk.service.dashboards import Dashboard
from databricks.sdk.service.jobs import JobSettings

from deltatap.config import load_settings
from deltatap.errors import ConfigError
from tests import dashboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
# Fields that the bundle adds to those of the resource.
_BUNDLE = {
    "jobs": {"permissions", "run_as", "lifecycle"},
    "schemas": {"grants", "lifecycle"},
    "volumes": {"grants", "lifecycle"},
    "secret_scopes": {"name", "permissions", "lifecycle", "backend_type", "keyvault_metadata"},
    "dashboards": {"file_path", "permissions", "lifecycle", "dataset_catalog", "dataset_schema", "embed_credentials"},
}
_KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "jobs": lambda given: JobSettings.from_dict(given).as_dict(),
    "schemas": lambda given: _taken(SchemasAPI.create, given),
    "volumes": lambda given: _taken(VolumesAPI.create, given),
    "secret_scopes": lambda _given: {},
    "dashboards": lambda given: Dashboard.from_dict(given).as_dict(),
}
_TOP = {"bundle", "include", "artifacts", "sync", "variables", "targets", "resources"}
_LEVELS = {"CAN_VIEW", "CAN_MANAGE_RUN", "CAN_MANAGE", "IS_OWNER"}
# References that the workspace and the bundle resolve, with values for the checks.
_GIVEN = {
    "workspace.current_user.userName": "someone@example.com",
    "workspace.file_path": "/Workspace/Users/someone@example.com/.bundle/deltatap/files",
}
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_DYNAMIC = re.compile(r"\{\{([^}]*)\}\}")
_QUARTZ = re.compile(r"[0-9*?LW#,/\-A-Z]+")


def _taken(create: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key in inspect.signature(create).parameters}


def read(root: Path = ROOT) -> dict[str, Any]:
    """The bundle with its included resources."""
    tree: dict[str, Any] = yaml.safe_load((root / "databricks.yml").read_text(encoding="utf-8"))
    resources: dict[str, dict[str, Any]] = {}
    for pattern in tree.get("include", ()):
        for path in sorted(root.glob(pattern)):
            included = yaml.safe_load(path.read_text(encoding="utf-8"))
            for kind, named in included["resources"].items():
                resources.setdefault(kind, {}).update(named)
    # An anchor and its aliases are one object. The copies are independent, so that a test can break one of them.
    return json.loads(json.dumps(tree | {"resources": resources}))  # type: ignore[no-any-return]


def merged(resources: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The resources, with the fields that a target adds."""
    kinds = resources.keys() | more.keys()
    return {
        kind: {
            name: {**resources.get(kind, {}).get(name, {}), **more.get(kind, {}).get(name, {})}
            for name in {**resources.get(kind, {}), **more.get(kind, {})}
        }
        for kind in sorted(kinds)
    }


def problems(tree: dict[str, Any], target: str, root: Path = ROOT) -> list[str]:
    """Every problem of the bundle in a target, one line each."""
    found = [f"{key}: unknown key" for key in tree if key not in _TOP]
    if target not in tree["targets"]:
        return [*found, f"targets: unknown target {target}"]
    resolver = Resolver(tree, target)
    resources = resolver.resolved(merged(tree["resources"], tree["targets"][target].get("resources", {})))
    resolver.resolved(tree["targets"][target])
    found += resolver.problems
    used = set(_REFERENCE.findall(json.dumps(tree)))
    found += [f"variables.{name}: it is not used" for name in tree["variables"] if f"var.{name}" not in used]
    names = Counter(name for named in resources.values() for name in named)
    found += [f"resources: {name}: two resources have this key" for name, times in names.items() if times > 1]
    for kind, named in resources.items():
        for name, resource in named.items():
            found += [f"{kind}.{name}: {problem}" for problem in _resource(kind, resource, root)]
    found += _target(tree, target, resources)
    found += _artifacts(tree, root)
    return found


class Resolver:
    """Replaces ``${…}`` references by their values in a target, and collects the ones that have none."""

    def __init__(self, tree: dict[str, Any], target: str) -> None:
        self._tree, self._target = tree, target
        self._chosen = tree["targets"][target].get("variables", {})
        self.problems: list[str] = []

    def resolved(self, node: Any) -> Any:
        """The node with all references replaced."""
        if isinstance(node, dict):
            return {key: self.resolved(value) for key, value in node.items()}
        if isinstance(node, list):
            return [self.resolved(value) for value in node]
        if not isinstance(node, str):
            return node
        if whole := _REFERENCE.fullmatch(node):
            return self._value(whole[1])
        return _REFERENCE.sub(lambda found: str(self._value(found[1])), node)

    def _value(self, name: str) -> Any:
        known = _GIVEN | {"bundle.target": self._target, "bundle.name": self._tree["bundle"]["name"]}
        if name in known:
            return known[name]
        head, *rest = name.split(".")
        variable = self._tree["variables"].get(rest[0]) if head == "var" and len(rest) == 1 else None
        if variable is not None:
            given = self._chosen.get(rest[0], variable.get("default", variable.get("lookup") and "looked-up"))
            if given is not None:
                return self.resolved(given)
            self.problems.append(f"variables.{rest[0]}: has no default, and target {self._target} sets none")
        elif head == "resources" and len(rest) == 3:
            kind, key, field = rest
            resource = self._tree["resources"].get(kind, {}).get(key, {})
            if field in resource:
                return self.resolved(resource[field])
            self.problems.append(f"${{{name}}}: unknown field of a resource")
        else:
            self.problems.append(f"${{{name}}}: unknown reference")
        return f"${{{name}}}"


def _resource(kind: str, resource: dict[str, Any], root: Path) -> Iterator[str]:
    if kind not in _KINDS:
        yield f"unknown resource type {kind}"
        return
    own = {key: value for key, value in resource.items() if key not in _BUNDLE[kind]}
    yield from _lost(own, _KINDS[kind](own))
    for grant in resource.get("grants", ()):
        unknown = set(grant["privileges"]) - {privilege.value for privilege in Privilege}
        yield from (f"grants: unknown privilege {name}" for name in sorted(unknown))
    if kind == "jobs":
        yield from _job(resource, root)
    if kind == "dashboards":
        path = root / "conf/resources" / resource["file_path"]
        if not path.is_file():
            yield f"file_path: {resource['file_path']} does not exist"
        else:
            yield from dashboard.problems(json.loads(path.read_text(encoding="utf-8")))
        if not {"warehouse_id", "dataset_catalog", "dataset_schema"} <= resource.keys():
            yield "expected warehouse_id, dataset_catalog and dataset_schema: the queries use unqualified table names"


def _lost(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """The fields and values that the SDK's types dropped."""
    if isinstance(given, dict):
        for key, value in given.items():
            where = f"{path}.{key}" if path else key
            if not isinstance(kept, dict) or key not in kept:
                if value not in ({}, [], None):
                    yield f"{where}: unknown key or invalid value: {value!r}"
            else:
                yield from _lost(value, kept[key], where)
    elif isinstance(given, list):
        for at, value in enumerate(given):
            yield from _lost(value, kept[at] if at < len(kept) else None, f"{path}[{at}]")


def _job(job: dict[str, Any], root: Path) -> Iterator[str]:
    yield from _schedule(job)
    if job.get("max_concurrent_runs") != 1:
        yield "max_concurrent_runs: expected 1: a second run on the same table is refused"
    clusters = {each["job_cluster_key"]: each["new_cluster"] for each in job.get("job_clusters", ())}
    environments = {each["environment_key"] for each in job.get("environments", ())}
    tasks = {task["task_key"]: task for task in job["tasks"]}
    keys = Counter(task["task_key"] for task in job["tasks"])
    yield from (f"task {key}: duplicate key" for key, times in keys.items() if times > 1)
    yield from (f"job cluster {key}: no task uses it" for key in clusters.keys() - _used(job, "job_cluster_key"))
    yield from (f"environment {key}: no task uses it" for key in environments - _used(job, "environment_key"))
    for key, cluster in clusters.items():
        yield from (f"job cluster {key}: {problem}" for problem in _cluster(cluster))
    for task in job["tasks"]:
        for problem in (
            *_order(task, tasks),
            *_compute(task, clusters.keys(), environments),
            *_runs(task, job, root),
        ):
            yield f"task {task['task_key']}: {problem}"
    yield from _dynamic(job)
    yield from _packages(job, root)
    for permission in job.get("permissions", ()):
        if permission["level"] not in _LEVELS:
            yield f"permissions: unknown level {permission['level']}"


def _used(job: dict[str, Any], name: str) -> set[str]:
    return {task[name] for task in job["tasks"] if name in task}


def _schedule(job: dict[str, Any]) -> Iterator[str]:
    schedule = job.get("schedule")
    if schedule is None:
        return
    if "trigger" in job or "continuous" in job:
        yield "expected either a schedule or a trigger, found both"
    if schedule.get("pause_status") == "UNPAUSED":
        yield "schedule.pause_status: UNPAUSED keeps development mode from pausing the schedule; remove it"
    if schedule["timezone_id"] not in available_timezones():
        yield f"schedule.timezone_id: unknown time zone {schedule['timezone_id']}"
    fields = schedule["quartz_cron_expression"].split()
    if len(fields) not in (6, 7) or not all(_QUARTZ.fullmatch(field) for field in fields):
        yield f"schedule: expected a Quartz expression of 6 or 7 fields, found {' '.join(fields)}"
    elif (fields[3] == "?") == (fields[5] == "?"):
        yield "schedule: expected ? for exactly one of day of month and day of week"
    elif any(field.isdecimal() and int(field) > most for field, most in zip(fields, (59, 59, 23), strict=False)):
        yield f"schedule: invalid time of day: {' '.join(fields[:3])}"


def _cluster(cluster: dict[str, Any]) -> Iterator[str]:
    if cluster.get("data_security_mode") != "DATA_SECURITY_MODE_DEDICATED":
        yield "data_security_mode: expected DATA_SECURITY_MODE_DEDICATED: in other modes UDFs cannot read Volumes and environment variables"
    if cluster.get("spark_conf", {}).get("spark.speculation") != "false":
        yield 'spark_conf: expected spark.speculation: "false": a second copy of a slow task would call the API again'
    if not str(cluster.get("spark_version", "")).endswith("-scala2.13"):
        yield "spark_version: expected a runtime with Spark 4, such as 18.x-scala2.13"
    for name, value in cluster.get("spark_env_vars", {}).items():
        if name.endswith("_KEY") and not re.fullmatch(r"\{\{secrets/[\w.-]+/[\w.-]+\}\}", value):
            yield f"spark_env_vars.{name}: expected {{{{secrets/scope/key}}}}"


def _order(task: dict[str, Any], tasks: dict[str, Any]) -> Iterator[str]:
    for after in task.get("depends_on", ()):
        before = tasks.get(after["task_key"])
        if before is None:
            yield f"depends_on: unknown task {after['task_key']}"
        elif "outcome" in after and "condition_task" not in before:
            yield f"depends_on: {after['task_key']} is not a condition_task and has no outcome"
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
    places = {"job_cluster_key", "environment_key", "existing_cluster_id", "new_cluster"} & task.keys()
    if "condition_task" not in task and len(places) != 1:
        yield f"expected one of job_cluster_key, environment_key, existing_cluster_id, new_cluster; found {', '.join(sorted(places)) or 'none'}"
    if "environment_key" in task and "libraries" in task:
        yield "libraries: a serverless task uses the dependencies of its environment"


def _runs(task: dict[str, Any], job: dict[str, Any], root: Path) -> Iterator[str]:
    """Check that the script or entry point exists and that its arguments are valid settings."""
    if wheel := task.get("python_wheel_task"):
        scripts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("scripts", {})
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
    try:
        settings = load_settings(here[0], overrides)
    except ConfigError as error:
        yield from error.problems
        return
    if not settings.state.dir.startswith("/Volumes/") and "state.dir" in str(overrides):
        yield f"state.dir: expected a path in /Volumes, found {settings.state.dir}"
    budget, most = settings.budget.runtime_s, task.get("timeout_seconds")
    if "capture" in script["python_file"] and (budget is None or most is None or budget >= most):
        yield f"timeout_seconds: expected more than budget.runtime_s ({budget}), so that the run can drain"


def _with_defaults(word: str, job: dict[str, Any]) -> str:
    """The argument with the job parameters' defaults, as in a scheduled run."""
    defaults = {f"job.parameters.{each['name']}": each["default"] for each in job.get("parameters", ())}
    return _DYNAMIC.sub(lambda found: defaults.get(found[1].strip(), "0"), word)


def _packages(job: dict[str, Any], root: Path) -> Iterator[str]:
    """Check that each serverless task has the wheel and the packages of its extra, and no others."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environments = {each["environment_key"]: each["spec"]["dependencies"] for each in job.get("environments", ())}
    for task in job["tasks"]:
        if "spark_python_task" in task and task.get("environment_key") in environments:
            script = Path(task["spark_python_task"]["python_file"]).stem
            expected = sorted(["../../dist/*.whl", *project["optional-dependencies"].get(script, ())])
            if (found := sorted(environments[task["environment_key"]])) != expected:
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


def _target(tree: dict[str, Any], target: str, resources: dict[str, Any]) -> Iterator[str]:
    given = tree["targets"][target]
    unknown = given.keys() - {
        "mode",
        "default",
        "variables",
        "workspace",
        "run_as",
        "permissions",
        "presets",
        "resources",
    }
    yield from (f"targets.{target}.{key}: unknown key" for key in sorted(unknown))
    for name in given.get("variables", {}):
        if name not in tree["variables"]:
            yield f"targets.{target}.variables.{name}: unknown variable"
    if given.get("mode") not in ("development", "production"):
        yield f"targets.{target}.mode: expected development or production, found {given.get('mode')}"
    if given.get("mode") == "production":
        path = given.get("workspace", {}).get("root_path", "")
        if not path or path.startswith("/Workspace/Shared"):
            yield f"targets.{target}: expected a root_path that only the deployer can write: its code runs as run_as"
        if not given.get("run_as"):
            yield f"targets.{target}: expected run_as: without it, the jobs stop working when the deployer leaves"
        yield from _granted(Resolver(tree, target).resolved(given), resources)
    for name, job in resources["jobs"].items():
        # If the last task always runs, the job succeeds whenever that task does, and job notifications miss failures.
        if any(task.get("run_if") == "ALL_DONE" for task in job["tasks"]):
            silent = [
                t["task_key"] for t in job["tasks"] if "condition_task" not in t and "email_notifications" not in t
            ]
            yield from (
                f"jobs.{name}: task {key}: expected email_notifications, because the job can succeed when the task fails"
                for key in silent
            )


def _granted(target: dict[str, Any], resources: dict[str, Any]) -> Iterator[str]:
    """Check that run_as, which owns nothing, has the privileges that a run needs."""
    who = next(iter(target.get("run_as", {}).values()), None)
    needs = {"schemas": {"USE_SCHEMA", "CREATE_TABLE", "SELECT", "MODIFY"}, "volumes": {"READ_VOLUME", "WRITE_VOLUME"}}
    for kind, wanted in needs.items():
        for name, resource in resources.get(kind, {}).items():
            grants = [grant for grant in resource.get("grants", ()) if grant["principal"] == who]
            if missing := wanted - {privilege for grant in grants for privilege in grant["privileges"]}:
                yield f"{kind}.{name}: run_as needs {', '.join(sorted(missing))}"
    # The bundle's permissions apply to its folder and to every resource with permissions. For a scope, CAN_VIEW means READ.
    everywhere = [each for each in target.get("permissions", ()) if who in each.values()]
    if not everywhere:
        yield "permissions: run_as needs CAN_VIEW: the scripts and the wheel are in the deployer's folder"
    for name, scope in resources.get("secret_scopes", {}).items():
        here = [each for each in scope.get("permissions", ()) if who in each.values()]
        if here and everywhere:
            yield f"secret_scopes.{name}: run_as has permissions here and in the whole bundle, which must not overlap"
        elif not here and not everywhere:
            yield f"secret_scopes.{name}: run_as needs READ"


def _artifacts(tree: dict[str, Any], root: Path) -> Iterator[str]:
    built = [name for name, each in tree.get("artifacts", {}).items() if each.get("type") == "whl"]
    for name in built:
        if tree["artifacts"][name].get("dynamic_version"):
            yield f"artifacts.{name}: dynamic_version must not be set: every plan would show a change"
        words = tree["artifacts"][name].get("build", "").split()
        targets = re.findall(r"^(\w+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        if words[:1] != ["make"] or words[1] not in targets:
            yield f"artifacts.{name}.build: expected a Makefile target, found {' '.join(words) or 'nothing'}"
    wheels = re.findall(r'"([^"]*\.whl)"', json.dumps(tree["resources"]))
    if not built:
        yield "artifacts: no artifact builds the wheel"
    for path in sorted(set(wheels)):
        if path != "../../dist/*.whl":
            yield f"{path}: expected ../../dist/*.whl, where the wheel is built"
