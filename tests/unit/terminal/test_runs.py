"""The lists of runs, and the summary of a run."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from deltatap import terminal
from deltatap.analysis.queries import NEXT
from deltatap.driver.lease import this_driver
from tests.printing import CAPTURE, NOW, RUN, printed


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
