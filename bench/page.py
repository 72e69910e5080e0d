"""A measured table in a page of the documentation, written anew by ``--keep``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def with_table(page: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The page with the rows in place of those of its table whose first column has the same head.

    Raises:
        ValueError: when the page has no such table.
    """
    lines = page.splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith(f"| {head[0]} |")), None)
    if first is None:
        raise ValueError(f"no table whose first column is {head[0]!r}")
    after = next((at for at in range(first, len(lines)) if not lines[at].startswith("|")), len(lines))
    made = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    made.insert(1, "|" + "---|" * len(head))
    return "\n".join([*lines[:first], *made, *lines[after:], ""])
