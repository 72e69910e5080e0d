"""The command that compares captures with a bill: ``reconcile``."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from deltatap.cli.runner import CONDITION_HOLDS, OK, RESULTS, command, reader, say
from deltatap.errors import ConfigError
from deltatap.visible import json_text

if TYPE_CHECKING:
    from rich.console import Console

    from deltatap.config import Settings

# The years that a call can be in: SQL and Python cannot count the days of others.
_YEARS = range(1970, 9999)


@command(RESULTS)
def reconcile(
    settings: Settings,
    console: Console,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES", help="Exports of one bill: JSON, JSON lines, CSV or Parquet.")
    ],
    *,
    run_id: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="The run. Default: the newest run that has rows.")
    ] = None,
    day: Annotated[
        str | None,
        typer.Option(
            metavar="YYYY-MM-DD", help="Compare all calls that started on this day (UTC), instead of one run."
        ),
    ] = None,
    tolerance: Annotated[
        str, typer.Option(metavar="PERCENT", help="The share of a model's bill that may differ.")
    ] = "0.1",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output, and messages on standard error.")
    ] = False,
) -> int:
    """Compare captures with the bill of a provider or a gateway, and list the differences with their reasons.

    The command reads OpenAI's usage and costs exports, Databricks' system.serving.endpoint_usage, and logs of gateways
    with one call in each row. If the rows of a bill have request ids, it compares call by call; otherwise, model by
    model. Pass usage and costs of the same period together. If the bill names runs (endpoint.metadata,
    endpoint.headers), the rows of other runs are left out.

    Exit codes: 0, the differences are within the tolerance; 2, a file or an option is wrong; 3, the differences are
    larger.
    """
    from deltatap.analysis.queries import HAS_ROWS, newest_runs, require_runs  # noqa: PLC0415
    from deltatap.reconcile.captured import captured, of_the_same  # noqa: PLC0415
    from deltatap.reconcile.charges import reconcile as compare  # noqa: PLC0415
    from deltatap.reconcile.exports import read_charges  # noqa: PLC0415
    from deltatap.terminal.reconciled import reconciled_json, show_reconciled  # noqa: PLC0415

    if day is not None and run_id is not None:
        raise ConfigError(["--day: choose either --run or --day"])
    share, start = _share(tolerance), None if day is None else _day(day)
    billed = [charge for path in files for charge in read_charges(path)]
    tables = reader(settings, console)
    if run_id is not None:
        run_id = require_runs(tables, settings, [run_id])[0]["run_id"]
    elif start is None:
        newest = newest_runs(tables, settings, 1, HAS_ROWS)
        if not newest:
            raise ConfigError([f"runs.table: {settings.runs.table}: no run has rows yet"])
        run_id = newest[0]["run_id"]
    ours = captured(tables, settings, run_id, start)
    found = compare(ours, of_the_same(ours, billed, run_id, start))
    above = found.exceeds(share)
    if as_json:
        print(json_text(reconciled_json(found, above), ensure_ascii=True))  # noqa: T201 - for programs: no wrapping, no colors
    else:
        show_reconciled(console, found, run_id or f"{day}")
    if above:
        say(console, f"more than {tolerance} % of the bill differs: {', '.join(above)}", "problem")
    elif found.differences:
        say(console, f"all differences are within {tolerance} % of the bill", "ok")
    else:
        say(console, "captures and bill are equal", "ok")
    return CONDITION_HOLDS if above else OK


def _share(tolerance: str) -> Decimal:
    try:
        percent = Decimal(tolerance.removesuffix("%").strip())
        if percent.is_finite() and percent >= 0:
            return percent / 100
    except InvalidOperation:
        pass
    raise ConfigError([f"--tolerance: expected a percentage, such as 0.5, found {tolerance!r}"])


def _day(day: str) -> datetime:
    try:
        found = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        found = None
    if found is None or found.year not in _YEARS:
        raise ConfigError([f"--day: expected a date such as 2026-11-30, found {day!r}"])
    return found
