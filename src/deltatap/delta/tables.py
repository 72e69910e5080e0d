"""Delta tables: their names in SQL, how to create them and commit to them, and how a schema differs from ours.

Leaves the columns to ``columns.py``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from deltatap.delta.columns import ddl, spark_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyspark.sql import DataFrame, DataFrameWriter, SparkSession
    from pyspark.sql.types import DataType, StructType

    from deltatap.delta.columns import Column

    T = TypeVar("T")

_TRIES = 10
_SESSION_CATALOG = "spark_catalog"
# Delta's error classes and exceptions. A table's name can contain "concurrent", too.
_CONFLICT = re.compile(r"\bDELTA_(?:(?:\w+_)?CONCURRENT_|(?:METADATA|PROTOCOL)_CHANGED)|\bConcurrent\w*Exception\b")
_MISSING = ("DELTA_TABLE_NOT_FOUND", "DELTA_MISSING_DELTA_TABLE", "DELTA_PATH_DOES_NOT_EXIST", "[PATH_NOT_FOUND]")


def quoted(table: str) -> str:
    """A table's name in SQL: a catalog name in backticks, a path as ``delta.`path` ``."""
    return f"delta.{backticked(table)}" if is_path(table) else ".".join(map(backticked, names(table)))


def backticked(name: str) -> str:
    """A name in SQL that may hold any characters."""
    return f"`{name.replace('`', '``')}`"


def literal(text: str) -> str:
    """A string literal in SQL.

    A quote, a backslash and ``${…}`` mean different things to Spark's parser under different settings of the session.
    Text with such characters is written as bytes.
    """
    return f"CAST(X'{text.encode().hex()}' AS STRING)" if re.search(r"['\\$]", text) else f"'{text}'"


def is_path(table: str) -> bool:
    """Whether a configured table is a path or a URI: whether it contains ``/``."""
    return "/" in table and not table.startswith("`")


def names(table: str) -> list[str]:
    """The parts of a catalog name, such as ``main.llm.captures``. A part in backticks can contain dots."""
    return [
        part[1:-1].replace("``", "`") if part.startswith("`") else part
        for part in re.findall(r"`(?:[^`]|``)*`|[^.]+", table)
    ]


def beside(table: str, name: str) -> str:
    """The table of this name in the folder or the schema of another table."""
    if is_path(table):
        folder = table.rstrip("/").rpartition("/")[0]
        return f"{folder}/{name}"
    parts = [*names(table)[:-1], name]
    return ".".join(backticked(part) if "." in part or "`" in part else part for part in parts)


def exists(spark: SparkSession, table: str) -> bool:
    """Whether a table exists: any table or view if it is a catalog name, a Delta table if it is a path."""
    if not is_path(table):
        return bool(spark.catalog.tableExists(quoted(table)))
    try:
        # Reading the schema needs no Spark job; `DESCRIBE DETAIL` does, because it counts files.
        _ = spark.table(quoted(table)).schema
    except Exception as error:
        if any(name in str(error) for name in _MISSING):
            return False
        raise
    return True


def why_not_creatable(spark: SparkSession, table: str) -> str | None:
    """Why Spark's own catalog refuses the name of a new table; None if it does not.

    Spark itself refuses it only after writing files.

    Source: ``SessionCatalog.validateName`` in Spark.
    """
    parts = names(table)
    if is_path(table) or (len(parts) > 2 and parts[0].lower() != _SESSION_CATALOG):  # noqa: PLR2004 - with a catalog
        return None
    own = len(parts) > 2 or spark.catalog.currentCatalog() == _SESSION_CATALOG  # noqa: PLR2004
    if not own or all(re.fullmatch(r"\w+", part, re.ASCII) for part in parts):
        return None
    return f"a name in Spark's catalog has ASCII letters, digits and _ only; for a folder, write ./{parts[-1]}"


def is_view(spark: SparkSession, table: str) -> bool:
    """Whether a catalog name is a view, temporary or not."""
    if is_path(table) or not spark.catalog.tableExists(quoted(table)):
        return False
    found = spark.catalog.getTable(quoted(table))
    return found.isTemporary or "VIEW" in (found.tableType or "").upper()


