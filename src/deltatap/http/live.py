"""The part of an open stream that a heartbeat contains: the end of its text so far, without secrets.

The cost does not depend on the length of the answer. ``reading.py`` reads the answer, ``state.py`` writes the
heartbeat.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from deltatap.http.redact import ESCAPED_CHAR, shown_end
from deltatap.messages import OpenStream

if TYPE_CHECKING:
    from collections.abc import Collection

    from deltatap.http.reading import Reading

# How many open streams of a worker are shown, and how many characters of each.
STREAMS, _SHOWN = 8, 400


def open_stream(reading: Reading, model: str, mode: str, started: float, secrets: Collection[str]) -> OpenStream:
    """An open stream.

    Args:
        reading: of its answer.
        model: that was requested.
        mode: of the request.
        started: when the request started, in monotonic seconds.
        secrets: values that the text must not contain.
    """
    longest = sum(map(len, secrets)) * ESCAPED_CHAR
    chars, text = reading.accumulator.end_of_text(_SHOWN + longest)
    shown = shown_end(text, secrets, _SHOWN, whole=chars <= len(text))
    return OpenStream(reading.request_id, model, mode, round(time.perf_counter() - started, 3), chars, shown)
