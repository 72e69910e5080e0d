"""Checks an AI/BI dashboard file: datasets exist, widget versions are valid, and widgets do not overlap.

The widget versions and the grid follow Databricks' own dashboards and its guide for agents
(github.com/databricks/databricks-agent-skills, databricks-aibi-dashboards).
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = {
    "counter": 2,
    "table": 2,
    "bar": 3,
    "line": 3,
    "filter-date-range-picker": 2,
    "filter-multi-select": 2,
}
NEEDS = {"counter": {"value"}, "table": {"columns"}, "bar": {"x", "y"}, "line": {"x", "y"}}
WIDTH = 12


def widgets(dashboard: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the widgets that show data, each with the name of its page."""
    for page in dashboard["pages"]:
        yield from ((page["name"], each["widget"]) for each in page["layout"] if "spec" in each["widget"])


def shown(node: Any) -> Iterator[dict[str, Any]]:
    """Yield all encodings that use a field."""
    if isinstance(node, dict):
        if "fieldName" in node:
            yield node
        for each in node.values():
            yield from shown(each)
    elif isinstance(node, list):
        for each in node:
            yield from shown(each)


def problems(dashboard: dict[str, Any]) -> list[str]:
    """Return the problems of a dashboard, one line each."""
    found: list[str] = []
    datasets = [dataset["name"] for dataset in dashboard["datasets"]]
    found += [f"dataset {name} is defined twice" for name, times in Counter(datasets).items() if times > 1]
    for dataset in dashboard["datasets"]:
        lines = dataset.get("queryLines")
        if not isinstance(lines, list) or not all(line.endswith(("\n", " ")) for line in lines):
            found.append(
                f"dataset {dataset['name']}: queryLines must be a list of lines that end in a space or a newline"
            )
    used = {query["query"]["datasetName"] for _, widget in widgets(dashboard) for query in widget["queries"]}
    found += [f"dataset {name}: no widget uses it" for name in datasets if name not in used]
    for page, widget in widgets(dashboard):
        found += [f"{page}/{widget['name']}: {problem}" for problem in _widget_problems(widget, datasets)]
    for page in dashboard["pages"]:
        found += [f"{page['name']}: {problem}" for problem in _page_problems(page)]
    return found


def _widget_problems(widget: dict[str, Any], datasets: list[str]) -> Iterator[str]:
    spec, queries = widget["spec"], {query["name"]: query["query"] for query in widget["queries"]}
    kind = spec["widgetType"]
    if kind not in VERSIONS:
        yield f"unknown widgetType {kind}"
        return
    if spec["version"] != VERSIONS[kind]:
        yield f"version of a {kind} must be {VERSIONS[kind]}, not {spec['version']}"
    if missing := NEEDS.get(kind, set()) - spec["encodings"].keys():
        yield f"a {kind} needs {', '.join(sorted(missing))}"
    if not spec["frame"].get("title"):
        yield "no title"
    for name, query in queries.items():
        if query["datasetName"] not in datasets:
            yield f"dataset {query['datasetName']} does not exist"
        if kind.startswith("filter-") and query["disaggregated"]:
            yield f"query {name} of a filter must not be disaggregated"
    yield from _unmatched_fields(spec["encodings"], queries)


def _unmatched_fields(encodings: dict[str, Any], queries: dict[str, Any]) -> Iterator[str]:
    """Yield fields that are used but not queried, or queried but not used."""
    queried = {(name, field["name"]) for name, query in queries.items() for field in query["fields"]}
    used = {(encoding.get("queryName", "main_query"), encoding["fieldName"]) for encoding in shown(encodings)}
    for query, field in sorted(used - queried):
        yield f"query {query} has no field {field}" if query in queries else f"query {query} does not exist"
    yield from (f"no encoding uses field {field} of query {query}" for query, field in sorted(queried - used))


def _page_problems(page: dict[str, Any]) -> Iterator[str]:
    if page.get("pageType") not in {"PAGE_TYPE_CANVAS", "PAGE_TYPE_GLOBAL_FILTERS"}:
        yield f"unknown pageType {page.get('pageType')}"
    names = Counter(each["widget"]["name"] for each in page["layout"])
    yield from (f"widget {name} is defined twice" for name, times in names.items() if times > 1)
    places = [(each["widget"]["name"], each["position"]) for each in page["layout"]]
    for name, at in places:
        if at["x"] < 0 or at["x"] + at["width"] > WIDTH:
            yield f"widget {name} is outside of the grid of {WIDTH} columns"
    for (one, a), (other, b) in combinations(places, 2):
        apart = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
        if not apart and a["y"] < b["y"] + b["height"] and b["y"] < a["y"] + a["height"]:
            yield f"widgets {one} and {other} overlap"
