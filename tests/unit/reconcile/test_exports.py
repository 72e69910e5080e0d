"""Exports as the providers and gateways write them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltatap.errors import ConfigError
from deltatap.reconcile.charges import Charge, _rounding
from deltatap.reconcile.exports import read_charges

if TYPE_CHECKING:
    from pathlib import Path

AT = datetime(2024, 11, 1, 4, tzinfo=UTC)
UNTIL = datetime(2024, 11, 2, 4, tzinfo=UTC)
USAGE = """{"object": "page", "data": [{"object": "bucket", "start_time": 1730433600, "end_time": 1730520000, "results": [
  {"object": "organization.usage.completions.result", "input_tokens": 1000, "output_tokens": 500,
   "input_cached_tokens": 800, "num_model_requests": 5, "project_id": null, "api_key_id": "key_1",
   "model": "gpt-4o-2024-08-06", "batch": null}]}, {"object": "bucket", "start_time": 1730520000, "results": []}],
  "has_more": false, "next_page": null}"""
COSTS = """{"object": "page", "data": [{"object": "bucket", "start_time": 1730433600, "results": [
  {"object": "organization.costs.result", "amount": {"value": 0.06, "currency": "usd"},
   "line_item": "gpt-4o-2024-08-06, cached input", "project_id": null}]}]}"""
COSTS_CSV = (
    "start_time,end_time,start_time_iso,amount_value,amount_currency,line_item,project_id\n"
    '1730433600,1730520000,2024-11-01T04:00:00Z,0.0123456789,usd,"gpt-4o-2024-08-06, output",proj_1\n'
)
USAGE_CSV = (
    "\ufeffstart_time_iso,model,num_model_requests,input_tokens,output_tokens,input_cached_tokens\n"
    '2024-11-01T04:00:00+00:00,gpt-4o-2024-08-06,5,"1,000",500,800\n'
)
SERVING = (
    "databricks_request_id,client_request_id,status_code,request_time,input_token_count,output_token_count,"
    "request_streaming,served_entity_name,usage_context\n"
    'dbx-1,,200,2024-11-01 04:00:00,100,7,true,databricks-gpt-oss-120b,"{""run_id"": ""r1""}"\n'
    "dbx-2,mine,429,2024-11-01 04:00:01,0,0,true,databricks-gpt-oss-120b,\n"
)
GATEWAY = """{"request_id": "chatcmpl-1", "model": "openai/gpt-4o", "prompt_tokens": 10, "completion_tokens": 2, "spend": 4.5e-05, "startTime": "2024-11-01T04:00:00", "metadata": "{\\"usage\\": {\\"prompt_tokens_details\\": {\\"cached_tokens\\": 3}}, \\"requester_metadata\\": {\\"run_id\\": \\"r1\\"}}"}

