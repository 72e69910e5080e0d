from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from deltatap.delta import columns
from deltatap.model import Call, Capture, CaptureError, Choice, Job, Request
from deltatap.prices import Prices
from deltatap.prompts import build_request, wire
from deltatap.rates import PARTS
from deltatap.worker import rows as rowing
from deltatap.worker.counting import Context, counted
from deltatap.worker.rows import CAPTURES_SCHEMA, JOURNAL_SCHEMA, captures_batch, journal_batch
from tests.unit.worker.test_counting import CONTEXT, DOWN, LOST, REQUEST, call, received


def row(
    *calls: Call, earlier: list[dict[str, Any]] | None = None, request: Request = REQUEST, context: Context = CONTEXT
) -> dict[str, Any]:
    sent = wire(request.body, api="chat", mode="stream", include_usage=True) if request.body else None
    job = Job(request, sent, "stream", 7, earlier or [], 4.0, calls=list(calls))
    capture = Capture(job, None if calls else CaptureError("invalid_request", None, "bad"), 3.0, 0.5)
    (made,) = captures_batch([counted(capture, context)], context).to_pylist()
    assert list(made) == CAPTURES_SCHEMA.names
    return dict(made)


def test_a_row_that_reuses_an_answer_has_no_times_no_tokens_and_no_cost() -> None:
    sent = wire(REQUEST.body or "", api="chat", mode="stream", include_usage=True)
    usage = {"prompt_tokens": 8, "completion_tokens": 2}
    leader = Capture(Job(REQUEST, sent, "stream", 0, [], 4.0, calls=[call(received("Hello", " you", usage=usage))]))
    follower = Job(replace(REQUEST, request_id="b", keep={"x": "y"}), sent, "stream", 1, [], 4.0)
    answered, reusing = captures_batch(
        [counted(leader, CONTEXT), counted(Capture(follower, reused=leader), CONTEXT)], CONTEXT
    ).to_pylist()
    same = {"run_id", "request_hash", "mode", "status", "endpoint", "api", "request_model", "worker", *columns.ANSWER}
    assert {name: reusing[name] for name in same} == {name: answered[name] for name in same}
    own = {"request_id": "b", "keep": [("x", "y")], "chunks": [], "retries": [], "cost_usd": 0.0}
    own["cost"] = dict.fromkeys((*PARTS, "retries"), Decimal(0))
    own["reused_from"] = {"run_id": "run-1", "request_id": REQUEST.request_id}
    assert {name: reusing[name] for name in own} == own
    rest = reusing.keys() - same - own.keys()
    assert {name: reusing[name] for name in rest} == dict.fromkeys(rest)
    assert answered["reused_from"] is None


