"""The metrics' definitions, pure: from a capture's chunks to its times, and how late the event loop ran meanwhile."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from deltatap.received import KINDS, OUTPUT_KINDS

if TYPE_CHECKING:
    from deltatap.received import Chunks

_OUTPUT = frozenset(KINDS.index(kind) for kind in OUTPUT_KINDS)
_REASONING = KINDS.index("reasoning")


@dataclass(frozen=True, slots=True)
class Times:
    """When what came, in ms since the request was written; None when it never did.

    Attributes:
        first_chunk_ms: the first event of any kind, mostly the role.
        ttft_ms: time to first token: the first output that is not empty; reasoning counts.
        ttfot_ms: time to first output token: the first output that is not reasoning.
        last_chunk_ms: the last output.
    """

    first_chunk_ms: float | None = None
    ttft_ms: float | None = None
    ttfot_ms: float | None = None
    last_chunk_ms: float | None = None

    @classmethod
    def of(cls, chunks: Chunks) -> Self:
        """The times of a stream."""
        if not chunks:
            return cls()
        output = [at for at, kind in enumerate(chunks.kind) if kind in _OUTPUT]
        shown = next((at for at in output if chunks.kind[at] != _REASONING), None)
        return cls(
            first_chunk_ms=chunks.ms[0],
            ttft_ms=chunks.ms[output[0]] if output else None,
            ttfot_ms=None if shown is None else chunks.ms[shown],
            last_chunk_ms=chunks.ms[output[-1]] if output else None,
        )


def tpot_ms(ttft_ms: float | None, last_chunk_ms: float | None, output_tokens: int | None) -> float | None:
    """Time per output token after the first: (last - first) / (tokens - 1), in ms; None below 2 tokens.

    As vLLM's serving benchmark has it, but to the last output instead of the stream's end.
    """
    if ttft_ms is None or last_chunk_ms is None or output_tokens is None or output_tokens < 2:  # noqa: PLR2004
        return None
    return (last_chunk_ms - ttft_ms) / (output_tokens - 1)


class LagRecord:
    """How late an event loop ran, and the worst of it since any time.

    Only lags that no later one exceeds can be the worst since some time: kept alone, they fall from the oldest to the
    newest, so the worst since a time is the first one after it.
    """

    __slots__ = ("_at", "_lag")

    def __init__(self) -> None:
        self._at: list[float] = []
        self._lag: list[float] = []

    def add(self, at: float, lag: float) -> None:
        """The loop was `lag` seconds late at `at`, in monotonic seconds; times come in order."""
        while self._lag and self._lag[-1] <= lag:
            self._lag.pop()
            self._at.pop()
        self._at.append(at)
        self._lag.append(lag)

    def worst(self, since: float) -> float:
        """The worst lag in seconds since a time; 0 when there was none."""
        at = bisect_left(self._at, since)
        return self._lag[at] if at < len(self._lag) else 0.0
