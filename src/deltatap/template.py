"""Prompt templates: text with the names of columns in braces, such as ``Summarise {title}: {body}``. Pure.

Knows how a template is written and how a row fills it. ``driver/source.py`` reads the columns that it names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltatap.api.prompt import BadPromptError, as_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template.

    Attributes:
        key: the setting that holds it, for messages.
        texts: the texts before, between and after the columns.
        columns: the names of the columns, one for each gap between the texts.
    """

    key: str
    texts: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, key: str, template: str) -> Template:
        """Parse a template. Write ``{{`` and ``}}`` for literal braces.

        Raises:
            ValueError: if a brace is unmatched, or a pair of braces is empty. The message names the key.
        """
        texts, columns, start = [""], [], 0
        for found in _PARTS.finditer(template):
            texts[-1] += template[start : found.start()]
            start = found.end()
            if found[0] in ("{{", "}}"):
                texts[-1] += found[0][0]
            elif found[1] is None:
                where, brace = found.start() + 1, found[0]
                raise ValueError(f"{key}: unmatched brace at character {where}; for a literal brace, write {brace * 2}")
            elif not found[1].strip():
                raise ValueError(f"{key}: expected a column name in the braces at character {found.start() + 1}")
            else:
                columns.append(found[1].strip())
                texts.append("")
        texts[-1] += template[start:]
        return cls(key, tuple(texts), tuple(columns))

    def render(self, values: Sequence[Any]) -> str:
        """The text for a row: text columns as they are, other types as JSON.

        Args:
            values: of the columns.

        Raises:
            BadPromptError: if a column is NULL; the prompt would be incomplete.
        """
        for name, value in zip(self.columns, values, strict=True):
            if value is None:
                raise BadPromptError(f"{self.key}: column {name} is NULL")
        filled = [*map(as_text, values), ""]
        return "".join(text + value for text, value in zip(self.texts, filled, strict=True))
