"""Checks what depends on the target: names, identities, permissions, protection against deletion, and uploaded files.

The bundle must be deployable by several developers and for production, side by side in one workspace.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_KEYS = {"mode", "default", "variables", "workspace", "run_as", "permissions", "presets", "resources"}
# Resources whose deletion loses captures, prompts or the API key.
_KEPT = ("schemas", "volumes", "secret_scopes")
# Everyone in the workspace or in the account.
_EVERYONE = {"users", "account users"}
_NEEDED = {"schemas": {"USE_SCHEMA", "CREATE_TABLE", "SELECT", "MODIFY"}, "volumes": {"READ_VOLUME", "WRITE_VOLUME"}}
# Variables that differ in every workspace. A default would deploy to the wrong place, or give rights to the wrong group.
REQUIRED = {
    "development": {"catalog", "warehouse_id"},
    "production": {"catalog", "warehouse_id", "run_as", "operators", "readers", "notify"},
}
# Development mode adds a prefix to the names of these. It does not for volumes, which are in a schema, and for scopes.
_PREFIXED = ("jobs", "schemas", "dashboards", "alerts")
_NAME = {"dashboards": "display_name", "alerts": "display_name"}


def target_problems(name: str, target: Mapping[str, Any], resources: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of a target.

    Args:
        name: of the target.
        target: with its references resolved.
        resources: the resources in this target, resolved.
    """
    yield from (f"targets.{name}.{key}: unknown key" for key in sorted(target.keys() - _KEYS))
    mode = target.get("mode")
    if mode not in REQUIRED:
        yield f"targets.{name}.mode: expected development or production, found {mode}"
    for kind in _KEPT:
        for key, resource in resources.get(kind, {}).items():
            kept = resource.get("lifecycle", {}).get("prevent_destroy", False)
            if kept and mode == "development":
                yield f"{kind}.{key}: prevent_destroy keeps a developer from destroying it or from moving it"
            elif not kept and mode == "production":
                yield f"{kind}.{key}: expected prevent_destroy: its deletion loses data"
    for key, job in resources["jobs"].items():
        yield from (f"jobs.{key}: {problem}" for problem in _notifications(job))
    yield from _everyone(target, resources)
    if mode == "production":
        yield from _production(name, target, resources)
    elif mode == "development":
        for kind, named in resources.items():
            shared = [key for key, resource in named.items() if resource.get("permissions")]
            yield from (f"{kind}.{key}: in development, only the owner has permissions" for key in shared)


def _notifications(job: Mapping[str, Any]) -> Iterator[str]:
    # If the last task always runs, the job succeeds whenever that task does, and job notifications miss failures.
    if any(task.get("run_if") == "ALL_DONE" for task in job["tasks"]):
        for task in job["tasks"]:
            if "condition_task" not in task and "email_notifications" not in task:
                yield f"task {task['task_key']}: expected email_notifications, because the job can succeed when the task fails"


def _everyone(target: Mapping[str, Any], resources: Mapping[str, Any]) -> Iterator[str]:
    named = [(f"{kind}.{key}", each) for kind in resources for key, each in resources[kind].items()]
    for where, resource in (("the bundle", target), *named):
        for permission in resource.get("permissions", ()):
            if permission.get("group_name") in _EVERYONE:
                yield f"permissions of {where}: {permission['group_name']} is everyone; name a group"


def _production(name: str, target: Mapping[str, Any], resources: Mapping[str, Any]) -> Iterator[str]:
    path = target.get("workspace", {}).get("root_path", "")
    if not path or path.startswith("/Workspace/Shared"):
        yield f"targets.{name}: expected a root_path that only the deployer can write: its code runs as run_as"
    who = target.get("run_as", {}).get("service_principal_name")
    if not who:
        yield f"targets.{name}: expected run_as with a service_principal_name: without it, the jobs stop working when the deployer leaves"
    yield from _granted(who, target, resources)
    levels = {each["level"] for each in target.get("permissions", ()) if "group_name" in each}
    if "CAN_RUN" not in levels:
        yield "permissions: expected CAN_RUN for a group: otherwise only the deployer can start, stop and repair jobs"
    if "CAN_VIEW" in levels:
        yield "permissions: CAN_VIEW of the whole bundle lets a group read the API key"
    for key, dashboard in resources.get("dashboards", {}).items():
        if not any("group_name" in each for each in dashboard.get("permissions", ())):
            yield f"dashboards.{key}: expected CAN_READ for a group: otherwise only the deployer sees it"


def _granted(who: str | None, target: Mapping[str, Any], resources: Mapping[str, Any]) -> Iterator[str]:
    """Check that run_as, which owns nothing, has the privileges that a run needs."""
    for kind, wanted in _NEEDED.items():
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


