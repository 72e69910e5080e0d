"""The chart of a metric over runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deltatap.analysis.series import Measure, series
from deltatap.delta.local import LocalReader
from deltatap.report.data import FEWEST_RUNS, gather
from deltatap.report.history import history_charts
from deltatap.report.page import render
from deltatap.settings_loading import load_settings
from tests.local import no_spark
from tests.nightly import PROMPTS, run_row, times_of_nights, write_nights
from tests.unit.report.test_page import ATTACK, gathered

if TYPE_CHECKING:
    from pathlib import Path

    from deltatap.analysis.series import Series

SINCE = 15


def history(*models: str, shift: float = 0.2) -> list[Series]:
    medians = np.median(times_of_nights(0, shift), axis=1)
    runs = [{**run_row(night, "t"), "run_id": f"{ATTACK}{night}"} for night in range(len(medians))]
    measured = [
        {
            "run_id": run["run_id"], "endpoint": "e", "request_model": model, "mode": "stream", "rows": PROMPTS if at else 3,
            "estimate": {"value": value, "low": value - 9, "high": value + 12 if at else None},
        }
        for model in models
        for at, (run, value) in enumerate(zip(runs, medians.tolist(), strict=True))
    ]  # fmt: skip
    known = {
        (run["run_id"], "e", model, "stream"): {"system_fingerprint": ATTACK if at < SINCE else "fp_2"}
        for model in models
        for at, run in enumerate(runs)
    }
    return series(measured, runs, known, Measure("ttft_ms", "p50", "stream"))


def test_values_intervals_and_changes_are_drawn() -> None:
    found = history("m")
    (chart,) = history_charts(found)
    (trace,) = chart.figure.data
    assert list(trace.y) == pytest.approx([point.value for point in found[0].points], abs=1e-3)
    assert (set(trace.error_y.array[1:]), set(trace.error_y.arrayminus)) == ({12.0}, {9.0})
    assert trace.error_y.array[0] == 0, "an interval without an end"
    assert trace.marker.symbol[:2] == ("circle-open", "circle")
    (change,) = found[0].changes
    assert [shape.x0 for shape in chart.figure.layout.shapes] == [change.started_at]
    share = f"{change.difference.value / change.difference.first:+.1%}"
    assert [each.text for each in chart.figure.layout.annotations] == [share]
    assert f"Changes: 2026-11-16 02:00 {share} from " in chart.caption
    assert "with system_fingerprint" in chart.caption


def test_each_series_is_named_if_there_are_several() -> None:
    (chart,) = history_charts(history("m", "n"))
    assert [trace.name for trace in chart.figure.data] == ["m at e", "n at e"]
    assert chart.caption.count("at e, 2026-11-16") == 2
    assert "No change in level was found." in history_charts(history("m", shift=0.0))[0].caption
    assert history_charts([]) == []


def test_the_page_has_the_chart_and_no_text_becomes_a_script() -> None:
    page = render(gathered(history=history("m")), ["r"], {})
    assert 'id="plot-history"' in page
    assert ATTACK not in page
    assert 'id="plot-history"' not in render(gathered(), ["r"], {})


@pytest.mark.parametrize("nights", [FEWEST_RUNS - 1, FEWEST_RUNS])
def test_the_chart_needs_a_few_runs(nights: int, tmp_path: Path) -> None:
    write_nights(tmp_path, times_of_nights(0, nights=nights)[:, :20])
    settings = load_settings({name: {"table": str(tmp_path / name)} for name in ("captures", "runs")})

    found = gather(LocalReader(no_spark), settings, ["run-01"])
    assert [len(each.points) for each in found.history] == ([nights] if nights == FEWEST_RUNS else [])
    assert {key: run.rows for key, run in found.busy.items()} == {("stream", "run-01"): 20}
