"""``deltatap load``: appends the prompts of a file to a prompts table.

Leaves the file to ``prompt_files.py`` and the meaning of a row to ``prompts.py``, which a run uses, too.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.errors import PySparkTypeError
from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation
from pyspark.sql import types as T  # noqa: N812
from pyspark.sql.pandas.types import from_arrow_type

from deltatap.delta import tables
from deltatap.delta.identity import local_folder
from deltatap.driver.reading import prompt_rows
from deltatap.driver.source import column_of, wrong_columns
from deltatap.errors import ConfigError, one_line
from deltatap.prompt_columns import COLUMNS, find
from deltatap.prompt_files import read_prompts, unused
from deltatap.prompts import build_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from pyspark.sql import DataFrame, SparkSession

    from deltatap.config import Settings
    from deltatap.delta.local import LocalReader
    from deltatap.prompt_files import PromptFile


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of a load.

    Attributes:
        rows: how many rows were loaded.
        bad: the rows that are not valid requests, each as ``row N: reason`` or ``line N: reason``.
        known: how many of the file's request ids were in the table before.
        has_ids: whether the file has a column request_id.
        unused: the columns that no request is built from and that ``prompts.keep`` does not name.
    """

    rows: int
    bad: list[str]
    known: int = 0
    has_ids: bool = False
    unused: tuple[str, ...] = ()


def load(
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
        replace: replace the rows of the table that have a request_id of the file.

    Raises:
        ConfigError: if the file cannot be read, or its columns do not fit the table.
    """
    found = _checked(settings, path, named, replace=replace)
    frame = spark.createDataFrame(found.rows, _spark_schema(path, found.rows))
    known = _known(spark, found.table, frame)
    if (why := tables.why_not_creatable(spark, found.table)) and not tables.exists(spark, found.table):
        raise found.refused(why)
    try:
        _write(frame, found.table, replace=replace and known > 0)
    except Exception as error:
        raise found.refused(one_line(error)) from error
    return found.loaded(known)


def load_locally(settings: Settings, path: Path, *, named: Mapping[str, str] | None = None) -> Loaded | None:
    """The same without a JVM, for prompts tables on this machine. None if Spark has to load the file.

    Raises:
        ConfigError: as above.
    """
    from deltatap.delta.append import NotAppendableError, append  # noqa: PLC0415 - an extra, as deltatap.delta.local
    from deltatap.delta.local import LocalReader, UnreadableError  # noqa: PLC0415

    folder = local_folder(settings.prompts.table or "")
    if folder is None:
        return None

    def no_spark() -> SparkSession:
        raise UnreadableError

    found = _checked(settings, path, named)
    try:
        known = _known_locally(LocalReader(no_spark), found)
        append(folder, found.rows)
    except (UnreadableError, NotAppendableError):
        return None
    except ValueError as error:
        raise found.refused(one_line(error)) from error
    return found.loaded(known)


@dataclass(frozen=True, slots=True)
class _Checked:
    """A file whose columns are right.

    Attributes:
        path: the file.
        table: the prompts table.
        rows: to load.
        bad: as in :class:`Loaded`.
        unused: as in :class:`Loaded`.
    """

    path: Path
    table: str
    rows: pa.Table
    bad: list[str]
    unused: tuple[str, ...]

    def loaded(self, known: int) -> Loaded:
        return Loaded(self.rows.num_rows, self.bad, known, "request_id" in self.rows.schema.names, self.unused)

    def refused(self, why: str) -> ConfigError:
        return ConfigError([f"prompts.table: {self.table}: cannot load {self.path}: {why}"])


def _checked(settings: Settings, path: Path, named: Mapping[str, str] | None, *, replace: bool = False) -> _Checked:
    table = settings.prompts.table
    if table is None:
        raise ConfigError(["prompts.table: expected the table to load into, found prompts.sql"])
    read = read_prompts(path, settings.endpoint.api, named)
    names, templates = read.rows.schema.names, settings.prompts.templates
    if replace and "request_id" not in names:
        raise ConfigError([f"{path}: --replace: expected a column request_id, found {', '.join(names)}"])
    rows = _one_per_id(read.rows) if replace else read.rows
    fields = {field.name: field.dataType for field in _spark_schema(path, rows).fields}
    if problems := list(wrong_columns(fields, templates, names)):
        how = [] if {"prompt", "messages"} & {*fields, *templates} else ["name it with --prompt-column"]
        raise ConfigError([f"{path}: {'; '.join([problem, *how])}" for problem in problems])
    templated = [column for template in templates.values() for column in template.columns]
    rest = unused(names, [*settings.prompts.keep, *templated])
    return _Checked(path, table, rows, list(_bad(read, settings)), tuple(rest))


def _known_locally(reader: LocalReader, found: _Checked) -> int:
    """How many request ids of the file are in the table."""
    if "request_id" not in found.rows.schema.names or not reader.exists(found.table):
        return 0
    column = find("request_id", reader.columns(found.table))
    if column is None:
        return 0
    ids = f"SELECT DISTINCT CAST({tables.backticked(column)} AS STRING) AS id FROM {tables.quoted(found.table)}"
    return len(set(found.rows["request_id"].to_pylist()) & set(reader.query(ids)["id"].to_pylist()) - {None})


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


def _write(frame: DataFrame, table: str, *, replace: bool) -> None:
    """Append the rows, or replace those with the same request_id, in one commit."""
    spark = frame.sparkSession
    fields = spark.table(tables.quoted(table)).schema.fields if tables.exists(spark, table) else []
    frame = _cast(frame, fields)
    if not replace:
        writer = frame.write.format("delta").mode("append").option("mergeSchema", "true")
        writer.save(table) if tables.is_path(table) else writer.saveAsTable(tables.quoted(table))
        return
    # A replaced row keeps no value of the earlier one, such as params that the file does not have.
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
    """The frame with the table's types of simple columns, such as BIGINT for request_id."""
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


def _one_per_id(rows: pa.Table) -> pa.Table:
    """The rows without repeated ones: a MERGE takes one row for each request_id."""
    seen: set[str] = set()
    first = []
    for request_id in rows["request_id"].to_pylist():
        first.append(request_id is None or request_id not in seen)
        seen.add(request_id)
    return rows.filter(pa.array(first))


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


def _bad(read: PromptFile, settings: Settings) -> Iterator[str]:
    """The rows that are not valid requests. Templates are filled when a run reads the table."""
    endpoint, number = settings.endpoint, 0
    filled = dict.fromkeys(settings.prompts.templates, "filled later")
    ours = read.rows.select([name for name in read.rows.schema.names if name in COLUMNS])
    for batch in ours.to_batches(max_chunksize=10_000):
        for row in prompt_rows(batch, (), {}):
            made = build_request(
                row.columns, api=endpoint.api, model=endpoint.model, defaults=settings.request, keep=(), filled=filled,
                problem=row.problem,
            )  # fmt: skip
            if made.error is not None:
                yield f"{read.place(number)}: {made.error}"
            number += 1
