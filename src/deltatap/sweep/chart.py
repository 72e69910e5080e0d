"""The chart of a sweep: goodput and TTFT against the rate, as one HTML file that opens without a network.

Needs the extra ``report``, which installs plotly.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deltatap.errors import ConfigError
from deltatap.report.charts import COLORS, LOG
from deltatap.report.page import make_folder
from deltatap.sweep.output import bounds, lines, times

# The buttons of the chart are above it, so that they hide nothing; a narrow page has none.
_CSS = (
    "body{font:16px system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.5rem;overflow-wrap:anywhere}"
    ".chart{margin-top:40px}.modebar{top:-30px!important}.js-plotly-plot:not(:hover,:focus-within) .modebar{opacity:0}"
    "@media(max-width:640px){.modebar{display:none}}"
)
_BUTTONS = {"displaylogo": False, "modeBarButtons": [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]]}

if TYPE_CHECKING:
    from pathlib import Path

    from deltatap.config import Settings
    from deltatap.sweep.running import Swept
    from deltatap.sweep.stages import Plan


def figure(swept: Swept, settings: Settings) -> go.Figure:
    """Goodput above, times below, with the interval of the result."""
    points = sorted(swept.points, key=lambda point: point.rate)
    rates = [point.rate for point in points]
    first = "TTFT" if any(point.ttft_p50_ms is not None for point in points) else "E2E"
    made = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    offered = sorted({0.0, *rates})
    gray, blue, orange, pink = COLORS[6], COLORS[0], COLORS[1], COLORS[4]
    below = [times(point) for point in points]
    for row, name, x, y, color in (
        (1, "all requests good", offered, offered, gray),
        (1, "goodput", rates, [point.good_per_s for point in points], blue),
        (2, f"{first} p50", rates, [p50 for p50, _ in below], pink),
        (2, f"{first} p99", rates, [p99 for _, p99 in below], orange),
    ):
        made.add_trace(go.Scatter(x=x, y=y, name=name, line={"color": color}), row=row, col=1)
    if swept.found is not None and swept.found.rate is not None:
        low, high = swept.found.low or swept.found.rate, swept.found.high or swept.found.rate
        made.add_vrect(x0=low, x1=high, fillcolor=COLORS[2], opacity=0.2, line_width=0, layer="below")
        made.add_vline(x=swept.found.rate, line={"color": COLORS[2]})
    bound = settings.analysis.slo.bounds.get(f"{first.lower()}_ms")
    if bound is not None:
        made.add_hline(y=bound, line={"color": gray, "dash": "dot"}, row=2, col=1)
    made.update_yaxes(title_text="good requests per second", rangemode="tozero", row=1, col=1)
    made.update_yaxes(title_text=f"{first} from the schedule, ms", row=2, col=1, **LOG)
    made.update_xaxes(title_text="requests per second", row=2, col=1)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    made.update_layout(height=760, legend=legend, margin={"l": 60, "r": 16, "t": 16, "b": 52}, template="plotly_white")
    return made


def write_chart(swept: Swept, plan: Plan, settings: Settings, path: Path) -> None:
    """Write the page.

    Raises:
        ConfigError: the file cannot be written.
    """
    make_folder(path)
    name = html.escape(f"deltatap: {swept.sweep}")
    said = "".join(f"<p>{html.escape(line)}</p>" for line in lines(swept, plan, settings))
    green = "" if swept.found is None or swept.found.rate is None else "Green: the result and its interval. "
    slo = html.escape(bounds(settings.analysis.slo.bounds))
    chart = figure(swept, settings).to_html(full_html=False, include_plotlyjs=True, config=_BUTTONS)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head>"
        f'<body><h1>{name}</h1>{said}<p>{green}Dotted: {slo}.</p><div class="chart">{chart}</div></body></html>'
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be written: {error.strerror}"]) from error
