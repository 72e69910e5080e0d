"""The commands that show and compare captures.

They are ``runs``, ``show``, ``failures``, ``analyze``, ``compare`` and ``report``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltatap.cli.runner import CONDITION_HOLDS, OK, RESULTS, command, given, reader, say, session

if TYPE_CHECKING:
    from rich.console import Console

    from deltatap.analysis.conditions import Outcome, Reached
    from deltatap.config import Settings


@command(RESULTS)
def runs(
    settings: Settings,
    console: Console,
    most: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of runs to list.")] = 20,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output, and messages on standard error.")
    ] = False,
) -> int:
    """List the runs on the captures table, newest first.

    If analysis.slo has bounds, the list also shows, for each run, how many requests were sent, and how many of them
    completed within every bound. Below the list, a line shows each price that changed between runs.
    """
    from deltatap.analysis.compare import busy, doubt  # noqa: PLC0415
    from deltatap.analysis.facts import price_changes  # noqa: PLC0415
    from deltatap.analysis.queries import good_requests, newest_runs, why_no_runs  # noqa: PLC0415
    from deltatap.terminal import runs_json, show_price_changes, show_runs  # noqa: PLC0415

    tables = reader(settings, console)
    found = newest_runs(tables, settings, most)
    ids = [row["run_id"] for row in found]
    good, slo = good_requests(tables, settings, ids), settings.analysis.slo.bounds
    changes = price_changes(found[::-1])
    if as_json:
        print(runs_json(found, good, slo, changes))  # noqa: T201 - for programs: no wrapping, no colors
    else:
        show_runs(console, found, good, slo, datetime.now(UTC))
        show_price_changes(console, changes)
    if good and (warning := doubt(dict(zip(ids, ids, strict=True)), busy(tables, settings, ids))):
        say(console, warning, "warning")
    if not found:
        say(console, why_no_runs(tables, settings), "warning")
    return OK


@command(RESULTS)
def show(
    settings: Settings,
    console: Console,
    request_id: Annotated[
        str,
        typer.Argument(metavar="REQUEST_ID", help="The request to show: its id, or the first characters of its id."),
    ],
    run_id: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Show this run's row. Default: the newest row.")
    ] = None,
) -> int:
    """Show one request: its prompt, when its chunks arrived, its latencies, cost, text and error.

    If the prompts table has no request_id, the id of a request is the hash of its body.
    """
    from deltatap.analysis.queries import newest_capture  # noqa: PLC0415
    from deltatap.terminal import show_capture  # noqa: PLC0415

    for at, row in enumerate(newest_capture(reader(settings, console), settings, request_id, run_id)):
        if at:
            console.print()
        show_capture(console, row)
    return OK


@command(RESULTS)
def failures(
    settings: Settings,
    console: Console,
    run_id: Annotated[
        str | None, typer.Argument(metavar="RUN", help="The run. Default: the newest run that has rows.")
    ] = None,
    most: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of rows to list.")] = 20,
) -> int:
    """List the failed and interrupted rows of a run, each with its error.

    The next run sends each request that still has no final row. Fix invalid prompts before that.
    """
    from deltatap.analysis.queries import not_completed, not_landed  # noqa: PLC0415
    from deltatap.terminal import show_failures  # noqa: PLC0415

    tables = reader(settings, console)
    to_show, to_load = given("captures", "runs"), given("prompts")
    shown, found, every = not_completed(tables, settings, run_id, most)
    ended = not not_landed(tables, settings, shown)
    show_failures(console, shown, found, every, to_show, to_load, ended=ended)
    if note := not_landed(tables, settings, run_id and shown):
        say(console, note, "warning")
    return OK


@command(RESULTS)
def analyze(
    settings: Settings,
    console: Console,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Recompute all runs, not only new and changed ones.")
    ] = False,
) -> int:
    """Compute the metrics tables from captures.

    Updates metrics_by_run, metrics_by_hour, stream_vs_complete and metrics_changes. Running the command again changes
    nothing unless captures changed.

    Exit codes: 0, done; 2, the configuration is wrong.
    """
    from deltatap.analysis.compute import analyze as compute  # noqa: PLC0415
    from deltatap.analysis.compute import table_of  # noqa: PLC0415
    from deltatap.terminal import show_metrics  # noqa: PLC0415

    rows = compute(session(settings, console), settings, everything=everything)
    show_metrics(console, rows)
    runs = len({row["run_id"] for row in rows})
    counted = f"{runs:,} run{'s' * (runs > 1)} analyzed" if runs else "no new or changed runs"
    say(console, f"{counted}: {table_of(settings, 'metrics_by_run')}")
    return OK


@command(RESULTS)
def compare(
    settings: Settings,
    console: Console,
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="The first run.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="The second run.")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output, and messages on standard error.")
    ] = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION", help="Exit with code 3 if this holds: 'ttft_ms.p95>+10%', 'good<95%'. Repeatable."
        ),
    ] = None,
) -> int:
    """Compare two runs, A and B: how much the median (p50) and p95 of each metric differ.

    Each difference has a bootstrap 95 % interval. It is the interval of the difference, not of p50 or p95. The table
    shows a difference and its interval in percent of RUN_A, or in the metric's unit if they reach 1,000 %. --json
    always uses the metric's unit. If a mode has more than 5,000 rows, the command compares a sample of 5,000, the same
    sample every time. A line for each run shows its errors, retries and cost, and its good requests if analysis.slo has
    bounds.

    A condition of --fail-if is [MODE.]METRIC.p50 or .p95, > or <, and a signed difference, with % or in the metric's
    unit. It holds if the difference is beyond this limit and its interval excludes zero. Without MODE, it is checked
    for both modes. good<95% holds if fewer than 95 % of RUN_B's requests are within the bounds of analysis.slo, and the
    95 % interval of this share is below 95 %, too.

    Exit codes: 0, no condition holds; 2, a condition cannot be read or computed, or a run does not exist; 3, a
    condition holds.
    """
    from deltatap.analysis.compare import compare as differences  # noqa: PLC0415
    from deltatap.analysis.compare import counted, doubts  # noqa: PLC0415
    from deltatap.analysis.conditions import evaluate, parse_all, reach  # noqa: PLC0415
    from deltatap.analysis.facts import price_changes  # noqa: PLC0415
    from deltatap.analysis.names import run_names  # noqa: PLC0415
    from deltatap.analysis.queries import counts_of, good_requests, require_runs  # noqa: PLC0415
    from deltatap.terminal import comparison_json, show_comparison, show_counts, show_price_changes  # noqa: PLC0415

    conditions, goals = parse_all(fail_if or ())
    tables = reader(settings, console)
    both = require_runs(tables, settings, (first, second))
    first, second = (row["run_id"] for row in both)
    names = run_names(both)
    good = good_requests(tables, settings, [first, second])
    reached = reach(goals, good.get(second), settings.analysis.slo.bounds, names[second])
    found = differences(tables, settings, first, second)
    outcomes: list[Outcome | Reached] = [*evaluate(conditions, found), *reached]
    counts = counts_of(tables, settings, [first, second])
    every = counted(tables, settings, first, second)
    if as_json:
        print(comparison_json(first, second, found, outcomes, counts, good))  # noqa: T201 - for programs: no wrapping, no colors
    else:
        show_counts(console, names, counts, good)
        show_comparison(console, (names[first], names[second]), found, every)
        letters = {first: "A", second: "B"}
        show_price_changes(console, [(letters[run_id], change) for run_id, change in price_changes(both)])
    for doubt in doubts((names[first], names[second]) if as_json else ("A", "B"), every):
        say(console, doubt, "warning")
    for outcome in outcomes:
        if outcome.holds:
            say(console, f"--fail-if {outcome}", "problem")
        elif outcome.unclear:
            limit = "zero" if outcome.mode else "the limit"
            say(
                console,
                f"--fail-if {outcome}, which includes {limit}, so this may be noise: compare more rows",
                "warning",
            )
        else:
            say(console, f"--fail-if {outcome}", "ok")
    return CONDITION_HOLDS if any(outcome.holds for outcome in outcomes) else OK


@command(RESULTS)
def report(
    settings: Settings,
    console: Console,
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Runs to include. Default: the newest run that has rows.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; an older one is replaced.")] = Path(
        "report.html"
    ),
) -> int:
    """Write one HTML page about a run, or about several runs side by side.

    The page has charts, numbers, errors, a table of requests, and streams to replay. It opens offline.
    """
    from deltatap.report import write_report  # noqa: PLC0415

    written = write_report(reader(settings, console), settings, run_ids or [], out)
    say(console, f"report written to {out} (run{'s' * (len(written) > 1)} {', '.join(written)})")
    return OK
