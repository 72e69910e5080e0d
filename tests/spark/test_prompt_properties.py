"""Prompts tables of random schema and content: each row becomes the request of the reference below, or a failed row.

The reference takes the Python values that Spark made the table from. It shares no code with deltatap.
"""

from __future__ import annotations

import base64
import json
import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import types as T  # noqa: N812 - the name in Spark's documentation

from tests.spark.test_values import of_query, planned

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import Row, SparkSession

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = ["x", "Note", "a b", "x.y", "a`b", "größe", "_id", "_alike", "source_hash", "kept", "value"]
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.sampled_from([0.5, -2.25, 1e300]), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXT, inner, max_size=2)),
    max_leaves=3,
)
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))  # noqa: DTZ001 - Spark has such a type
LEAVES: list[tuple[T.DataType, st.SearchStrategy[Any]]] = [
    (T.StringType(), TEXT),
    (T.BooleanType(), st.booleans()),
    (T.ByteType(), st.integers(-128, 127)),
    (T.IntegerType(), st.integers(-(2**31), 2**31 - 1)),
    (T.LongType(), st.integers(-(2**63), 2**63 - 1)),
    (T.DoubleType(), st.floats()),
    (T.FloatType(), st.floats(width=32)),
    (T.DecimalType(10, 2), st.decimals(-(10**7), 10**7, places=2)),
    (T.DecimalType(38, 0), st.integers(-(10**37), 10**37).map(Decimal)),
    (T.DateType(), st.dates(date(1, 1, 1), date(9999, 12, 31))),
    (T.TimestampType(), MOMENTS.map(lambda moment: moment.replace(tzinfo=UTC))),
    (T.TimestampNTZType(), MOMENTS),
    (T.BinaryType(), st.binary(max_size=4)),
    (T.StringType("UTF8_LCASE"), TEXT),
    (T.DayTimeIntervalType(), st.timedeltas(timedelta(-(10**6)), timedelta(10**6))),
    (T.NullType(), st.none()),
    (T.VariantType(), JSON_VALUES.map(lambda value: T.VariantVal.parseJson(json.dumps(value)))),
]
KEYS = [leaf for leaf in LEAVES if isinstance(leaf[0], T.StringType | T.BooleanType | T.LongType | T.DateType)]


@dataclass(frozen=True)
class Typed:
    """A Spark type and the values that a column of this type gets."""

    type: T.DataType
    values: st.SearchStrategy[Any]


def nullable(typed: Typed) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), typed.values)


def arrays(item: Typed) -> Typed:
    return Typed(T.ArrayType(item.type), st.lists(nullable(item), max_size=3))


def maps(key: Typed, value: Typed, most: int = 1) -> Typed:
    """Maps of one entry, unless their order does not matter: Spark does not keep it."""
    return Typed(T.MapType(key.type, value.type), st.dictionaries(key.values, nullable(value), max_size=most))


def structs(fields: dict[str, Typed]) -> Typed:
    schema = T.StructType([T.StructField(name, typed.type) for name, typed in fields.items()])
    values = st.fixed_dictionaries({name: nullable(typed) for name, typed in fields.items()})
    return Typed(schema, values.map(lambda drawn: {name: drawn[name] for name in fields}))


TYPES = st.recursive(
    st.sampled_from([Typed(*leaf) for leaf in LEAVES]),
    lambda inner: st.one_of(
        inner.map(arrays),
        st.builds(maps, st.sampled_from([Typed(*key) for key in KEYS]), inner),
        st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=3).map(structs),
    ),
    max_leaves=6,
)


def column(name: str, typed: Typed) -> dict[str, Typed]:
    return {name: typed}


@st.composite
def prompts_tables(draw: st.DrawFn) -> tuple[T.StructType, list[dict[str, Any]], list[str], str | None]:
    """The schema and the rows of a prompts table, the columns to keep, and a template."""
    extra = draw(st.dictionaries(st.sampled_from(NAMES), TYPES, min_size=1, max_size=3))
    others = draw(st.dictionaries(st.sampled_from(NAMES), TYPES, max_size=2))
    message = structs(
        {"role": Typed(T.StringType(), st.sampled_from(["user", "assistant", "robot"]))}
        | {"content": Typed(T.StringType(), TEXT)}
        | others
    )
    prompt = column("prompt", Typed(T.StringType(), TEXT))
    messages = column("Messages", arrays(message))
    params = st.one_of(
        TYPES.map(lambda value: maps(Typed(T.StringType(), st.sampled_from(["seed", "user", "x y"])), value, 3)),
        st.just(Typed(T.StringType(), st.sampled_from(['{"seed": 1}', "{}", "[]", "{", " ", '{"model": "other"}']))),
    )
    optional = {
        **draw(st.one_of(st.just({}), params.map(lambda typed: column("params", typed)))),
        **draw(st.sampled_from([{}, column("MODEL", Typed(T.StringType(), TEXT))])),
        **draw(st.sampled_from([{}, column("system", Typed(T.StringType(), TEXT))])),
    }
    first, *_, last = [*extra, *extra]
    template = draw(st.sampled_from([None, None, f"Say {{{first}}} {{{{now}}}} {{{last}}}"]))
    asked = prompt if template else draw(st.sampled_from([prompt, messages, {**prompt, **messages}]))
    columns = {**asked, **optional, **extra}
    schema = T.StructType([T.StructField("Request_Id", draw(st.sampled_from([T.LongType(), T.StringType()])))])
    for name, typed in columns.items():
        schema = schema.add(name, typed.type)
    rows = draw(st.lists(st.fixed_dictionaries({n: nullable(t) for n, t in columns.items()}), min_size=8, max_size=8))
    ids = range(len(rows)) if isinstance(schema["Request_Id"].dataType, T.LongType) else map(str, range(len(rows)))
    return schema, [{"Request_Id": at, **row} for at, row in zip(ids, rows, strict=True)], list(extra), template


