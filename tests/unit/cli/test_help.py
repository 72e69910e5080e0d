"""Help, version and shell completion."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from deltatap import cli
from tests.commands import invoke

ROOT = Path(__file__).parents[3]
PANELS = {
    "Capture": ["init", "capture", "load", "check", "stop", "record", "sweep", "watch"],
    "Results": ["runs", "show", "failures", "analyze", "compare", "report", "reconcile", "export", "trend"],
    "Endpoints for tests": ["replay", "simulate"],
}
COMMANDS = [name for names in PANELS.values() for name in names]


def test_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert invoke("--version") == (0, f"deltatap {version}\n")


def test_help_lists_every_command_and_shell_completion() -> None:
    code, output = invoke("--help")
    assert code == 0
    panels = re.split(r"^╭─ (.+?) ─+╮$", output, flags=re.MULTILINE)
    found = {
        title: re.findall(r"^│ (\w+) ", text, re.MULTILINE)
        for title, text in zip(panels[1::2], panels[2::2], strict=True)
    }
    assert [(title, names) for title, names in found.items() if names] == list(PANELS.items())
    assert "--install-completion" in output


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)])
def test_help_fits_into_80_columns(words: tuple[str, ...]) -> None:
    _, output = invoke(*words, "--help")
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output, "nothing is cut"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("c", ["capture", "check", "compare"]), ("compare --f", ["--fail-if"]), ("simulate --po", ["--port"])],
)
def test_the_shell_completes_commands_and_options(typed: str, offered: list[str]) -> None:
    words = f"deltatap {typed}"
    environment = {"_DELTATAP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    result = CliRunner().invoke(cli.app, [], prog_name="deltatap", env=environment)
    assert sorted(result.output.split()) == offered


@pytest.mark.parametrize("name", COMMANDS)
def test_help_at_80_columns_is_wrapped_once(name: str) -> None:
    code, output = invoke(name, "--help")
    assert code == 0
    text = output.partition("╭")[0].partition("Usage:")[2]
    paragraphs = [paragraph.split("\n") for paragraph in re.split(r"\n\s*\n", text)[1:] if paragraph.strip()]
    for paragraph in paragraphs:
        for line, after in itertools.pairwise(paragraph):
            word = after.split()[0] if after.strip() else "x" * 80
            assert len(line.rstrip()) + 1 + len(word) > 79, f"{line!r} has room for {word!r}"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("init", "simulate")])
def test_commands_share_config_and_set(name: str) -> None:
    group = typer.main.get_command(cli.app)
    options = {option for parameter in group.commands[name].params for option in parameter.opts}  # type: ignore[attr-defined]
    assert {"--config", "-c", "--set"} <= options


def test_help_and_version_import_no_heavy_package() -> None:
    heavy = "{'numpy', 'pandas', 'pyarrow', 'pydantic', 'pyspark', 'tiktoken', 'openai', 'yaml'}"
    code = f"import sys, deltatap.cli; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("words", [(), ("capture",), ("analyze",)])
def test_help_shows_no_type_for_flags(words: tuple[str, ...]) -> None:
    _, output = invoke(*words, "--help")
    assert "--help" in output
    assert "bool" not in output.lower()
