"""The results of the checks of a call, and the column ``partial_moderation``. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltatap.api.values import to_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltatap.model import Chunks
    from deltatap.worker.moderation.points import Check


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a check.

    Attributes:
        check: the check.
        flagged: whether the text is flagged; None if this is not known.
        categories: why it is flagged: categories of the endpoint, or patterns.
        error: type of the error that kept the check from a result; None if there was none.
        took_ms: duration of the check, in ms, without waits; None if it did not begin.
        verdict_ms: when the result was known, in ms since the request was written; None for an answer without chunks.
        seen: how many characters of the text had arrived at that time.
    """

    check: Check
    flagged: bool | None = None
    categories: tuple[str, ...] = ()
    error: str | None = None
    took_ms: float | None = None
    verdict_ms: float | None = None
    seen: int = 0


def column(found: Iterable[Found], chunks: Chunks, e2e_ms: float | None) -> str:
    """The column's JSON, by choice and length.

    Args:
        found: the results.
        chunks: of the call, whose times are final.
        e2e_ms: when an answer without chunks arrived.
    """

    def ms(chunk: int | None) -> float | None:
        if chunk is None:
            return e2e_ms
        return chunks.ms[chunk] if chunk < len(chunks) else None

    # If a text was checked twice at its end, the last check counts, unless it failed.
    ordered = sorted(found, key=lambda each: (each.flagged is not None, each.check.last))
    latest = {(each.check.choice, each.check.chars): each for each in ordered}
    return to_json(
        [
            {
                "choice": each.check.choice,
                "chars": each.check.chars,
                "chunk": each.check.chunk,
                "ms": ms(each.check.chunk),
                "flagged": each.flagged,
                "categories": each.categories,
                "error": each.error,
                "took_ms": each.took_ms,
                "verdict_ms": each.verdict_ms,
                "seen": each.seen,
            }
            for _, each in sorted(latest.items(), key=lambda item: item[0])
        ]
    )
