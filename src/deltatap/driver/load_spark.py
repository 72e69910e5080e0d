"""``deltatap load`` through Spark: for every table and every type that Spark has, and for ``--replace``.

Leaves the checks before a load and its result to ``load.py``.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from pyspark.errors import PySparkTypeError
from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation
from pyspark.sql import types as T  # noqa: N812
from pyspark.sql.pandas.types import from_arrow_type

from deltatap.delta import tables
from deltatap.driver.load import Load
from deltatap.driver.source import column_of, column_type
from deltatap.errors import ConfigError, one_line
from deltatap.prompt_columns import find

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from deltatap.config import Settings
    from deltatap.driver.load import Loaded


def load_prompts(
    spark: SparkSession,
    settings: Settings,
    path: Path,
    *,
    named: Mapping[str, str] | None = None,
    replace: bool = False,
) -> Loaded:
    """Append the prompts of a file to the prompts table, all or none. The table is created if it does not exist.

    Args:
        spark: the session.
        settings: name the prompts table and the API.
        path: ends in ``.jsonl``, ``.csv`` or ``.parquet``.
        named: which columns of the file are ``request_id`` and ``prompt``, if they have other names.
        replace: replace the rows of the table whose request_id is in the file.

    Raises:
        ConfigError: if the file cannot be read, its columns do not fit the table, or replaced rows would lose values.
    """
    load = Load.of(settings, path, named, replace=replace)
    schema = _spark_schema(path, load.rows)
    load.check({field.name: column_type(field.dataType) for field in schema.fields})
    frame = spark.createDataFrame(load.rows, schema)
    # Counted before the write, so that no error follows it.
    known = _known(spark, load.table, frame)
    loaded = load.loaded(known)
    if replace and known and (lost := _lost(spark, load.table, frame)):
        cost = f"--replace replaces whole rows, but the file lacks columns that these rows use: {', '.join(lost)}"
        raise ConfigError([f"{path}: {cost}; add the columns, and leave a field empty to clear its value"])
    if (why := tables.why_not_creatable(spark, load.table)) and not tables.exists(spark, load.table):
        raise load.refused(why)
    try:
        _write(frame, load.table, replace=replace and loaded.known > 0)
    except Exception as error:
        raise load.refused(one_line(error)) from error
    return loaded


def _known(spark: SparkSession, table: str, frame: DataFrame) -> int:
    """How many request ids of the file are in the table."""
    if "request_id" not in frame.columns or not tables.exists(spark, table):
        return 0
    rows = spark.table(tables.quoted(table))
    column = find("request_id", rows.columns)
    if column is None:
        return 0
    ids = rows.select(rows[column].cast("string").alias("request_id"))
    return frame.select("request_id").distinct().join(ids, "request_id", "left_semi").count()


def _lost(spark: SparkSession, table: str, frame: DataFrame) -> tuple[str, ...]:
    """The columns that the file lacks and in which the rows to replace have values."""
    rows = spark.table(tables.quoted(table))
    missing = [column for column in rows.columns if not find(column, frame.columns)]
    if not missing:
        return ()
    ids = frame.select(F.col("request_id").cast("string").alias("request_id")).distinct()
    replaced = rows.join(
        ids, rows[str(find("request_id", rows.columns))].cast("string") == ids["request_id"], "left_semi"
    )
    counts = replaced.agg(*(F.count(column_of(column)).alias(f"_{at}") for at, column in enumerate(missing))).collect()
    return tuple(column for column, count in zip(missing, counts[0], strict=True) if count)


def _write(frame: DataFrame, table: str, *, replace: bool) -> None:
    """Append the rows, or replace those with the same request_id, in one commit."""
    spark = frame.sparkSession
    fields = spark.table(tables.quoted(table)).schema.fields if tables.exists(spark, table) else []
    frame = _cast(frame, fields)
    if not replace:
        writer = frame.write.format("delta").mode("append").option("mergeSchema", "true")
        writer.save(table) if tables.is_path(table) else writer.saveAsTable(tables.quoted(table))
        return
    # MERGE needs all columns of the table; the rows have no values in these.
    missing = {field.name: F.lit(None).cast(field.dataType) for field in fields if not find(field.name, frame.columns)}
    view = f"deltatap_{uuid.uuid4().hex}"
    frame.withColumns(missing).createOrReplaceTempView(view)
    try:
        tables.commit(
            spark,
            f"MERGE WITH SCHEMA EVOLUTION INTO {tables.quoted(table)} AS t USING {view} AS s "
            "ON t.request_id = s.request_id WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *",
        )
    finally:
        spark.catalog.dropTempView(view)


def _cast(frame: DataFrame, fields: Iterable[T.StructField]) -> DataFrame:
    """The frame, with simple columns cast to the table's types, such as BIGINT for request_id."""
    types = {field.name: field.dataType for field in frame.schema.fields}
    found = {column: field.dataType for field in fields if (column := find(field.name, frame.columns))}
    nested = (T.StructType, T.ArrayType, T.MapType)
    return frame.withColumns(
        {
            column: column_of(column).cast(type_)
            for column, type_ in found.items()
            if types[column] != type_ and not isinstance(type_, nested) and not isinstance(types[column], nested)
        }
    )


def _spark_schema(path: Path, rows: pa.Table) -> T.StructType:
    """The rows' schema in Spark."""
    schema = T.StructType()
    problems = []
    for field in rows.schema:
        try:
            schema = schema.add(field.name, from_arrow_type(field.type))
        except PySparkTypeError:
            problems.append(f"{path}: column {field.name}: expected a type that Spark has, found {field.type}")
    if problems:
        raise ConfigError(problems)
    return schema
