"""Prompts of every SQL type and with any column name: each row becomes the right request, or a failed row."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.driver import owed
from deltatap.driver.source import misspelled, source
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings

if TYPE_CHECKING:
    from pyspark.sql import Row, SparkSession

    from deltatap.config import Settings

GOLDEN = json.loads(Path(__file__).with_name("hashes.json").read_text(encoding="utf-8"))
HI = [{"role": "user", "content": "Hi"}]


def of_query(sql: str, api: str = "chat", **sections: Any) -> Settings:
    """Settings for a query and a captures table that does not exist."""
    tree: dict[str, Any] = {
        "prompts": {"table": None, "sql": sql},
        "captures": {"table": "/nowhere/captures"},
        "runs": {"table": "/nowhere/runs"},
        "endpoint": {"name": "sim", "api": api, "api_key": None},
    }
    return load_settings({name: {**tree.get(name, {}), **sections.get(name, {})} for name in {**tree, **sections}})


def planned(spark: SparkSession, settings: Settings) -> dict[str, Row]:
    """The owed requests by their ids."""
    with owed.owed_requests(spark, settings, "r") as found:
        return {row["request_id"]: row for row in found.collect()}


def body(row: Row) -> dict[str, Any]:
    assert row["error"] is None, row["error"]
    made: dict[str, Any] = json.loads(row["body"])
    return made


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["name"]))
def test_hashes_stay_as_in_the_first_release(spark: SparkSession, case: dict[str, Any]) -> None:
    """A changed hash would make every captured request owed again."""
    found = planned(spark, of_query(case["sql"], case["api"]))
    assert {name: {key: row[key] for key in case["rows"][0]} for name, row in found.items()} == {
        row["request_id"]: row for row in case["rows"]
    }


# A value in SQL, and what it is in the body.
VALUES: dict[str, tuple[str, Any]] = {
    "decimal": ("0.7", 0.7),
    "whole decimal": ("CAST(100 AS DECIMAL(10, 2))", 100),
    "date": ("DATE'2026-01-02'", "2026-01-02"),
    "timestamp": ("TIMESTAMP'2026-01-02 03:04:05 UTC'", "2026-01-02T03:04:05Z"),
    "timestamp without zone": ("TIMESTAMP_NTZ'2026-01-02 03:04:05'", "2026-01-02T03:04:05"),
    "binary": ("X'FF00'", "/wA="),
    "map": ("map('k', 'v', 'none', NULL)", {"k": "v"}),
    "empty map": ("CAST(map() AS MAP<STRING, STRING>)", {}),
    "map of maps": ("map('k', map(1, true))", {"k": {"1": True}}),
    "map in a struct in an array": ("array(named_struct('m', map('k', 0.5), 'n', NULL))", [{"m": {"k": 0.5}}]),
    "variant": ("parse_json('{\"a\": [1, 2.5, null]}')", {"a": [1, 2.5, None]}),
    "string in a variant": ("parse_json('\"7\"')", "7"),
    "variants beside other types": (
        "named_struct('v', parse_json('[1]'), 't', TIMESTAMP'2026-01-02 03:04:05.123456 UTC', 'd', INTERVAL '1' DAY)",
        {"v": [1], "t": "2026-01-02T03:04:05.123456Z", "d": "INTERVAL '1' DAY"},
    ),
    "fields that differ in case": ("from_json('{\"a\": 1, \"A\": 2}', 'a VARIANT, A VARIANT')", {"a": 1, "A": 2}),
    "null variant": ("named_struct('a', parse_json('null'), 'b', CAST(NULL AS VARIANT), 'c', 1)", {"c": 1}),
    "collated": ("CAST('Grüße' AS STRING COLLATE UTF8_LCASE)", "Grüße"),
    "collated key": ("map('K' COLLATE UTF8_LCASE, 1)", {"K": 1}),
}


def test_values_in_params_and_messages_become_what_json_calls_them(spark: SparkSession) -> None:
    fields = ", ".join(f"{sql} AS `{name}`" for name, (sql, _) in VALUES.items())
    query = f"""SELECT map('x', struct({fields})) params,
        array(struct('user' AS role, 'Hi' AS content, {fields})) messages"""
    expected = {name: value for name, (_, value) in VALUES.items()}
    (made,) = map(body, planned(spark, of_query(query)).values())
    assert made["x"] == expected
    assert made["messages"] == [{**HI[0], **expected}]


@pytest.mark.parametrize("name", ["decimal", "date", "string in a variant", "collated"])
def test_values_of_params_become_what_json_calls_them(spark: SparkSession, name: str) -> None:
    sql, expected = VALUES[name]
    (made,) = map(body, planned(spark, of_query(f"SELECT 'Hi' prompt, map('x', {sql}) params")).values())
    assert made["x"] == expected


def test_types_that_json_has_no_word_for_spoil_only_their_row(spark: SparkSession) -> None:
    query = """SELECT 'good' request_id, 'Hi' prompt, CAST(NULL AS MAP<STRING, TIMESTAMP>) params
        UNION ALL SELECT 'late', 'Hi', map('x', TIMESTAMP'+12345-01-01 00:00:00 UTC')
        UNION ALL SELECT 'not UTF-8', CAST(X'FF41' AS STRING), NULL"""
    found = planned(spark, of_query(query, prompts={"keep": ["prompt"]}))
    assert body(found["good"])["messages"] == HI
    assert found["late"]["error"].startswith("column params cannot be read")
    assert found["not UTF-8"]["error"] == "column prompt is not valid UTF-8"


def test_the_columns_of_messages_and_params_can_be_variants_and_maps(spark: SparkSession) -> None:
    query = """SELECT 1 request_id, array(map('role', 'user', 'content', 'Hi')) messages, parse_json('{"n": 2}') params
        UNION ALL SELECT 2, NULL, parse_json('[]') UNION ALL SELECT 3, array(map('role', 'robot')), NULL"""
    found = planned(spark, of_query(query))
    assert (body(found["1"])["messages"], body(found["1"])["n"]) == (HI, 2)
    assert (found["2"]["error"], found["3"]["error"][:16]) == ("params: expected a JSON object", "messages[0].role")
    query = """SELECT parse_json('[{"role": "user", "content": "Hi"}]') messages"""
    assert [body(row)["messages"] for row in planned(spark, of_query(query)).values()] == [HI]


@pytest.mark.parametrize("type_", ["TINYINT", "INT", "BIGINT", "DECIMAL(38, 0)", "STRING", "STRING COLLATE UNICODE_CI"])
def test_a_request_id_has_any_integer_or_string_type(spark: SparkSession, type_: str) -> None:
    assert set(planned(spark, of_query(f"SELECT CAST(7 AS {type_}) request_id, 'Hi' prompt"))) == {"7"}


def test_columns_without_a_type_are_null(spark: SparkSession) -> None:
    query = "SELECT 'a' request_id, 'Hi' prompt, NULL system, NULL messages, NULL params, NULL model, NULL note"
    found = planned(spark, of_query(query, prompts={"keep": ["note"]}))["a"]
    assert (body(found)["messages"], found["keep"]) == (HI, {"note": None})


REASONS = {
    "SELECT CAST(1 / (id - id) AS STRING) prompt FROM range(2)": "[DIVIDE_BY_ZERO] Division by zero.",
    "SELECT CAST(CAST(concat('x', id) AS INT) AS STRING) prompt FROM range(1)": "[CAST_INVALID_INPUT] The value 'x0'",
    "SELECT CAST(assert_true(id > 5, 'no row') AS STRING) prompt FROM range(2)": "[USER_RAISED_EXCEPTION] no row",
    "SELECT array('a')[5 + id * 0] prompt FROM range(2)": "[INVALID_ARRAY_INDEX] The index 5 is out of bounds.",
    "SELECT CAST(id + 9223372036854775807 AS STRING) prompt FROM range(2)": "[ARITHMETIC_OVERFLOW] long overflow.",
    "SELECT failing(CAST(id AS STRING)) prompt FROM range(2)": "ValueError: my own words",
    "SELECT * FROM delta.`{folder}/newer`": "[DELTA_UNSUPPORTED_FEATURES_FOR_READ] Unsupported Delta read feature: table",
    "SELECT * FROM delta.`{folder}`": "[FAILED_READ_FILE.FILE_NOT_EXIST] Encountered error while reading file file:",
}  # fmt: skip


@pytest.mark.slow
def test_the_reason_of_a_failure_is_the_sentence_of_spark(spark: SparkSession, tmp_path: Path) -> None:
    spark.range(3).selectExpr("'Hi' AS prompt").coalesce(1).write.format("delta").save(str(tmp_path))
    shutil.copytree(tmp_path, tmp_path / "newer")
    newer = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["x"], "writerFeatures": ["x"]}
    (tmp_path / "newer/_delta_log/00000000000000000001.json").write_text(
        json.dumps({"protocol": newer}), encoding="utf-8"
    )
    next(tmp_path.glob("*.parquet")).unlink()

    def fail(_: str) -> str:
        raise ValueError("my own words")

    spark.udf.register("failing", fail)
    for query, reason in REASONS.items():
        settings = of_query(query.format(folder=tmp_path))
        with pytest.raises(ConfigError, match=re.escape(f"prompts: {settings.prompts.source}: {reason}")) as caught:
            planned(spark, settings)
        assert len(caught.value.problems) == 1
        assert "\n" not in caught.value.problems[0]


def test_column_names_match_in_any_case(spark: SparkSession) -> None:
    query = "SELECT 'r1' Request_ID, 'Hi' PROMPT, 'gpt-4o' Model, 'be brief' SYSTEM, 'x' Note"
    found = planned(spark, of_query(query, prompts={"keep": ["note", "prompt"]}))["r1"]
    assert body(found)["messages"] == [{"role": "system", "content": "be brief"}, *HI]
    assert (found["model"], found["keep"]) == ("gpt-4o", {"note": "x", "prompt": "Hi"})


ODD = ["my.col", "a`b", "_id", "_alike", "_low", "kept", "template", "source_hash", "body", "größe 🙂", "_0", "mode"]


def test_a_kept_column_can_have_any_name(spark: SparkSession) -> None:
    columns = ", ".join("'{}' `{}`".format(name.replace("'", ""), name.replace("`", "``")) for name in ODD)
    settings = of_query(f"SELECT 'r1' request_id, 'Hi' prompt, {columns}", prompts={"keep": ODD})
    found = planned(spark, settings)["r1"]
    assert found["keep"] == {name: name for name in ODD}


def test_kept_values_are_text_or_json(spark: SparkSession) -> None:
    query = """SELECT 'Hi' prompt, 1.50 a, X'FF00' b, map('k', DATE'2026-01-02') c, true d, INTERVAL '1' DAY e,
        named_struct('n', NULL, 's', array('x')) f, CAST(NULL AS INT) g, 'text' h, parse_json('[1]') i"""
    (row,) = planned(spark, of_query(query, prompts={"keep": [*"abcdefghi"]})).values()
    assert row["keep"] == {
        "a": "1.5", "b": "/wA=", "c": '{"k": "2026-01-02"}', "d": "true", "e": "INTERVAL '1' DAY", "f": '{"s": ["x"]}',
        "g": None, "h": "text", "i": "[1]",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "sections", "problem"),
    [
        ("'x' prompt, 'y' Prompt", {}, "column prompt: expected one column of this name, found prompt, Prompt"),
        (
            "'x' prompt, 1 n, 2 N",
            {"prompts": {"keep": ["n"]}},
            "prompts.keep: column n: expected one column of this name, found n, N",
        ),
        ("'x' promt", {}, "expected a column prompt or messages, found promt; did you mean promt?"),
        ("'x' message", {}, "expected a column prompt or messages, found message; did you mean message?"),
        ("'x' prompt, 1 topic", {"prompts": {"keep": ["topics"]}}, "column topics does not exist; did you mean topic?"),
        ("'x' prompt, 1.5D request_id", {}, "column request_id: expected STRING or an integer, found DOUBLE"),
        ("4 prompt", {}, "column prompt: expected STRING, found INT"),
        ("'x' a", {"prompts": {"template": "{b}"}}, "prompts.template: column b does not exist"),
        ("'x' a, 'y' messages", {"prompts": {"template": "{a}"}}, "prompts.template: cannot be combined with a column"),
    ],
)
def test_wrong_columns_are_named(spark: SparkSession, columns: str, sections: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        source(spark, of_query(f"SELECT {columns}", **sections))
    assert problem in str(error.value)


def test_columns_that_look_misspelled_are_named(spark: SparkSession) -> None:
    settings = of_query("SELECT 1 requestId, 'Hi' prompt, 'x' param, 1 id, 'y' topic", prompts={"keep": ["param"]})
    assert misspelled(spark, settings) == ["prompts: column requestId is not used; did you mean request_id?"]


@pytest.mark.slow
def test_duplicate_columns_that_are_not_used_do_not_matter(spark: SparkSession) -> None:
    assert len(planned(spark, of_query("SELECT 'Hi' prompt, 1 n, 2 n"))) == 1


def test_templates_take_any_columns(spark: SparkSession) -> None:
    query = """SELECT 'a' request_id, 'News' Title, 1.50 price, 'long' `my.body`, 'old' prompt
        UNION ALL SELECT 'b', NULL, 1.50, 'long', 'old'"""
    templates: dict[str, Any] = {
        "template": "{{Summarise}} {title}: {my.body} ({price})",
        "system_template": "Was: {prompt}",
    }
    found = planned(spark, of_query(query, prompts={**templates, "keep": ["prompt"]}))
    assert found["a"]["keep"] == {"prompt": "old"}
    assert body(found["a"])["messages"] == [
        {"role": "system", "content": "Was: old"},
        {"role": "user", "content": "{Summarise} News: long (1.5)"},
    ]
    assert found["b"]["error"] == "prompts.template: column title is NULL"
    other = planned(spark, of_query(query, prompts={"template": "{title}"}))
    assert other["a"]["source_hash"] != found["a"]["source_hash"]


@pytest.mark.slow
def test_a_sample_is_the_same_every_time(spark: SparkSession) -> None:
    def drawn(fraction: float, seed: int, count: int = 1000) -> set[str]:
        query = f"SELECT id request_id, 'Hi' prompt FROM range({count})"
        settings = of_query(query, capture={"sample": {"fraction": fraction, "seed": seed}})
        return set(planned(spark, settings))

    tenth = drawn(0.1, 0)
    assert 50 < len(tenth) < 150
    assert drawn(0.1, 0, 900) == {name for name in tenth if int(name) < 900}
    assert drawn(0.1, 1) != tenth
    assert drawn(0.5, 0) > tenth
    assert len(drawn(1.0, 0, 10)) == 10


def test_tables_are_right_if_timestamps_have_no_zone_by_default(spark: SparkSession, tables: Path) -> None:
    from deltatap.delta import columns  # noqa: PLC0415
    from deltatap.delta import tables as delta_tables  # noqa: PLC0415

    spark.conf.set("spark.sql.timestampType", "TIMESTAMP_NTZ")
    try:
        delta_tables.ensure(spark, str(tables / "runs"), columns.RUNS)
        assert not delta_tables.upgrade(spark, str(tables / "runs"), columns.RUNS)
        assert len(planned(spark, of_query("SELECT 'Hi' prompt"))) == 1
    finally:
        spark.conf.unset("spark.sql.timestampType")
