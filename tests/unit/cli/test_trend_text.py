"""The output of `trend`."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest

from deltatap.analysis.compare import Difference
from deltatap.analysis.series import Change, Measure, Point, Series
from deltatap.cli.trend_text import show_trend
from deltatap.terminal import plain_console

AT = datetime(2026, 11, 21, 6, 30, tzinfo=UTC)
IDS = ("20261121T063000-abc123", "20261122T063000-abc124")
NIGHTS = ("prompt_version=v1-with-a-long-system-prompt", "prompt_version=v2-shorter-system-prompt")


@pytest.mark.parametrize("width", [80, 120])
def test_a_trend_breaks_no_label_and_says_whose_interval_it_shows(width: int) -> None:
    console = plain_console()
    console.file, console.width = io.StringIO(), width
    points = tuple(Point(run_id, AT, 90, 300.0, 290.0, 310.0, {}) for run_id in IDS)
    change = Change(IDS[1], AT, 1, 1, Difference(300.0, 330.0, 20.0, 40.0), 0.0, ())
    runs = [{"run_id": run_id, "labels": [label.split("=")]} for run_id, label in zip(IDS, NIGHTS, strict=True)]
    show_trend(console, [Series("openai", "gpt-4o-mini", "stream", Measure("ttft_ms", "p95"), points, (change,))], runs)
    _, header, *rows = console.file.getvalue().splitlines()
    assert header.split() == ["started", "run", "rows", "p95", "95", "%", "interval", "of", "p95"]
    assert f"{IDS[0]}: {NIGHTS[0]}" in rows if width == 80 else NIGHTS[0] in rows[0]
    assert max(map(len, rows[:2])) <= width
    levels = "+10.0%, from 300.0 (1 runs) to 330.0 ms (1 runs)"
    assert any(row.endswith(f"{levels}, 95 % interval of the difference +20.0 to +40.0") for row in rows)
