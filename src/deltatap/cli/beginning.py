"""The command that starts a new folder: ``init``. ``starter.py`` holds the contents of the files."""

from __future__ import annotations

import importlib.metadata
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from deltatap.cli.runner import CAPTURE, OK, Command, app, guarded, say, unwrapped
from deltatap.errors import ConfigError
from deltatap.program import program

# One package from each extra that the next commands need.
_NEEDED = {"spark": "pyspark", "report": "plotly", "serve": "uvicorn"}


@app.command(cls=Command, rich_help_panel=CAPTURE)
@unwrapped
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write to.")] = Path(),
    *,
    databricks: Annotated[
        bool, typer.Option("--databricks", help="Also write a bundle with the jobs for Databricks.")
    ] = False,
) -> None:
    """Write a configuration with comments, a file for your own prices and a few prompts, and show what to do next.

    Existing files are kept as they are, so you can run the command again, for example with --databricks. The other
    commands read the configuration, conf/local.yml. It lists every key with its default, so you can change it or
    delete it.

    Exit codes: 0, all files exist; 2, a file cannot be written.
    """
    from deltatap.terminal import plain_console  # noqa: PLC0415

    console = plain_console()

    def work() -> int:
        from deltatap import shipped, starter  # noqa: PLC0415

        names = [starter.CONFIG, *(shipped.bundle() if databricks else ())]
        texts = {name: shipped.path(name).read_text(encoding="utf-8") for name in names}
        package = importlib.metadata.distribution("deltatap")
        wheel = starter.wheel_source(package.version, package.read_text("direct_url.json"))
        written, kept = _write(folder, starter.files(texts, wheel=wheel, uuid=str(uuid.uuid4())))
        if written:
            say(console, f"written to {folder.absolute()}: {', '.join(written)}", "ok")
        if kept:
            say(console, f"kept as they are in {folder.absolute()}: {', '.join(kept)}")
        missing = [extra for extra, module in _NEEDED.items() if find_spec(module) is None]
        for line in starter.next_steps(str(folder), program(elsewhere=True), missing=missing, databricks=databricks):
            say(console, line)
        return OK

    sys.exit(guarded(console, work))


def _write(folder: Path, files: dict[str, str]) -> tuple[list[str], list[str]]:
    """Write the files that do not exist. Returns the names of the files written, and of those that already existed."""
    kept = [name for name in files if (folder / name).exists()]
    written = [name for name in files if name not in kept]
    for name in written:
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(files[name])
        except OSError as error:
            raise ConfigError([f"{folder / name}: cannot be written: {error.strerror}"]) from error
    return written, kept
