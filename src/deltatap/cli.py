"""The command line: arguments, exit codes and what each command prints. The job scripts run the same commands.

A command is a function that takes the settings, a console and its own options, and returns an exit code. ``command``
adds ``--config`` and ``--set`` to it. ``run`` loads the settings and turns errors into messages. Spark, pandas and the
settings are imported when a command runs, so that ``--help`` and ``--version`` stay fast.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from deltatap.errors import (
    ConfigError,
    DeltatapError,
    MissingExtraError,
    RunningError,
    VocabularyError,
    described,
    is_of_spark,
    missing_extra,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from rich.console import Console

    from deltatap.config import Settings
    from deltatap.driver.load import Loaded

_HELP = "Stream LLM completions from Spark into Delta, with the arrival time of every chunk."


class _Command(TyperCommand):
    """A command whose help shows no type for flags."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - the class depends on Typer's version
        return _without_flag_types(super().get_params(ctx))


class _Group(TyperGroup):
    """The same for the options before the command."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - as above
        return _without_flag_types(super().get_params(ctx))


def _without_flag_types(parameters: list[Any]) -> list[Any]:
    for each in parameters:
        if getattr(each, "is_flag", False):
            each.metavar = ""
    return parameters


app = typer.Typer(cls=_Group, help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False)

OK, FAILED, CONFIGURATION, TOO_MANY_ERRORS = 0, 1, 2, 3
# Errors that are raised before the first API call. Any other error means that the command failed while it ran.
_NOT_STARTED = (ConfigError, VocabularyError, RunningError, MissingExtraError)
# The extra that installs a module, by the module's top-level package.
EXTRAS = {
    "delta": "spark",
    "jinja2": "report",
    "plotly": "report",
    "pyspark": "spark",
    "starlette": "serve",
    "uvicorn": "serve",
}
_MARKS = {"ok": ("✓ ", "green"), "warning": ("! ", "yellow"), "problem": ("✗ ", "red")}

Command = TypeVar("Command", bound=Callable[..., int])
_CONFIG = Annotated[Path, typer.Option("--config", "-c", help="YAML file with the settings.")]
_SET = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: a.b=c. An empty value unsets it: a.b="),
]
_COMMON = (
    inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=Path("conf/local.yml"), annotation=_CONFIG),
    inspect.Parameter("overrides", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_SET),
)
_HOST = typer.Option(help="Address to listen on. There is no authentication: keep it on loopback.")
_PORT = typer.Option(min=0, max=65535, help="Port to listen on. 0 picks a free port.")
_SPEED = typer.Option(min=0, help="Speed factor: 2 is twice as fast, 0 does not wait at all.")


def command(work: Command) -> Command:
    """Add a command to the command line, with its own options and ``--config`` and ``--set``."""
    app.command(cls=_Command)(_callback(work))
    return work


def _callback(work: Callable[..., int]) -> Callable[..., None]:
    """The function that Typer calls for a command. Its signature has --config and --set, not settings and console."""
    # Neither class is imported here, and Typer never sees the two parameters.
    signature = inspect.signature(work, eval_str=True, locals={"Settings": object, "Console": object})
    _settings, _console, *own = signature.parameters.values()
    parameters = [*own, *_COMMON]

    def callback(config: Path, overrides: list[str] | None, **options: object) -> None:
        sys.exit(run(work, config, overrides or (), **options))

    callback.__name__, callback.__doc__ = work.__name__, work.__doc__
    callback.__annotations__ = {each.name: each.annotation for each in parameters}
    vars(callback)["__signature__"] = inspect.Signature(parameters)
    return _unwrapped(callback)


def _unwrapped(callback: Callable[..., None]) -> Callable[..., None]:
    """Put each paragraph of the help on one line. Otherwise Typer keeps the line breaks and wraps a second time."""
    paragraphs = inspect.cleandoc(callback.__doc__ or "").split("\n\n")
    callback.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return callback


def run_job(work: Callable[..., int]) -> None:
    """Run one command as a separate script, with the arguments in ``sys.argv``."""
    job = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    job.command(cls=_Command)(_callback(work))
    try:
        job()
    except SystemExit as ended:
        # Exit only with an error: a Databricks task treats every SystemExit as a failure, even with code 0.
        if ended.code:
            raise


def run(work: Callable[..., int], config: Path, overrides: list[str] | tuple[str, ...] = (), **options: object) -> int:
    """Load the settings, run a command and print its errors.

    Args:
        work: the command.
        config: the YAML file.
        overrides: the values of ``--set``.
        options: the command's own options.

    Returns:
        The exit code.
    """
    from deltatap.terminal import plain_console  # noqa: PLC0415

    console = plain_console()

    def with_settings() -> int:
        from deltatap.config import load_settings  # noqa: PLC0415

        return work(load_settings(config, overrides), console, **options)

    hint = (
        "run it again: finished captures in the journal are kept and are not paid for twice" if work is capture else ""
    )
    return _guarded(console, with_settings, hint)


def _guarded(console: Console, work: Callable[[], int], hint: str = "") -> int:
    """Do the work and print its errors. After an unexpected error, also print the hint. Returns the exit code."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - Spark, the machine or a bug can raise anything
        known = error if isinstance(error, DeltatapError) else _missing(error)
        if known is None:
            if not (is_of_spark(error) or isinstance(error, OSError)):
                traceback.print_exc()
            _say(console, described(error), "problem")
            if hint:
                _say(console, hint)
            return FAILED
        for problem in known.problems if isinstance(known, ConfigError) else (str(known),):
            _say(console, problem, "problem")
        return CONFIGURATION if isinstance(known, _NOT_STARTED) else FAILED


