"""The prompts table or query: the columns that a request is built from, with types that Python can read.

Leaves the names of the columns to ``prompt_columns.py`` and the meaning of a row to ``prompts.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation
from pyspark.sql import types as T  # noqa: N812

from deltatap.delta import tables
from deltatap.driver.reading import JSON, KEPT, TEMPLATE
from deltatap.errors import ConfigError, one_line
from deltatap.program import program
from deltatap.prompt_columns import (
    COLUMNS,
    ColumnType,
    did_you_mean,
    find,
    misplaced,
    near_misses,
    similar,
    wrong_columns,
)

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from deltatap.config import Prompts, Settings

_INTERVALS = (T.YearMonthIntervalType, T.CalendarIntervalType, T.DayTimeIntervalType)


def source(spark: SparkSession, settings: Settings) -> DataFrame:
    """The prompts: those of ``prompt_columns.COLUMNS`` that exist, and the structs ``kept`` and ``template``.

    The structs hold the columns of ``prompts.keep`` and those that the templates name, in this order.

    Raises:
        ConfigError: if the table does not exist, the query fails, or a column is missing or has the wrong type.
    """
    frame = table(spark, settings)
    prompts, templates = settings.prompts, settings.prompts.templates
    types = {field.name: field.dataType for field in frame.schema.fields}
    problems: list[str] = []

    def found(name: str, where: str = "") -> str | None:
        try:
            column = find(name, frame.columns)
        except ValueError as error:
            problems.append(f"{where}{error}")
            return None
        if column is None and where:
            problems.append(f"{where}column {name} does not exist{did_you_mean(similar(name, frame.columns))}")
        return column

    ours = {name: column for name in COLUMNS if name not in templates and (column := found(name)) is not None}
    if templates and "messages" in ours:
        problems.append(f"{next(iter(templates.values())).key}: cannot be combined with a column messages")
    kept = [found(name, "prompts.keep: ") for name in prompts.keep]
    named = [found(name, f"{each.key}: ") for each in templates.values() for name in each.columns]
    problems += wrong_columns(
        {name: column_type(types[column]) for name, column in ours.items()}, templates, frame.columns
    )
    if problems:
        raise ConfigError([f"prompts: {prompts.source}: {problem}" for problem in problems])
    columns = [_readable(column, types[column], name).alias(name) for name, column in ours.items()]
    structs = {KEPT: kept, TEMPLATE: named}
    columns += [
        F.struct(*(_readable(str(column), types[str(column)]).alias(f"_{at}") for at, column in enumerate(its))).alias(
            name
        )
        for name, its in structs.items()
        if its
    ]
    return frame.select(*columns)


def table(spark: SparkSession, settings: Settings) -> DataFrame:
    """The prompts table, or the result of the query.

    Raises:
        ConfigError: if there is none.
    """
    prompts = settings.prompts
    try:
        frame = _opened(spark, prompts)
        _ = None if frame is None else frame.schema  # with Spark Connect, errors are raised only here
    except Exception as error:
        raise ConfigError([f"prompts: {prompts.source}: {one_line(error)}"]) from error
    if frame is None:
        is_folder = not tables.is_path(str(prompts.table)) and Path(str(prompts.table)).is_dir()
        load = f"; load prompts first: `{program()} load FILE`"
        hint = f"; for the folder, write ./{prompts.table}" if is_folder else load
        raise ConfigError([f"prompts.table: {prompts.table}: the Delta table does not exist{hint}"])
    return frame


def misspelled(spark: SparkSession, settings: Settings) -> list[str]:
    """One line for each unused column that looks like a misspelled column of deltatap, and one on parameters."""
    named = {name.lower() for name in settings.prompts.keep}
    named |= {name.lower() for template in settings.prompts.templates.values() for name in template.columns}
    columns = table(spark, settings).columns
    found = [
        f"column {column} is not used; did you mean {name}?"
        for column, name in near_misses(columns)
        if column.lower() not in named and name not in settings.prompts.templates
    ]
    hint = misplaced(column for column in columns if column.lower() not in named)
    return [f"prompts: {problem}" for problem in (*found, *([hint] if hint else ()))]


def _opened(spark: SparkSession, prompts: Prompts) -> DataFrame | None:
    if prompts.sql is not None:
        return spark.sql(prompts.sql)
    table = str(prompts.table)
    return spark.table(tables.quoted(table)) if tables.exists(spark, table) else None


def column_of(name: str) -> Column:
    """The column with this name. The name may contain any characters."""
    return F.col(tables.backticked(name))


def _readable(column: str, type_: T.DataType, name: str | None = None) -> Column:
    """A column as Python can read it.

    Args:
        column: its name in the table.
        type_: its type.
        name: its name in ``prompt_columns.COLUMNS``; None for a column that is kept or fills a template.
    """
    selected = column_of(column)
    if isinstance(type_, T.VariantType) and name is not None:
        return F.to_json(selected)
    if name == "request_id" or _is_text(type_):
        return selected.cast(T.StringType())
    if _has(type_, (T.VariantType, *_INTERVALS)):
        return _converted(selected, type_)
    plain = _without_collations(type_)
    return selected if plain == type_ else selected.cast(plain)


def _converted(value: Column, type_: T.DataType) -> Column:
    """A nested value with text instead of intervals, and a struct of :data:`JSON` instead of each VARIANT.

    Not every version of Spark hands these types to Python. Only they are converted: ``to_json`` would cut microseconds
    and write NaN as text.
    """
    if not _has(type_, (T.VariantType, *_INTERVALS)):
        return value.cast(_without_collations(type_))
    if isinstance(type_, T.ArrayType):
        item = type_.elementType
        return F.transform(value, lambda each: _converted(each, item))
    if isinstance(type_, T.MapType):
        key, inner = type_.keyType, type_.valueType
        value = F.transform_keys(value, lambda name, _: _converted(name, key)) if _has(key, _INTERVALS) else value
        return F.transform_values(value, lambda _, each: _converted(each, inner))
    if isinstance(type_, _INTERVALS):
        return value.cast(T.StringType())
    if isinstance(type_, T.StructType) and len({name.lower() for name in type_.names}) == len(type_.names):
        fields = [_converted(value.getField(each.name), each.dataType).alias(each.name) for each in type_.fields]
        return F.when(value.isNotNull(), F.struct(*fields))
    # A struct whose fields differ only in case is also converted: Spark cannot select such fields.
    return F.when(value.isNotNull(), F.struct(F.to_json(value).alias(JSON)))


def _without_collations(type_: T.DataType) -> T.DataType:
    if isinstance(type_, T.StringType):
        return T.StringType()
    if isinstance(type_, T.ArrayType):
        return T.ArrayType(_without_collations(type_.elementType), type_.containsNull)
    if isinstance(type_, T.MapType):
        return T.MapType(
            _without_collations(type_.keyType), _without_collations(type_.valueType), type_.valueContainsNull
        )
    if isinstance(type_, T.StructType):
        return T.StructType(
            [T.StructField(each.name, _without_collations(each.dataType), each.nullable) for each in type_.fields]
        )
    return type_


def _has(type_: T.DataType, kinds: tuple[type[T.DataType], ...]) -> bool:
    """Whether a type is, or contains, one of these."""
    if isinstance(type_, kinds):
        return True
    if isinstance(type_, T.ArrayType):
        return _has(type_.elementType, kinds)
    if isinstance(type_, T.MapType):
        return _has(type_.keyType, kinds) or _has(type_.valueType, kinds)
    return isinstance(type_, T.StructType) and any(_has(each.dataType, kinds) for each in type_.fields)


def column_type(type_: T.DataType) -> ColumnType:
    """How deltatap describes a Spark type for a column."""
    name = type_.simpleString().upper()
    if _is_text(type_):
        return ColumnType.text(name)
    is_variant = isinstance(type_, T.VariantType)
    message = type_.elementType if isinstance(type_, T.ArrayType) else None
    is_message = isinstance(message, T.StructType) and {"role", "content"} <= set(message.names)
    return ColumnType(
        name,
        is_id=isinstance(type_, T.IntegralType) or (isinstance(type_, T.DecimalType) and type_.scale == 0),
        is_messages=is_variant or is_message or _is_object(message),
        is_params=is_variant or _is_object(type_),
    )


def _is_text(type_: T.DataType) -> bool:
    return isinstance(type_, T.StringType | T.NullType)


def _is_object(type_: T.DataType | None) -> bool:
    return isinstance(type_, T.MapType) and isinstance(type_.keyType, T.StringType)
