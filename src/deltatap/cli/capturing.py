"""The commands before and during a run: ``capture``, ``load``, ``check`` and ``stop``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatap.cli.runner import (
    CAPTURE,
    CONFIGURATION,
    FAILED,
    OK,
    TOO_MANY_ERRORS,
    command,
    given,
    hint,
    say,
    session,
)
from deltatap.errors import ConfigError
from deltatap.program import program
from deltatap.prompt_columns import misplaced
from deltatap.visible import json_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyspark.sql import SparkSession
    from rich.console import Console

    from deltatap.config import Settings
    from deltatap.driver.load import Loaded
    from deltatap.driver.run import Ended

# Maximum number of invalid rows that a load lists.
_BAD = 5
# The columns of the run's row that the last line of a capture shows. The table also has the others.
_LAST_LINE = (
    "run_id", "status", "reason", "owed", "completed", "interrupted", "failed", "requests", "input_tokens",
    "output_tokens", "cost_usd",
)  # fmt: skip


@command(CAPTURE)
@hint("run it again: finished captures in the journal are kept and are not paid for twice")
def capture(
    settings: Settings,
    console: Console,
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show owed requests, tokens, estimated cost and savings. Make no API call."),
    ] = False,
) -> int:
    """Capture every prompt that has no final row yet.

    The last line of the output is JSON: the run's id, status, counts and cost. With capture.follow_s, each run prints
    such a line, and the command repeats the last one at the end.

    Exit codes: 0, the run completed, was stopped on request, or used up a budget; 1, it failed; 2, the configuration is
    wrong, an optional package is missing, Spark cannot start, or another run is active, and no API call was made; 3,
    a larger share of rows failed than capture.fail_above_error_rate allows.
    """
    # Spark takes seconds to import and to start, so everything that can fail without Spark is checked first.
    from deltatap.driver.needs import preflight, prices_of  # noqa: PLC0415

    # A dry run needs neither the key nor the endpoint.
    prices = prices_of(settings) if dry_run else preflight(settings)
    if dry_run:
        from deltatap.driver.estimate import estimate_run  # noqa: PLC0415
        from deltatap.driver.estimate_text import show as show_estimate  # noqa: PLC0415
        from deltatap.driver.source import misspelled  # noqa: PLC0415

        spark = session(settings, console)
        show_estimate(console, estimate_run(spark, settings, prices), settings.capture.arrivals)
        for line in misspelled(spark, settings):
            say(console, line, "warning")
        return OK
    spark = session(settings, console)
    if settings.capture.follow_s is None:
        from deltatap.driver.run import run as run_capture  # noqa: PLC0415

        return _show_run(settings, spark, console, run_capture(settings, spark, prices, console))
    from deltatap.driver.follow import follow  # noqa: PLC0415

    codes = []
    for ended in follow(settings, spark, prices, console, lambda text: say(console, text)):
        codes.append(_show_run(settings, spark, console, ended))
        last = ended.row
    _print_row(last)
    return FAILED if FAILED in codes else max(codes)


def _show_run(settings: Settings, spark: SparkSession, console: Console, ended: Ended) -> int:
    """Print a run's notes, its summary, and its row as JSON. Returns the exit code."""
    from deltatap.analysis.queries import good_requests, summarize  # noqa: PLC0415
    from deltatap.delta.reader import SparkReader  # noqa: PLC0415
    from deltatap.terminal import show_summary  # noqa: PLC0415

    row = ended.row
    for note in ended.notes:
        say(console, note)
    tables, run_id = SparkReader(spark), row["run_id"]
    good = good_requests(tables, settings, [run_id]).get(run_id)
    show_summary(
        console,
        row,
        *summarize(tables, settings, run_id),
        good,
        given("captures", "runs", "analysis"),
        ended.earlier_calls,
    )
    if ended.failed:
        say(console, f"the run failed: {row['reason']}", "problem")
    elif row["reason"]:
        say(console, f"{row['reason']}; the next run continues from here")
    _print_row(row)
    if ended.failed:
        return FAILED
    return TOO_MANY_ERRORS if ended.failed_share > settings.capture.fail_above_error_rate else OK


def _print_row(row: Mapping[str, Any]) -> None:
    line = json_text({name: row[name] for name in _LAST_LINE}, ensure_ascii=True)
    print(line, flush=True)  # noqa: T201 - a line for programs: no wrapping, no colors


