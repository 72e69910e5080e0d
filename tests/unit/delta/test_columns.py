from __future__ import annotations

import pyarrow as pa
import pytest

from deltatap.delta import columns
from deltatap.delta import tables as delta_tables

ALL = {"captures": columns.CAPTURES, "journal": columns.JOURNAL, "runs": columns.RUNS, "owed": columns.OWED}


@pytest.mark.parametrize("name", ALL)
def test_arrow_and_spark_agree(name: str) -> None:
    its = ALL[name]
    arrow, spark = columns.arrow_schema(its), columns.spark_schema(its)
    assert arrow.names == spark.names == [column.name for column in its]
    for column, field in zip(its, spark.fields, strict=True):
        spelled = column.type.lower().replace(", ", ",").replace(" ", ":")
        assert field.dataType.simpleString() == spelled, column.name


def test_times_are_64_bits_wide() -> None:
    chunk = columns.arrow_type(columns.CHUNKS).value_type
    assert chunk.field("ms").type == pa.float64()


def test_ddl_holds_types_and_comments() -> None:
    ddl = columns.ddl(columns.CAPTURES)
    assert "`error` STRUCT<type: STRING, code: STRING, message: STRING, http_status: INT," in ddl
    assert r"sha256 of the body\'s compact JSON" in ddl


@pytest.mark.parametrize(
    ("table", "sql"),
    [
        ("main.llm.captures", "`main`.`llm`.`captures`"),
        ("/data/captures", "delta.`/data/captures`"),
        ("s3://b/c", "delta.`s3://b/c`"),
    ],
)
def test_a_table_is_a_name_or_a_path(table: str, sql: str) -> None:
    assert delta_tables.quoted(table) == sql


def test_differences_are_told_by_column() -> None:
    found = columns.spark_schema((*columns.CAPTURES[:-1], columns.Column("mine", "STRING", "")))
    assert delta_tables.differences(found, columns.CAPTURES) == [
        "column worker is missing; ALTER TABLE … ADD COLUMN worker string"
    ]
    other = columns.spark_schema((columns.Column("run_id", "BIGINT", ""), *columns.CAPTURES[1:]))
    assert delta_tables.differences(other, columns.CAPTURES) == ["column run_id: expected string, found bigint"]
