"""Where the text of an answer is checked: at regular intervals of characters, and at its end. Pure.

Reads the content of each choice from the chunks, so a point depends only on the text and on how it is cut into chunks.
Reasoning, refusals and tool calls are not read. ``moderator.py`` makes the checks.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltatap.model import CONTENT
from deltatap.patterns import Window

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltatap.model import Choice, Chunks

# A match may begin at most this many bytes before the new text of a check. An endpoint gets at most this many bytes.
# Without these bounds, the time for the checks of an endless text would grow with the square of its length.
_REACH = 4 * 1024
_MOST = 256 * 1024


@dataclass(frozen=True, slots=True)
class Check:
    """A check of the text of one choice, from its start to a point.

    Attributes:
        choice: index of the choice.
        chars: length of the text.
        chunk: number of the chunk that ends the text; None for an answer without chunks.
        since: where the text of the previous check ends, in bytes.
        end: where the text ends, in bytes.
        last: whether no more text follows.
    """

    choice: int
    chars: int
    chunk: int | None
    since: int
    end: int
    last: bool = False


@dataclass(slots=True)
class _Text:
    """The text of a choice so far, and how much of it has been checked."""

    utf8: bytearray = field(default_factory=bytearray)
    chars: int = 0
    chunk: int | None = None
    checked: int = 0
    checked_end: int = 0

    def add(self, piece: bytes | bytearray, chunk: int | None) -> None:
        self.utf8 += piece
        self.chars += len(piece) if piece.isascii() else len(piece.decode())
        self.chunk = chunk

    def check(self, choice: int, *, last: bool) -> Check:
        check = Check(choice, self.chars, self.chunk, self.checked_end, len(self.utf8), last)
        self.checked, self.checked_end = check.chars, check.end
        return check

    def between(self, start: int, end: int) -> str:
        """The text between two byte positions, without a character that begins before the first one."""
        while start < end and self.utf8[start] & 0xC0 == 0x80:  # noqa: PLR2004 - a byte that continues a character
            start += 1
        return self.utf8[start:end].decode()


class Points:
    """The points of one call.

    Attributes:
        due: the minimum number of bytes in all chunks when the next point is reached.

    Args:
        every_chars: the distance between two points.
        streams: whether a stream is expected. The text of a whole answer is checked only at its end.
    """

    def __init__(self, every_chars: int, *, streams: bool = True) -> None:
        self.due = every_chars if streams else sys.maxsize
        self._every = every_chars
        self._texts: dict[int, _Text] = {}
        self._read = 0

    def take(self, chunks: Chunks) -> list[Check]:
        """The checks that are due after the chunks that have arrived since the last time."""
        found = []
        ends, start = chunks.end, chunks.end[self._read - 1] if self._read else 0
        for at in range(self._read, len(chunks)):
            end = ends[at]
            if chunks.kind[at] == CONTENT and end > start:
                choice = chunks.choice[at]
                text = self._texts.setdefault(choice, _Text())
                text.add(chunks.utf8[start:end], at)
                if text.chars - text.checked >= self._every:
                    found.append(text.check(choice, last=False))
            start = end
        self._read = len(chunks)
        unchecked = max((text.chars - text.checked for text in self._texts.values()), default=0)
        # A character has at least one byte.
        self.due = len(chunks.utf8) + self._every - unchecked
        return found

    def whole(self, choices: Iterable[Choice]) -> None:
        """Take the texts of an answer that has no chunks, unless chunks have been read."""
        for choice in choices if not self._read else ():
            if choice.text:
                self._texts.setdefault(choice.index, _Text()).add(choice.text.encode(), None)

    def end(self, *, again: bool) -> list[Check]:
        """The checks at the end of the texts.

        Args:
            again: whether to check a text again that ends at its last point.
        """
        return [
            text.check(choice, last=True)
            for choice, text in sorted(self._texts.items())
            if again or text.chars > text.checked
        ]

    def seen(self, choice: int) -> int:
        """How many characters of a choice have arrived."""
        return self._texts[choice].chars if choice in self._texts else 0

    def window(self, check: Check) -> Window:
        """The part of the text that can contain a match that no earlier check found."""
        start = max(0, check.since - _REACH)
        return Window(self._texts[check.choice].between(start, check.end), first=start == 0, last=check.last)

    def text(self, check: Check) -> str:
        """The text to check, or the end of a very long one."""
        return self._texts[check.choice].between(max(0, check.end - _MOST), check.end)
