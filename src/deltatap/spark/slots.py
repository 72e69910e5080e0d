"""The number of tasks that Spark can run at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def slots(spark: SparkSession) -> int:
    """How many tasks can run at once: the number of partitions of a range. Needs no SparkContext."""
    cut = spark.range(1 << 12).select(F.spark_partition_id())
    return len({partition for (partition,) in cut.collect()})
