from __future__ import annotations

import io
import json
import math
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deltatap import terminal
from deltatap.analysis.compare import Counted, Difference
from deltatap.analysis.conditions import evaluate, parse
from deltatap.analysis.metrics import METRICS
from deltatap.analysis.queries import NEXT
from deltatap.driver.lease import this_driver
from deltatap.prices import money

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 12, 1, 9, tzinfo=UTC)
LONG_NAMES = ("20261121T063000-abc123, the night of the test", "20261121T073000-abc124")
RUN: dict[str, Any] = {
    "run_id": "r1", "status": "stopped", "started_at": datetime(2026, 11, 21, 6, 30, tzinfo=UTC), "completed": 1234,
    "owed": 2000, "interrupted": 5, "failed": None, "cost_usd": 1.5, "reason": "stopped by [you]", "requests": 1250,
    "input_tokens": 10_000, "output_tokens": 20_000, "labels": {},
    "config": '{"capture": {"concurrency": 64}}',
}  # fmt: skip
CAPTURE: dict[str, Any] = {
    "started_at": datetime(2026, 11, 21, 6, 30, tzinfo=UTC),
    "request_id": "q[1]", "run_id": "r1", "mode": "stream", "status": "interrupted", "finish_reason": None,
    "error": {"type": "connection", "code": None, "message": "reset [by peer]", "http_status": 502}, "response_model": None,
    "request_model": "m", "retries": [{"error_type": "rate_limit", "text": None}],
    "chunks": [{"ms": 1.0, "kind": "role"}, {"ms": 500.0, "kind": "content"}, {"ms": 1000.0, "kind": "reasoning"}],
    "ttft_ms": 500.0, "tpot_ms": None, "e2e_ms": 1200.0, "loop_lag_ms": 0.5, "usage_reported": None,
    "usage_tiktoken": {"input_tokens": 3, "output_tokens": 2}, "cost_usd": 0.25,
    "api": "chat", "request": json.dumps({"messages": [{"content": "Say\n[bold]", "role": "user"}], "model": "m"}),
    "choices": [{"index": 0, "text": "[bold]Hi", "reasoning": "Hm", "refusal": None, "tool_calls": None}],
}  # fmt: skip


def printed(show: Callable[..., None], *arguments: Any, width: int = 200) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width), *arguments)
    return out.getvalue()


def test_runs_have_a_line_each_and_their_reasons_below() -> None:
    lines = printed(
        terminal.show_runs, [RUN, RUN | {"run_id": "r2", "reason": None}], {}, {}, NOW, width=90
    ).splitlines()
    assert lines[2].split() == ["r1", "stopped", "11-21", "06:30", "1,234/2,000", "5", "1.5000"]
    assert lines[4].split() == ["together", "3.0000"]
    assert lines[5:] == ["r1: stopped by [you]"]


def test_a_long_run_id_takes_two_lines_and_no_room_of_the_numbers() -> None:
    run_id = "sweep-20261202T091118-d64a90-stage-05-again-at-16.6-per-second"
    text = printed(terminal.show_runs, [RUN | {"run_id": run_id}] * 2, {}, {}, NOW, width=80)
    assert [line.split()[-1] for line in text.splitlines() if "1,234/2,000" in line] == ["1.5000"] * 2
    assert run_id in "".join(line.split()[0] for line in text.splitlines())


def test_a_cost_that_is_not_an_amount_is_one_run_s_trouble() -> None:
    """Another program can write any number into a table."""
    runs = [RUN | {"run_id": f"r{at}", "cost_usd": usd} for at, usd in enumerate((math.inf, 1.0, math.nan, 2.0))]
    lines = printed(terminal.show_runs, runs, {}, {}, NOW, width=90).splitlines()
    assert [line.split()[-1] for line in lines[2:7]] == ["inf", "1.0000", "nan", "2.0000", "3.0000"]
    assert "$inf" in printed(terminal.show_capture, CAPTURE | {"cost_usd": math.inf})


