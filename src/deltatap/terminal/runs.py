"""Prints the list of runs, and the summary of one run."""

from __future__ import annotations

import json
import math
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from deltatap.analysis.queries import NEXT
from deltatap.analysis.requested import short_id
from deltatap.driver.lease import is_gone
from deltatap.model import RunStatus
from deltatap.prices import by_model, money
from deltatap.program import program
from deltatap.terminal.console import line
from deltatap.visible import json_text, visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from deltatap.analysis.facts import Changed

# The columns of a run in JSON that are there as they are.
_COLUMNS = (
    "run_id", "status", "reason", "owed", "completed", "interrupted", "failed", "requests", "input_tokens",
    "output_tokens", "cost_usd",
)  # fmt: skip
# A driver that has sent no heartbeat for this long is probably dead (see lease.LEASE_S).
SILENT_S = 60.0
# Characters of a generated run id, and more than any table has.
_ID, _WIDEST = 22, 100_000


def show_runs(
    console: Console,
    runs: Sequence[Mapping[str, Any]],
    good: Mapping[str, tuple[int, int]],
    slo: Mapping[str, float],
    now: datetime,
) -> None:
    """Print rows of ``runs``, and what ``queries.good_requests`` returns for the bounds of ``analysis.slo``.

    Good requests and labels are columns of the table if the width allows it, otherwise lines below it.
    """
    more = {"good": good, "labels": {row["run_id"]: row["labels"] for row in runs if row["labels"]}}
    extra = [name for name, values in more.items() if values]
    choices = [extra[:count] for count in range(len(extra), -1, -1)]
    tables = [(shown, _runs_table(runs, good, now, shown, short=False)) for shown in choices]
    fits = (each for each in tables if _width(console, each[1]) <= console.width)
    shown, table = next(fits, ([], _runs_table(runs, good, now, [], short=True)))
    console.print(table)
    for row in runs:
        if note := row["reason"] or _silence(row, now):
            line(console, f"{row['run_id']}: {note}")
    for row in runs:
        facts = [] if "labels" in shown else _labels(row)
        if row["run_id"] in good and "good" not in shown:
            facts.append("{:,}/{:,} requests good".format(*good[row["run_id"]]))
        if facts:
            line(console, f"{row['run_id']}: {', '.join(facts)}")
    if good:
        bounds = ", ".join(f"{name} at most {bound:,.10g}" for name, bound in slo.items())
        line(console, f"good: completed with {bounds} (analysis.slo)", style="dim")


