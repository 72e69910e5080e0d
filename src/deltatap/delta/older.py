"""Reads a table of an older version as if this version had made it: the columns and fields that it lacks are null.

A run adds them to its tables (``prepare.py``). But before that, a table can be analyzed, shown, or read by a dry run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from deltatap.delta import tables
from deltatap.delta.columns import lacks, spark_schema, sql_type
from deltatap.delta.reader import SparkReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyspark.sql import DataFrame, SparkSession

    from deltatap.delta.columns import Column
    from deltatap.delta.reader import Reader


def rows_sql(reader: Reader, table: str, columns: Sequence[Column], where: str) -> str:
    """A query for the rows of a table that match the condition, with all of these columns."""
    found = reader.schema(table)
    types = dict(zip(found.names, found.types, strict=True))
    absent = [f"CAST(NULL AS {sql_type(each.type)}) AS {each.name}" for each in columns if each.name not in types]
    lacking = [each for each in columns if each.name in types and lacks(types[each.name], each.type)]
    rest = f"* EXCEPT ({', '.join(each.name for each in lacking)})" if lacking else "*"
    completed = [f"{_completed(each.name, types[each.name], each.type)} AS {each.name}" for each in lacking]
    return f"SELECT {', '.join([rest, *completed, *absent])} FROM {tables.quoted(table)} WHERE {where}"


def frame(spark: SparkSession, table: str, columns: Sequence[Column]) -> DataFrame:
    """A table as a DataFrame with all of these columns. A dry run reads tables that no run has upgraded yet."""
    found = spark.table(tables.quoted(table))
    types = {each.name: each.dataType.simpleString() for each in found.schema.fields}
    if all(types.get(each.name) == each.dataType.simpleString() for each in spark_schema(columns).fields):
        return found
    return spark.sql(rows_sql(SparkReader(spark), table, columns, "true"))


def _completed(sql: str, found: pa.DataType, ours: pa.DataType, depth: int = 0) -> str:
    """An expression with all fields of our structs."""
    if pa.types.is_list(ours):
        item = f"item_{depth}"
        inner = _completed(item, found.value_type, ours.value_type, depth + 1)
        return sql if inner == item else f"transform({sql}, {item} -> {inner})"
    if not lacks(found, ours):
        return sql
    types = {field.name: field.type for field in found}
    fields = ", ".join(
        f"'{field.name}', "
        + (
            _completed(f"{sql}.{field.name}", types[field.name], field.type, depth)
            if field.name in types
            else f"CAST(NULL AS {sql_type(field.type)})"
        )
        for field in ours
    )
    return f"CASE WHEN {sql} IS NOT NULL THEN named_struct({fields}) END"
