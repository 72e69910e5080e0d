"""Fixtures for all tests: one Spark session and one simulator per process, each started on first use."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from deltatap.spark.session import local_session
from tests.simulation import start_simulator
from tests.spark_defaults import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

# The tests' tables are small. Compiling a query to Java takes longer than interpreting it.
QUICK_QUERIES = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.shuffle.partitions": "1",
}


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keep the garbage collections of the tests, and of each engine, from going through thousands of collected tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def quick_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same options for the Spark of jobs in processes of their own, as defaults."""
    folder = tmp_path_factory.mktemp("spark-conf")
    options = {key: value for key, value in QUICK_QUERIES.items() if "shuffle" not in key}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder, options).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def on_path() -> Iterator[None]:
    """Messages name the program as in an environment that is activated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    warehouse = tmp_path_factory.mktemp("warehouse")
    conf = {"spark.sql.warehouse.dir": str(warehouse), **QUICK_QUERIES}
    session = local_session("local[2]", app_name="tests", conf=conf)
    yield session
    session.stop()


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """The folder for a test's Delta tables. Tests address them by path."""
    folder = tmp_path / "tables"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def empty_captures(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty captures table. Copying it is faster than creating one."""
    table = tmp_path_factory.mktemp("empty") / "captures"
    delta_tables.ensure(spark, str(table), columns.CAPTURES)
    return table


@pytest.fixture(scope="session")
def simulation() -> Iterator[Simulation]:
    """The simulator that all tests of this process share."""
    with start_simulator() as running:
        yield running


@pytest.fixture
def simulator(simulation: Simulation, request: pytest.FixtureRequest) -> Simulation:
    """The shared simulator with default settings and without waits, unless the module sets PACE."""
    simulation.restore(**getattr(request.module, "PACE", {}))
    return simulation


@pytest.fixture(autouse=True)
def _no_wait_for_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' disk shows every file at once. The tests of the waits set them."""
    monkeypatch.setattr("deltatap.driver.leftovers._WAIT_S", 0.0)
    monkeypatch.setattr("deltatap.driver.loop._WAIT_S", 0.0)
