"""The queries of the bundle's alerts, on tables with known rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.analysis.tables import METRICS_BY_RUN
from deltatap.delta import columns
from tests.bundle import Resolver, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyspark.sql import SparkSession


@pytest.fixture
def value(spark: SparkSession) -> Iterator[Callable[[str, list[dict[str, Any]]], float]]:
    """The value that an alert compares with its threshold, for these rows of its table."""
    alerts = Resolver(read(), "prod").resources()["alerts"]
    declared = {"runs": columns.RUNS, "metrics_by_run": METRICS_BY_RUN}

    def compute(alert: str, rows: list[dict[str, Any]]) -> float:
        table = "runs" if alert == "failed_run" else "metrics_by_run"
        schema = columns.spark_schema(declared[table])
        given = [tuple(row.get(name) for name in schema.names) for row in rows]
        spark.createDataFrame(given, schema).createOrReplaceTempView(table)
        source = alerts[alert]["evaluation"]["source"]["name"]
        (row,) = spark.sql(alerts[alert]["query_text"].replace("main.deltatap.", "")).collect()
        return float(row[source])

    yield compute
    for name in declared:
        spark.catalog.dropTempView(name)


def run(status: str, age: timedelta) -> dict[str, Any]:
    return {"status": status, "heartbeat_at": datetime.now(UTC) - age}


@pytest.mark.slow
def test_failed_and_silent_runs_are_counted(value: Callable[[str, list[dict[str, Any]]], float]) -> None:
    minute, hours, days = timedelta(minutes=1), timedelta(hours=2), timedelta(days=2)
    fine = [run("completed", minute), run("running", minute), run("stopped", hours), run("failed", days)]
    assert value("failed_run", fine) == 0
    assert value("failed_run", [*fine, run("failed", hours), run("died", hours), run("running", hours)]) == 3


def test_the_error_rate_is_that_of_the_worst_run_of_the_last_day(
    value: Callable[[str, list[dict[str, Any]]], float],
) -> None:
    def measured(rows: int, failed: int, hours: int) -> dict[str, Any]:
        return {"rows": rows, "failed": failed, "started_at": datetime.now(UTC) - timedelta(hours=hours)}

    assert value("error_rate", []) == 0
    assert value("error_rate", [measured(0, 0, 1), measured(10, 1, 2), measured(100, 2, 3), measured(1, 1, 48)]) == 0.1


def test_the_slowdown_compares_the_newest_run_with_the_ones_before(
    value: Callable[[str, list[dict[str, Any]]], float],
) -> None:
    def measured(model: str, hours: int, low: float | None, p95: float, mode: str = "stream") -> dict[str, Any]:
        ttft = (100, p95, None, None, (p95, low, None), None)
        started = datetime.now(UTC) - timedelta(hours=hours)
        return {"endpoint": "e", "request_model": model, "mode": mode, "started_at": started, "ttft_ms": ttft}

    earlier = [measured("m", at, 90.0, 100.0) for at in range(2, 8)]
    assert value("ttft", []) == 0
    assert value("ttft", earlier) == 0.9
    assert value("ttft", [*earlier, measured("m", 1, 150.0, 170.0)]) == 1.5
    # Too few rows for an interval, another mode, and a model with only two earlier runs.
    others = [measured("m", 1, None, 900.0), measured("m", 1, 900.0, 900.0, "complete")]
    others += [measured("n", 1, 900.0, 950.0), measured("n", 2, 90.0, 100.0), measured("n", 3, 90.0, 100.0)]
    assert value("ttft", [*earlier, *others]) == 0.9