def test_a_recording_owes_nothing() -> None:
    lines = printed(terminal.show_runs, [RUN | {"owed": 0, "completed": 3}], {}, {}, NOW, width=90).splitlines()
    assert lines[2].split() == ["r1", "stopped", "11-21", "06:30", "3", "5", "1.5000"]


def test_runs_fit_into_80_columns() -> None:
    run = RUN | {"run_id": "20261121T063000-abc123", "completed": 3980, "owed": 4000, "failed": 2, "reason": None}
    runs = [
        run | {"status": "completed", "cost_usd": 0.0003},
        run | {"status": "budget_exhausted", "cost_usd": 12.3456},
    ]
    _, head, *rest = printed(terminal.show_runs, runs, {}, {}, NOW, width=80).splitlines()
    assert head.split() == ["run", "status", "(UTC)", "done", "rupted", "failed", "USD"]
    values = ["11-21", "06:30", "3,980/4,000", "5", "2"]
    assert [line.split() for line in rest] == [
        [run["run_id"], "completed", *values, "0.0003"],
        [run["run_id"], "budget", *values, "12.3456"],
        ["together", "12.3459"],
    ]


def test_labels_and_good_requests_are_columns_if_there_is_room() -> None:
    runs = [RUN | {"run_id": "r1", "reason": None, "labels": {"night": "Tue", "zone": "[b]"}},
            RUN | {"run_id": "r2", "reason": None, "status": "budget_exhausted"}]  # fmt: skip
    good, slo = {"r1": (143, 1250)}, {"ttft_ms": 1500.0}
    note = "good: completed with ttft_ms at most 1,500 (analysis.slo)"
    _, head, first, second, _, *below = printed(terminal.show_runs, runs, good, slo, NOW, width=120).splitlines()
    assert head.split()[-3:] == ["USD", "good", "labels"]
    assert first.split()[-4:] == ["1.5000", "143/1,250", "night=Tue,", "zone=[b]"]
    assert (second.split()[1], second.split()[-1]) == ("budget_exhausted", "1.5000")
    assert below == [note]
    _, head, first, _, _, *below = printed(terminal.show_runs, runs, good, slo, NOW, width=96).splitlines()
    assert (head.split()[-1], first.split()[-1]) == ("good", "143/1,250")
    assert below == ["r1: night=Tue, zone=[b]", note]


def test_a_start_of_an_earlier_year_has_its_year() -> None:
    lines = printed(terminal.show_runs, [RUN], {}, {}, NOW + timedelta(days=365)).splitlines()
    assert "2026-11-21" in lines[2].split()


@pytest.mark.parametrize(
    ("silent", "note"),
    [
        (timedelta(seconds=59), None),
        (timedelta(seconds=119), "no heartbeat for 119 s"),
        (timedelta(minutes=90), "no heartbeat for 90 min"),
        (timedelta(hours=3), "no heartbeat for 3 h"),
        (timedelta(days=3), "no heartbeat for 3 days"),
    ],
)
def test_a_run_without_a_heartbeat_is_probably_dead(silent: timedelta, note: str | None) -> None:
    run = RUN | {"status": "running", "reason": None, "heartbeat_at": NOW - silent, "driver": None}
    ended = run | {"run_id": "ended", "status": "completed"}
    expected = f"r1: running, but {note}: its driver is probably dead; {NEXT}"
    assert printed(terminal.show_runs, [run, ended], {}, {}, NOW).splitlines()[5:] == ([expected] if note else [])


def test_a_run_whose_process_on_this_machine_has_ended_is_dead() -> None:
    alive = json.loads(this_driver())
    run = RUN | {"status": "running", "reason": None, "heartbeat_at": NOW}
    drivers = {"dead": alive | {"start": "0"}, "alive": alive, "elsewhere": alive | {"host": "other", "start": "0"}}
    runs = [run | {"run_id": name, "driver": json.dumps(driver)} for name, driver in drivers.items()]
    *_, note = printed(terminal.show_runs, runs, {}, {}, NOW).splitlines()
    assert note == f"dead: running, but its process has ended: {NEXT}"


