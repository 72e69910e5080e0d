"""Identical requests (``capture.reuse``): which of the owed ones are called, and the rows that reuse earlier answers.

Requests are identical if they have the same body, endpoint, API and mode. If an earlier row already has the answer to a
request, the request is not called and gets a row with that answer. A plan keeps the remaining identical requests
together, and the worker calls them one at a time until one completes (``worker/jobs.py``).
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from pyspark.sql import Window
from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

from deltatap.delta import columns, older, tables
from deltatap.driver.merge import merge_sql
from deltatap.driver.owed import EARLIER_USD
from deltatap.rates import PARTS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from deltatap.config import Settings

_KEY = ("request_hash", "mode")
# The answer itself costs nothing.
_FREE = ", ".join(f"'{part}', 0" for part in PARTS)
_COST = f"named_struct({_FREE}, 'retries', {EARLIER_USD})"


def answers(spark: SparkSession, settings: Settings) -> DataFrame | None:
    """The newest completed row for each request_hash and mode of the endpoint, as a struct; None without a table."""
    if not tables.exists(spark, settings.captures.table):
        return None
    rows = older.frame(spark, settings.captures.table, columns.CAPTURES)
    endpoint = settings.endpoint
    completed = rows.where(
        (F.col("endpoint") == endpoint.label) & (F.col("api") == endpoint.api) & (F.col("status") == "completed")
    )
    origin = F.coalesce("reused_from", F.struct("run_id", "request_id")).alias("origin")
    taken = F.struct(*columns.ANSWER, "cost_usd", origin)
    return completed.groupBy(*_KEY).agg(
        F.max_by(taken, F.coalesce("finished_at", F.timestamp_seconds(F.lit(0)))).alias("answer")
    )


def without_answers(found: DataFrame, earlier: DataFrame | None) -> DataFrame:
    """The owed requests that no earlier row answers."""
    return found if earlier is None else found.join(earlier, list(_KEY), "left_anti")


def is_called(found: DataFrame, earlier: DataFrame | None) -> DataFrame:
    """The owed requests with ``called``: whether a run without failures would call them."""
    answered = F.lit(False)
    if earlier is not None:
        found = found.join(earlier.select(*_KEY, F.lit(True).alias("answered")), list(_KEY), "left")
        answered = F.coalesce("answered", F.lit(False))
    first = F.row_number().over(Window.partitionBy(*_KEY).orderBy("request_id")) == 1
    return found.withColumn("called", F.col("body").isNull() | (first & ~answered)).drop("answered")


def take_over(spark: SparkSession, settings: Settings, run_id: str, found: DataFrame, earlier: DataFrame) -> int:
    """Write a row for each owed request that an earlier row answers.

    Returns:
        The number of rows.
    """
    retries = columns.spark_schema(columns.OWED)["retries"].dataType
    owed = found.where("body IS NOT NULL").join(earlier, list(_KEY))
    owed = owed.withColumn("retries", F.coalesce("retries", F.array().cast(retries)))
    values = {
        **{name: F.col(f"answer.{name}") for name in columns.ANSWER},
        **{name: F.col(name) for name in ("request_id", "request_hash", "source_hash", "mode", "keep")},
        "run_id": F.lit(run_id),
        "status": F.lit("completed"),
        "retries": F.col("retries"),
        "chunks": F.array(),
        # An answer has no cost if its model has no price.
        "cost_usd": F.expr(f"IF(answer.cost_usd IS NULL, NULL, CAST({EARLIER_USD} AS DOUBLE))"),
        "cost": F.expr(f"IF(answer.cost_usd IS NULL, NULL, {_COST})"),
        "endpoint": F.lit(settings.endpoint.label),
        "api": F.lit(settings.endpoint.api),
        "request_model": F.col("model"),
        "reused_from": F.col("answer.origin"),
    }
    fields = columns.spark_schema(columns.CAPTURES).fields
    rows = owed.select(*(values.get(each.name, F.lit(None)).cast(each.dataType).alias(each.name) for each in fields))
    view = f"deltatap_{uuid.uuid4().hex}"
    rows.createOrReplaceTempView(view)
    try:
        sql = merge_sql(settings.captures.table, view, run_id, keep_interrupted=settings.capture.keep_interrupted)
        done = tables.commit(spark, sql).collect()[0]
    finally:
        spark.catalog.dropTempView(view)
    return int(done["num_affected_rows"])
