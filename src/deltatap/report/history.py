"""The chart of a metric over runs, with intervals and with a mark where its level changed.

``analysis/series.py`` finds the changes.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from deltatap.analysis.metrics import METRICS
from deltatap.report.charts import COLORS, Chart, new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from deltatap.analysis.series import Change, Series

_METRICS = {metric.name: metric for metric in METRICS}
_MARK = "#999999"
_WHEN = "%Y-%m-%d %H:%M"


def history_charts(history: Sequence[Series]) -> list[Chart]:
    """The chart of some series of one measure; none without series."""
    if not history:
        return []
    measure = history[0].measure
    metric = _METRICS[measure.metric]
    figure = new_figure("start of the run, UTC", f"{metric.label} {measure.quantile}, {metric.unit}")
    for at, each in enumerate(history):
        _add_series(figure, each, COLORS[at % len(COLORS)], named=len(history) > 1)
    words = [
        f"{_label(each)}, {_words(change)}" if len(history) > 1 else _words(change)
        for each in history
        for change in each.changes
    ]
    most = max(len(each.points) for each in history)
    changed = f" Changes: {'; '.join(words)}." if words else " No change in level was found."
    few = any(point.value is not None and not point.decides for each in history for point in each.points)
    hollow = " Runs with hollow marks have too few values to be tested." if few else ""
    caption = (
        f"The median of each of the newest {most} runs on the captures table, with its 95 % interval.{hollow} A dashed "
        f"line marks the first run at a new level.{changed}"
    )
    return [Chart("history", f"{metric.label} over runs", caption, figure)]


def _add_series(figure: go.Figure, each: Series, color: str, *, named: bool) -> None:
    points = [point for point in each.points if point.value is not None]
    above, below = [], []
    for point in points:
        value = point.value or 0.0
        above.append(round((value if point.high is None else point.high) - value, 3))
        below.append(round(value - (value if point.low is None else point.low), 3))
    symbols = ["circle" if point.decides else "circle-open" for point in points]
    figure.add_scatter(
        x=[point.started_at for point in points],
        y=[round(point.value or 0.0, 3) for point in points],
        error_y={"type": "data", "array": above, "arrayminus": below, "color": color, "thickness": 1, "width": 0},
        mode="lines+markers", name=html.escape(_label(each), quote=False), showlegend=named,
        line={"color": color, "width": 1}, marker={"color": color, "size": 6, "symbol": symbols},
        text=[html.escape(f"{point.run_id}, {point.rows:,} values", quote=False) for point in points],
        hovertemplate="%{y:,.1f}<br>%{x}<br>%{text}<extra></extra>",
    )  # fmt: skip
    for change in each.changes:
        line = {"color": color if named else _MARK, "dash": "dash", "width": 1}
        at = change.started_at
        # Left of the line if there is little room on the right.
        side = "right" if 2 * change.after < change.before else "left"
        figure.add_shape(type="line", xref="x", yref="paper", x0=at, x1=at, y0=0, y1=1, line=line)
        figure.add_annotation(
            x=at, y=1, xref="x", yref="paper", text=_share(change), showarrow=False, xanchor=side, yanchor="top"
        )


def _share(change: Change) -> str:
    found = change.difference
    return f"{found.value / abs(found.first):+.1%}" if found.first else f"{found.value:+,.1f}"


def _words(change: Change) -> str:
    found = change.difference
    with_it = f" with {', '.join(map(str, change.with_it))}" if change.with_it else ""
    return f"{change.started_at:{_WHEN}} {_share(change)} from {found.first:,.0f} to {found.second:,.0f} ms{with_it}"


def _label(each: Series) -> str:
    return f"{each.request_model} at {each.endpoint}"