def _missing(error: Exception) -> MissingExtraError | None:
    """The error for a missing extra, if that is the cause."""
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").partition(".")[0])):
        return missing_extra(error, extra)
    return None


def _say(console: Console, text: str, level: str | None = None) -> None:
    """Print text unchanged: without markup, highlighting or wrapping."""
    from rich.text import Text  # noqa: PLC0415

    console.print(Text.assemble(_MARKS[level] if level else "", text), soft_wrap=True)


def _session(settings: Settings, console: Console) -> SparkSession:
    """Return the existing session on Databricks. Elsewhere, start a local session if there is none."""
    with console.status("starting Spark"):
        from pyspark.sql import SparkSession  # noqa: PLC0415

        from deltatap.spark.session import local_session  # noqa: PLC0415

        # This logger repeats messages of the errors that Spark raises.
        logging.getLogger("SQLQueryContextLogger").disabled = True
        if "DATABRICKS_RUNTIME_VERSION" in os.environ:
            return SparkSession.builder.getOrCreate()
        return SparkSession.getActiveSession() or local_session(settings.spark.master)


def _print_version(value: bool) -> None:  # noqa: FBT001 - Typer passes the flag
    if value:
        from deltatap import __version__  # noqa: PLC0415

        typer.echo(f"deltatap {__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def main(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Parse the options that come before the command."""


@command
def capture(
    settings: Settings,
    console: Console,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show owed requests, their tokens and estimated cost. Make no API call.")
    ] = False,
) -> int:
    """Capture every prompt that has no final row yet.

    The last line of the output is the run's row as JSON.

    Exit codes: 0, the run completed, was stopped on request, or used up a budget; 1, it failed; 2, the configuration is
    wrong, an optional package is missing, or another run is active, and no API call was made; 3, more rows failed than
    capture.fail_above_error_rate allows.
    """
    # Spark takes seconds to import and to start, so everything that can fail without Spark is checked first.
    from deltatap.driver.needs import preflight  # noqa: PLC0415

    prices = preflight(settings)
    if dry_run:
        from deltatap.driver.estimate import estimate_run  # noqa: PLC0415
        from deltatap.driver.estimate import show as show_estimate  # noqa: PLC0415
        from deltatap.driver.source import misspelled  # noqa: PLC0415

        spark = _session(settings, console)
        show_estimate(console, estimate_run(spark, settings, prices))
        for line in misspelled(spark, settings):
            _say(console, line, "warning")
        return OK
    from deltatap.analysis.queries import summarize  # noqa: PLC0415
    from deltatap.driver.run import run as run_capture  # noqa: PLC0415
    from deltatap.terminal import show_summary  # noqa: PLC0415

    spark = _session(settings, console)
    ended = run_capture(settings, spark, prices, console)
    row = ended.row
    for note in ended.notes:
        _say(console, note)
    show_summary(console, row, *summarize(spark, settings, row["run_id"]))
    if ended.failed:
        _say(console, f"the run failed: {row['reason']}", "problem")
    elif row["reason"]:
        _say(console, f"{row['reason']}; the next run continues from here")
    print(json.dumps(row, default=_as_json))  # noqa: T201 - a line for programs: no wrapping, no colors
    if ended.failed:
        return FAILED
    return TOO_MANY_ERRORS if ended.failed_share > settings.capture.fail_above_error_rate else OK


