"""Prompts from files: how each format is read, which files are refused, and which requests a run makes from them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltatap.config import load_settings
from deltatap.delta.tables import quoted
from deltatap.driver import source
from deltatap.driver.load import load
from deltatap.driver.owed import hashed, requests
from deltatap.errors import ConfigError
from deltatap.prompt_files import read_prompts
from tests import prompts

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession


SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def batch(custom_id: str, url: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def write_file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("api", "line", "row"),
    [
        (
            "chat",
            batch("a", "/v1/chat/completions", model="gpt-4o", messages=[{"role": "user", "content": "Hé"}],
                  temperature=0.5, stream=True, response_format=FORMAT),
            {"request_id": "a", "model": "gpt-4o", "system": None, "messages": '[{"role":"user","content":"Hé"}]',
             "params": json.dumps({"temperature": 0.5, "response_format": FORMAT}, separators=(",", ":"))},
        ),
        (
            "completions",
            batch("b", "/v1/completions", model="gpt-3.5-turbo-instruct", prompt="Say", max_tokens=5),
            {"request_id": "b", "model": "gpt-3.5-turbo-instruct", "system": None, "prompt": "Say",
             "params": '{"max_tokens":5}'},
        ),
        (
            "responses",
            batch("c", "/v1/responses", model="gpt-4o", input="Say", instructions="Be brief."),
            {"request_id": "c", "model": "gpt-4o", "system": "Be brief.", "prompt": "Say", "params": None},
        ),
        ("chat", '{"request_id": "d", "prompt": "Say", "params": {"seed": 1}, "tenant": 7}',
         {"request_id": "d", "prompt": "Say", "params": '{"seed":1}', "tenant": "7"}),
    ],
)  # fmt: skip
def test_json_lines_become_rows(tmp_path: Path, api: str, line: str, row: dict[str, Any]) -> None:
    assert read_prompts(write_file(tmp_path, "x.jsonl", f"{line}\n\n"), api).to_pylist() == [row]


def test_csv_values_stay_unchanged_strings(tmp_path: Path) -> None:
    text = 'request_id,prompt,model\n007,"Two\nlines, and a ""quote""",\n8,1.50,gpt-4o\n9,"",\n'
    assert read_prompts(write_file(tmp_path, "x.csv", text), "chat").to_pylist() == [
        {"request_id": "007", "prompt": 'Two\nlines, and a "quote"', "model": None},
        {"request_id": "8", "prompt": "1.50", "model": "gpt-4o"},
        {"request_id": "9", "prompt": "", "model": None},
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", "", r"x\.txt: expected a file name that ends in \.jsonl, \.csv, \.parquet"),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt": "b"', r"x\.jsonl: line 2: Expecting ',' delimiter"),
        ("x.jsonl", "[1]", r"line 1: expected a JSON object, found list"),
        ("x.jsonl", '{"custom_id": "a", "body": 1}', r"line 1: body: expected a JSON object"),
        (
            "x.jsonl",
            batch("a", "/v1/responses", input="x"),
            r"line 1: url: expected /v1/chat/completions, .* found /v1/responses; /v1/responses is the path of responses",
        ),
        ("x.jsonl", batch("a", "/v1/embeddings", input="x"), r"endpoint.api is chat, found /v1/embeddings\n"),
        ("x.csv", "request_id,prompt\na,b\nc\n", r"x\.csv: CSV parse error: (Row #3: )?Expected 2 columns, got 1"),
        ("x.parquet", "nothing of the kind", r"x\.parquet: .*[Pp]arquet"),
    ],
)
def test_the_message_for_an_invalid_file_names_the_problem(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_prompts(write_file(tmp_path, name, text), "chat")


def test_missing_files_and_invalid_utf8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.jsonl: No such file"):
        read_prompts(tmp_path / "x.jsonl", "chat")
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ConfigError, match=r"x\.jsonl: expected UTF-8"):
        read_prompts(tmp_path / "x.jsonl", "chat")


def test_requests_are_made_from_a_table_of_loaded_files(spark: SparkSession, tables: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    lines = write_file(
        tables, "x.jsonl", batch("a", "/v1/chat/completions", messages=[{"role": "user", "content": "Hé"}])
    )
    loaded = load(spark, settings, lines)
    assert (loaded.rows, loaded.bad) == (1, [])
    loaded = load(spark, settings, write_file(tables, "y.csv", 'request_id,prompt,tenant\nb,Say,x\nc," ",x\n'))
    assert (loaded.rows, loaded.bad) == (2, ["row 2: no prompt: expected text in prompt, or messages"])
    pq.write_table(pa.table({"request_id": [7], "prompt": ["Say more"]}), tables / "z.parquet")
    load(spark, settings, tables / "z.parquet")
    assert spark.table(quoted(str(tables / "prompts"))).count() == 4
    made = {
        row["request_id"]: row for row in requests(hashed(source.source(spark, settings), settings), settings).collect()
    }
    assert json.loads(made["a"]["body"])["messages"] == [{"role": "user", "content": "Hé"}]
    assert json.loads(made["b"]["body"])["messages"] == [{"role": "user", "content": "Say"}]
    assert made["c"]["error"]
    assert json.loads(made["7"]["body"])["messages"] == [{"role": "user", "content": "Say more"}]


def test_columns_that_do_not_fit_are_refused_without_a_change(spark: SparkSession, tables: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    with pytest.raises(ConfigError, match=r"y\.csv: expected a column prompt or messages, found question"):
        load(spark, settings, write_file(tables, "y.csv", "question\nWhy?\n"))
    load(spark, settings, write_file(tables, "x.csv", "request_id,prompt,tenant\na,Say,x\n"))
    pq.write_table(pa.table({"request_id": ["b"], "prompt": ["Say"], "tenant": [[1, 2]]}), tables / "z.parquet")
    with pytest.raises(ConfigError, match=r"the columns of .*z\.parquet do not fit"):
        load(spark, settings, tables / "z.parquet")
    assert spark.table(quoted(str(tables / "prompts"))).count() == 1
    with pytest.raises(ConfigError, match=r"expected the table to load into"):
        load(spark, load_settings({"prompts": {"table": None, "sql": "SELECT 1"}}), tables / "x.csv")
