"""The times of one capture, computed from its chunks. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from deltatap.model import KINDS, OUTPUT_KINDS, REASONING

if TYPE_CHECKING:
    from deltatap.model import Chunks

_OUTPUT = frozenset(KINDS.index(kind) for kind in OUTPUT_KINDS)


@dataclass(frozen=True, slots=True)
class Times:
    """Arrival times in ms since the request was written; None when nothing of that kind arrived.

    Attributes:
        first_chunk_ms: the first event of any kind, usually the role.
        ttft_ms: time to first token: the first output that is not empty, including reasoning.
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
        shown = next((at for at in output if chunks.kind[at] != REASONING), None)
        return cls(
            first_chunk_ms=_known(chunks.ms[0]),
            ttft_ms=_known(chunks.ms[output[0]]) if output else None,
            ttfot_ms=None if shown is None else _known(chunks.ms[shown]),
            last_chunk_ms=_known(chunks.ms[output[-1]]) if output else None,
        )


def _known(ms: float) -> float | None:
    return None if math.isnan(ms) else ms


def itl_ms(chunks: Chunks, tokens: np.ndarray[Any, Any], times: Times) -> float | None:
    """Mean time per token between the first and the last output, in ms; None if no token came after the first read.

    Everything in one socket read has one time. So the tokens of the first read took no time, and the tokens of every
    later read count: (last - first) / (tokens of the outputs after the first read).

    Args:
        chunks: the stream.
        tokens: the output tokens of each chunk.
        times: of the stream.
    """
    if times.ttft_ms is None or times.last_chunk_ms is None:
        return None
    read = np.frombuffer(chunks.read, np.intc)
    first = next(at for at, kind in enumerate(chunks.kind) if kind in _OUTPUT)
    later = int(tokens[read > read[first]].sum())  # chunks without output have none
    return (times.last_chunk_ms - times.ttft_ms) / later if later else None


def tpot_ms(ttft_ms: float | None, last_chunk_ms: float | None, output_tokens: int | None) -> float | None:
    """Time per output token after the first: (last - first) / (tokens - 1), in ms; None below 2 tokens.

    Same definition as in vLLM's serving benchmark, except that it ends at the last output, not at the stream's end.
    """
    if ttft_ms is None or last_chunk_ms is None or output_tokens is None or output_tokens < 2:  # noqa: PLR2004
        return None
    return (last_chunk_ms - ttft_ms) / (output_tokens - 1)
