"""The prompts table or query: which columns it must have, and which of them a request is built from.

Leaves the meaning of a row to ``prompts.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation
from pyspark.sql import types as T  # noqa: N812

from deltatap.delta import tables
from deltatap.errors import ConfigError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import DataFrame, SparkSession

    from deltatap.config import Settings


TEXTS = ("request_id", "prompt", "system", "model")


def source(spark: SparkSession, settings: Settings) -> DataFrame:
    """The prompts, with only the columns that deltatap uses.

    Raises:
        ConfigError: if the table does not exist, the query fails, or a column is missing or has the wrong type.
    """
    prompts = settings.prompts
    if prompts.table is not None and not tables.exists(spark, prompts.table):
        raise ConfigError([f"prompts.table: {prompts.table}: the Delta table does not exist"])
    try:
        frame = spark.sql(prompts.sql) if prompts.sql is not None else spark.table(tables.quoted(str(prompts.table)))
        fields = {field.name: field.dataType for field in frame.schema.fields}
    except Exception as error:
        raise ConfigError([f"prompts: {prompts.source}: {one_line(error)}"]) from error
    if problems := list(wrong_columns(fields, prompts.keep)):
        raise ConfigError([f"prompts: {prompts.source}: {problem}" for problem in problems])
    wanted = dict.fromkeys([*TEXTS, "messages", "params", *prompts.keep])
    return frame.select(*(F.col(f"`{name}`") for name in wanted if name in fields))


def wrong_columns(fields: dict[str, T.DataType], keep: list[str]) -> Iterator[str]:
    """Check a prompts table's columns; one line for each problem."""
    for name in TEXTS:
        if name in fields and not isinstance(fields[name], T.StringType):
            yield f"column {name}: expected STRING, found {_sql_name(fields[name])}; cast it with prompts.sql"
    if "prompt" not in fields and "messages" not in fields:
        yield f"expected a column prompt or messages, found {', '.join(fields) or 'no columns'}"
    if "messages" in fields and not _is_messages(fields["messages"]):
        yield (
            "column messages: expected ARRAY<STRUCT<role: STRING, content: STRING, …>> or a JSON STRING, "
            f"found {_sql_name(fields['messages'])}"
        )
    if "params" in fields and not isinstance(fields["params"], T.StringType) and not _is_params(fields["params"]):
        yield f"column params: expected a JSON STRING or MAP<STRING, …>, found {_sql_name(fields['params'])}"
    yield from (f"prompts.keep: column {name} does not exist" for name in keep if name not in fields)


def _sql_name(type_: T.DataType) -> str:
    return type_.simpleString().upper()


def _is_messages(type_: T.DataType) -> bool:
    if isinstance(type_, T.StringType):
        return True
    message = type_.elementType if isinstance(type_, T.ArrayType) else None
    return isinstance(message, T.StructType) and {"role", "content"} <= set(message.names)


def _is_params(type_: T.DataType) -> bool:
    return isinstance(type_, T.MapType) and isinstance(type_.keyType, T.StringType)
