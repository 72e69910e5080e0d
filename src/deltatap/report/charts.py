"""The charts of the report as plotly figures, with their titles and captions.

``data.py`` gathers the data. The page chooses the colors of light and dark mode.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import pyarrow.compute as pc

from deltatap.analysis.names import KEYS, run_names, series_names
from deltatap.model import OUTPUT_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from deltatap.report.data import Gathered, Stream

# Adapted from Okabe and Ito: distinguishable for color-blind people, visible on light and dark backgrounds.
COLORS = ("#1F8FD6", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999")
KINDS = dict(zip(OUTPUT_KINDS, ("#1F8FD6", "#CC79A7", "#D55E00", "#009E73"), strict=True))
_POINTS = 2_000
_TICK = 0.38
# Bins per decade of ms, and the shortest time that a rate covers.
_DECADE = 20
_RATE_S = 1.0
_FEW = 10
_NAME = 20
# Where each bin of tokens starts.
_SIZES = (0, 1, 2, 3, 4, 5, 9, 17, 33, 65, 129, 257)
# Ticks at 1, 2 and 5 of each decade, with all digits. Between decades, plotly would write only 2 and 5.
_TICKS = [digit * 10.0**decade for decade in range(-2, 8) for digit in (1, 2, 5)]
# A narrower span can contain only one of these ticks; plotly's own ticks fit it.
_SPAN = 6
LOG = {"type": "log", "tickvals": _TICKS, "ticktext": [f"{tick:,.10g}" for tick in _TICKS]}


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with its title and caption. Screen readers also read both."""

    name: str
    title: str
    caption: str
    figure: go.Figure

    @property
    def json(self) -> str:
        """The figure as JSON for a script element."""
        return in_script(str(self.figure.to_json()))


def in_script(json_text: str) -> str:
    """Escape JSON so that no text in it can end a script element or start another."""
    return json_text.replace("<", "\\u003c")


@dataclass(frozen=True, slots=True)
class _Series:
    """The label, mode, color and columns (as arrays) of a series."""

    name: str
    mode: str
    color: str
    values: dict[str, Any]


def charts(gathered: Gathered) -> list[Chart]:
    """The charts that have data, in the order of the page."""
    names = run_names(gathered.runs)
    runs = {run_id: _plain(name) for run_id, name in names.items()}
    label = {key: _plain(name) for key, name in series_names(gathered.metrics, names).items()}
    rows = list(_series(gathered.rows, label))
    # A run has the color of its first series.
    first = {run_id: _color(at) for at, (run_id, *_) in reversed(list(enumerate(label)))}
    found = [
        _wait(rows),
        _ttft(rows),
        _gaps(gathered.gaps, label),
        _sizes(gathered.sizes, label),
        _waterfall(gathered.streams, names),
        _stalls(rows),
        _load(gathered.timeline, runs, first),
        _errors(gathered.errors),
        _tokens(rows),
    ]
    made = [chart for chart in found if chart is not None]
    for chart in made:
        _enough_ticks(chart.figure)
    return made


def _enough_ticks(figure: go.Figure) -> None:
    """Leave the ticks of a logarithmic axis to plotly if all points are close together."""
    for axis, values in ((figure.layout.xaxis, "x"), (figure.layout.yaxis, "y")):
        if axis.type == "log":
            points = np.concatenate([np.asarray(trace[values], dtype=float) for trace in figure.data])
            points = points[points > 0]
            if len(points) and points.max() < _SPAN * points.min():
                axis.update(tickvals=None, ticktext=None)


def _plain(text: str) -> str:
    """Text that plotly shows unchanged: in names and ticks, it interprets some HTML as links and formatting."""
    return html.escape(text, quote=False)


def _series(table: pa.Table, label: Mapping[tuple[Any, ...], str]) -> Iterator[_Series]:
    """Each series with rows whose times count, and these rows. A series has the same color in every chart."""
    for at, (key, name) in enumerate(label.items()):
        chosen = table
        for column, value in zip(KEYS, key, strict=True):
            chosen = chosen.filter(pc.is_null(chosen[column]) if value is None else pc.equal(chosen[column], value))
        if "counts" in table.column_names:
            chosen = chosen.filter(chosen["counts"])
        if chosen.num_rows:
            columns = {column: chosen[column].to_numpy() for column in chosen.column_names}
            yield _Series(name, key[3], _color(at), columns)


