"""One request, and the list of the failed and interrupted ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatap import terminal
from tests.printing import CAPTURE, printed


def test_a_capture_shows_outcome_chunks_times_and_text_literally() -> None:
    text = printed(terminal.show_capture, CAPTURE)
    for line in (
        "q[1]  stream  interrupted (connection)  m  run r1",
        "connection 502: reset [by peer]",
        "call 1: rate_limit, 0 characters received",
        "prompt: Say [bold]",
        "[bold]Hi",
    ):
        assert line in text.splitlines()
    times, usage = "TTFT 500.0 ms, end to end 1,200.0 ms, loop lag 0.5 ms", "3 input + 2 output tokens"
    assert f"{times}, {usage} (counted by tiktoken), $0.2500" in text.splitlines()
    assert "2 chunks in 1.00 s" in text, "the role is not output"


def test_a_capture_names_its_older_rows() -> None:
    row = CAPTURE | {"earlier": [("r0", "completed"), ("q9", "failed")]}
    expected = "older rows: completed in run r0, failed in run q9; `--run` shows one of them"
    assert expected in printed(terminal.show_capture, row).splitlines()
    assert "older" not in printed(terminal.show_capture, row | {"earlier": []})


def test_a_capture_shows_where_the_time_before_its_output_went() -> None:
    new = {"reused": False, "dns_ms": 0.1, "connect_ms": 2.0, "tls_ms": None, "upload_ms": 0.0}
    row = CAPTURE | {"queued_ms": 3.0, "dispatch_ms": 4.0, "headers_ms": 450.0, "connection": new}
    before = "queued 3.0 ms, request sent after 4.0 ms, response headers after 450.0 ms"
    assert f"{before}, new connection (DNS 0.1, connect 2.0 ms)" in printed(terminal.show_capture, row).splitlines()
    row["connection"] = dict.fromkeys(new) | {"reused": True}
    assert f"{before}, reused connection" in printed(terminal.show_capture, row).splitlines()
    assert "queued" not in printed(terminal.show_capture, row | {"started_at": None})


@pytest.mark.parametrize(
    ("reported", "shown"),
    [
        ({"input_tokens": None, "output_tokens": 7}, "7 output tokens (reported)"),
        ({"input_tokens": 9, "output_tokens": None}, "9 input tokens (reported)"),
        ({"input_tokens": None, "output_tokens": None}, "3 input + 2 output tokens (counted by tiktoken)"),
    ],
)
def test_a_capture_shows_what_the_server_reports_of_its_usage(reported: dict[str, int | None], shown: str) -> None:
    assert f", {shown}, $" in printed(terminal.show_capture, CAPTURE | {"usage_reported": reported})


def test_a_capture_shows_how_late_it_started_if_it_had_a_scheduled_time() -> None:
    late = CAPTURE | {"scheduled_ms": 12.34}
    assert ", start after its scheduled time 12.3 ms," in printed(terminal.show_capture, late)


def test_failures_have_a_line_each_and_a_hash_has_its_prompt() -> None:
    row = {"request_id": "q[1]", "mode": "stream", "status": "failed", "type": "server", "code": None, "http_status": 500,
           "message": "over\nloaded " * 20, "final": False, "api": "chat", "model": "m", "body": CAPTURE["request"]}  # fmt: skip
    hashed = row | {"request_id": "ab" * 32, "status": "interrupted", "code": "c", "http_status": None, "message": None}
    title, first, second, prompt, more, again, _ = printed(
        terminal.show_failures, "r1", [row, hashed], 7, width=80
    ).splitlines()
    assert title == "run r1: 7 failed or interrupted rows"
    assert first.startswith("q[1]  failed  server 500: over loaded over")
    assert first.endswith("…")
    assert second == "abababababab  interrupted  server c: no message"
    assert prompt.strip() == "prompt: Say [bold]"
    assert more == "5 more: --limit 7 lists all"
    sent_again = "the next capture sends {}, unless a later run has a final row for them"
    assert (
        again
        == f"{sent_again.format('these requests again')}; an interrupted request is sent in at most capture.max_runs runs"
    )
    mixed = printed(terminal.show_failures, "r1", [row, row | {"final": True}], 2).splitlines()
    assert sent_again.format("the requests that are not marked “will not be sent again”") in mixed
    recorded = row | {"request_id": "20261202T084210-3fa9c1d2e4b5"}
    shown = printed(terminal.show_failures, "r1", [recorded, recorded | {"body": None, "api": "responses"}], 2)
    assert [line.strip() for line in shown.splitlines()[2:5:2]] == ["m /chat/completions: Say [bold]", "m /responses"]
    assert "the next capture" not in shown, "no capture sends a recorded call"
    invalid = row | {"type": "invalid_request", "http_status": None, "message": "no prompt", "final": True}
    first, *hints = printed(terminal.show_failures, "r1", [invalid], 1, " -c c", " -c p").splitlines()[1:]
    assert first == "q[1]  failed; will not be sent again  invalid_request: no prompt"
    assert hints == [
        "invalid_request: a corrected prompt is a new request: load a file with `deltatap load -c p FILE --replace`, and capture again",
        "to show one request in full: `deltatap show -c c REQUEST_ID`",
    ]
    both = printed(terminal.show_failures, "r1", [row, row | {"mode": "complete"}], 2)
    assert "q[1] (complete)  failed" in both
    assert "more:" not in both
    assert printed(terminal.show_failures, "r1", [], 0) == "run r1: no failed or interrupted rows\n"


def test_a_row_without_a_call_says_so_and_has_no_tokens_or_cost() -> None:
    row = CAPTURE | {"started_at": None, "retries": [], "chunks": [], "ttft_ms": None, "e2e_ms": None, "choices": [],
                     "loop_lag_ms": None, "usage_tiktoken": {"input_tokens": 0, "output_tokens": 0}, "cost_usd": 0.0}  # fmt: skip
    *_, call, prompt = printed(terminal.show_capture, row).splitlines()
    assert (call, prompt) == ("no call was made", "prompt: Say [bold]")


def test_a_reused_answer_names_its_request() -> None:
    text = printed(terminal.show_capture, CAPTURE | {"reused_from": {"run_id": "r0", "request_id": "p[1]"}})
    assert "the answer of request p[1] in run r0, reused without a call" in text.splitlines()


def check(chars: int, flagged: object, **values: Any) -> dict[str, Any]:
    usual = {"choice": 0, "chunk": chars // 4, "categories": [], "error": None, "seen": chars + 9}
    return usual | {"chars": chars, "flagged": flagged} | values


@pytest.mark.parametrize(
    ("checks", "shown"),
    [
        ([], "unknown; 0 checks"),
        ([check(20, False)], "not flagged; 1 check"),
        ([check(20, None, error="timeout")], "unknown; 1 check (1 without a result: timeout)"),
        (
            [check(1000, None, error="server"), check(2000, True, categories=["hate", "x"]), check(2500, True)],
            "flagged (hate, x) after 2,000 characters, at chunk 500; a reader had seen 2,009 characters; 3 checks",
        ),
        (
            [check(5, True, chunk=None, seen=5)],
            "flagged after 5 characters, at its end; a reader had seen 5 characters; 1 check",
        ),
    ],
)
def test_a_capture_shows_where_its_text_was_flagged(checks: list[dict[str, Any]], shown: str) -> None:
    text = printed(terminal.show_capture, CAPTURE | {"partial_moderation": json.dumps(checks)})
    (found,) = (line for line in text.splitlines() if line.startswith("moderation: "))
    assert found.removeprefix("moderation: ").removesuffix(" (1 without a result: server)") == shown
    assert "moderation" not in printed(terminal.show_capture, CAPTURE | {"partial_moderation": None})


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 80))
def test_a_sparkline_has_its_width_and_shows_every_chunk(times: list[float], width: int) -> None:
    line = terminal.sparkline(times, width)
    bars = line.split("│")[1]
    assert len(bars) == width
    assert "█" in bars
    assert f"{len(times):,} chunks" in line


def test_a_sparkline_fits_into_80_columns() -> None:
    assert len(terminal.sparkline([900_000.0] * 10_000)) <= 80


@pytest.mark.parametrize(("times", "bars"), [([1.0, 2.0], "     █   █"), ([10.0], "         █"), ([], None)])
def test_bars_show_where_chunks_arrived(times: list[float], bars: str | None) -> None:
    line = terminal.sparkline(times, 10)
    assert line.split("│")[1] == bars if bars else line == ""