{"request_id": "chatcmpl-2", "model": "openai/gpt-4o", "prompt_tokens": 0, "completion_tokens": 0, "spend": 0.0}
"""

BUCKET = Charge(("gpt-4o-2024-08-06",), 5, 1000, 800, 500, None, (), AT, until=UNTIL)
READ = [
    ("usage.json", USAGE, BUCKET),
    ("pages.jsonl", USAGE.replace("\n", " "), BUCKET),
    ("costs.json", COSTS, Charge(("gpt-4o-2024-08-06",), usd=Decimal("0.06"), at=AT)),
    ("costs.csv", COSTS_CSV, Charge(("gpt-4o-2024-08-06",), usd=Decimal("0.0123456789"), at=AT, until=UNTIL)),
    ("usage.csv", USAGE_CSV, Charge(("gpt-4o-2024-08-06",), 5, 1000, 800, 500, None, (), AT)),
    ("endpoint_usage.csv", SERVING, Charge(("databricks-gpt-oss-120b",), 1, 100, None, 7, None, ("dbx-1",), AT, "r1")),
    ("log.jsonl", GATEWAY, Charge(("openai/gpt-4o",), 1, 10, 3, 2, Decimal("0.000045"), ("chatcmpl-1",), AT, "r1")),
]


@pytest.mark.parametrize(("name", "content", "expected"), READ, ids=[name for name, *_ in READ])
def test_an_export_is_read(tmp_path: Path, name: str, content: str, expected: Charge) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert read_charges(path) == [expected]


def test_a_serving_table_is_read_from_parquet(tmp_path: Path) -> None:
    row = {
        "databricks_request_id": "dbx-1", "client_request_id": "ours", "request_time": AT, "input_token_count": 100,
        "output_token_count": 7, "usage_context": [("run_id", "r1")],
    }  # fmt: skip
    types = pa.schema(
        [
            ("databricks_request_id", pa.string()), ("client_request_id", pa.string()),
            ("request_time", pa.timestamp("us", "UTC")), ("input_token_count", pa.int64()),
            ("output_token_count", pa.int64()), ("usage_context", pa.map_(pa.string(), pa.string())),
        ]
    )  # fmt: skip
    path = tmp_path / "usage.parquet"
    pq.write_table(pa.Table.from_pylist([row], types), path)
    assert read_charges(path) == [Charge((), 1, 100, None, 7, None, ("dbx-1", "ours"), AT, "r1")]


def test_a_date_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "usage.parquet"
    days = pa.array([2**31 - 1], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"requests": [1], "date": days}), path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_charges(path)


def test_the_least_nested_field_counts(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text('[{"a": {"b": {"input_tokens": 1}}, "z": {"input_tokens": 2}}]')
    assert [charge.input_tokens for charge in read_charges(path)] == [2]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", "{", "cannot be read"),
        ("a.json", "[1]", "cannot be read: expected objects, found 1"),
        ("a.jsonl", '{"a": 1}\n{"b"', "cannot be read"),
        ("a.csv", "x,y\n1,2\n", "no column with tokens, requests or an amount; found x, y"),
        (
            "a.csv",
            "model,input_tokens\ngpt-4o,many\n",
            "row 1: expected a number of input tokens or requests, found 'many'",
        ),
        ("a.csv", "model,input_tokens\ngpt-4o,-1\n", "row 1: expected a number of input"),
        ("a.csv", "model,input_tokens\ngpt-4o,1e999999999\n", "row 1: expected a number of input"),
        ("a.csv", "model,cost_usd\ngpt-4o,NaN\n", "row 1: expected an amount in USD, found 'NaN'"),
        ("a.csv", "model,amount_value,amount_currency\ngpt-4o,1,eur\n", "row 1: expected amounts in USD, found eur"),
        ("a.csv", "model,cost_usd\ngpt-4o,1e999999\n", "row 1: expected an amount in USD, found '1e999999'"),
        ("a.csv", "model,cost_usd\ngpt-4o,1e-41\n", "row 1: expected an amount in USD, found '1e-41'"),
        ("a.csv", "model,cost_usd\ngpt-4o,1e-3999999\n", "row 1: expected an amount in USD, found '1e-3999999'"),
        ("a.csv", 'model,cost_usd\ngpt-4o,"0,0012"\n', "row 1: expected an amount in USD, found '0,0012'"),
        ("a.csv", "model;cost_usd\ngpt-4o;0,0012\n", "row 1: expected an amount in USD, found '0,0012'"),
        ("a.csv", "model,cost_usd\ngpt-4o,0,0012\n", "cannot be read: row 1 has more fields than the header"),
        ("a.json", '[{"cost": 1}, {"cost": NaN}]', "row 2: expected an amount in USD, found nan"),
        ("a.json", '[{"cost": 1}, {"cost": 1e400}]', "row 2: expected an amount in USD, found 1E+400"),
        ("a.json", '[{"cost": 1}, {"cost": -Infinity}]', "row 2: expected an amount in USD, found -inf"),
        ("a.json", '[{"cost": 1e99999999999999999999}]', "row 1: expected an amount in USD, found '1e99999"),
        ("a.jsonl", '{"cost": 1}\n{"m": "{\\"cost\\": 1e-99999999999999999999}"}', "row 2: expected an amount in USD"),
        (
            "a.json",
            f'[{{"input_tokens": {"9" * 5000}}}]',
            f"row 1: expected a number of input tokens or requests, found '{'9' * 58}…",
        ),
        ("a.csv", f"cost\n{'9' * 5000}\n", f"row 1: expected an amount in USD, found '{'9' * 58}…"),
        ("a.json", '[{"input_tokens": Infinity}]', "row 1: expected a number of input tokens or requests, found inf"),
        ("a.parquet", "no", "cannot be read"),
        ("a.csv", 'model,"cost\n', "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_bill_is_one_clear_error(tmp_path: Path, name: str, content: str, problem: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_charges(path)
    (found,) = caught.value.problems
    assert found.startswith(f"{path}: {problem}"), found


@pytest.mark.parametrize(
    ("value", "usd", "rounding"),
    [
        ('"0E-6176"', "0", "5E-10"),
        ("0E-6176", "0", "5E-10"),
        ('"0E+6111"', "0", "5E-10"),
        ('"0.00000002500000000000000000000000000000000"', "0.000000025", "5E-10"),
        ('"0.00000200000000000000000000000000000000000"', "0.000002", "5E-10"),
        ('"0.00000001234567890123456789012345678901234"', "0.0000000123456789012345678901234567890123", "5E-10"),
        ('"0.000002"', "0.000002", "5E-7"),
    ],
)
def test_amounts_with_any_number_of_places(tmp_path: Path, value: str, usd: str, rounding: str) -> None:
    """As OpenAI's costs have them. Only the places of an ordinary amount say how the log rounds."""
    path = tmp_path / "costs.json"
    path.write_text(f'[{{"amount": {{"value": {value}, "currency": "usd"}}, "requests": 1}}]')
    (charge,) = read_charges(path)
    assert charge.usd == Decimal(usd)
    assert _rounding(charge.usd) == Decimal(rounding)


