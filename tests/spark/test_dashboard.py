"""Runs the queries of the dashboard over analysis tables."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.analysis.compute import analyze, table_of
from deltatap.analysis.tables import METRICS_CHANGES
from deltatap.delta import columns
from tests.captured import AT, capture_row, empty_tables, write_captures, write_runs
from tests.dashboard import widgets
from tests.unit.test_dashboard import FILE, METRICS_TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession


def widget_query(query: dict[str, Any], dataset: str) -> str:
    """The query of a widget as the dashboard sends it: its fields, grouped by those that are not aggregates."""
    fields = ", ".join(f"{field['expression']} AS `{field['name']}`" for field in query["fields"])
    if query["disaggregated"]:
        return f"SELECT {fields} FROM ({dataset})"
    group_by = [
        field["expression"] for field in query["fields"] if not field["expression"].startswith(("SUM(", "MEDIAN("))
    ]
    return f"SELECT {fields} FROM ({dataset})" + (f" GROUP BY {', '.join(group_by)}" if group_by else "")


@pytest.mark.slow
def test_every_widget_query_returns_rows(spark: SparkSession, tables: Path) -> None:
    settings = empty_tables(spark, tables)
    whole = {"mode": "complete", "chunks": None, "ttft_ms": None, "tpot_ms": None}
    failed = {"status": "failed", "error": ("rate_limit", None, 429, None, False, None), "finish_reason": None}
    later = {"started_at": AT + timedelta(hours=1), "finished_at": AT + timedelta(hours=1, seconds=1)}
    write_captures(
        spark, settings, capture_row("one", "a"), capture_row("one", "a", **whole), capture_row("one", "b", **failed),
        capture_row("two", "a", **later), capture_row("two", "a", **whole, **later),
    )  # fmt: skip
    write_runs(spark, settings, "one", "two")
    analyze(spark, settings)
    # Two runs have no change.
    change = ("e", "m", "stream", "ttft_ms", "p50", "two", later["started_at"], 12, 3, 100.0, 110.0, (10.0, 8.0, 12.0), 0.001,
              [("deltatap version", "1", "2"), ("request.top_p", "none", "1")])  # fmt: skip
    changes = spark.createDataFrame([change], columns.spark_schema(METRICS_CHANGES))
    changes.write.format("delta").mode("append").save(table_of(settings, "metrics_changes"))
    for name in METRICS_TABLES:
        spark.read.format("delta").load(table_of(settings, name)).createOrReplaceTempView(name)
    spark.read.format("delta").load(settings.runs.table).createOrReplaceTempView("runs")

    dashboard = json.loads(FILE.read_text(encoding="utf-8"))
    datasets = {dataset["name"]: "".join(dataset["queryLines"]) for dataset in dashboard["datasets"]}
    rows = {
        (widget["name"], query["name"]): spark.sql(
            widget_query(query["query"], datasets[query["query"]["datasetName"]])
        )
        for _, widget in widgets(dashboard)
        for query in widget["queries"]
    }
    found = {name: frame.collect() for name, frame in rows.items()}
    assert all(found.values()), [name for name, rows in found.items() if not rows]

    def column(widget: str) -> list[Any]:
        return [tuple(row) for row in found[widget, "main_query"]]

    day, hour = AT.replace(hour=0, minute=0), AT.replace(minute=0)
    assert column("rows") == [(5, day.replace(tzinfo=None))]
    assert column("completed-share") == [(0.8, day.replace(tzinfo=None))]
    assert [row[1:] for row in sorted(column("ttft-p50-by-hour"), key=str) if row[1]] == [(100.0, "m @ e")] * 2
    assert sorted(row[1:] for row in column("outcomes-by-hour")) == [(1, "failed"), (2, "completed"), (2, "completed")]
    assert column("errors-by-hour") == [(hour.replace(tzinfo=None), 1, "rate_limit")]
    assert column("saved-by-length") == [("1-16", 120.0, "m")]
    assert len(found["runs-table", "main_query"]) == 2
    (changed,) = found["changes-table", "main_query"]
    assert (changed["measure"], changed["share"]) == ("ttft_ms p50", pytest.approx(0.1))
    assert changed["changed_with_it"] == "deltatap version 1 → 2, request.top_p none → 1"
    for name in ("runs", *METRICS_TABLES):
        spark.catalog.dropTempView(name)
