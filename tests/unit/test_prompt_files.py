"""Prompts from files: how each format is read, and what is wrong with a file, by line or by column."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltatap.errors import ConfigError
from deltatap.prompt_files import read_prompts
from tests.prompts import write_file

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def batch(custom_id: str, url: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


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
    assert read_prompts(write_file(tmp_path, "x.jsonl", f"{line}\n\n"), api).rows.to_pylist() == [row]


def test_csv_values_stay_unchanged_strings(tmp_path: Path) -> None:
    text = 'request_id,prompt,model\n007,"Two\nlines, and a ""quote""",\n8,1.50,gpt-4o\n9,"",\n'
    assert read_prompts(write_file(tmp_path, "x.csv", text), "chat").rows.to_pylist() == [
        {"request_id": "007", "prompt": 'Two\nlines, and a "quote"', "model": None},
        {"request_id": "8", "prompt": "1.50", "model": "gpt-4o"},
        {"request_id": "9", "prompt": "", "model": None},
    ]


def problems(path: Path, api: str = "chat", **named: str) -> list[str]:
    """What is wrong with a file. Every line names it."""
    with pytest.raises(ConfigError) as caught:
        read_prompts(path, api, named)
    lines = str(caught.value).splitlines()
    found = [line.removeprefix(f"{path}: ") for line in lines]
    assert all(f"{path}: {line}" in lines for line in found)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"', ["line 2: expected JSON; column 15: Expecting ',' delimiter"]),
        ("[1]", ["line 1: expected a JSON object, found list"]),
        ('{"prompt": "a"}\n\n"b"\nnull\n', ["line 3: expected a JSON object, found str", "line 4: expected a JSON object, found NoneType"]),
        ('{"prompt": "a", "params": {"temperature": NaN}}', ["line 1: expected JSON, which has no NaN"]),
        ('{"prompt": "a", "prompt": "b"}', ["line 1: key prompt is set twice"]),
        ('{"prompt": "a", "params": {"seed": 1, "seed": 2}}', ["line 1: key seed is set twice"]),
        ('{"prompt": "\\ud83d"}', ["line 1: prompt: expected valid Unicode, found half of a surrogate pair"]),
        ('{"prompt": "a", "params": {"user": "\\ude00"}}', ["line 1: params: expected valid Unicode, found half of a surrogate pair"]),
        ('{"prompt": "a", "\\ud83d": 1}', ["line 1: a column's name: expected valid Unicode, found half of a surrogate pair"]),
        ('{"prompt": ' + "[" * 100_000, ["line 1: is nested too deeply"]),
        ('{"prompt": "a", "seed": ' + "1" * 5000 + "}", ["line 1: Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits"]),
        ('{"request_id": "a", "prompt": "x"}\n\n{"request_id": "a", "prompt": "y"}', ["line 3: request_id a is already used for a different prompt in line 1"]),
        ('{"Prompt": "a"}\n{"prompt": "b"}', ["column prompt: expected one column of this name, found Prompt, prompt"]),
        ('{"prompt": "a", "": 1}', ["column 2 has no name"]),
        ("\n \n", ["has no rows"]),
        ("", ["has no rows"]),
        ('{"custom_id": "a", "body": 1}', ["line 1: body: expected a JSON object"]),
        (batch("a", "/v1/responses", input="x"), ["line 1: url: expected /v1/chat/completions, because endpoint.api is chat, found /v1/responses; /v1/responses is the path of responses"]),
        (batch("a", "/v1/embeddings", input="x"), ["line 1: url: expected /v1/chat/completions, because endpoint.api is chat, found /v1/embeddings"]),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}', ["line 1: body: expected a JSON object"]),
        (batch("a", "/v1/chat/completions").replace("POST", "GET"), ["line 1: method: expected POST, found GET"]),
    ],
)  # fmt: skip
def test_json_lines_that_are_wrong_are_named(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(write_file(tmp_path, "x.jsonl", text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("request_id,prompt\na,b\nc\n", ["line 3: expected 2 fields as in the first line, found 1"]),
        ('request_id,prompt\na,"b\nb"\nc,d,e\n', ["line 4: expected 2 fields as in the first line, found 3"]),
        ("request_id,prompt,Prompt\na,b,c\n", ["column Prompt: expected one column of this name, found prompt, Prompt"]),
        ("request_id,,prompt\na,b,c\n", ["column 2 has no name"]),
        ("request_id,prompt\na,x\na,y\n", ["row 2: request_id a is already used for a different prompt in row 1"]),
        ("request_id,prompt\n", ["has no rows"]),
        ('prompt\n"a\nb"\n"cut o', ["line 4: unexpected end of data"]),
        ('prompt\n"a"b\n', ["line 2: ',' expected after '\"'"]),
        ("\n\n", ["is empty"]),
        ("", ["is empty"]),
    ],
)  # fmt: skip
def test_lines_and_columns_of_csv_that_are_wrong_are_named(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(write_file(tmp_path, "x.csv", text)) == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"prompt": pa.array([b"\xff"])}, ["column prompt: expected text, found binary"]),
        ({"request_id": pa.array([1.5]), "prompt": ["x"]}, ["column request_id: expected text or integers, found double"]),
        ({"request_id": [{"a": 1}], "prompt": ["x"]}, ["column request_id: expected text or integers, found struct<a: int64>"]),
        ({"request_id": [["a"]], "prompt": ["x"]}, ["column request_id: expected text or integers, found list<element: string>"]),
        ({"prompt": ["x"], "a\nb": ["y"], "A\nB": ["z"]}, ["column A B: expected one column of this name, found a b, A B"]),
        ({"prompt": ["x"], "size": pa.array([2**64 - 1], pa.uint64())}, ["column size: expected BIGINT, found uint64"]),
        ({"request_id": ["a", "a"], "prompt": ["x", "y"]}, ["row 2: request_id a is already used for a different prompt in row 1"]),
        ({"prompt": ["x"], "PROMPT": ["y"]}, ["column PROMPT: expected one column of this name, found prompt, PROMPT"]),
    ],
)  # fmt: skip
def test_columns_of_parquet_that_are_wrong_are_named(
    tmp_path: Path, columns: dict[str, Any], expected: list[str]
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert problems(tmp_path / "x.parquet") == expected


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(
        b'prompt\n{"prompt": "\xff"}'.replace(b"prompt\n", b"\n" if "json" in name else b"prompt\n")
    )
    assert problems(tmp_path / name) == ["line 2: expected UTF-8"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "x.jsonl") == ["No such file or directory"]
    assert problems(write_file(tmp_path, "x.txt", "")) == ["expected a file name that ends in .jsonl, .csv, .parquet"]
    assert "Parquet" in problems(write_file(tmp_path, "x.parquet", "nothing of the kind"))[0]
    pq.write_table(pa.table({"prompt": ["x" * 100] * 100}), tmp_path / "y.parquet")
    whole = (tmp_path / "y.parquet").read_bytes()
    (tmp_path / "y.parquet").write_bytes(whole[: len(whole) // 2])
    assert len(problems(tmp_path / "y.parquet")) == 1


def test_of_many_problems_some_are_shown(tmp_path: Path) -> None:
    found = problems(write_file(tmp_path, "x.jsonl", "[]\n" * 1025))
    assert found[0] == "line 1: expected a JSON object, found list"
    assert found[20:] == ["and 1,005 more"]


def test_the_types_of_parquet_files_become_text_or_types_of_spark(tmp_path: Path) -> None:
    day = dt.date(2026, 11, 26)
    columns = {
        "request_id": pa.array([7, 8], pa.uint32()),
        "PROMPT": pa.array(["x", "y"], pa.large_string()),
        "model": pa.array(["m", "m"]).dictionary_encode(),
        "system": pa.nulls(2),
        "category": pa.array(["a", "b"]).dictionary_encode(),
        "day": pa.array([day, day]),
        "at": pa.array([0, 1], pa.time32("s")),
        "count": pa.array([1, 2], pa.uint16()),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = read_prompts(tmp_path / "x.parquet", "chat").rows
    assert found.to_pylist()[0] == {
        "request_id": "7", "prompt": "x", "model": "m", "system": None, "category": "a", "day": day, "at": "00:00:00.000",
        "count": 1,
    }  # fmt: skip
    assert [str(field.type) for field in found.schema] == [*["string"] * 5, "date32[day]", "string", "int64"]


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = write_file(tmp_path, "x.csv", "ID,text,tenant\n7,Say,x\n")
    found = read_prompts(path, "chat", {"request_id": "id", "prompt": "text"}).rows
    assert found.to_pylist() == [{"request_id": "7", "prompt": "Say", "tenant": "x"}]
    assert problems(path, request_id="text", prompt="TEXT") == [
        "--id-column and --prompt-column name the same column, text"
    ]
    assert problems(path, prompt="texts") == [
        "--prompt-column texts: expected one of the columns ID, text, tenant; did you mean text?"
    ]
    path = write_file(tmp_path, "y.csv", "id,request_id,prompt\n7,8,Say\n")
    assert problems(path, request_id="id") == ["--id-column id: the file also has a column request_id"]


def test_long_prompts_and_spaces_in_the_header_of_csv(tmp_path: Path) -> None:
    long = "x\n" * 1_500_000
    path = write_file(tmp_path, "x.csv", f'request_id, prompt \na,"{long}"\n\nb, y\n')
    assert read_prompts(path, "chat").rows.to_pylist() == [
        {"request_id": "a", "prompt": long}, {"request_id": "b", "prompt": " y"},
    ]  # fmt: skip


def test_a_column_can_be_named_body(tmp_path: Path) -> None:
    path = write_file(tmp_path, "x.jsonl", '{"title": "a", "url": "/b", "body": "c", "prompt": "x"}')
    assert read_prompts(path, "chat").rows.to_pylist() == [{"title": "a", "url": "/b", "body": "c", "prompt": "x"}]
    path = write_file(tmp_path, "y.jsonl", '{"request_id": "1", "prompt": "x", "body": {"title": "c"}}')
    assert read_prompts(path, "chat").rows.to_pylist() == [{"request_id": "1", "prompt": "x", "body": '{"title":"c"}'}]
    path = write_file(tmp_path, "z.jsonl", '{"custom_id": "1", "text": "x"}')
    found = read_prompts(path, "chat", {"request_id": "custom_id", "prompt": "text"}).rows
    assert found.to_pylist() == [{"request_id": "1", "prompt": "x"}]


def test_a_request_id_of_parquet_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    ids = pa.array([b"ok", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"request_id": ids, "prompt": ["a", "b"]}), tmp_path / "x.parquet")
    assert problems(tmp_path / "x.parquet") == ["column request_id: expected UTF-8"]


def test_lines_of_old_macs_are_counted(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"prompt\rx\r\xff\r")
    assert problems(tmp_path / "x.csv") == ["line 3: expected UTF-8"]


def test_byte_order_marks_are_no_part_of_the_first_column(tmp_path: Path) -> None:
    for name, text in (("x.csv", "prompt\nSay\n"), ("x.jsonl", '{"prompt": "Say"}')):
        path = write_file(tmp_path, name, "\ufeff" + text)
        assert read_prompts(path, "chat").rows.to_pylist() == [{"prompt": "Say"}]
