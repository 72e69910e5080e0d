"""The command that watches a metric over runs: ``trend``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltatap.cli.runner import CONDITION_HOLDS, OK, RESULTS, command, reader, say

if TYPE_CHECKING:
    from rich.console import Console

    from deltatap.config import Settings


@command(RESULTS)
def trend(
    settings: Settings,
    console: Console,
    metric: Annotated[
        str, typer.Argument(metavar="[METRIC]", help="[MODE.]METRIC[.p50 or .p95], such as stream.ttft_ms.p95.")
    ] = "ttft_ms.p50",
    *,
    most: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of runs, newest first.")] = 60,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Show only runs with this label (run.labels). Repeatable."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output, and messages on standard error.")
    ] = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Exit with code 3 if this holds for a new change: '>+5%'. Repeatable."),
    ] = None,
    newest: Annotated[
        int,
        typer.Option("--newest", min=1, help="For --fail-if: number of newest runs in which a change counts as new."),
    ] = 10,
) -> int:
    """Show a metric over the runs on the captures table, and where its level changed.

    Each run has the interval of its own p50 or p95. Each change has the interval of the difference between two levels.
    Each combination of endpoint, model and mode is a series. A change point (*) is the first run at a new level that
    lasts. The command lists what else changed at this run: model, fingerprint, versions and configuration. A run with
    fewer than 20 values is shown, but not tested. A change point needs at least 12 tested runs.

    A condition of --fail-if is > or <, and a signed difference, with % or in the metric's unit, as in compare. It is
    checked only for changes that start in the newest runs (--newest). It holds if the difference between the levels is
    beyond this limit and its interval excludes zero.

    Exit codes: 0, no condition holds; 2, a name or a condition cannot be read, or there are no values; 3, a condition
    holds.
    """
    from deltatap.analysis.changes import FEWEST  # noqa: PLC0415
    from deltatap.analysis.compare import busy, doubt  # noqa: PLC0415
    from deltatap.analysis.names import run_names  # noqa: PLC0415
    from deltatap.analysis.series import conditions_on, judged, labels_of, parse_measure  # noqa: PLC0415
    from deltatap.analysis.trend import ended_runs  # noqa: PLC0415
    from deltatap.analysis.trend import trend as series_of  # noqa: PLC0415
    from deltatap.cli.trend_text import show_trend, trend_json  # noqa: PLC0415

    measure = parse_measure(metric)
    conditions = conditions_on(measure, fail_if or ())
    wanted = labels_of(label or ())
    tables = reader(settings, console)
    runs = ended_runs(tables, settings, most, wanted)
    found = series_of(tables, settings, measure, runs)
    outcomes = judged(conditions, found, newest)
    if as_json:
        print(trend_json(found, runs, outcomes))  # noqa: T201 - for programs: no wrapping, no colors
    else:
        show_trend(console, found, runs)
    modes = {each.mode for each in found}
    counted = busy(tables, settings, [run["run_id"] for run in runs])
    if warning := doubt(run_names(runs), {key: run for key, run in counted.items() if key[0] in modes}):
        say(console, warning, "warning")
    for outcome, change in outcomes:
        level = "problem" if outcome.holds else "warning" if outcome.unclear else "ok"
        say(console, f"--fail-if {outcome}, since run {change.run_id}", level)
    if conditions:
        tested = [each.deciding >= FEWEST for each in found]
        if not all(tested):
            which = "nothing" if not any(tested) else f"only {sum(tested)} of {len(found)} series"
            say(
                console,
                f"--fail-if tested {which}: a series needs at least {FEWEST} runs with enough values",
                "warning",
            )
        if any(tested) and not outcomes:
            say(console, f"--fail-if: no change of {measure} starts in the newest {newest} runs", "ok")
    return CONDITION_HOLDS if any(outcome.holds for outcome, _ in outcomes) else OK
