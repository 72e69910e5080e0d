from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from deltatap.driver.progress import Display, Snapshot, line, snapshot
from deltatap.messages import Heartbeat


def test_heartbeats_add_up_and_those_of_dead_workers_count() -> None:
    beats = [
        Heartbeat(1, "00000-000001-a", 9, open=5, requests=10, rows={"completed": 4}, uncalled=1, errors={"server": 2}, output_tokens=7),
        Heartbeat(1, "00000-000002-b", 3, open=2, requests=3, rows={"completed": 1, "failed": 1}, uncalled=2, errors={"server": 1},
                  cost_usd=0.5, ttft_ms=200.0),
        Heartbeat(1, "00001-000001-c", 3, open=3, rows={}, cost_usd=0.25, ttft_ms=100.0, input_tokens=4),
    ]  # fmt: skip
    now = snapshot(20, beats, 8.0)
    assert (now.done, now.rows, now.open, now.requests) == (6, {"completed": 5, "failed": 1}, 5, 13)
    assert (now.errors, now.cost_usd, now.input_tokens, now.output_tokens) == ({"server": 3}, 0.75, 4, 7)
    assert (now.ttft_ms, now.waits_s) == (200.0, 8.0)
    assert now.counts()["completed"] == 5
    assert (now.uncalled, now.called) == (3, 3)


def test_without_heartbeats_there_is_no_progress() -> None:
    assert snapshot(3, [], 0.0) == Snapshot(3, rows={}, errors={})


def test_the_line_in_a_log() -> None:
    now = Snapshot(
        100,
        {"completed": 40, "failed": 1},
        8,
        44,
        10,
        500,
        0.1234,
        210.0,
        {"rate_limit": 3},
        7.0,
        "rate limited by the server (as the server asks)",
    )
    assert line(now, 10.0) == (
        "captured 41/100, 40 completed, 1 failed, 8 streams open, 44 calls, 4.1 requests/s, 50 tokens/s, "
        "TTFT p50 210 ms, $0.1234, 14 s left, errors: rate_limit 3, "
        "waiting 7 s: rate limited by the server (as the server asks)"
    )


@pytest.mark.parametrize(
    ("now", "elapsed_s", "left_s"),
    [
        (Snapshot(100, {"completed": 20}), 10.0, 40.0),
        (Snapshot(100, {"completed": 30, "failed": 20}, uncalled=40), 10.0, 50.0),
        (Snapshot(100, {"failed": 50}, uncalled=50), 10.0, None),
        (Snapshot(100), 10.0, None),
        (Snapshot(100, {"completed": 100}), 10.0, None),
        (Snapshot(100, {"completed": 20}), 0.0, None),
    ],
    ids=["calls only", "rows without a call", "no call yet", "nothing yet", "the end", "the start"],
)
def test_rows_that_take_no_call_do_not_shorten_the_time_left(
    now: Snapshot, elapsed_s: float, left_s: float | None
) -> None:
    assert now.left_s(elapsed_s) == left_s


def test_the_rates_in_the_line_count_calls_only_and_small_costs_have_digits() -> None:
    now = Snapshot(100, {"completed": 30, "failed": 20}, cost_usd=0.000012, uncalled=40)
    assert line(now, 10.0).startswith(
        "captured 50/100, 30 completed, 20 failed, 0 streams open, 0 calls, 1.0 requests/s"
    )
    assert "$0.000012, 50 s left" in line(now, 10.0)


def test_the_live_display_in_a_terminal() -> None:
    output = io.StringIO()
    with Display(Console(file=output, force_terminal=True, width=100)) as display:
        display.update(
            Snapshot(
                100,
                {"completed": 41},
                8,
                44,
                errors={"server": 2},
                waits_s=3,
                waits_for="rate limited by the server (as the server asks)",
            ),
            note="stopping",
        )
    for text in (
        "41/100",
        "8 streams open",
        "server 2",
        "waiting 3 s: rate limited by the server (as the server asks)",
        "stopping",
    ):
        assert text in output.getvalue()


def test_log_lines_are_frequent_at_first_then_every_thirty_seconds() -> None:
    output, now = io.StringIO(), 100.0
    shown = []
    with Display(Console(file=output, width=200), clock=lambda: now) as display:
        for second in range(130):
            now, before = 100.0 + second, len(output.getvalue())
            display.update(Snapshot(500, {"completed": second}))
            if len(output.getvalue()) > before:
                shown.append(second)
    assert shown == [4, 8, 16, 32, 62, 92, 122]


def test_a_worker_that_has_ended_has_no_open_streams() -> None:
    beats = [
        Heartbeat(1, "00000-000001-a", 9, open=5, ended=True, ttft_ms=900.0),
        Heartbeat(1, "00001-000001-b", 9, open=2),
    ]
    assert snapshot(20, beats, 0.0).open == 2
    assert snapshot(20, beats, 0.0).ttft_ms is None, "the median is of the workers that are running"
    assert snapshot(20, beats[:1], 0.0).ttft_ms == 900.0, "or of all, once none is running"


@pytest.mark.parametrize(
    ("beats", "cool_s", "expected"),
    [
        ([], 0.0, (0.0, "")),
        ([], 7.0, (7.0, "rate limited by the server")),
        ([{}, {}], 0.0, (0.0, "")),
        ([{"waits_s": 5.0, "waits_for": "a"}, {"waits_s": 7.0, "waits_for": "b"}], 6.5, (6.5, "b")),
        ([{"waits_s": 5.0, "waits_for": "a"}, {"waits_s": 7.0, "waits_for": "b"}], 0.0, (5.0, "a")),
        ([{"waits_s": 5.0, "waits_for": "a"}, {}], 0.0, (0.0, "")),
    ],
    ids=["nothing", "a limit of an earlier driver's workers", "no wait", "the limit", "retries", "one does not wait"],
)
def test_what_the_run_waits_for(beats: list[dict[str, Any]], cool_s: float, expected: tuple[float, str]) -> None:
    workers = [Heartbeat(1, f"{at:05d}-000001-a", 1, **beat) for at, beat in enumerate(beats)]
    now = snapshot(9, workers, cool_s)
    assert (now.waits_s, now.waits_for) == expected