def ensure(
    spark: SparkSession, table: str, columns: Sequence[Column], properties: str = "", cluster_by: Sequence[str] = ()
) -> None:
    """Create a table unless it exists. An existing table keeps its properties, and concurrent creators do not fail."""
    if exists(spark, table):
        return
    try:
        spark.sql(
            f"CREATE TABLE IF NOT EXISTS {quoted(table)} (\n  {ddl(columns)}\n) USING DELTA"
            + (f" CLUSTER BY ({', '.join(cluster_by)})" if cluster_by else "")
            + (f" TBLPROPERTIES ({properties})" if properties else "")
        )
    except Exception:
        # The statement also fails if another driver creates the table at the same time.
        if not exists(spark, table):
            raise


def commit(spark: SparkSession, sql: str) -> DataFrame:
    """Run a statement that commits, and repeat it after a conflict with another writer. Returns its result."""
    return repeated(lambda: spark.sql(sql))


def repeated(action: Callable[[], T]) -> T:
    """Do what commits, and repeat it after a conflict with another writer. Returns its result."""
    for _ in range(_TRIES - 1):
        try:
            return action()
        except Exception as error:
            if not is_conflict(error):
                raise
    return action()


def is_conflict(error: Exception) -> bool:
    """Whether a commit failed because another writer first committed a change to data that this commit had read."""
    return _CONFLICT.search(f"{type(error).__name__}: {error}") is not None


def upgrade(spark: SparkSession, table: str, columns: Sequence[Column]) -> list[str]:
    """Add the columns and fields that a table of an older version lacks. Other differences are only reported."""
    found = spark.table(quoted(table)).schema
    new = [column for column in columns if column.added and column.name not in found.names]
    types = {field.name: field.dataType for field in found}
    ours = {field.name: field.dataType for field in spark_schema(columns)}
    lacking = [column for column in columns if column.name in types and _lacks(types[column.name], ours[column.name])]
    problems = differences(found, [column for column in columns if column not in (*new, *lacking)])
    if new and not problems:
        commit(spark, f"ALTER TABLE {quoted(table)} ADD COLUMNS ({ddl(new)})")
    if lacking and not problems:
        _add_fields(spark, table, lacking)
    return problems


def _lacks(found: DataType, ours: DataType) -> bool:
    """The same as :func:`~deltatap.delta.columns.lacks`, for Spark's types."""
    from pyspark.sql.types import ArrayType, StructType  # noqa: PLC0415 - workers import this module without Spark

    if isinstance(found, ArrayType) and isinstance(ours, ArrayType):
        return _lacks(found.elementType, ours.elementType)
    if not (isinstance(found, StructType) and isinstance(ours, StructType)):
        return False
    types = {field.name: field.dataType for field in found}
    return any(field.name not in types or _lacks(types[field.name], field.dataType) for field in ours)


def _add_fields(spark: SparkSession, table: str, columns: Sequence[Column]) -> None:
    """Add the fields that structs in these columns lack.

    Databricks' ALTER TABLE adds no field to a struct in an array, so this is a write without rows.
    """
    writer = spark.createDataFrame([], spark_schema(columns)).write.format("delta").mode("append")
    repeated(lambda: save(writer.option("mergeSchema", "true"), table))


def save(writer: DataFrameWriter, table: str) -> None:
    """Write to a table that is given by its name or its path."""
    if is_path(table):
        writer.save(table)
    else:
        writer.saveAsTable(table)


def differences(found: StructType, columns: Sequence[Column]) -> list[str]:
    """How a table's schema differs from ours, one line for each problem. Additional columns are allowed."""
    types = {field.name: field.dataType for field in found.fields}
    problems = []
    for field in spark_schema(columns).fields:
        if field.name not in types:
            added = f"{field.name} {field.dataType.simpleString()}"
            problems.append(f"column {field.name} is missing; add it with ALTER TABLE … ADD COLUMN {added}")
        elif types[field.name].simpleString() != field.dataType.simpleString():
            problems.append(
                f"column {field.name}: expected {field.dataType.simpleString()}, "
                f"found {types[field.name].simpleString()}"
            )
    return problems
