"""The columns of a prompts table: which of them deltatap uses, and which look like a misspelled name. Pure.

Names match case-insensitively, as in Spark. The types of the columns are checked in ``driver/source.py``.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TEXTS = ("request_id", "prompt", "system", "model")
COLUMNS = (*TEXTS, "messages", "params")
# Names that other tools use for these columns.
_ALIASES = {
    "request_id": ("id", "custom_id", "uuid", "key"),
    "prompt": ("text", "question", "input", "content", "query", "instruction"),
    "messages": ("conversation", "chat"),
    "system": ("instructions", "system_message"),
    "params": ("parameters", "options", "body"),
}
_SIMILARITY = 0.8


def find(name: str, columns: Sequence[str]) -> str | None:
    """The column of this name; None if there is none.

    Raises:
        ValueError: if there are several.
    """
    found = [column for column in columns if column.lower() == name.lower()]
    if len(found) > 1:
        raise ValueError(f"column {name}: expected one, found {', '.join(found)}")
    return found[0] if found else None


def similar(name: str, columns: Iterable[str]) -> str | None:
    """The column whose name is most like this one; None if none is alike."""
    plain = {_plain(column): column for column in columns}
    near = difflib.get_close_matches(_plain(name), plain, 1, _SIMILARITY)
    return plain[near[0]] if near else None


def did_you_mean(*near: str | None) -> str:
    """The end of a message that names what may be meant, if anything."""
    names = ", ".join(name for name in near if name)
    return f"; did you mean {names}?" if names else ""


def near_misses(columns: Sequence[str]) -> list[tuple[str, str]]:
    """Unused columns that may be misspelled, each with the column that it may stand for."""
    present = {column.lower() for column in columns}
    unused = [column for column in columns if column.lower() not in COLUMNS]
    found = []
    for name in COLUMNS:
        if name in present or (name in ("prompt", "messages") and present & {"prompt", "messages"}):
            continue
        aliases = _ALIASES.get(name, ())
        near = similar(name, unused) or next((column for column in unused if column.lower() in aliases), None)
        if near is not None:
            found.append((near, name))
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
