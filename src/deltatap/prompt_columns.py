"""The columns of a prompts table: which deltatap uses, which types they need, and which look misspelled. Pure.

Names match case-insensitively, as in Spark. ``driver/source.py`` knows the types of Spark, and ``delta/append.py``
those of Arrow.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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
# Parameters of requests that some tools keep in columns; here they belong in params.
_PARAMETERS = frozenset(
    (
        "temperature", "top_p", "top_k", "n", "seed", "stop", "max_tokens", "max_completion_tokens",
        "max_output_tokens", "presence_penalty", "frequency_penalty", "reasoning_effort", "response_format", "tools",
        "tool_choice", "service_tier",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ColumnType:
    """What the type of a column allows.

    Attributes:
        name: in SQL, such as ``BIGINT``.
        is_text: whether it is STRING, or VOID: the type of ``NULL AS system``.
        is_id: whether it can be a request_id.
        is_messages: whether it can be a chat.
        is_params: whether it can be a request's params.
    """

    name: str
    is_text: bool = False
    is_id: bool = False
    is_messages: bool = False
    is_params: bool = False

    @classmethod
    def text(cls, name: str = "STRING") -> ColumnType:
        """A type that every column can have: chats and params can be JSON."""
        return cls(name, is_text=True, is_id=True, is_messages=True, is_params=True)


def find(name: str, columns: Sequence[str]) -> str | None:
    """The column of this name; None if there is none.

    Raises:
        ValueError: if there are several.
    """
    found = [column for column in columns if column.lower() == name.lower()]
    if len(found) > 1:
        raise ValueError(f"column {name}: expected one column of this name, found {', '.join(found)}")
    return found[0] if found else None


def similar(name: str, columns: Iterable[str]) -> str | None:
    """The column with the most similar name; None if no name is similar enough."""
    plain = {_plain(column): column for column in columns}
    near = difflib.get_close_matches(_plain(name), plain, 1, _SIMILARITY)
    return plain[near[0]] if near else None


def did_you_mean(*near: str | None) -> str:
    """The end of a message: the names that the user may have meant, if there are any."""
    names = ", ".join(name for name in near if name)
    return f"; did you mean {names}?" if names else ""


def wrong_columns(
    types: Mapping[str, ColumnType], templates: Iterable[str] = (), columns: Sequence[str] = ()
) -> Iterator[str]:
    """Check a prompts table's columns; one line for each problem.

    Args:
        types: those of the columns that deltatap uses, by their names in lower case.
        templates: the columns that a template replaces.
        columns: all columns of the table, for messages.
    """
    for name in TEXTS:
        if name in types and not (types[name].is_id if name == "request_id" else types[name].is_text):
            expected = "STRING or an integer" if name == "request_id" else "STRING"
            yield f"column {name}: expected {expected}, found {types[name].name}; cast it with prompts.sql"
    if not {"prompt", "messages"} & {*types, *templates}:
        hint = did_you_mean(similar("prompt", columns) or similar("messages", columns))
        yield f"expected a column prompt or messages, found {', '.join(columns or types) or 'no columns'}{hint}"
    if "messages" in types and not types["messages"].is_messages:
        yield (
            "column messages: expected ARRAY<STRUCT<role: STRING, content: STRING, …>> or a JSON STRING, "
            f"found {types['messages'].name}"
        )
    if "params" in types and not types["params"].is_params:
        yield f"column params: expected a JSON STRING or MAP<STRING, …>, found {types['params'].name}"


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


def misplaced(columns: Iterable[str]) -> str | None:
    """What to do about unused columns whose names are parameters of requests; None if there are none."""
    found = [column for column in columns if column.lower() in _PARAMETERS]
    return f"put request parameters ({', '.join(found)}) in the column params" if found else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
