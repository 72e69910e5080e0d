"""The gaps between the outputs of a stream that broke off and was read on. Pure.

After a break, the server sends at once what it has generated meanwhile. So the time to the first output is that of the
break, and the times between the next ones say nothing about the model, until an output takes a while to arrive.
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
    """Leave out the gaps that come from breaks, in place: that of the first output, and those of what came at once.

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
