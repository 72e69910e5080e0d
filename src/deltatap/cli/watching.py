"""The command ``watch``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltatap.cli.runner import CAPTURE, HOST, OK, PORT, command, given, say
from deltatap.errors import ConfigError
from deltatap.model import RunStatus
from deltatap.program import program

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from rich.console import Console

    from deltatap.config import Settings


@command(CAPTURE)
def watch(
    settings: Settings,
    console: Console,
    run_id: Annotated[
        str, typer.Argument(metavar="RUN", help="The run to watch. Default: the active run, or else the next one.")
    ] = "",
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[int, PORT] = 8092,
) -> int:
    """Show an active run in a browser: open streams as they arrive, rates, TTFT, errors and cost.

    The command only reads the run's state folder, so it also works for a run on another machine that uses the same
    folder. It ends when the run ends. You can also watch a recording.
    """
    from deltatap.simulator.server import listen  # noqa: PLC0415
    from deltatap.watch.folder import Folder  # noqa: PLC0415
    from deltatap.watch.server import Watching, serve  # noqa: PLC0415

    folder = Folder(Path(settings.state.dir), run_id or None)
    active = folder.active()
    if run_id and run_id not in active:
        if (known := _final(settings, run_id)) is not None and known[0] is not None:
            say(console, _ended(settings, run_id, *known))
            return OK
        here = f"run {run_id} is not active here; active runs: {', '.join(active) or 'none'}"
        ended = f"runs.table {settings.runs.table} has no ended run with this id"
        if not _is_readable(settings):
            ended = f"runs.table {settings.runs.table} says whether it has ended, but only Spark can read this table"
        raise ConfigError([f"state.dir: {folder.folder}: {here}; {ended}"])
    if not run_id and len(active) > 1:
        say(console, f"watching {active[-1]}; also active here: {', '.join(active[:-1])}")
    if not active:
        say(console, f"no run is active in {folder.folder}: waiting for one")
    with listen(host, port) as listening:
        watching = Watching(folder, lambda ended: _final(settings, ended))
        serve(watching, listening, host, lambda url: print(f"watch: {url}", flush=True))  # noqa: T201 - for programs
    board = watching.board
    if board["state"] == "ended":
        known = _final(settings, board["run"])
        guess = (settings.record if board.get("recording") else settings.captures).table
        table = guess if known is None else known[2]
        hint = _ended(settings, board["run"], board.get("status"), board["reason"], table)
        if known is None:
            hint += "; if the run used other tables, add --set captures.table=… and --set runs.table=… to this command"
        say(console, hint)
    return OK


def _ended(settings: Settings, run_id: str, status: str | None, reason: str | None, table: str) -> str:
    """How a run ended, and the command to try next. `table` has the rows of the run."""
    if table == settings.captures.table:
        tables = given("captures", "runs")
    else:
        tables = f"{given('runs')} --set {shlex.quote(f'captures.table={table}')}"
    how = f"run {run_id} has ended{f' ({status})' if status else ''}{f': {reason}' if reason else ''}"
    report = f"{program()} report{tables} {shlex.quote(run_id)}"
    return f"{how}; next: `{report}` writes a report"


def _is_readable(settings: Settings) -> bool:
    """Whether the runs table is read without Spark, which takes seconds to start."""
    from deltatap.delta.identity import local_folder  # noqa: PLC0415
    from deltatap.delta.readers import without_jvm  # noqa: PLC0415

    return without_jvm() and local_folder(settings.runs.table) is not None


def _final(settings: Settings, run_id: str) -> tuple[str | None, str | None, str] | None:
    """Final status, reason and captures table of a run in a runs table that is readable without Spark.

    The row of a run that was killed has no final status until the next run has landed its captures.
    A runs table can serve several captures tables, and ids repeat there: the row of ours counts, or else the latest.
    """
    from deltatap.delta import tables  # noqa: PLC0415

    if not _is_readable(settings):
        return None
    from deltatap.delta.local import LocalReader  # noqa: PLC0415
    from deltatap.delta.reader import rows  # noqa: PLC0415

    def no_spark() -> SparkSession:
        raise LookupError

    table, name = tables.quoted(settings.runs.table), tables.literal(run_id)
    ours = f"captures = {tables.literal(settings.captures.table)}"
    of_run = f"SELECT status, reason, captures FROM {table} WHERE run_id = {name} ORDER BY {ours} DESC, started_at DESC"
    try:
        found = rows(LocalReader(no_spark).query(of_run))
    except Exception:  # noqa: BLE001 - the page then says only that the run has ended
        return None
    if not found:
        return None
    status = found[0]["status"]
    return None if status == RunStatus.RUNNING else status, found[0]["reason"], found[0]["captures"]
