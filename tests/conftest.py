"""What all tests share: one Spark session, started by the first test that asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deltatap.spark.session import local_session
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    warehouse = tmp_path_factory.mktemp("warehouse")
    session = local_session("local[2]", app_name="tests", conf={"spark.sql.warehouse.dir": str(warehouse)})
    yield session
    session.stop()


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """The folder for a test's Delta tables, which it names by path."""
    folder = tmp_path / "tables"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def simulation(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    """The module's simulator; without waits, unless the module has options of its own in SIMULATOR."""
    with start_simulator(*getattr(request.module, "SIMULATOR", ("--speed", "0", "--tokens", "20"))) as running:
        yield running


@pytest.fixture
def simulator(simulation: Simulation) -> Simulation:
    """The module's simulator, with all calls forgotten."""
    simulation.reset()
    return simulation
