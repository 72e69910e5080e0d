from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests import prompts
from tests.runs import capture, captured

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import Row, SparkSession

    from tests.simulation import Simulation

IDLE_S = 2.0
PACE = {"speed": 20, "tokens": 40}
# fault → status, error type, calls. With max_attempts 3, max_broken 2.
OUTCOMES: dict[str, tuple[str, str | None, int]] = {
    "": ("completed", None, 1),
    "role_with_content": ("completed", None, 1),
    "empty_choices": ("completed", None, 1),
    "comments": ("completed", None, 1),
    "crlf": ("completed", None, 1),
    "cr": ("completed", None, 1),
    "coalesce": ("completed", None, 1),
    "fragment": ("completed", None, 1),
    "bom": ("completed", None, 1),
    "bom+crlf+comments+fragment": ("completed", None, 1),
    "no_finish": ("completed", None, 1),
    "no_done": ("completed", None, 1),
    "no_usage": ("completed", None, 1),
    "content_filter": ("completed", None, 1),
    "length": ("completed", None, 1),
    "429=0.1:2": ("completed", None, 3),
    "429=date:1": ("completed", None, 2),
    "500:1": ("completed", None, 2),
    "502:2": ("completed", None, 3),
    "503:1!cut@2:1": ("completed", None, 3),
    "408:1": ("completed", None, 2),
    "409:1": ("completed", None, 2),
    "cut@3:1": ("completed", None, 2),
    "cut_first:1": ("completed", None, 2),
    "slow_headers=0.2": ("completed", None, 1),
    "500": ("failed", "server", 3),
    "400": ("failed", "invalid_request", 1),
    "413": ("failed", "invalid_request", 1),
    "422": ("failed", "invalid_request", 1),
    "content_policy": ("failed", "content_policy", 1),
    "cut@3": ("interrupted", "stream_interrupted", 2),
    "cut@0": ("failed", "connection", 3),
    "cut_first": ("failed", "connection", 3),
    "stall@3": ("interrupted", "timeout", 2),
    "stall@0": ("failed", "timeout", 3),
    "slow_headers=60": ("failed", "timeout", 3),
    "error_event@2": ("interrupted", "stream_error", 2),
    "error_event=event@2": ("interrupted", "stream_error", 2),
    "error_event@0": ("failed", "stream_error", 3),
    "no_end@2": ("interrupted", "stream_interrupted", 2),
    "no_end@0": ("failed", "stream_interrupted", 3),
    "bad_json@2": ("interrupted", "protocol", 2),
    "html": ("failed", "protocol", 3),
}
PROMPTS = 1000


def test_every_row_matches_the_simulators_record(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    faults = [*OUTCOMES] * 3 + [""] * (PROMPTS - 3 * len(OUTCOMES))
    rows = [
        (f"r{n:04d}", f"Prompt {n}?", f"gpt-4o-mini!{fault}" if fault else None, '{"n": 2}' if n % 50 == 0 else None)
        for n, fault in enumerate(faults)
    ]
    prompts.write(spark, tables / "prompts", rows)
    ended, _ = capture(
        spark,
        tables,
        simulator,
        capture={"concurrency": 64, "max_attempts": 3, "max_broken": 2},
        timeouts={"first_byte_s": 4, "idle_s": IDLE_S, "total_s": 30},
    )
    calls = defaultdict(list)
    for call in simulator.calls():
        calls[call["key"]].append(call)
    found = {row["request_id"]: row for row in captured(spark, tables)}
    assert len(found) == PROMPTS
    assert simulator.counts()["calls"] == ended.row["requests"]
    for number, fault in enumerate(faults):
        row = found[f"r{number:04d}"]
        check_row(row, fault, calls[row["request_hash"]])


def check_row(row: Row, fault: str, calls: list[dict[str, Any]]) -> None:
    status, error_type, count = OUTCOMES[fault]
    where = (row["request_id"], fault)
    assert (row["status"], row["error"] and row["error"]["type"]) == (status, error_type), where
    assert [call["attempt"] for call in calls] == list(range(count)), where
    assert len(row["retries"]) == count - 1, where
    for retry, call in zip(row["retries"], calls, strict=False):
        assert (retry["text"] or "") == sent(call, fault), where
        assert contents(retry["chunks"]) == pieces(call, fault), where
    last = calls[-1]
    assert (row["text"] or "") == sent(last, fault), where
    assert contents(row["chunks"]) == pieces(last, fault), where
    assert [choice["text"] for choice in row["choices"]] == [
        sent(last, fault, choice) for choice in sorted(last["texts"])
    ], where
    assert row["finish_reason"] == (None if "bad_json" in fault else last["finish_reasons"].get("0")), where
    reported = row["usage_reported"]
    expected = last["usage"]
    if expected is None or "bad_json" in fault:
        assert reported is None, where
    else:
        assert (reported["input_tokens"], reported["output_tokens"]) == (
            expected["prompt_tokens"],
            expected["completion_tokens"],
        ), where
    if status == "completed":
        assert row["error"] is None, where
        if "bad_json" not in fault and "no_finish" not in fault:
            assert frames(row["chunks"]) == last["frames"], where
    if error_type == "timeout":
        assert row["error"]["code"] == ("idle" if row["text"] else "first_byte"), where
    times = [chunk["ms"] for chunk in row["chunks"]]
    assert times == sorted(times), where
    assert row["ttft_ms"] == next((c["ms"] for c in row["chunks"] if c["kind"] == "content"), None), where


def pieces_up_to_fault(call: dict[str, Any], fault: str) -> list[tuple[float, str]]:
    """Return a call's pieces up to the frame with invalid JSON."""
    chunks: list[tuple[float, str]] = call["chunks"]
    return chunks[: int(fault.partition("@")[2])] if fault.startswith("bad_json") else chunks


def pieces(call: dict[str, Any], fault: str) -> list[str]:
    return [text for _, text in pieces_up_to_fault(call, fault)]


def sent(call: dict[str, Any], fault: str, choice: str = "0") -> str:
    if fault.startswith("bad_json"):
        return "".join(pieces(call, fault))
    return str(call["texts"].get(choice, ""))


def contents(chunks: list[Row]) -> list[str]:
    return [chunk["text"] for chunk in chunks if chunk["kind"] == "content"]


def frames(chunks: list[Row]) -> int:
    return len({chunk["event"] for chunk in chunks})
