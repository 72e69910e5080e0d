"""Which reader to use: :class:`~deltatap.delta.local.LocalReader` without a JVM, or Spark."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from deltatap.delta.reader import SparkReader

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from deltatap.delta.reader import Reader


def without_jvm() -> bool:
    """Whether local tables can be used without a JVM: not on Databricks, and with the extra ``local``."""
    return "DATABRICKS_RUNTIME_VERSION" not in os.environ and all(map(find_spec, ("deltalake", "duckdb", "sqlglot")))


def reader_beside(spark: SparkSession) -> Reader:
    """A reader for a process that commits through Spark. It reads what was committed before it was created.

    On a cold JVM, each small query takes a second of CPU time. So if Spark runs on this machine, local tables are read
    without it.
    """
    if without_jvm() and (spark.conf.get("spark.master", None) or "").startswith("local"):
        from deltatap.delta.local import LocalReader  # noqa: PLC0415 - of the extra local

        return LocalReader(lambda: spark, whole_tables=False)
    return SparkReader(spark)
