"""The page's charts: what was gathered, as plotly figures.

Knows axes, units and captions. Leaves light and dark to the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pyarrow as pa

    from deltatap.report.data import Gathered, Stream

# Okabe and Ito's, which colour-blind people tell apart, and which show on light and dark.
COLOURS = ("#1F8FD6", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999")
KINDS = {"content": "#1F8FD6", "reasoning": "#CC79A7", "refusal": "#D55E00", "tool_calls": "#009E73"}
_POINTS = 2_000
_TICK = 0.38
_BINS = 60
# Ticks at 1, 2 and 5 of each decade, written out: plotly's own are a bare 2 and 5 in between.
_TICKS = [digit * 10.0**decade for decade in range(-2, 8) for digit in (1, 2, 5)]
_LOG = {"type": "log", "tickvals": _TICKS, "ticktext": [f"{tick:,.10g}" for tick in _TICKS]}
_KEYS = ("run_id", "endpoint", "request_model", "mode")


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure, what it shows, and what it says, for those who read it or have it read to them."""

    name: str
    title: str
    caption: str
    figure: go.Figure

    @property
    def json(self) -> str:
        """The figure for the page."""
        return in_script(str(self.figure.to_json()))


def in_script(json_text: str) -> str:
    """JSON that stands inside a script element: nothing in it can end the element, or begin another."""
    return json_text.replace("<", "\\u003c")


def charts(gathered: Gathered) -> list[Chart]:
    """The charts for which there is anything to draw, in the page's order."""
    label = labels(gathered)
    rows = list(_series(gathered.rows, label))
    made = [
        _saved(rows),
        _ttft(rows),
        _gaps(gathered.gaps, label),
        _waterfall(gathered.streams),
        _stalls(rows),
        _load(gathered.timeline),
        _errors(gathered.errors),
        _tokens(rows),
    ]
    return [chart for chart in made if chart is not None]


def labels(gathered: Gathered) -> Mapping[tuple[Any, ...], str]:
    """What a series is called: of run, endpoint, model and mode those that differ."""
    keys = [tuple(row[key] for key in _KEYS) for row in gathered.metrics]
    differ = [at for at in range(len(_KEYS)) if len({key[at] for key in keys}) > 1]
    words = {"stream": "streamed", "complete": "whole"}
    return {
        key: ", ".join(words.get(str(key[at]), str(key[at])) for at in differ) or words.get(key[3], str(key[3]))
        for key in keys
    }