def test_a_run_that_has_not_ended_may_still_get_failed_rows() -> None:
    shown = printed(partial(terminal.show_failures, ended=False), "r1", [], 0)
    assert shown == "run r1: no failed or interrupted rows in the table yet\n"


def test_labels_and_good_requests_share_a_line_for_each_run_and_costs_add_up() -> None:
    runs = [RUN | {"run_id": name, "reason": None} for name in ("r1", "r2", "r3")]
    runs[1]["labels"] = {"night": "Tue", "zone": "[b]"}
    runs[0]["cost_usd"], runs[1]["cost_usd"], runs[2]["cost_usd"] = 0.25, None, 1.5
    good, slo = {"r3": (1299, 1396), "r2": (7, 7), "r1": (0, 3)}, {"ttft_ms": 1500.0, "e2e_ms": 0.5}
    _, _, *lines = printed(terminal.show_runs, runs, good, slo, NOW, width=80).splitlines()
    assert lines[3].split() == ["together", "1.7500"]
    assert lines[4:] == [
        "r1: 0/3 requests good",
        "r2: night=Tue, zone=[b], 7/7 requests good",
        "r3: 1,299/1,396 requests good",
        "good: completed with ttft_ms at most 1,500, e2e_ms at most 0.5 (analysis.slo)",
    ]


def test_summary_of_one_mode_leaves_the_mode_out() -> None:
    outcome: dict[str, Any] = {"mode": "stream", "status": "completed", "why": "stop", "rows": 1234, "retries": None,
                               "example": "q 1", "checked": 0, "flagged": 0, "failed_checks": 0}  # fmt: skip
    times: dict[str, Any] = {
        "mode": "stream",
        "ttft_ms": [1.0, 2.0, 3.0],
        "gap_ms": None,
        "e2e_ms": [4.0, 5.0, 6.0],
        "lag_ms": None,
        "scheduled_ms": None,
        "ttft_scheduled_ms": None,
        "late": 0,
        "kept": 0,
        "merged": 0,
        "outputs": 0,
        "max_loop_lag_ms": 50.0,
    }
    text = printed(terminal.show_summary, RUN, [outcome], [times], [])
    assert "stream" not in text
    assert text.startswith("run r1: stopped\n"), "no spaces at the end"
    assert "1,250 calls, 10,000 input tokens, 20,000 output tokens, $1.5000" in text
    assert "inter-chunk" not in text
    assert "busy" not in text
    assert "moderation" not in text
    moderated = outcome | {"checked": 1200, "flagged": 7, "failed_checks": 2}
    text = printed(terminal.show_summary, RUN, [moderated], [times], [])
    assert "moderation: 7 of 1,200 checked answers are flagged; 2 checks have no result" in text.splitlines()
    text = printed(terminal.show_summary, RUN, [outcome], [times], [])
    assert text.endswith("\nnext: `deltatap show 'q 1'` shows one answer, `deltatap report r1` writes a report\n")
    assert "failures" not in text
    failed = [outcome | {"mode": mode, "status": "failed", "why": "timeout"} for mode in ("stream", "complete")]
    lines = printed(terminal.show_summary, RUN, [outcome, *failed], [times], []).splitlines()
    assert [line for line in lines if "deltatap show" in line] == [
        "failed, timeout: for example `deltatap show 'q 1'`",
        "next: `deltatap show 'q 1'` shows one answer, `deltatap report r1` writes a report",
    ]
    assert "to list all: `deltatap failures r1`" in lines
    options = " --set captures.table=c"
    lines = printed(terminal.show_summary, RUN, [failed[0] | {"example": "-q"}], [], [], None, options).splitlines()
    assert lines[-2:] == [
        f"failed, timeout: for example `deltatap show{options} -- -q`",
        f"to list all: `deltatap failures{options} r1`",
    ], "no row completed"
    models = [{"model": "a", "cost_usd": 0.25}, {"model": "b[1]", "cost_usd": 1.25}, {"model": "c", "cost_usd": None}]
    assert "cost by model" not in printed(terminal.show_summary, RUN, [outcome], [times], models[:1])
    assert "5/6 requests good (analysis.slo)\n" in printed(terminal.show_summary, RUN, [outcome], [times], [], (5, 6))
    text = printed(terminal.show_summary, RUN, [outcome], [times], models)
    assert "cost by model: b[1] $1.2500, a $0.2500, c no price" in text.splitlines()
    both = printed(terminal.show_summary, RUN, [outcome, outcome | {"mode": "complete"}], [times], [])
    assert "TTFT, stream" in both
    late = [times | {"late": 2}, times | {"mode": "complete", "late": 1}]
    busy = "rows (the event loop was more than 50 ms late): "
    advice = "lower capture.concurrency, or use a machine that is less busy"
    assert (
        f"the machine was busy during 3 {busy}report, compare and analyze leave them out of the latencies; {advice}"
        in printed(terminal.show_summary, RUN, [outcome], late, []).splitlines()
    )
    merged = times | {"kept": 2, "merged": 30, "outputs": 400}
    exact = "end-to-end times are exact, but a TTFT can be too long by the loop lag"
    line = f"the machine was busy during 2 {busy}{exact}, and 7.5% of their chunks arrived merged with others and have no gaps"
    kept = [merged, times | {"mode": "complete"}]
    assert f"{line}; {advice}" in printed(terminal.show_summary, RUN, [outcome], kept, []).splitlines()
    one = RUN | {"config": '{"capture": {"concurrency": 1}}'}
    for run, counted in (one, outcome), (RUN, outcome | {"rows": 1}):
        lines = printed(terminal.show_summary, run, [counted], kept, []).splitlines()
        assert f"{line}; use a machine that is less busy" in lines, "only one stream was open"
    for few in 0, 1:
        exact_rows = [times | {"kept": 2, "merged": few, "outputs": 40_000}]
        assert "busy" not in printed(terminal.show_summary, RUN, [outcome], exact_rows, [])