def _as_json(value: Any) -> str:  # noqa: ANN401 - any value that the json module cannot encode
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


@command
def stop(
    settings: Settings,
    console: Console,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, from the first line of its output.")],
) -> int:
    """Stop an active run, on this machine or on another one that uses the same state folder.

    No new request starts. Open requests finish, or are cut after timeouts.grace_s and kept as interrupted. The next run
    continues from there.
    """
    from deltatap.state import RunState  # noqa: PLC0415

    folder = Path(settings.state.dir)
    state = RunState.of(folder, run_id)
    if state.control() is None:
        active = ", ".join(sorted(RunState(path.parent).name for path in folder.glob("*/control.json"))) or "none"
        raise ConfigError([f"state.dir: {folder}: run {run_id} is not active here; active runs: {active}"])
    state.ask_to_stop()
    _say(console, f"asked run {run_id} to stop")
    return OK


@command
def load(
    settings: Settings,
    console: Console,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl, .csv or .parquet file.")],
    *,
    id_column: Annotated[
        str | None, typer.Option("--id-column", metavar="NAME", help="The file's column with the request_id.")
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option("--prompt-column", metavar="NAME", help="The file's column with the prompt.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the rows of the table that have a request_id of the file.")
    ] = False,
) -> int:
    """Append the prompts in a file to the prompts table: all of them, or none.

    The table is created if it does not exist. JSON lines follow OpenAI's Batch format (custom_id, url, body) or have
    the columns of a prompts table as keys. CSV and Parquet files have these columns: request_id, prompt or messages,
    system, model, params, and the columns that prompts.keep names.
    """
    if not file.is_file():  # Spark takes seconds to start.
        raise ConfigError([f"{file}: {'is not a file' if file.exists() else 'does not exist'}"])
    from deltatap.driver.load import load as load_prompts  # noqa: PLC0415

    named = {name: column for name, column in (("request_id", id_column), ("prompt", prompt_column)) if column}
    loaded = load_prompts(_session(settings, console), settings, file, named=named, replace=replace)
    for problem in loaded.bad[:5]:
        _say(console, f"{file}: {problem}", "warning")
    for note in _notes_on(loaded, replace=replace):
        _say(console, f"{file}: {note}", "warning")
    bad = f"; invalid: {len(loaded.bad):,} (these become failed rows, at no cost)" if loaded.bad else ""
    _say(console, f"prompts loaded into {settings.prompts.table}: {loaded.rows:,}{bad}")
    return OK


def _notes_on(loaded: Loaded, *, replace: bool) -> Iterator[str]:
    """What a user may not expect of a load."""
    if loaded.known and replace:
        yield f"request ids whose rows were replaced: {loaded.known:,}"
    elif loaded.known:
        yield (
            f"request ids that the table had already: {loaded.known:,}; a request_id with two different prompts fails, "
            "so use --replace to replace the earlier rows"
        )
    if "id" in loaded.unused:
        yield "column id is not the request_id; load with --id-column id to use it"
    if loaded.unused:
        yield f"not used for requests, but kept in the table: {', '.join(loaded.unused)}"


@command
def check(settings: Settings, console: Console) -> int:
    """Check everything a capture needs, without a paid call.

    Checks the key, the vocabularies, the network and the state folder, on the driver and in Spark's workers; the
    prices; the runtime; the tables and the permission to write them (missing tables are created); and whether the
    endpoint lists the model.

    Exit codes: 0, everything is fine; 2, there is a problem.
    """
    from deltatap.driver.check import check as find  # noqa: PLC0415

    problems = 0
    for finding in find(settings, lambda: _session(settings, console)):
        _say(console, f"{finding.what}: {finding.detail}" if finding.detail else finding.what, finding.level)
        problems += finding.level == "problem"
    counted = f"{problems} problem{'s' * (problems > 1)} to fix before capturing" if problems else "ready to capture"
    _say(console, f"{counted}; no paid call was made")
    return CONFIGURATION if problems else OK


