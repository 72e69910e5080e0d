"""The dashboard's file: what a workspace would say only when somebody opens it."""

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


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return read


def test_every_widget_finds_its_data_and_its_place(dashboard: dict[str, Any]) -> None:
    assert problems(dashboard) == []


def test_tables_are_named_without_catalog_and_schema(dashboard: dict[str, Any]) -> None:
    """The bundle gives both, for each target its own."""
    for dataset in dashboard["datasets"]:
        words = "".join(dataset["queryLines"]).replace("\n", " ").split()
        after = [words[at + 1] for at, word in enumerate(words) if word in {"FROM", "JOIN"}]
        assert after
        assert all(name in {"runs", "metrics_by_run", "metrics_by_hour", "stream_vs_complete"} for name in after)


def line(dashboard: dict[str, Any]) -> Any:
    return next(w["widget"] for w in dashboard["pages"][0]["layout"] if w["widget"]["name"] == "ttft-p50-by-hour")


def time_filter(dashboard: dict[str, Any]) -> Any:
    return dashboard["pages"][2]["layout"][0]["widget"]


def place(dashboard: dict[str, Any], at: int) -> Any:
    return dashboard["pages"][0]["layout"][at]["position"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda d: d["datasets"].append(d["datasets"][0]), "dataset hours: there are two"),
        (lambda d: d["datasets"][0].update(queryLines="SELECT 1"), "dataset hours: queryLines"),
        (lambda d: d["datasets"][0].update(queryLines=["SELECT 1", "FROM runs"]), "dataset hours: queryLines"),
        (lambda d: d["datasets"].append({"name": "more", "queryLines": []}), "dataset more: no widget shows it"),
        (lambda d: d["datasets"].pop(0), "trend/rows: there is no dataset hours"),
        (lambda d: line(d)["spec"].update(version=2), "a line has version 3, not 2"),
        (lambda d: line(d)["spec"].update(widgetType="spline"), "there is no widgetType spline"),
        (lambda d: line(d)["spec"]["encodings"].pop("y"), "a line needs y"),
        (lambda d: line(d)["spec"]["encodings"]["x"].update(fieldName="day"), "query main_query has no field day"),
        (lambda d: line(d)["queries"][0].update(name="other"), "there is no query main_query"),
        (lambda d: line(d)["spec"]["encodings"].pop("color"), "nothing shows the field series"),
        (lambda d: line(d)["spec"]["frame"].pop("title"), "trend/ttft-p50-by-hour: has no title"),
        (lambda d: time_filter(d)["queries"][0]["query"].update(disaggregated=True), "of a filter is disaggregated"),
        (lambda d: d["pages"][0].pop("pageType"), "trend: there is no pageType None"),
        (lambda d: line(d).update(name="ttft"), "trend: widget ttft: there are two"),
        (lambda d: place(d, 0).update(width=13), "stands outside of the grid"),
        (lambda d: place(d, 2).update(x=1), "widgets rows and completed-share overlap"),
    ],
)
def test_what_would_not_be_seen_is_found(
    dashboard: dict[str, Any], broken: Callable[[dict[str, Any]], object], said: str
) -> None:
    changed = copy.deepcopy(dashboard)
    broken(changed)
    assert any(said in problem for problem in problems(changed)), problems(changed)