def test_the_summary_of_a_resumed_run_separates_this_start_from_the_whole_run() -> None:
    outcome = {"mode": "stream", "status": "completed", "why": "stop", "rows": 1234, "retries": 0, "example": "q",
               "checked": 0, "flagged": 0, "failed_checks": 0}  # fmt: skip
    shown = partial(printed, terminal.show_summary, RUN, [outcome], [], [], None, "")
    assert shown(250).splitlines()[:2] == [
        "run r1: stopped",
        "this start made 1,000 of the run's 1,250 calls; the numbers below cover the whole run, including earlier starts",
    ]
    assert "this start" not in shown(0)


def test_summary_of_a_run_without_rows() -> None:
    assert printed(terminal.show_summary, RUN, [], [], []) == "run r1: stopped; it added no rows\n"


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
    sent_again = "the next capture sends {} again, unless a later run has a final row for them"
    assert (
        again
        == f"{sent_again.format('these requests')}; an interrupted request is sent in at most capture.max_runs runs"
    )
    mixed = printed(terminal.show_failures, "r1", [row, row | {"final": True}], 2).splitlines()
    assert sent_again.format("the requests without the note “will not be sent again”") in mixed
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


def test_metrics_show_every_metric_that_has_values() -> None:
    estimate = {"value": 12.0, "low": None, "high": 14.5}
    values = {"count": 3, "p50": estimate, "p95": estimate}
    row: dict[str, Any] = {metric.name: values for metric in METRICS} | {"tpot_ms": values | {"count": 0}}
    row |= {"run_id": "r", "request_model": "m", "endpoint": "e", "mode": "stream", "rows": 4, "late": 1,
            "checked": 1200, "flagged": 7, "coalesced": 0.125, "cached_share": 0.25, "inter_chunk_ms": {"count": 7, "p50": 1.0, "p95": 2.0}}  # fmt: skip
    text = printed(terminal.show_metrics, [row])
    assert (
        "run r, m at e, stream: 4 rows, 1 left out because the event loop ran late, 25.0% of the input tokens cached"
        in text
    )
    assert all((metric.title in text) == (metric.name != "tpot_ms") for metric in METRICS)
    assert "… to 14.5" in text
    assert "output rate, tokens/s" in text
    assert "7 gaps, excluding 12.5% of the outputs" in text
    assert "moderation: 7 of 1,200 checked answers are flagged" in text


