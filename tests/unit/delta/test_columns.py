from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from deltatap.delta import columns
from deltatap.delta import tables as delta_tables

TABLES = {"captures": columns.CAPTURES, "journal": columns.JOURNAL, "runs": columns.RUNS, "owed": columns.OWED}

# The types of existing tables. A changed type would break every existing table.
CHUNKS_DDL = "ARRAY<STRUCT<ms: DOUBLE, gap_ms: DOUBLE, text: STRING, kind: STRING, choice: INT, event: INT, read: INT, tokens: INT>>"
DDL = {
    "chunks": CHUNKS_DDL,
    "retries": "ARRAY<STRUCT<started_at: TIMESTAMP, e2e_ms: DOUBLE, http_status: INT, error_type: STRING, text: STRING, "
    f"chunks: {CHUNKS_DDL}, input_tokens: BIGINT, output_tokens: BIGINT, cost_usd: DOUBLE, "
    "response_id: STRING, server_request_id: STRING>>",
    "choices": "ARRAY<STRUCT<index: INT, text: STRING, finish_reason: STRING, refusal: STRING, reasoning: STRING, "
    "tool_calls: STRING>>",
    "error": "STRUCT<type: STRING, code: STRING, message: STRING, http_status: INT, retryable: BOOLEAN, "
    "retry_after_s: DOUBLE>",
    "usage_reported": "STRUCT<input_tokens: BIGINT, output_tokens: BIGINT, total_tokens: BIGINT, "
    "cached_input_tokens: BIGINT, reasoning_tokens: BIGINT, audio_input_tokens: BIGINT, audio_output_tokens: BIGINT, "
    "cache_write_tokens: BIGINT, cache_write_1h_tokens: BIGINT, accepted_prediction_tokens: BIGINT, "
    "rejected_prediction_tokens: BIGINT, image_input_tokens: BIGINT, image_output_tokens: BIGINT, "
    "citation_tokens: BIGINT, web_searches: BIGINT>",
    "usage_tiktoken": "STRUCT<encoding: STRING, input_tokens: BIGINT, output_tokens: BIGINT, total_tokens: BIGINT, "
    "approximate: BOOLEAN>",
    "raw": "ARRAY<STRUCT<event: STRING, data: BINARY>>",
    "keep": "MAP<STRING, STRING>",
    "source_hash": "BIGINT",
    "started_at": "TIMESTAMP",
    "ttft_ms": "DOUBLE",
    "text": "STRING",
}


@pytest.mark.parametrize("name", DDL)
def test_ddl_types_of_captures_do_not_change(name: str) -> None:
    (column,) = (column for column in columns.CAPTURES if column.name == name)
    assert columns.sql_type(column.type) == DDL[name]


@pytest.mark.parametrize("name", TABLES)
def test_spark_schema_and_ddl_agree(name: str) -> None:
    spark = columns.spark_schema(TABLES[name])
    assert spark.names == [column.name for column in TABLES[name]]
    for column, field in zip(TABLES[name], spark.fields, strict=True):
        spelled = columns.sql_type(column.type).lower().replace(": ", ":").replace(", ", ",")
        assert field.dataType.simpleString() == spelled, column.name


def test_ddl_has_types_and_escaped_comments() -> None:
    ddl = columns.ddl([columns.Column("keep", columns.STRINGS, "the user's columns")])
    assert ddl == r"`keep` MAP<STRING, STRING> COMMENT 'the user\'s columns'"


def test_named_types_are_abbreviated_at_any_depth() -> None:
    names: dict[Any, str] = {columns.CHUNK: "chunk"}
    assert columns.sql_type(columns.CHUNKS, names) == "ARRAY<chunk>"
    assert "chunks: ARRAY<chunk>," in columns.sql_type(columns.RETRIES, names)


def test_an_unsupported_type_is_an_error() -> None:
    with pytest.raises(KeyError):
        columns.sql_type(pa.float32())


@pytest.mark.parametrize(
    ("table", "sql"),
    [
        ("main.llm.captures", "`main`.`llm`.`captures`"),
        ("/data/captures", "delta.`/data/captures`"),
        ("s3://b/c", "delta.`s3://b/c`"),
        ("/a`b", "delta.`/a``b`"),
        ("my-cat.s.my prompts", "`my-cat`.`s`.`my prompts`"),
        ("`my.cat`.`a``b`", "`my.cat`.`a``b`"),
    ],
)
def test_a_table_is_a_name_or_a_path(table: str, sql: str) -> None:
    assert delta_tables.quoted(table) == sql


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("/x/captures", "/x/metrics"),
        ("s3a://bucket/x/captures", "s3a://bucket/x/metrics"),
        ("dbfs:/x/captures/", "dbfs:/x/metrics"),
        ("captures", "metrics"),
        ("main.s.captures", "main.s.metrics"),
        ("`my.cat`.s.`a.b`", "`my.cat`.s.metrics"),
    ],
)
def test_a_table_beside_another(table: str, expected: str) -> None:
    assert delta_tables.beside(table, "metrics") == expected


def test_differences_name_the_column() -> None:
    others = [column for column in columns.CAPTURES if column.name != "worker"]
    found = columns.spark_schema((*others, columns.Column("mine", columns.STRING, "")))
    assert delta_tables.differences(found, columns.CAPTURES) == [
        "column worker is missing; add it with ALTER TABLE … ADD COLUMN worker string"
    ]
    other = columns.spark_schema((columns.Column("run_id", columns.BIGINT, ""), *columns.CAPTURES[1:]))
    assert delta_tables.differences(other, columns.CAPTURES) == ["column run_id: expected string, found bigint"]
