"""The command ``sweep``, which runs stages at several arrival rates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltatap.cli.runner import CAPTURE, FAILED, NO_RATE, OK, command, hint, say, session
from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from deltatap.config import Settings


@command(CAPTURE)
@hint("run it again: finished stages are kept and are not paid for twice")
def sweep(
    settings: Settings,
    console: Console,
    *,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="RATES", help="Requests per second to test: 1,2,4,8. Default: search for the highest rate."
        ),
    ] = None,
    duration: Annotated[float, typer.Option(min=0.1, help="Duration of a stage in seconds.")] = 30.0,
    share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of requests that must be within the bounds.")
    ] = 0.95,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output, and messages on standard error.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write, with a chart.")] = Path("sweep.html"),
) -> int:
    """Find the highest rate of requests at which the bounds of analysis.slo hold.

    Each stage is a run with capture.arrivals at one rate. It sends as many prompts as arrive within the duration, even
    if other runs have captured them. The budget is for all stages together. If the command is interrupted, run
    it again: it continues with the unfinished stage.

    Without --rates, the command doubles the rate until the bounds no longer hold, and narrows the range by bisection.
    Then it tests rates near the result in four more rounds.

    Exit codes: 0, the sweep found a rate, was stopped on request, or used up a budget; 1, a stage failed; 2, the
    configuration is wrong or there are too few prompts, and no API call was made; 3, the bounds hold at no tested rate.
    """
    from deltatap.driver.needs import preflight  # noqa: PLC0415
    from deltatap.report.page import make_folder  # noqa: PLC0415
    from deltatap.sweep import output, stages  # noqa: PLC0415
    from deltatap.sweep.chart import write_chart  # noqa: PLC0415

    plan = stages.Plan(_rates(rates), duration, share)
    if problems := stages.problems(settings):
        raise ConfigError(problems)
    make_folder(out)
    prices = preflight(settings)
    from deltatap.sweep.running import sweep as run_stages  # noqa: PLC0415 - Spark takes seconds to import

    spark = session(settings, console)
    swept = run_stages(settings, plan, spark, prices, console, lambda text: say(console, text))
    if as_json:
        print(output.as_json(swept, plan, settings))  # noqa: T201 - for programs: no wrapping, no colors
    elif swept.points:
        console.print(output.table(swept, plan))
    for line in output.lines(swept, plan, settings):
        say(console, line, "problem" if swept.failed else None)
    if swept.points:
        write_chart(swept, plan, settings, out)
        say(console, f"chart written to {out}")
    if swept.failed:
        return FAILED
    return NO_RATE if swept.found is not None and swept.found.rate is None else OK


def _rates(text: str | None) -> tuple[float, ...]:
    """The rates of ``--rates``."""
    if text is None:
        return ()
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < rate <= 100_000 for rate in found):  # noqa: PLR2004 - as capture.arrivals
        raise ConfigError([f"--rates {text}: expected numbers greater than 0, such as 1,2,4,8"])
    return found
