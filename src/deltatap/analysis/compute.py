"""Computes metrics from captures by run, by hour and for pairs of modes, and writes them to Delta.

Decides which runs have changed since they were last analyzed, and replaces their rows in one commit per table, so that
a second analysis changes nothing. Uses no UDF, so it runs on serverless compute. ``metrics.py`` defines the metrics and
``sql.py`` builds the queries.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, Any

import numpy as np

from deltatap.analysis import tables as metrics_tables
from deltatap.analysis.bootstrap import interval
from deltatap.analysis.queries import captures_sql, require_table
from deltatap.analysis.sql import (
    HOUR,
    by_run_sql,
    in_runs,
    measured_sql,
    metrics_sql,
    pairs_sql,
    settings_json,
)
from deltatap.analysis.trend import changes_table
from deltatap.delta import tables
from deltatap.delta.columns import spark_schema
from deltatap.delta.reader import SparkReader, identify_captures
from deltatap.delta.reader import rows as rows_of
from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyspark.sql import DataFrame, SparkSession

    from deltatap.config import Settings
    from deltatap.delta.columns import Column
    from deltatap.delta.reader import Reader


def table_of(settings: Settings, name: str) -> str:
    """The location of a metrics table: in ``analysis.tables`` if set, else next to the captures table."""
    parent = settings.analysis.tables
    if parent is None:
        return tables.beside(settings.captures.table, name)
    return f"{parent.rstrip('/')}/{name}" if tables.is_path(parent) else f"{parent}.{name}"


def analyze(spark: SparkSession, settings: Settings, *, everything: bool = False) -> list[dict[str, Any]]:
    """Compute the metrics of new and changed runs.

    Args:
        spark: the session.
        settings: the names of the tables, and the analysis settings.
        everything: compute all runs again.

    Returns:
        The rows of ``metrics_by_run`` that were computed.

    Raises:
        ConfigError: there is no captures or runs table, or a metrics table lacks a column.
    """
    reader = SparkReader(spark)
    require_table(reader, "captures", settings.captures.table)
    require_table(reader, "runs", settings.runs.table)
    by_run = _ensured(spark, settings, "metrics_by_run", metrics_tables.METRICS_BY_RUN)
    by_hour = _ensured(spark, settings, "metrics_by_hour", metrics_tables.METRICS_BY_HOUR)
    stream_vs_complete = _ensured(spark, settings, "stream_vs_complete", metrics_tables.STREAM_VS_COMPLETE)
    changes = table_of(settings, "metrics_changes")
    is_new = not tables.exists(spark, changes)
    _ensured(spark, settings, "metrics_changes", metrics_tables.METRICS_CHANGES)
    changed = _changed_runs(spark, settings, by_run, everything=everything)
    if not changed:
        if is_new:
            _write_changes(spark, settings, by_run, changes)
        return []
    of_changed = in_runs(changed)
    with _view(spark.sql(measured_sql(settings, captures_sql(reader, settings, of_changed)))) as rows:
        pairs = spark.createDataFrame(paired_rows(reader, rows), spark_schema(metrics_tables.STREAM_VS_COMPLETE))
        _replace(pairs, stream_vs_complete, metrics_tables.STREAM_VS_COMPLETE, of_changed)
        found = spark.sql(f"SELECT DISTINCT hour FROM {rows} WHERE hour IS NOT NULL ORDER BY hour").collect()
        hours = [f"TIMESTAMP '{row['hour'].astimezone(UTC):%Y-%m-%d %H:%M:%S}Z'" for row in found]
        with _view(spark.sql(metrics_sql(rows, ("run_id",), settings))) as metrics:
            _replace(spark.sql(by_run_sql(metrics, settings)), by_run, metrics_tables.METRICS_BY_RUN, of_changed)
    if hours:
        # These hours may also hold rows of runs that have not changed. The bounds let Delta skip files of other days.
        in_hours = f"{HOUR} IN ({', '.join(hours)})"
        bounds = f"started_at >= {hours[0]} AND started_at < {hours[-1]} + INTERVAL 1 HOUR"
        of_hours = captures_sql(reader, settings, f"{bounds} AND {in_hours}")
        with _view(spark.sql(measured_sql(settings, of_hours))) as rows:
            metrics_by_hour = spark.sql(metrics_sql(rows, ("hour",), settings))
            _replace(metrics_by_hour, by_hour, metrics_tables.METRICS_BY_HOUR, f"hour IN ({', '.join(hours)})")
    _write_changes(spark, settings, by_run, changes)
    newest = f"SELECT * FROM {tables.quoted(by_run)} WHERE {of_changed}"
    return rows_of(reader.query(f"{newest} ORDER BY started_at, endpoint, request_model, mode DESC"))


def _ensured(spark: SparkSession, settings: Settings, name: str, columns: Sequence[Column]) -> str:
    table = table_of(settings, name)
    tables.ensure(spark, table, columns)
    if problems := tables.upgrade(spark, table, columns):
        raise ConfigError([f"analysis.tables: {table}: {problem}" for problem in problems])
    return table


def _changed_runs(spark: SparkSession, settings: Settings, by_run: str, *, everything: bool) -> list[str]:
    known = f"""
        SELECT run_id, max(heartbeat_at) AS seen, max(settings) AS with FROM {tables.quoted(by_run)} GROUP BY run_id
    """
    captures = identify_captures(SparkReader(spark), settings.captures.table, settings.runs.table)
    same = f"k.seen <=> r.heartbeat_at AND k.with <=> {tables.literal(settings_json(settings))}"
    rows = spark.sql(
        f"""
        SELECT r.run_id FROM {tables.quoted(settings.runs.table)} AS r LEFT JOIN ({known}) AS k USING (run_id)
        WHERE {captures.runs_sql("r")}
          AND NOT coalesce({"false" if everything else same}, false)
        ORDER BY r.started_at
        """
    ).collect()
    return [row["run_id"] for row in rows]


def by_run_rows(reader: Reader, settings: Settings, measured: str) -> list[dict[str, Any]]:
    """The rows of ``metrics_by_run`` for measured rows (a query in parentheses)."""
    return rows_of(reader.query(by_run_sql(f"({metrics_sql(measured, ('run_id',), settings)})", settings)))


def paired_rows(reader: Reader, measured: str) -> list[dict[str, Any]]:
    """The rows of ``stream_vs_complete`` for measured rows (a view, or a query in parentheses)."""
    groups = rows_of(reader.query(pairs_sql(measured)))
    for group in groups:
        for name in ("saved", "slower"):
            low, high = interval(0.5, np.array(group.pop(name)))
            group[f"{name}_ms"] = {"value": group[f"{name}_ms"], "low": low, "high": high}
    return groups


def _write_changes(spark: SparkSession, settings: Settings, by_run: str, table: str) -> None:
    """Replace the changes, because a new run can move or confirm any of them."""
    found = changes_table(SparkReader(spark), settings, by_run)
    _replace(
        spark.createDataFrame(found, spark_schema(metrics_tables.METRICS_CHANGES)),
        table,
        metrics_tables.METRICS_CHANGES,
        None,
    )


def _replace(frame: DataFrame, table: str, columns: Sequence[Column], where: str | None) -> None:
    """Replace the rows of the table that match the condition, or all rows, in one commit."""
    names = [column.name for column in columns]
    writer = frame.select(*names).write.format("delta").mode("overwrite")
    tables.save(writer if where is None else writer.option("replaceWhere", where), table)


@contextmanager
def _view(frame: DataFrame) -> Iterator[str]:
    name = f"deltatap_{uuid.uuid4().hex}"
    frame.createOrReplaceTempView(name)
    try:
        yield name
    finally:
        frame.sparkSession.catalog.dropTempView(name)