def new_figure(x: str, y: str, **layout: Any) -> go.Figure:  # noqa: ANN401 - plotly's keywords
    """An empty figure with titles of both axes."""
    margin, legend = {"l": 60, "r": 16, "t": 16, "b": 52}, {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    figure = go.Figure()
    figure.update_layout(margin=margin, legend=legend, hovermode="closest", **layout)
    figure.update_layout(xaxis_title=x, yaxis_title=y)
    return figure


def _sampled(values: dict[str, Any], *names: str) -> list[Any]:
    """The columns in at most :data:`_POINTS` of the rows that have a value in each of them."""
    complete = np.logical_and.reduce([~np.isnan(values[name].astype(float)) for name in names])
    at = np.flatnonzero(complete)
    if len(at) > _POINTS:
        at = np.random.default_rng(0).choice(at, _POINTS, replace=False)
    return [np.round(values[name][at].astype(float), 2) for name in names]


def _add_points(figure: go.Figure, color: str, name: str, x: Any, y: Any) -> None:  # noqa: ANN401 - arrays
    """Add the points of a series, if it has any."""
    if len(x):
        marker = {"size": 5, "opacity": 0.6, "color": color}
        figure.add_scatter(x=x, y=y, mode="markers", name=name, marker=marker)


def _wait(rows: Sequence[_Series]) -> Chart | None:
    figure = new_figure("output tokens", "time until there is text to read, ms", xaxis=LOG, yaxis=LOG)
    modes = {each.mode for each in rows}
    for each in rows:
        x, y = _sampled(each.values, "output_tokens", "ttft_ms" if each.mode == "stream" else "e2e_ms")
        what = "TTFT" if each.mode == "stream" else "E2E"
        _add_points(figure, each.color, f"{each.name}: {what}", x, y)
    if not figure.data:
        return None
    stream = "In mode stream, the reader waits for the first token (TTFT), regardless of the length. "
    complete = "In mode complete, the reader waits for the complete answer (E2E). "
    caption = f"{stream * ('stream' in modes)}{complete * ('complete' in modes)}Both axes are logarithmic."
    return Chart("saved", "Waiting time by length of the answer", caption, figure)


def _ttft(rows: Iterable[_Series]) -> Chart | None:
    figure = new_figure("time to first token, ms", "% of streams", xaxis=LOG, yaxis={"rangemode": "tozero"})
    streams = [(each, each.values["ttft_ms"].astype(float)) for each in rows if each.mode == "stream"]
    streams = [(each, values[values > 0]) for each, values in streams]
    streams = [(each, values) for each, values in streams if len(values)]
    if not streams:
        return None
    every = np.log10(np.concatenate([values for _, values in streams]))
    # The same bins for each series, with an empty bin at each end, where the line is at 0.
    first, last = np.floor(every.min() * _DECADE) - 1, np.floor(every.max() * _DECADE) + 2
    edges = np.arange(first, last + 1) / _DECADE
    for each, values in streams:
        counts, _ = np.histogram(np.log10(values), edges)
        figure.add_scatter(
            x=np.round(10 ** ((edges[1:] + edges[:-1]) / 2), 3), y=np.round(100 * counts / len(values), 3),
            name=f"{each.name}, median {np.median(values):,.0f} ms", mode="lines",
            fill=_fill(streams), line={"color": each.color, "shape": "hvh"},
        )  # fmt: skip
    caption = "Time from writing the request to the socket until the first output. The axis of times is logarithmic."
    return Chart("ttft", "Time to first token", caption, figure)


def _fill(series: Sequence[Any]) -> str:
    """How the area below lines is filled: not at all if there are several, because they would cover each other."""
    return "tozeroy" if len(series) == 1 else "none"


def _gaps(gaps: pa.Table, label: Mapping[tuple[Any, ...], str]) -> Chart | None:
    figure = new_figure("time between two outputs, ms", "% of gaps", xaxis=LOG)
    found = list(_series(gaps, label))
    for each in found:
        values = each.values
        share = 100 * values["count"] / values["count"].sum()
        figure.add_scatter(
            x=np.round(10 ** ((values["bin"] + 0.5) / 10), 3), y=np.round(share, 3), name=each.name,
            mode="lines", fill=_fill(found), line={"color": each.color, "shape": "spline", "smoothing": 0.4},
        )  # fmt: skip
    if not figure.data:
        return None
    caption = "The time between consecutive outputs of a stream. Only the first output of each socket read counts."
    return Chart("gaps", "Inter-chunk latency", caption, figure)


def _sizes(sizes: pa.Table, label: Mapping[tuple[Any, ...], str]) -> Chart | None:
    figure = new_figure("tokens", "% of chunks, % of socket reads", barmode="group")
    names = _size_names()
    for each in _series(sizes, label):
        values = each.values
        bins = np.searchsorted(_SIZES, values["tokens"], "right") - 1
        for what, title, pattern in (("chunk", "in one chunk", ""), ("read", "at once", "/")):
            its = values["what"] == what
            # There are no reads if burstiness does not count in any row.
            if not its.any():
                continue
            count = np.bincount(bins[its], values["count"][its], len(names))
            figure.add_bar(
                x=names, y=np.round(100 * count / count.sum(), 3), name=f"{each.name}: {title}",
                marker={"color": each.color, "pattern": {"shape": pattern, "size": 6}, "line": {"width": 0}},
            )  # fmt: skip
    if not figure.data:
        return None
    used = [at for at in range(len(names)) if any(bar.y[at] for bar in figure.data)]
    figure.update_layout(xaxis={"type": "category", "range": [used[0] - 0.5, used[-1] + 0.5]})
    caption = (
        "How many tokens one chunk contains, and how many arrive at once, in one socket read. Large chunks come from "
        "speculative decoding, or from a server that sends several tokens together. If more tokens arrive at once than "
        "one chunk contains, a proxy or the network delayed chunks. A chunk with 0 tokens contains only part of a "
        "token."
    )
    return Chart("sizes", "Tokens per chunk", caption, figure)


def _size_names() -> list[str]:
    """The names of the bins that start at :data:`_SIZES`."""
    bins = [f"{first:,}" if last == first + 1 else f"{first:,}-{last - 1:,}" for first, last in pairwise(_SIZES)]
    return [*bins, f"{_SIZES[-1]:,} or more"]


def _waterfall(streams: Iterable[Stream], runs: Mapping[str, str]) -> Chart | None:
    figure = new_figure("time, ms", "")
    names: list[str] = []
    drawn: dict[str, tuple[list[float | None], list[float | None]]] = {kind: ([], []) for kind in KINDS}
    for at, stream in enumerate(streams):
        several = f", {_plain(runs[stream.run_id][:_NAME])}" if len(runs) > 1 else ""
        names.append(f"{_plain(stream.request_id[:_NAME])}, {stream.why}{several}")
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
    caption = (
        "One line per request, one tick per chunk. Times start when the request is written. A gap is a stall. Broken "
        "streams end early."
    )
    return Chart("waterfall", "Arrival of each chunk", caption, figure)


def _stalls(rows: Iterable[_Series]) -> Chart | None:
    figure = new_figure("end to end, ms", "longest pause between two outputs, ms", xaxis=LOG, yaxis=LOG)
    for each in rows:
        if each.mode == "stream":
            _add_points(figure, each.color, each.name, *_sampled(each.values, "e2e_ms", "stall_ms"))
    if not figure.data:
        return None
    return Chart(
        "stalls",
        "Longest stalls",
        "The longest pause of each stream, by the duration of the stream. Both axes are logarithmic.",
        figure,
    )


def _load(timeline: pa.Table, runs: Mapping[str, str], colors: Mapping[str, str]) -> Chart | None:
    if not timeline.num_rows:
        return None
    with_rows = set(pc.unique(timeline["run_id"]).to_pylist())
    figure = new_figure("seconds since the run's first request", "requests/s", yaxis={"rangemode": "tozero"})
    figure.update_layout(yaxis2={"overlaying": "y", "side": "right", "title": "open requests", "rangemode": "tozero"})
    figure.update_layout(margin={"r": 60})
    for run_id in (run_id for run_id in runs if run_id in with_rows):
        run = timeline.filter(pc.equal(timeline["run_id"], run_id))
        seconds, bin_s = run["at"].to_numpy(), float(run["bin_s"][0].as_py())
        every = np.arange(0, float(seconds.max()) + bin_s, bin_s)
        place = np.rint(seconds / bin_s).astype(int)
        started, ended = np.zeros(len(every) + 1), np.zeros(len(every) + 1)
        np.add.at(started, place, run["started"].to_numpy().astype(float))
        np.add.at(ended, place, run["ended"].to_numpy().astype(float))
        several = f" {runs[run_id]}" if len(with_rows) > 1 else ""
        # In a shorter time, the first requests, which start together, would be a rate that hides all others.
        first = np.arange(0, len(every), max(1, math.ceil(_RATE_S / bin_s)))
        width_s = bin_s * np.diff(np.append(first, len(every)))
        figure.add_scatter(
            x=np.round(every[first] + width_s / 2, 3),
            y=np.round(np.add.reduceat(started[:-1], first) / width_s, 3), name=f"started/s{several}", mode="lines",
            line={"color": colors[run_id], "width": 1.2, "dash": "dot", "shape": "hvh"},
        )  # fmt: skip
        figure.add_scatter(
            x=np.round(every, 3), y=np.cumsum(started - ended)[:-1], name=f"open{several}", yaxis="y2", mode="lines",
            line={"color": colors[run_id], "width": 2},
        )  # fmt: skip
    caption = (
        "Dotted: requests started per second (left axis). Solid: open requests (right axis). Only the last call of "
        "each request counts. Earlier calls are in the chart of errors and retries."
    )
    return Chart("load", "Request rate and concurrency", caption, figure)


def _errors(errors: pa.Table) -> Chart | None:
    if not errors.num_rows:
        return None
    figure = new_figure("seconds since the run's first request", "failed calls", barmode="stack")
    figure.update_xaxes(rangemode="tozero")
    # Plotly's own ticks for a small number of calls would include fractions of a call.
    if max(errors.group_by("at").aggregate([("count", "sum")])["count_sum"].to_pylist()) < _FEW:
        figure.update_yaxes(dtick=1)
    for at, kind in enumerate(sorted(pc.unique(errors["type"]).to_pylist())):
        its = errors.filter(pc.equal(errors["type"], kind))
        figure.add_bar(
            x=np.round(its["at"].to_numpy(), 2), y=its["count"].to_numpy(), name=_plain(kind),
            marker={"color": _color(at)}, width=its["bin_s"].to_numpy(),
        )  # fmt: skip
    caption = "Failed calls by error type, including calls that were retried."
    return Chart("errors", "Errors and retries", caption, figure)


def _tokens(rows: Iterable[_Series]) -> Chart | None:
    figure = new_figure("output tokens reported by the server", "output tokens counted by tiktoken")
    most = 0.0
    for each in rows:
        x, y = _sampled(each.values, "reported", "tiktoken")
        _add_points(figure, each.color, each.name, x, y)
        most = max([most, *x, *y])
    if not figure.data:
        return None
    figure.add_scatter(
        x=[0, most], y=[0, most], mode="lines", name="equal", line={"color": "#999999", "dash": "dot", "width": 1}
    )
    caption = (
        "On the dotted line both counts agree. Above it, the server reports fewer tokens than tiktoken; below it, more."
    )
    return Chart("tokens", "Token counts: tiktoken and server", caption, figure)


def _color(at: int) -> str:
    return COLORS[at % len(COLORS)]