@command
def analyze(
    settings: Settings,
    console: Console,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Recompute all runs, not only new and changed ones.")
    ] = False,
) -> int:
    """Compute the metrics tables from captures.

    Updates metrics_by_run, metrics_by_hour and stream_vs_complete; docs/metrics.md describes them. Running the command
    again changes nothing unless captures changed.

    Exit codes: 0, done; 2, the configuration is wrong.
    """
    from deltatap.analysis.compute import analyze as compute  # noqa: PLC0415
    from deltatap.analysis.compute import table_of  # noqa: PLC0415
    from deltatap.terminal import show_metrics  # noqa: PLC0415

    rows = compute(_session(settings, console), settings, everything=everything)
    show_metrics(console, rows)
    runs = len({row["run_id"] for row in rows})
    counted = f"{runs:,} run{'s' * (runs > 1)} analyzed" if runs else "no new or changed runs"
    _say(console, f"{counted}: {table_of(settings, 'metrics_by_run')}")
    return OK


@command
def runs(
    settings: Settings,
    console: Console,
    most: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of runs to list.")] = 20,
) -> int:
    """List the runs on the captures table, newest first."""
    from deltatap.analysis.queries import newest_runs  # noqa: PLC0415
    from deltatap.terminal import show_runs  # noqa: PLC0415

    show_runs(console, newest_runs(_session(settings, console), settings, most))
    return OK


@command
def show(
    settings: Settings,
    console: Console,
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The request to show.")],
    run_id: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Show this run's row. Default: the newest row.")
    ] = None,
) -> int:
    """Show one request: when its chunks arrived, its latencies, cost, text and error."""
    from deltatap.analysis.queries import newest_capture  # noqa: PLC0415
    from deltatap.terminal import show_capture  # noqa: PLC0415

    for row in newest_capture(_session(settings, console), settings, request_id, run_id):
        show_capture(console, row)
    return OK


@command
def compare(
    settings: Settings,
    console: Console,
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="The first run.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="The second run.")],
) -> int:
    """Compare two runs: how much the median and p95 of each metric differ.

    Each difference has a bootstrap 95 % interval. If a mode has more than 5,000 rows, the command compares a sample
    of 5,000. The sample is the same every time.
    """
    from deltatap.analysis.compare import compare as differences  # noqa: PLC0415
    from deltatap.analysis.queries import require_run  # noqa: PLC0415
    from deltatap.terminal import show_comparison  # noqa: PLC0415

    spark = _session(settings, console)
    for run_id in (first, second):
        require_run(spark, settings, run_id)
    show_comparison(console, first, second, differences(spark, settings, first, second))
    return OK


@command
def report(
    settings: Settings,
    console: Console,
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Runs to include. Default: the newest run that has rows.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("report.html"),
) -> int:
    """Write one HTML page about a run, or about several runs side by side.

    The page has charts, numbers, text, and streams to replay. It opens offline. Metrics that are missing are computed
    first.
    """
    from deltatap.report import write_report  # noqa: PLC0415

    written = write_report(_session(settings, console), settings, run_ids or [], out)
    _say(console, f"report written to {out} (run{'s' * (len(written) > 1)} {' and '.join(written)})")
    return OK


