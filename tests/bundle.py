"""Checks ``databricks.yml`` and its includes, for what ``databricks bundle validate --strict`` finds and for what it misses.

A round trip through databricks-sdk's types finds unknown keys and values, because the types drop them. The other checks
are for mistakes that the real CLI accepts and that fail, or do the wrong thing, in a workspace: of jobs
(``bundle_jobs.py``, ``bundle_tasks.py``), of targets (``bundle_targets.py``), and here of the other resources.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from databricks.sdk.service.catalog import Privilege, SchemasAPI, VolumesAPI
from databricks.sdk.service.dashboards import Dashboard
from databricks.sdk.service.jobs import JobSettings
from databricks.sdk.service.sql import AlertV2

from tests import dashboard
from tests.bundle_jobs import job_problems, schedule_problems
from tests.bundle_targets import (
    REQUIRED,
    bundle_problems,
    compute_problems,
    deployed_names,
    side_by_side_problems,
    sync_problems,
    target_problems,
    variable_problems,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).parents[1]
# The files of which databricks.yml includes one.
SCHEDULE, TABLE_UPDATE = "conf/start/schedule.yml", "conf/start/table_update.yml"
# Fields that the bundle adds to those of the resource.
_BUNDLE = {
    "jobs": {"permissions", "run_as", "lifecycle"},
    "schemas": {"grants", "lifecycle"},
    "volumes": {"grants", "lifecycle"},
    "secret_scopes": {"name", "permissions", "lifecycle", "backend_type", "keyvault_metadata"},
    "dashboards": {"file_path", "permissions", "lifecycle", "dataset_catalog", "dataset_schema", "embed_credentials"},
    "alerts": {"permissions", "lifecycle", "file_path"},
}
_KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "jobs": lambda given: JobSettings.from_dict(given).as_dict(),
    "schemas": lambda given: _taken(SchemasAPI.create, given),
    "volumes": lambda given: _taken(VolumesAPI.create, given),
    "secret_scopes": lambda _given: {},
    "dashboards": lambda given: Dashboard.from_dict(given).as_dict(),
    "alerts": lambda given: AlertV2.from_dict(given).as_dict(),
}
_TOP = {"bundle", "include", "artifacts", "sync", "variables", "targets", "resources"}
_USERS = ("someone", "another")
# What a user sets in variable-overrides.json.
_OVERRIDES = {"catalog": "main", "warehouse_id": "0123456789abcdef"}
_IN_PRODUCTION = {
    "run_as": "11111111-2222-4333-8444-555555555555",
    "operators": "llm-operators",
    "readers": "llm-readers",
    "notify": "llm-team@example.com",
}
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


def _taken(create: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key in inspect.signature(create).parameters}


def included(root: Path = ROOT, start: str = SCHEDULE) -> dict[str, dict[str, Any]]:
    """The content of the included files by name, with this one of the two that start the job."""
    names = yaml.safe_load((root / "databricks.yml").read_text(encoding="utf-8")).get("include", ())
    patterns = [start if name == SCHEDULE else name for name in names]
    paths = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    return {path.relative_to(root).as_posix(): yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}


def read(root: Path = ROOT, start: str = SCHEDULE) -> dict[str, Any]:
    """The bundle with its included files."""
    tree: dict[str, Any] = yaml.safe_load((root / "databricks.yml").read_text(encoding="utf-8"))
    for content in included(root, start).values():
        tree = merged(tree, content)
    # An anchor and its aliases are one object. The copies are independent, so that a test can break one of them.
    return json.loads(json.dumps(tree))  # type: ignore[no-any-return]


def merged(one: Any, other: Any) -> Any:
    """Both together, as the CLI merges them: mappings by key, and lists one after the other."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: merged(one[key], other[key]) if key in one and key in other else {**one, **other}[key]
                for key in {**one, **other}}  # fmt: skip
    return [*one, *other] if isinstance(one, list) and isinstance(other, list) else other


def file_problems(files: Mapping[str, Any]) -> list[str]:
    """The problems of the included files: each file in ``conf/resources`` has one resource, or one variable."""
    found = []
    for name, content in files.items():
        listed = [(kind, key) for kind, named in content.get("resources", {}).items() for key in named]
        listed += [("variables", key) for key in content.get("variables", {})]
        expected = [f"conf/resources/{key}.{kind.removesuffix('s')}.yml" for kind, key in listed]
        if name.startswith("conf/resources/") and expected != [name]:
            found.append(f"{name}: expected one file for each resource, found {', '.join(expected) or 'none'}")
    return found