def variable_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the variables: lookups, defaults that are never right, and values that nobody can give."""
    for name, variable in tree["variables"].items():
        if "lookup" in variable:
            yield f"variables.{name}: a lookup ignores variable-overrides.json"
    for name in sorted(set().union(*REQUIRED.values())):
        if "default" in tree["variables"].get(name, {}):
            yield f"variables.{name}: must not have a default, so that the CLI asks for it"
    for target in tree["targets"].values():
        if target.get("mode") == "production":
            for name in sorted(REQUIRED["production"] & target.get("variables", {}).keys()):
                yield f"variables.{name}: production must not set it, so that the CLI asks for it"
    deployers = [each for each in _permissions(tree) if isinstance(each, dict) and "current_user" in str(each.values())]
    if deployers:
        yield "permissions: expected a variable for the deployer: user_name fails if a service principal deploys"


def compute_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the variables that choose a cluster or serverless compute, and of the conditions on them."""
    variables = tree["variables"]
    for key, job in tree["resources"]["jobs"].items():
        for task in job["tasks"]:
            left = task.get("condition_task", {}).get("left", "${var.compute}")
            if left != "${var.compute}" and not left.startswith("{{job.parameters."):
                yield f"jobs.{key}: task {task['task_key']}: condition_task.left: {left} never changes"
    if (compute := variables["compute"].get("default")) not in ("classic", "serverless"):
        yield f"variables.compute: expected classic or serverless, found {compute}"
    plain, serverless = (variables[name]["default"] for name in ("arguments", "serverless_arguments"))
    expected = [
        *plain[:-2],
        "--set",
        "capture.where=driver",
        "--set",
        "endpoint.api_key=${var.serverless_api_key}",
        *plain[-2:],
    ]
    if serverless != expected:
        yield "variables.serverless_arguments: expected those of arguments, capture.where and endpoint.api_key"


def _permissions(tree: Mapping[str, Any]) -> list[Any]:
    return [each for target in tree["targets"].values() for each in target.get("permissions", ())]


def bundle_problems(bundle: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the section ``bundle``."""
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bundle.get("uuid", "")):
        yield f"bundle.uuid: expected a UUID, found {bundle.get('uuid')}"
    if not re.fullmatch(r">= ?\d+\.\d+\.\d+", bundle.get("databricks_cli_version", "")):
        yield "bundle.databricks_cli_version: expected the oldest version of the CLI that was tested"


def deployed_names(mode: str, user: str, resources: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """The resources by what must be unique in a workspace: the kind, the catalog and schema if any, and the name."""
    found: dict[tuple[str, ...], str] = {}
    for kind, named in resources.items():
        for key, resource in named.items():
            name = resource.get(_NAME.get(kind, "name"), key)
            if mode == "development" and kind in _PREFIXED:
                name = f"dev_{user}_{name}"
            schema = resource.get("schema_name", "")
            if mode == "development" and schema:
                schema = f"dev_{user}_{schema}"
            found[kind, resource.get("catalog_name", ""), schema, name] = f"{kind}.{key}"
    return found


def side_by_side_problems(deployments: Mapping[str, Mapping[tuple[str, ...], str]]) -> Iterator[str]:
    """Yield the resources that two deployments in one workspace would share.

    Args:
        deployments: the result of :func:`deployed_names` for each, by a name for the message.
    """
    for (one, here), (other, there) in combinations(deployments.items(), 2):
        for identity in here.keys() & there.keys():
            yield f"{here[identity]}: {one} and {other} use the same name {identity[-1]}"


def sync_problems(sync: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Yield the problems of what the CLI uploads: files that no job needs, missing ones, and patterns without a file."""
    if "include" in sync:
        yield "sync.include: its patterns match in every folder, also in .venv; use sync.paths"
    uploaded = {path for folder in sync.get("paths", ["."]) for path in (root / folder).rglob("*") if path.is_file()}
    for pattern in sync.get("exclude", ()):
        matched = {path for path in uploaded if path.is_relative_to(root / pattern.removesuffix("/**"))}
        if not matched:
            yield f"sync.exclude: {pattern} matches no file, which strict validation refuses"
        uploaded -= matched
    names = {path.relative_to(root).as_posix() for path in uploaded if "__pycache__" not in path.parts}
    if missing := {"conf/dev.yml", "conf/prod.yml", "conf/prices.yml"} - names:
        yield f"sync: not uploaded: {', '.join(sorted(missing))}"
    other = sorted(name for name in names if not re.fullmatch(r"conf/[\w-]+\.yml|jobs/\w+\.py", name))
    if other:
        yield f"sync: no job needs {', '.join(other[:3])}"