def _runs_table(
    runs: Sequence[Mapping[str, Any]],
    good: Mapping[str, tuple[int, int]],
    now: datetime,
    extra: Sequence[str],
    *,
    short: bool,
) -> Table:
    """The table of runs.

    Args:
        runs: rows of ``runs``.
        good: the good and the sent requests of each run.
        now: the current time.
        extra: columns for which there is room: good, labels.
        short: whether the status budget_exhausted must be shortened.
    """
    table = Table(box=None, padding=(0, 1, 0, 0))
    # A long id wraps if the table is too wide, so that no number is cut.
    table.add_column("run", overflow="fold", min_width=_ID)
    table.add_column("status", min_width=9, no_wrap=True)
    table.add_column("started\n(UTC)", no_wrap=True)
    for name in ("done", "inter-\nrupted", "failed", "USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in extra:
        table.add_column(name, justify="right" if name == "good" else "left", no_wrap=True)
    for row in runs:
        cells: dict[str, str | Text] = {
            "good": "{:,}/{:,}".format(*good[row["run_id"]]) if row["run_id"] in good else "",
            "labels": Text(visible(", ".join(_labels(row)))),  # labels can look like markup
        }
        table.add_row(
            row["run_id"],
            row["status"].partition("_")[0] if short else row["status"],
            _started(row["started_at"], now),
            _done(row),
            *("" if row[name] is None else f"{row[name]:,}" for name in ("interrupted", "failed")),
            "" if row["cost_usd"] is None else money(row["cost_usd"]),
            *(cells[name] for name in extra),
        )
    costs = [row["cost_usd"] for row in runs if row["cost_usd"] is not None and math.isfinite(row["cost_usd"])]
    if len(costs) > 1:
        table.add_row("together", "", "", "", "", "", money(sum(costs)))
    return table


def _width(console: Console, table: Table) -> int:
    """The width of a table in which nothing is wrapped or cut."""
    return console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum


def _labels(row: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in (row["labels"] or {}).items()]


def runs_json(
    runs: Sequence[Mapping[str, Any]],
    good: Mapping[str, tuple[int, int]],
    slo: Mapping[str, float],
    changes: Sequence[tuple[str, Changed]],
) -> str:
    """What :func:`show_runs` and :func:`show_price_changes` print, as JSON."""
    return json_text(
        {
            "runs": [
                {
                    **{name: row[name] for name in _COLUMNS},
                    **{name: row[name] and row[name].isoformat() for name in ("started_at", "finished_at")},
                    "labels": dict(row["labels"] or {}),
                    **dict(zip(("good", "sent"), good.get(row["run_id"], (None, None)), strict=True)),
                }
                for row in runs
            ],
            "slo": slo,
            "price_changes": [
                {"run_id": run_id, "what": change.what, "before": change.before, "after": change.after}
                for run_id, change in changes
            ],
        },
        indent=2,
    )


def show_price_changes(console: Console, changes: Sequence[tuple[str, object]]) -> None:
    """Print what ``facts.price_changes`` found, with the runs' ids or other names."""
    for name, change in changes:
        line(console, f"{name}: {change} (USD per million tokens)", style="yellow")


def _silence(row: Mapping[str, Any], now: datetime) -> str:
    """A warning about a run whose driver is dead, or has sent no heartbeat for a long time; empty for other runs."""
    if row["status"] != RunStatus.RUNNING:
        return ""
    if is_gone(row.get("driver")):
        return f"running, but its process has ended: {NEXT}"
    if (silent_s := (now - row["heartbeat_at"]).total_seconds()) > SILENT_S:
        return f"running, but no heartbeat for {duration(silent_s)}: its driver is probably dead; {NEXT}"
    return ""


def _started(at: datetime, now: datetime) -> str:
    """A start time in UTC: without the year if it is in this year, else without the time of day."""
    at = at.astimezone(UTC)
    return f"{at:%m-%d %H:%M}" if at.year == now.astimezone(UTC).year else f"{at:%Y-%m-%d}"


def duration(seconds: float) -> str:
    """A duration in a suitable unit."""
    for unit, length in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def show_summary(
    console: Console,
    run: Mapping[str, Any],
    outcomes: Sequence[Mapping[str, Any]],
    times: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    good: tuple[int, int] | None = None,
    options: str = "",
    earlier_calls: int = 0,
) -> None:
    """Print the summary of a run, and what to do next.

    Args:
        console: to print to.
        run: its row of ``runs``.
        outcomes: the numbers of its rows, from ``queries.summarize``.
        times: quantiles of its times, from ``queries.summarize``.
        models: the cost of its models, from ``queries.summarize``.
        good: its good and its sent requests, from ``queries.good_requests``; None without bounds in ``analysis.slo``.
        options: to append to commands that read the same tables.
        earlier_calls: the calls that earlier starts of the run made.
    """
    if not outcomes:
        line(console, f"run {run['run_id']}: {run['status']}; it added no rows")
        return
    several_modes = len({outcome["mode"] for outcome in outcomes}) > 1
    # Not the title of the table, which rich pads with spaces.
    line(console, f"run {run['run_id']}: {run['status']}", style="bold")
    if earlier_calls:
        ours = f"{run['requests'] - earlier_calls:,} of the run's {run['requests']:,} calls"
        line(console, f"this start made {ours}; the numbers below cover the whole run, including earlier starts")
    counts = Table()
    for name in ("mode", "status", "finish_reason or error")[not several_modes :]:
        counts.add_column(name)
    for name in ("rows", "retries"):
        counts.add_column(name, justify="right")
    for outcome in outcomes:
        cells = (outcome["mode"], outcome["status"], outcome["why"])[not several_modes :]
        counts.add_row(*cells, f"{outcome['rows']:,}", f"{outcome['retries'] or 0:,}")
    console.print(counts)
    _show_times(console, times, several_modes=several_modes)
    _show_late(console, times, _less_busy(run, outcomes))
    if good is not None:
        line(console, "{:,}/{:,} requests good (analysis.slo)".format(*good))
    cost = "no price" if run["cost_usd"] is None else f"${money(run['cost_usd'])}"
    tokens = f"{run['input_tokens']:,} input tokens, {run['output_tokens']:,} output tokens"
    line(console, f"{run['requests']:,} call{'s' * (run['requests'] != 1)}, {tokens}, {cost}")
    if len(models) > 1 and run["cost_usd"] is not None:
        line(console, f"cost by model: {by_model([(row['model'], row['cost_usd']) for row in models])}")
    checked, failed = (sum(outcome[name] or 0 for outcome in outcomes) for name in ("checked", "failed_checks"))
    if checked or failed:
        flagged = f"{sum(outcome['flagged'] for outcome in outcomes):,} of {checked:,} checked answers are flagged"
        line(console, f"moderation: {flagged}" + (f"; {failed:,} checks have no result" if failed else ""))
    _show_next(console, run["run_id"], outcomes, options)


def _show_times(console: Console, times: Sequence[Mapping[str, Any]], *, several_modes: bool) -> None:
    """Print the quantiles of the latencies."""
    quantiles = Table()
    quantiles.add_column("ms, completed rows")
    for name in ("p50", "p90", "p99"):
        quantiles.add_column(name, justify="right")
    columns = {
        "TTFT": "ttft_ms", "inter-chunk latency": "gap_ms", "end to end": "e2e_ms", "loop lag": "lag_ms",
        "start after its scheduled time": "scheduled_ms", "TTFT from its scheduled time": "ttft_scheduled_ms",
    }  # fmt: skip
    for row in times:
        for name, column in columns.items():
            if row[column] is not None:
                label = f"{name}, {row['mode']}" if several_modes else name
                quantiles.add_row(label, *(f"{value:,.1f}" for value in row[column]))
    if quantiles.row_count:
        console.print(quantiles)


def _done(row: Mapping[str, Any]) -> str:
    """The completed and the owed requests of a run, as text. A recording owes nothing."""
    if row["completed"] is None:
        return ""
    return f"{row['completed']:,}/{row['owed']:,}" if row["owed"] else f"{row['completed']:,}"


def _show_late(console: Console, times: Sequence[Mapping[str, Any]], advice: str) -> None:
    """Say which times are not exact because the event loop ran late, if there are any."""
    for name in ("late", "kept"):
        if not (rows := sum(row[name] for row in times)):
            continue
        many = rows > 1
        delay = f"the event loop was more than {times[0]['max_loop_lag_ms']:g} ms late"
        busy = f"the machine was busy during {rows:,} row{'s' * many} ({delay})"
        if name == "late":
            left_out = f"report, compare and analyze leave {'them' if many else 'it'} out of the latencies"
            line(console, f"{busy}: {left_out}; {advice}")
            continue
        # Times of the kernel are late only for chunks that were merged with later ones.
        merged = sum(row["merged"] for row in times) / max(1, sum(row["outputs"] for row in times))
        if (share := f"{merged:.1%}") != "0.0%":
            exact = "end-to-end times are exact, but a TTFT can be too long by the loop lag"
            gaps = f"{share} of their chunks arrived merged with others and have no gaps"
            line(console, f"{busy}: {exact}, and {gaps}; {advice}")


def _less_busy(run: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]]) -> str:
    """What to do about a late event loop. One stream is the lowest concurrency."""
    one = sum(row["rows"] for row in outcomes) == 1 or json.loads(run["config"])["capture"]["concurrency"] == 1
    return f"{'' if one else 'lower capture.concurrency, or '}use a machine that is less busy"


def _show_next(console: Console, run_id: str, outcomes: Sequence[Mapping[str, Any]], options: str) -> None:
    """Commands to try next: for a request of each kind that did not complete, for a completed one, and for the run."""
    examples = {(row["status"], row["why"]): row["example"] for row in outcomes if row["status"] != "completed"}
    for (status, why), request_id in examples.items():
        line(console, f"{status}, {why}: for example {_command('show', short_id(request_id), options)}")
    if examples:
        line(console, f"to list all: {_command('failures', run_id, options)}")
    completed = next((row["example"] for row in outcomes if row["status"] == "completed"), None)
    if completed is not None:
        shown, report = _command("show", short_id(completed), options), _command("report", run_id, options)
        line(console, f"next: {shown} shows one answer, {report} writes a report")


def _command(name: str, argument: str, options: str) -> str:
    hyphen = "-- " if argument.startswith("-") else ""  # otherwise, typer would read it as an option
    return f"`{program()} {name}{options} {hyphen}{shlex.quote(argument)}`"
