"""The bundle, held against what a workspace would say, and the checker itself, by everything that it must find."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from tests.bundle import problems, read

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def bundle() -> dict[str, Any]:
    return read()


@pytest.mark.parametrize("target", ["dev", "prod"])
def test_the_bundle_is_whole(bundle: dict[str, Any], target: str) -> None:
    assert problems(bundle, target) == []


def job(tree: dict[str, Any]) -> Any:
    return tree["resources"]["jobs"]["capture"]


def task(tree: dict[str, Any], at: int = 0) -> Any:
    return job(tree)["tasks"][at]


def cluster(tree: dict[str, Any]) -> Any:
    return job(tree)["job_clusters"][0]["new_cluster"]


def words(tree: dict[str, Any]) -> Any:
    return task(tree)["spark_python_task"]["parameters"]


def granted(tree: dict[str, Any]) -> Any:
    return tree["resources"]["schemas"]["tables"]["grants"][0]["privileges"]


def edit(tree: dict[str, Any], old: str, new: str) -> None:
    listed = words(tree)
    (at,) = [at for at, word in enumerate(listed) if old in word]
    listed[at] = listed[at].replace(old, new)


MUTATIONS: list[tuple[str, Any, str]] = [
    ("unknown top key", lambda t: t.update(ressources={}), "ressources: unknown key"),
    ("unknown resource type", lambda t: t["resources"].update(job={"x": {}}), "there is no resource type job"),
    ("unknown key of a job", lambda t: job(t).update(max_concurent_runs=1), "max_concurent_runs: unknown key"),
    ("unknown key of a task", lambda t: task(t).update(retries=2), "tasks[0].retries: unknown key"),
    ("bad enum", lambda t: task(t, 1).update(run_if="ALWAYS"), "tasks[1].run_if: unknown key, or a value"),
    ("unknown key of a volume", lambda t: t["resources"]["volumes"]["state"].update(kind=1), "volumes.state: kind"),
    ("unknown key of a schema", lambda t: t["resources"]["schemas"]["tables"].update(x=1), "schemas.tables: x: unknown"),
    ("two resources of a key", lambda t: t["resources"]["volumes"].update(tables=t["resources"]["volumes"].pop("state")),
     "tables: two resources have this key"),
    ("unknown variable", lambda t: job(t).update(name="${var.nmae}"), "${var.nmae}: there is nothing of this name"),
    ("a variable without a value", lambda t: t["variables"]["catalog"].pop("default"), "variables.catalog: has no default"),
    ("a variable for nothing", lambda t: t["variables"].update(more={"default": 1}), "variables.more: nothing uses it"),
    ("unknown resource", lambda t: job(t).update(name="${resources.jobs.nope.name}"), "no such field of a resource"),
    ("a target's unknown variable", lambda t: t["targets"]["dev"]["variables"].update(no="1"), "variables.no: there is no"),
    ("a target's unknown key", lambda t: t["targets"]["dev"].update(modus="x"), "targets.dev.modus: unknown key"),
    ("a target's mode", lambda t: t["targets"]["dev"].update(mode="dev"), "expected development or production"),
    ("two tasks of a key", lambda t: task(t, 1).update(task_key="capture"), "task capture: there are two"),
    ("unknown task", lambda t: task(t, 1)["depends_on"][0].update(task_key="captur"), "there is no task captur"),
    ("a task after itself", lambda t: task(t).update(depends_on=[{"task_key": "report"}]), "depends on itself"),
    ("outcome of what has none", lambda t: task(t, 3)["depends_on"][0].update(task_key="analyze"), "has no outcome"),
    ("run_if after nothing", lambda t: task(t, 1).pop("depends_on"), "run_if: depends on nothing"),
    ("unknown cluster", lambda t: task(t).update(job_cluster_key="big"), "there is no job cluster big"),
    ("unknown environment", lambda t: task(t, 1).update(environment_key="x"), "there is no environment x"),
    ("nowhere to run", lambda t: task(t).pop("job_cluster_key"), "expected one place to run, found none"),
    ("two places to run", lambda t: task(t).update(environment_key="analysis"), "expected one place to run, found env"),
    ("libraries on serverless", lambda t: task(t, 1).update(libraries=[{"whl": "../../dist/*.whl"}]), "libraries: a server"),
    ("an environment for nothing", lambda t: job(t)["environments"].append({"environment_key": "y"}), "environment y: no"),
    ("no such script", lambda t: task(t)["spark_python_task"].update(python_file="../../jobs/captur.py"), "there is no file"),
    ("no such entry point", lambda t: task(t).update(python_wheel_task={"package_name": "deltatap", "entry_point": "run"}),
     "the wheel has no entry point run"),
    ("no such configuration", lambda t: edit(t, "conf/${bundle.target}", "conf/test"), "expected one --config"),
    ("an argument for no key", lambda t: edit(t, "capture.limit=", "capture.limits="), "capture.limits: unknown key"),
    ("a value that is none", lambda t: edit(t, "endpoint.kind=${var.endpoint_kind}", "endpoint.kind=openapi"), "endpoint.kind"),
    ("a key in the arguments", lambda t: words(t).extend(["--set", "endpoint.api_key=sk-1"]), "endpoint.api_key"),
    ("unknown dynamic value", lambda t: edit(t, "{{job.run_id}}", "{{job.runid}}"), "{{job.runid}}: nothing"),
    ("unknown parameter", lambda t: edit(t, "parameters.mode}", "parameters.modes}"), "{{job.parameters.modes}}: nothing"),
    ("a parameter for nothing", lambda t: job(t)["parameters"].append({"name": "x", "default": ""}), "nothing uses job.para"),
    ("state on no Volume", lambda t: edit(t, "state.dir=/Volumes", "state.dir=/tmp"), "state.dir: expected a Volume"),
    ("a Quartz expression of five", lambda t: t["variables"]["schedule"].update(default="0 4 * * ?"), "of 6 or 7 fields"),
    ("no ? in Quartz", lambda t: t["variables"]["schedule"].update(default="0 0 4 * * *"), "just one is ?"),
    ("no such hour", lambda t: t["variables"]["schedule"].update(default="0 0 24 * * ?"), "no such time of day"),
    ("no such time zone", lambda t: t["variables"]["timezone"].update(default="Berlin"), "no time zone Berlin"),
    ("unpaused in dev", lambda t: job(t)["schedule"].update(pause_status="UNPAUSED"), "defeats the pausing"),
    ("schedule and trigger", lambda t: job(t).update(trigger={"pause_status": "PAUSED"}), "or a trigger, not both"),
    ("two runs at once", lambda t: job(t).update(max_concurrent_runs=2), "max_concurrent_runs: expected 1"),
    ("speculation", lambda t: cluster(t).pop("spark_conf"), "spark.speculation"),
    ("standard access", lambda t: cluster(t).update(data_security_mode="USER_ISOLATION"), "DATA_SECURITY_MODE_DEDICATED"),
    ("an old runtime", lambda t: cluster(t).update(spark_version="15.4.x-scala2.12"), "expected a runtime of Spark 4"),
    ("the key itself", lambda t: cluster(t)["spark_env_vars"].update(OPENAI_API_KEY="sk-1"), "expected {{secrets/scope/key}}"),
    ("an unknown level", lambda t: job(t)["permissions"][0].update(level="CAN_RUN"), "there is no level CAN_RUN"),
    ("a time-out below the budget", lambda t: task(t).update(timeout_seconds=600), "expected more than budget.runtime_s"),
    ("nobody is told", lambda t: task(t).pop("email_notifications"), "task capture: nobody is told"),
    ("no dashboard", lambda t: t["resources"]["dashboards"]["trend"].update(file_path="../x.json"), "there is no file ../x"),
    ("a dashboard without a schema", lambda t: t["resources"]["dashboards"]["trend"].pop("dataset_schema"), "name tables only"),
    ("nothing builds the wheel", lambda t: t.pop("artifacts"), "nothing builds the wheel"),
    ("another build", lambda t: t["artifacts"]["wheel"].update(build="make weel"), "expected a target of the Makefile"),
    ("a version for every plan", lambda t: t["artifacts"]["wheel"].update(dynamic_version=True), "every plan"),
    ("a wheel elsewhere", lambda t: task(t)["libraries"][0].update(whl="../dist/*.whl"), "the wheel is built into dist"),
]  # fmt: skip
IN_PROD: list[tuple[str, Any, str]] = [
    ("a folder of all", lambda t: t["targets"]["prod"]["workspace"].update(root_path="/Workspace/Shared/x"), "not everyone"),
    ("nothing is granted", lambda t: t["resources"]["volumes"]["state"].pop("grants"), "volumes.state: run_as needs READ_VOLUME, WRITE"),
    ("no right to create", lambda t: granted(t).remove("CREATE_TABLE"), "schemas.tables: run_as needs CREATE_TABLE"),
    ("no such right", lambda t: granted(t).append("MODIFIY"), "grants: there is no privilege MODIFIY"),
    ("granted to another", lambda t: t["resources"]["schemas"]["tables"]["grants"][0].update(principal="account users"), "schemas.tables: run_as needs"),
    ("no key for run_as", lambda t: t["targets"]["prod"]["permissions"].pop(), "secret_scopes.keys: run_as needs READ"),
    ("no scripts for run_as", lambda t: t["targets"]["prod"]["permissions"][1].update(service_principal_name="x"), "permissions: run_as needs CAN_VIEW"),
    ("a key twice", lambda t: t["resources"]["secret_scopes"]["keys"].update(permissions=[{"service_principal_name": "${var.run_as}", "level": "READ"}]), "may not overlap"),
    ("runs as its deployer", lambda t: t["targets"]["prod"].pop("run_as"), "expected run_as"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "broken", "said"),
    [
        *(pytest.param("dev", broken, said, id=name) for name, broken, said in MUTATIONS),
        *(pytest.param("prod", broken, said, id=name) for name, broken, said in IN_PROD),
    ],
)
def test_what_is_broken_is_named(
    bundle: dict[str, Any], target: str, broken: Callable[[dict[str, Any]], object], said: str
) -> None:
    changed = copy.deepcopy(bundle)
    broken(changed)
    found = problems(changed, target)
    assert any(said in problem for problem in found), found