@pytest.mark.parametrize(
    ("late", "why"),
    [
        (12, "the event loop ran late during all 12 completed requests (analysis.max_loop_lag_ms = 50)"),
        (0, "no request completed"),
    ],
)
def test_metrics_without_values_say_why(late: int, why: str) -> None:
    none = {"count": 0, "p50": None, "p95": None}
    row: dict[str, Any] = {metric.name: none for metric in METRICS} | {"inter_chunk_ms": none}
    row |= {"run_id": "r" * 22, "request_model": "gpt-4o-mini", "endpoint": "https://api.openai.com/v1",
            "mode": "stream", "rows": 14, "late": late, "checked": 0, "cached_share": None, "settings": json.dumps({"max_loop_lag_ms": 50.0})}  # fmt: skip
    title, line = printed(terminal.show_metrics, [row], width=80).splitlines()
    assert title.startswith("run rrrrrr")
    assert line == f"no latencies to show: {why}"


def test_a_comparison_has_a_line_for_each_metric_with_both_quantiles_and_what_a_user_waits_for_first() -> None:
    found = {
        ("stream", "headers_ms", "p50"): Difference(1.0, 1.2, -0.04, 0.4),
        ("stream", "headers_ms", "p95"): Difference(2.0, 27.0, 24.0, 26.0),
        ("stream", "tokens_per_s", "p50"): Difference(46.0, 45.0, None, None),
        ("stream", "tokens_per_s", "p95"): Difference(0.0, 0.04, 0.0, 0.04),
        ("stream", "ttft_ms", "p50"): Difference(100.0, 130.0, 20.0, 40.0),
        ("stream", "ttft_ms", "p95"): Difference(12345.6, 12345.6, -1234.5, 1240.0),
        ("stream", "ttfot_ms", "p50"): Difference(100.0, 130.0, 20.0, 40.0),
        ("stream", "ttfot_ms", "p95"): Difference(12345.6, 12345.6, -1234.5, 1240.0),
        ("complete", "e2e_ms", "p95"): Difference(999.96, 950.0, -60.0, -40.0),
    }
    assert printed(terminal.show_comparison, LONG_NAMES, found, {}, width=80).splitlines() == [
        "stream",
        "metric, ms p50 A p50 B change  interval  p95 A  p95 B change interval",
        "TTFT       100.0 130.0 * +30%  +20…+40% 12,346 12,346   0.0% -10…+10%",
        "tokens/s    46.0  45.0  -2.2%              0.0    0.0    0.0  0.0…0.0",
        "TTFB         1.0   1.2   +20% -4.0…+40%    2.0   27.0  * +25  +24…+26",
        "same values as TTFT: TTFOT",
        "complete",
        "metric, ms p95 A p95 B  change   interval",
        "E2E        1,000 950.0 * -5.0% -6.0…-4.0%",
        "change: B minus A, in % of A; without %: in the metric's unit, because it or its interval reaches 1,000 %",
        "interval: 95 % interval of the change, not of p50 or p95; *: excludes zero",
    ]


