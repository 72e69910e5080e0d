"""The bundle has no problems, and the checker finds every mistake that a test introduces."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from tests.bundle import ROOT, SCHEDULE, TABLE_UPDATE, file_problems, included, problems, read
from tests.bundle_targets import REQUIRED

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def bundle() -> dict[str, Any]:
    return read()


@pytest.fixture(scope="module")
def triggered() -> dict[str, Any]:
    """The bundle whose job starts when the prompts table has changed."""
    return read(start=TABLE_UPDATE)


@pytest.mark.parametrize("target", ["dev", "prod"])
def test_the_bundle_has_no_problems(bundle: dict[str, Any], triggered: dict[str, Any], target: str) -> None:
    assert problems(bundle, target) == []
    assert problems(triggered, target) == []


def test_the_bundle_has_these_resources(bundle: dict[str, Any]) -> None:
    assert {kind: sorted(named) for kind, named in bundle["resources"].items()} == {
        "alerts": ["error_rate", "failed_run", "ttft"], "dashboards": ["trend"], "schemas": ["tables"],
        "jobs": ["capture", "check", "dry_run", "stop"], "secret_scopes": ["keys"], "volumes": ["state"],
    }  # fmt: skip


def test_each_file_has_one_resource() -> None:
    files = included()
    assert file_problems(files) == []
    stop = files.pop("conf/resources/stop.job.yml")["resources"]["jobs"]
    files["conf/resources/check.job.yml"]["resources"]["jobs"].update(stop)
    files["conf/resources/empty.yml"] = {}
    two = "conf/resources/check.job.yml, conf/resources/stop.job.yml"
    assert file_problems(files) == [
        f"conf/resources/check.job.yml: expected one file for each resource, found {two}",
        "conf/resources/empty.yml: expected one file for each resource, found none",
    ]


def test_the_documentation_names_the_parameters_and_the_variables_without_a_default(bundle: dict[str, Any]) -> None:
    text = (ROOT / "docs/databricks.md").read_text(encoding="utf-8")
    parameters = {each["name"] for each in bundle["resources"]["jobs"]["capture"]["parameters"]}
    required = {name for name, variable in bundle["variables"].items() if "default" not in variable}
    assert required == set.union(*REQUIRED.values())
    assert [name for name in sorted(parameters | required) if f"`{name}`" not in text] == []
    assert [name for name in (SCHEDULE, TABLE_UPDATE) if f"`{name}`" not in text] == []


def job(tree: dict[str, Any]) -> Any:
    return tree["resources"]["jobs"]["capture"]


def task(tree: dict[str, Any], key: str = "capture") -> Any:
    (found,) = [each for each in job(tree)["tasks"] if each["task_key"] == key]
    return found


def cluster(tree: dict[str, Any]) -> Any:
    return tree["variables"]["cluster"]["default"]


def environment(tree: dict[str, Any], key: str) -> Any:
    (found,) = [each for each in job(tree)["environments"] if each["environment_key"] == key]
    return found["spec"]["dependencies"]


def words(tree: dict[str, Any]) -> Any:
    return tree["variables"]["arguments"]["default"]


def alert(tree: dict[str, Any]) -> Any:
    return tree["resources"]["alerts"]["error_rate"]


def prod(tree: dict[str, Any]) -> Any:
    return tree["targets"]["prod"]


def schedule(tree: dict[str, Any]) -> Any:
    return prod(tree)["resources"]["jobs"]["capture"]["schedule"]


def granted(tree: dict[str, Any]) -> Any:
    return tree["resources"]["schemas"]["tables"]["grants"][0]["privileges"]


def edit(tree: dict[str, Any], old: str, new: str) -> None:
    listed = words(tree)
    (at,) = [at for at, word in enumerate(listed) if old in word]
    listed[at] = listed[at].replace(old, new)


MUTATIONS: list[tuple[str, Any, str]] = [
    ("unknown top key", lambda t: t.update(ressources={}), "ressources: unknown key"),
    ("unknown resource type", lambda t: t["resources"].update(job={"x": {}}), "unknown resource type job"),
    ("unknown key of a job", lambda t: job(t).update(max_concurent_runs=1), "max_concurent_runs: unknown key"),
    ("unknown key of a task", lambda t: task(t).update(retries=2), "tasks[1].retries: unknown key"),
    ("invalid enum value", lambda t: task(t, "analyze").update(run_if="ALWAYS"), "tasks[3].run_if: unknown key or invalid value"),
    ("unknown key of a volume", lambda t: t["resources"]["volumes"]["state"].update(kind=1), "volumes.state: kind"),
    ("unknown key of a schema", lambda t: t["resources"]["schemas"]["tables"].update(x=1), "schemas.tables: x: unknown"),
    ("two resources with the same key", lambda t: t["resources"]["volumes"].update(tables=t["resources"]["volumes"].pop("state")),
     "tables: two resources have this key"),
    ("unknown variable", lambda t: job(t).update(name="${var.nmae}"), "${var.nmae}: unknown reference"),
    ("variable without a value", lambda t: t["variables"]["schema"].pop("default"), "variables.schema: has no default"),
    ("unused variable", lambda t: t["variables"].update(more={"default": 1}), "variables.more: it is not used"),
    ("unknown resource", lambda t: job(t).update(name="${resources.jobs.nope.name}"), "unknown field of a resource"),
    ("unknown variable of a target", lambda t: t["targets"]["dev"]["variables"].update(no="1"), "variables.no: unknown variable"),
    ("unknown key of a target", lambda t: t["targets"]["dev"].update(modus="x"), "targets.dev.modus: unknown key"),
    ("unknown mode of a target", lambda t: t["targets"]["dev"].update(mode="dev"), "expected development or production"),
    ("two tasks with the same key", lambda t: task(t, "analyze").update(task_key="capture"), "task capture: duplicate key"),
    ("unknown task", lambda t: task(t, "analyze")["depends_on"][0].update(task_key="captur"), "unknown task captur"),
    ("task that depends on itself", lambda t: task(t).update(depends_on=[{"task_key": "report"}]), "depends on itself"),
    ("outcome of a task that is not a condition", lambda t: task(t, "report")["depends_on"][0].update(task_key="analyze"), "has no outcome"),
    ("run_if without depends_on", lambda t: task(t, "analyze").pop("depends_on"), "run_if: requires depends_on"),
    ("unknown cluster", lambda t: task(t).update(job_cluster_key="big"), "unknown job cluster big"),
    ("unknown environment", lambda t: task(t, "analyze").update(environment_key="x"), "unknown environment x"),
    ("task without compute", lambda t: task(t).pop("job_cluster_key"), "found none"),
    ("task with two kinds of compute", lambda t: task(t).update(environment_key="analysis"), "found environment_key, job_cluster_key"),
    # A cluster or serverless compute.
    ("unknown compute", lambda t: t["variables"]["compute"].update(default="server"), "variables.compute: expected classic or serverless"),
    ("no task on serverless compute", lambda t: job(t)["tasks"].remove(task(t, "capture_serverless")), "task capture: expected a task capture_serverless"),
    ("no condition", lambda t: job(t)["tasks"].remove(task(t, "on_serverless")), "task capture: expected a task capture_serverless and the condition"),
    ("both tasks run", lambda t: task(t, "capture_serverless")["depends_on"][0].update(outcome="false"), "task capture_serverless: expected environment_key, and to depend on the outcome true"),
    ("the cluster's task always runs", lambda t: task(t).pop("depends_on"), "task capture: expected job_cluster_key, and to depend on the outcome false"),
    ("another timeout on serverless compute", lambda t: task(t, "capture_serverless").update(timeout_seconds=60), "timeout_seconds: expected that of capture: 25200"),
    ("another script on serverless compute", lambda t: task(t, "capture_serverless")["spark_python_task"].update(python_file="../../jobs/check.py"), "expected the script of capture"),
    ("analysis waits for one of the two", lambda t: task(t, "analyze")["depends_on"].pop(), "task analyze: depends_on: expected capture and capture_serverless"),
    ("condition on a constant", lambda t: task(t, "on_serverless")["condition_task"].update(left="serverless"), "jobs.capture: task on_serverless: condition_task.left: serverless never changes"),
    ("analysis only after a successful capture", lambda t: task(t, "analyze").pop("run_if"), "task analyze: run_if: expected ALL_DONE"),
    ("dependency on a condition without an outcome", lambda t: task(t, "report")["depends_on"][0].pop("outcome"), 'task report: depends_on: wants_report: expected the outcome "true" or "false"'),
    ("unknown outcome", lambda t: task(t, "report")["depends_on"][0].update(outcome="yes"), "wants_report: expected the outcome"),
    ("condition on a cluster", lambda t: task(t, "on_serverless").update(job_cluster_key="capture"), "task on_serverless: job_cluster_key: not for a condition_task"),
    ("condition with retries", lambda t: task(t, "wants_report").update(max_retries=1), "task wants_report: max_retries: not for a condition_task"),
    ("two kinds of task", lambda t: task(t).update(notebook_task={"notebook_path": "x"}), "task capture: expected one kind of task, found notebook_task, spark_python_task"),
    ("no kind of task", lambda t: task(t, "wants_report").pop("condition_task"), "task wants_report: expected one kind of task, found none"),
    ("more retries than max_retries", lambda t: task(t, "capture_serverless").pop("disable_auto_optimization"), "task capture_serverless: disable_auto_optimization: expected true"),
    ("setting of serverless compute on a cluster", lambda t: task(t).update(disable_auto_optimization=True), "task capture: disable_auto_optimization: expected true on serverless compute"),
    ("no version of an environment", lambda t: job(t)["environments"][0]["spec"].pop("environment_version"), "environment capture: expected environment_version 4 or newer, found none"),
    ("old environment", lambda t: job(t)["environments"][0]["spec"].update(environment_version="2"), "environment_version 4 or newer, found 2"),
    ("two environments with the same key", lambda t: job(t)["environments"].append(job(t)["environments"][0]), "environment capture: duplicate key"),
    ("two clusters with the same key", lambda t: job(t)["job_clusters"].append(job(t)["job_clusters"][0]), "job cluster capture: duplicate key"),
    ("two parameters with the same name", lambda t: job(t)["parameters"].append({"name": "limit", "default": "1"}), "parameter limit: duplicate key"),
    ("cluster without the wheel", lambda t: task(t).pop("libraries"), "task capture: libraries: expected the wheel"),
    ("UDF on serverless compute", lambda t: task(t, "capture_serverless")["spark_python_task"].update(parameters="${var.arguments}"), "capture.where: expected driver"),
    ("environment variable on serverless compute", lambda t: t["variables"]["serverless_api_key"].update(default="{env: OPENAI_API_KEY}"), "endpoint.api_key: expected a secret or an identity"),
    ("other arguments on serverless compute", lambda t: t["variables"]["serverless_arguments"]["default"].__setitem__(3, "run.id=mine"), "variables.serverless_arguments: expected those of arguments"),
    ("packages on serverless compute", lambda t: environment(t, "capture").append("plotly>=5.24"), "task capture_serverless: expected the packages"),
    ("libraries of a serverless task", lambda t: task(t, "analyze").update(libraries=[{"whl": "../../dist/*.whl"}]), "libraries: a server"),
    ("unused environment", lambda t: job(t)["environments"].append({"environment_key": "y", "spec": {"dependencies": []}}), "environment y: no"),
    ("report without its extra", lambda t: environment(t, "report").remove("plotly>=5.24"), "task report: expected the packages"),
    ("traces without their extra", lambda t: environment(t, "traces").pop(), "task traces: expected the packages"),
    ("analysis with an extra", lambda t: environment(t, "analysis").append("plotly>=5.24"), "task analyze: expected the packages"),
    ("missing script", lambda t: task(t)["spark_python_task"].update(python_file="../../jobs/captur.py"), "captur.py does not exist"),
    ("unknown entry point", lambda t: task(t).update(python_wheel_task={"package_name": "deltatap", "entry_point": "run"}),
     "unknown entry point run"),
    ("missing configuration", lambda t: edit(t, "conf/${bundle.target}", "conf/test"), "expected one --config"),
    ("unknown setting", lambda t: edit(t, "capture.limit=", "capture.limits="), "capture.limits: unknown key"),
    ("invalid value of a setting", lambda t: edit(t, "endpoint.kind=${var.endpoint_kind}", "endpoint.kind=openapi"), "endpoint.kind"),
    ("API key in the arguments", lambda t: words(t).extend(["--set", "endpoint.api_key=sk-1"]), "endpoint.api_key"),
    ("unknown dynamic value", lambda t: edit(t, "{{job.run_id}}", "{{job.runid}}"), "{{job.runid}}: unknown"),
    ("unknown parameter", lambda t: edit(t, "parameters.mode}", "parameters.modes}"), "{{job.parameters.modes}}: unknown"),
    ("unused parameter", lambda t: job(t)["parameters"].append({"name": "x", "default": ""}), "job.parameters.x is not used"),
    ("state folder outside a Volume", lambda t: edit(t, "state.dir=/Volumes", "state.dir=/tmp"), "state.dir: expected a path in /Volumes"),
    ("unknown time zone", lambda t: t["variables"]["timezone"].update(default="Berlin"), "unknown time zone Berlin"),
    ("two concurrent runs", lambda t: job(t).update(max_concurrent_runs=2), "max_concurrent_runs: expected 1"),
    ("speculation", lambda t: cluster(t).pop("spark_conf"), "spark.speculation"),
    ("standard access mode", lambda t: cluster(t).update(data_security_mode="USER_ISOLATION"), "DATA_SECURITY_MODE_DEDICATED"),
    ("old runtime", lambda t: cluster(t).update(spark_version="15.4.x-scala2.12"), "expected a runtime with Spark 4"),
    ("API key in an environment variable", lambda t: cluster(t)["spark_env_vars"].update(OPENAI_API_KEY="sk-1"), "expected {{secrets/scope/key}}"),
    ("unknown level", lambda t: job(t).update(permissions=[{"level": "CAN_RUN", "user_name": "a"}]), "unknown level CAN_RUN"),
    ("timeout below the budget", lambda t: task(t).update(timeout_seconds=600), "expected more than budget.runtime_s"),
    ("task without notifications", lambda t: task(t).pop("email_notifications"), "task capture: expected email_notifications"),
    ("missing dashboard", lambda t: t["resources"]["dashboards"]["trend"].update(file_path="../x.json"), "../x.json does not exist"),
    ("dashboard without a schema", lambda t: t["resources"]["dashboards"]["trend"].pop("dataset_schema"), "unqualified table names"),
    ("no artifact", lambda t: t.pop("artifacts"), "no artifact builds the wheel"),
    ("unknown build target", lambda t: t["artifacts"]["wheel"].update(build="make weel"), "expected a Makefile target"),
    ("dynamic version", lambda t: t["artifacts"]["wheel"].update(dynamic_version=True), "every plan"),
    ("wheel in another folder", lambda t: task(t)["libraries"][0].update(whl="../dist/*.whl"), "where the wheel is built"),
    # What one developer, a second one and production share, and what a developer may do.
    ("one scope for every target", lambda t: t["targets"]["dev"]["variables"].pop("secret_scope"), "dev of someone and dev of another use the same name deltatap"),
    ("one scope for all developers", lambda t: t["targets"]["dev"]["variables"].update({"secret_scope": "dev"}), "secret_scopes.keys: dev of someone and dev of another"),
    ("one job for every target", lambda t: t["targets"]["dev"].update(mode="production"), "jobs.capture: dev of someone and prod of someone"),
    ("protected in dev", lambda t: t["resources"]["schemas"]["tables"].update(lifecycle={"prevent_destroy": True}), "schemas.tables: prevent_destroy keeps a developer"),
    ("operators in dev", lambda t: job(t).update(permissions=[{"level": "CAN_MANAGE_RUN", "group_name": "ops"}]), "jobs.capture: in development, only the owner"),
    ("unpaused in dev", lambda t: job(t).update(schedule={**schedule(t), "pause_status": "UNPAUSED"}), "schedule.pause_status: expected PAUSED"),
    # Variables.
    ("lookup of the warehouse", lambda t: t["variables"]["warehouse_id"].update(lookup={"warehouse": "Starter"}), "variables.warehouse_id: a lookup ignores"),
    ("default of run_as", lambda t: t["variables"]["run_as"].update(default="set-run_as"), "variables.run_as: must not have a default"),
    ("default of the catalog", lambda t: t["variables"]["catalog"].update(default="main"), "variables.catalog: must not have a default"),
    ("default of the operators", lambda t: t["variables"]["operators"].update(default="users"), "variables.operators: must not have a default"),
    ("default of the readers", lambda t: t["variables"]["readers"].update(default="users"), "variables.readers: must not have a default"),
    # The bundle and what it uploads.
    ("no UUID", lambda t: t["bundle"].pop("uuid"), "bundle.uuid: expected a UUID"),
    ("no version of the CLI", lambda t: t["bundle"].pop("databricks_cli_version"), "bundle.databricks_cli_version"),
    ("sync by patterns", lambda t: t.update(sync={"include": ["conf/**", "jobs/**"]}), "sync.include: its patterns match in every folder"),
    ("sync of everything", lambda t: t["sync"].pop("paths"), "sync: no job needs"),
    ("sync of the resources", lambda t: t["sync"].pop("exclude"), "sync: no job needs conf/dashboards"),
    ("sync without the settings", lambda t: t["sync"].update(paths=["jobs"]), "not uploaded: conf/dev.yml, conf/prices.yml, conf/prod.yml"),
    ("pattern without a file", lambda t: t["sync"]["exclude"].append("tests/**"), "sync.exclude: tests/** matches no file"),
    # Parameters, policies and alerts.
    ("no cluster policy", lambda t: cluster(t).pop("policy_id"), "policy_id: expected a variable"),
    ("settings of a run are not the last", lambda t: words(t).extend(["--set", "capture.limit=1"]), "expected --settings as the last option"),
    ("no settings of a run", lambda t: words(t).__delitem__(slice(-2, None)), "expected --settings as the last option"),
    ("unknown key of an alert", lambda t: alert(t).update(query="SELECT 1"), "alerts.error_rate: query: unknown key"),
    ("alert without a column", lambda t: alert(t)["evaluation"]["source"].update(name="rate"), "the query has no column rate"),
    ("alert without a schema", lambda t: alert(t).update(query_text="SELECT 1 AS error_rate FROM metrics_by_run"), "metrics_by_run: expected a table with"),
    ("alert without a subscription", lambda t: alert(t)["evaluation"].pop("notification"), "otherwise nobody is told"),
    ("alert that starts at once", lambda t: alert(t)["schedule"].pop("pause_status"), "alerts.error_rate: schedule.pause_status: expected PAUSED"),
    ("alert with a wrong schedule", lambda t: t["variables"]["alert_schedule"].update(default="0 4 * * ?"), "alerts.error_rate: schedule: expected a Quartz"),
]  # fmt: skip
IN_PROD: list[tuple[str, Any, str]] = [
    ("shared folder", lambda t: t["targets"]["prod"]["workspace"].update(root_path="/Workspace/Shared/x"), "only the deployer can write"),
    ("no grants", lambda t: t["resources"]["volumes"]["state"].pop("grants"), "volumes.state: run_as needs READ_VOLUME, WRITE"),
    ("missing privilege", lambda t: granted(t).remove("CREATE_TABLE"), "schemas.tables: run_as needs CREATE_TABLE"),
    ("unknown privilege", lambda t: granted(t).append("MODIFIY"), "grants: unknown privilege MODIFIY"),
    ("grants to another principal", lambda t: t["resources"]["schemas"]["tables"]["grants"][0].update(principal="account users"), "schemas.tables: run_as needs"),
    ("run_as cannot read the API key", lambda t: prod(t)["permissions"].pop(1), "secret_scopes.keys: run_as needs READ"),
    ("run_as cannot read the scripts", lambda t: t["targets"]["prod"]["permissions"][1].update(service_principal_name="x"), "permissions: run_as needs CAN_VIEW"),
    ("overlapping permissions", lambda t: t["resources"]["secret_scopes"]["keys"].update(permissions=[{"service_principal_name": "${var.run_as}", "level": "READ"}]), "must not overlap"),
    ("no run_as", lambda t: t["targets"]["prod"].pop("run_as"), "expected run_as"),
    ("run_as is a user", lambda t: prod(t).update(run_as={"user_name": "${var.run_as}"}), "expected run_as with a service_principal_name"),
    ("run_as in the file", lambda t: prod(t).update(variables={"run_as": "some-id"}), "variables.run_as: production must not set it"),
    ("deployer is a user", lambda t: prod(t)["permissions"].__setitem__(0, {"level": "CAN_MANAGE", "user_name": "${workspace.current_user.userName}"}), "user_name fails if a service principal deploys"),
    ("not protected", lambda t: prod(t)["resources"]["schemas"]["tables"].pop("lifecycle"), "schemas.tables: expected prevent_destroy"),
    ("key not protected", lambda t: prod(t)["resources"].pop("secret_scopes"), "secret_scopes.keys: expected prevent_destroy"),
    ("starts without a check", lambda t: t["variables"]["pause_status"].update(default="UNPAUSED"), "schedule.pause_status: expected PAUSED"),
    ("starts after the first deployment", lambda t: schedule(t).pop("pause_status"), "schedule.pause_status: expected PAUSED"),
    ("everyone is an operator", lambda t: prod(t)["permissions"][2].update(group_name="users"), "permissions of the bundle: users is everyone"),
    ("everyone starts a job", lambda t: job(t).update(permissions=[{"level": "CAN_MANAGE_RUN", "group_name": "account users"}]), "permissions of jobs.capture: account users"),
    ("no operators", lambda t: prod(t)["permissions"].pop(), "expected CAN_RUN for a group"),
    ("operators can read the API key", lambda t: prod(t)["permissions"][2].update(level="CAN_VIEW"), "lets a group read the API key"),
    ("no readers", lambda t: prod(t)["resources"].pop("dashboards"), "dashboards.trend: expected CAN_READ for a group"),
    ("Quartz expression with five fields", lambda t: t["variables"]["schedule"].update(default="0 4 * * ?"), "of 6 or 7 fields"),
    ("Quartz expression without ?", lambda t: t["variables"]["schedule"].update(default="0 0 4 * * *"), "expected ? for exactly one"),
    ("invalid hour", lambda t: t["variables"]["schedule"].update(default="0 0 24 * * ?"), "invalid time of day"),
    ("schedule and trigger", lambda t: job(t).update(trigger={"pause_status": "PAUSED"}), "found schedule and trigger"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "broken", "expected"),
    [
        *(pytest.param("dev", broken, expected, id=name) for name, broken, expected in MUTATIONS),
        *(pytest.param("prod", broken, expected, id=name) for name, broken, expected in IN_PROD),
    ],
)
def test_the_checker_finds_the_mistake(
    bundle: dict[str, Any], target: str, broken: Callable[[dict[str, Any]], object], expected: str
) -> None:
    changed = copy.deepcopy(bundle)
    broken(changed)
    found = problems(changed, target)
    assert any(expected in problem for problem in found), found


def test_the_jobs_need_no_cluster_without_the_parts_that_the_documentation_names(bundle: dict[str, Any]) -> None:
    changed = copy.deepcopy(bundle)
    changed["variables"]["compute"]["default"] = "serverless"
    for name in ("capture", "check", "dry_run"):
        without = changed["resources"]["jobs"][name]
        del without["job_clusters"]
        without["tasks"] = [each for each in without["tasks"] if "job_cluster_key" not in each]
    task(changed, "analyze")["depends_on"].remove({"task_key": "capture"})
    assert "cluster_key" not in str(changed["resources"])
    for target in ("dev", "prod"):
        assert problems(changed, target) == ["variables.cluster: it is not used"]


def trigger(tree: dict[str, Any]) -> Any:
    return prod(tree)["resources"]["jobs"]["capture"]["trigger"]


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (lambda t: trigger(t).pop("pause_status"), "trigger.pause_status: expected PAUSED"),
        (lambda t: trigger(t)["table_update"].update(table_names=["prompts"]), "expected the prompts table"),
        (lambda t: trigger(t)["table_update"].pop("min_time_between_triggers_seconds"), "at least 600 s between"),
        (lambda t: trigger(t)["table_update"].update(tables=["x"]), "trigger.table_update.tables: unknown key"),
    ],
)
def test_the_checker_finds_the_mistake_in_the_trigger(
    triggered: dict[str, Any], broken: Callable[[dict[str, Any]], object], expected: str
) -> None:
    changed = copy.deepcopy(triggered)
    broken(changed)
    found = problems(changed, "prod")
    assert any(expected in problem for problem in found), found
