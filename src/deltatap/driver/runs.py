"""The ``runs`` table: one row per run, with its status, its counts and its configuration.

Knows how to read and update these rows, and how to compute a run's totals from ``captures``. Leaves the lease, which is
part of the same rows, to ``lease.py``.
"""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from deltatap.delta import columns, tables
from deltatap.delta.reader import rows
from deltatap.delta.readers import reader_beside
from deltatap.delta.sums import total_sql, wide
from deltatap.model import RunStatus
from deltatap.prices import exact_usd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from deltatap.delta.identity import Identity

NAMES = tuple(column.name for column in columns.RUNS)
_COUNTED = ("completed", "interrupted", "failed")
_SCHEMA = columns.arrow_schema(columns.RUNS)
# The prices that a run's row holds: usually one for each model and service tier.
_PRICES = 1000


def read(spark: SparkSession, settings: Settings, captures: Identity) -> list[dict[str, Any]]:
    """The runs on a captures table; times are in UTC."""
    table = tables.quoted(settings.runs.table)
    found = reader_beside(spark).query(
        f"SELECT {', '.join(f'r.{name}' for name in NAMES)} FROM {table} AS r WHERE {captures.runs_sql('r')}"
    )
    return [_in_utc(row) for row in rows(found)]


def update(
    spark: SparkSession,
    settings: Settings,
    captures: Identity,
    run_id: str,
    values: Mapping[str, object],
    only_if: str,
) -> None:
    """Set columns of a run's row if a condition on it holds."""
    assignments = ", ".join(f"{name} = {_value_sql(value)}" for name, value in values.items())
    ours = f"t.run_id = {tables.literal(run_id)} AND {captures.runs_sql('t')}"
    # Runs on other captures tables also write to this table, and its isolation level is Serializable.
    tables.commit(
        spark, f"UPDATE {tables.quoted(settings.runs.table)} AS t SET {assignments} WHERE {ours} AND t.{only_if}"
    )


def closing(status: RunStatus, reason: str | None) -> dict[str, object]:
    """The columns that close a run."""
    return {"status": status, "reason": reason, "finished_at": utc_now(), "heartbeat_at": utc_now()}


def settle(
    spark: SparkSession, settings: Settings, captures: Identity, run_id: str, values: Mapping[str, object]
) -> None:
    """Correct the counts of a run whose journal landed after its end. A run that is still open is closed as died.

    The heartbeat tells the analysis that the run has changed.
    """
    died = closing(RunStatus.DIED, "its driver died")
    update(spark, settings, captures, run_id, died, f"status = '{RunStatus.RUNNING}'")
    corrected = {**values, "heartbeat_at": utc_now()}
    update(spark, settings, captures, run_id, corrected, f"status != '{RunStatus.RUNNING}'")


def totals(spark: SparkSession, settings: Settings, run_id: str) -> dict[str, Any]:
    """A run's counts, tokens and cost, and its prices: the sums over its rows in ``captures``, with retries."""
    calls = "size(retries) + IF(started_at IS NULL, 0, 1)"
    inputs, outputs = (
        f"{wide(f'coalesce({used_sql(name)}, 0)')} + {_earlier_sql(name)}" for name in ("input_tokens", "output_tokens")
    )
    counts = ", ".join(f"count(IF(status = '{name}', 1, NULL)) AS {name}" for name in _COUNTED)
    found = reader_beside(spark).query(
        f"""
        SELECT {counts}, coalesce(sum({calls}), 0) AS requests,
          coalesce({total_sql(inputs)}, 0) AS input_tokens, coalesce({total_sql(outputs)}, 0) AS output_tokens,
          CAST(sum({exact_usd("cost_usd")}) AS DOUBLE) AS cost_usd
        FROM {tables.quoted(settings.captures.table)} WHERE run_id = {tables.literal(run_id)}
        """
    )
    return {**rows(found)[0], "prices": _prices(spark, settings, run_id)}


def _prices(spark: SparkSession, settings: Settings, run_id: str) -> str | None:
    """The prices that a run's costs are based on, as JSON."""
    found = reader_beside(spark).query(
        f"""
        SELECT DISTINCT request_model, price FROM {tables.quoted(settings.captures.table)}
        WHERE run_id = {tables.literal(run_id)} AND price IS NOT NULL
        ORDER BY request_model, price LIMIT {_PRICES}
        """
    )
    listed = [{"request_model": row["request_model"], **json.loads(row["price"])} for row in rows(found)]
    return json.dumps(listed, ensure_ascii=False) if listed else None


def used_sql(name: str) -> str:
    """SQL for the tokens that a row's last call used: as reported, else as counted by tiktoken.

    If a call broke off, or the server reports no output, the output is at least what arrived. Costs use the same rule.
    """
    counted = f"IF(cost_basis IS NOT NULL, usage_tiktoken.{name}, NULL)"
    if name != "output_tokens":
        # No request has an input of zero tokens. Without a basis, nothing was used.
        return f"coalesce(nullif(usage_reported.{name}, 0), {counted})"
    exact = "cost_basis = 'reported' OR (status = 'completed' AND usage_reported.output_tokens > 0)"
    return f"IF({exact}, usage_reported.{name}, greatest(usage_reported.{name}, {counted}))"


def _earlier_sql(name: str) -> str:
    added = wide(f"sum + coalesce(call.{name}, 0)")
    return f"aggregate(retries, {wide('0')}, (sum, call) -> {added})"


def has_output(spark: SparkSession, settings: Settings, run_id: str) -> bool:
    """Whether an answer to a call of the run has landed, complete or not. A reused answer has no call."""
    ours = f"run_id = {tables.literal(run_id)} AND status != 'failed' AND started_at IS NOT NULL"
    found = reader_beside(spark).query(
        f"SELECT run_id FROM {tables.quoted(settings.captures.table)} WHERE {ours} LIMIT 1"
    )
    return bool(found.num_rows)


@contextmanager
def row_view(spark: SparkSession, values: Mapping[str, object]) -> Iterator[str]:
    """A temporary view of one ``runs`` row; columns without a value are null."""
    view = f"deltatap_{uuid.uuid4().hex}"
    row = {name: list(value.items()) if isinstance(value, dict) else value for name, value in values.items()}
    # From Arrow, because for Python rows Spark would build an RDD and start a Python worker.
    spark.createDataFrame(pa.Table.from_pylist([row], _SCHEMA)).createOrReplaceTempView(view)
    try:
        yield view
    finally:
        spark.catalog.dropTempView(view)


def utc_now() -> datetime:
    """The current time, with UTC as its time zone."""
    return datetime.now(UTC)


def _in_utc(row: dict[str, Any]) -> dict[str, Any]:
    """The row with times in UTC. Spark returns times in the session's time zone."""
    return {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in row.items()}


def _value_sql(value: object) -> str:
    """A value in SQL. Delta's UPDATE takes no parameters."""
    if value is None:
        return "NULL"
    if isinstance(value, datetime):
        return f"TIMESTAMP '{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}Z'"
    if isinstance(value, float):
        return f"CAST('{value!r}' AS DOUBLE)"
    return str(value) if isinstance(value, int) else tables.literal(str(value))
