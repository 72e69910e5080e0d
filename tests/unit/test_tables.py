from __future__ import annotations

import pyarrow as pa
import pytest

from deltatap import tables

ALL = {"captures": tables.CAPTURES, "journal": tables.JOURNAL, "runs": tables.RUNS, "owed": tables.OWED}


@pytest.mark.parametrize("name", ALL)
def test_arrow_and_spark_agree(name: str) -> None:
    columns = ALL[name]
    arrow, spark = tables.arrow_schema(columns), tables.spark_schema(columns)
    assert arrow.names == spark.names == [column.name for column in columns]
    for column, field in zip(columns, spark.fields, strict=True):
        spelled = column.type.lower().replace(", ", ",").replace(" ", ":")
        assert field.dataType.simpleString() == spelled, column.name


def test_times_are_64_bits_wide() -> None:
    chunk = tables.arrow_type(tables.CHUNKS).value_type
    assert chunk.field("ms").type == pa.float64()


def test_ddl_holds_types_and_comments() -> None:
    ddl = tables.ddl(tables.CAPTURES)
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
    assert tables.quoted(table) == sql


def test_differences_are_told_by_column() -> None:
    found = tables.spark_schema((*tables.CAPTURES[:-1], tables.Column("mine", "STRING", "")))
    assert tables.differences(found, tables.CAPTURES) == [
        "column worker is missing; ALTER TABLE … ADD COLUMN worker string"
    ]
    other = tables.spark_schema((tables.Column("run_id", "BIGINT", ""), *tables.CAPTURES[1:]))
    assert tables.differences(other, tables.CAPTURES) == ["column run_id: expected string, found bigint"]
