"""What ``deltatap check`` finds, on a real session and against the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.config import load_settings
from deltatap.driver.check import Finding, check
from tests import prompts
from tests.simulation import KEY, KEY_VARIABLE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

EVERYTHING = [
    "key, driver", "vocabularies, driver", "state folder, driver", "network, driver", "price", "runtime", "prompts",
    "captures", "runs", "key, workers", "vocabularies, workers", "state folder, workers", "network, workers",
    "shared state folder, workers", "models",
]  # fmt: skip


PRICES = str(Path(__file__).parents[2] / "conf/prices.yml")


def findings(spark: SparkSession, tree: dict[str, Any]) -> dict[str, Finding]:
    return {finding.what: finding for finding in check(load_settings(tree | {"prices": PRICES}), lambda: spark)}


def wrong(found: dict[str, Finding], level: str = "problem") -> dict[str, str]:
    return {finding.what: finding.detail for finding in found.values() if finding.level == level}


def test_all_is_well_and_nothing_is_called(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    prompts.write(spark, tables / "prompts", [("a", "Say it.", None)])
    found = findings(spark, prompts.config(tables, simulator.base_url))
    assert list(found) == EVERYTHING
    assert not wrong(found)
    assert not wrong(found, "warning")
    assert "including gpt-4o-mini" in found["models"].detail
    assert simulator.counts()["calls"] == 0
    assert [path.name for path in (tables / "state").iterdir()] == [], "nothing is left behind"


def test_everything_that_is_wrong_is_found(spark: SparkSession, tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other: neither a missing key nor a missing table hides the rest."""
    tree = prompts.config(tables, "http://127.0.0.1:9/v1")
    tree["endpoint"] |= {"api_key": {"env": "NOT_THERE"}, "model": "mine"}
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "client.4.9")
    found = findings(spark, tree)
    told = wrong(found)
    assert "NOT_THERE is not set" in told["key, driver"]
    assert "NOT_THERE is not set" in told["key, workers"]
    assert "cannot reach 127.0.0.1 port 9" in told["network, driver"]
    assert "cannot reach 127.0.0.1 port 9" in told["network, workers"]
    assert "the Delta table does not exist" in told["prompts"]
    assert "tables" not in told, "once is enough"
    assert found["captures"].level == found["runs"].level == "ok"
    assert "serverless compute" in told["runtime"]
    assert wrong(found, "warning") == {
        "price": "model mine has no price: cost_usd will be null",
        "models": "not checked: the endpoint cannot be reached",
    }


def test_a_key_that_is_refused_and_a_model_that_is_not_listed(
    spark: SparkSession, tables: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts.write(spark, tables / "prompts", [("a", "Say it.", None)])
    simulator.change(api_key_env=KEY_VARIABLE)
    monkeypatch.setenv("CHECKED_KEY", KEY)
    tree = prompts.config(tables, simulator.base_url)
    tree["endpoint"] |= {"api_key": {"env": "CHECKED_KEY"}, "model": "gpt-unheard-of"}
    found = findings(spark, tree)
    assert "but not gpt-unheard-of" in wrong(found, "warning")["models"]
    monkeypatch.setenv("CHECKED_KEY", KEY + "0")
    found = findings(spark, tree)
    assert wrong(found)["models"].startswith("the endpoint does not list its models (authentication): ")
    assert KEY not in repr(found)
    assert simulator.counts()["calls"] == 0


@pytest.mark.parametrize(
    ("changes", "said"), [({"budget": {"cost_usd": 1}}, "budget.cost_usd: model mine has no price")]
)
def test_a_budget_needs_a_price(
    spark: SparkSession, tables: Path, simulator: Simulation, changes: dict[str, Any], said: str
) -> None:
    tree = prompts.config(tables, simulator.base_url) | changes
    tree["endpoint"] |= {"model": "mine"}
    assert said in wrong(findings(spark, tree))["price"]
