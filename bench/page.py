"""Replaces a table of figures in a documentation page, for ``--keep``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def with_table(page: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Replace the table whose first column has the same heading.

    Raises:
        ValueError: the page has no such table.
    """
    lines = page.splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith(f"| {head[0]} |")), None)
    if first is None:
        raise ValueError(f"no table whose first column is {head[0]!r}")
    after = next((at for at in range(first, len(lines)) if not lines[at].startswith("|")), len(lines))
    made = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    made.insert(1, "|" + "---|" * len(head))
    return "\n".join([*lines[:first], *made, *lines[after:], ""])
