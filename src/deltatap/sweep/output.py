"""The output of ``deltatap sweep``: a table of the stages, the result as a sentence, and JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deltatap.visible import json_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deltatap.config import Settings
    from deltatap.sweep.running import Swept
    from deltatap.sweep.stages import Plan, Point

# How many requests of a stage must be allowed not to be good at this share. With fewer, chance decides the outcome.
_BAD = 5
# Requests that start this late distort a stage.
_LATE_MS = 50.0


def table(swept: Swept, plan: Plan) -> Table:
    """The stages, in order of their rates."""
    made = Table(box=None, padding=(0, 2, 0, 0))
    first = "TTFT" if any(point.ttft_p50_ms is not None for point in swept.points) else "E2E"
    for name in ("rate /s", "good", "goodput /s", f"{first} p50 ms", "p99 ms", "late p99 ms", "holds"):
        made.add_column(name, justify="right", no_wrap=True)
    for point in sorted(swept.points, key=lambda point: point.rate):
        p50, p99 = times(point)
        made.add_row(
            f"{point.rate:,.3g}",
            f"{point.good:,}/{point.requests:,}",
            *(_number(value) for value in (point.good_per_s, p50, p99, point.delay_p99_ms)),
            "yes" if point.holds(plan.share) else "no",
        )
    return made


def times(point: Point) -> tuple[float | None, float | None]:
    """The median and p99 of TTFT, or of E2E if the answers were not streamed."""
    if point.ttft_p50_ms is None:
        return point.e2e_p50_ms, point.e2e_p99_ms
    return point.ttft_p50_ms, point.ttft_p99_ms


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def bounds(slo: Mapping[str, float]) -> str:
    """The bounds of ``analysis.slo``, as text."""
    return " and ".join(f"{name} at most {bound:,.10g}" for name, bound in slo.items())


def lines(swept: Swept, plan: Plan, settings: Settings) -> Iterator[str]:
    """The result as a sentence, and what distorts it."""
    found, needed = swept.found, fewest(plan.share)
    few = min((point.requests for point in swept.points if point.requests < needed), default=None)
    small = f"the smallest stage had {few:,} request{'s' * (few != 1)}, too few to decide" if few is not None else ""
    what = f"{100 * plan.share:.10g} % of requests have {bounds(settings.analysis.slo.bounds)}"
    if found is None:
        larger = "raise the budget and " if (swept.reason or "").startswith("budget.") else ""
        yield f"sweep {swept.sweep} has not ended: {swept.reason}; to continue it, {larger}run the command again"
    elif found.rate is None:
        lower = "lower --rates, or raise --duration" if plan.rates else "raise --duration to test lower rates"
        doubt, more = (
            (f"; but {small} this", f", with {needed:,} or more requests in each stage") if small else ("", "")
        )
        yield f"result: none; at every tested rate, fewer than {what}{doubt}: {lower}{more}"
    elif found.high is not None:
        interval = f"below {found.high:,.3g}" if found.low is None else f"{found.low:,.3g} to {found.high:,.3g}"
        yield f"result: {found.rate:,.3g} requests per second (interval: {interval}): at least {what}"
    else:
        more = "" if plan.rates else "; for higher rates, load more prompts or lower --duration"
        yield f"result: at least {found.rate:,.3g} requests per second, the highest tested rate: at least {what}{more}"
    if small and (found is None or found.rate is not None):
        yield f"{small} {100 * plan.share:.10g} %: raise --duration, for {needed:,} or more"
    late = [point for point in swept.points if (point.delay_p99_ms or 0) > _LATE_MS]
    if late:
        worst = min(late, key=lambda point: point.rate)
        yield (
            f"at {worst.rate:,.3g} per second and above, requests started late (p99 {worst.delay_p99_ms:,.0f} ms): "
            f"raise capture.concurrency ({settings.capture.concurrency:,}) to measure only the server"
        )


def fewest(share: float) -> int:
    """How many requests a stage needs to decide a share: 100 for 95 %. A share of 1 allows no bad request at all."""
    return math.ceil(round(_BAD / (1 - share), 6)) if share < 1 else 1


def as_json(swept: Swept, plan: Plan, settings: Settings) -> str:
    """The sweep as JSON."""
    result: dict[str, Any] = {"rate": None, "low": None, "high": None}
    return json_text(
        {
            "sweep": swept.sweep,
            "ended": swept.found is not None,
            "reason": swept.reason,
            **(result if swept.found is None else asdict(swept.found)),
            "share": plan.share,
            "duration_s": plan.duration_s,
            "slo": settings.analysis.slo.bounds,
            "stages": [{**asdict(point), "holds": point.holds(plan.share)} for point in swept.points],
        },
        indent=2,
    )
