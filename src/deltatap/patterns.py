"""The regular expressions of moderation: checks that an expression is valid, and finds those that a text contains.

The engine is RE2, which pyarrow includes. It has no lookaround and no backreferences, and its time is linear in the
length of the text, so no expression can stall a worker. It does not hold the interpreter's lock. Knows nothing of
streams: ``worker/moderation`` decides which text is searched, and when.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# A match may depend on the end of the text or of a word. If the text also matches with a letter and with a space added,
# the match does not depend on the following text.
_FOLLOWS = ("", "a", " ")
# A window after the start of the text begins in the middle, so `^` must not match at its start.
_AFTER = r"\A(?s:.)(?s:.*?)"


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text to search.

    Attributes:
        text: the part. Unless it is the start of the text, its first character is only context.
        first: whether it is the start of the text.
        last: whether the text ends here.
    """

    text: str
    first: bool
    last: bool


def expected(pattern: str) -> str | None:
    """What to use instead of an expression that cannot be used; None if the expression can be used."""
    try:
        matches_nothing = _matches([""], pattern)[0]
        _matches([""], f"{_AFTER}(?:{pattern})")
    except ValueError as error:
        why = str(error).removeprefix("Invalid regular expression: ")
        return f"a regular expression of RE2, which has no lookaround and no backreferences ({why})"
    return "a regular expression that does not match an empty text" if matches_nothing else None


def find(windows: Sequence[Window], patterns: Sequence[str]) -> list[tuple[str, ...]]:
    """The patterns that each window contains. A match that more text could undo counts only if the text ends."""
    found: list[tuple[str, ...]] = [()] * len(windows)
    if not patterns:
        return found
    any_of = "|".join(f"(?:{pattern})" for pattern in patterns)
    for first in (True, False):
        places = [at for at, window in enumerate(windows) if window.first == first]
        # Joined, the patterns may be too large, or two of them may use the same group name.
        with suppress(ValueError):
            places = _among(windows, places, any_of)
        for pattern in patterns if places else ():
            for at in _among(windows, places, pattern):
                found[at] = (*found[at], pattern)
    return found


def _among(windows: Sequence[Window], places: Sequence[int], pattern: str) -> list[int]:
    """The places whose windows contain a pattern. The windows are all first windows, or all later ones."""
    texts, owners = [], []
    for at in places:
        for follows in _FOLLOWS[: 1 if windows[at].last else None]:
            texts.append(windows[at].text + follows)
            owners.append(at)
    if not texts:
        return []
    pattern = pattern if windows[places[0]].first else f"{_AFTER}(?:{pattern})"
    missing = {at for at, matches in zip(owners, _matches(texts, pattern), strict=True) if not matches}
    return [at for at in places if at not in missing]


def _matches(texts: Sequence[str], pattern: str) -> list[bool]:
    """Whether each text contains a pattern.

    Raises:
        ValueError: the pattern is not valid.
    """
    import pyarrow as pa  # noqa: PLC0415 - only what uses patterns needs it
    import pyarrow.compute as pc  # noqa: PLC0415 - the same

    found: list[bool] = pc.match_substring_regex(pa.array(texts, pa.string()), pattern).to_pylist()
    return found
