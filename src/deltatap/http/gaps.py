"""The gaps between the outputs of a resumed stream. Pure.

After a break, the server sends everything that it generated during the break at once. So the gap before the first
output is the length of the break. The next gaps say nothing about the model until one of them is long enough to be a
wait for an output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deltatap.model import KINDS, OUTPUT_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltatap.model import Chunks

_CAUGHT_UP_MS = 5.0
_OUTPUT = frozenset(KINDS.index(kind) for kind in OUTPUT_KINDS)


def without_gaps(chunks: Chunks, breaks: Iterable[int]) -> Chunks:
    """Remove, in place, the gap of the first output after each break, and the gaps of outputs that were sent at once.

    Args:
        chunks: of one answer.
        breaks: the number of chunks before each break.
    """
    for start in breaks:
        first = True
        for at in range(start, len(chunks)):
            if chunks.kind[at] in _OUTPUT:
                gap, chunks.gap_ms[at] = chunks.gap_ms[at], math.nan
                if not first and gap >= _CAUGHT_UP_MS:
                    break
                first = False
    return chunks
