"""The console of the commands, and one line of text on it."""

from __future__ import annotations

from rich.console import Console


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: names and messages can look like Rich markup."""
    return Console(markup=False, emoji=False, highlight=False, stderr=stderr)


def line(console: Console, text: str, style: str | None = None) -> None:
    """Print one line without wrapping it or coloring its numbers; print nothing for an empty text."""
    if text:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