def _series(table: pa.Table, label: Mapping[tuple[Any, ...], str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each series' label, mode and columns as arrays; rows that count only."""
    for key, name in label.items():
        chosen = table
        for column, value in zip(_KEYS, key, strict=True):
            chosen = chosen.filter(pc.is_null(chosen[column]) if value is None else pc.equal(chosen[column], value))
        if "counts" in table.column_names:
            chosen = chosen.filter(chosen["counts"])
        if chosen.num_rows:
            yield name, key[3], {column: chosen[column].to_numpy() for column in chosen.column_names}


def _figure(x: str, y: str, **layout: Any) -> go.Figure:  # noqa: ANN401 - plotly's keywords
    margin, legend = {"l": 60, "r": 16, "t": 16, "b": 52}, {"orientation": "h", "y": 1.12}
    figure = go.Figure()
    figure.update_layout(margin=margin, legend=legend, hovermode="closest", **layout)
    figure.update_layout(xaxis_title=x, yaxis_title=y)
    return figure


def _sampled(values: dict[str, Any], *names: str) -> list[Any]:
    """So many points as a page can draw, of the rows that have all of the columns."""
    there = np.logical_and.reduce([~np.isnan(values[name].astype(float)) for name in names])
    at = np.flatnonzero(there)
    if len(at) > _POINTS:
        at = np.random.default_rng(0).choice(at, _POINTS, replace=False)
    return [np.round(values[name][at].astype(float), 2) for name in names]


def _saved(rows: Iterable[tuple[str, str, dict[str, Any]]]) -> Chart | None:
    figure = _figure("output tokens", "ms until there is something to read", xaxis=_LOG, yaxis=_LOG)
    for at, (name, mode, values) in enumerate(rows):
        x, y = _sampled(values, "output_tokens", "ttft_ms" if mode == "stream" else "e2e_ms")
        what = "TTFT" if mode == "stream" else "E2E"
        if len(x):
            figure.add_scatter(
                x=x,
                y=y,
                mode="markers",
                name=f"{name}: {what}",
                marker={"size": 5, "opacity": 0.6, "color": _colour(at)},
            )
    if not figure.data:
        return None
    caption = (
        "A reader of a streamed answer waits for its first token, however long the answer is; a reader of a whole "
        "answer waits for all of it. Both axes are logarithmic."
    )
    return Chart("saved", "How long a reader waits, by the length of the answer", caption, figure)


def _ttft(rows: Iterable[tuple[str, str, dict[str, Any]]]) -> Chart | None:
    figure = _figure("time to first token, ms", "% of the streams", barmode="overlay")
    streams = [(name, values["ttft_ms"].astype(float)) for name, mode, values in rows if mode == "stream"]
    streams = [(name, values[~np.isnan(values)]) for name, values in streams]
    streams = [(name, values) for name, values in streams if len(values)]
    if not streams:
        return None
    every = np.concatenate([values for _, values in streams])
    edges = np.linspace(0, float(np.quantile(every, 0.995)) * 1.05 or 1.0, _BINS + 1)
    for at, (name, values) in enumerate(streams):
        counts, _ = np.histogram(values, edges)
        figure.add_bar(
            x=np.round((edges[1:] + edges[:-1]) / 2, 2), y=np.round(100 * counts / len(values), 3),
            name=f"{name}, median {np.median(values):,.0f} ms", width=float(edges[1] - edges[0]),
            marker={"color": _colour(at), "opacity": 0.7 if len(streams) > 1 else 1.0, "line": {"width": 0}},
        )  # fmt: skip
    beyond = sum(int((values > edges[-1]).sum()) for _, values in streams)
    more = f" {beyond:,} slower ones are beyond the right edge." if beyond else ""
    return Chart("ttft", "Time to first token", f"From the request on the socket to the first output.{more}", figure)


def _gaps(gaps: pa.Table, label: Mapping[tuple[Any, ...], str]) -> Chart | None:
    figure = _figure("time between two outputs, ms", "% of the gaps", xaxis=_LOG)
    for at, (name, _, values) in enumerate(_series(gaps, label)):
        share = 100 * values["count"] / values["count"].sum()
        figure.add_scatter(
            x=np.round(10 ** ((values["bin"] + 0.5) / 10), 3), y=np.round(share, 3), name=name, mode="lines",
            fill="tozeroy", line={"color": _colour(at), "shape": "spline", "smoothing": 0.4},
        )  # fmt: skip
    if not figure.data:
        return None
    caption = "Of each socket read only the first output counts: what came together says nothing about the model."
    return Chart("gaps", "Inter-chunk latency", caption, figure)


def _waterfall(streams: Iterable[Stream]) -> Chart | None:
    figure = _figure("ms since the request was written", "")
    names: list[str] = []
    drawn: dict[str, tuple[list[float | None], list[float | None]]] = {kind: ([], []) for kind in KINDS}
    for at, stream in enumerate(streams):
        names.append(f"{stream.request_id[:16]}, {stream.why}")
        for ms, _, kind in stream.chunks:
            x, y = drawn[kind]
            x += [ms, ms, None]
            y += [at - _TICK, at + _TICK, None]
    for kind, (x, y) in drawn.items():
        if x:
            figure.add_scatter(
                x=x, y=y, mode="lines", name=kind, line={"color": KINDS[kind], "width": 1.2}, hoverinfo="x"
            )
    if not figure.data:
        return None
    ticks = {"tickvals": list(range(len(names))), "ticktext": names, "range": [len(names) - 0.5, -0.5]}
    figure.update_layout(yaxis={**ticks, "automargin": True, "showgrid": False, "zeroline": False})
    caption = "One line a request, one tick a chunk. A hole is a stall; what broke off ends early."
    return Chart("waterfall", "When each chunk came", caption, figure)


def _stalls(rows: Iterable[tuple[str, str, dict[str, Any]]]) -> Chart | None:
    figure = _figure("end to end, ms", "longest time between two outputs, ms", xaxis=_LOG, yaxis=_LOG)
    for at, (name, mode, values) in enumerate(rows):
        if mode == "stream":
            x, y = _sampled(values, "e2e_ms", "stall_ms")
            if len(x):
                figure.add_scatter(
                    x=x, y=y, mode="markers", name=name, marker={"size": 5, "opacity": 0.6, "color": _colour(at)}
                )
    if not figure.data:
        return None
    return Chart(
        "stalls", "Stalls", "How long each stream stood still at its worst. Both axes are logarithmic.", figure
    )


def _load(timeline: pa.Table) -> Chart | None:
    if not timeline.num_rows:
        return None
    figure = _figure("seconds since the run's first request", "requests a second")
    figure.update_layout(yaxis2={"overlaying": "y", "side": "right", "title": "requests open", "rangemode": "tozero"})
    figure.update_layout(margin={"r": 60})
    for at, run_id in enumerate(pc.unique(timeline["run_id"]).to_pylist()):
        run = timeline.filter(pc.equal(timeline["run_id"], run_id))
        seconds, bin_s = run["at"].to_numpy(), float(run["bin_s"][0].as_py())
        every = np.arange(0, float(seconds.max()) + bin_s, bin_s)
        place = np.rint(seconds / bin_s).astype(int)
        started, ended = np.zeros(len(every) + 1), np.zeros(len(every) + 1)
        np.add.at(started, place, run["started"].to_numpy().astype(float))
        np.add.at(ended, place, run["ended"].to_numpy().astype(float))
        several = f" {run_id}" if len(pc.unique(timeline["run_id"])) > 1 else ""
        figure.add_bar(
            x=np.round(every, 3), y=np.round(started[:-1] / bin_s, 3), name=f"started a second{several}", width=bin_s,
            marker={"color": _colour(2 * at), "opacity": 0.55, "line": {"width": 0}},
        )  # fmt: skip
        figure.add_scatter(
            x=np.round(every, 3), y=np.cumsum(started - ended)[:-1], name=f"open{several}", yaxis="y2", mode="lines",
            line={"color": _colour(2 * at + 1), "width": 2},
        )  # fmt: skip
    caption = "Each request's last call. Calls that were tried again are among the errors."
    return Chart("load", "Concurrency and rate", caption, figure)


def _errors(errors: pa.Table) -> Chart | None:
    if not errors.num_rows:
        return None
    figure = _figure("seconds since the run's first request", "calls that failed", barmode="stack")
    for at, kind in enumerate(sorted(pc.unique(errors["type"]).to_pylist())):
        its = errors.filter(pc.equal(errors["type"], kind))
        figure.add_bar(
            x=np.round(its["at"].to_numpy(), 2), y=its["count"].to_numpy(), name=kind, marker={"color": _colour(at)},
            width=its["bin_s"].to_numpy(),
        )  # fmt: skip
    caption = "By error type, those that were tried again included."
    return Chart("errors", "Errors and retries", caption, figure)


def _tokens(rows: Iterable[tuple[str, str, dict[str, Any]]]) -> Chart | None:
    figure = _figure("output tokens as the server reports them", "output tokens as tiktoken counts")
    most = 0.0
    for at, (name, _, values) in enumerate(rows):
        x, y = _sampled(values, "reported", "tiktoken")
        if len(x):
            most = max(most, float(x.max()), float(y.max()))
            figure.add_scatter(
                x=x, y=y, mode="markers", name=name, marker={"size": 5, "opacity": 0.6, "color": _colour(at)}
            )
    if not figure.data:
        return None
    figure.add_scatter(
        x=[0, most], y=[0, most], mode="lines", name="equal", line={"color": "#999999", "dash": "dot", "width": 1}
    )
    caption = "On the dotted line both agree. Above it the server charged for less than it sent, below it for more."
    return Chart("tokens", "tiktoken's count against the server's", caption, figure)


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]
