"""What ``deltatap check`` finds, on a real session and against the simulator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.driver.check import Finding, check
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.simulation import KEY, KEY_VARIABLE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

ALL_FINDINGS = [
    "key, driver", "vocabularies, driver", "state folder, driver", "network, driver", "price", "runtime", "prompts",
    "captures", "runs", "where", "key, workers", "vocabularies, workers", "state folder, workers", "network, workers",
    "shared state folder, workers", "models",
]  # fmt: skip


PRICES = str(Path(__file__).parents[2] / "conf/prices.yml")


def findings(spark: SparkSession, tree: dict[str, Any]) -> dict[str, Finding]:
    return {finding.what: finding for finding in check(load_settings(tree | {"prices": PRICES}), lambda: spark)}


def details(found: dict[str, Finding], level: str = "problem") -> dict[str, str]:
    return {finding.what: finding.detail for finding in found.values() if finding.level == level}


@pytest.mark.slow
def test_a_valid_setup_passes_without_a_call(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    prompts.write(spark, tables / "prompts", [("a", "Say it.", None)])
    tree = prompts.config(tables, simulator.base_url)
    tree["prompts"] |= {"template": "Now: {prompt} {request_id}", "keep": ["prompt"]}
    found = findings(spark, tree)
    assert list(found) == ALL_FINDINGS
    assert found["prompts"].detail.endswith("/prompts: uses request_id, model, params, prompt")
    assert not details(found)
    assert not details(found, "warning")
    assert re.search(
        r"created in .* s and replaced in .* s; seen by \d+ tasks after at most",
        found["shared state folder, workers"].detail,
    )
    assert "including gpt-4o-mini" in found["models"].detail
    tree["moderation"] = {"patterns": ["x"], "model": "mine"}
    assert findings(spark, tree)["moderation"].detail == "the endpoint moderates texts with mine; 1 pattern"
    tree["moderation"] = {"model": "mine!404"}
    assert (
        "the endpoint does not moderate texts with mine!404 (not_found): "
        in details(findings(spark, tree))["moderation"]
    )
    assert len(simulator.moderations()) == 2
    assert simulator.counts()["calls"] == 0
    assert [path.name for path in (tables / "state").iterdir()] == [], "check leaves no files"


def test_the_driver_needs_only_a_shared_folder_of_spark(
    spark: SparkSession, tables: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts.write(spark, tables / "prompts", [("a", "Say it.", None)])
    monkeypatch.setenv("IS_SERVERLESS", "true")
    found = findings(spark, prompts.config(tables, simulator.base_url, capture={"where": "driver"}))
    expected = [name for name in ALL_FINDINGS if not name.endswith("workers")]
    assert list(found) == [*expected[:-1], "shared state folder, Spark", "models"]
    assert not details(found)
    assert found["where"].detail == "driver: UDFs on serverless compute have no network access"
    assert [path.name for path in (tables / "state").iterdir()] == []


def test_all_problems_are_found(spark: SparkSession, tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a missing key nor a missing table hides other problems."""
    tree = prompts.config(tables, "http://127.0.0.1:9/v1")
    tree["endpoint"] |= {"api_key": {"env": "NOT_THERE"}, "model": "mine"}
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "client.4.9")
    found = findings(spark, tree)
    problems = details(found)
    assert "NOT_THERE is not set" in problems["key, driver"]
    assert "NOT_THERE is not set" in problems["key, workers"]
    assert "cannot reach 127.0.0.1 port 9" in problems["network, driver"]
    assert "cannot reach 127.0.0.1 port 9" in problems["network, workers"]
    assert problems["prompts"].startswith("prompts.table: ")
    assert "the Delta table does not exist" in problems["prompts"]
    assert "tables" not in problems, "captures and runs are findings of their own"
    assert found["captures"].level == found["runs"].level == "ok"
    assert problems["where"].startswith("capture.where: workers: UDFs on serverless compute have no network access")
    assert details(found, "warning") == {
        "price": "model mine has no price: cost_usd will be null",
        "models": "not checked: the endpoint cannot be reached",
    }


@pytest.mark.slow
def test_a_rejected_key_and_an_unlisted_model_are_found(
    spark: SparkSession, tables: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts.write(spark, tables / "prompts", [("a", "Say it.", None)])
    simulator.change(api_key_env=KEY_VARIABLE)
    monkeypatch.setenv("CHECKED_KEY", KEY)
    tree = prompts.config(tables, simulator.base_url)
    tree["endpoint"] |= {"api_key": {"env": "CHECKED_KEY"}, "model": "gpt-unheard-of"}
    found = findings(spark, tree)
    assert "but not gpt-unheard-of" in details(found, "warning")["models"]
    assert "price, prompts" not in found
    prompts.write(
        spark, tables / "prompts", [("a", "Say it.", "gpt-4o-mini"), ("b", "Say it.", "mine"), ("c", "Hi", " ")]
    )
    tree["endpoint"] |= {"model": "gpt-4o"}
    warnings = details(findings(spark, tree), "warning")
    assert warnings["models"].endswith("models, including gpt-4o, gpt-4o-mini, but not mine")
    assert warnings["price, prompts"] == "no price for mine: cost_usd will be null"
    tree["endpoint"] |= {"model": "gpt-unheard-of"}
    monkeypatch.setenv("CHECKED_KEY", KEY + "0")
    found = findings(spark, tree)
    assert details(found)["models"].startswith("the endpoint does not list its models (authentication): ")
    assert KEY not in repr(found)
    assert simulator.counts()["calls"] == 0


def test_a_cost_budget_needs_a_price(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    tree = prompts.config(tables, simulator.base_url, budget={"cost_usd": 1})
    tree["endpoint"] |= {"model": "mine"}
    assert "budget.cost_usd: model mine has no price" in details(findings(spark, tree))["price"]