@pytest.mark.parametrize(("width", "titles"), [(80, 1), (60, 2)])
def test_a_comparison_wraps_labels_between_words_and_shows_p95_below_p50_on_a_narrow_terminal(
    width: int, titles: int
) -> None:
    found = {("stream", "flagged_chars", p): Difference(112345.6, 123456.7, 10000.0, 12000.0) for p in ("p50", "p95")}
    shown = printed(terminal.show_comparison, LONG_NAMES, found, {}, width=width)
    table = shown[: shown.index("change: ")].splitlines()
    assert sum("metric" in row for row in table) == titles
    assert max(map(len, table)) <= width
    assert shown.count("112,346 123,457 * +9.9% +8.9…+11%") == 2
    words = {word for row in table for word in row.split()}
    assert {"seen", "before", "flag,", "characters"} <= words


def test_the_columns_of_a_comparison_have_the_names_of_the_runs_if_these_fit() -> None:
    found = {("stream", "ttft_ms", p): Difference(100.0, 130.0, 20.0, 40.0) for p in ("p50", "p95")}
    shown = printed(terminal.show_comparison, ("mon", "tue"), found, {}, width=80)
    assert [row.rstrip() for row in shown.splitlines()[1:4]] == [
        "             p50   p50                   p95   p95",
        "metric, ms   mon   tue change interval   mon   tue change interval",
        "TTFT       100.0 130.0 * +30% +20…+40% 100.0 130.0 * +30% +20…+40%",
    ]


def test_a_comparison_says_which_rows_are_left_out() -> None:
    counts = {
        "stream": [Counted(120, {"late": 80, "interrupted": 1}), Counted(1200, {"reused": 1160, "unsent": 6})],
        "complete": [Counted(5, {}), Counted(6, {"failed": 6})],
    }
    left_out = [
        "stream, A: 39 of 120 rows count in the latencies; left out: 1 interrupted, 80 on a late event loop",
        "stream, B: 34 of 1,200 rows count in the latencies; left out: 6 not sent (invalid prompt), 1,160 reused",
        "complete, B: 0 of 6 rows count in the latencies; left out: 6 failed",
    ]
    found = {("stream", "ttft_ms", "p50"): Difference(100.0, 130.0, 20.0, 40.0)}
    assert printed(terminal.show_comparison, LONG_NAMES, found, counts, width=80).splitlines()[-3:] == left_out
    nothing, *why = printed(terminal.show_comparison, LONG_NAMES, {}, counts).splitlines()
    assert nothing.startswith("nothing to compare")
    assert why == left_out


def test_a_comparison_as_json_has_units_and_the_outcomes_of_conditions() -> None:
    found = {("stream", "tokens_per_s", "p50"): Difference(100.0, 130.0, 20.0, 40.0),
             ("complete", "e2e_ms", "p95"): Difference(1.0, 1.0, None, None)}  # fmt: skip
    outcomes = evaluate(parse(["tokens_per_s.p50>+50%"]), found)
    assert json.loads(terminal.comparison_json("a", "b", found, outcomes)) == {
        "first": "a",
        "second": "b",
        "differences": [
            {"mode": "stream", "metric": "tokens_per_s", "quantile": "p50", "unit": "tokens/s", "first": 100.0,
             "second": 130.0, "difference": 30.0, "low": 20.0, "high": 40.0, "excludes_zero": True},
            {"mode": "complete", "metric": "e2e_ms", "quantile": "p95", "unit": "ms", "first": 1.0,
             "second": 1.0, "difference": 0.0, "low": None, "high": None, "excludes_zero": False},
        ],
        "conditions": [{"condition": "tokens_per_s.p50>+50%", "mode": "stream", "holds": False}],
        "runs": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("usd", "shown"),
    [(0, "0.0000"), (1234.5, "1,234.5000"), (0.01774, "0.0177"), (0.0003, "0.0003"), (0.000012345, "0.0000123")],
)
def test_small_amounts_of_money_have_three_digits(usd: float, shown: str) -> None:
    assert money(usd) == shown


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
