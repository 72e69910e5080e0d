"""Puts tiles, charts and tables into the template of the page, and writes one file that needs no other file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from deltatap.analysis.compare import Difference, compare_each
from deltatap.analysis.metrics import METRICS, signed
from deltatap.analysis.names import run_names
from deltatap.analysis.queries import newest_with_rows, require_runs
from deltatap.analysis.requested import short_id
from deltatap.errors import ConfigError
from deltatap.report import requests
from deltatap.report.cards import busy_machine, cards, kinds, left_out
from deltatap.report.charts import charts, in_script
from deltatap.report.data import ROWS, Gathered, gather
from deltatap.report.history import history_charts
from deltatap.report.overview import overview
from deltatap.setting_types import URI

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deltatap.config import Settings
    from deltatap.delta.reader import Reader

# The labels of the metrics by name, with their units unless these are ms.
_LABELS = {
    each.name: each.label if each.unit in ("ms", each.label) else f"{each.label}, {each.unit}" for each in METRICS
}


def write_report(reader: Reader, settings: Settings, run_ids: Sequence[str], path: Path) -> list[str]:
    """Write the report.

    Args:
        reader: reads the tables.
        settings: the names of the tables, and the analysis settings.
        run_ids: the runs to report on. If empty, the newest run that has rows.
        path: the file to write; its folder is created.

    Returns:
        The runs in the report.

    Raises:
        ConfigError: there is no such run, no run has rows, or the file cannot be written.
    """
    make_folder(path)
    if run_ids:
        run_ids = [row["run_id"] for row in require_runs(reader, settings, run_ids)]
    else:
        run_ids = [newest_with_rows(reader, settings)]
    run_ids = list(dict.fromkeys(run_ids))
    gathered = gather(reader, settings, run_ids)
    differences = compare_each(reader, settings, run_ids[0], run_ids[1:]) if len(run_ids) > 1 else {}
    page = render(gathered, run_ids, differences)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be written: {error.strerror}"]) from error
    return run_ids


def make_folder(path: Path) -> None:
    """Create the page's folder before the slow queries run."""
    problem = ""
    if URI.match(str(path)):
        problem = "expected a path on this machine or under /Volumes"
    elif path.is_dir():
        problem = "expected a file, found a folder"
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"its folder cannot be created: {error.strerror}"
    if problem:
        raise ConfigError([f"{path}: {problem}"])


def render(
    gathered: Gathered, run_ids: Sequence[str], differences: Mapping[str, Mapping[tuple[str, str, str], Difference]]
) -> str:
    """The HTML of the page. The differences of each later run from the first one are by its id."""
    environment = Environment(loader=PackageLoader("deltatap", "report"), autoescape=True, trim_blocks=True)
    environment.filters["ms"] = lambda value: "…" if value is None else f"{value:,.1f}"
    environment.filters["signed"] = signed
    environment.filters["id"] = short_id
    environment.filters["count"] = lambda value: f"{value:,}"
    names = run_names(gathered.runs)
    return environment.get_template("page.html.j2").render(
        run_ids=run_ids,
        runs=gathered.runs,
        names=names,
        several=len(names) > 1,
        metrics=gathered.metrics,
        defined=METRICS,
        labels=_LABELS,
        cards=cards(gathered),
        overview=overview(gathered.metrics, names),
        bounds=" and ".join(f"{_LABELS[name]} ≤ {bound:,g} ms" for name, bound in gathered.analysis.slo.bounds.items()),
        busy=busy_machine(gathered.busy, names),
        kinds=kinds(gathered.failures),
        left_out=left_out(gathered.uncounted, gathered.analysis),
        counted=gathered.total - sum(row["rows"] for row in gathered.uncounted),
        charts=[*charts(gathered), *history_charts(gathered.history)],
        paired=gathered.paired,
        differences={run_id: found for run_id, found in differences.items() if found},
        streams=gathered.streams,
        streams_json=in_script(json.dumps(_streams(gathered, names))),
        listed=requests.keys(gathered.requests),
        models=len({row["request_model"] for row in gathered.metrics}) > 1,
        requests_json=in_script(requests.packed(gathered.requests, names)),
        slowest=gathered.slowest,
        broken=gathered.broken,
        sampled=gathered.rows.num_rows < gathered.total,
        shown=gathered.rows.num_rows,
        most=ROWS,
        total=gathered.total,
        plotly=get_plotlyjs(),
    )


def _streams(gathered: Gathered, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The streams to replay, for ``replay.js``."""
    return [
        {
            "id": stream.request_id, "run": stream.run_id, "name": names.get(stream.run_id, stream.run_id),
            "why": stream.why, "status": stream.status, "error": stream.error,
            "chunks": [[ms, text, kind] for ms, text, kind in stream.chunks],
            "end": max([stream.e2e_ms or 0, *(ms for ms, _, _ in stream.chunks)]), "wholeMs": stream.whole_ms,
            "whole": stream.whole, "paired": stream.paired,
        }
        for stream in gathered.streams
    ]  # fmt: skip
