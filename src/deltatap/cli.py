"""The command line: what people type, and what the job scripts call.

Knows arguments, exit codes and what is printed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from deltatap.config import Settings, load_settings
from deltatap.errors import ConfigError, DeltatapError, RunningError, VocabularyError, one_line
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

app = typer.Typer(
    help="Streams LLM completions from Spark into Delta, and keeps when every chunk came.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OK, FAILED, CONFIGURATION, TOO_MANY_ERRORS = 0, 1, 2, 3

_CONFIG = typer.Option("--config", "-c", help="The YAML file that says what to capture.")
_SET = typer.Option("--set", help="Override a key: a.b=c. Empty unsets: a.b=", metavar="KEY=VALUE")


@app.callback()
def main() -> None:
    """Streams LLM completions from Spark into Delta, and keeps when every chunk came."""


@app.command()
def capture(
    config: Annotated[Path, _CONFIG] = Path("conf/local.yml"),
    overrides: Annotated[list[str] | None, _SET] = None,
    dry_run: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--dry-run", help="Say what is owed, its tokens and what it may cost, without a call.")
    ] = False,
) -> None:
    """Capture what is owed: every prompt of the table that has no final row yet.

    Exit code 0: completed, or stopped as asked. 1: failed. 2: configuration, nothing was called. 3: more rows failed
    than capture.fail_above_error_rate. The last line printed is the run's row as JSON.
    """
    # A Databricks task takes any SystemExit for a failure.
    if code := run_capture(config, overrides or [], dry_run=dry_run):
        sys.exit(code)


@app.command()
def stop(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as its first line says.")],
    config: Annotated[Path, _CONFIG] = Path("conf/local.yml"),
    overrides: Annotated[list[str] | None, _SET] = None,
) -> None:
    """Stop a run that goes on, here or on another machine with the same state folder.

    Nothing new starts; what is open ends, or is cut and kept as interrupted after timeouts.grace_s. The next start
    goes on from there.
    """
    console = Console()
    try:
        folder = Path(load_settings(config, overrides or []).state.dir)
    except ConfigError as error:
        _refuse(console, error.problems)
        sys.exit(CONFIGURATION)
    state = RunState(folder / run_id)
    if state.control() is None:
        going = sorted(path.parent.name for path in folder.glob("*/control.json"))
        known = f"; there are {', '.join(going)}" if going else ""
        _refuse(console, [f"state.dir: {folder}: no run {run_id} goes on here{known}"])
        sys.exit(CONFIGURATION)
    state.ask_to_stop()
    console.print(f"asked run {run_id} to stop", highlight=False)


@app.command()
def load(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="It ends in .jsonl, .csv or .parquet.")],
    config: Annotated[Path, _CONFIG] = Path("conf/local.yml"),
    overrides: Annotated[list[str] | None, _SET] = None,
) -> None:
    """Append a file's prompts to the prompts table, which is made where it is not: all of the file, or nothing.

    JSON lines are OpenAI's Batch format (custom_id, url, body), or have a prompts table's columns as keys, as CSV and
    Parquet have: request_id, prompt or messages, system, model, params, and whatever prompts.keep is to carry along.
    """

    def look(settings: Settings, console: Console) -> int:
        from deltatap.driver.load import load  # noqa: PLC0415

        loaded = load(_session(settings, console), settings, file)
        for bad in loaded.bad[:5]:
            console.print(f"[yellow]![/yellow] {file}: {_plain(bad)}", highlight=False, soft_wrap=True)
        told = f"{loaded.rows:,} prompts appended to {settings.prompts.table}"
        if loaded.bad:
            told += (
                f"; no request can be made of {len(loaded.bad):,} of them, which will be failed rows and cost nothing"
            )
        console.print(told, highlight=False, soft_wrap=True)
        return OK

    sys.exit(_run(config, overrides, look))


@app.command()
def check(
    config: Annotated[Path, _CONFIG] = Path("conf/local.yml"),
    overrides: Annotated[list[str] | None, _SET] = None,
) -> None:
    """Prove what a capture needs, where it will run, short of a paid call.

    The key, the vocabularies, the network and the state folder, on the driver and in Spark's workers; prices; the
    runtime; the tables and the right to write them (they are created where they are not); whether the endpoint lists
    the model. Exit code 0, or 2 when something is wrong.
    """

    def look(settings: Settings, console: Console) -> int:
        from deltatap.driver.check import check  # noqa: PLC0415

        marks = {"ok": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "problem": "[red]✗[/red]"}
        wrong = 0
        for finding in check(settings, lambda: _session(settings, console)):
            said = f": {_plain(finding.said)}" if finding.said else ""
            console.print(f"{marks[finding.level]} {finding.what}{said}", highlight=False, soft_wrap=True)
            wrong += finding.level == "problem"
        told = "a capture can start" if not wrong else f"{wrong} to mend before a capture can start"
        console.print(f"{told}; nothing was paid", highlight=False)
        return CONFIGURATION if wrong else OK

    # A Databricks task takes any SystemExit for a failure.
    if code := _run(config, overrides, look):
        sys.exit(code)


@app.command()
def analyze(
    config: Annotated[Path, _CONFIG] = Path("conf/local.yml"),
    overrides: Annotated[list[str] | None, _SET] = None,
    everything: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--all", help="Compute all runs anew, not only those that are new or have changed.")
    ] = False,
) -> None:
    """Compute metrics_by_run, metrics_by_hour and stream_vs_complete from captures; see docs/metrics.md.

    Twice in a row changes nothing. Exit code 0, or 2: configuration.
    """

    def look(settings: Settings, console: Console) -> int:
        from deltatap.analysis.compute import analyze, table_of  # noqa: PLC0415
        from deltatap.look import show_metrics  # noqa: PLC0415

        rows = analyze(_session(settings, console), settings, everything=everything)
        show_metrics(console, rows)
        runs = len({row["run_id"] for row in rows})
        told = f"{runs:,} runs analyzed" if rows else "no run is new, and none has changed"
        console.print(f"{told}: {table_of(settings, 'metrics_by_run')}", highlight=False, soft_wrap=True)
        return OK

    # A Databricks task takes any SystemExit for a failure.
    if code := _run(config, overrides, look):
        sys.exit(code)


@app.command()
def runs(
    config: Annotated[Path, _CONFIG] = Path("conf/local.yml"),
    overrides: Annotated[list[str] | None, _SET] = None,
    most: Annotated[int, typer.Option("--limit", min=1, help="So many of them.")] = 20,
) -> None:
    """List the runs on the captures table, newest first."""

    def look(settings: Settings, console: Console) -> int:
        from deltatap.look import newest_runs, show_runs  # noqa: PLC0415

        show_runs(console, newest_runs(_session(settings, console), settings, most))
        return OK

    sys.exit(_run(config, overrides, look))


@app.command()
def show(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID")],
    run_id: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Of this run; else the newest row.")
    ] = None,
    config: Annotated[Path, _CONFIG] = Path("conf/local.yml"),
    overrides: Annotated[list[str] | None, _SET] = None,
) -> None:
    """Show one request: when its chunks came, its times, what it cost, its text, its error."""

    def look(settings: Settings, console: Console) -> int:
        from deltatap.look import newest_capture, show_capture  # noqa: PLC0415

        for row in newest_capture(_session(settings, console), settings, request_id, run_id):
            show_capture(console, row)
        return OK

    sys.exit(_run(config, overrides, look))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN")],
    second: Annotated[str, typer.Argument(metavar="RUN")],
    config: Annotated[Path, _CONFIG] = Path("conf/local.yml"),
    overrides: Annotated[list[str] | None, _SET] = None,
) -> None:
    """Compare two runs: the difference of each metric's median and p95, with a bootstrap 95 % interval.

    Of more than 5,000 rows in a mode, 5,000 are drawn, the same ones each time.
    """

    def look(settings: Settings, console: Console) -> int:
        from deltatap.analysis.compare import compare  # noqa: PLC0415
        from deltatap.look import known_run, show_comparison  # noqa: PLC0415

        spark = _session(settings, console)
        for run_id in (first, second):
            known_run(spark, settings, run_id)
        show_comparison(console, first, second, compare(spark, settings, first, second))
        return OK

    sys.exit(_run(config, overrides, look))


@app.command()
def report(
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="The runs; none: the newest that has rows.")
    ] = None,
    config: Annotated[Path, _CONFIG] = Path("conf/local.yml"),
    overrides: Annotated[list[str] | None, _SET] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
) -> None:
    """Write one HTML page about a run, or several beside one another: charts, numbers, texts, and streams to replay.

    It opens offline. The metrics of the runs are computed where they are not.
    """

    def look(settings: Settings, console: Console) -> int:
        from deltatap.report import write_report  # noqa: PLC0415

        written = write_report(_session(settings, console), settings, run_ids or [], out)
        console.print(f"{out}: {' and '.join(written)}", highlight=False, soft_wrap=True)
        return OK

    # A Databricks task takes any SystemExit for a failure.
    if code := _run(config, overrides, look):
        sys.exit(code)


@app.command()
def replay(
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="The runs; none: all, the newest answers first.")
    ] = None,
    config: Annotated[Path, _CONFIG] = Path("conf/local.yml"),
    overrides: Annotated[list[str] | None, _SET] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; there is no protection, so stay on loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8089,
    speed: Annotated[float, typer.Option(min=0, help="How much faster everything goes; 0 is without any wait.")] = 1.0,
    most: Annotated[int, typer.Option("--limit", min=1, help="So many answers, the newest.")] = 10_000,
) -> None:
    """Serve captured answers as an OpenAI-compatible endpoint: the same chunks at the same times, broken ones included.

    A request is answered by what was captured for the same body (request_hash), else for the same last prompt; by a
    stream if it asks for one, else by a whole answer. The page at / shows one typed out.
    """

    def look(settings: Settings, console: Console) -> int:
        from deltatap.look import newest_answers  # noqa: PLC0415
        from deltatap.replay.app import Replay, recording  # noqa: PLC0415
        from deltatap.simulator.server import serve  # noqa: PLC0415

        spark = _session(settings, console)
        rows = newest_answers(spark, settings, run_ids or [], most)
        recordings, refused = [], ""
        for row in rows:
            try:
                recordings.append(recording(row.asDict(recursive=True)))
            except ValueError as error:
                refused = str(error)
        if refused:
            console.print(f"{len(rows) - len(recordings):,} answers left out: {refused}", highlight=False)
        if not recordings:
            raise ConfigError([f"captures.table: {settings.captures.table}: no answer to say again"])
        console.print(f"{len(recordings):,} answers; open / for a page", highlight=False)
        spark.stop()
        serve(Replay(recordings, speed=speed).application(), host, port, "replay")
        return OK

    sys.exit(_run(config, overrides, look))


def capture_job() -> None:
    """The entry point of ``jobs/capture.py``: the same command."""
    _job(capture)


def analyze_job() -> None:
    """The entry point of ``jobs/analyze.py``: the same command."""
    _job(analyze)


def check_job() -> None:
    """The entry point of ``jobs/check.py``: the same command."""
    _job(check)


def report_job() -> None:
    """The entry point of ``jobs/report.py``: the same command."""
    _job(report)


def _job(command: Callable[..., None]) -> None:
    job = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    job.command()(command)
    if code := job(standalone_mode=False):
        sys.exit(code)


def run_capture(config: Path, overrides: list[str], *, dry_run: bool = False) -> int:
    """Run a capture, or say what one would do, and print what it came to; the exit code."""
    return _run(config, overrides, _foresee if dry_run else _capture)


def _run(config: Path, overrides: list[str] | None, work: Callable[[Settings, Console], int]) -> int:
    """Load the settings and work; what goes wrong in a line each, and the exit code."""
    console = Console()
    try:
        return work(load_settings(config, overrides or []), console)
    except (ConfigError, VocabularyError) as error:
        _refuse(console, error.problems if isinstance(error, ConfigError) else (str(error),))
        return CONFIGURATION
    except RunningError as error:
        _refuse(console, [str(error)])
        return CONFIGURATION
    except DeltatapError as error:
        _refuse(console, [str(error)])
        return FAILED
    except Exception as error:  # noqa: BLE001 - Spark or the machine; nothing that was journaled is lost
        traceback.print_exc()
        _refuse(console, [f"{type(error).__name__}: {one_line(error)}"])
        if work is _capture:
            console.print("start it again: what was captured is kept, and is not paid for twice", highlight=False)
        return FAILED


def _refuse(console: Console, problems: Iterable[str]) -> None:
    for problem in problems:
        console.print(f"[red]✗[/red] {_plain(problem)}", highlight=False, soft_wrap=True)


def _foresee(settings: Settings, console: Console) -> int:
    from deltatap.driver.estimate import foresee, show  # noqa: PLC0415
    from deltatap.driver.preflight import preflight  # noqa: PLC0415

    prices = preflight(settings)
    show(console, foresee(_session(settings, console), settings, prices))
    return OK


def _capture(settings: Settings, console: Console) -> int:
    # Spark takes seconds to import and to start: what can be refused without it is.
    from deltatap.driver.preflight import preflight  # noqa: PLC0415

    prices = preflight(settings)
    from deltatap.driver.run import run  # noqa: PLC0415
    from deltatap.summary import show, summarize  # noqa: PLC0415

    spark = _session(settings, console)
    ended = run(settings, spark, prices, console)
    for note in ended.notes:
        console.print(_plain(note), highlight=False, soft_wrap=True)
    show(console, *summarize(spark, settings, ended.row["run_id"]), ended.row)
    if ended.row["status"] == "failed":
        _refuse(console, [f"the run failed: {ended.row['reason']}"])
    elif ended.row["reason"]:
        console.print(f"{_plain(str(ended.row['reason']))}; the next start goes on from there", highlight=False)
    print(json.dumps(ended.row, default=_jsonable))  # noqa: T201 - a line for machines: not wrapped, not coloured
    if ended.row["status"] == "failed":
        return FAILED
    return TOO_MANY_ERRORS if ended.failed_share > settings.capture.fail_above_error_rate else OK


def _session(settings: Settings, console: Console) -> Any:  # noqa: ANN401 - imported where it is used
    """The session that is there, as on Databricks, else a local one."""
    with console.status("starting Spark"):
        from pyspark.sql import SparkSession  # noqa: PLC0415

        from deltatap.spark.session import local_session  # noqa: PLC0415

        # What it logs is in the error that it raises, too.
        logging.getLogger("SQLQueryContextLogger").disabled = True
        if "DATABRICKS_RUNTIME_VERSION" in os.environ:
            return SparkSession.builder.getOrCreate()
        return SparkSession.getActiveSession() or local_session(settings.spark.master)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _jsonable(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


@app.command()
def simulate(
    host: Annotated[
        str, typer.Option(help="Where to listen; there is no protection, so stay on loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8089,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers, waits and faults.")] = 0,
    ttft_ms: Annotated[float, typer.Option(help="Median time to the first token.")] = 200.0,
    itl_ms: Annotated[float, typer.Option(help="Median time between tokens.")] = 20.0,
    tokens: Annotated[float, typer.Option(help="Median length of an answer.")] = 120.0,
    sigma: Annotated[float, typer.Option(help="Spread of the three: of their logarithms, times a usual one.")] = 1.0,
    speed: Annotated[float, typer.Option(help="How much faster everything goes; 0 is without any wait.")] = 1.0,
    fault: Annotated[
        list[str] | None, typer.Option(help="A fault and how often: cut=0.02", metavar="FAULT=RATE")
    ] = None,
    in_a_row: Annotated[int, typer.Option(help="Calls in a row for one prompt that may meet a fault.")] = 2,
    api_key_env: Annotated[str | None, typer.Option(help="Ask for the key in this environment variable.")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Refuse more with 429, in any 60 s.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="The same for input and output tokens.")] = None,
) -> None:
    """Serve an OpenAI-compatible endpoint that answers, misbehaves on demand and knows what it sent.

    Point a client at the printed URL. A model's name may ask for faults: gpt-4o-mini!429=0.2:2!cut@5:1 is two rate
    limits, then a connection cut after five pieces, then an answer. /sim/calls, /sim/counts and /sim/stats tell what
    was sent.
    """
    from deltatap.simulator.answers import ENCODING, Pace  # noqa: PLC0415 - tiktoken and uvicorn take their time
    from deltatap.simulator.app import Simulator, SimulatorSettings  # noqa: PLC0415
    from deltatap.simulator.faults import BadFaultError, parse  # noqa: PLC0415
    from deltatap.simulator.server import serve  # noqa: PLC0415
    from deltatap.tokens import encoding  # noqa: PLC0415

    usual = Pace()
    pace = Pace(
        ttft_ms, usual.ttft_sigma * sigma, itl_ms, usual.itl_sigma * sigma, tokens, usual.tokens_sigma * sigma, speed
    )
    rates = {}
    try:
        for text in fault or []:
            name, _, rate = text.rpartition("=")
            parse(name)
            rates[name] = float(rate)
    except (BadFaultError, ValueError) as error:
        raise typer.BadParameter(f"--fault {text}: expected FAULT=RATE ({error})") from None
    settings = SimulatorSettings(
        seed=seed,
        pace=pace,
        faults=rates,
        in_a_row=in_a_row,
        api_key_env=api_key_env,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    encoding(ENCODING)  # now, so that no call waits for it
    serve(Simulator(settings).application(), host, port)
