"""Where a run captures: impossible places, the place that fits, and the finding of `deltatap check`."""

from __future__ import annotations

from typing import Any

import pytest

from deltatap.config import Capture
from deltatap.driver.check_where import verdict
from deltatap.driver.needs import where_need
from deltatap.driver.where import Compute, fit, impossible
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings
from deltatap.spark.serverless import is_serverless

LAPTOP = Compute(serverless=False, slots=8, here=True)
CLUSTER = Compute(serverless=False, slots=8, here=False)
SERVERLESS = Compute(serverless=True, slots=4, here=False)


@pytest.mark.parametrize(
    ("compute", "capture", "where", "must", "why"),
    [
        (SERVERLESS, {}, "driver", True, "UDFs on serverless compute have no network access"),
        (SERVERLESS, {"concurrency": 1000}, "driver", True, "UDFs on serverless compute have no network access"),
        (CLUSTER, {}, "workers", False, "they are on other machines, where planning and landing do not delay"),
        (CLUSTER, {"concurrency": 1000}, "workers", True, "1,000 streams need 4 processes"),
        (LAPTOP, {"concurrency": 257}, "workers", True, "257 streams need 2 processes"),
        (LAPTOP, {"concurrency": 256}, "driver", False, "one process on this machine can hold all 256 streams"),
        (Compute(serverless=False, slots=1, here=True), {}, "driver", False, "a UDF would take Spark's only task slot"),
    ],
)
def test_the_place_that_fits_a_run(compute: Compute, capture: dict[str, Any], where: str, must: bool, why: str) -> None:  # noqa: FBT001
    found = fit(Capture(**capture), compute)
    assert (found.where, found.must) == (where, must)
    assert why in found.why


@pytest.mark.parametrize(
    ("compute", "capture", "level", "text"),
    [
        (SERVERLESS, {}, "problem", "use --set capture.where=driver, or a classic cluster"),
        (SERVERLESS, {"where": "driver"}, "ok", "driver: UDFs on serverless compute have no network access"),
        (CLUSTER, {"where": "driver"}, "ok", "driver; workers may fit better: they are on other machines"),
        (CLUSTER, {"where": "driver", "concurrency": 300}, "warning", "driver; use workers: 300 streams need 2 proc"),
        (LAPTOP, {}, "ok", "workers; driver may fit better: one process on this machine can hold all 64 streams"),
        (LAPTOP, {"where": "driver"}, "ok", "driver: one process on this machine can hold all 64 streams"),
    ],
)
def test_the_finding_of_check(compute: Compute, capture: dict[str, Any], level: str, text: str) -> None:
    found = verdict(Capture(**capture), compute)
    assert found[0] == level
    assert text in found[1]


@pytest.mark.parametrize(
    ("variables", "serverless"),
    [
        ({}, False),
        ({"DATABRICKS_RUNTIME_VERSION": "18.2"}, False),
        ({"DATABRICKS_RUNTIME_VERSION": "client.4.9"}, True),
        ({"DATABRICKS_RUNTIME_VERSION": "18.2", "IS_SERVERLESS": "TRUE"}, True),
        ({"IS_SERVERLESS": "true"}, True),
        ({"IS_SERVERLESS": "false"}, False),
    ],
)
def test_a_run_in_workers_is_refused_on_serverless_compute(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    serverless: bool,  # noqa: FBT001
) -> None:
    for name in ("DATABRICKS_RUNTIME_VERSION", "IS_SERVERLESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_serverless() == serverless
    where_need(load_settings({"capture": {"where": "driver"}})).check()
    if serverless:
        with pytest.raises(ConfigError, match=r"capture\.where: workers: UDFs on serverless compute have no network"):
            where_need(load_settings({})).check()
    else:
        where_need(load_settings({})).check()
        assert impossible(Capture(), serverless=False) is None
