"""The names of runs and series."""

from __future__ import annotations

import pytest

from deltatap.analysis.names import run_names, series_names
from tests.unit.report.test_page import metrics_row, run_row

NAMED = [
    ([run_row("a")], ["a"]),
    ([run_row("a", variant="x")], ["a"]),
    ([run_row("a"), run_row("b")], ["a", "b"]),
    ([run_row("a", variant="x", team="t"), run_row("b", variant="y", team="t")], ["variant=x", "variant=y"]),
    ([run_row("a"), run_row("b", variant="y", team="t")], ["a", "team=t, variant=y"]),
    ([run_row("a", v="1"), run_row("b", v="1"), run_row("c", v="2")], ["v=1, a", "v=1, b", "v=2"]),
]


@pytest.mark.parametrize(("runs", "names"), NAMED)
def test_a_run_is_named_by_the_labels_that_differ_or_else_by_its_id(runs: list[object], names: list[str]) -> None:
    assert list(run_names(runs).values()) == names  # type: ignore[arg-type]


def test_a_series_is_named_by_what_differs() -> None:
    rows = [metrics_row(), metrics_row(run_id="s"), metrics_row(run_id="s", mode="complete")]
    names = series_names(rows, {"r": "r", "s": "variant=hot"})  # type: ignore[arg-type]
    assert list(names.values()) == ["r, stream", "variant=hot, stream", "variant=hot, complete"]
    assert list(series_names(rows[:1], {}).values()) == ["stream"]  # type: ignore[arg-type]