class Failed(Exception):  # noqa: N818 - a row without a request
    """No request can be made of a row."""


def as_json(value: Any) -> Any:
    """A value of a column as docs/guide.md says."""
    conversions: list[tuple[type, Callable[[Any], Any]]] = [
        (T.VariantVal, lambda found: json.loads(found.toJson())),
        (timedelta, lambda found: as_interval(found // timedelta(microseconds=1))),
        (dict, lambda found: {as_name(key): as_json(item) for key, item in found.items() if not is_null(item)}),
        (list, lambda found: [as_json(item) for item in found]),
        (Decimal, lambda found: int(found) if found == int(found) else float(found)),
        (datetime, lambda found: found.isoformat().replace("+00:00", "Z")),
        (date, lambda found: found.isoformat()),
        (bytes, lambda found: base64.b64encode(found).decode("ascii")),
    ]
    return next((convert(value) for type_, convert in conversions if isinstance(value, type_)), value)


def is_null(value: Any) -> bool:
    return value is None or (isinstance(value, T.VariantVal) and value.toJson() == "null")


def as_interval(us: int) -> str:
    """Spark's text of an interval in microseconds."""
    seconds, fraction = divmod(abs(us), 10**6)
    clock = f"{seconds // 86400} {seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"INTERVAL '{'-' * (us < 0)}{clock}{f'.{fraction:06}'.rstrip('0') if fraction else ''}' DAY TO SECOND"


def as_name(key: Any) -> str:
    made = as_json(key)
    return made if isinstance(made, str) else json.dumps(made)


def as_text(value: Any) -> str:
    made = as_json(value)
    return made if isinstance(made, str) else json.dumps(made, ensure_ascii=False)


def has_no_number(value: Any) -> bool:
    """Whether a value has a number that JSON does not have."""
    if isinstance(value, dict | list):
        return any(map(has_no_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and not math.isfinite(value)


def reference_params(given: Any) -> dict[str, Any]:
    if given is None or (isinstance(given, str) and not given.strip()):
        return {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise Failed from None
        if not isinstance(given, dict):
            raise Failed
        return given
    made = {}
    for name, value in given.items():
        if not is_null(value):
            made[name] = as_json(value)
            if isinstance(value, str):
                with suppress(ValueError):
                    made[name] = json.loads(value)
    return made


def reference_messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    prompt, given = row.get("prompt"), row.get("messages")
    if prompt is not None and given is not None:
        raise Failed
    if given is None:
        if prompt is None or not prompt.strip():
            raise Failed
        return [{"role": "user", "content": prompt}]
    made = []
    for message in given:
        if message is None or message["role"] not in ("user", "assistant"):
            raise Failed
        if message["content"] is None and message["role"] == "user":
            raise Failed
        made.append(as_json(message))
    if not made:
        raise Failed
    return made


def reference(row: dict[str, Any], template: str | None, keep: list[str]) -> dict[str, Any]:
    """The body of the row's request."""
    columns = {
        name.lower(): value
        for name, value in row.items()
        if name in ("MODEL", "Messages", "prompt", "system", "params")
    }
    if template is not None:
        if any(is_null(row[name]) for name in (keep[0], keep[-1])):
            raise Failed
        columns |= {"prompt": f"Say {as_text(row[keep[0]])} {{now}} {as_text(row[keep[-1]])}"}
    params = reference_params(columns.get("params"))
    messages = reference_messages(columns)
    if columns.get("system"):
        messages.insert(0, {"role": "system", "content": columns["system"]})
    body = {"model": columns.get("model") or "gpt-4o-mini", "messages": messages, "temperature": 0, **params}
    if has_no_number(body):
        raise Failed
    return body


# Shrinking a failure would take minutes, because each try is a Spark job.
@pytest.mark.slow
@settings(
    max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(table=prompts_tables())
def test_each_row_becomes_the_request_of_the_reference_or_a_failed_row(
    spark: SparkSession, table: tuple[T.StructType, list[dict[str, Any]], list[str], str | None]
) -> None:
    schema, rows, keep, template = table
    spark.createDataFrame([tuple(row[name] for name in schema.names) for row in rows], schema).createOrReplaceTempView(
        "random_prompts"
    )
    found = planned(
        spark, of_query("SELECT * FROM random_prompts", prompts={"keep": keep, "template": template}, request={"temperature": 0})
    )  # fmt: skip
    assert set(found) == {str(row["Request_Id"]) for row in rows}
    for row in rows:
        check(row, found[str(row["Request_Id"])], keep, template)


def check(row: dict[str, Any], made: Row, keep: list[str], template: str | None) -> None:
    try:
        expected = reference(row, template, keep)
    except Failed:
        assert made["body"] is None
        assert made["error"], row
    else:
        assert made["error"] is None, (row, made["error"])
        assert json.loads(made["body"]) == expected
    assert made["keep"] == {name: None if is_null(row[name]) else as_text(row[name]) for name in keep}