@command
def replay(
    settings: Settings,
    console: Console,
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Runs to replay. Default: all runs.")
    ] = None,
    host: Annotated[str, _HOST] = "127.0.0.1",
    port: Annotated[int, _PORT] = 8089,
    speed: Annotated[float, _SPEED] = 1.0,
    most: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of answers, newest first.")] = 10_000,
) -> int:
    """Serve captured answers as an OpenAI- and Anthropic-compatible endpoint, with their original timing.

    A request gets the answer that was captured for the same body (request_hash), or else for the same last prompt. If
    the request sets stream, it gets a captured stream, otherwise a whole answer. Broken streams break again. Open / in
    a browser to watch an answer arrive.
    """
    from deltatap.analysis.queries import newest_answers  # noqa: PLC0415
    from deltatap.replay.app import Replay  # noqa: PLC0415
    from deltatap.replay.recordings import recording  # noqa: PLC0415
    from deltatap.simulator.server import serve  # noqa: PLC0415

    spark = _session(settings, console)
    rows = newest_answers(spark, settings, run_ids or [], most)
    recordings, reason = [], ""
    for row in rows:
        try:
            recordings.append(recording(row.asDict(recursive=True)))
        except ValueError as error:
            reason = str(error)
    if reason:
        _say(console, f"{len(rows) - len(recordings):,} answers left out: {reason}")
    if not recordings:
        raise ConfigError([f"captures.table: {settings.captures.table}: no answer to replay"])
    _say(console, f"{len(recordings):,} answers; open / in a browser to watch one")
    spark.stop()
    serve(Replay(recordings, speed=speed).application(), host, port, "replay")
    return OK


@app.command(cls=_Command)
@_unwrapped
def simulate(
    host: Annotated[str, _HOST] = "127.0.0.1",
    port: Annotated[int, _PORT] = 8089,
    seed: Annotated[int, typer.Option(help="Random seed of answers, delays and faults.")] = 0,
    ttft_ms: Annotated[float, typer.Option(help="Median time to first token.")] = 200.0,
    itl_ms: Annotated[float, typer.Option(help="Median inter-token latency.")] = 20.0,
    tokens: Annotated[float, typer.Option(help="Median answer length in tokens.")] = 120.0,
    sigma: Annotated[float, typer.Option(help="Spread factor for the three medians. 0: always the median.")] = 1.0,
    speed: Annotated[float, _SPEED] = 1.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="A fault and its rate, from 0 to 1: cut=0.02. Repeatable. docs/guide.md lists the faults.",
            metavar="FAULT=RATE",
        ),
    ] = None,
    in_a_row: Annotated[int, typer.Option(help="Maximum consecutive faults for one prompt.")] = 2,
    api_key_env: Annotated[
        str | None, typer.Option(help="Require the key in this environment variable.", metavar="NAME")
    ] = None,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="Maximum requests per minute. Requests above the limit get a 429.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="Maximum tokens per minute. Requests above the limit get a 429.")
    ] = None,
) -> None:
    """Serve a simulated endpoint, OpenAI- and Anthropic-compatible, that injects faults and records what it sent.

    Point a client at the URL that it prints. A model name can request faults: gpt-4o-mini!429=0.2:2!cut@5:1 means two
    rate limits, then a connection that is cut after five pieces, then an answer. /sim/calls, /sim/counts and /sim/stats
    return the record.
    """
    from deltatap.simulator.faults import BadFaultError, parse  # noqa: PLC0415
    from deltatap.terminal import plain_console  # noqa: PLC0415

    rates = {}
    try:
        for text in fault or []:
            name, _, rate = text.rpartition("=")
            parse(name)
            rates[name] = float(rate)
            if not 0 <= rates[name] <= 1:
                raise typer.BadParameter(f"--fault {text}: expected a rate from 0 to 1, found {rate}")
    except (BadFaultError, ValueError) as error:
        raise typer.BadParameter(f"--fault {text}: expected FAULT=RATE ({error})") from None

    def work() -> int:
        from deltatap.simulator.answers import ENCODING, Pace  # noqa: PLC0415
        from deltatap.simulator.app import Simulator, SimulatorSettings  # noqa: PLC0415
        from deltatap.simulator.server import serve  # noqa: PLC0415
        from deltatap.tokens import encoding  # noqa: PLC0415

        usual = Pace()
        sigmas = [each * sigma for each in (usual.ttft_sigma, usual.itl_sigma, usual.tokens_sigma)]
        settings = SimulatorSettings(
            seed=seed,
            pace=Pace(ttft_ms, sigmas[0], itl_ms, sigmas[1], tokens, sigmas[2], speed),
            faults=rates,
            in_a_row=in_a_row,
            api_key_env=api_key_env,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
        encoding(ENCODING)  # Loaded before the first call, so that no call waits for it.
        serve(Simulator(settings).application(), host, port)
        return OK

    sys.exit(_guarded(plain_console(), work))