def test_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_charges(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_charges(tmp_path / "a.csv")
    (tmp_path / "empty.csv").write_text("")
    assert read_charges(tmp_path / "empty.csv") == []
    (tmp_path / "odd.json").write_text(json.dumps([{"model": None, "cost": "1.5", "id": "é\ud800"}]))
    assert read_charges(tmp_path / "odd.json")[0].usd == Decimal("1.5")


@pytest.mark.parametrize(
    ("name", "content", "charges"),
    [
        ("a.csv", "\ufeffmodel;cost_usd\r\nm;0.5\r\n", [("m", "0.5")]),
        ("a.tsv", "model\tcost_usd\nm\t0.5\n", [("m", "0.5")]),
        ("a.csv", 'model,cost_usd\nm,"1,234.50"\nm,-$2\n', [("m", "1234.50"), ("m", "-2")]),
        ("a.csv", "model,cost_usd\na\u2028b,1\n", [("a\u2028b", "1")]),
        ("a.jsonl", '{"model": "a\u2028b", "cost_usd": 1}\n{"model": "c", "cost_usd": 2}\n', [("a\u2028b", "1"), ("c", "2")]),
        ("a.json", '[{"model": "\\ud800", "cost_usd": 1}]', [("\ufffd", "1")]),
    ],
)  # fmt: skip
def test_separators_and_odd_characters(tmp_path: Path, name: str, content: str, charges: list[tuple[str, str]]) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert [(charge.model, str(charge.usd)) for charge in read_charges(path)] == charges


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("20241101", datetime(2024, 11, 1, tzinfo=UTC)),
        ("2024-11-01 04:00:00 UTC", AT),
        ("2024-11-01T05:00:00+01:00", AT),
        ("2024-11-01T04:00:00", AT),
        ("1730433600", AT),
        ("1730433600000", AT),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("soon", None),
    ],
)
def test_times(tmp_path: Path, text: str, at: datetime | None) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"date,model,requests\n{text},m,1\n")
    assert read_charges(path)[0].at == at


def test_logs_of_other_gateways(tmp_path: Path) -> None:
    path = tmp_path / "openrouter.csv"
    path.write_text(
        "generation_id,created_at,cost_total,tokens_prompt,tokens_completion,model_permaslug,model\n"
        "gen-1,2024-11-01 04:00:00,0.25,10,2,x,openai/gpt-4o\n"
    )
    assert read_charges(path) == [Charge(("openai/gpt-4o",), 1, 10, None, 2, Decimal("0.25"), ("gen-1",), AT)]
    path = tmp_path / "ai_gateway.jsonl"
    row = {"request_id": "r-1", "event_time": "2024-11-01T04:00:00Z", "destination_model": "m", "input_tokens": 3,
           "output_tokens": 1, "token_details": {"cache_read_input_tokens": 2}, "request_tags": {"run_id": "r1"}}  # fmt: skip
    path.write_text(json.dumps(row))
    assert read_charges(path) == [Charge(("m",), 1, 3, 2, 1, None, ("r-1",), AT, "r1")]
