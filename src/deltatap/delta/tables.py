"""Delta tables: naming them in SQL, creating them, committing to them, and comparing their schema with ours.

Leaves the columns to ``columns.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltatap.delta.columns import ddl, spark_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

    from deltatap.delta.columns import Column


_TRIES = 10
_MISSING = ("DELTA_TABLE_NOT_FOUND", "DELTA_MISSING_DELTA_TABLE", "DELTA_PATH_DOES_NOT_EXIST", "[PATH_NOT_FOUND]")


def quoted(table: str) -> str:
    """A table as SQL names it: a catalog name in backticks, a path as ``delta.`path` ``."""
    if is_path(table):
        return f"delta.`{table}`"
    return ".".join(f"`{part}`" for part in table.split("."))


def is_path(table: str) -> bool:
    """Whether the configured table is a path: it has a ``/``."""
    return "/" in table


def exists(spark: SparkSession, table: str) -> bool:
    """Whether the Delta table is there."""
    if not is_path(table):
        return bool(spark.catalog.tableExists(table))
    try:
        # Its schema alone: `DESCRIBE DETAIL` counts files, which takes a Spark job.
        _ = spark.table(quoted(table)).schema
    except Exception as error:
        if any(name in str(error) for name in _MISSING):
            return False
        raise
    return True


def ensure(
    spark: SparkSession, table: str, columns: Sequence[Column], properties: str = "", cluster_by: Sequence[str] = ()
) -> bool:
    """Create the table unless it is there, however its owner made it; a concurrent creator is no error.

    Returns:
        Whether it was not there.
    """
    if exists(spark, table):
        return False
    spark.sql(
        f"CREATE TABLE IF NOT EXISTS {quoted(table)} (\n  {ddl(columns)}\n) USING DELTA"
        + (f" CLUSTER BY ({', '.join(cluster_by)})" if cluster_by else "")
        + (f" TBLPROPERTIES ({properties})" if properties else "")
    )
    return True


def commit(spark: SparkSession, sql: str) -> None:
    """Commit a statement. Another commit that came first is no failure: its writer is done, and ours may go on."""
    for left in reversed(range(_TRIES)):
        try:
            spark.sql(sql)
        except Exception as error:
            if not (left and came_second(error)):
                raise
        else:
            return


def came_second(error: Exception) -> bool:
    """Whether a commit failed because another, that touched what this one read, came first."""
    return "CONCURRENT" in f"{type(error).__name__}: {error}".upper()


def differences(found: StructType, columns: Sequence[Column]) -> list[str]:
    """How an existing table's schema differs from ours; further columns of the user's are none of our business."""
    theirs = {field.name: field.dataType for field in found.fields}
    problems = []
    for field in spark_schema(columns).fields:
        if field.name not in theirs:
            added = f"{field.name} {field.dataType.simpleString()}"
            problems.append(f"column {field.name} is missing; ALTER TABLE … ADD COLUMN {added}")
        elif theirs[field.name].simpleString() != field.dataType.simpleString():
            problems.append(
                f"column {field.name}: expected {field.dataType.simpleString()}, "
                f"found {theirs[field.name].simpleString()}"
            )
    return problems
