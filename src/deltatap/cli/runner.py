"""Runs commands: loads their settings, and turns errors into messages and exit codes.

A command is a function that takes the settings, a console and its own options, and returns an exit code. ``command``
adds ``--config`` and ``--set`` to it. The other modules of this package define the commands.
"""

from __future__ import annotations

import inspect
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from deltatap.errors import (
    ConfigError,
    DeltatapError,
    MissingExtraError,
    RunningError,
    SparkSetupError,
    VocabularyError,
    described,
    is_of_spark,
    missing_extra,
)
from deltatap.visible import visible

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from rich.console import Console

    from deltatap.config import Settings
    from deltatap.delta.reader import Reader

_HELP = "Stream LLM completions from Spark into Delta, with the arrival time of every chunk."


class Command(TyperCommand):
    """A command whose help shows no type for flags."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - the class depends on Typer's version
        """For Typer."""
        return _without_flag_types(super().get_params(ctx))


class _Group(TyperGroup):
    """The same for the options that come before the command."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - as above
        return _without_flag_types(super().get_params(ctx))


def _without_flag_types(parameters: list[Any]) -> list[Any]:
    for each in parameters:
        if getattr(each, "is_flag", False):
            each.metavar = ""
    return parameters


app = typer.Typer(cls=_Group, help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False)

# The options of commands that serve.
HOST = typer.Option(help="Address to listen on. There is no authentication: keep it on loopback.")
PORT = typer.Option(min=0, max=65535, help="Port to listen on. 0 picks a free port.")

OK, FAILED, CONFIGURATION, TOO_MANY_ERRORS = 0, 1, 2, 3
CONDITION_HOLDS = NO_RATE = 3
# The panels of the help, in the order of use.
CAPTURE, RESULTS, ENDPOINTS = "Capture", "Results", "Endpoints for tests"
# Errors that are raised before the first API call. Any other error means that the command failed while it ran.
_NOT_STARTED = (ConfigError, VocabularyError, RunningError, MissingExtraError, SparkSetupError)
# The extra that installs a module, by the module's top-level package.
EXTRAS = {
    "delta": "spark",
    "jinja2": "report",
    "opentelemetry": "otel",
    "plotly": "report",
    "pyspark": "spark",
    "starlette": "serve",
    "uvicorn": "serve",
}
_MARKS = {"ok": ("✓ ", "green"), "warning": ("! ", "yellow"), "problem": ("✗ ", "red")}

Work = TypeVar("Work", bound=Callable[..., int])
_CONFIG = Annotated[Path, typer.Option("--config", "-c", help="YAML file with the settings.")]
_SET = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: a.b=c. An empty value unsets it: a.b="),
]
_DEFAULT = Path("conf/local.yml")
_COMMON = (
    inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=_DEFAULT, annotation=_CONFIG),
    inspect.Parameter("overrides", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_SET),
)
# The --config and --set options of the running command.
_GIVEN: ContextVar[tuple[Path, tuple[str, ...]]] = ContextVar("_GIVEN", default=(_DEFAULT, ()))
_HINTS: dict[Callable[..., int], str] = {}


def command(panel: str) -> Callable[[Work], Work]:
    """Add a command to a panel of the help, with its own options and ``--config`` and ``--set``."""

    def add(work: Work) -> Work:
        app.command(cls=Command, rich_help_panel=panel)(_callback(work))
        return work

    return add


def hint(text: str) -> Callable[[Work], Work]:
    """Add a hint to a command. It is printed after an unexpected error."""

    def remember(work: Work) -> Work:
        _HINTS[work] = text
        return work

    return remember


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
    return unwrapped(callback)


def unwrapped(callback: Callable[..., None]) -> Callable[..., None]:
    """Put each paragraph of the help on one line. Otherwise Typer keeps the line breaks and wraps a second time."""
    paragraphs = inspect.cleandoc(callback.__doc__ or "").split("\n\n")
    callback.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return callback


def run_job(work: Callable[..., int], *options: str) -> None:
    """Run one command as a separate script, with these options and the arguments in ``sys.argv``."""
    job = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    job.command(cls=Command)(_callback(work))
    from deltatap.terminal import plain_console  # noqa: PLC0415

    try:
        sys.exit(guarded(plain_console(), lambda: job(args=[*options, *with_settings(sys.argv[1:])])))
    except SystemExit as ended:
        # Exit only with an error: a Databricks task treats every SystemExit as a failure, even with code 0.
        if ended.code:
            raise


