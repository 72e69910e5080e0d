"""Recognizes chunks that differ from an earlier one only in their text, so that they need no JSON decoding. Pure.

Most servers repeat every byte of a chunk around its text. To make sure that certain bytes surround a text,
:func:`around` puts another text in its place, and checks that nothing else changes in the decoded chunk. From then on,
the bytes between them are the text of an otherwise identical chunk, unless they end a JSON string.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.api.growing import GrowingChoice

_OTHER = "~"


class Around(NamedTuple):
    """The bytes of a chunk before and after its text."""

    before: bytes
    after: bytes

    def text(self, data: bytes) -> str | None:
        """The text of a chunk that is otherwise the same; None if it is not, or if its text is empty or escaped."""
        before, after = self
        start, end = len(before), len(data) - len(after)
        if end <= start or not data.startswith(before) or not data.endswith(after):
            return None
        piece = data[start:end]
        if b'"' in piece or b"\\" in piece:
            return None
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            return None
        # JSON does not allow control characters in a string.
        return text if text.isprintable() else None


class Alike(NamedTuple):
    """How to take a chunk that differs from an earlier one only in its text.

    Attributes:
        around: recognizes the chunk.
        choice: to which its text belongs.
        take: the accumulator's method that takes the text.
    """

    around: Around
    choice: GrowingChoice
    take: Callable[[Any, GrowingChoice, Any], None]


def around(data: bytes, text: str, put: Callable[[Any, str], Any]) -> Around | None:
    """The bytes around the text of a chunk; None if they are not certain.

    Args:
        data: the chunk, which is valid JSON.
        text: its text.
        put: replaces the text in the decoded chunk, and returns it.
    """
    quoted = b'"%b"' % text.encode("utf-8", "replace")
    if data.count(quoted) != 1:
        return None
    before, after = data.split(quoted)
    found = Around(before + b'"', b'"' + after)
    if found.text(data) != text:
        return None
    other = text + _OTHER
    try:
        probe, chunk = orjson.loads(b"".join((found.before, other.encode(), found.after))), orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return found if probe == put(chunk, other) else None
