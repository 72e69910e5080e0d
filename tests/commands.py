"""Commands as a terminal of 80 columns shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.testing import CliRunner

from deltatap import cli

if TYPE_CHECKING:
    from pathlib import Path


def invoke(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "80", "TERM": "dumb"})
    return result.exit_code, result.output