def with_settings(words: Sequence[str]) -> list[str]:
    """The arguments, with a last ``--settings 'a.b=c d=e'`` replaced by ``--set a.b=c --set d=e``.

    A job run has one parameter for all settings. Its text is split as a shell splits words, so quotes keep spaces.

    Settings of the endpoint are refused. Otherwise, anyone who may start a job could decide where the key is sent.

    Raises:
        ConfigError: if a quote is not closed, or a setting is refused.
    """
    *others, name, text = words if len(words) > 1 else ("", "", *words)
    if name != "--settings":
        return list(words)
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ConfigError([f"--settings: {error}"]) from None
    if refused := [key for part in parts if (key := part.partition("=")[0].strip()).split(".")[0] == "endpoint"]:
        why = "cannot be set for one run, because the key could then be sent to another server"
        raise ConfigError([f"--settings: {', '.join(refused)}: {why}"])
    return [*others, *(word for part in parts for word in ("--set", part))]


def run(work: Callable[..., int], config: Path, overrides: list[str] | tuple[str, ...] = (), **options: object) -> int:
    """Load the settings, run a command and print its errors.

    Args:
        work: the command.
        config: the YAML file.
        overrides: the values of ``--set``.
        options: the command's own options. With ``as_json``, standard output is for JSON only, and everything else goes
            to standard error.

    Returns:
        The exit code.
    """
    from deltatap.terminal import plain_console  # noqa: PLC0415

    console = plain_console(stderr=bool(options.get("as_json")))
    _GIVEN.set((config, tuple(overrides)))
    # All tests pass with Spark 4.2 and pandas 3.
    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)

    def with_settings() -> int:
        from deltatap.settings_loading import load_settings  # noqa: PLC0415

        # Without a file, the defaults apply, which are those of conf/local.yml.
        source: Path | dict[str, Any] = {} if config == _DEFAULT and not config.exists() else config
        return work(load_settings(source, overrides), console, **options)

    return guarded(console, with_settings, _HINTS.get(work, ""))


def given(*sections: str) -> str:
    """The ``--config`` and ``--set`` of this command, to append to another command that the user can paste.

    Args:
        sections: the sections of the settings that the other command needs.
    """
    config, overrides = _GIVEN.get()
    words = [] if config == _DEFAULT else ["--config", str(config)]
    for each in overrides:
        if each.partition("=")[0].strip().partition(".")[0] in sections:
            words += ["--set", each]
    return "".join(f" {shlex.quote(word)}" for word in words)


def guarded(console: Console, work: Callable[[], int], hint: str = "") -> int:
    """Do the work and print its errors. After an unexpected error, also print the hint. Returns the exit code."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - Spark, the machine or a bug can raise anything
        known = error if isinstance(error, DeltatapError) else _missing(error)
        if known is None:
            if not (is_of_spark(error) or isinstance(error, OSError)):
                print(visible(traceback.format_exc()), end="", file=sys.stderr)  # noqa: T201 - as Python does
            say(console, described(error), "problem")
            if hint:
                say(console, hint)
            return FAILED
        for problem in known.problems if isinstance(known, ConfigError) else (str(known),):
            say(console, problem, "problem")
        return CONFIGURATION if isinstance(known, _NOT_STARTED) else FAILED


def _missing(error: Exception) -> MissingExtraError | None:
    """The error for a missing extra, if that is the cause."""
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").partition(".")[0])):
        return missing_extra(error, extra)
    return None


def say(console: Console, text: str, level: str | None = None) -> None:
    """Print text without markup, highlighting or wrapping. Only its control characters are escaped."""
    from rich.text import Text  # noqa: PLC0415

    console.print(Text.assemble(_MARKS[level] if level else "", visible(text)), soft_wrap=True)


def session(settings: Settings, console: Console) -> SparkSession:
    """Return the existing session on Databricks. Elsewhere, start a local session if there is none."""
    on_databricks = "DATABRICKS_RUNTIME_VERSION" in os.environ
    if not console.is_terminal and not on_databricks and find_spec("pyspark"):
        # Spark takes seconds to start, and nothing else is printed until then. Standard output is for results.
        print("deltatap: starting Spark", file=sys.stderr, flush=True)  # noqa: T201 - a line for logs
    with console.status("starting Spark"):
        from pyspark.sql import SparkSession  # noqa: PLC0415

        from deltatap.spark.session import local_session  # noqa: PLC0415

        # This logger repeats messages of the errors that Spark raises.
        logging.getLogger("SQLQueryContextLogger").disabled = True
        if on_databricks:
            return SparkSession.builder.getOrCreate()
        return SparkSession.getActiveSession() or local_session(settings.spark.master, jars=settings.spark.jars)


def reader(settings: Settings, console: Console) -> Reader:
    """The reader of tables: without a JVM if possible; through Spark on Databricks and for remote tables."""
    from deltatap.delta.readers import without_jvm  # noqa: PLC0415

    if not without_jvm():
        from deltatap.delta.reader import SparkReader  # noqa: PLC0415

        return SparkReader(session(settings, console))
    from deltatap.delta.local import LocalReader  # noqa: PLC0415

    return LocalReader(lambda: session(settings, console))


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
