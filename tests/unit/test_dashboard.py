"""Checks the dashboard file for mistakes that a workspace reports only when somebody opens the dashboard."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.dashboard import problems

if TYPE_CHECKING:
    from collections.abc import Callable

FILE = Path(__file__).parents[2] / "conf/dashboards/deltatap.lvdash.json"

METRICS_TABLES = ("metrics_by_run", "metrics_by_hour", "stream_vs_complete", "metrics_changes")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def test_the_dashboard_has_no_problems(dashboard: dict[str, Any]) -> None:
    assert problems(dashboard) == []


def test_queries_name_tables_without_catalog_and_schema(dashboard: dict[str, Any]) -> None:
    """The bundle sets both for each target."""
    for dataset in dashboard["datasets"]:
        words = "".join(dataset["queryLines"]).replace("\n", " ").split()
        names = [words[at + 1] for at, word in enumerate(words) if word in {"FROM", "JOIN"}]
        assert names
        assert all(name in {"runs", *METRICS_TABLES} for name in names)


def line(dashboard: dict[str, Any]) -> Any:
    return next(w["widget"] for w in dashboard["pages"][0]["layout"] if w["widget"]["name"] == "ttft-p50-by-hour")


def time_filter(dashboard: dict[str, Any]) -> Any:
    return dashboard["pages"][2]["layout"][0]["widget"]


def place(dashboard: dict[str, Any], at: int) -> Any:
    return dashboard["pages"][0]["layout"][at]["position"]


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda d: d["datasets"].append(d["datasets"][0]), "dataset hours is defined twice"),
        (lambda d: d["datasets"][0].update(queryLines="SELECT 1"), "dataset hours: queryLines"),
        (lambda d: d["datasets"][0].update(queryLines=["SELECT 1", "FROM runs"]), "dataset hours: queryLines"),
        (lambda d: d["datasets"].append({"name": "more", "queryLines": []}), "dataset more: no widget uses it"),
        (lambda d: d["datasets"].pop(0), "trend/rows: dataset hours does not exist"),
        (lambda d: line(d)["spec"].update(version=2), "version of a line must be 3, not 2"),
        (lambda d: line(d)["spec"].update(widgetType="spline"), "unknown widgetType spline"),
        (lambda d: line(d)["spec"]["encodings"].pop("y"), "a line needs y"),
        (lambda d: line(d)["spec"]["encodings"]["x"].update(fieldName="day"), "query main_query has no field day"),
        (lambda d: line(d)["queries"][0].update(name="other"), "query main_query does not exist"),
        (lambda d: line(d)["spec"]["encodings"].pop("color"), "no encoding uses field series"),
        (lambda d: line(d)["spec"]["frame"].pop("title"), "trend/ttft-p50-by-hour: no title"),
        (lambda d: time_filter(d)["queries"][0]["query"].update(disaggregated=True), "must not be disaggregated"),
        (lambda d: d["pages"][0].pop("pageType"), "trend: unknown pageType None"),
        (lambda d: line(d).update(name="ttft"), "trend: widget ttft is defined twice"),
        (lambda d: place(d, 0).update(width=13), "is outside of the grid"),
        (lambda d: place(d, 2).update(x=1), "widgets rows and completed-share overlap"),
    ],
)
def test_a_broken_dashboard_is_reported(
    dashboard: dict[str, Any], break_it: Callable[[dict[str, Any]], object], problem: str
) -> None:
    changed = copy.deepcopy(dashboard)
    break_it(changed)
    assert any(problem in found for found in problems(changed)), problems(changed)