@command(CAPTURE)
def load(
    settings: Settings,
    console: Console,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl, .csv or .parquet file.")],
    *,
    id_column: Annotated[
        str | None, typer.Option("--id-column", metavar="NAME", help="Column of the file that contains the request_id.")
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option("--prompt-column", metavar="NAME", help="Column of the file that contains the prompt.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace rows of the table whose request_id is in the file.")
    ] = False,
) -> int:
    """Append the prompts in a file to the prompts table: all of them, or none.

    The table is created if it does not exist. JSON lines follow OpenAI's Batch format (custom_id, url, body) or have
    the columns of a prompts table as keys. CSV and Parquet files have these columns: request_id, prompt or messages,
    system, model, params, and the columns that prompts.keep names.
    """
    if not file.is_file():  # Spark takes seconds to start.
        raise ConfigError([f"{file}: {'is not a file' if file.exists() else 'does not exist'}"])
    from deltatap.delta.readers import without_jvm  # noqa: PLC0415
    from deltatap.driver.load import load_locally  # noqa: PLC0415

    named = {name: column for name, column in (("request_id", id_column), ("prompt", prompt_column)) if column}
    loaded = load_locally(settings, file, named=named) if without_jvm() and not replace else None
    if loaded is None:
        spark = session(settings, console)
        from deltatap.driver.load_spark import load_prompts  # noqa: PLC0415

        loaded = load_prompts(spark, settings, file, named=named, replace=replace)
    for problem in loaded.bad[:_BAD]:
        say(console, f"{file}: {problem}", "warning")
    if (more := len(loaded.bad) - _BAD) > 0:
        say(console, f"{file}: {more:,} more invalid rows", "warning")
    for note, level in _notes_on(loaded, replace=replace):
        say(console, f"{file}: {note}", level)
    bad = f"; invalid: {len(loaded.bad):,} (these become failed rows, at no cost)" if loaded.bad else ""
    say(console, f"prompts loaded into {settings.prompts.table}: {loaded.rows:,}{bad}")
    # Headers of the endpoint can be secret.
    same = given(*(name for name in type(settings).model_fields if name != "endpoint"))
    hint = "add the settings of your endpoint and tables if the configuration does not have them"
    say(console, f"next: `{program()} capture{same}`; {hint}")
    return OK


def _notes_on(loaded: Loaded, *, replace: bool) -> Iterator[tuple[str, str | None]]:
    """Notes on the result of a load, each with its level. Anything that may surprise the user is a warning."""
    if loaded.known and replace:
        yield f"request ids whose rows were replaced: {loaded.known:,}", None
    elif loaded.known:
        fail = (
            f"request ids that were already in the table: {loaded.known:,}; if their prompts differ, these requests "
            "fail; to replace the earlier rows, load again with --replace"
        )
        yield fail, "warning"
    if "id" in loaded.unused and not loaded.has_ids:
        yield "column id is not used as request_id; to use it, load with --id-column id", "warning"
    if (hint := misplaced(loaded.unused)) is not None:
        yield hint, "warning"
    if loaded.unused:
        yield f"not used for requests, but kept in the table: {', '.join(loaded.unused)}", None


@command(CAPTURE)
def check(settings: Settings, console: Console) -> int:
    """Check everything a capture needs, without a paid call.

    Checks the key, the vocabularies, the network and the state folder, on the driver and in Spark's workers; the
    prices; the runtime; the tables and the permission to write them; and whether the endpoint lists the model. Creates
    missing tables.

    Exit codes: 0, no problems; 2, at least one problem.
    """
    from deltatap.driver.check import check as find  # noqa: PLC0415

    problems = 0
    for finding in find(settings, lambda: session(settings, console)):
        say(console, f"{finding.what}: {finding.detail}" if finding.detail else finding.what, finding.level)
        problems += finding.level == "problem"
    counted = f"{problems} problem{'s' * (problems > 1)} to fix before capturing" if problems else "ready to capture"
    say(console, f"{counted}; no paid call was made")
    return CONFIGURATION if problems else OK


@command(CAPTURE)
def stop(
    settings: Settings,
    console: Console,
    run_id: Annotated[
        str,
        typer.Argument(metavar="RUN", help="The run's id, from its first line of output. By default, the active run."),
    ] = "",
) -> int:
    """Stop an active run, on this machine or on another one that uses the same state folder.

    No new request starts. Open requests get timeouts.grace_s seconds to finish; after that, they are cut and kept as
    interrupted. The next run continues from there.

    This command waits up to ten seconds for the run to start, and then up to ten seconds for its answer.
    """
    from deltatap.driver.asking import PATIENCE_S, ask_to_stop  # noqa: PLC0415

    with console.status("waiting for the run"):
        asked = ask_to_stop(Path(settings.state.dir), run_id)
    late = f"; it has not answered for {PATIENCE_S:g} s: it is planning or landing, or its driver is dead"
    say(console, f"asked run {asked.run_id} to stop{'' if asked.answered else late}")
    return OK