def problems(tree: dict[str, Any], target: str, root: Path = ROOT) -> list[str]:
    """Every problem of the bundle in a target, one line each."""
    found = [f"{key}: unknown key" for key in tree if key not in _TOP]
    if target not in tree["targets"]:
        return [*found, f"targets: unknown target {target}"]
    resolver = Resolver(tree, target)
    resources = resolver.resources()
    given = resolver.resolved(tree["targets"][target])
    found += resolver.problems
    found += [
        f"targets.{target}.variables.{name}: unknown variable"
        for name in given.get("variables", {})
        if name not in tree["variables"]
    ]
    used = set(_REFERENCE.findall(json.dumps(tree)))
    found += [f"variables.{name}: it is not used" for name in tree["variables"] if f"var.{name}" not in used]
    names = Counter(name for named in resources.values() for name in named)
    found += [f"resources: {name}: two resources have this key" for name, times in names.items() if times > 1]
    for kind, named in resources.items():
        for name, resource in named.items():
            found += [f"{kind}.{name}: {problem}" for problem in _resource(kind, resource, root)]
    found += bundle_problems(tree["bundle"])
    found += compute_problems(tree)
    found += variable_problems(tree)
    found += sync_problems(tree.get("sync", {}), root)
    found += target_problems(target, given, resources)
    found += _side_by_side(tree)
    found += _artifacts(tree, root)
    return found


def _side_by_side(tree: dict[str, Any]) -> Iterator[str]:
    """Check two developers' deployments and production in one workspace."""
    deployments = {}
    for target, content in tree["targets"].items():
        mode = content.get("mode", "")
        for user in _USERS if mode == "development" else _USERS[:1]:
            resources = Resolver(tree, target, user).resources()
            known = {kind: named for kind, named in resources.items() if kind in _KINDS}
            deployments[f"{target} of {user}"] = deployed_names(mode, user, known)
    yield from side_by_side_problems(deployments)


class Resolver:
    """Replaces ``${…}`` references by their values in a target, and collects the ones that have none."""

    def __init__(self, tree: dict[str, Any], target: str, user: str = _USERS[0]) -> None:
        self._tree, self._target, self._user = tree, target, user
        self._resources = merged(tree["resources"], tree["targets"][target].get("resources", {}))
        production = tree["targets"][target].get("mode") == "production"
        overrides = _OVERRIDES | (_IN_PRODUCTION if production else {})
        self._chosen = tree["targets"][target].get("variables", {}) | {
            name: value
            for name, value in overrides.items()
            if name in REQUIRED["production" if production else "development"]
        }
        self.problems: list[str] = []

    def resources(self) -> Any:
        """The resources in this target, with all references replaced."""
        return self.resolved(self._resources)

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
        known = {
            "workspace.current_user.userName": f"{self._user}@example.com",
            "workspace.current_user.short_name": self._user,
            "workspace.file_path": f"/Workspace/Users/{self._user}@example.com/.bundle/deltatap/files",
            "bundle.target": self._target,
            "bundle.name": self._tree["bundle"]["name"],
        }
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
            resource = self._resources.get(kind, {}).get(key, {})
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
        yield from job_problems(resource, root)
    if kind == "alerts":
        yield from _alert(resource)
    if kind == "dashboards":
        path = root / "conf/resources" / resource["file_path"]
        if not path.is_file():
            yield f"file_path: {resource['file_path']} does not exist"
        else:
            yield from dashboard.problems(json.loads(path.read_text(encoding="utf-8")))
        if not {"warehouse_id", "dataset_catalog", "dataset_schema"} <= resource.keys():
            yield "expected warehouse_id, dataset_catalog and dataset_schema: the queries use unqualified table names"


def _alert(alert: dict[str, Any]) -> Iterator[str]:
    evaluation, schedule = alert["evaluation"], alert["schedule"]
    if not re.search(rf"\bAS {evaluation['source']['name']}\b", alert["query_text"]):
        yield f"evaluation.source: the query has no column {evaluation['source']['name']}"
    for table in re.findall(r"\b(?:FROM|JOIN) ([\w.]+)", alert["query_text"]):
        if table.count(".") != 2 and f"{table} AS (" not in alert["query_text"]:
            yield f"query_text: {table}: expected a table with its catalog and schema"
    if not evaluation.get("notification", {}).get("subscriptions"):
        yield "evaluation.notification: expected a subscription: otherwise nobody is told"
    if schedule.get("pause_status") != "PAUSED":
        yield "schedule.pause_status: expected PAUSED until the tables exist"
    yield from schedule_problems(schedule["quartz_cron_schedule"], schedule["timezone_id"])


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