def test_every_column_of_a_completed_row() -> None:
    usage = {
        "prompt_tokens": 8,
        "completion_tokens": 3,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    made = row(call(received("Good", " morning", usage=usage)))
    assert (made["run_id"], made["mode"], made["endpoint"], made["api"], made["worker"]) == (
        "run-1",
        "stream",
        "sim",
        "chat",
        "host/3",
    )
    assert (made["request_id"], made["request_hash"]) == (REQUEST.request_id, REQUEST.request_hash)
    assert (made["status"], made["finish_reason"], made["text"], made["error"]) == (
        "completed",
        "stop",
        "Good morning",
        None,
    )
    assert made["choices"] == [
        {
            "index": 0,
            "text": "Good morning",
            "finish_reason": "stop",
            "refusal": None,
            "reasoning": None,
            "tool_calls": None,
        }
    ]
    assert [(c["kind"], c["ms"], c["gap_ms"], c["choice"]) for c in made["chunks"]] == [
        ("content", 100.0, None, 0), ("content", 110.0, 10.0, 0), ("finish", 120.0, 10.0, 0), ("usage", 130.0, None, None),
    ]  # fmt: skip
    assert (made["ttft_ms"], made["ttfot_ms"], made["last_chunk_ms"], made["first_chunk_ms"]) == (
        100.0,
        100.0,
        110.0,
        100.0,
    )
    assert made["tpot_ms"] == (110.0 - 100.0) / (3 - 1)
    assert ([c["tokens"] for c in made["chunks"]], made["token_source"]) == ([1, 1, 0, 0], "tiktoken")
    assert made["itl_ms"] == 10.0
    assert (made["queued_ms"], made["dispatch_ms"], made["headers_ms"], made["e2e_ms"], made["loop_lag_ms"]) == (
        3.0,
        1.5,
        90.0,
        150.0,
        0.5,
    )
    assert made["usage_reported"] == {
        "input_tokens": 8, "output_tokens": 3, "total_tokens": 11, "cached_input_tokens": 4, "reasoning_tokens": None,
        "audio_input_tokens": None, "audio_output_tokens": None, "cache_write_tokens": None,
        "cache_write_1h_tokens": None, "accepted_prediction_tokens": None, "rejected_prediction_tokens": None,
        "image_input_tokens": None, "image_output_tokens": None, "citation_tokens": None, "web_searches": None,
    }  # fmt: skip
    assert made["usage_tiktoken"] == {
        "encoding": "o200k_base",
        "input_tokens": 8,
        "output_tokens": 2,
        "total_tokens": 10,
        "approximate": False,
    }
    assert (made["cost_usd"], made["cost_basis"]) == ((4 * 1 + 4 * 0.5 + 3 * 10) / 1e6, "reported")
    parts = {name: amount for name, amount in made["cost"].items() if amount}
    assert {name: str(amount.normalize()) for name, amount in parts.items()} == {
        "input": "0.000004", "cached_input": "0.000002", "output": "0.00003",
    }  # fmt: skip
    assert json.loads(made["price"]) == {
        "model": "gpt-4o-mini", "input": "1", "cached_input": "0.5", "output": "10", "date": "2026-01-01", "source": "here",
    }  # fmt: skip
    assert json.loads(made["request"])["stream"] is True
    assert made["started_at"] == datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert made["finished_at"] == datetime(2026, 11, 20, 12, 0, 0, 200_000, tzinfo=UTC)
    assert (made["server_request_id"], made["server_timing"]) == ("req_1", None)
    timed = row(replace(call(received("Hi")), server_timing=(("x-ms-region", "East US"),)))
    assert timed["server_timing"] == [("x-ms-region", "East US")]


def test_usage_that_is_not_reported_is_counted() -> None:
    made = row(call(received("Good", " morning")))
    assert (made["usage_reported"], made["cost_basis"]) == (None, "tiktoken")
    assert made["cost_usd"] == (8 * 1 + 2 * 10) / 1e6
    assert made["tpot_ms"] == 10.0
    zero = row(call(received("Good", " morning", usage={"prompt_tokens": 0, "completion_tokens": 0})))
    assert (zero["tpot_ms"], zero["cost_basis"]) == (10.0, "tiktoken")
    half = row(call(received("Good", " morning", usage={"completion_tokens": 5})))
    assert (half["cost_usd"], half["cost_basis"]) == ((8 * 1 + 5 * 10) / 1e6, "mixed")


def test_earlier_calls_are_kept_and_their_cost_counts() -> None:
    before = {"started_at": datetime(2026, 11, 20, tzinfo=UTC), "e2e_ms": 1.0, "http_status": 200, "error_type": "x",
              "text": "zero", "chunks": [], "input_tokens": 8, "output_tokens": 1, "cost_usd": 0.25}  # fmt: skip
    broken = call(received("Good", finish=None), "interrupted", LOST)
    down = call(received(finish=None), "failed", DOWN)
    usage = {"prompt_tokens": 8, "completion_tokens": 2}
    made = row(broken, down, call(received("Good", " morning", usage=usage)), earlier=[before])
    assert [(r["error_type"], r["text"], r["output_tokens"], r["cost_usd"]) for r in made["retries"]] == [
        ("x", "zero", 1, 0.25), ("stream_interrupted", "Good", 1, (8 * 1 + 1 * 10) / 1e6), ("server", None, 0, 0.0),
    ]  # fmt: skip
    assert [(c["text"], c["tokens"]) for c in made["retries"][1]["chunks"]] == [("Good", 1)]
    assert made["cost_usd"] == (8 * 1 + 1 * 10) / 1e6 + 0.0 + (8 * 1 + 2 * 10) / 1e6 + 0.25
    assert sum(made["cost"].values()) == Decimal(str(made["cost_usd"])), "to the last digit"
    assert made["cost"]["retries"] == Decimal("0.250018"), "what the earlier calls cost, of this worker and before"
    assert made["cost_basis"] == "mixed"


@pytest.mark.parametrize(("status", "error", "text"), [("interrupted", LOST, "Good"), ("failed", DOWN, None)])
def test_a_call_that_did_not_complete(status: str, error: CaptureError, text: str | None) -> None:
    made = row(call(received(*([text] if text else []), finish=None), status, error))
    assert (made["status"], made["text"], made["finish_reason"]) == (status, text, None)
    assert made["error"] == {
        "type": error.type, "code": error.code, "message": error.message, "http_status": error.http_status,
        "retryable": True, "retry_after_s": error.retry_after_s,
    }  # fmt: skip


def test_a_bad_row_has_no_call_and_no_cost() -> None:
    bad = build_request({"prompt": " "}, api="chat", model="gpt-4o-mini", defaults={}, keep=())
    made = row(request=bad)
    assert (made["status"], made["error"]["type"], made["request"]) == ("failed", "invalid_request", None)
    assert (made["cost_usd"], made["cost_basis"], made["chunks"], made["retries"]) == (0.0, None, [], [])
    assert (made["started_at"], made["ttft_ms"]) == (None, None)
    assert made["usage_tiktoken"]["total_tokens"] == 0


def test_a_model_without_a_price_has_no_cost() -> None:
    free = Context("run-1", "sim", "chat", "host/3", "o200k_base", Prices())
    assert row(call(received("Hi")), context=free)["cost_usd"] is None


def test_the_journal_names_plan_part_and_row() -> None:
    capture = Capture(
        Job(
            REQUEST,
            wire(REQUEST.body or "", api="chat", mode="stream", include_usage=True),
            "stream",
            7,
            [],
            4.0,
            calls=[call(received("x"))],
        )
    )
    batch = journal_batch([counted(capture, CONTEXT)] * 3, CONTEXT, plan=2, part=5)
    assert batch.schema == JOURNAL_SCHEMA
    assert [(r["plan"], r["part"], r["row"]) for r in batch.to_pylist()] == [(2, 5, 7)] * 3
    assert [len(r["chunks"]) for r in batch.to_pylist()] == [2, 2, 2]


def test_a_deployment_s_model_is_found_by_the_response() -> None:
    """Price and encoding are those of the model that answered, for an Azure deployment or a serving endpoint."""
    deployed = build_request({"prompt": "Hi"}, api="chat", model="our-deployment", defaults={}, keep=())
    answered = replace(received("Hi"), response_model="gpt-4o-mini")
    made = row(call(answered), request=deployed)
    assert made["cost_usd"] == (8 * 1 + 1 * 10) / 1e6
    assert (made["usage_tiktoken"]["encoding"], made["usage_tiktoken"]["approximate"]) == ("o200k_base", False)
    unknown = row(call(received("Hi")), request=deployed)
    assert (unknown["cost_usd"], unknown["usage_tiktoken"]["approximate"]) == (None, True)


def test_the_output_of_a_tool_call_is_its_name_and_arguments() -> None:
    tools = '[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}},{"type":"web_search_call"}]'
    called = replace(received("Hi"), choices=(Choice(0, "", "tool_calls", tool_calls=tools),))
    assert row(call(called))["usage_tiktoken"]["output_tokens"] == 2


def test_the_request_column_holds_the_last_body_sent() -> None:
    resent = replace(call(received("Hi")), body='{"model":"gpt-4o-mini"}')
    assert row(resent)["request"] == '{"model":"gpt-4o-mini"}'


def test_raw_events_are_kept_as_bytes() -> None:
    raw = (("", b'{"x": "\xff"}'), ("error", b"[DONE]"))
    assert row(call(replace(received("Hi"), raw=raw)))["raw"] == [
        {"event": "", "data": raw[0][1]},
        {"event": "error", "data": b"[DONE]"},
    ]
    assert row(call(received("Hi")))["raw"] is None


@pytest.mark.parametrize(
    ("value", "type_", "fitted"),
    [
        ("a\ud800", pa.string(), "a\ufffd"),
        ("\ud83d\ude00", pa.string(), "😀"),
        (5, pa.string(), None),
        (2**31, pa.int32(), None),
        (2**31 - 1, pa.int32(), 2**31 - 1),
        (-(2**70), pa.int64(), None),
        ("5", pa.int64(), None),
        (Decimal("0.25"), pa.float64(), 0.25),
        (float("inf"), pa.float64(), float("inf")),
        ({"a": 1}, pa.int64(), None),
        ([1, 2**40], pa.list_(pa.int32()), [1, None]),
        ({"x": 2**40, "z": 1}, pa.struct({"x": pa.int32(), "y": pa.string()}), {"x": None, "y": None}),
        ({"k": "\ud800", None: "v"}, pa.map_(pa.string(), pa.string()), [("k", "\ufffd")]),
        (b"\xff", pa.binary(), b"\xff"),
        (datetime(9999, 12, 31, tzinfo=UTC), pa.timestamp("us", tz="UTC"), datetime(9999, 12, 31, tzinfo=UTC)),
        ("soon", pa.timestamp("us", tz="UTC"), None),
    ],
)
def test_any_value_fits(value: object, type_: pa.DataType, fitted: object) -> None:
    assert rowing.fit(value, type_) == fitted
    pa.array([rowing.fit(value, type_)], type_)


@pytest.mark.parametrize("seconds", [1e18, -1e18, float("inf"), float("nan"), 253402300800.0])
def test_a_time_that_no_calendar_has_is_null(seconds: float) -> None:
    assert row(replace(call(received("Hi")), ended_at=seconds))["finished_at"] is None
